"""Options of the random convolutions (MiniRocket) that answer beside a network."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

from annotated_types import Ge

from ndvit.config.bounds import Cap, Options, Share

SHORTEST_SIGNAL = 3  # samples; the kernels also read the differences of the signal, and need two of them
FEWEST_FEATURES = 168  # one for each of 84 kernels on the signal and on its differences
DEFAULT_FEATURES = 10_000


@dataclass(frozen=True, kw_only=True)
class RandomConvolutionOptions(Options):
    """Random convolutions."""

    rocket_features: Annotated[int, Ge(0), Cap(10**7)] | None = None
    """Features of random convolutions beside the network, for signals of one axis (MiniRocket), with a linear head of
    their own that is solved in closed form. 0 switches them off; the default is 10,000 for signal_SIZE, else 0."""
    rocket_weight: Share | None = None
    """Weight of the random convolutions in the mean with the network's outputs, from 0 to 1. The default is 0.5,
    more where a class has fewer than ten training examples, and 250 / n where it has n, more than 500."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rocket_features is not None and 0 < self.rocket_features < FEWEST_FEATURES:
            raise ValueError(
                f"rocket_features must be 0 or at least {FEWEST_FEATURES}, one for each of 84 kernels on the signal "
                f"and on its differences; got {self.rocket_features}: {DEFAULT_FEATURES:,} is usual"
            )

    def features(self, default: int, input_size: tuple[int, ...]) -> int:
        """Number of features beside a network with this input size: the chosen number, or else the default.

        Raises:
            ValueError: if features are requested for inputs that random convolutions cannot read.
        """
        if self.rocket_features is None:
            return default if rocket_reads(input_size) else 0
        if self.rocket_features and not rocket_reads(input_size):
            raise ValueError(
                f"rocket_features need signals of one axis and at least {SHORTEST_SIGNAL} samples, but input_size is "
                f"{input_size}: leave rocket_features at 0"
            )
        return self.rocket_features


def default_features(model: str | None, input_size: tuple[int, ...]) -> int:
    """Default number of features for a model name: 10,000 for signal_SIZE on inputs that they can read, else 0."""
    return DEFAULT_FEATURES if (model or "").startswith("signal_") and rocket_reads(input_size) else 0


def rocket_reads(input_size: tuple[int, ...]) -> bool:
    """Whether random convolutions can read inputs of this size: signals of one axis and at least 3 samples."""
    return len(input_size) == 1 and input_size[0] >= SHORTEST_SIGNAL


def split_legacy(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a stored config of format 1 or 2, which describes the network and its random convolutions together.

    Returns:
        The values of `ViTConfig`, and those of `RandomConvolutionOptions`.
    """
    network = dict(values)
    own = {f.name: network.pop(f.name) for f in fields(RandomConvolutionOptions) if f.name in network}
    return network, own
