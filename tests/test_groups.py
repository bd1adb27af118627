"""Groups of examples, such as speakers, stay on one side of every split; splits are written and reused."""

import csv

import numpy as np
import pytest

from datafiles import sound
from ndvit import load_model
from ndvit.config.reading import take_reading_options
from ndvit.data.examples import Examples
from ndvit.data.loading import ShuffledStream
from ndvit.data.messages import DataWarning
from ndvit.data.sources.load import load_source
from ndvit.data.splits import folds, hold_out
from ndvit.tasks import Classification
from ndvit.training.fit import fit
from ndvit.training.plan import Request, plan
from tinyruns import QUIET, TINY, command, resume_quietly, run_tiny, toy

SPEAKERS = ("anna", "bert", "carl", "dora", "emil")


@pytest.fixture
def digits(tmp_path):
    """Recordings named CLASS_SPEAKER_TAKE.wav: two classes, five speakers, four takes."""
    for label in ("one", "two"):
        for i, speaker in enumerate(SPEAKERS):
            for take in range(4):
                sound(tmp_path / "digits" / label / f"{label}_{speaker}_{take}.wav", pitch=300 + 50 * i + take)
    return tmp_path / "digits"


def examples(groups, labels, copies=None):
    return Examples(list(range(len(labels))), np.asarray(labels), copies=copies, groups=groups)


TWO = Classification(("a", "b"))


def test_no_group_is_on_two_sides_and_classes_keep_their_share():
    groups, labels = np.repeat([f"g{i}" for i in range(20)], 10), np.tile([0, 1], 100)
    kept, held = hold_out(examples(groups, labels), TWO, 0.2, seed=0)
    assert not set(groups[kept]) & set(groups[held])
    assert (len(held), labels[held].mean()) == (40, 0.5)
    assert hold_out(examples(groups, labels), TWO, 0.2, seed=0)[1].tolist() == held.tolist()
    assert hold_out(examples(groups, labels), TWO, 0.2, seed=1)[1].tolist() != held.tolist()


def test_a_group_with_all_examples_of_a_class_is_kept():
    groups = np.array(list("aabbccdd"))
    labels = [0, 1, 0, 0, 0, 0, 0, 0]
    for seed in range(8):
        kept, held = hold_out(examples(groups, labels), TWO, 0.25, seed=seed)
        assert "a" in set(groups[kept])
        assert len(held) == 2
    with pytest.raises(ValueError, match=r"because each has all examples of one class \(class a, class b\)"):
        hold_out(examples(np.array(list("aabb")), [0, 0, 1, 1]), TWO, 0.5, seed=0)
    with pytest.raises(ValueError, match="because there is a single one"):
        hold_out(examples(np.array(list("aaaa")), [0, 1, 0, 1]), TWO, 0.5, seed=0)


def test_a_large_share_of_groups_is_half_of_them():
    groups = np.array(list("aabbccdd"))
    kept, held = hold_out(examples(groups, [0, 1] * 4), TWO, 0.8, seed=0)
    assert (len(kept), len(held)) == (4, 4)


def test_copies_join_groups():
    groups = np.array(list("aabbccdd"))
    copies = np.array([0, 1, 1, 3, 4, 5, 6, 7])  # the second example of a is the first of b
    for seed in range(8):
        _, held = hold_out(examples(groups, [0, 1] * 4, copies), TWO, 0.5, seed=seed)
        assert len({"a", "b"} & set(groups[held])) != 1


def test_folds_cover_everything_once_and_divide_no_group():
    groups, labels = np.repeat([f"g{i}" for i in range(10)], 4), np.tile([0, 1], 20)
    found = folds(examples(groups, labels), TWO, 5, seed=0)
    assert sorted(np.concatenate(found)) == list(range(40))
    assert all(len(set(groups[fold])) == 2 for fold in found)
    with pytest.raises(ValueError, match="11 folds need at least as many groups, there are 10"):
        folds(examples(groups, labels), TWO, 11, seed=0)
    plain = folds(examples(None, labels), TWO, 4, seed=0)
    assert [labels[fold].mean() for fold in plain] == [0.5] * 4


@pytest.mark.parametrize("pattern", ["path:*_{speaker}_*", "path:*/*_{speaker}_*", "path:*_{speaker}_*.wav"])
def test_groups_are_parts_of_paths(digits, pattern):
    data = load_source(digits, group_by=pattern)
    assert set(data.train.groups) | set(data.test.groups) == set(SPEAKERS)
    assert len(set(data.test.groups)) == 1
    assert not set(data.train.groups) & set(data.test.groups)
    assert any("1 of 5 groups" in note for note in data.notes)


def test_groups_are_folders(digits):
    with pytest.raises(ValueError, match="no group can be held out"):
        load_source(digits, group_by="path:{label}/*")


@pytest.mark.filterwarnings("ignore::ndvit.DataWarning")
@pytest.mark.parametrize(
    ("group_by", "message"),
    [
        ("path:{speaker}_{take}", "the name 'one/one_anna_0.wav' does not fit the pattern"),
        ("path:*_*", "names no group: put it in braces"),
        ("speaker", r"has no column or array 'speaker' to group by; .* use path:PATTERN"),
    ],
)
def test_groups_that_cannot_be_found_are_refused(digits, group_by, message):
    with pytest.raises(ValueError, match=message):
        load_source(digits, group_by=group_by)


def test_a_part_of_names_that_looks_like_a_group_is_doubted(digits):
    with pytest.warns(DataWarning, match=r"may be a group \(anna, bert, carl and 2 more\).*path:\*_\{group\}_\*"):
        load_source(digits)


def listed(folder, rows, head="path,label,speaker"):
    (folder / "list.csv").write_text("\n".join([head, *rows]) + "\n")
    return folder / "list.csv"


def test_groups_are_a_column_of_a_list(digits):
    rows = [
        f"{path.relative_to(digits)},{path.parent.name},{path.stem.split('_')[1]}" for path in digits.rglob("*.wav")
    ]
    data = load_source(listed(digits, rows), group_by="speaker")
    assert [len(set(part.groups)) for part in (data.train, data.test)] == [4, 1]
    assert not any("not read" in note for note in data.notes)
    rows[3] = rows[3].rpartition(",")[0] + ","
    with pytest.raises(ValueError, match="1 example without speaker"):
        load_source(listed(digits, rows), group_by="speaker")


def test_groups_are_an_array(tmp_path):
    x, y = toy()
    groups = np.repeat(np.arange(10), 4)
    np.savez(tmp_path / "a.npz", X=x, y=y, patient=groups)
    for source in (tmp_path / "a.npz", {"X": x, "y": y, "patient": groups}):
        data = load_source(source, group_by="patient")
        assert len(set(data.train.groups)) + len(set(data.test.groups)) == 10
        assert len(data.test) == 8
    with pytest.raises(ValueError, match=r"patient has shape \(7,\); expected one value for each of the 40 examples"):
        load_source({"X": x, "y": y, "patient": groups[:7]}, group_by="patient")


def test_groups_in_two_splits_of_the_source_are_doubted():
    x, y = toy()
    arrays = {"X_train": x[:20], "y_train": y[:20], "X_test": x[20:], "y_test": y[20:]}
    arrays |= {"who_train": np.arange(20) // 4, "who_test": np.arange(20) // 4 + 4}
    with pytest.warns(DataWarning, match="1 groups are in the test set and in the train set of the source"):
        data = load_source(arrays, group_by="who")
    assert data.test.groups[0] == "4"


def test_a_run_keeps_groups_apart_and_its_split_can_be_reused(tmp_path):
    x, y = toy()
    np.savez(tmp_path / "a.npz", X=x, y=y, patient=np.repeat(np.arange(10), 4))
    run = run_tiny(tmp_path / "a.npz", tmp_path / "run", steps=1, group_by="patient", val_fraction=0.25)
    with (tmp_path / "run" / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    sides = {split: {row["group"] for row in rows if row["split"] == split} for split in ("train", "val", "test")}
    assert [len(sides[split]) for split in ("train", "val", "test")] == [6, 2, 2]
    assert len(set.union(*sides.values())) == 10
    model = load_model(run.folder)
    again = model.evaluate(tmp_path / "a.npz", progress=False, log=lambda line: None)
    assert again.score == run.evaluation.score
    split = str(tmp_path / "run" / "split.csv")
    other = run_tiny(tmp_path / "a.npz", tmp_path / "other", steps=1, seed=5, split_file=split)
    with (tmp_path / "other" / "split.csv").open() as file:
        assert [(row["name"], row["split"]) for row in csv.DictReader(file)] == [(r["name"], r["split"]) for r in rows]
    with pytest.raises(ValueError, match="trained with a split file, which it does not hold: pass it again"):
        load_model(other.folder).evaluate(tmp_path / "a.npz")
    assert len(load_model(other.folder).evaluate(tmp_path / "a.npz", split_file=split, **QUIET).names) == 8


def test_an_interrupted_run_by_groups_resumes(tmp_path):
    x, y = toy()
    np.savez(tmp_path / "a.npz", X=x, y=y, patient=np.repeat(np.arange(10), 4))
    options = {"steps": 2, "group_by": "patient", "val_every": 1}
    whole = run_tiny(tmp_path / "a.npz", tmp_path / "whole", **options)
    run_tiny(tmp_path / "a.npz", tmp_path / "broken", **options)
    for name in ("model.safetensors", "report.html"):
        (tmp_path / "broken" / name).unlink()
    resumed = resume_quietly(tmp_path / "broken")
    assert resumed.evaluation.score == whole.evaluation.score


def test_a_split_file_must_name_every_example(tmp_path):
    x, y = toy(n=6)
    (tmp_path / "s.csv").write_text("name,split\nX[0],train\nX[1],test\nX[9],test\n")
    with pytest.raises(ValueError, match=r"lacks 4 examples of the source .* names 1 example that the source lacks"):
        load_source((x, y), split_file=str(tmp_path / "s.csv"))
    (tmp_path / "s.csv").write_text("name,split\nX[0],often\n")
    with pytest.raises(ValueError, match="line 2: split is 'often'; expected train, val or test"):
        load_source((x, y), split_file=str(tmp_path / "s.csv"))
    (tmp_path / "s.csv").write_text("file;split\n")
    with pytest.raises(ValueError, match="has the columns file;split, expected name and split"):
        load_source((x, y), split_file=str(tmp_path / "s.csv"))


def test_the_command_takes_groups(tmp_path, capsys):
    x, y = toy()
    np.savez(tmp_path / "a.npz", X=x, y=y, patient=np.repeat(np.arange(10), 4))
    flags = ["--model", TINY["model"], "--steps", 1, "--group-by", "patient", "--dry-run"]
    assert command("train", tmp_path / "a.npz", *flags) == 0
    assert "8 of 10" not in capsys.readouterr().out


def test_weighted_examples_are_drawn_in_proportion():
    weights = np.array([0.0, 0.5, 1.5, 2.0, 1.0])
    stream = ShuffledStream(5, 5, 400, seed=0, weights=weights)
    passes = [np.bincount(batch, minlength=5) for batch in stream]
    counts = np.sum(passes, axis=0)
    assert counts[0] == 0
    assert counts / 400 == pytest.approx(weights, abs=0.05)
    assert all(row[3] == 2 and row[4] == 1 and row[1] in (0, 1) and row[2] in (1, 2) for row in passes)
    assert next(iter(ShuffledStream(5, 5, 400, seed=0, start=7, weights=weights))) == list(stream)[7]
    equal = [sorted(batch) for batch in ShuffledStream(5, 5, 9, seed=0, weights=np.ones(5))]
    assert equal == [[0, 1, 2, 3, 4]] * 9


def test_weights_count_in_closed_form():
    x, y = toy(n=30, shape=(1, 32), shift=0.05)
    weights = np.where(np.arange(30) < 6, 2.0, 1.0)

    def answers(source, **options):
        reading, _ = take_reading_options({"test_fraction": 0, **options})
        solved = {"rocket_features": 168, "encoder": False}
        planned = plan(Request(source=source, preset="fast", reading=reading, options=solved, progress=False))
        return fit(planned, **QUIET).model.predict_proba(x)

    plain, source = answers((x, y)), {"X": x, "y": y}
    weighted = answers({**source, "w": weights}, sample_weight="w")
    assert not np.allclose(weighted, plain, atol=1e-3)
    equal = answers({**source, "w": np.full(30, 7.0)}, sample_weight="w")
    assert np.allclose(equal, plain, atol=1e-6)


@pytest.mark.parametrize("weights", [[-1.0] * 40, [0.0] * 40, [np.nan] * 40, ["a"] * 40])
def test_weights_that_mean_nothing_are_refused(weights):
    x, y = toy()
    with pytest.raises(ValueError, match="weights in w must be finite numbers, none below zero and some above zero"):
        load_source({"X": x, "y": y, "w": weights}, sample_weight="w")


def test_a_plan_writes_the_split_that_a_run_reads(tmp_path, capsys):
    x, y = toy()
    np.savez(tmp_path / "a.npz", X=x, y=y)
    split = tmp_path / "split.csv"
    flags = ["--model", TINY["model"], "--steps", 1, "--no-progress"]
    assert command("train", tmp_path / "a.npz", *flags, "--seed", 3, "--write-split", split, "--dry-run") == 0
    assert f"the split is in {split}" in " ".join(capsys.readouterr().out.split())
    first = load_source(tmp_path / "a.npz", seed=3)
    again = load_source(tmp_path / "a.npz", split_file=str(split))
    assert again.test.names == first.test.names
    assert command("train", tmp_path / "a.npz", *flags, "--write-split", split) == 2
    assert "split.csv" in capsys.readouterr().err
