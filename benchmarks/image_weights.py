"""Measure the ways in which weights of an image network can serve signals, beside the encoder that ndvit ships.

`python benchmarks/image_weights.py --data FOLDER --weights DEIT.safetensors` reads each small NAME.npz of a folder
(X_train (n, channels, time), y_train, X_test, y_test). The features of each way are frozen and have a ridge classifier,
calibrated by leaving one out, as preset `fast` has; nothing is trained by steps. The weight beside the random
convolutions is 1/3, as for the shipped encoder. It writes a row for each set and way, and a page with the table.
"""

import csv
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import torch.nn.functional as F
from cyclopts import App
from signal_report import DEVELOPMENT, shift
from signal_results import read_table
from signals import git_commit
from torch import Tensor

import ndvit
from ndvit.files import replace_file
from ndvit.network.encoder_features import EncoderFeatures, token_features
from ndvit.network.random_convolutions import RandomConvolutions
from ndvit.tasks.solvers import ridge_classifier
from ndvit.weights.signal_encoder import signal_encoder

app = App(help=__doc__)
SIDE, SAMPLES, PATCH, BATCH = 224, 512, 16, 16
BESIDE = 1 / 3  # weight beside the random convolutions
BLOCKS, MIDDLE = 12, 5  # of DeiT; the sixth reads signals best in TiViT
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
ROWS, PAGE = "image_weights.csv", "image_weights.md"
ALONE, SHIPPED = "random convolutions", "shipped encoder"


@dataclass(frozen=True)
class Row:
    """Features of one way on one set.

    Attributes:
        set, way: what was read, and how.
        train, test: numbers of examples.
        accuracy, joined: accuracy of the features alone, and in the mean with random convolutions.
        third: accuracy in the mean with what preset `fast` has, random convolutions and the shipped encoder.
        log_loss, joined_log_loss, third_log_loss: likewise.
        milliseconds: of the features of one example, in batches of 16.
    """

    set: str
    way: str
    train: int
    test: int
    accuracy: float
    joined: float
    third: float
    log_loss: float
    joined_log_loss: float
    third_log_loss: float
    milliseconds: float


def folded(x: Tensor) -> Tensor:
    """Signals (n, L) as grey pictures (n, 224, 224): rows of sqrt(L) samples, each half over the next (TiViT)."""
    width = max(2, round(x.shape[1] ** 0.5))
    rows = x.unfold(1, width, max(1, width // 2))  # (n, rows, width)
    return _picture(rows)


def spectrogram(x: Tensor) -> Tensor:
    """Signals (n, L) as logarithmic spectrograms (n, 224, 224), frequency upwards and time to the right."""
    size = max(8, min(128, x.shape[1] // 4))
    window = torch.hann_window(size)
    found = torch.stft(x, size, max(1, x.shape[1] // 64), window=window, center=True, return_complex=True)
    return _picture((found.abs() + 1e-3).log().flip(1))


def drawn(x: Tensor) -> Tensor:
    """Signals (n, L) as a curve, white on black, 3 pixels wide: (n, 224, 224)."""
    x = F.interpolate(x[:, None], SIDE * 4, mode="linear", align_corners=True)[:, 0]
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    places = ((x - low) / (high - low).clamp(min=1e-6) * (SIDE - 17) + 8).view(len(x), SIDE, 4)
    top, bottom = places.amax(2), places.amin(2)  # of each column
    rows = torch.arange(SIDE - 1, -1, -1)[:, None]  # values grow upwards
    return ((rows >= bottom[:, None] - 1) & (rows <= top[:, None] + 1)).float()


def _picture(values: Tensor) -> Tensor:
    """Stretch each of (n, h, w) to 0 to 1, and to 224 x 224 pixels."""
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    values = (values - low) / (high - low).clamp(min=1e-6)
    return F.interpolate(values[:, None], (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0].clamp(0, 1)


def ways(weights: Path, classes: int, length: int, train: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions from signals (n, L) to features (n, F), by name."""
    pictures = ndvit.load_model(weights, num_classes=0).network.eval()
    in_line = ndvit.load_model(
        weights, num_classes=0, input_size=(SAMPLES,), patch_size=(PATCH,), in_channels=1
    ).network.eval()

    def of_pictures(make: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def features(x: Tensor) -> Tensor:
            picture = ((make(x)[:, None] - MEAN[:, None, None]) / STD[:, None, None]).float()
            return token_features(pictures, picture)

        return features

    def of_line(x: Tensor) -> Tensor:
        return token_features(in_line, F.interpolate(x[:, None], SAMPLES, mode="linear", align_corners=False))

    config, tensors = signal_encoder()
    encoder = EncoderFeatures(config, 1, length, classes)
    encoder.encoder.load_state_dict(tensors)
    convolutions = RandomConvolutions(1, length, 10_000, classes)
    convolutions.draw(train[:, None], None, torch.Generator().manual_seed(0))
    return {
        ALONE: lambda x: convolutions.features(x[:, None]),
        SHIPPED: lambda x: encoder.features(x[:, None]),
        "2-D weights in the 1-D network": of_line,
        "folded into rows": of_pictures(folded),
        "spectrogram": of_pictures(spectrogram),
        "drawn as a curve": of_pictures(drawn),
    }


def middle(features: Tensor) -> Tensor:
    """The features of the sixth block, among those of all blocks (n, F)."""
    return features.view(len(features), BLOCKS, -1)[:, MIDDLE]


@torch.inference_mode()
def run(path: Path, weights: Path) -> list[Row]:
    """The rows of a set."""
    with np.load(path, allow_pickle=False) as file:
        raw, y, raw_test, y_test = (file[name] for name in ("X_train", "y_train", "X_test", "y_test"))
    x, x_test = (_standardised(torch.from_numpy(part[:, 0]).float()) for part in (raw, raw_test))
    names = np.unique(y)
    labels, truth = (torch.from_numpy(np.searchsorted(names, part)) for part in (y, y_test))
    rows, beside, fast = [], torch.empty(0), torch.empty(0)
    for way, features in ways(weights, len(names), x.shape[1], x).items():
        started = time.perf_counter()
        made, made_test = (torch.cat([features(part) for part in all_.split(BATCH)]) for all_ in (x, x_test))
        seconds = time.perf_counter() - started
        spent = 1000 * seconds / (len(x) + len(x_test))
        read = {way: (made, made_test)}
        if way not in (ALONE, SHIPPED):
            read[f"{way}, block 6"] = middle(made), middle(made_test)
        for name, parts in read.items():
            outputs = _solved(*parts, labels, len(names))
            if name == ALONE:
                beside = fast = outputs
            joined = torch.lerp(beside, outputs, BESIDE)
            if name == SHIPPED:
                fast = joined
            each = outputs, joined, torch.lerp(fast, outputs, 0.0 if name in (ALONE, SHIPPED) else BESIDE)
            accuracies = [float((answers.argmax(1) == truth).double().mean()) for answers in each]
            losses = [float(F.cross_entropy(answers, truth)) for answers in each]
            rows.append(Row(path.stem, name, len(x), len(x_test), *accuracies, *losses, spent))
    return rows


def _standardised(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True).clamp(min=1e-6)


def _solved(features: Tensor, others: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Outputs (m, classes) for other features (m, F), by a ridge classifier of features (n, F)."""
    centre, spread = features.mean(0), features.std(0, correction=0)
    scale = torch.where(spread > 1e-6, 1 / spread, 0)
    ridge = ridge_classifier((features - centre) * scale, labels, classes)
    return ((others - centre) * scale).double() @ ridge.weight.T.double() + ridge.bias


def table(rows: list[Row]) -> list[str]:
    """A Markdown table of the ways: means over the sets."""
    of_way = {way: [row for row in rows if row.way == way] for way in dict.fromkeys(row.way for row in rows)}
    alone, fast = ({row.set: row.third for row in of_way[way]} for way in (ALONE, SHIPPED))
    head = "points | better, worse | log loss"
    lines = [
        f"| features | alone | beside random convolutions: {head} | beside preset `fast`: {head} | ms an example |"
    ]
    lines.append("|---|---:|" + "---:|" * 7)
    for way, found in of_way.items():
        cells = [way, f"{100 * mean(row.accuracy for row in found):.1f} %"]
        for name, before, own in (("joined", alone, (ALONE,)), ("third", fast, (ALONE, SHIPPED))):
            points = [100 * (getattr(row, name) - before[row.set]) for row in found]
            gain = [shift(points), f"{sum(p > 0 for p in points)}, {sum(p < 0 for p in points)}"]
            cells += ["–"] * 2 if way in own else gain
            cells.append(f"{mean(getattr(row, f'{name}_log_loss') for row in found):.3f}")
        lines.append("| " + " | ".join([*cells, f"{mean(row.milliseconds for row in found):.1f}"]) + " |")
    return lines


@app.default
def main(*, data: Path, weights: Path, out: Path = Path("runs/image_weights"), most: int = 600, sets: str = "") -> None:
    """Measure every way on every small set that no preset was tuned on.

    Args:
        data: folder with files NAME.npz.
        weights: DeiT-Tiny, patch 16, of ImageNet.
        out: folder for image_weights.csv and the table, image_weights.md.
        most: training and test examples of a set at most.
        sets: comma-separated names; by default all that are small, have one channel, and no missing values.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows, wanted = read_table(out / ROWS, Row), [name for name in sets.split(",") if name]
    for path in sorted(data.glob("*.npz")):
        if path.stem in {row.set for row in rows} or (wanted and path.stem not in wanted) or path.stem in DEVELOPMENT:
            continue
        with np.load(path, allow_pickle=False) as file:
            parts = file["X_train"], file["X_test"]
        examples, channels = sum(map(len, parts)), parts[0].shape[1]
        if not wanted and (examples > most or channels > 1 or any(np.isnan(part).any() for part in parts)):
            continue
        rows += run(path, weights)
        with (out / ROWS).open("w", newline="", encoding="utf-8") as table_file:
            writer = csv.writer(table_file)
            writer.writerow([field.name for field in fields(Row)])
            writer.writerows(astuple(row) for row in rows)
        print(path.stem, ", ".join(f"{row.way} {100 * row.accuracy:.1f}" for row in rows if row.set == path.stem))
    made = f"{len({row.set for row in rows})} sets, torch {torch.__version__}, commit {git_commit()}"
    replace_file(out / PAGE, "\n".join([*table(rows), "", made]) + "\n")
    print("\n".join(table(rows)), "", made, sep="\n")


if __name__ == "__main__":
    app()
