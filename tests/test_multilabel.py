"""Several labels: forms of targets, loss, thresholds, calibration and metrics by hand; whole runs in 1-D and 2-D."""

import csv
import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy import sparse
from sklearn.metrics import accuracy_score as subset_accuracy
from sklearn.metrics import average_precision_score, f1_score, hamming_loss

from datafiles import npy
from ndvit import Recipe, ViTClassifier, load_model, load_source
from ndvit.data.messages import DataWarning
from ndvit.evaluation.multilabel import MultilabelEvaluation
from ndvit.tasks import Multilabel, task_from_dict, task_to_dict
from ndvit.tasks.solvers import ridge_of_labels
from ndvit.training.fit import fit
from ndvit.training.plan import Request, plan
from tinyruns import QUIET, command, fit_tiny, resume_quietly, run_tiny, tensors

SHAPES = {"1-D": (1, 32), "2-D": (1, 8, 8)}
LEARN = {"steps": 40, "learning_rate": 0.01, "mixup": 0.0, "crop": 1.0, "val_fraction": 0.2}
QUICK = {"rocket_features": 168, "encoder": False}


def parts(n=120, shape=(1, 32)):
    """Noise (n, *shape) of which some quarters are raised, and which of the first three are (n, 3)."""
    random = np.random.default_rng(0)
    y, x = random.integers(0, 2, size=(n, 3)), random.normal(size=(n, *shape)) * 0.5
    width = shape[-1] // 4
    for j in range(3):
        x[..., j * width : (j + 1) * width] += 1.5 * y[:, j].reshape(-1, *[1] * len(shape))
    return x.astype(np.float32), y


def texts(y, separator=";"):
    return [separator.join(name for name, there in zip("abc", row, strict=True) if there) for row in y.tolist()]


# targets


@pytest.mark.parametrize(
    "targets",
    [
        ["b;a", "a", None, "b"],
        ["b|a", " a ", "", "b"],
        [("a", "b"), ["a"], (), {"b"}],
        [{"a": 1, "b": 1}, {"a": 1, "b": 0}, {"a": 0, "b": 0}, {"a": 0, "b": "1"}],
    ],
    ids=["semicolons", "bars", "lists", "columns"],
)
def test_labels_in_every_form(targets):
    task = Multilabel.from_targets({"train": targets}, "X")
    assert task.classes == ("a", "b")
    assert task.encode(targets).tolist() == [[1, 1], [1, 0], [0, 0], [0, 1]]
    assert task.decode(task.encode(targets)) == ["a;b", "a", "", "b"]


def test_rows_of_0_and_1_are_columns_and_other_numbers_are_names():
    assert Multilabel.from_targets({"train": [(0, 1, 0), (1.0, 1, 0)]}, "X").classes == ("0", "1", "2")
    assert Multilabel.from_targets({"train": [(7, 10), (7,), 2]}, "X").classes == ("2", "7", "10")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"train": [(0.5, 1)]}, "the target of example 0 is .*fractions.* set --task regression"),
        ({"train": [{"a": 2}]}, "column a has 2, expected 0 or 1"),
        ({"train": [None, ""]}, "no training example has a label"),
        ({"train": ["a"], "test": ["a;b"]}, "labels b are in the test set but not in the training set"),
        ({"train": [(0, 1)], "test": [(0, 1, 1)]}, "rows of 0 and 1 have 2 and 3 columns"),
    ],
)
def test_targets_that_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        Multilabel.from_targets(targets, "X")


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("form", ["matrix", "frame", "text"])
def test_sources_of_labels(shape, form):
    x, y = parts(shape=shape)
    targets = {"matrix": y, "frame": pd.DataFrame(y, columns=[*"abc"]), "text": texts(y)}[form]
    source = load_source((x, targets), task="multilabel")
    assert source.classes == (("0", "1", "2") if form == "matrix" else ("a", "b", "c"))
    assert (len(source.train), len(source.test)) == (96, 24)
    assert any("have no label: none of the classes is there" in note for note in source.notes) is (form == "text")
    share = source.test.targets.mean(0) - source.train.targets.mean(0)
    assert np.abs(share).max() < 0.08  # sets of labels have the same shares on both sides


def test_a_list_of_files_with_labels(tmp_path):
    x, y = parts(12)
    for i, one in enumerate(x):
        npy(tmp_path / f"{i}.npy", one)
    rows = ["path,label", *(f"{i}.npy,{text}" for i, text in enumerate(texts(y, "|")))]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    source = load_source(str(tmp_path / "list.csv"), task="multilabel", test_fraction=0)
    np.testing.assert_array_equal(source.train.targets, y)


def test_words_for_missing_labels_are_still_missing():
    x, _ = parts(4)
    with pytest.raises(ValueError, match=r"1 labels are missing in the train set: X\[1\] \(NA\)"):
        load_source((x, ["a;b", "NA", "", "b"]), task="multilabel")


def test_labels_that_exclude_each_other_are_doubtful():
    x, _ = parts(12)
    with pytest.warns(DataWarning, match="every example has exactly one label: .* --task classification"):
        load_source((x, [*"abcd"] * 3), task="multilabel", test_fraction=0)


def test_classes_that_join_others_are_doubtful():
    x, _ = parts(12)
    with pytest.warns(DataWarning, match="1 classes are others with ';' between, such as 'a;b'.*--task multilabel"):
        load_source((x, ["a", "b", "a;b"] * 4), test_fraction=0)


def test_every_stratum_can_be_divided():
    y = np.zeros((23, 3), dtype=int)
    y[:12, 0] = y[12:15, 1] = y[15, 2] = y[16, :2] = 1
    strata = Multilabel("abc").strata(y)
    assert np.bincount(strata).min() >= 2
    assert len(set(strata[:12].tolist())) == 1  # the only common set
    assert strata[12] != strata[0]


def test_the_task_travels_as_plain_values():
    task = Multilabel("ab", [0.2, 0.7], 50)
    assert task_from_dict(json.loads(json.dumps(task_to_dict(task)))) == task
    for name, value in (("thresholds", [0.2]), ("thresholds", [0.2, 2]), ("measured", -1), ("classes", ["a", "a"])):
        with pytest.raises(ValueError, match=r"thresholds are|measured is|different names"):
            task_from_dict({**task_to_dict(task), name: value})


def test_labels_of_other_data_are_matched():
    task = Multilabel("abc")
    translate, _ = task.align(Multilabel("ca"), "X")
    assert translate(np.array([[1, 0], [0, 1]])).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert task.align(Multilabel("012"), "X")[0] is None
    with pytest.raises(ValueError, match="X: the model does not know the labels d; it knows a, b, c"):
        task.align(Multilabel("cd"), "X")


# loss and answers


def test_the_loss_is_that_of_each_label():
    made = Multilabel("ab").criterion(Recipe(label_smoothing=0.0), torch.tensor([[1, 0], [0, 0]]))
    logits, labels = torch.tensor([[2.0, -1.0], [0.5, 0.0]]), torch.tensor([[1, 0], [0, 1]])
    expected = F.binary_cross_entropy_with_logits(logits, labels.float())
    assert made.loss(logits, made.prepare(labels)).item() == pytest.approx(expected.item())
    assert made.validation_loss(logits, labels).item() == pytest.approx(expected.item())


def test_smoothing_keeps_the_share_of_every_label():
    population = torch.tensor([[1, 0], [0, 0], [0, 0], [0, 1]])
    made = Multilabel("ab").criterion(Recipe(label_smoothing=0.2), population)
    prepared = made.prepare(population)
    torch.testing.assert_close(prepared.mean(0), population.float().mean(0))
    assert prepared[0].tolist() == pytest.approx([0.8 + 0.05, 0.05])


@pytest.mark.parametrize(("weights", "expected"), [("balanced", [3.0, 1.0]), ((2.0, 5.0), [2.0, 5.0])])
def test_class_weights_weigh_the_examples_with_a_label(weights, expected):
    labels = torch.tensor([[1, 1], [0, 1], [0, 0], [0, 0]])
    made = Multilabel("ab").criterion(Recipe(class_weight=weights, label_smoothing=0.0), labels)
    assert made.weight.tolist() == expected
    plain = F.binary_cross_entropy_with_logits(torch.zeros(4, 2), labels.float(), reduction="none")
    weighed = plain * torch.where(labels > 0, torch.tensor(expected), 1.0)
    assert made.loss(torch.zeros(4, 2), made.prepare(labels)).item() == pytest.approx(weighed.mean().item())
    with pytest.raises(ValueError, match="class_weight has 3 numbers for 2 labels"):
        Multilabel("ab").criterion(Recipe(class_weight=(1.0, 2.0, 3.0)), labels)


def test_thresholds_have_the_highest_f1():
    truth = np.array([1, 1, 0, 1, 0, 0, 0, 0])
    probabilities = np.array([0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05])
    outputs = torch.from_numpy(probabilities).logit()[:, None]
    made = Multilabel("a").adjusted(outputs, torch.from_numpy(truth)[:, None])
    best = max(f1_score(truth, probabilities >= at) for at in np.linspace(0, 1, 201))
    assert made.thresholds[0] == pytest.approx(0.225)  # in the middle between two probabilities
    assert f1_score(truth, probabilities >= made.thresholds[0]) == best
    rare = Multilabel("a").adjusted(outputs, torch.tensor([[1]] + [[0]] * 7))
    assert rare.thresholds == (0.5,)  # a single example with the label decides nothing


def test_predictions_use_the_thresholds_of_the_task():
    (one,) = Multilabel("abc", [0.2, 0.5, 0.9]).predictions(np.array([[0.3, 0.4, 0.95]]), ["x"])
    assert one.labels == ("a", "c")
    assert one.row()[:3] == [("name", "x"), ("labels", "a;c"), ("a", 0.3)]
    assert one.to_dict()["labels"] == ["a", "c"]
    assert one.text().startswith("a;c  c 95.0 %")


def test_one_temperature_calibrates_every_label():
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.normal(size=(500, 4)) * 2)
    labels = torch.from_numpy(random.random((500, 4))) < logits.sigmoid()
    found = Multilabel("abcd").calibrate(4 * logits, labels.long())
    assert found.temperature == pytest.approx(4, rel=0.15)
    assert found.examples == 500


def test_ridge_of_labels_is_calibrated_by_leaving_one_out():
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.normal(size=(80, 200))).float()
    y = torch.stack([x[:, :8].sum(1) > 0, torch.from_numpy(random.random(80) < 0.1)], 1).long()
    found = ridge_of_labels(x, y)
    left_out = F.binary_cross_entropy_with_logits(found.left_out, y.double(), reduction="none").mean(0)
    assert found.facts["loss"] == pytest.approx(left_out.mean().item())
    chance = y[:, 1].double().mean()
    assert left_out[1] < 1.1 * F.binary_cross_entropy(chance.expand(80), y[:, 1].double()).item()
    assert left_out[0] < np.log(2)
    outputs = x @ found.weight.T + found.bias.float()
    assert ((outputs[:, 0] > 0) == (y[:, 0] > 0)).float().mean() > 0.8


# evaluation


def test_metrics_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    truth, p = (random.random((60, 4)) < (0.5, 0.3, 0.1, 0)).astype(int), random.random((60, 4))
    found = MultilabelEvaluation((*"abcd",), truth, p, (0.5, 0.4, 0.8, 0.99), tuple(map(str, range(60))))
    decided = p >= (0.5, 0.4, 0.8, 0.99)
    assert found.score == pytest.approx(average_precision_score(truth[:, :3], p[:, :3], average="macro"))
    assert found.f1_micro == pytest.approx(f1_score(truth, decided, average="micro"))
    occurring = (truth.any(0) | decided.any(0)).nonzero()[0]
    assert found.f1_macro == pytest.approx(
        f1_score(truth[:, occurring], decided[:, occurring], average="macro", zero_division=0)
    )
    assert found.subset_accuracy == subset_accuracy(truth, decided)
    assert found.hamming_loss == pytest.approx(hamming_loss(truth, decided))
    assert found.per_class[3].average_precision is None
    assert found.per_class[0].recall == pytest.approx(decided[truth[:, 0] > 0, 0].mean())
    assert "threshold" in found.table()
    assert sum(one.examples for one in found.reliability) == 240
    assert json.loads(json.dumps(found.to_dict()))["per_class"][1]["threshold"] == 0.4


def test_probabilities_that_are_none_are_refused():
    with pytest.raises(ValueError, match="must be numbers from 0 to 1, and those of 1 of 1 examples are not"):
        MultilabelEvaluation(("a",), np.zeros((1, 1)), np.full((1, 1), np.nan), (0.5,), ("x",))


# whole runs


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_run_from_beginning_to_end(tmp_path, shape, capsys):
    x, y = parts(shape=shape)
    np.savez(tmp_path / "data.npz", X=x, y=np.array(texts(y)))
    run = run_tiny(str(tmp_path / "data.npz"), tmp_path / "run", task="multilabel", **LEARN)
    assert run.evaluation.f1_micro > 0.9
    page = run.report.read_text()
    assert "mean average precision" in page
    assert "for the highest F1 on" in page
    assert json.loads((tmp_path / "run/results.json").read_text())["f1_micro"] == run.evaluation.f1_micro
    model = load_model(tmp_path / "run")
    assert model.task == run.model.task
    assert model.task.measured
    assert model.classes == ("a", "b", "c")
    again = model.evaluate(str(tmp_path / "data.npz"), **QUIET)
    assert again.numbers() == pytest.approx(run.evaluation.numbers(), rel=1e-4)
    npy(tmp_path / "one.npy", x[:1])
    (answer,) = model.predict(x[:1], **QUIET)
    for form in ("csv", "json"):
        assert command("predict", tmp_path / "run", tmp_path / "one.npy", "--format", form) == 0
        out = capsys.readouterr().out
        found = (
            ";".join(json.loads(out)[0]["labels"])
            if form == "json"
            else next(csv.DictReader(io.StringIO(out)))["labels"]
        )
        assert found == ";".join(answer.labels)
    embedded = model.embed((x, texts(y)), **QUIET)
    assert sorted(embedded.labels) == sorted(texts(y))
    assert embedded.score("linear").score > 0.9
    assert embedded.score("knn").score > 0.7


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, monkeypatch):
    from ndvit.training.module import TrainingModule

    step = TrainingModule.training_step

    def breaking(self, batch, batch_idx):
        if batch_idx == 5:
            raise RuntimeError("broken off")
        return step(self, batch, batch_idx)

    options = {"task": "multilabel", "steps": 8, "val_every": 2, "preset": "basic", "class_weight": "balanced"}
    monkeypatch.setattr(TrainingModule, "training_step", breaking)
    with pytest.raises(RuntimeError, match="broken off"):
        run_tiny(parts(40), tmp_path / "run", **options)
    monkeypatch.undo()
    broken = resume_quietly(tmp_path / "run", parts(40))
    whole = run_tiny(parts(40), tmp_path / "whole", **options)
    assert all(torch.equal(a, b) for a, b in zip(tensors(broken).values(), tensors(whole).values(), strict=True))


def test_the_closed_form_has_thresholds_by_leaving_one_out():
    request = Request(source=parts(), task="multilabel", preset="fast", progress=False, options=QUICK)
    trained = fit(plan(request), **QUIET)
    assert trained.model.task.measured == 96
    assert trained.fit.history[0]["train_mean_average_precision"] > 0.7


def test_a_committee_and_an_ensemble():
    trained = fit_tiny(parts(60), task="multilabel", **{**LEARN, "steps": 2}, model="signal_tiny", **QUICK)
    assert trained.model.evaluate(parts(60), split="all", **QUIET).score > 0.9
    both = fit_tiny(parts(40), task="multilabel", steps=2, members=2).model
    mean = np.mean([one.network(torch.zeros(1, 1, 32)).detach().numpy() for one in both.members], 0)
    np.testing.assert_allclose(both(torch.zeros(1, 1, 32)).detach().numpy(), mean, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("softmax", [False, True])
def test_an_export_answers_as_the_model(tmp_path, shape, softmax):
    from ndvit.model import load_exported

    x, y = parts(40, shape)
    model = fit_tiny((x, y), task="multilabel", steps=2, val_fraction=0.25).model
    model.export(tmp_path / "m.ts", format="torchscript", softmax=softmax, data=(x, y), mask=False)
    found = load_exported(tmp_path / "m.ts")
    np.testing.assert_allclose(found.predict_proba(x), model.predict_proba(x), atol=1e-5)
    assert [one.labels for one in found.predict(x, **QUIET)] == [one.labels for one in model.predict(x, **QUIET)]


def test_mixed_examples_have_a_share_of_both_sets_of_labels():
    planned = plan(Request(source=parts(40), task="multilabel", preset="basic", progress=False, options={"steps": 1}))
    made = planned.task.criterion(planned.recipe, torch.from_numpy(planned.data.train.targets))
    first, second = made.prepare(torch.tensor([[1, 0, 0]])), made.prepare(torch.tensor([[0, 1, 0]]))
    logits = torch.randn(1, 3)
    mixed = made.loss(logits, 0.25 * first + 0.75 * second)
    assert mixed.item() == pytest.approx((0.25 * made.loss(logits, first) + 0.75 * made.loss(logits, second)).item())


def test_a_folder_of_classes_is_one_label_each(tmp_path):
    x, _ = parts(8)
    for i, one in enumerate(x):
        npy(tmp_path / ("a;b" if i % 2 else "c") / f"{i}.npy", one)
    with pytest.warns(DataWarning, match="exactly one label"):
        source = load_source(str(tmp_path), task="multilabel", test_fraction=0)
    assert source.classes == ("a;b", "c")


# scikit-learn


@pytest.mark.parametrize("shape", [(32,), (1, 8, 8)], ids=["1-D", "2-D"])
@pytest.mark.parametrize(
    "kind",
    [np.asarray, sparse.csr_matrix, np.ndarray.tolist, lambda y: pd.DataFrame(y, columns=["a", "b", "c"])],
    ids=["array", "sparse", "list", "frame"],
)
def test_a_classifier_of_several_labels(tmp_path, shape, kind):
    x, y = parts(60, (1, *shape) if len(shape) == 1 else shape)
    x = x.reshape(60, *shape)
    options = {"embed_dim": 16, "depth": 1, "num_heads": 2, "mixup": 0.0, "crop": 1.0}
    classifier = ViTClassifier(
        "basic",
        model="vit_pico",
        steps=40,
        learning_rate=0.01,
        random_state=0,
        class_weight="balanced",
        options=options,
    )
    classifier.fit(x, kind(y))
    frame = hasattr(kind(y), "columns")
    assert classifier.classes_.tolist() == (["a", "b", "c"] if frame else [0, 1, 2])
    assert classifier.predict_proba(x).shape == (60, 3)
    assert classifier.predict(x).dtype == y.dtype
    assert f1_score(y, classifier.predict(x), average="micro") > 0.8
    classifier.save(tmp_path / "m.safetensors")
    loaded = ViTClassifier.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(loaded.predict(x), classifier.predict(x))
    assert loaded.classes_.tolist() == classifier.classes_.tolist()


def test_columns_that_are_no_labels_are_refused():
    with pytest.raises(ValueError, match=r"Unknown label type: y has 2 columns, .* a matrix of 0 and 1 is expected"):
        ViTClassifier().fit(parts(8)[0][:, 0], np.arange(16).reshape(8, 2))
