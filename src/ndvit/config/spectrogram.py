"""Options of spectrograms: signals of one axis as pictures of time and frequency."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import DocInfo, Ge, Le

from ndvit.config.bounds import Cap, Options
from ndvit.config.reading import Length

Scale = Literal["mel", "linear"]
BandsAs = Literal["picture", "channels"]
Speeds = Annotated[tuple[Annotated[float, Ge(0.5), Le(2)], ...], DocInfo("factors from 0.5 to 2, such as 0.9 1.1")]
FOR_CHANNELS = ("signal_", "encoder_", "closed_form")
"""Families of networks that read the bands as channels."""


@dataclass(frozen=True, kw_only=True)
class SpectrogramOptions(Options):
    """Spectrogram."""

    spectrogram: Literal["off", "mel", "linear"] | None = None
    """Read signals of one axis as the logarithm of their power in bands of frequency over time: mel (bands as wide as
    hearing resolves them, for a known sample rate), linear (bands of equal width), or off. The default is mel for sound
    files, else off."""
    bands_as: BandsAs | None = None
    """What the network reads: a picture of frequency and time, or a signal over time with a channel for each band. The
    default is channels for networks of signals (signal_SIZE, closed_form and their presets) and for up to 4,096 sound
    files, which preset fast reads, else picture."""
    bands: Annotated[int, Ge(2), Cap(4096)] | None = None
    """Number of bands; the default is 40, or fewer where a frame resolves fewer."""
    frame: Length = None
    """Length of the frames whose power is measured: samples (256), or seconds where the sample rate is known (32ms).
    The default is 32 ms of sound, and about four times the square root of the length of other signals."""
    frame_step: Length = None
    """Distance between the starts of two frames: samples, seconds, or a share of the frame (50%). The default is 16 ms
    of sound and a quarter of the frame of other signals, and more where that makes over 256 frames."""
    silence: Annotated[float, Ge(0), Le(80)] | None = None
    """Decibels below the loudest place of a signal that count as silence, from 6 on: noise of that power is added,
    silence at both ends is cut off, and the rest is resampled to a usual length. So rooms, microphones, the moment of
    recording and the speed of speech matter less. 0 does nothing of that. The default is 30 for sound files, else 0."""
    speeds: Speeds | None = None
    """Speeds, as factors from 0.5 to 2, at which copies of the training recordings are read beside them by networks
    that are solved in closed form, if leaving out recordings shows that the copies help (speed perturbation, Ko et
    al., 2015). Pitch changes with the speed, as with another speaker. 1 makes no copies. The default is 0.9 and 1.1
    for classes of sound files whose silence is cut off, else 1."""


SPECTROGRAM_FIELDS = frozenset(SpectrogramOptions.__dataclass_fields__)
