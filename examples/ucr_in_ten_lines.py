"""A data set of the UCR archive in ten lines of code: GunPoint (does the hand hold a gun?), included in aeon.

`python examples/ucr_in_ten_lines.py` trains on the 50 training signals of the archive and predicts its 150 test
signals. The preset "fast" solves random convolutions and a frozen encoder in closed form, in seconds. For other data
sets, use `aeon.datasets.load_classification(NAME, split=...)` here, or `ndvit train ucr:NAME` in a shell, which
downloads the data and writes a report.
"""

from aeon.datasets import load_gunpoint
from cyclopts import run

from ndvit import ViTClassifier


def main() -> None:
    X, y = load_gunpoint(split="train")  # (50 signals, 1 channel, 150 values), and labels
    X_test, y_test = load_gunpoint(split="test")
    classifier = ViTClassifier("fast", random_state=0).fit(X, y)
    print(f"GunPoint: {classifier.score(X_test, y_test):.1%} of {len(X_test)} test signals are correct")


if __name__ == "__main__":
    run(main)
