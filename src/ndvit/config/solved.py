"""Options of networks solved in closed form: random convolutions (MiniRocket), a frozen encoder, level and spread."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge

from ndvit.config.bounds import Cap, Options, Share

SOLVED = "closed_form"
"""The model of a training without a descended network: random convolutions and the frozen encoder alone."""
SHORTEST_SIGNAL = 3  # samples; the kernels also read the differences of the signal, and need two of them
FEWEST_FEATURES = 168  # one for each of 84 kernels on the signal and on its differences
DEFAULT_FEATURES = 10_000
_LEGACY = ("rocket_features", "rocket_weight")


@dataclass(frozen=True, kw_only=True)
class SolvedOptions(Options):
    """Networks solved in closed form."""

    rocket_features: Annotated[int, Ge(0), Cap(10**7)] | None = None
    """Features of random convolutions beside the network, for signals of one axis (MiniRocket), with a linear head of
    their own that is solved in closed form. 0 switches them off; the default is 10,000 for signal_SIZE and closed_form,
    else 0."""
    encoder: bool | None = None
    """Features of the frozen encoder of signals, pretrained on synthetic ones, likewise with a head of their own. The
    default is yes for signal_SIZE and closed_form, else no."""
    levels: bool | None = None
    """Mean and standard deviation of each channel, likewise with a head of their own, which counts as far as leaving
    one example or group out shows that it helps. Random convolutions and encoder ignore them. The default is yes beside
    either of these, but not for sounds."""
    encoder_weight: Share | None = None
    """Weight of the encoder in its mean with the random convolutions. Usually 1/3; by default, leaving one example or
    group out moves it to the weight with the least loss, as far as there is evidence."""
    solved_weight: Share | Literal["usual"] | None = None
    """Weight of random convolutions and encoder together in the mean with the network. usual, also without validation
    examples: 0.5, more where a class has fewer than ten training examples, and 250 / n where it has n, more than 500.
    By default, validation examples move the usual weight to the one with the least loss, as far as they are evidence;
    then they serve random convolutions and encoder as training examples, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rocket_features is not None and 0 < self.rocket_features < FEWEST_FEATURES:
            raise ValueError(
                f"rocket_features must be 0 or at least {FEWEST_FEATURES}, one for each of 84 kernels on the signal "
                f"and on its differences; got {self.rocket_features}: {DEFAULT_FEATURES:,} is usual"
            )

    def features(self, default: int, input_size: tuple[int, ...]) -> int:
        """Number of random convolution features for this input size: the chosen number, or else the default.

        Raises:
            ValueError: if features are requested for inputs that random convolutions cannot read.
        """
        return int(self._chosen("rocket_features", default, input_size))

    def encodes(self, default: bool, input_size: tuple[int, ...]) -> bool:
        """Whether the frozen encoder is used for this input size: as chosen, or else the default.

        Raises:
            ValueError: if it is requested for inputs that it cannot read.
        """
        return bool(self._chosen("encoder", default, input_size))

    def reads_levels(self, default: bool, input_size: tuple[int, ...]) -> bool:
        """Whether level and spread are used for this input size: as chosen, or else the default.

        Raises:
            ValueError: if they are requested for inputs that are not signals of one axis.
        """
        return bool(self._chosen("levels", default, input_size))

    def _chosen(self, name: str, default: int, input_size: tuple[int, ...]) -> int:
        value = getattr(self, name)
        if value is None:
            return default if reads_signals(input_size) else 0
        if value and not reads_signals(input_size):
            raise ValueError(
                f"{name} needs signals of one axis and at least {SHORTEST_SIGNAL} samples, but input_size is "
                f"{input_size}: leave {name} out, or set it to 0"
            )
        return int(value)


def default_features(model: str | None, input_size: tuple[int, ...]) -> int:
    """Default number of random convolution features for a model name: 10,000 for models of signals, else 0."""
    for_signals = model == SOLVED or (model or "").startswith("signal_")
    return DEFAULT_FEATURES if for_signals and reads_signals(input_size) else 0


def reads_signals(input_size: tuple[int, ...]) -> bool:
    """Whether solved networks can read inputs of this size: signals of one axis and at least 3 samples."""
    return len(input_size) == 1 and input_size[0] >= SHORTEST_SIGNAL


def split_legacy(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a stored config of format 1 or 2, which describes the network and its random convolutions together.

    Returns:
        The values of `ViTConfig`, and rocket_features and rocket_weight, where it has them.
    """
    network = dict(values)
    own = {name: network.pop(name) for name in _LEGACY if name in network}
    return network, own
