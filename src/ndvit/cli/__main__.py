"""`python -m ndvit.cli` is the `ndvit` command."""

from ndvit.cli import main

main()
