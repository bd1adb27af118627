"""The embedding map: test examples in two dimensions, so that what the network takes for similar lies together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ndvit.evaluation import figures
from ndvit.evaluation.amounts import quantity
from ndvit.evaluation.figures import CURVES, INKS, MAX_CURVES, STRONG, TEXT, add_legend
from ndvit.evaluation.words import translated

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

MOST = 1000  # examples on a map
_KEPT = 32  # principal components that are stored, from which t-SNE starts
_LEAST = 3  # examples on a map
_LISTED = 20  # classes in the legend
_SIZE = (430, 400)
_SHADES = (0.25, 0.85)  # of the colours of numbers: the ends are invisible on a dark, or on a light page
Method = Literal["pca", "tsne"]


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Features of examples.

    Attributes:
        indices: (n,) the examples among those of the evaluation.
        components: (n, up to 32) principal components of their features, the first ones first.
        shares: shares of the variance in these components.
    """

    indices: np.ndarray
    components: np.ndarray
    shares: np.ndarray


def feature_map(indices: np.ndarray, features: np.ndarray) -> FeatureMap | None:
    """The map of features (n, width) by principal component analysis; None for fewer than three, or equal features."""
    from sklearn.decomposition import PCA

    count = min(_KEPT, *features.shape)
    if len(features) < _LEAST or count < 2 or not np.ptp(features, axis=0).any():
        return None
    pca = PCA(count, svd_solver="full" if min(features.shape) <= 2 * _KEPT else "randomized", random_state=0)
    components = pca.fit_transform(features.astype(np.float64)).astype(np.float32)
    return FeatureMap(indices, components, pca.explained_variance_ratio_.astype(np.float32))


def places(found: FeatureMap, method: Method = "pca") -> np.ndarray:
    """(n, 2) places on the map: the first two components, or t-SNE of all of them (van der Maaten & Hinton, 2008)."""
    if method == "pca":
        return found.components[:, :2]
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(found.components) - 1) / 3)
    placed: np.ndarray = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(found.components)
    return placed


def draw_map(
    found: FeatureMap, labels: np.ndarray, classes: Sequence[str], wrong: np.ndarray, method: Method = "pca"
) -> tuple[Markup, dict[str, str]]:
    """Draw the map.

    Args:
        found: the features.
        labels: (n,) true class of each of their examples.
        classes: class names.
        wrong: (n,) boolean, examples that are marked as mistakes.
        method: how the features are placed.

    Returns:
        The figure and its legend, which is the CSS colour by class; empty for more than 20 classes.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    at, present = places(found, method), np.unique(labels)
    few = len(present) <= MAX_CURVES
    hues = colormaps["hsv"](np.linspace(0, 1, len(classes), endpoint=False)) * [0.7, 0.65, 0.7, 1]
    hues[:, :3] += 0.2  # so that each differs from a white and from a black page
    colours = {int(c): CURVES[i] if few else to_hex(hues[c]) for i, c in enumerate(present)}
    size = 4.5 if len(at) > 200 else 6
    listed = present if len(present) <= _LISTED else present[:0]

    def paint(axes: Axes) -> None:
        dots: dict[str, Any] = {"linestyle": "", "markeredgewidth": 0, "markersize": size, "clip_on": False}
        for label in present:
            axes.plot(*at[labels == label].T, color=colours[int(label)], alpha=0.75, **dots)
        crosses: dict[str, Any] = {"marker": "x", "markersize": size + 1.5, "markeredgewidth": 1.5, "color": STRONG}
        axes.plot(*at[wrong].T, linestyle="", clip_on=False, **crosses)
        _label_axes(axes, found, method)
        add_legend(axes, {classes[label]: colours[int(label)] for label in listed})

    description = translated(
        "embedding map of {n} examples of {classes} classes, of which {wrong} mistakes are marked",
        n=len(at),
        classes=len(present),
        wrong=int(wrong.sum()),
    )
    legend = {classes[label]: INKS.get(colours[int(label)], colours[int(label)]) for label in listed}
    return figures.draw(_SIZE, "embedding map", description, paint), legend


def draw_target_map(found: FeatureMap, targets: np.ndarray, name: str, method: Method = "pca") -> Markup:
    """Draw the map coloured by numbers (n,), the targets of a regression, with the colours as a scale above it."""
    from matplotlib import colormaps

    at = places(found, method)
    low, high = float(targets.min()), float(targets.max())
    shades = colormaps["plasma"](np.linspace(*_SHADES, 256))
    own = shades[(255 * (targets - low) / max(high - low, 1e-12)).round().astype(int)]

    def paint(axes: Axes) -> None:
        axes.scatter(at[:, 0], at[:, 1], c=own, s=30, linewidths=0, clip_on=False)
        _label_axes(axes, found, method)
        scale = axes.inset_axes((0.0, 1.04, 0.5, 0.03))
        scale.imshow(shades[None, ::4], aspect="auto", interpolation="none", extent=(0, 1, 0, 1))
        scale.set(yticks=[])
        scale.set_xticks([0, 1], [quantity(low), quantity(high)])
        scale.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
        scale.grid(visible=False)

    description = translated("embedding map of {n} examples, coloured by {target}", n=len(at), target=name)
    return figures.draw(_SIZE, "embedding map", description, paint)


def _label_axes(axes: Axes, found: FeatureMap, method: Method) -> None:
    """Name the components, which have no units; places of t-SNE have no names."""
    axes.margins(0.03)
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    axes.spines["bottom"].set_visible(False)
    if method == "pca":
        x, y = (f"{100 * share:.0f} %" for share in found.shares[:2])
        axes.set_xlabel(translated("first component, {share} of the variance", share=x), color=TEXT)
        axes.set_ylabel(translated("second component, {share}", share=y), color=TEXT)
