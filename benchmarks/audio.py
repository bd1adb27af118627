"""Compare ways to read spoken words of speakers that a model has not heard: waveforms and spectrograms.

`python benchmarks/audio.py --data FOLDER` reads LABEL_SPEAKER_TAKE.wav, holds each speaker out in turn, trains on the
same number of recordings of the others, and prints a row a training: model, speaker, seed, accuracy, seconds. Rows are
added to the file of --output, and trainings that are there are not repeated.
"""

import csv
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from cyclopts import App

import ndvit

app = App(help=__doc__)
HEAD = ("model", "speaker", "seed", "examples", "accuracy", "seconds")
MODELS: dict[str, dict[str, Any]] = {
    "default": {},
    "picture": {"preset": "spectrogram"},
    "picture-whole": {"preset": "spectrogram", "silence": 0},
    "channels": {"preset": "fast", "spectrogram": "mel"},
    "channels-whole": {"preset": "fast", "spectrogram": "mel", "silence": 0},
    "channels-net": {"preset": "signal", "spectrogram": "mel"},
    "raw": {"preset": "signal", "spectrogram": "off"},
    "raw-fast": {"preset": "fast", "spectrogram": "off"},
}
"""Options of `ndvit.train`."""


def parts(data: Path, speaker: str, most: int) -> dict[str, list[Path]]:
    """Training recordings of the other speakers, as many of each and of each word, and all of the speaker."""
    takes: dict[tuple[str, str], list[tuple[int, Path]]] = {}
    for path in data.glob("*.wav"):
        label, name, take = path.stem.split("_")
        takes.setdefault((label, name), []).append((int(take), path))
    others = [key for key in takes if key[1] != speaker]
    count = max(1, most // len(others))
    return {
        "train": [path for key in sorted(others) for _, path in sorted(takes[key])[:count]],
        "test": [path for key in sorted(takes) if key[1] == speaker for _, path in sorted(takes[key])],
    }


def ours(split: dict[str, list[Path]], seed: int, **options: Any) -> float:
    """Accuracy of a training run on a folder of both parts."""
    with TemporaryDirectory() as folder:
        for part, paths in split.items():
            for path in paths:
                place = Path(folder, "data", part, path.name.partition("_")[0])
                place.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place / path.name)
        options = {"group_by": "path:*_{speaker}_*", "progress": False, "log": lambda _: None, **options}
        run = ndvit.train(Path(folder, "data"), output=Path(folder, "run"), seed=seed, **options)
        return float(run.evaluation.accuracy)


def minirocket(split: dict[str, list[Path]], seed: int) -> float:
    """Accuracy of aeon's MiniRocket on waveforms that end in zeros."""
    from aeon.classification.convolution_based import MiniRocketClassifier

    from ndvit.data.sources.sounds import read_audio

    waves = {part: [read_audio(path).values[0] for path in paths] for part, paths in split.items()}
    longest = max(len(wave) for part in waves.values() for wave in part)
    x = {part: np.stack([np.pad(w, (0, longest - len(w))) for w in rows])[:, None] for part, rows in waves.items()}
    y = {part: np.array([path.name.partition("_")[0] for path in paths]) for part, paths in split.items()}
    model = MiniRocketClassifier(random_state=seed).fit(x["train"], y["train"])
    return float((model.predict(x["test"]) == y["test"]).mean())


@app.default
def main(
    data: Path,
    models: str = "default",
    speakers: str = "",
    seeds: int = 1,
    train: int = 600,
    output: Path = Path("audio.csv"),
) -> None:
    """Train and print.

    Args:
        data: folder of LABEL_SPEAKER_TAKE.wav.
        models: names of `MODELS`, or minirocket, with commas between.
        speakers: those that are held out in turn, with commas between; all by default.
        seeds: seeds from 0 on.
        train: recordings to train on.
        output: .csv of the results.
    """
    known = sorted({path.stem.split("_")[1] for path in data.glob("*.wav")})
    done = set()
    if output.exists():
        with output.open(newline="") as file:
            done = {tuple(row[name] for name in HEAD[:3]) for row in csv.DictReader(file)}
    for name in models.split(","):
        fit: Callable[..., float] = minirocket if name == "minirocket" else ours
        for speaker in speakers.split(",") if speakers else known:
            for seed in range(seeds):
                if (name, speaker, str(seed)) in done:
                    continue
                split, start = parts(data, speaker, train), time.perf_counter()
                accuracy = fit(split, seed, **MODELS.get(name, {}))
                row = (
                    name,
                    speaker,
                    seed,
                    len(split["train"]),
                    f"{accuracy:.4f}",
                    f"{time.perf_counter() - start:.0f}",
                )
                print(*row, flush=True)
                new = not output.exists()
                with output.open("a", newline="") as file:
                    csv.writer(file).writerows([HEAD, row] if new else [row])


if __name__ == "__main__":
    app()
