"""Run the examples in docstrings: `python docs/doctests.py`. Every public name must have one."""

import doctest
import importlib.util
import os
import pkgutil
import sys
import tempfile
import warnings
from pathlib import Path

import ndvit

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
WITHOUT = {"push_to_hub", "resume_cross_validation", "shard"}  # they need the hub, an interrupted run, or an extra


def main() -> int:
    """Run the examples of all modules in an empty folder, and return the exit status."""
    warnings.simplefilter("ignore")
    missing = [
        name for name in ndvit.__all__ if name not in WITHOUT and ">>>" not in (getattr(ndvit, name).__doc__ or "")
    ]
    failed = attempted = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for info in pkgutil.walk_packages([str(Path(ndvit.__file__).parent)], "ndvit."):
            spec = importlib.util.find_spec(info.name)
            if spec is None or spec.origin is None or ">>>" not in Path(spec.origin).read_text(encoding="utf-8"):
                continue
            result = doctest.testmod(importlib.import_module(info.name), optionflags=FLAGS)
            failed, attempted = failed + result.failed, attempted + result.attempted
        os.chdir("/")
    print(f"{attempted} examples in docstrings, {failed} failed")
    if missing:
        print(f"public names without an example: {', '.join(missing)}")
    return bool(failed or missing)


if __name__ == "__main__":
    sys.exit(main())
