"""Signals of different lengths with missing values, without padding, cutting or filling by hand.

`python examples/unequal_lengths.py` recognises nine speakers by a vowel (JapaneseVowels, 12 channels of 7 to 29 values,
included in aeon). Then one run of values is removed (NaN) from each channel of each signal, as if a sensor had failed.
The script compares a classifier that was trained without such gaps with one that was trained with them.
"""

from pathlib import Path

import numpy as np
from aeon.datasets import load_japanese_vowels
from cyclopts import run

from ndvit import ViTClassifier


def with_gaps(signals: list[np.ndarray], share: float, seed: int) -> list[np.ndarray]:
    """Copy signals (channels, time) and remove one run of about this share of the values from each channel."""
    rng = np.random.default_rng(seed)
    copies = [signal.copy() for signal in signals]
    for signal in copies:
        time = signal.shape[1]
        gap = round(share * time)
        for channel in signal:
            start = rng.integers(time - gap + 1)
            channel[start : start + gap] = np.nan
    return copies


def main(gaps: float = 0.4, output: Path = Path("runs/unequal-lengths")) -> None:
    """Compare training with and without gaps.

    Args:
        gaps: share of values that is removed from each channel; at least 0 and at most 0.8.
        output: folder for the classifier that was trained with gaps, `gaps.safetensors`.
    """
    whole, y = load_japanese_vowels(split="train")  # a list of arrays (12, time), and the speakers
    whole_test, y_test = load_japanese_vowels(split="test")
    holed, holed_test = with_gaps(whole, gaps, seed=0), with_gaps(whole_test, gaps, seed=1)
    lengths = [signal.shape[1] for signal in [*whole, *whole_test]]
    counts = f"{len(whole)} training signals, {len(whole_test)} test signals"
    print(f"{counts}, {min(lengths)} to {max(lengths)} values long")

    without = ViTClassifier("fast", random_state=0).fit(whole, y)
    trained_with = ViTClassifier("fast", random_state=0).fit(holed, y)
    print(f"trained and tested without gaps     {without.score(whole_test, y_test):.1%}")
    print(f"trained without, tested with gaps   {without.score(holed_test, y_test):.1%}")
    print(f"trained and tested with gaps        {trained_with.score(holed_test, y_test):.1%}")

    output.mkdir(parents=True, exist_ok=True)
    trained_with.save(output / "gaps.safetensors")
    print(f"saved: {output / 'gaps.safetensors'} (readable by ViTClassifier.load and `ndvit predict`)")


if __name__ == "__main__":
    run(main)
