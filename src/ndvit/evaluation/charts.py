"""The charts of a report: learning curves, confidence, confusion, ranking, predictions against targets."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from ndvit.evaluation import figures
from ndvit.evaluation.amounts import quantity
from ndvit.evaluation.figures import CURVES, GRID, INKS, MAX_CURVES, STRONG, TEXT, add_legend, chart
from ndvit.evaluation.ranking import Curves, areas, curves
from ndvit.evaluation.reliability import ConfidenceBin
from ndvit.evaluation.words import translated

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

FEW = 10  # a bin with fewer examples is drawn faint, because its accuracy means little
SPLITS = {"train": "training", "val": "validation"}  # first curves of the legend, and prefixes of metrics
_PREFIXES = SPLITS | {"probe": "probe"}
_DOTS = 1000  # examples in a scatter plot
_NAMED = 25  # classes of a confusion matrix that are named at its edges
_FAINT = 100  # classes of more than `MAX_CURVES` whose curves are drawn faint


def learning_curves(history: list[dict[str, float]]) -> tuple[list[Markup], int, dict[str, str]]:
    """Draw a chart of each metric in `history`, and one of the learning rate.

    A metric of training and the same metric of validation share a chart. A variant of a metric, such as
    balanced_accuracy of accuracy, is one more curve in the same chart, and is left out if the two are equal.

    Args:
        history: rows with a "step" and any of train_*, val_*, probe_* and learning_rate; other columns are ignored.

    Returns:
        The charts; the number of values that are not finite and therefore not drawn; and the legend, which is the CSS
        colour by kind of curve.

    Raises:
        ValueError: if a row has no step.
    """
    for row in history:
        if "step" not in row:
            raise ValueError(f"every row of the history needs a 'step', got one with {sorted(row)}")
    curves = {}
    for name in dict.fromkeys(name for row in history for name in row):
        points = sorted((row["step"], row[name]) for row in history if row.get(name) is not None)
        curves[name] = np.array(points, dtype=float).reshape(-1, 2).T
    metrics = dict.fromkeys(name.partition("_")[2] for name in curves if name.partition("_")[0] in _PREFIXES)
    plan: dict[str, dict[str, np.ndarray]] = {"loss": {}}  # title: {kind of curve: (step, value)}
    for metric in metrics:
        title = next((other for other in metrics if metric.endswith(f"_{other}")), metric)
        variant = metric.removesuffix(title).rstrip("_")
        for split, kind in _PREFIXES.items():
            curve, base = curves.get(f"{split}_{metric}"), curves.get(f"{split}_{title}", np.empty(0))
            if curve is not None and not (variant and np.array_equal(curve.round(6), base.round(6))):
                plan.setdefault(title, {})[f"{kind}, {variant}" if variant else kind] = curve
    plan["learning rate"] = {"training": curves["learning_rate"]} if "learning_rate" in curves else {}
    kinds = dict.fromkeys([*SPLITS.values(), *(kind for chart in plan.values() for kind in chart)])
    colours = {kind: CURVES[i % MAX_CURVES] for i, kind in enumerate(kinds)}

    charts, hidden, used = [], 0, set[str]()
    for title, drawn in plan.items():
        scale, height = 100 if title.endswith("accuracy") else 1, 150 if title == "learning rate" else 230
        name = title.replace("_", " ") + " (%)" * (scale == 100)
        title = translated(name)
        hidden += sum(int(np.count_nonzero(~np.isfinite(y))) for _, y in drawn.values())
        finite = {kind: (x[ok], scale * y[ok]) for kind, (x, y) in drawn.items() if (ok := np.isfinite(y)).any()}
        if finite:
            words = {kind: translated(kind) for kind in finite}
            description = translated(
                "{title} against the training step: {kinds}",
                title=title,
                kinds=translated(" and ").join(words.values()),
            )
            series = [(colours[kind], *curve) for kind, curve in finite.items()]
            legend = {words[kind]: colours[kind] for kind in finite} if len(finite) > 1 else {}
            charts.append(chart(series, (360, height), translated("step"), title, name, description, legend=legend))
        used |= finite.keys()
    return charts, hidden, {translated(kind): INKS[colour] for kind, colour in colours.items() if kind in used}


def reliability_diagram(bins: Sequence[ConfidenceBin]) -> Markup:
    """Draw accuracy against confidence, and below it the number of examples in each bin.

    A dot with the 95 % interval of its accuracy stands at the mean confidence of its bin, which need not be the middle.
    """

    def paint(panels: Sequence[Axes]) -> None:
        upper, lower = panels
        upper.plot([0, 100], [0, 100], color=TEXT, linewidth=1.2, linestyle=(0, (5, 4)), marker="", clip_on=False)
        for one in bins:
            x, at = 50 * (one.low + one.high), 100 * one.confidence
            ink_alpha, bar_alpha, count_alpha = (1, 0.4, 0.8) if one.examples >= FEW else (0.4, 0.2, 0.4)
            bar: dict[str, Any] = {"width": 92 * (one.high - one.low), "color": CURVES[0], "linewidth": 0}
            ink: dict[str, Any] = {"color": STRONG, "alpha": ink_alpha, "clip_on": False}
            upper.bar(x, 100 * one.accuracy, alpha=bar_alpha, clip_on=False, **bar)
            upper.plot([at, at], [100 * share for share in one.interval], linewidth=1.3, marker="", **ink)
            upper.plot([at], [100 * one.accuracy], markeredgewidth=0, linestyle="", **ink)
            bars = lower.bar(x, one.examples, alpha=count_alpha, clip_on=False, **bar)
            count = f"{one.examples}" if one.examples < 1000 else f"{one.examples / 1000:.3g}k"
            lower.bar_label(bars, [count], padding=2, fontsize=10, color=TEXT)
        upper.set(xlim=(0, 100), ylim=(0, 100), title=translated("accuracy (%)"))
        upper.grid(axis="y", clip_on=False)
        upper.set_axisbelow(True)
        lower.set(xlabel=translated("confidence (%)"), title=translated("examples"), yticks=[])
        lower.set_ylim(0, 1.25 * max(one.examples for one in bins))

    each = "confidence {confidence:.0f} %: accuracy {accuracy:.0f} % of {n}"
    parts = [
        translated(each, confidence=100 * one.confidence, accuracy=100 * one.accuracy, n=one.examples) for one in bins
    ]
    description = translated("reliability diagram. {bins}", bins="; ".join(parts))
    shape = {"nrows": 2, "sharex": True, "height_ratios": (3.4, 1)}
    return figures.draw((460, 500), "reliability", description, paint, **shape)


def matrix(classes: Sequence[str], shares: np.ndarray, counts: np.ndarray | None = None) -> Markup:
    """Draw a confusion matrix as a picture of one pixel per cell, with names of at most 25 classes.

    Args:
        classes: class names.
        shares: (classes, classes): the confusion matrix, each row (true class) divided by its sum.
        counts: (classes, classes) numbers to write into the cells; None for too many classes.
    """
    width = len(classes)
    cells = np.empty((width, width, 4), dtype=np.uint8)
    cells[..., :3] = (249, 115, 22)
    cells[np.arange(width), np.arange(width), :3] = (59, 130, 246)
    # A single mistake among hundreds must be seen in either theme, so its opacity is at least 0.4.
    cells[..., 3] = np.where(shares > 0, 255 * (0.4 + 0.6 * shares), 0)
    ticks = range(0, width, ceil(width / _NAMED))
    names = [_short(classes[i]) for i in ticks]

    def paint(axes: Axes) -> None:
        axes.figure.set(layout_engine="none")  # a layout engine measures names in a font that lacks their letters
        axes.set_position((0.25, 0.25, 0.74, 0.74))
        axes.imshow(cells, interpolation="none", clip_on=False)
        axes.set_yticks(ticks, names)
        axes.set_xticks(ticks, names, rotation=90, rotation_mode="anchor", ha="right", va="center")
        axes.tick_params(length=0, labelsize=11)
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color(GRID)
        strong: dict[str, Any] = {"weight": "bold", "color": STRONG, "transform": axes.figure.transFigure}
        axes.text(0.002, 0.976, translated("true"), **strong)
        axes.text(0.99, 0.008, translated("predicted"), ha="right", **strong)
        for (i, j), count in np.ndenumerate(np.zeros((0, 0)) if counts is None else counts):
            ink = STRONG if count else TEXT
            axes.text(j, i, f"{count}", ha="center", va="center", color=ink, fontsize=14 if width <= 10 else 9)

    description = translated("confusion matrix of {n} classes; the most frequent confusions are listed below", n=width)
    side = 700 if counts is None else min(700, 260 + 44 * width)
    return figures.draw((side, side), "matrix", description, paint)


def _short(name: str) -> str:
    """A name as one line that fits beside the matrix."""
    name = " ".join(name.encode(errors="replace").decode().split())
    most = 12 if any(unicodedata.east_asian_width(letter) in "WF" for letter in name) else 22
    return name if len(name) <= most else f"{name[: most - 1]}…"


def residuals(truth: np.ndarray, predicted: np.ndarray, target: str, name: str) -> list[Markup]:
    """Draw predicted against true numbers (n,), and the errors; of more than 1,000 examples a sample is drawn."""
    error = float(np.sqrt(np.square(predicted - truth).mean()))
    values = {"target": _short(target), "n": len(truth), "error": quantity(error)}
    chosen = np.arange(len(truth))
    if len(chosen) > _DOTS:
        chosen = np.random.default_rng(0).permutation(len(chosen))[:_DOTS]
    truth, predicted = truth[chosen], predicted[chosen]

    dots: dict[str, Any] = {"linestyle": "", "markeredgewidth": 0, "color": CURVES[0], "clip_on": False}
    dots |= {"alpha": 0.55, "markersize": 4.5 if len(chosen) > 100 else 6}
    dash: dict[str, Any] = {"color": TEXT, "linewidth": 1.2, "linestyle": (0, (5, 4)), "marker": "", "zorder": 0}

    def finish(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        axes.margins(x=0.03)
        axes.grid(axis="y", clip_on=False)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))

    def predictions(axes: Axes) -> None:
        both = min(truth.min(), predicted.min()), max(truth.max(), predicted.max())
        axes.plot(both, both, clip_on=False, **dash)
        axes.plot(truth, predicted, **dots)
        axes.set(xlabel=translated("true"), title=translated("predicted"))
        finish(axes)

    def errors(axes: Axes) -> None:
        axes.axhline(0, clip_on=False, **dash)
        axes.plot(predicted, predicted - truth, **dots)
        axes.set(xlabel=translated("predicted"), title=translated("predicted minus true"))
        finish(axes)

    first = translated("predictions of {target}: {n} examples, root mean squared error {error}", **values)
    second = translated("errors of {target}: {n} examples, root mean squared error {error}", **values)
    size = (410, 340)
    return [
        figures.draw(size, f"{name} predictions", first, predictions),
        figures.draw(size, f"{name} errors", second, errors),
    ]


def ranking(ranked: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Values of templates: ROC and precision-recall curves, and their legend.

    Args:
        ranked: by class, whether each example is of it, (n,), and its score, (n,).
    """
    found = {name: points for name, one in ranked.items() if (points := curves(*one)) is not None}
    few = 1 < len(found) <= MAX_CURVES
    ends = {name: areas(*ranked[name]) for name in list(found)[:MAX_CURVES]}
    return {
        "ranking": ranking_curves(found, ends) if found else [],
        "ranking_legend": {name: INKS[colour] for name, colour in zip(found, CURVES)} if few else {},
    }


def ranking_curves(points: Mapping[str, Curves], ends: Mapping[str, tuple[float | None, float | None]]) -> list[Markup]:
    """Draw ROC and precision-recall curves.

    More curves than there are colours are drawn faint, and their mean is drawn strong.

    Args:
        points: curves by class.
        ends: areas under both curves of the first classes, for the alternative text.
    """
    few = len(points) <= MAX_CURVES
    grid = np.linspace(0, 1, 101)
    legend = {_short(name): CURVES[i] for i, name in enumerate(points)} if 1 < len(points) <= MAX_CURVES else {}

    def lines(axes: Axes, pairs: list[tuple[np.ndarray, np.ndarray]], steps: bool) -> None:
        style: dict[str, Any] = {"marker": "", "clip_on": False, "linewidth": 1.8}
        if steps:  # the area under these steps is the average precision
            style["drawstyle"] = "steps-pre"
        for i, (x, y) in enumerate(pairs[: MAX_CURVES if few else _FAINT]):
            faint = {} if few else {"linewidth": 0.7, "alpha": 0.35}
            axes.plot(x, y, color=CURVES[i] if few else TEXT, **(style | faint))
        if not few:
            middles = (grid - grid[1] / 2).clip(min=0)  # of the steps
            at = [y[np.searchsorted(x, middles)] if steps else np.interp(grid, x, y) for x, y in pairs]
            axes.plot(grid, np.mean(at, axis=0), color=CURVES[0], **(style | {"linewidth": 2.4}))
        axes.set(xlim=(0, 1), ylim=(0, 1.0))
        axes.grid(axis="y", clip_on=False)
        add_legend(axes, legend)

    def roc(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=TEXT, linewidth=1.2, linestyle=(0, (5, 4)), marker="", clip_on=False)
        lines(axes, [(one.false_positive, one.true_positive) for one in points.values()], False)
        axes.set(xlabel=translated("false positive rate"), title=translated("sensitivity (ROC)"))

    def precision_recall(axes: Axes) -> None:
        lines(axes, [(one.recall, one.precision) for one in points.values()], True)
        axes.set(xlabel=translated("recall"), title=translated("precision"))

    more = "" if few else ", …"
    listed = ["; ".join(f"{_short(name)} {one[i]:.3f}" for name, one in ends.items()) + more for i in range(2)]
    first = translated("ROC curves; areas: {areas}", areas=listed[0])
    second = translated("precision-recall curves; areas: {areas}", areas=listed[1])
    return [
        figures.draw((360, 330), "roc", first, roc),
        figures.draw((360, 330), "precision recall", second, precision_recall),
    ]
