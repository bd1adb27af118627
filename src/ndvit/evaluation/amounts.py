"""Numbers as text, for pages and messages."""

import math


def quantity(value: float, digits: int = 4) -> str:
    """A number of so many significant digits, with all digits before the point and commas between thousands.

    Very small and very large numbers have an exponent.
    """
    if not 1e-4 <= abs(value) < 1e9:
        return f"{value:.{digits}g}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
