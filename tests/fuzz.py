"""Strategies and settings that the fuzz tests of readers share."""

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FAST = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""A few examples, the same in each run."""

odd_numbers = st.sampled_from([0, -1, 1, 2**31, 2**63, 10**18, 10**400, 1e300, 1e-320, 0.5, float("inf"), float("nan")])
odd_texts = st.sampled_from(["", " ", "a", "\x1b[2J", "\x00", "\u202e", "\ud800", "=1+1", "x" * 5000, "NaN", "None"])
leaves = st.none() | st.booleans() | odd_numbers | st.integers(-3, 9) | odd_texts | st.text(max_size=5)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
"""Values of JSON."""


@st.composite
def damaged(draw: Any, data: bytes) -> bytes:
    """Bytes of a file of which a few are changed, left out or added."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(out) - 1)))
        what = draw(st.sampled_from(["flip", "cut", "zero", "insert"]))
        if what == "flip" and out:
            out[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "cut":
            del out[at : at + draw(st.integers(1, 2000))]
        elif what == "zero":
            out[at : at + 64] = bytes(len(out[at : at + 64]))
        else:
            out[at:at] = draw(st.binary(max_size=12))
    return bytes(out)


def refuses_or_reads(read: Callable[[], object]) -> None:
    """Call a reader of untrusted bytes: the outcome is a value, or an error that names the input's fault."""
    message = "a value"
    try:
        read()
    except (ValueError, OSError) as error:
        message = str(error)
    assert message
