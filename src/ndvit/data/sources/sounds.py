"""Reading sound files."""

import re
from pathlib import Path

import numpy as np

from ndvit.data.examples import Recording

SOUNDS = (".wav", ".flac", ".ogg")
"""Endings of sound files."""


def read_audio(path: str | Path) -> Recording:
    """Read a sound file completely.

    Raises:
        soundfile.LibsndfileError: if the file is damaged or not a sound file.
        ValueError: if it is cut off, or has infinite or missing samples.
    """
    import soundfile

    with soundfile.SoundFile(path) as file:
        expected, rate = file.frames, file.samplerate
        values = file.read(dtype="float32", always_2d=True).T
        # libsndfile shortens a truncated WAV without an error and only logs it. Programs that write WAV to a pipe do
        # not know the length and state 2 or 4 GiB: those files are complete.
        cut = re.search(r"data : (\d+) \(should be (\d+)\)", file.extra_info)
    if len(values.T) < expected or (cut and int(cut[2]) < int(cut[1]) < 2**31 - 2**16):
        raise ValueError("sound file is cut off")
    if not np.isfinite(values).all():
        raise ValueError("sound file has infinite or missing samples")
    return Recording(values, float(rate))


def sound_header(path: str | Path) -> tuple[int, int, float]:
    """Return channels, frames and sample rate (Hz) from the header of a file."""
    import soundfile

    info = soundfile.info(path)
    return info.channels, info.frames, float(info.samplerate)
