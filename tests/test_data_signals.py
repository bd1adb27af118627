"""Preprocessing of signals: padding, resampling, missing values and rates, in numbers, in any dimensions."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

from datafiles import npy, sound
from ndvit.data.examples import Examples, Recording
from ndvit.data.preprocess import fit_preprocess, preprocess_from_dict
from ndvit.data.preprocess.base import Moments
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.data.sources.files import header_of
from ndvit.data.sources.load import load_source
from ndvit.data.sources.sounds import read_audio

NAN = np.nan


def plain(size, channels=1, **more):
    """A preprocessing that changes no values, of signals of any length."""
    return SignalPreprocess(size, (0.0,) * channels, (1.0,) * channels, **{"any_length": True, **more})


def test_fit_standardises_each_channel():
    x = np.random.default_rng(0).normal([[3.0], [-100.0]], [[2.0], [10.0]], (50, 2, 40)).astype(np.float32)
    fitted = SignalPreprocess.fit(Examples(list(x)))
    assert fitted.size == (40,)
    assert fitted.resize == "pad"
    np.testing.assert_allclose(fitted.mean, x.mean(axis=(0, 2)), rtol=1e-5)
    np.testing.assert_allclose(fitted.std, x.std(axis=(0, 2)), rtol=1e-5)
    out = torch.stack([fitted(row) for row in x])
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.mean(dim=(0, 2)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(dim=(0, 2), unbiased=False), torch.ones(2), atol=1e-5, rtol=0)


def test_fit_ignores_missing_values_and_constant_channels():
    x = np.array([[[1, NAN, 3.0], [7, 7, 7], [NAN, NAN, NAN]]], dtype=np.float32)
    fitted = SignalPreprocess.fit(Examples(list(x)))
    assert fitted.mean == (2.0, 7.0, 0.0)
    assert fitted.std == (1.0, 1.0, 1.0)


def test_rounding_of_a_constant_is_not_blown_up():
    random = np.random.default_rng(0)
    rows = [np.stack([np.full(n, 0.1), random.normal(size=n)]).astype(np.float32) for n in (1000, 7)]
    fitted = SignalPreprocess.fit(Examples(rows))
    assert (fitted.std[0], fitted.unused_channels) == (1.0, (0,))


def test_moments_agree_with_numpy_in_any_order():
    random = np.random.default_rng(0)
    parts = [random.normal(1000, 3, (2, n)) for n in (3, 50, 1, 700)]
    moments = Moments(2)
    for part in parts:
        moments.add(part)
    whole = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(moments.mean(), whole.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(moments.std(), whole.std(axis=1), rtol=1e-9)


def test_fit_takes_the_longest_of_each_axis():
    rows = [np.zeros((1, 3, 9), np.float32), np.ones((1, 5, 4), np.float32)]
    assert SignalPreprocess.fit(Examples(rows)).size == (5, 9)


def test_fit_with_a_size_resamples():
    rows = [np.arange(n, dtype=np.float32)[None] for n in (5, 9)]
    fitted = SignalPreprocess.fit(Examples(rows), size=7)
    assert (fitted.size, fitted.resize) == ((7,), "resample")
    assert all(fitted.masked(row)[1] is None for row in rows)


def test_only_training_examples_are_fitted_on():
    x, y = np.ones((4, 1, 6), np.float32), [0, 1, 0, 1]
    x[::2] = 3
    source = load_source((x, y, 1000 * np.ones((2, 1, 9), np.float32), [0, 1]))
    fitted = fit_preprocess(source)
    assert (fitted.mean, fitted.std, fitted.size) == ((2.0,), (1.0,), (6,))


def test_short_examples_end_in_missing_values():
    x, mask = plain((6,), 2).masked(np.array([[1, 2, 3, 4], [5, 6, 7, 8]]))
    assert x.tolist() == [[1, 2, 3, 4, 4, 4], [5, 6, 7, 8, 8, 8]]  # edges hold the last value
    assert mask.tolist() == [True] * 4 + [False] * 2


def test_short_images_end_in_missing_values_on_both_axes():
    x, mask = plain((3, 4)).masked(np.array([[[1, 2], [3, 4]]]))
    assert x[0].tolist() == [[1, 2, 2, 2], [3, 4, 4, 4], [0, 0, 0, 0]]  # a line with nothing observed is the mean
    assert mask.tolist() == [[True, True, False, False]] * 2 + [[False] * 4]


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_any_number_of_axes(axes):
    shape = (7, 5, 6)[:axes]
    raw = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    raw[(slice(None), *[0] * axes)] = NAN
    for size in (shape, tuple(n + 2 for n in shape), tuple(n - 2 for n in shape)):
        for resize in ("pad", "resample"):
            x, mask = plain(size, 2, resize=resize).masked(raw)
            assert x.shape == (2, *size)
            assert torch.isfinite(x).all()
            assert mask is None or (mask.shape == size and mask.any() and not mask.all())


def test_missing_values_are_interpolated_and_masked():
    raw = np.array([[NAN, 1, NAN, NAN, 4, NAN], [NAN, 5, 5, NAN, 5, NAN]])
    x, mask = plain((6,), 2).masked(raw)
    assert x.tolist() == [[1, 1, 2, 3, 4, 4], [5, 5, 5, 5, 5, 5]]
    assert mask.tolist() == [False, True, True, False, True, False]


def test_an_unobserved_channel_is_the_training_mean():
    x, mask = SignalPreprocess((2,), (3.0, 10.0), (2.0, 5.0)).masked(np.array([[5.0, 7.0], [NAN, NAN]]))
    assert x.tolist() == [[1, 2], [0, 0]]
    assert mask is None  # the other channel is observed


def test_missing_values_in_two_dimensions():
    raw = np.array([[[1, NAN, 3], [NAN, NAN, NAN], [NAN, 8, NAN]]])
    x, mask = plain((3, 3)).masked(raw)
    assert x[0].tolist() == [[1, 2, 3], [0, 0, 0], [8, 8, 8]]
    assert mask.tolist() == [[True, False, True], [False] * 3, [False, True, False]]


def test_missing_values_are_no_zeros_after_resampling():
    raw = np.full((1, 100), 7.0)
    raw[0, 40:60] = NAN
    x, mask = plain((10,)).masked(raw)
    torch.testing.assert_close(x, torch.full((1, 10), 7.0))
    assert mask.tolist() == [True] * 4 + [False] * 2 + [True] * 4


def test_a_single_observed_value_survives_resampling():
    raw = np.full((1, 1000), NAN)
    raw[0, 503] = 2.0
    x, mask = plain((10,)).masked(raw)
    assert mask.tolist() == [i == 5 for i in range(10)]
    torch.testing.assert_close(x, torch.full((1, 10), 2.0))


def test_every_second_value_missing_is_observed_after_halving():
    raw = np.arange(20.0)
    raw[1::2] = NAN
    assert plain((10,)).masked(raw)[1] is None


def test_the_input_is_left_as_it_was():
    raw = np.array([[1, NAN, 3, 4]], dtype=np.float32)
    before = raw.copy()
    plain((8,)).masked(raw)
    plain((3,)).masked(raw)
    np.testing.assert_array_equal(raw, before)


@pytest.mark.parametrize("new", [1, 2, 33, 50, 64, 200])
def test_a_constant_stays_constant(new):
    x = plain((new,), resize="resample")(np.full(50, 3.0))
    torch.testing.assert_close(x, torch.full((1, new), 3.0))


def test_a_sine_keeps_its_shape():
    def wave(n):  # sampled at the centres of n equal intervals
        return np.sin(2 * np.pi * 3 * (np.arange(n) + 0.5) / n)

    for new in (100, 400):
        x = plain((new,), resize="resample")(wave(200))
        np.testing.assert_allclose(x[0, 5:-5], wave(new)[5:-5], atol=0.02)


def test_resampling_is_antialiased():
    x = plain((50,))(np.tile([1.0, -1.0], 200))  # the highest frequency there is
    assert x.abs().max() < 0.15


def test_resampling_numbers():
    assert plain((4,))(np.array([1.0, 1, 3, 3, 5, 5, 7, 7]))[0].tolist() == pytest.approx([1.25, 3, 5, 6.75], abs=0.1)
    assert plain((4,), resize="resample")(np.array([0.0, 4.0]))[0].tolist() == [0, 1, 3, 4]


def test_axes_are_separable_and_agree_with_torch():
    raw = np.random.default_rng(0).normal(size=(2, 12, 30)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(raw)[None], size=(5, 11), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(plain((5, 11), 2)(raw), expected, atol=1e-6, rtol=1e-5)
    column = plain((4, 1))(np.arange(8.0).reshape(1, 8, 1))  # torch itself is wrong on this one
    row = plain((1, 4))(np.arange(8.0).reshape(1, 1, 8))
    torch.testing.assert_close(column.flatten(), row.flatten())
    assert len(set(column.flatten().tolist())) == 4


def test_only_the_longer_axis_is_resampled():
    x, mask = plain((3, 4)).masked(np.arange(16.0).reshape(1, 2, 8))
    assert x.shape == (1, 3, 4)
    assert mask.tolist() == [[True] * 4, [True] * 4, [False] * 4]


def test_fits():
    preprocess = plain((10,), sample_rate=8000)
    assert preprocess.fits(np.zeros((1, 10)))
    assert preprocess.fits(np.zeros((1, 9)))
    assert not preprocess.fits(np.zeros((1, 11)))
    assert preprocess.fits(Recording(np.zeros((1, 20), np.float32), 16000.0))
    assert not preprocess.fits(Recording(np.zeros((1, 6), np.float32), 4000.0))
    assert not plain((4, 4)).fits(np.zeros((1, 4, 5)))


def test_one_axis_one_channel_takes_a_bare_row():
    assert plain((4,))(np.arange(4)).tolist() == [[0, 1, 2, 3]]
    assert plain((2, 2))(np.arange(4).reshape(2, 2)).shape == (1, 2, 2)


def test_call_wants_complete_examples():
    with pytest.raises(ValueError, match=r"2 of 6 positions are not observed.*use masked\(\)"):
        plain((6,))(np.arange(4.0))


BAD = {
    "infinite": (np.array([[1, np.inf, 3]]), "infinite values"),
    "overflow": (np.array([[1, 1e300, 3]]), "infinite values"),
    "nothing observed": (np.full((1, 3), NAN), "nothing is observed"),
    "channels": (np.zeros((2, 3)), "got 2 channels, expected 1.*choose or average"),
    "axes": (np.zeros((1, 3, 3)), r"shape \(1, 3, 3\), expected \(1 channels, 1 axis\)"),
    "empty": (np.zeros((1, 0)), "nothing empty"),
    "text": (np.array([["a", "b"]]), "the example has text"),
    "objects": (np.array([[{}, 1]]), "Python objects"),
    "ragged": ([[1, 2], [3]], "rows of different length"),
    "recording": (
        Recording(np.zeros((1, 3), np.float32), 8000.0),
        "got a recording at 8000 Hz, expected a plain array",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_examples(name):
    raw, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        plain((3,)).masked(raw)


FIELDS = {
    "no size": ({"size": ()}, "size must be whole numbers"),
    "size 0": ({"size": (0,)}, "size must be whole numbers"),
    "size 1.5": ({"size": (1.5,)}, "size must be whole numbers"),
    "std 0": ({"std": (0.0,)}, "std above 0"),
    "two means": ({"mean": (0.0, 1.0)}, "one number for each channel"),
    "resize": ({"resize": "crop"}, 'resize is "pad" or "resample"'),
    "rate": ({"sample_rate": -1.0}, "sample_rate must be above 0"),
    "a huge rate": ({"sample_rate": 1e12}, r"0.001 to 1e\+09 Hz\).* got 1000000000000.0"),
    "a rate that is no number": ({"sample_rate": NAN}, "got nan"),
    "a rate of text": ({"sample_rate": "8000"}, "got '8000'"),
    "mono": ({"mean": (0.0, 0.0), "std": (1.0, 1.0), "mono": True}, "mono means 1 channel"),
    "mono of text": ({"mono": "no"}, "mono must be true or false; got 'no'"),
    "a mean that is no number": ({"mean": (NAN,)}, "must be finite numbers .* mean=\\(nan,\\)"),
    "an infinite std": ({"std": (float("inf"),)}, "must be finite numbers"),
    "a tiny std": ({"std": (1e-320,)}, "that float32 holds"),
    "a huge std": ({"std": (1e300,)}, "that float32 holds"),
    "a bool": ({"mean": (True,)}, "must be finite numbers"),
    "text": ({"mean": ("0.5",)}, "must be finite numbers"),
    "a size of bools": ({"size": (True,)}, "size must be whole numbers"),
    "a huge size": ({"size": (2**31,)}, "more than 1,073,741,824 values"),
    "an absent channel": ({"unused_channels": (1,)}, "numbers from 0 to 0; got \\(1,\\)"),
    "no channel left": ({"unused_channels": (0,)}, "nothing would be read"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_bad_fields(name):
    fields, message = FIELDS[name]
    with pytest.raises(ValueError, match=message):
        SignalPreprocess(**{"size": (4,), "mean": (0.0,), "std": (1.0,)} | fields)


def test_fit_refuses_what_does_not_belong_together():
    mixed = Examples([np.zeros((1, 4), np.float32), np.zeros((2, 4), np.float32)])
    with pytest.raises(ValueError, match="same axes and channels"):
        SignalPreprocess.fit(mixed)
    with pytest.raises(ValueError, match=r"size \(4, 4\) has 2 axes, the examples have 1"):
        SignalPreprocess.fit(Examples([np.zeros((1, 4), np.float32)]), size=(4, 4))


@pytest.mark.parametrize(
    "preprocess",
    [
        SignalPreprocess((12,), (0.1, 1 / 3), (1.0, 0.7)),
        SignalPreprocess((3, 5), (1 / 7,), (np.pi,), resize="resample"),
        SignalPreprocess((40,), (0.0,), (0.2,), sample_rate=8000.0, mono=True),
    ],
    ids=["1-D", "2-D", "sound"],
)
@pytest.mark.parametrize("via", [json, yaml], ids=["json", "yaml"])
def test_round_trip(preprocess, via):
    written = preprocess.to_dict()
    text = json.dumps(written) if via is json else yaml.safe_dump(written)
    again = preprocess_from_dict(json.loads(text) if via is json else yaml.safe_load(text))
    assert again == preprocess
    grid = tuple(n - 1 for n in preprocess.size)
    raw = np.random.default_rng(0).normal(size=(preprocess.channels, *grid))
    (x, mask), (same, same_mask) = preprocess.masked(raw), again.masked(raw)
    assert torch.equal(x, same)
    assert (mask is None and same_mask is None) or torch.equal(mask, same_mask)


def test_from_dict_refuses_what_it_does_not_know():
    good = plain((4,)).to_dict()
    for change, message in [
        ({"kind": "video"}, "kind 'video' is unknown; expected one of signal, image"),
        ({"colour": 1}, "invalid signal preprocessing: .*unexpected keyword argument .colour"),
        ({"size": [0]}, "size must be whole numbers"),
        ({"mean": 3.0}, "need a list of one number for each channel"),
    ]:
        with pytest.raises(ValueError, match=message):
            preprocess_from_dict(good | change)
    with pytest.raises(ValueError, match=r"missing 2 required positional arguments: .mean. and .std"):
        preprocess_from_dict({"kind": "signal", "size": [4]})


def test_fields_of_numpy_become_plain_numbers():
    made = SignalPreprocess(tuple(np.array([3, 4])), np.zeros(2, np.float32).tolist(), tuple(np.ones(2, np.float32)))
    assert json.loads(json.dumps(made.to_dict()))["std"] == [1.0, 1.0]
    assert yaml.safe_dump(made.to_dict())


def test_replace():
    assert dataclasses.replace(plain((4,)), size=8).size == (8,)


# Sound


def test_sound_is_read_as_channels_by_time(tmp_path):
    values, rate = read_audio(sound(tmp_path / "a.wav", frames=100, channels=2, rate=11025))
    assert (values.shape, values.dtype, rate) == ((2, 100), np.float32, 11025.0)
    assert abs(values).max() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_headers_agree_with_the_files(tmp_path, suffix):
    path = str(sound(tmp_path / f"a{suffix}", frames=1234, channels=2))
    values, rate = read_audio(path)
    assert header_of(path) == ("signal", 2, values.shape[1:], rate) == ("signal", 2, (1234,), 8000.0)
    assert header_of(str(npy(tmp_path / "a.npy", np.zeros((3, 4, 5))))) == ("signal", 3, (4, 5), None)
    assert header_of(str(npy(tmp_path / "b.npy", np.zeros(7)))) == ("signal", 1, (7,), None)


def test_rate_is_the_commonest_and_size_the_longest_at_that_rate():
    lengths = [(80, 8e3), (50, 4e3), (90, 8e3), (400, 44.1e3)]
    rows = [Recording(np.arange(n, dtype=np.float32)[None], rate) for n, rate in lengths]
    fitted = SignalPreprocess.fit(Examples(rows))
    assert fitted.sample_rate == 8000
    assert fitted.size == (100,)  # 50 samples at 4 kHz; 400 at 44.1 kHz are only 73
    assert not fitted.mono


def test_another_rate_is_resampled():
    time, slow = np.arange(4000) / 16000, np.arange(2000) / 8000
    preprocess = plain((2000,), sample_rate=8000.0)
    x = preprocess(Recording(np.sin(2 * np.pi * 200 * time, dtype=np.float32)[None], 16000.0))
    np.testing.assert_allclose(x[0, 50:-50], np.sin(2 * np.pi * 200 * slow)[50:-50], atol=0.01)
    x = preprocess(Recording(np.full((1, 1000), 0.3, np.float32), 4000.0))
    torch.testing.assert_close(x, torch.full((1, 2000), 0.3), atol=1e-3, rtol=0)


def test_plain_arrays_are_at_the_models_rate():
    values = np.random.default_rng(0).normal(size=(1, 50)).astype(np.float32)
    preprocess = plain((50,), sample_rate=8000.0)
    assert torch.equal(preprocess(values), preprocess(Recording(values, 8000.0)))


def test_recordings_of_different_channels_are_averaged():
    one, two = np.full((1, 10), 1.0, np.float32), np.array([[0.0] * 10, [4.0] * 10], np.float32)
    fitted = SignalPreprocess.fit(Examples([Recording(one, 8e3), Recording(two, 8e3)]))
    assert (fitted.mono, fitted.channels, fitted.mean, fitted.std) == (True, 1, (1.5,), (0.5,))
    assert torch.equal(fitted(Recording(two, 8e3)), torch.ones(1, 10))
    stereo = SignalPreprocess.fit(Examples([Recording(two, 8e3), Recording(-two, 8e3)]))
    assert (stereo.mono, stereo.channels) == (False, 2)


def test_missing_samples_cannot_be_brought_to_another_rate():
    raw = Recording(np.array([[0.0, NAN, 1.0]], np.float32), 4000.0)
    with pytest.raises(ValueError, match="cannot be resampled; repair it first"):
        plain((6,), sample_rate=8000.0).masked(raw)
    assert plain((3,), sample_rate=4000.0).masked(raw)[1].tolist() == [True, False, True]


def test_many_files_are_sampled_for_the_mean_but_not_for_the_size(tmp_path, monkeypatch):
    from ndvit.data.preprocess import signals
    from ndvit.data.sources import files

    monkeypatch.setattr(signals, "_SAMPLE", 3)
    paths = [str(npy(tmp_path / f"{i}.npy", np.full(10 + i, float(i)))) for i in range(10)]
    read: list[str] = []

    def counting(path):
        read.append(path)
        return files.read_example(path)

    first = SignalPreprocess.fit(Examples(paths, read=counting))
    assert (len(read), first.size) == (3, (19,))
    assert first == SignalPreprocess.fit(Examples(paths, read=counting))


def test_no_warnings_on_the_way():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SignalPreprocess.fit(Examples([np.array([[NAN] * 5, [0, 1, 2, 3, NAN]], np.float32)]))


# channels without content


def dead(value, n=6):
    """Examples of two channels of which the second is constant."""
    random = np.random.default_rng(0)
    return [np.stack([random.normal(size=20), np.full(20, value)]).astype(np.float32) for _ in range(n)]


@pytest.mark.parametrize("value", [300.0, NAN], ids=["constant", "unobserved"])
def test_a_channel_without_content_holds_its_mean_whatever_comes(value):
    fitted = SignalPreprocess.fit(Examples(dead(value)))
    assert fitted.unused_channels == (1,)
    alive = dead(400.0)[0]
    alive[0, 15:] = NAN
    x, mask = fitted.masked(alive)
    assert (x[1] == 0).all()
    assert mask.tolist() == [True] * 15 + [False] * 5  # the unused channel, which is observed, does not count
    assert torch.equal(x, fitted.masked(np.where([[True], [False]], alive, NAN))[0])


def test_a_channel_that_is_constant_up_to_rounding_has_no_content():
    rows = dead(300.0)
    for row in rows:
        row[1, ::2] = np.nextafter(np.float32(300), np.float32(400))
    assert SignalPreprocess.fit(Examples(rows)).unused_channels == (1,)


def test_an_alarm_that_rings_once_has_content():
    rows = dead(0.0)
    rows[3][1, 4] = 1.0
    assert SignalPreprocess.fit(Examples(rows)).unused_channels == ()


def test_nothing_is_learned_from_constants():
    with pytest.raises(ValueError, match="all 2 channels are constant or never observed in the training set"):
        SignalPreprocess.fit(Examples([np.ones((2, 5), np.float32)] * 3))


def test_an_example_of_unused_channels_alone_is_not_observed():
    fitted = SignalPreprocess.fit(Examples(dead(300.0)))
    with pytest.raises(ValueError, match=r"nothing is observed in the channels that varied in training \(unused: 1\)"):
        fitted.masked(np.stack([np.full(20, NAN), np.ones(20)]).astype(np.float32))


def test_channels_that_come_alive_are_described():
    fitted = SignalPreprocess.fit(Examples(dead(300.0)))
    assert fitted.unlike_training(dead(300.0)) == []
    assert fitted.unlike_training(dead(301.0)) == [
        "channel 1 was constant or never observed in training, differs here, and is not used"
    ]


def test_fields_that_earlier_versions_do_not_know_are_left_out_at_their_defaults():
    assert "unused_channels" not in SignalPreprocess((4,), (0.0,), (1.0,)).to_dict()
    fitted = SignalPreprocess.fit(Examples(dead(300.0)))
    assert fitted.to_dict()["unused_channels"] == [1]
    assert preprocess_from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted


def test_the_view_is_the_input_in_the_units_of_the_example():
    preprocess = SignalPreprocess((4,), (10.0,), (2.0,), sample_rate=8.0)
    seen = preprocess.view(Recording(np.arange(8, dtype=np.float32)[None], 8.0))
    assert seen.rate == 4
    assert seen.values.shape == (1, 4)
    assert seen.values.mean() == pytest.approx(3.5, abs=0.01)
    short = SignalPreprocess((4,), (10.0,), (2.0,)).view(np.array([[1, 2, 3]], np.float32))
    np.testing.assert_allclose(short, [[1, 2, 3, NAN]])


def test_a_recording_does_not_grow_beyond_memory():
    with pytest.raises(ValueError, match="80,000 samples at 8 Hz would become 10,000,000,000,000 at"):
        plain((6,), sample_rate=1e9).masked(Recording(np.zeros((1, 80_000), np.float32), 8.0))
