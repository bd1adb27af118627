"""Errors of requests, with their HTTP status."""

from __future__ import annotations

from collections.abc import Sequence


class Refused(Exception):
    """A request that is not answered.

    Args:
        status: the HTTP status.
        message: what came, what was expected, and how to mend it.
        retry_after: seconds after which the client may try again; None if that would not help.
        faults: name and error of each file.
    """

    def __init__(
        self,
        status: int,
        message: str,
        retry_after: int | None = None,
        faults: Sequence[dict[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after, self.faults = status, message, retry_after, list(faults)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


class Busy(Refused):
    """More work than the service accepts at one time."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(429, message, retry_after)


class NotReady(Refused):
    """A model that is being loaded, or could not be loaded."""

    def __init__(self, message: str, retry_after: int = 5) -> None:
        super().__init__(503, message, retry_after)


class TooLarge(Refused):
    """A request above one of the limits."""

    def __init__(self, message: str) -> None:
        super().__init__(413, message)


class Invalid(Refused):
    """A request, or data in it, that cannot be used."""

    def __init__(self, message: str, faults: Sequence[dict[str, str]] = ()) -> None:
        super().__init__(422, message, faults=faults)
