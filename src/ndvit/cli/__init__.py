"""The command line. `main` is the `ndvit` command."""

from ndvit.cli.app import main

__all__ = ["main"]
