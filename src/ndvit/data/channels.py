"""Names of channels: whether those of new examples are the names of the training, in the same order."""

import re
from collections.abc import Sequence

from ndvit.data.messages import Doubt, listing, warn_of_doubts

_LISTED = 10  # names in a message
_TRAINED_ON = "and the model was trained on"


def check_channels(names: Sequence[str], expected: Sequence[str], where: str, of: str = _TRAINED_ON) -> None:
    """Compare the names of the channels of examples with those of the training; networks tell channels by their place.

    Upper case, spaces and punctuation do not count. Examples or a training without names, and another number of
    channels, which is refused elsewhere, are not compared. A `DataWarning` is raised for names that the training did
    not have.

    Args:
        names: names of the channels of the examples; empty if they have none.
        expected: those of the training.
        where: name of the examples in messages.
        of: whose names those of the training are, in messages.

    Raises:
        ValueError: if a channel of the training is at another place.
    """
    if len(names) != len(expected):
        return
    mine, known = _alike(names), _alike(expected)
    if mine == known:
        return
    differ = f"{where}: has the channels {listing(list(names), _LISTED)}, {of} {listing(list(expected), _LISTED)}"
    if any(a != b and a in known for a, b in zip(mine, known)):
        raise ValueError(
            f"{differ}, in this order: change the order of the data, or name the columns in the order of the training "
            "with --channels (channels= in Python)"
        )
    doubt = "they are taken in this order; if that is right, rename them or list them with --channels (channels=)"
    warn_of_doubts([Doubt(f"{differ}: {doubt}")])


def _alike(names: Sequence[str]) -> list[str]:
    """Names without upper case, spaces and punctuation; as they are if that makes two of them equal."""
    plain = [re.sub(r"[\W_]+", "", name.lower()) for name in names]
    return plain if len(set(plain)) == len(plain) and all(plain) else list(names)
