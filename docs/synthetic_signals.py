"""Draw all families of synthetic signals: `python docs/synthetic_signals.py` writes synthetic_signals.png."""

import io
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
COLOURS = ("#2a6f97", "#c1666b", "#6a994e")
COLUMNS, EXAMPLES, GAP = (
    4,
    3,
    4.5,
)  # tasks of a family; examples of a class; distance of classes, in standard deviations


def draw(path: Path) -> None:
    """Write the picture: a row of tasks with three classes for each family, and a row of signals with channels."""
    from matplotlib.figure import Figure
    from PIL import Image

    from ndvit.data.synthetic import FAMILIES, synthetic_signals, synthetic_tasks

    figure = Figure(figsize=(12, 1.15 * (len(FAMILIES) + 1)), facecolor="white", layout="constrained")
    axes = figure.subplots(len(FAMILIES) + 1, COLUMNS)
    for number, (row, name) in enumerate(zip(axes, FAMILIES)):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=12)
        for i, ax in enumerate(row):
            seed = COLUMNS * number + i
            made = synthetic_tasks(1, len(COLOURS), EXAMPLES, seed=seed, difficulty=(0.1, 0.1), families=[name])
            for place, (signals, colour) in enumerate(zip(made.signals[0], COLOURS)):
                ax.plot(signals.T - GAP * place, color=colour, linewidth=0.7)
    axes[-1, 0].set_ylabel("channels", rotation=0, ha="right", va="center", fontsize=12)
    for seed, ax in enumerate(axes[-1]):
        for place, (signal, colour) in enumerate(zip(synthetic_signals(1, channels=3, seed=seed)[0], COLOURS)):
            ax.plot(signal - GAP * place, color=colour, linewidth=0.7)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[], xlim=(0, 511))
        ax.spines[:].set_color("#cccccc")
    file = io.BytesIO()
    figure.savefig(file, dpi=80)
    Image.open(file).convert("RGB").quantize(48).save(path, optimize=True)  # a third of the size


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "synthetic_signals.png")
