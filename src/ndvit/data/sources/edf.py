"""Recordings in .edf and .bdf files (EEG, ECG, sleep), read by edfio."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ndvit.data.messages import Doubt, listing, printable
from ndvit.data.sources.clocks import Series
from ndvit.data.sources.columns import Roles, channels_named, find
from ndvit.data.sources.layouts import Recorded
from ndvit.data.sources.packages import needed
from ndvit.files import check_regular

EDF_FILES = (".edf", ".bdf")
"""Endings of files in the European data format and BioSemi's."""


def read_edf(path: Path, roles: Roles) -> Recorded:
    """Read the signals of a file in their physical units.

    Of signals at different rates, those at the rate of most of them are read, unless `roles.channels` names others.

    Raises:
        ValueError: for a damaged file, an unknown channel, channels of different rates, or a package that is not
            installed.
    """
    check_regular(path)
    needed("edfio", "edf", ".edf and .bdf files")
    import edfio

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            file: Any = edfio.read_bdf(path) if path.suffix.lower() == ".bdf" else edfio.read_edf(path)
            signals: dict[str, Any] = {f"{signal.label.strip() or i}": signal for i, signal in enumerate(file.signals)}
            if len(signals) < len(file.signals):  # equal labels
                signals = {f"{signal.label.strip()}.{i}": signal for i, signal in enumerate(file.signals)}
            notes: list[str] = [Doubt(printable(f"{path.name}: {warning.message}")[:300]) for warning in caught]
            if not signals:
                raise ValueError("has no signals")
            chosen = [find(name, list(signals), path.name, "--channels") for name in roles.channels] or _usual(signals)
            rates = {signals[name].sampling_frequency for name in chosen}
            if len(rates) > 1:
                raise ValueError(f"the channels {listing(chosen, 10)} have different rates; choose others (--channels)")
            values = np.stack([signals[name].data for name in chosen]).astype(np.float32)
            units = tuple(printable(str(signals[name].physical_dimension).strip())[:20] for name in chosen)
            continuous = "+D" not in str(file.reserved)
    except ValueError:
        raise
    except Exception as error:  # edfio raises any error for damaged files
        raise ValueError(f"is damaged or cut off ({printable(str(error)[:200]) or type(error).__name__})") from error
    if not continuous:
        notes.append(Doubt(f"{path.name} is discontinuous: the gaps in its times are not read"))
    left = [printable(name) for name in signals if name not in chosen]
    rate = float(rates.pop())
    notes.insert(0, f"one recording at {rate:g} Hz, {channels_named(chosen)}")
    if left:
        notes.append(f"channels not read: {listing(left, 12)}")
    return Recorded(Series(values, None, path.name, rate), True, None, {}, tuple(chosen), notes, units)


def _usual(signals: dict[str, Any]) -> list[str]:
    """The signals at the rate of most of them; of two such rates, the higher one."""
    counts = Counter(signal.sampling_frequency for signal in signals.values())
    rate = max(counts, key=lambda of: (counts[of], of))
    return [name for name, signal in signals.items() if signal.sampling_frequency == rate]
