"""Windows of recordings: cutting, splits, answers of recordings and of windows, and lengths that are refused."""

import json

import numpy as np
import pytest
import soundfile

import datafiles
from ndvit import cross_validate, load_model
from ndvit.config.reading import FileOptions, Span
from ndvit.data.examples import Examples, Place, Recording
from ndvit.data.preprocess.base import usual_length
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.data.sources.load import load_examples, load_source
from ndvit.data.windows import cut, usual_window
from ndvit.inference.recordings import WholeRecordings, mean_answers
from tinyruns import QUIET, TINY, command, run_tiny

ONE = np.arange(10, dtype=np.float32)[None]


def windows(examples, **options):
    return cut(examples, FileOptions(**options), "X")[0]


def spans(length, **options):
    found = windows(Examples([np.zeros((1, length), np.float32)]), **options)
    return [(place.start, place.stop) for place in found.places]


@pytest.mark.parametrize(
    ("written", "value", "unit"),
    [(1024, 1024, "samples"), ("1024", 1024, "samples"), ("2s", 2, "seconds"), ("250ms", 0.25, "seconds"),
     (" .5 s", 0.5, "seconds"), ("50%", 0.5, "share")],
)  # fmt: skip
def test_a_length_is_samples_seconds_or_a_share(written, value, unit):
    assert Span.parse(written) == (value, unit)


@pytest.mark.parametrize("written", [0, "0.5", -3, "2 hours", "101%", "0s", True, "1e3"])
def test_other_lengths_are_refused_where_the_options_are_made(written):
    with pytest.raises(ValueError, match=r"window must be samples \(1024\), seconds \(2s, 250ms\) or a share \(50%\)"):
        FileOptions(window=written)


def test_windows_stand_at_the_distance_of_the_hop():
    assert spans(10, window=4, hop=3) == [(0, 4), (3, 7), (6, 10)]


def test_the_last_window_ends_with_the_recording():
    assert spans(10, window=4) == [(0, 4), (4, 8), (6, 10)]


def test_samples_between_distant_windows_are_left_out_everywhere():
    assert spans(12, window=2, hop=5) == [(0, 2), (5, 7), (10, 12)]
    assert spans(13, window=2, hop=5) == [(0, 2), (5, 7), (10, 12)]


def test_a_hop_in_percent_is_a_share_of_the_window():
    assert spans(8, window="50%", hop="50%") == [(0, 4), (2, 6), (4, 8)]


def test_a_short_recording_is_one_window():
    assert spans(3, window=4) == [(0, 3)]


def test_windows_of_arrays_are_views():
    found = windows(Examples([ONE]), window=4)
    assert found[1].tolist() == [[4, 5, 6, 7]]
    assert np.shares_memory(found[1], ONE)


def test_windows_are_cut_along_the_last_axis_of_any_grid():
    found = windows(Examples([np.zeros((2, 3, 5, 8), np.float32)]), window=4)
    assert [x.shape for x in found] == [(2, 3, 5, 4)] * 2


def test_windows_have_target_group_and_name_of_their_recording():
    found = windows(Examples([ONE, ONE], [1, 0], ["a", "b"]), window=5)
    assert found.targets.tolist() == [1, 1, 0, 0]
    assert found.groups.tolist() == ["a", "a", "b", "b"]
    assert list(found.names) == ["a[0:5]", "a[5:10]", "b[0:5]", "b[5:10]"]


def test_groups_that_are_larger_than_a_recording_remain():
    found = windows(Examples([ONE, ONE], [1, 0], ["a", "b"], groups=["p", "p"]), window=5)
    assert found.groups.tolist() == ["p"] * 4
    assert [place.recording for place in found.subset([1, 2]).places] == ["a", "b"]


def test_seconds_follow_the_rate_of_each_recording():
    slow, fast = Recording(np.zeros((1, 100), np.float32), 50.0), Recording(np.zeros((1, 100), np.float32), 100.0)
    found = windows(Examples([slow, fast], names=["slow", "fast"]), window="1s", hop="500ms")
    assert [place.stop - place.start for place in found.places] == [50, 50, 50, 100]
    assert list(found.names) == ["slow[0s:1s]", "slow[0.5s:1.5s]", "slow[1s:2s]", "fast[0s:1s]"]


def test_seconds_without_a_rate_are_refused():
    with pytest.raises(ValueError, match=r"needs a sample rate, and \[0\] has none: write samples \(--window 1024"):
        windows(Examples([ONE]), window="2s")


def test_a_hop_alone_is_refused():
    with pytest.raises(ValueError, match="there are none: set window"):
        windows(Examples([ONE]), hop=2)


def test_pictures_have_no_windows(tmp_path):
    with pytest.raises(ValueError, match="window 4 is for signals, and these are pictures"):
        load_source(datafiles.pictures(tmp_path), progress=False, window=4)


@pytest.mark.parametrize("suffix", [".wav", ".npy", ".npz"])
def test_windows_of_files_are_the_parts_of_what_is_read_whole(tmp_path, suffix):
    values = np.random.default_rng(0).normal(size=(2, 50)).clip(-3, 3).astype(np.float32) / 4
    path = tmp_path / f"a{suffix}"
    if suffix == ".wav":
        soundfile.write(path, values.T, 10, subtype="FLOAT")
    elif suffix == ".npy":
        np.save(path, values)
    else:
        np.savez(path, values=values)
    found = load_examples(path, window=20, hop=15).examples
    read = [x.values if isinstance(x, Recording) else x for x in found]
    for one, start in zip(read, (0, 15, 30), strict=True):
        np.testing.assert_array_equal(one, values[:, start : start + 20])


def test_channels_are_averaged(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.array([[0.5, 0.25], [-0.5, 0.0]]), 10, subtype="FLOAT")
    assert load_examples(path, mono=True).examples[0].values.tolist() == [[0.375, -0.25]]
    array = np.array([[[1, np.nan, np.nan], [3, 5, np.nan]]])
    np.testing.assert_array_equal(load_examples(array, mono=True).examples[0], [[2, 5, np.nan]])


def test_channels_of_sounds_and_arrays_are_chosen_by_number(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.array([[0.5, 0.25, 0.0], [-0.5, 0.0, 0.125]]), 10, subtype="FLOAT")
    assert load_examples(path, channels="2,0").examples[0].values.tolist() == [[0, 0.125], [0.5, -0.5]]
    assert load_examples(path, channels="1,0", mono=True).examples[0].values.tolist() == [[0.375, -0.25]]
    x = np.arange(12.0).reshape(2, 3, 2)
    assert load_examples(x, channels="1").examples[1].tolist() == [[8, 9]]
    assert load_source((x, [0, 1]), channels=("0", "2"), test_fraction=0).train[0].tolist() == [[0, 1], [4, 5]]


def test_channels_that_are_not_there_are_refused(tmp_path):
    path = datafiles.sound(tmp_path / "a.wav", channels=2)
    with pytest.raises(ValueError, match="channels 2 are not there; expected numbers from 0 to 1"):
        load_examples(path, channels="2")


def test_no_recording_is_on_two_sides(tmp_path):
    source = load_source(datafiles.arrays(tmp_path, count=6, shape=(40,)), progress=False, window=10)
    train, test = (set(part.groups) for part in (source.train, source.test))
    assert len(train) + len(test) == 12
    assert not train & test
    assert len(source.test) == 4 * len(test)
    assert "train: 12 recordings cut into 48 windows of 10 (10 samples)" not in source.notes
    assert "12 recordings cut into 48 windows of 10 (10 samples)" in source.notes


def test_answers_of_a_recording_are_the_mean_of_its_windows():
    places = [Place("a", 0, 1, None), Place("b", 0, 1, None), Place("a", 1, 2, None)]
    examples = Examples([0, 0, 0], places=places)
    names, answers = mean_answers(np.array([[0.2], [0.5], [0.6]]), examples)
    assert names == ["a", "b"]
    np.testing.assert_allclose(answers, [[0.4], [0.5]])


def test_recordings_are_joined_from_their_windows():
    found = WholeRecordings(windows(Examples([ONE, 2 * ONE], names=["a", "b"]), window=4, hop=3))
    assert len(found) == 2
    np.testing.assert_array_equal(found[1], 2 * ONE)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on windows of 16 of 64 samples, 16 recordings in two classes, and the folder of its data."""
    root = tmp_path_factory.mktemp("windows")
    data = datafiles.arrays(root / "data", count=8, shape=(64,))
    return run_tiny(str(data), root / "run", steps=2, window=16, hop=16), data


def test_a_run_evaluates_recordings_and_windows(run):
    trained, data = run
    evaluation = trained.evaluation
    assert (len(evaluation), len(evaluation.windows)) == (3, 12)
    results = json.loads((trained.folder / "results.json").read_text())
    assert (results["examples"], results["per_window"]["examples"]) == (3, 12)
    again = trained.model.evaluate(str(data), **QUIET)
    assert again.to_dict() == evaluation.to_dict()
    assert "per window (12)" in again.table()


def test_the_split_of_windows_names_recordings(run):
    trained, data = run
    lines = (trained.folder / "split.csv").read_text().splitlines()
    assert len(lines) == 17
    assert lines[0] == "name,split,group"
    again = load_source(str(data), progress=False, window=16, split_file=str(trained.folder / "split.csv"))
    assert len(again.test) == 12


def test_predictions_are_the_mean_of_the_windows(run):
    trained, data = run
    path = data / "a" / "0.npy"
    (whole,) = trained.model.predict(path, **QUIET)
    each = trained.model.predict(path, per_window=True, **QUIET)
    assert whole.name == str(path)
    assert [(one.name, one.start, one.end) for one in each] == [(str(path), 16 * i, 16 * i + 16) for i in range(4)]
    means = np.mean([list(one.probabilities.values()) for one in each], axis=0)
    np.testing.assert_allclose(list(whole.probabilities.values()), means, rtol=1e-5)
    np.testing.assert_allclose(trained.model.predict_proba(path, **QUIET)[0], means, rtol=1e-5)


def test_a_call_may_cut_otherwise(run):
    trained, data = run
    each = trained.model.predict(data / "a" / "0.npy", per_window=True, hop=24, **QUIET)
    assert [one.start for one in each] == [0, 24, 48]


def test_the_command_prints_the_track(run, capsys):
    trained, data = run
    assert command("predict", trained.folder, data / "a" / "0.npy", "--per-window", "--format", "csv") == 0
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:4] == ["name", "start", "end", "class"]
    assert [row[1:3] for row in rows[1:]] == [["0", "16"], ["16", "32"], ["32", "48"], ["48", "64"]]


def test_one_unfit_file_does_not_stop_the_others(run, tmp_path, capsys):
    trained, data = run
    bad, sound = (
        datafiles.npy(tmp_path / "bad.npy", np.full(64, np.inf)),
        datafiles.sound(tmp_path / "a.wav", frames=64),
    )
    np.savez(tmp_path / "2.npz", values=np.ones((2, 64)))
    files = [bad, data / "a" / "0.npy", tmp_path / "2.npz", sound, tmp_path / "missing.npy"]
    assert command("predict", trained.folder, *files) == 2
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == [str(data / "a" / "0.npy")]
    assert "bad.npy" in err
    assert "is a recording at 8000 Hz, and the training data have no sample rate" in err
    assert "has 2 channels, expected 1" in err
    assert "missing.npy: no such file" in err


def test_the_report_draws_answers_over_time(run):
    page = run[0].report.read_text()
    assert "Answers over time" in page
    assert page.partition("Answers over time")[2].partition("</figure>")[0].count("<svg") == 3
    assert "Per window: accuracy" in page


def test_a_run_of_windows_resumes_and_evaluates_like_a_whole_one(run):
    trained, _ = run
    assert load_model(trained.folder).provenance["reading"]["window"] == 16
    assert "window: 16" in (trained.folder / "config.yaml").read_text()


def test_folds_keep_recordings_together_and_have_both_results(tmp_path):
    x = np.random.default_rng(0).normal(size=(12, 64)).astype(np.float32)
    options = {**TINY, **QUIET, "steps": 1, "window": 16, "output": tmp_path / "cv"}
    result = cross_validate((x, np.arange(12) % 2), folds=2, **options)
    assert (len(result.evaluation), len(result.evaluation.windows)) == (12, 48)
    assert [row["examples"] for row in result.scores.rows] == [6, 6]
    assert {"accuracy", "accuracy_per_window"} <= set(result.scores.metrics)
    assert result.scores.examples == 12


# ------------------------------------------------------------------------------------------------- lengths


def plain(size=(10,), **options):
    return SignalPreprocess(size, (0.0,), (1.0,), **options)


def test_what_is_twice_as_long_is_resampled_and_more_is_refused():
    assert plain()(np.zeros((1, 20))).shape == (1, 10)
    with pytest.raises(
        ValueError, match=r"has 21 samples, 2\.1 times as many as the 10 .*--window 10.*--resample-long"
    ):
        plain()(np.zeros((1, 21)))
    assert plain(any_length=True)(np.zeros((1, 21))).shape == (1, 10)


def test_seconds_are_in_the_message_where_the_rate_is_known():
    with pytest.raises(ValueError, match=r"has 40 samples \(4 s\), 4 times"):
        plain(sample_rate=10.0)(Recording(np.zeros((1, 80), np.float32), 20.0))


def test_a_chosen_size_allows_what_the_training_had():
    fitted = SignalPreprocess.fit(Examples([np.random.default_rng(0).normal(size=(1, 50))]), size=10)
    assert fitted.longest == (50,)
    assert fitted(np.zeros((1, 100))).shape == (1, 10)
    with pytest.raises(ValueError, match=r"2\.02 times as many as the 50"):
        fitted(np.zeros((1, 101)))


def test_a_file_of_an_earlier_version_that_resamples_does_not_know_and_answers():
    assert plain(resize="resample")(np.zeros((1, 1000))).shape == (1, 10)


@pytest.mark.parametrize(("axes", "shape"), [(1, (1, 30)), (2, (1, 10, 30))])
def test_every_axis_has_the_bound(axes, shape):
    with pytest.raises(ValueError, match="has 30 samples, 3 times"):
        plain((10,) * axes)(np.zeros(shape))


def test_new_data_that_are_too_long_are_refused_by_name(run):
    trained, _ = run
    x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    with pytest.raises(ValueError, match=r"X\[0\]\[0:64\] \(and 2 more of 3 examples\) has 64 samples, 4 times"):
        trained.model.predict(x, window="100%", **QUIET)
    assert len(trained.model.predict(x, window="100%", resample_long=True, **QUIET)) == 3


def test_the_longest_example_decides_a_short_input_and_a_percentile_a_long_one():
    assert usual_length([100] * 19 + [4096]) == 4096
    assert usual_length([1000] * 99 + [5100]) == 3400
    assert usual_length([4000] * 99 + [5000]) == 4000


def test_a_few_very_long_recordings_call_for_windows():
    short, long = Recording(np.zeros((1, 3000), np.float32), 1000.0), Recording(np.zeros((1, 9000), np.float32), 1000.0)
    assert usual_window(Examples([short] * 99 + [long])) == "3s"
    assert usual_window(Examples([short] * 99)) is None
    assert usual_window(Examples([np.zeros((1, 5000))] * 99 + [np.zeros((1, 10_001))])) == 5000
    assert usual_window(Examples([np.zeros((1, 5000))] * 99 + [np.zeros((1, 10_000))])) is None
