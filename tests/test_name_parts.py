"""Parts of file names and folders that are labels or groups: suggestions, and doubts that an option settles."""

import warnings

import numpy as np
import pytest

from ndvit import DataWarning, load_source
from ndvit.config.bounds import counted
from ndvit.data.name_parts import group_hint, label_hint, parts_of_names

PUMPS = ("pump1", "pump2", "pump3")
MACHINES = [f"{machine}_{state}_{n}.csv" for machine in PUMPS for state in ("ok", "worn") for n in (0, 1)]
LABEL, GROUP = "--label 'path:*_{label}_*'", "--group-by 'path:{group}_*_*'"


def recordings(folder, where):
    """Recordings of one channel without a header, in folders that `where` makes of machine and state."""
    random = np.random.default_rng(0)
    for name in MACHINES:
        machine, state, _ = name.split("_")
        path = folder / where.format(machine=machine, state=state) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(path, random.normal(size=40), fmt="%.3f")
    return folder


def doubts(*arguments, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = load_source(*arguments, **options)
    return source, [str(one.message) for one in caught if issubclass(one.category, DataWarning)]


def test_counts_have_their_noun():
    assert [counted(n, "class", "classes") for n in (0, 1, 2)] == ["0 classes", "1 class", "2 classes"]
    assert counted(2000, "window") == "2,000 windows"


def test_parts_are_between_the_separators_that_all_names_share():
    machine, state, number = parts_of_names(["x/pump1-ok_0.csv", "x/pump2-worn_1.csv"])
    assert (machine.pattern, state.pattern, number.pattern) == ("{}-*_*", "*-{}_*", "*-*_{}")
    assert state.distinct == ["ok", "worn"]
    assert not parts_of_names(["a_b.csv", "a-b.csv"])
    assert not parts_of_names(["a.csv", "b.csv"])
    assert not parts_of_names(["_a.csv", "_b.csv"])


def test_hints_name_the_pattern():
    hint = label_hint(MACHINES)
    assert f"{LABEL} reads ok, worn, and {GROUP} keeps the files of each of pump1, pump2, pump3" in hint
    assert "pump1, pump2, pump3 / ok, worn / 0, 1" in hint
    assert group_hint(MACHINES) == f"{GROUP} groups these files by pump1, pump2, pump3"
    assert group_hint(MACHINES, labels=PUMPS).startswith("--group-by 'path:*_{group}_*'")
    assert label_hint([f"{digit}_{take}.wav" for digit in "01" for take in range(4)]).endswith("{label}_*' reads 0, 1")
    assert label_hint(["X[0]", "X[1]"]) == label_hint(["a_1.csv", "b_2.csv"]) == ""


def test_messages_suggest_the_pattern(tmp_path):
    flat = recordings(tmp_path / "flat", "")
    with pytest.raises(ValueError, match=r"has no labels.*\{label\}_\*' reads ok, worn"):
        load_source(flat)
    with pytest.raises(ValueError, match=r"does not fit the pattern of label.*\{label\}_\*' reads ok, worn"):
        load_source(flat, label="path:{state}_{n}")
    with pytest.raises(ValueError, match=r"no column or array 'machine'.*\{group\}_\*_\*' groups these files"):
        load_source(flat, label="path:*_{state}_*", group_by="machine")
    by_machine = recordings(tmp_path / "machines", "{machine}")
    with pytest.raises(ValueError, match=r"no group can be held out.*; the files' names.*\{label\}_\*' reads ok, worn"):
        load_source(by_machine, group_by="path:{machine}_*_*")


def test_notes_of_files_without_a_header_are_one(tmp_path):
    source, _ = doubts(recordings(tmp_path, "{state}"), group_by="path:{machine}_*_*")
    assert source.notes[:3] == (
        "the first line has numbers instead of names, so that the only column is called 0",
        "one recording: a row is a moment, 1 channel: 0; no column of labels, ids or times",
        "groups by path:{machine}_*_*: train 3 (pump1, pump2, pump3)",
    )
    assert "20% held out for testing (4 examples), 1 of 3 groups (pump" in source.notes[-1]


def test_folders_that_an_option_names_are_no_doubt(tmp_path):
    folder = recordings(tmp_path, "{machine}/{state}")
    _, found = doubts(folder, group_by=None)
    assert any("the folders inside have equal names" in text and "path:*/{label}/*" in text for text in found)
    source, found = doubts(folder, label="path:*/{state}/*", group_by="path:{machine}/*/*")
    assert (source.classes, found) == (("ok", "worn"), [])
    other = recordings(tmp_path / "other", "{state}/{machine}")
    assert not doubts(other, group_by="path:{machine}/*")[1]
    assert doubts(other, group_by="path:*_*_{n}")[1]  # names nothing of the folders


def test_folders_of_sessions_and_splits_need_no_classes_if_names_have_the_label(tmp_path):
    sessions = recordings(tmp_path / "a", "{machine}")
    for path in list(sessions.iterdir()):
        path.rename(sessions / path.name.replace("pump", "fold"))
    with pytest.raises(ValueError, match="look like splits or parts of the data"):
        load_source(sessions)
    source, _ = doubts(sessions, label="path:*_{state}_*", group_by="path:{session}/*")
    assert (source.classes, len(source.train) + len(source.test)) == (("ok", "worn"), 12)
    splits = recordings(tmp_path / "b", "train")
    (splits / "test").mkdir()
    for path in sorted((splits / "train").iterdir())[:4]:
        path.rename(splits / "test" / path.name)
    source, _ = doubts(splits, label="path:*_{state}_*")
    assert (len(source.train), len(source.test), source.classes) == (8, 4, ("ok", "worn"))
    with pytest.raises(ValueError, match=r"4 files but no class folders; .*reads ok, worn"):
        load_source(splits)
