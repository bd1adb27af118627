"""`python -m ndvit.cli` is the `ndvit` command."""

from ndvit.cli.commands import main

main()
