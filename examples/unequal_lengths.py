"""Signals of unequal length with missing values: nothing has to be padded, cut or filled by hand.

`python examples/unequal_lengths.py` tells nine speakers apart by a vowel (JapaneseVowels, 12 channels of 7 to 29
values, which comes with aeon). Then every channel of every signal loses a run of its values (NaN), as if a sensor had
failed now and then: how much does that cost a classifier that never met gaps, and one that was trained with them?
"""

from pathlib import Path

import numpy as np
from aeon.datasets import load_japanese_vowels
from cyclopts import run

from ndvit import ViTClassifier


def with_gaps(signals: list[np.ndarray], share: float, seed: int) -> list[np.ndarray]:
    """Copies of signals (channels, time) in which each channel lacks one run of about this share of its values."""
    rng = np.random.default_rng(seed)
    copies = [signal.copy() for signal in signals]
    for signal in copies:
        time = signal.shape[1]
        gap = round(share * time)
        for channel in signal:
            start = rng.integers(time - gap + 1)
            channel[start : start + gap] = np.nan
    return copies


def main(steps: int | None = None, gaps: float = 0.4, output: Path = Path("runs/unequal-lengths")) -> None:
    """Compare signals with and without gaps.

    Args:
        steps: of each training; the preset's if left out.
        gaps: share of the values of each channel that are taken away; at least 0 and at most 0.8.
        output: folder for the classifier that knows gaps, `gaps.safetensors`.
    """
    whole, y = load_japanese_vowels(split="train")  # a list of arrays (12, time), and the speakers
    whole_test, y_test = load_japanese_vowels(split="test")
    holed, holed_test = with_gaps(whole, gaps, seed=0), with_gaps(whole_test, gaps, seed=1)
    lengths = [signal.shape[1] for signal in [*whole, *whole_test]]
    counts = f"{len(whole)} signals to learn from, {len(whole_test)} to test"
    print(f"{counts}, {min(lengths)} to {max(lengths)} values long")

    careless = ViTClassifier("fast", steps=steps, random_state=0).fit(whole, y)
    prepared = ViTClassifier("fast", steps=steps, random_state=0).fit(holed, y)
    print(f"trained whole, tested whole      {careless.score(whole_test, y_test):.1%}")
    print(f"trained whole, tested with gaps  {careless.score(holed_test, y_test):.1%}")
    print(f"trained and tested with gaps     {prepared.score(holed_test, y_test):.1%}")

    output.mkdir(parents=True, exist_ok=True)
    prepared.save(output / "gaps.safetensors")
    print(f"saved: {output / 'gaps.safetensors'} (ViTClassifier.load, or `ndvit predict`, reads it)")


if __name__ == "__main__":
    run(main)
