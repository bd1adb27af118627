"""Optional packages that read some formats."""

from importlib.util import find_spec


def needed(package: str, extra: str, what: str) -> None:
    """Raise a ValueError with the line that installs a package if it is not there.

    Args:
        package: the package that is imported.
        extra: the extra of ndvit that has it.
        what: what needs it, for the message.
    """
    if find_spec(package) is None:
        raise ValueError(f"{what} need the package {package}, which is not installed: pip install 'ndvit[{extra}]'")
