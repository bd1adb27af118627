"""Draw what decided two answers, for the README: `python docs/explained.py --signals RUN --pictures WEIGHTS`.

It writes pictures/explained_signal.png, an example of the test set of GunPoint that comes with ndvit, by a run that was
trained on it (`ndvit train gunpoint`), and pictures/explained_photograph.png, the photograph china.jpg of scikit-learn
(by danielbuechele, CC BY 2.0, https://www.flickr.com/photos/danielbuechele/6061409035/), by weights of ImageNet classes
such as timm's deit_tiny_patch16_224.fb_in1k.
"""

import argparse
import io
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent / "pictures"
QUIET: dict[str, Any] = {"progress": False, "log": lambda line: None}
INK = "#1f2430"


def title(why: Any) -> str:
    """The answer and its probability."""
    return f"{why.predicted.split(',')[0]}, {100 * why.answers.max():.0f} %"


def draw_signal(run: str, path: Path) -> None:
    """Draw the test example of the surest answer, a curve on a ground that is coloured by relevance."""
    import numpy as np
    from matplotlib.figure import Figure

    from ndvit.data.sources.load import load_source
    from ndvit.evaluation.relevance import heat
    from ndvit.model import load_model

    examples = load_source("gunpoint").test
    model = load_model(run)
    sure = np.asarray(model.predict_proba(np.stack([examples[i] for i in range(40)]), **QUIET)).max(1).argmax()
    (why,) = model.explain(examples[int(sure)][None], **QUIET)
    figure = Figure(figsize=(7, 2.6), facecolor="white", layout="constrained")
    axes = figure.subplots()
    y = why.values[0]
    low, high = y.min() - 0.2, y.max() + 0.2
    axes.imshow(heat(why.total[None]), extent=(-0.5, len(y) - 0.5, low, high), aspect="auto", interpolation="none")
    axes.plot(y, color=INK, linewidth=1.6)
    axes.set(xlim=(0, len(y) - 1), ylim=(low, high), xlabel="sample", title=f"GunPoint, class {title(why)}")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def draw_photograph(weights: str, path: Path) -> None:
    """Draw a photograph, and beside it a grey copy under its relevance."""
    from matplotlib.figure import Figure
    from PIL import Image
    from sklearn.datasets import load_sample_image

    from ndvit.evaluation.relevance import heat
    from ndvit.model import load_model

    photograph = Image.fromarray(load_sample_image("china.jpg"))
    (why,) = load_model(weights).explain([photograph], **QUIET)
    figure = Figure(figsize=(7, 2.6), facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(photograph)
    right.imshow(photograph.convert("L"), cmap="gray", vmin=-150, vmax=330)
    right.imshow(heat(why.total))
    left.set_title("photograph")
    right.set_title(title(why))
    for axes in (left, right):
        axes.axis("off")
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write a picture of few colours, which is a quarter of the size."""
    from PIL import Image

    file = io.BytesIO()
    figure.savefig(file, dpi=110)
    Image.open(file).convert("RGB").quantize(160, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signals", metavar="RUN")
    parser.add_argument("--pictures", metavar="WEIGHTS")
    options = parser.parse_args()
    HERE.mkdir(exist_ok=True)
    if options.signals:
        draw_signal(options.signals, HERE / "explained_signal.png")
    if options.pictures:
        draw_photograph(options.pictures, HERE / "explained_photograph.png")
