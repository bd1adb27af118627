"""Regression: targets of every form, losses, intervals and metrics by hand; whole runs in 1-D and 2-D."""

import csv
import io
import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from datafiles import npy, ts
from ndvit import Recipe, load_model, load_source
from ndvit.data.messages import DataWarning
from ndvit.evaluation.amounts import quantity
from ndvit.evaluation.charts import residuals
from ndvit.evaluation.regression import RegressionEvaluation
from ndvit.tasks import Regression, task_from_dict, task_to_dict
from ndvit.tasks.solvers import linear_regression, ridge_regression
from ndvit.training.fit import fit
from ndvit.training.plan import Request, plan
from ndvit.training.run import resume
from tinyruns import QUIET, command, fit_tiny, run_tiny, tensors

SHAPES = {"1-D": (1, 32), "2-D": (1, 8, 8)}
LEARN = {"steps": 30, "learning_rate": 0.01, "mixup": 0.0, "crop": 1.0, "val_fraction": 0.2}


def heights(n=120, shape=(1, 32), targets=1):
    """Noise (n, *shape) whose first half has a height, and the heights: 10 to 20; further targets are chance."""
    random = np.random.default_rng(0)
    y = random.uniform(10, 20, size=(n, targets))
    x = random.normal(size=(n, *shape)) * 0.3
    x[..., : shape[-1] // 2] += (y[:, 0] - 15).reshape(-1, *[1] * len(shape)) / 3
    return x.astype(np.float32), y[:, 0] if targets == 1 else y


# targets


@pytest.mark.parametrize(
    ("targets", "expected", "names"),
    [
        ([1, 2.5, "3"], [[1], [2.5], [3]], ("target",)),
        (["1;2", "3|4", (5, 6)], [[1, 2], [3, 4], [5, 6]], ("target_0", "target_1")),
        ([{"a": 1, "b": "2"}, {"a": 3, "b": 4}], [[1, 2], [3, 4]], ("a", "b")),
    ],
    ids=["numbers", "rows", "names"],
)
def test_targets_in_every_form(targets, expected, names):
    task = Regression.from_targets({"train": targets}, "X")
    assert task.targets == names
    assert task.encode(targets).tolist() == expected
    assert task.encode(targets).dtype == np.float32
    assert task.mean == pytest.approx(np.mean(expected, 0))
    assert task.std == pytest.approx(np.std(expected, 0))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["1", "cat"], "needs numbers as targets, and the one of example 1 is 'cat'.*--task classification"),
        ([1, (1, 2)], "every example needs the same targets, got 1 .*target.* and 2"),
        ([1, np.inf], "must be finite numbers, the one of example 1 is inf"),
        ([1], "a single example"),
    ],
)
def test_targets_that_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        Regression.from_targets({"train": targets}, "X")


def test_targets_that_look_like_classes_are_doubtful():
    x, _ = heights(20)
    with pytest.warns(DataWarning, match="have only the values 0 and 1: .* set --task classification"):
        load_source((x, np.arange(20) % 2), task="regression", test_fraction=0)


def test_targets_that_float32_rounds_are_doubtful():
    assert "float32 rounds" in Regression.doubts({"train": [1.7e9, 1.7e9 + 1, 1.7e9 + 2]})[0]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_table_of_targets_keeps_the_names_of_its_columns(shape):
    x, y = heights(shape=shape, targets=2)
    source = load_source((x, pd.DataFrame(y, columns=["mass", "age"])), task="regression")
    assert source.task.output_names() == ["mass", "age"]
    assert source.train.targets.shape == (96, 2)


def test_a_ts_file_of_a_regression(tmp_path):
    lines = [f"{i},2,3:{i / 2}" for i in range(30)]
    source = load_source(str(ts(tmp_path / "a.ts", lines, "@targetLabel true\n@data\n")), task="regression")
    assert source.test.targets[:, 0].max() > source.train.targets[:, 0].mean()
    assert len(source.train), len(source.test) == (24, 6)


def test_bundled_sets_of_regressions():
    source = load_source("covid3month", task="regression")
    assert (len(source.train), len(source.test), source.dims) == (140, 61, 1)
    assert source.train.targets.max() < 1


def test_labels_beside_an_npy(tmp_path):
    x, y = heights(20)
    npy(tmp_path / "X_labels.npy", y)
    source = load_source(str(npy(tmp_path / "X.npy", x)), task="regression", test_fraction=0)
    np.testing.assert_allclose(source.train.targets[:, 0], y.astype(np.float32))


def test_a_split_has_all_ranges_of_the_targets():
    x, y = heights(200)
    source = load_source((x, y), task="regression", test_fraction=0.2)
    ranks = np.argsort(np.argsort(np.concatenate([source.test.targets, source.train.targets])[:, 0]))
    assert np.bincount(ranks[:40] // 20).tolist() == [4] * 10


def test_the_mean_of_the_task_is_that_of_the_training_set_alone():
    planned = plan(Request(source=heights(), task="regression", progress=False, options={"val_fraction": 0.2}))
    targets = planned.data.train.targets.astype(float)
    assert planned.task.mean == pytest.approx(targets.mean(0), rel=1e-6)
    assert planned.task.std == pytest.approx(targets.std(0), rel=1e-6)


def test_targets_of_other_data_are_matched():
    task = Regression(("a", "b"))
    assert task.align(Regression(("b", "a")), "X")[0](np.array([[1, 2]])).tolist() == [[2, 1]]
    assert task.align(Regression(("target_0", "target_1")), "X")[0] is None
    with pytest.raises(ValueError, match="X has the targets b, c, and the model predicts a, b"):
        task.align(Regression(("b", "c")), "X")
    with pytest.raises(ValueError, match="X has 1 targets, and the model predicts 2 numbers"):
        task.align(Regression(), "X")


def test_the_task_travels_as_plain_values():
    task = Regression(("a",), [1.0], [2.0], quantiles=True, level=0.8, margins=[0.5], measured=30)
    assert task_from_dict(json.loads(json.dumps(task_to_dict(task)))) == task
    for name, value in (("std", [0.0]), ("mean", ["x"]), ("level", 2), ("targets", []), ("margins", [1, 2])):
        with pytest.raises(ValueError, match=r"must be|has a list|between 0 and 1"):
            task_from_dict({**task_to_dict(task), name: value})


# losses and answers


@pytest.mark.parametrize(("loss", "expected"), [("l2", (1 + 9) / 2), ("huber", (0.5 + 2.5) / 2)])
def test_losses_of_standardised_targets(loss, expected):
    made = Regression(("a",), [10.0], [2.0]).criterion(Recipe(loss=loss))
    targets = made.prepare(torch.tensor([[10.0], [12.0]]))
    assert targets.tolist() == [[0], [1]]
    assert made.loss(torch.tensor([[1.0], [4.0]]), targets).item() == pytest.approx(expected)


def test_the_quantile_loss():
    task = Regression(("a",), [0.0], [1.0], quantiles=True, level=0.8)
    made = task.criterion(Recipe(loss="quantile"))
    targets = made.prepare(torch.tensor([[1.0]]))
    # median, lower (10 %) and upper (90 %) quantile, each wrong by 1 from below, then from above
    assert made.loss(torch.zeros(1, 3), targets).item() == pytest.approx(2 * (0.5 + 0.1 + 0.9) / 3)
    assert made.loss(2 * torch.ones(1, 3), targets).item() == pytest.approx(2 * (0.5 + 0.9 + 0.1) / 3)
    assert task.losses(torch.zeros(1, 3), torch.ones(1, 1)).item() == pytest.approx(1.0)


def test_unknown_losses_and_class_weights_are_refused():
    task = Regression()
    with pytest.raises(ValueError, match="loss='sigmoid' does not exist for regression: use l2 or huber or quantile"):
        task.prepared(Recipe(loss="sigmoid"), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="a regression has none"):
        task.criterion(Recipe(class_weight="balanced"))


def test_answers_are_in_the_units_of_the_targets():
    task = Regression(("a", "b"), [10.0, 0.0], [2.0, 5.0])
    answers = task.activate(torch.tensor([[1.0, -1.0]]))
    assert answers.tolist() == [[12, -5]]
    assert task.deactivate(answers).tolist() == [[1, -1]]


def test_quantiles_never_cross():
    task = Regression(("a",), [0.0], [1.0], quantiles=True)
    assert task.activate(torch.tensor([[3.0, 5.0, 1.0]])).tolist() == [[3, 1, 5]]
    assert task.activate(torch.tensor([[9.0, 1.0, 5.0]])).tolist() == [[5, 1, 9]]


def test_intervals_are_the_ranked_error():
    task = Regression(("a",), [0.0], [2.0], level=0.8)
    outputs = torch.zeros(9, 1)
    made = task.adjusted(outputs, torch.arange(1.0, 10.0)[:, None])
    assert made.margins == (8.0,)  # the eighth of nine, as 0.8 (9 + 1) = 8
    (one,) = made.predictions(np.array([[3.0]]), ["x"])
    assert one.intervals == {"a": (-5.0, 11.0)}
    assert [name for name, _ in one.row()] == ["name", "a", "a_low", "a_high"]
    assert task.adjusted(outputs[:3], torch.zeros(3, 1)) is task  # 0.8 (3 + 1) > 3: too few


def test_intervals_of_quantiles_are_narrowed_or_widened():
    task = Regression(("a",), [0.0], [1.0], quantiles=True, level=0.8)
    outputs = torch.tensor([[0.0, -10.0, 10.0]]).repeat(9, 1)
    made = task.adjusted(outputs, torch.arange(1.0, 10.0)[:, None])
    assert made.margins == (-2.0,)
    low, high = made.intervals(made.activate(outputs[:1]).numpy())
    assert (low.item(), high.item()) == (-8.0, 8.0)


def test_intervals_cover_new_examples():
    random = np.random.default_rng(0)
    task = Regression(("a",), [0.0], [1.0], level=0.9)
    made = task.adjusted(torch.zeros(2000, 1), torch.from_numpy(random.standard_t(3, (2000, 1))))
    truth = random.standard_t(3, (4000, 1))
    assert made.evaluate(np.zeros((4000, 1)), truth, ["x"] * 4000).coverage == pytest.approx(0.9, abs=0.015)


# ridge regression


def test_ridge_regression_by_leaving_one_out():
    random = np.random.default_rng(0)
    values = random.normal(size=(30, 50))
    x = torch.from_numpy(values).float()
    y = torch.from_numpy(np.stack([values[:, 0] + 0.1 * random.normal(size=30), random.normal(size=30)], 1))
    found = ridge_regression(x, y)
    outputs = x @ found.weight.T + found.bias.float()
    assert outputs[:, 1].std() < 0.5 * y[:, 1].std()  # there is nothing to learn, so the penalty is large
    assert torch.corrcoef(torch.stack([outputs[:, 0], y[:, 0].float()]))[0, 1] > 0.9
    # leaving one out is what fitting without it gives, at the penalty of each output
    error = (found.left_out - y)[:, 0]
    assert found.facts["loss"] == pytest.approx((found.left_out - y).square().mean().item())
    kept = np.arange(30) != 4
    alphas = np.logspace(-6, 3, 19) * 30 * values.var(0).sum() / 29
    alone = [
        Ridge(alpha).fit(values[kept], y[kept, 0].numpy()).predict(values[4:5])[0] - y[4, 0].item() for alpha in alphas
    ]
    assert np.abs(np.array(alone) - error[4].item()).min() < 1e-4


def test_a_solved_head_chooses_its_penalty_on_validation_data():
    random = np.random.default_rng(0)
    x = random.normal(size=(40, 20))
    y = x[:, :1] + 0.1 * random.normal(size=(40, 1))
    learned, opposed = linear_regression(x, y, val=(x, y)), linear_regression(x, y, val=(x, -y))
    assert r2_score(y, learned.outputs(x)) > 0.98
    assert np.abs(opposed.weight).sum() < 0.01 * np.abs(learned.weight).sum()
    assert linear_regression(x, y).outputs(x).shape == (40, 1)


# evaluation


def evaluation(n=40, intervals=True):
    random = np.random.default_rng(0)
    truth = random.normal(size=(n, 2)) * (1, 100)
    predicted = truth + random.normal(size=(n, 2)) * (0.1, 10)
    bounds = (predicted - (0.1, 10), predicted + (0.1, 10)) if intervals else None
    return RegressionEvaluation(("a", "b"), truth, predicted, bounds, 0.7, tuple(map(str, range(n))))


def test_metrics_are_those_of_scikit_learn():
    found = evaluation()
    assert found.score == found.r2 == pytest.approx(r2_score(found.truth, found.predicted))
    assert found.rmse == pytest.approx(root_mean_squared_error(found.truth, found.predicted))
    assert found.mae == pytest.approx(mean_absolute_error(found.truth, found.predicted))
    inside = np.abs(found.errors) <= (0.1, 10)
    assert found.coverage == inside.mean()
    assert [row.coverage for row in found.per_target] == inside.mean(0).tolist()
    assert found.numbers()["interval_width"] == pytest.approx((0.2 + 20) / 2)
    assert found.worst()[0] == int(np.argmax(np.abs(found.errors / found.truth.std(0)).max(1)))


def test_what_an_evaluation_prints():
    assert "70 % intervals contain" in evaluation().headline()
    assert "of the targets are in their 70 % intervals" in evaluation().table()
    assert "coverage" not in evaluation(intervals=False).numbers()
    assert json.loads(json.dumps(evaluation().to_dict()))["per_target"][1]["name"] == "b"


def test_evaluations_of_nothing_and_of_nan_are_refused():
    with pytest.raises(ValueError, match="at least one example"):
        RegressionEvaluation(("a",), np.zeros((0, 1)), np.zeros((0, 1)), None, 0.9, ())
    with pytest.raises(ValueError, match=r"predictions must be finite, got NaN .* for 1 of 1 examples"):
        RegressionEvaluation(("a",), np.zeros((1, 1)), np.full((1, 1), np.nan), None, 0.9, ("x",))


@pytest.mark.usefixtures("_drawn")
def test_the_picture_of_residuals():
    predictions, errors = residuals(np.arange(3000.0), np.arange(3000.0) + 1, "<b>", "r")
    assert predictions.startswith("<svg")
    assert "errors of &lt;b&gt;: 3000 examples, root mean squared error 1" in errors
    assert "<b>" not in predictions + errors


# whole runs


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_run_from_beginning_to_end(tmp_path, shape, capsys):
    x, y = heights(shape=shape)
    np.savez(tmp_path / "data.npz", X=x, y=y)
    run = run_tiny(str(tmp_path / "data.npz"), tmp_path / "run", task="regression", **LEARN)
    assert run.evaluation.r2 > 0.9
    assert run.evaluation.coverage > 0.6
    assert "coverage of the intervals" in run.report.read_text()
    assert json.loads((tmp_path / "run/results.json").read_text())["r2"] == pytest.approx(run.evaluation.r2)
    model = load_model(tmp_path / "run")
    assert model.task == run.model.task
    assert model.task.measured == 20
    again = model.evaluate(str(tmp_path / "data.npz"), **QUIET)
    assert again.numbers() == pytest.approx(run.evaluation.numbers())
    npy(tmp_path / "one.npy", x[:1])
    answers = model.predict(x[:1], **QUIET)
    for form in ("csv", "json"):
        assert command("predict", tmp_path / "run", tmp_path / "one.npy", "--format", form) == 0
        out = capsys.readouterr().out
        row = json.loads(out)[0]["values"] if form == "json" else next(csv.DictReader(io.StringIO(out)))
        assert float(row["target"]) == pytest.approx(answers[0].value, rel=1e-4)
    embedded = model.embed((x, y), **QUIET)
    assert embedded.labels.shape == (120,)
    assert embedded.score("linear").r2 > 0.9
    assert embedded.score("knn").r2 > 0.5


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, monkeypatch):
    from ndvit.training.module import TrainingModule

    step = TrainingModule.training_step

    def breaking(self, batch, batch_idx):
        if batch_idx == 5:
            raise RuntimeError("broken off")
        return step(self, batch, batch_idx)

    options = {"task": "regression", "steps": 8, "val_every": 2, "preset": "basic", "loss": "quantile"}
    monkeypatch.setattr(TrainingModule, "training_step", breaking)
    with pytest.raises(RuntimeError, match="broken off"):
        run_tiny(heights(40), tmp_path / "run", **options)
    monkeypatch.undo()
    broken = resume(tmp_path / "run", source=heights(40), **QUIET)
    whole = run_tiny(heights(40), tmp_path / "whole", **options)
    assert all(torch.equal(a, b) for a, b in zip(tensors(broken).values(), tensors(whole).values(), strict=True))
    assert broken.model.task == whole.model.task


def fast(source, **options):
    request = Request(source=source, task="regression", preset="fast", progress=False, options=options)
    return fit(plan(request), **QUIET)


def test_the_closed_form_has_intervals_by_leaving_one_out():
    trained = fast(heights(), rocket_features=168, encoder=False)
    task = trained.model.task
    assert task.measured == 96
    assert 0.5 < task.margins[0] < 2
    assert trained.fit.history[0]["train_r2"] > 0.8
    with pytest.raises(ValueError, match="loss would do nothing"):
        fast(heights(), loss="quantile")


def test_a_committee_of_closed_form_and_quantile_network():
    options = {"model": "signal_tiny", "rocket_features": 168, "encoder": False, "loss": "quantile"}
    trained = fit_tiny(heights(), task="regression", **{**LEARN, "steps": 4}, **options)
    assert trained.model.evaluate(heights(), split="all", **QUIET).r2 > 0.9
    assert trained.model.task.num_outputs == 3


def test_an_ensemble_averages_numbers_and_has_its_members(tmp_path):
    trained = fit_tiny(heights(40), task="regression", members=2, steps=2)
    assert len(trained.model.members) == 2
    x = heights(4)[0]
    mean = np.mean([one.predict_proba(x) for one in trained.model.members], 0)
    np.testing.assert_allclose(trained.model.predict_proba(x), mean, rtol=1e-5)
    trained.model.save(tmp_path / "m.safetensors")
    assert len(load_model(tmp_path / "m.safetensors").members) == 2


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("softmax", [False, True])
def test_an_export_answers_in_the_units_of_the_targets(tmp_path, shape, softmax):
    from ndvit.model import load_exported

    x, y = heights(40, shape, targets=2)
    model = fit_tiny((x, y), task="regression", steps=2, loss="quantile", val_fraction=0.25).model
    report = model.export(tmp_path / "m.ts", format="torchscript", softmax=softmax, data=(x, y), mask=False)
    assert "same class" not in str(report)
    assert ("standardised numbers" in str(report)) is not softmax
    found = load_exported(tmp_path / "m.ts")
    np.testing.assert_allclose(found.predict_proba(x), model.predict_proba(x), rtol=1e-4)
    raw = found.network.compute(torch.from_numpy(np.stack([model.preprocess(one) for one in x])))
    assert (raw[:, 0].mean() > 5) is softmax or bool(raw[:, 0].mean() > 5) is softmax
    with pytest.raises(ValueError, match="int8 is for networks that classify"):
        model.export(tmp_path / "n.onnx", int8=True, data=(x, y))


def test_weights_for_transformers_return_the_units_of_the_targets(tmp_path):
    from transformers import ViTForImageClassification

    from ndvit import export_state_dict

    x, y = heights(40, (3, 8, 8))
    x = np.clip(x * 40 + 128, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    from PIL import Image

    pictures = [Image.fromarray(one) for one in x]
    trained = fit_tiny((pictures, y), task="regression", steps=2, pooling="token", patch_size=4, input_size=8)
    export_state_dict(trained.model, "transformers", tmp_path / "hf")
    hf = ViTForImageClassification.from_pretrained(tmp_path / "hf").eval()
    assert hf.config.problem_type == "regression"
    inputs = torch.stack([trained.model.preprocess(one) for one in pictures])
    expected = trained.model.predict_proba(inputs)
    torch.testing.assert_close(hf(inputs).logits.detach(), expected, rtol=1e-4, atol=1e-4)
    assert load_model(tmp_path / "hf").predict_proba(inputs) == pytest.approx(expected.numpy(), rel=1e-4)


def test_a_regression_teaches_another_in_its_own_units():
    x, y = heights(60)
    teacher = fit_tiny((x, y), task="regression", **LEARN).model
    student = plan(Request(source=(x, 100 * y), task="regression", progress=False)).task
    outputs = teacher(torch.stack([teacher.preprocess(one) for one in x[:3]]))
    again = student.activate(student.from_teacher(outputs, teacher.task))
    torch.testing.assert_close(again, teacher.task.activate(outputs), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="teacher minirocket is a classifier, and cannot teach regression"):
        fit_tiny((x, y), task="regression", steps=1, teacher="minirocket")


def test_training_goes_on_with_the_head_only_for_the_same_standardisation():
    data = heights(40)
    weights = fit_tiny(data, task="regression", steps=1).model
    same = plan(Request(source=data, task="regression", weights=weights, progress=False)).first
    assert same.untrained == ()
    other = plan(Request(source=(data[0], 2 * data[1]), task="regression", weights=weights, progress=False)).first
    assert "head.weight" in other.untrained


def test_presets_leave_out_what_does_not_suit_numbers():
    assert plan(Request(source=heights(120), task="regression", preset="signal", progress=False)).recipe.scale == 0
    few = plan(Request(source=heights(60), task="regression", progress=False))
    assert few.preset == "fast"
    assert "(regression counts as 10 classes)" in few.notes[0]
    assert "+-" in few.lines()[-2]
    assert "target" in str(few)


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [f"{i},2,3,{i + 1}:{i / 2}" for i in range(30)]
    ts(tmp_path / "a.ts", lines, "@targetLabel true\n@data\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flags = ("--preset", "fast", "--rocket-features", "168", "--no-encoder", "--no-progress", "--output", "run")
        assert command("train", "a.ts", "--task", "regression", *flags) == 0
        assert "R2" in capsys.readouterr().out
        assert command("evaluate", "run", "a.ts", "--no-progress") == 0
        assert "std of targets" in capsys.readouterr().out
        assert command("info", "run") == 0
    out = capsys.readouterr().out
    assert "outputs  1: target" in out
    assert "task     regression; intervals: 90 %" in out


def test_leaving_one_out_chooses_the_weight_of_the_encoder():
    from ndvit.network.committee import output_committees

    x, y = heights(60)
    model = fast((x, y), rocket_features=168, levels=False).model
    (committee,) = output_committees(model.network)
    assert sum(committee.weights) == pytest.approx(1)
    assert committee.weights[1] != pytest.approx(1 / 3, abs=0.02)
    fixed = fast((x, y), rocket_features=168, encoder_weight=0.25, levels=False).model
    assert output_committees(fixed.network)[0].weights == pytest.approx((0.75, 0.25))
    fixed = fast((x, y), rocket_features=168, encoder_weight=0.25).model
    convolutions, encoder, levels = output_committees(fixed.network)[0].weights
    assert levels > 0.5  # heights are levels
    assert encoder == pytest.approx((convolutions + encoder) / 4)


def test_amounts_are_readable_and_targets_of_other_units_are_not_averaged():
    found = [
        quantity(value, digits)
        for value, digits in ((240240.4, 5), (30000, 4), (1.2, 4), (0.00042, 4), (3e-9, 4), (0, 4))
    ]
    assert found == ["240,240", "30,000", "1.2", "0.00042", "3e-09", "0"]
    assert [quantity(value) for value in (-1234.56, 12.0, 2e12, float("nan"))] == ["-1,235", "12", "2e+12", "nan"]
    truth = np.array([[1.0, 1000.0], [3.0, 3000.0]])
    task = Regression(("a (s)", "b (Pa)"), [2.0, 2000.0], [1.0, 1000.0])
    evaluation = task.evaluate(truth + [0.1, 200.0], truth, ["x", "y"])
    assert evaluation.relative_rmse == pytest.approx((0.1 + 0.2) / 2)
    assert "RMSE 0.150 standard deviations, mean of 2 targets, on 2 examples" in evaluation.headline()
