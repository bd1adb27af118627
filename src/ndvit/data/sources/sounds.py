"""Reading sound files."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ndvit.data.examples import Recording
from ndvit.files import check_regular, unpacking_fault

USUAL_SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".aiff")
"""Endings of sound files in messages."""
SOUNDS = (
    *USUAL_SOUNDS,
    *(".oga", ".opus", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64", ".voc", ".sph"),
)
"""Endings of the sound files that libsndfile reads; not those of headerless files, nor .mat, which is MATLAB's."""
_FASTEST = 10**8  # samples in a second (Hz); sound and ultrasound have at most 10**7


def read_audio(path: str | Path, start: int = 0, stop: int | None = None) -> Recording:
    """Read the frames `start` to `stop` of a sound file, by default all.

    Raises:
        soundfile.LibsndfileError: if the file is damaged or not a sound file.
        ValueError: if it is cut off, has infinite or missing samples, or an absurd header.
    """
    with _opened(path) as file:
        expected, rate = (file.frames if stop is None else stop) - start, file.samplerate
        if start:
            file.seek(start)
        values = file.read(expected, dtype="float32", always_2d=True).T
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
    with _opened(path) as file:
        return file.channels, file.frames, float(file.samplerate)


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """Open a sound file whose header can be true."""
    import soundfile

    check_regular(path)
    # soundfile cannot encode names that are not UTF-8
    name = os.fspath(path) if os.name == "nt" else os.fsencode(path)
    with soundfile.SoundFile(name) as file:
        if not 1 <= file.samplerate <= _FASTEST:
            raise ValueError(f"sound file has a sample rate of {file.samplerate:,} Hz, expected 1 to {_FASTEST:,}")
        values = file.channels * file.frames
        if fault := unpacking_fault(4 * values, os.path.getsize(path), values):
            raise ValueError(f"sound file of {file.channels:,} channels and {file.frames:,} frames {fault}")
        yield file
