"""Output of the commands."""

import json
import sys
from typing import Any


def remark(line: str) -> None:
    """Print a line to standard error, which keeps CSV and JSON on standard output clean."""
    print(line, file=sys.stderr)


def print_json(values: Any) -> None:
    """Print plain values as JSON."""
    print(json.dumps(values, indent=1, ensure_ascii=False))
