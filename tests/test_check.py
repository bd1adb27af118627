"""Checking data: findings, near copies, suspected label errors, and training on corrected labels."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import ndvit
from datafiles import picture, pictures
from ndvit.checking.contents import coarse_picture
from ndvit.checking.labels import Labelled, find_suspects
from ndvit.checking.near_copies import connected, near_copies
from ndvit.training.plan import Request, plan
from tinyruns import QUIET, TINY, command, toy

FLIPPED = (3, 14, 25, 36)


def flipped(n=60):
    """Waves of two frequencies in noise, of which four have the label of the other class."""
    y = np.arange(n) % 2
    random = np.random.default_rng(0)
    t = np.linspace(0, 1, 40)
    x = np.sin(2 * np.pi * (2 + 3 * y[:, None]) * t + random.uniform(0, 6, (n, 1))) + 0.3 * random.normal(size=(n, 40))
    labels = np.array(["slow", "quick"])[y]
    for i in FLIPPED:
        labels[i] = {"slow": "quick", "quick": "slow"}[labels[i]]
    return x.astype(np.float32), labels


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A source with four wrong labels, and the check of its labels."""
    folder = tmp_path_factory.mktemp("check")
    x, y = flipped()
    np.savez(folder / "waves.npz", X_train=x[:40], y_train=y[:40], X_test=x[40:], y_test=y[40:])
    found = ndvit.check(folder / "waves.npz", labels=True, folds=3, output=folder / "check", **QUIET)
    return folder, found


def findings(found, kind):
    return [finding for finding in found.findings if finding.kind == kind and finding.suspicious]


# ------------------------------------------------------------------------- data


def test_clean_data_has_status_0_and_its_counts_on_a_page_and_in_json(tmp_path, capsys):
    x, y = toy(24)
    np.savez(tmp_path / "a.npz", X=x, y=np.where(y, "<b>", "a"))
    assert command("check", tmp_path / "a.npz", "--output", tmp_path / "c") == 0
    stored = json.loads((tmp_path / "c" / "check.json").read_text())
    assert stored["status"] == 0
    assert stored["classes"] == {"<b>": {"train": 12}, "a": {"train": 12}}
    assert stored["shapes"] == {"2 channels × 16": {"train": 24}}
    page = (tmp_path / "c" / "check.html").read_text()
    assert "Nothing suspicious was found" in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "nothing suspicious found" in capsys.readouterr().out


def test_every_unreadable_file_is_listed_and_the_status_is_1(tmp_path):
    pictures(tmp_path / "a", count=4)
    for i in range(25):
        (tmp_path / "a" / "cat" / f"bad{i:02}.png").write_bytes(b"no picture")
    assert command("check", tmp_path / "a", "--output", tmp_path / "c") == 1
    stored = json.loads((tmp_path / "c" / "check.json").read_text())
    (listed,) = [finding["items"] for finding in stored["findings"] if finding["kind"] == "left out"]
    assert listed == [f"cat/bad{i:02}.png: is not a picture, or has a format that PIL cannot read" for i in range(25)]
    assert stored["examples"] == {"train": 8}


def test_data_that_cannot_be_read_have_status_2_and_no_page(tmp_path):
    assert command("check", tmp_path / "absent", "--output", tmp_path / "c") == 2
    (tmp_path / "mixed" / "a").mkdir(parents=True)
    assert command("check", tmp_path / "mixed", "--output", tmp_path / "c") == 2
    assert not (tmp_path / "c").exists()


def test_doubts_are_findings_and_no_warnings(tmp_path):
    x, y = toy(24)
    source = (x, y, np.concatenate([x[:3], x[3:10] + 1]), y[:10])
    found = ndvit.check(source, output=tmp_path / "c", **QUIET)  # pytest would raise a DataWarning
    (doubt,) = findings(found, "doubt")
    assert doubt.text.startswith("3 of 10 test examples are exact copies of training examples")
    assert found.status == 1
    assert ("X_test[0] (test)", "X_train[0] (train)") in found.copies


def test_a_class_with_one_example_is_found_before_a_split_fails(tmp_path):
    x, y = toy(21)
    found = ndvit.check((x, [*y[:20].tolist(), 7]), output=tmp_path / "c", **QUIET)
    assert findings(found, "class")[0].items == ("7",)


def test_channels_that_are_constant_everywhere_or_in_some_examples_are_found(tmp_path):
    x, y = toy(24, shape=(3, 16))
    x[:, 2] = 5
    x[4, 1] = 0
    found = ndvit.check((x, y), output=tmp_path / "c", **QUIET)
    assert [finding.items for finding in findings(found, "constant")] == [("channel 3",), ("X[4]: channel 2",)]


def test_values_in_another_unit_are_found(tmp_path):
    x, y = toy(24)
    x[5] *= 1e4
    found = ndvit.check((x, y), output=tmp_path / "c", **QUIET)
    assert findings(found, "values")[0].items[0].startswith("X[5]:")


def test_a_size_that_tells_the_class_is_found(tmp_path):
    for i in range(10):
        picture(tmp_path / "a" / "cat" / f"{i}.png", (i * 20, 90, 10), size=(12, 10))
        picture(tmp_path / "a" / "dog" / f"{i}.png", (i * 20, 9, 210), size=(16, 10))
    found = ndvit.check(tmp_path / "a", output=tmp_path / "c", **QUIET)
    assert findings(found, "shape")[0].items == (
        "12 × 10 pixels, RGB: cat (10)",
        "16 × 10 pixels, RGB: dog (10)",
    )


def test_groups_that_nobody_named_are_a_finding(tmp_path):
    for i in range(24):
        path = tmp_path / "a" / ("x", "y")[i % 2] / f"anna{i % 3}_{i}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.random.default_rng(i).normal(size=20))
    found = ndvit.check(tmp_path / "a", output=tmp_path / "c", **QUIET)
    assert "--group-by 'path:{group}_*'" in findings(found, "doubt")[0].text
    named = ndvit.check(tmp_path / "a", group_by="path:{who}_*", output=tmp_path / "d", **QUIET)
    assert named.status == 0


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks_are_checked_too(tmp_path, task):
    x, _ = toy(24)
    y = np.random.default_rng(0).integers(0, 2, (24, 3)) if task == "multilabel" else np.linspace(0, 1, 24)
    y[:3] = 1
    x[20] = x[3] * 2 + 1
    found = ndvit.check((x, y), task=task, output=tmp_path / "c", **QUIET)
    assert [finding.kind for finding in found.findings if finding.suspicious] == ["near copies"]
    assert found.classes == ({} if task == "regression" else {str(i): {"train": int(y[:, i].sum())} for i in range(3)})


def test_a_model_of_other_data_answers_all_examples(checked, tmp_path):
    folder, _ = checked
    x, y = flipped(40)
    run = folder / "check/crossvalidation/folds/0"
    again = ndvit.check((x, y), run=run, output=tmp_path / "c", language="zh", **QUIET)
    assert again.labelled == 40
    assert 'lang="zh-Hans"' in again.page.read_text()


def test_an_existing_folder_is_replaced_only_if_it_is_a_check(tmp_path):
    source = toy(24)
    ndvit.check(source, output=tmp_path / "c", **QUIET)
    with pytest.raises(FileExistsError, match="choose another output"):
        ndvit.check(source, output=tmp_path / "c", **QUIET)
    ndvit.check(source, output=tmp_path / "c", force=True, **QUIET)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").touch()
    with pytest.raises(FileExistsError, match="is no check"):
        ndvit.check(source, output=tmp_path / "mine", force=True, **QUIET)


# ------------------------------------------------------------------ near copies


@pytest.mark.parametrize("shape", [(2, 300), (3, 40, 56), (1, 14, 12, 10)])
def test_coarse_pictures_ignore_gain_offset_and_size_in_any_number_of_dimensions(shape):
    x = np.random.default_rng(0).normal(size=shape)
    coarse = coarse_picture(x, shape[0])
    assert np.linalg.norm(coarse) == pytest.approx(1, abs=1e-5)
    assert np.allclose(coarse_picture(5 * x + 3, shape[0]), coarse, atol=1e-5)
    larger = x
    for axis in range(1, x.ndim):
        larger = larger.repeat(2, axis=axis)
    assert np.allclose(coarse_picture(larger, shape[0]), coarse, atol=1e-5)
    assert not coarse_picture(np.full(shape, 3.0), shape[0]).any()


def test_a_picture_that_was_resized_and_saved_again_is_a_near_copy_across_splits(tmp_path):
    random = np.random.default_rng(0)
    for i in range(16):
        split, label = ("train", "test")[i >= 12], "ab"[i % 2]
        path = tmp_path / "a" / split / label / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = random.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((60, 60), Image.Resampling.BICUBIC).save(path)
    with Image.open(tmp_path / "a/train/a/2.png") as image:
        image.resize((48, 48)).save(tmp_path / "a/test/b/again.jpg", quality=60)
    found = ndvit.check(tmp_path / "a", output=tmp_path / "c", **QUIET)
    assert [pair[:2] for pair in found.near_copies] == [("train/a/2.png", "test/b/again.jpg")]
    across, conflicting = findings(found, "near copies")
    assert across.items == ("train/a/2.png (train) ~ test/b/again.jpg (test)",)
    assert conflicting.items[0].endswith(": a and b")


def test_data_that_are_all_alike_have_no_near_copies():
    beat, noise = np.sin(np.linspace(0, 6, 200)), 0.01 * np.random.default_rng(0).normal(size=(30, 200))
    beats = np.stack([coarse_picture(row[None], 1) for row in beat + noise])
    assert (beats @ beats.T).min() > 0.999
    assert not near_copies(beats, np.arange(30)[:, None])


def test_examples_of_one_recording_are_not_compared_and_copies_are_joined():
    values = np.random.default_rng(0).normal(size=(12, 50)).astype(np.float32)
    values[7] = values[2] + 1e-3
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    alone = np.arange(12)
    pairs = near_copies(values, np.stack([alone, alone], axis=1))
    assert [(pair.first, pair.second) for pair in pairs] == [(2, 7)]
    assert not near_copies(values, np.stack([alone, alone // 6 * 0], axis=1))
    joined = connected(np.array([0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10]), pairs)
    assert joined[2] == joined[3] == joined[7]
    assert len(set(joined.tolist())) == 10


# ----------------------------------------------------------------------- labels


def test_flipped_labels_are_suspected_first_and_drawn_beside_other_examples(checked):
    folder, found = checked
    names = [f"waves.npz:X_train[{i}]" for i in FLIPPED]
    with (folder / "check" / "suspects.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["name"] for row in rows[:4]) == sorted(names)
    assert all({row["label"], row["suggested"]} == {"slow", "quick"} for row in rows)
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores)
    assert scores[3] < 0.5
    page = (folder / "check" / "check.html").read_text()
    assert page.count("an example of quick") >= 4
    assert found.labelled == 60  # of both sets
    assert findings(found, "label")[0].items[0].startswith(rows[0]["name"])


def test_a_run_gives_the_suspects_without_training_again(checked, tmp_path):
    folder, found = checked
    again = ndvit.check(folder / "waves.npz", run=folder / "check/crossvalidation", output=tmp_path / "c", **QUIET)
    assert [one[:5] for one in again.suspects] == [one[:5] for one in found.suspects]
    with pytest.raises(ValueError, match="set one of them"):
        ndvit.check(folder / "waves.npz", run=folder, labels=True, **QUIET)


def test_corrected_labels_are_trained_on_by_the_command(checked, tmp_path):
    folder, _ = checked
    with (folder / "check" / "suspects.csv").open() as file:
        rows = list(csv.DictReader(file))
    rows[0]["label"], rows[1]["label"] = rows[0]["suggested"], ""
    with (tmp_path / "mine.csv").open("w") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows[:4])
    source = str(folder / "waves.npz")
    fit = ["--model", "vit_pico", "--embed-dim", "16", "--depth", "1", "--num-heads", "2", "--steps", "1"]
    labels = ["--label-file", str(tmp_path / "mine.csv"), "--drop-suspected", "--val-fraction", "0"]
    assert command("train", source, *fit, *labels, "--output", tmp_path / "run", "--no-progress") == 0
    with (tmp_path / "run" / "split.csv").open() as file:
        kept = [row["name"] for row in csv.DictReader(file)]
    assert rows[1]["name"] not in kept
    assert len(kept) == 59
    data = ndvit.load_source(source, label_file=str(tmp_path / "mine.csv"), drop_suspected=True)
    place = list(data.train.names).index(rows[0]["name"])
    assert data.classes[data.train.targets[place]] == rows[0]["suggested"]
    assert sorted(np.array(data.train.names)[data.train.weights == 0]) == sorted(row["name"] for row in rows[2:4])
    assert len(data.train.counted()) == 37
    assert data.train.counted().weights is None


def test_a_file_of_labels_must_fit_the_source(tmp_path):
    source = toy(12)
    path = tmp_path / "labels.csv"
    for text, message in (
        ("name,label\nX[0],x\n", r"line 2: no example of the source has the label 'x'; there are 0, 1"),
        ("name,label\nX[99],1\n", r"has 1 name that the source lacks \(X\[99\]\)"),
        ("name,class\nX[0],1\n", r"has the columns name, class, expected name and label"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            ndvit.load_source(source, label_file=str(path))
    with pytest.raises(ValueError, match="drop_suspected needs the file"):
        ndvit.load_source(source, drop_suspected=True)


def test_examples_that_are_dropped_are_no_inputs_of_a_training_but_stay_in_its_split(tmp_path):
    x, y = toy(24)
    (tmp_path / "labels.csv").write_text("name,label\nX[0],0\nX[1],1\n")
    data = ndvit.load_source((x, y), label_file=str(tmp_path / "labels.csv"), drop_suspected=True, test_fraction=0)
    options = {name: value for name, value in TINY.items() if name != "model"}
    planned = plan(Request(source=data, model=TINY["model"], options={**options, "val_fraction": 0.25}))
    train, val = planned.inputs()
    assert not {"X[0]", "X[1]"} & set(train.examples.names)
    assert {"X[0]", "X[1]"} <= {*planned.data.train.names, *planned.data.val.names}
    assert len(planned.data.train) + len(val.examples) == 24


def test_classes_without_any_label_are_suggested_too():
    probabilities = np.full((30, 3), 0.05)
    labels = np.arange(30) % 2
    probabilities[np.arange(30), labels] = 0.9
    probabilities[4] = [0.01, 0.02, 0.97]
    probabilities[5, :] = np.nan
    labelled = Labelled(tuple("abc"), list(map(str, range(30))), ["train"] * 30, labels, [""] * 30, probabilities, "")
    assert [(one.name, one.label, one.suggested) for one in find_suspects(labelled)] in ([], [("4", "a", "c")])


def test_labels_of_other_tasks_are_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="are found for classification, not for regression"):
        ndvit.check("absent", task="regression", labels=True, **QUIET)
