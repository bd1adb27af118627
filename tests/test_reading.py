"""The warning that reading limits the speed of training: what is measured, and when there is a note."""

import time

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

import datafiles
import ndvit
from ndvit.data.augment.pictures import Variation
from ndvit.data.examples import Examples
from ndvit.data.loading import Inputs
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.training.callbacks import reading_watch
from ndvit.training.callbacks.reading_watch import ReadingWatch

SIZE = ImagePreprocess((4, 6), (0.5,) * 3, (0.5,) * 3)


class Slow(pl.LightningModule):
    """A step that takes so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, _):
        time.sleep(self.seconds)
        return self.weight * batch.x.mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def slow_picture(seconds: float) -> Image.Image:
    time.sleep(seconds)
    return Image.new("RGB", (6, 4))


def pictures(seconds: float, vary=None) -> Inputs:
    """Twelve pictures, each of which takes so long to read."""
    return Inputs(Examples([seconds] * 12, [0, 1] * 6, read=slow_picture), SIZE, vary)


def train(inputs: Inputs, seconds: float, steps: int = 40, workers: int = 0) -> ReadingWatch:
    stream = inputs.stream(4, steps, 0, 0, workers)
    watch = ReadingWatch(stream, inputs)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, callbacks=[watch], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Slow(seconds), stream)
    return watch


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*is not resumable", "ignore:.*train_dataloader"
)


def test_slow_reading_has_a_note(monkeypatch):
    monkeypatch.setattr(reading_watch.os, "cpu_count", lambda: 8)
    watch = train(pictures(0.002), 0.002)
    assert (watch.steps, watch.examples) == (30, 120)  # the first ten do not count
    assert watch.waiting > 30 * 4 * 0.002  # four pictures one after the other
    assert watch.working > 30 * 0.002
    share, rate = watch.waiting / (watch.waiting + watch.working), 120 / (watch.waiting + watch.working)
    assert watch.note == (
        f"reading limited the speed: {100 * share:.0f} % of the training time waited for pictures "
        f"({rate:,.0f} pictures/s): try more --workers (now 0), or smaller files (the network takes 4 x 6)"
    )


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_training_logs_the_note_once(tmp_path, monkeypatch, share):
    """After the last of its members; or never, if no share of the time is too much."""
    monkeypatch.setattr(ReadingWatch, "SHARE", share)
    lines = []
    run = ndvit.train(
        datafiles.pictures(tmp_path / "data", count=8), output=tmp_path / "run", model="vit_pico", embed_dim=16,
        depth=1, num_heads=2, steps=32, batch_size=4, workers=0, device="cpu", val_fraction=0, members=2,
        progress=False, log=lines.append,
    )  # fmt: skip
    notes = [line for line in lines if line.startswith("reading limited the speed: ")]
    assert len(notes) == (share == 0)
    assert run.fit.note == (notes[0] if notes else None)


def test_quick_reading_is_not():
    in_memory = Inputs(Examples([np.zeros((4, 6, 3), np.uint8)] * 12, [0, 1] * 6), SIZE)
    watch = train(in_memory, 0.01)
    assert watch.steps == 30
    assert watch.waiting < watch.working / 3
    assert watch.note is None


def test_few_steps_tell_nothing():
    watch = train(pictures(0.001), 0.0, steps=29)
    assert watch.steps == 19
    assert watch.note is None


@pytest.fixture
def clock(monkeypatch):
    """A clock that does not move by itself; `clock.now` is its time."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    return Clock


def test_validations_and_checkpoints_are_not_reading(clock):
    """What happens between steps is neither waiting nor work."""
    inputs = pictures(0.0)
    batch = next(iter(inputs.loader(4, 0)))
    watch = ReadingWatch(inputs.stream(4, 40, 0, 0, 0), inputs)
    for step in range(40):
        watch.loader.waited = 0.25
        watch.on_train_batch_start(None, None, None, step)
        clock.now += 0.5
        watch.on_train_batch_end(None, None, None, batch, step)
        clock.now += 8
    assert (watch.waiting, watch.working) == (7.5, 15)
    assert watch.note is None  # a third, and no more
    watch.waiting += 0.1
    assert watch.note.startswith("reading limited the speed: 34 % of")


def test_cures_are_those_that_can_help(monkeypatch):
    watch = ReadingWatch(pictures(0.0).stream(4, 40, 0, 0, 0), pictures(0.0, Variation(SIZE, policy="randaugment")))
    watch.steps, watch.examples, watch.waiting, watch.working = 30, 4_000, 3.0, 1.0
    monkeypatch.setattr(reading_watch.os, "cpu_count", lambda: 0)
    assert watch.note == (
        "reading limited the speed: 75 % of the training time waited for pictures (1,000 pictures/s): "
        "try more --workers (now 0), or smaller files (the network takes 4 x 6), or a lighter --policy"
    )
    watch.loader.num_workers = 1
    assert "--workers" not in watch.note  # the one core reads already
    arrays = [np.zeros((4, 6, 3), np.uint8)] * 4
    watch.train = Inputs(Examples(arrays, [0, 1] * 2), SIZE, Variation(SIZE, policy="randaugment"))
    assert watch.note.endswith("pictures/s): try a lighter --policy")
    watch.train = Inputs(Examples(arrays, [0, 1] * 2), SIZE)
    assert watch.note.endswith("(1,000 pictures/s)")


def test_a_gpu_is_measured_in_stretches(monkeypatch):
    """And each step that is measured begins and ends with the GPU done."""
    inputs = pictures(0.0)
    batch = next(iter(inputs.loader(4, 0)))
    waits = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waits.append(step))
    watch = ReadingWatch(inputs.stream(4, 500, 0, 0, 0), inputs)
    watch._on_cpu = False
    for step in range(500):
        watch.on_train_batch_start(None, None, None, step)
        watch.on_train_batch_end(None, None, None, batch, step)
    assert watch.steps == 60
    assert waits == [*range(9, 30), *range(209, 230), *range(409, 430)]


def test_loader_times_what_it_is_waited_for(clock):
    def read(seconds):
        clock.now += seconds
        return slow_picture(0.0)

    inputs = Inputs(Examples([1.0, 2.0, 3.0, 4.0, 5.0], [0, 1, 0, 1, 0], read=read), SIZE)
    loader = inputs.loader(2, 0)
    assert loader.waited == 0
    for _ in range(2):  # and again
        times = []
        for batch in loader:
            times.append(loader.waited)
            assert batch.x.shape[1:] == (3, 4, 6)
            clock.now += 100  # not its
        assert times == [3.0, 7.0, 5.0]
