"""The report of the image benchmark, written from its CSV file: a table, a figure and caveats."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from image_results import RESULTS, Row, read_rows
from signal_report import _label, _line, _percent, _seconds, commands_of

from ndvit.files import replace_file

REPORT, PICTURE = "report.md", "accuracy.png"
CAVEATS = (
    "The other libraries have the same number of optimizer steps, the same batch size and the same worker processes as "
    "`ours`. Their recipes were made for longer runs and larger data sets, and would be better with more epochs. This "
    "benchmark compares recipes in a short run on little data.",
    "`timm-adamw` has usual values for fine-tuning. They were not tuned on this data. The values of `ours` were chosen "
    "on signdigits, with the training images of the split with seed 0 only. Some of these images are test images for "
    "other seeds, so the accuracy of `ours` may be slightly optimistic there. The values of `small-data` were chosen "
    "in the same way, and on the test images of digits with seeds 1 to 3.",
    "timm's train.py and transformers' Trainer would also validate and save during the training, and timm would keep "
    "the best epoch by the accuracy on the test images. Here the last weights are tested, and the test is not part of "
    "the training time.",
    "The training time excludes imports, the check of all files, the test and the report; the total time includes "
    "them.",
    "Memory is the peak of the training process without its worker processes. For `ours` it includes the test and the "
    "report.",
    "Each seed is another split, equal for all models. The table compares means over the splits that all models have. "
    "± is the standard deviation over splits.",
)


class Cell:
    """The fits of one model on one set: all fits, and those on the splits that all models have."""

    def __init__(self, rows: Sequence[Row], shared: set[int]) -> None:
        self.rows = rows
        self.compared = [row for row in rows if row.seed in shared] or list(rows)

    def mean(self, field: str) -> float:
        """The mean over the splits that are compared."""
        return mean(getattr(row, field) for row in self.compared)

    @property
    def spread(self) -> float | None:
        """The standard deviation of the accuracy over these splits; None for fewer than two."""
        return stdev(row.accuracy for row in self.compared) if len(self.compared) > 1 else None

    @property
    def over_all(self) -> str:
        """The accuracy over all splits of this model as text, if it has more than those that are compared."""
        found = [100 * row.accuracy for row in self.rows]
        return f"{mean(found):.1f} ± {stdev(found):.1f} over {len(found)}" if len(found) > len(self.compared) else "–"


def cells_of(rows: Sequence[Row], order: Sequence[str]) -> dict[str, dict[str, Cell]]:
    """Cells by set and model: the set with most models first, models in the order `order`."""
    found: dict[str, dict[str, Cell]] = {}
    for name in {row.set: None for row in rows}:
        by_model = {model: [row for row in rows if (row.set, row.model) == (name, model)] for model in order}
        by_model = {model: fits for model, fits in by_model.items() if fits}
        shared = set.intersection(*({row.seed for row in fits} for fits in by_model.values()))
        found[name] = {model: Cell(fits, shared) for model, fits in by_model.items()}
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def table_of(cells: Mapping[str, Cell]) -> list[str]:
    """A Markdown table with one row per model."""
    titles = ["model", "accuracy", "log loss", "pixels", "steps", "training, s", "images/s", "total, s", "MB"]
    more = any(cell.over_all != "–" for cell in cells.values())
    titles += ["splits", *["accuracy over all splits"] * more]
    lines = [_line(titles), "|---" + "|---:" * (len(titles) - 1) + "|"]
    best = max(cell.mean("accuracy") for cell in cells.values())
    least = min(cell.mean("log_loss") for cell in cells.values())
    for model, cell in cells.items():
        accuracy, loss, seconds = (
            _percent(cell.mean("accuracy"), best),
            cell.mean("log_loss"),
            cell.mean("train_seconds"),
        )
        spread = "" if cell.spread is None else f" ± {100 * cell.spread:.1f}"
        seen = cell.mean("steps") * cell.mean("batch")
        values = [
            f"`{model}`",
            accuracy + spread,
            f"**{loss:.3f}**" if loss <= least else f"{loss:.3f}",
            ", ".join(dict.fromkeys(row.pixels for row in cell.compared)),
            f"{cell.mean('steps'):.0f}" if seen else "–",
            _seconds(seconds),
            f"{seen / max(seconds, 1e-9):,.0f}" if seen else "–",
            _seconds(cell.mean("total_seconds")),
            f"{max(row.megabytes for row in cell.compared):,}",
            str(len(cell.compared)),
            *[cell.over_all] * more,
        ]
        lines.append(_line(values))
    return lines


def draw(cells: Mapping[str, Cell], title: str, path: Path) -> None:
    """Plot accuracy against training time: one point per model, with its spread over seeds."""
    from matplotlib import style
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    points = {m: (max(c.mean("train_seconds"), 1e-3), 100 * c.mean("accuracy")) for m, c in cells.items()}
    with style.context("default"):
        figure = Figure(figsize=(8, 5), layout="constrained", facecolor="white")
        axes = figure.subplots()
        axes.set_xscale("log")
        for model, (x, y) in points.items():
            mine = "timm" not in model and "transformers" not in model
            look: dict[str, Any] = {"color": "#c2410c" if mine else "#1d4e89", "marker": "o" if mine else "s"}
            error = 100 * (cells[model].spread or 0)
            axes.errorbar(x, y, yerr=error or None, markersize=7, capsize=3, elinewidth=1.2, **look)
        axes.margins(x=0.18, y=0.12)
        axes.grid(which="major", color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(xlabel="seconds to train", ylabel="test accuracy (%)", title=title)
        # The default locator mixes powers and numbers on an axis of less than a decade.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        _label(figure, axes, points, [])
        # without its version number, which matplotlib would write, equal reports give equal files
        replace_file(path, lambda file: figure.savefig(file, dpi=150, format="png", metadata={"Software": None}))


def write_report(out: Path, models: Mapping[str, str], *, setting: str = "") -> Path:
    """Write report.md and accuracy.png into the folder of the CSV file.

    Args:
        out: the folder.
        models: description of each model; the table has this order.
        setting: report the rows of this setting instead of those with the defaults.
    """
    rows = [row for row in read_rows(out / RESULTS, Row) if row.setting == setting]
    if not rows:
        raise SystemExit(f"{out / RESULTS} has no rows{f' with {setting}' if setting else ''}")
    text = ["# Classification of images: comparison", ""]
    if "steps" in setting:
        text += [f"**A trial of the benchmark with {setting}: these accuracies mean nothing.**", ""]
    elif setting:
        text += [f"All models with {setting}.", ""]
    text += ["Accuracy in percent on the test images. All models have the same files, split, trained "]
    text[-1] += "weights, number of optimizer steps and batch size."
    drawn = False
    for name, cells in cells_of(rows, list(models)).items():
        first = next(row for row in rows if row.set == name)
        text += ["", f"## {name}: {first.train:,} training images, {first.test:,} test images", "", *table_of(cells)]
        if not drawn:
            draw(cells, f"{name}, {first.test:,} test images", out / PICTURE)
            text += ["", f"![Accuracy against training time, one point per model]({PICTURE})"]
            drawn = True
    found = {row.model for row in rows}
    text += ["", *(f"- `{name}`: {about}." for name, about in models.items() if name in found)]
    text += ["", "Caveats:", "", *(f"- {caveat}" for caveat in CAVEATS)]
    text += ["", "## How these figures were made", "", *_origin(rows)]
    replace_file(out / REPORT, "\n".join(text) + "\n")
    return out / REPORT


def _origin(rows: Sequence[Row]) -> list[str]:
    """Machine, versions and commands of the fits."""
    machines = sorted({(row.device, row.cores, row.threads) for row in rows})
    lines = [
        f"- Device {device}, {cores} core{'s' * (cores > 1)}, torch with {threads} thread{'s' * (threads > 1)}; "
        f"{', '.join(sorted({name for row in rows for name in row.software.split(', ')}))}."
        for device, cores, threads in machines
    ]
    return lines + commands_of([(row.commit, row.command) for row in rows])
