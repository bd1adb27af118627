"""The command line. `main` is the `ndvit` command."""

from ndvit.cli.commands import main

__all__ = ["main"]
