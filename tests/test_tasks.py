"""The seam for tasks: a task from outside the library trains end to end, and classification is one among others."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from ndvit import load_model, train
from ndvit.evaluation.base import Evaluation
from ndvit.tasks import Classification, Task, task_class, task_from_dict, task_to_dict
from ndvit.tasks.base import Criterion, Prediction
from ndvit.training.plan import Request, plan
from ndvit.training.run import resume
from tinyruns import QUIET, TINY, fit_tiny, toy


@dataclass(frozen=True)
class Count(Prediction):
    name: str
    count: float

    def text(self) -> str:
        return f"{self.count:.1f}"

    def row(self):
        return [("name", self.name), ("count", self.count)]

    def to_dict(self):
        return {"name": self.name, "count": self.count}


class CountEvaluation(Evaluation):
    def __init__(self, answers: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> None:
        self.answers, self.targets, self.names = answers[:, 0], targets, tuple(names)

    def numbers(self) -> dict[str, float]:
        return {"mean absolute error": float(np.abs(self.answers - self.targets).mean())}

    @property
    def score(self) -> float:
        return -self.numbers()["mean absolute error"]


class CountCriterion(Criterion):
    def prepare(self, targets: Tensor) -> Tensor:
        return targets.float()[:, None]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.float() - targets).square().mean()


class Counting(Task):
    """How many pulses a signal has."""

    name = "pulses"

    @classmethod
    def from_targets(cls, targets, where, *, to_train=True):
        return cls()

    @property
    def num_outputs(self) -> int:
        return 1

    def encode(self, targets) -> np.ndarray:
        return np.array([float(value) for value in targets], dtype=np.float32)

    def criterion(self, recipe, targets=None):
        return CountCriterion()

    def predictions(self, answers, names):
        return [Count(name, float(row[0])) for name, row in zip(names, answers, strict=True)]

    def evaluate(self, answers, targets, names):
        return CountEvaluation(answers, targets, names)

    def to_dict(self):
        return {}

    @classmethod
    def from_dict(cls, values):
        return cls()


def pulses(n=60, shape=(32,)):
    """Signals or pictures with 0 to 4 pulses, and their number."""
    random = np.random.default_rng(0)
    y = np.arange(n) % 5
    x = 0.05 * random.normal(size=(n, 1, int(np.prod(shape))))
    for row, count in zip(x, y, strict=True):
        row[0, random.choice(row.shape[1] // 2, count, replace=False) * 2] += 3
    return x.reshape(n, 1, *shape).astype(np.float32), y.astype(float)


@pytest.mark.parametrize("shape", [(32,), (6, 6)], ids=["1-D", "2-D"])
def test_a_task_from_elsewhere_trains_end_to_end(tmp_path, shape):
    x, y = pulses(shape=shape)
    options = {**TINY, "steps": 60, "mixup": 0, "crop": 1.0, "val_fraction": 0.2, "members": 2}
    run = train((x, y), task=Counting, output=tmp_path / "run", **options, **QUIET)
    assert run.evaluation is not None
    assert -run.evaluation.score < np.abs(y - y.mean()).mean()  # better than the mean
    assert "mean absolute error" in run.report.read_text()
    assert "mean absolute error" in (tmp_path / "run" / "results.json").read_text()
    model = load_model(tmp_path / "run")
    assert isinstance(model.task, Counting)
    assert model.classes == ()
    again = model.evaluate((x, y), split="all", **QUIET)
    assert np.isfinite(again.score)
    (one,) = model.predict(x[:1], **QUIET)
    outputs = torch.stack([m(model.preprocess(x[0])[None])[0, 0] for m in model.members])
    assert one.count == pytest.approx(outputs.mean().item(), abs=1e-5)


def test_a_run_of_another_task_resumes(tmp_path, monkeypatch):
    from ndvit.training.module import TrainingModule

    step = TrainingModule.training_step

    def breaking(self, batch, batch_idx):
        if batch_idx == 5:
            raise RuntimeError("broken off")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", breaking)
    options = {**TINY, "steps": 8, "val_every": 2, "preset": "basic"}
    with pytest.raises(RuntimeError, match="broken off"):
        train(pulses(), task=Counting, output=tmp_path / "run", **options, **QUIET)
    monkeypatch.undo()
    broken = resume(tmp_path / "run", source=pulses(), **QUIET)
    whole = train(pulses(), task=Counting, output=tmp_path / "whole", **options, **QUIET)
    for a, b in zip(broken.model.network.parameters(), whole.model.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_a_task_cannot_do_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="random convolutions and the encoder do not exist for pulses"):
        train(pulses(), task=Counting, preset="fast", output=tmp_path / "run", **QUIET)
    assert not list(tmp_path.iterdir())
    weights = fit_tiny(pulses(), task=Counting, steps=1).model
    with pytest.raises(ValueError, match=r"a solved head .* does not exist for pulses: train it"):
        fit_tiny(pulses(), task=Counting, weights=weights, preset="basic", head="solved")


def test_unknown_tasks():
    with pytest.raises(ValueError, match=r"unknown task 'guessing': there are classification, .*pulses"):
        task_class("guessing")


def test_classification_from_targets():
    task = Classification.from_targets({"train": [1.0, "10", 2], "test": ["2"]}, "X")
    assert task.classes == ("1", "2", "10")
    assert task.encode(["10", 1.0]).tolist() == [2, 0]
    assert task.decode(np.array([2, 0])) == ["10", "1"]
    with pytest.raises(ValueError, match="unknown class '3'"):
        task.encode([3])
    with pytest.raises(ValueError, match="X: classes c are in the test set but not in the training set"):
        Classification.from_targets({"train": ["a", "b"], "test": ["c"]}, "X")
    with pytest.raises(ValueError, match="one class only"):
        Classification.from_targets({"train": ["a", "a"]}, "X")
    assert Classification.from_targets({"test": ["a"]}, "X", to_train=False).classes == ("a",)


def test_tasks_travel_as_plain_values():
    task = Classification(("cat", "dog"))
    assert task_from_dict(json.loads(json.dumps(task_to_dict(task)))) == task
    assert task != Classification(("dog", "cat"))
    with pytest.raises(ValueError, match="a classification task has a list of classes"):
        task_from_dict({"name": "classification", "classes": "cat"})
    with pytest.raises(ValueError, match="unknown task"):
        task_from_dict({"classes": []})


def test_a_plan_is_made_without_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planned = plan(Request(source=toy(), options={**{k: v for k, v in TINY.items() if k != "model"}}, model="vit_pico"))
    assert planned.steps == 1000
    text = str(planned)
    for line in ("class ", "0 ", "20", "32 training, 0 validation, 8 test", "about"):
        assert line in text
    assert not list(tmp_path.iterdir())
