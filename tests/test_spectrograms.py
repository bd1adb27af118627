"""Spectrograms: frames, bands and masks, their options, and the networks that read them."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from datafiles import sound
from ndvit import load_model
from ndvit.config.reading import ReadingOptions
from ndvit.config.recipe import Recipe
from ndvit.config.spectrogram import SpectrogramOptions
from ndvit.data.augment.batches import random_mask
from ndvit.data.examples import Examples, Recording
from ndvit.data.loading import Inputs
from ndvit.data.preprocess import find_unfit, preprocess_from_dict
from ndvit.data.preprocess.spectrograms import SpectrogramPreprocess, plan_frames
from ndvit.data.sources.files import header_of
from ndvit.evaluation.cards import draw_example
from ndvit.network.committee import solved_networks
from ndvit.tasks import Classification
from ndvit.training.closed_form import _head, _Known, solve_networks
from ndvit.training.fit import fit
from ndvit.training.plan import Request, plan
from tinyruns import QUIET, fit_tiny, run_tiny, toy

RATE = 8000.0


def sine(frequency, samples=4000, amplitude=1.0, rate=RATE):
    time = np.arange(samples) / rate
    return Recording((amplitude * np.sin(2 * np.pi * frequency * time))[None].astype(np.float32), rate)


def noise(n=6, channels=1, samples=1024):
    return np.random.default_rng(0).standard_normal((n, channels, samples)).astype(np.float32)


def fitted(examples, **options):
    options = {"spectrogram": "linear", "bands_as": "picture", **options}
    return SpectrogramPreprocess.fit(Examples(list(examples)), SpectrogramOptions(**options))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    for name, pitch in (("low", 300.0), ("high", 2000.0)):
        for i in range(6):
            sound(folder / name / f"{i}.wav", frames=1600 + 160 * i, pitch=pitch + 20 * i)
    return folder


@pytest.mark.parametrize("scale", ["mel", "linear"])
def test_a_sine_is_loudest_in_the_band_of_its_frequency(scale):
    preprocess = fitted([sine(440), sine(3000)], spectrogram=scale)
    for frequency in (440, 1000, 3000):
        seen = preprocess.view(sine(frequency))
        loudest = int(seen.values[0].mean(axis=1).argmax())
        assert abs(loudest - np.abs(seen.frequencies - frequency).argmin()) <= (scale == "mel")  # bins are 31 Hz apart


def test_decibels_count_from_a_sine_of_amplitude_1():
    preprocess = fitted(noise())
    wave = np.sin(2 * np.pi * np.arange(1024) / 8).astype(np.float32)[None]
    assert preprocess.view(10 * wave).values.max() == pytest.approx(preprocess.view(wave).values.max() + 20, abs=1e-3)
    assert preprocess.view(wave).values.max() == pytest.approx(0, abs=1)


def test_loudness_of_a_recording_does_not_matter():
    preprocess = fitted([sine(440), sine(3000)])
    assert torch.allclose(preprocess(sine(700)), preprocess(sine(700, amplitude=0.01)), atol=1e-4)


def test_mel_bands_are_equally_wide_in_mel():
    preprocess = fitted([sine(440), sine(3000)], spectrogram="mel")
    mel = 2595 * np.log10(1 + preprocess.frequencies / 700)
    assert np.allclose(np.diff(mel), 2595 * math.log10(1 + 4000 / 700) / 41)
    assert (preprocess.filters.sum(1) > 0.5).all()  # also where bands are narrower than the distance of two bins


def test_a_frame_is_around_the_middle_of_its_step():
    preprocess = fitted(noise(), frame=64, frame_step=64)
    click = np.zeros((1, 1024), np.float32)
    click[0, 5 * 64 + 32] = 1
    assert preprocess.view(click).values[0].max(axis=0).argmax() == 5
    assert preprocess.size == (32, 16)


def test_frames_beyond_the_end_are_masked():
    preprocess = fitted([sine(440), sine(3000)], frame=256, frame_step=100)
    x, mask = preprocess.masked(sine(500, samples=1050))
    assert x.shape == (1, 40, 40)
    assert mask.shape == (40, 40)
    assert mask[:, :11].all()
    assert not mask[:, 11:].any()
    with pytest.raises(ValueError, match="29 of 40 frames are not observed"):
        preprocess(sine(500, samples=1050))


def test_missing_values_at_the_end_are_a_shorter_signal():
    preprocess, values = fitted(noise()), noise()[0]
    short = preprocess.masked(values[:, :700])
    values[:, 700:] = np.nan
    for one, other in zip(short, preprocess.masked(values), strict=True):
        assert torch.equal(one, other)


def test_frames_without_observed_values_are_masked():
    preprocess, values = fitted(noise(), frame=64, frame_step=32), noise()[0]
    values[:, 320:400] = np.nan
    x, mask = preprocess.masked(values)
    assert (~mask[0]).nonzero().flatten().tolist() == [10, 11]  # 400 is in the middle of frame 12
    assert x.isfinite().all()


def test_nothing_observed_is_refused():
    with pytest.raises(ValueError, match=r"observed|missing"):
        fitted(noise()).masked(np.full((1, 1024), np.nan, np.float32))


def test_silence_is_finite_and_quiet():
    preprocess = fitted([sine(440), sine(3000)])
    x = preprocess(Recording(np.zeros((1, 4000), np.float32), RATE))
    assert x.isfinite().all()
    assert x.std() < 1e-6


def test_standardised_over_the_observed_frames_of_the_training_set():
    preprocess = fitted(noise(channels=2))
    x = torch.stack([preprocess(one) for one in noise(channels=2)])
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(2), atol=1e-4)
    assert torch.allclose(x.std((0, 2, 3)), torch.ones(2), atol=1e-3)


def test_bands_as_channels_are_standardised_each():
    preprocess = fitted(noise(channels=2), bands_as="channels", bands=8)
    x = torch.stack([preprocess(one) for one in noise(channels=2)])
    assert x.shape == (6, 16, 32)
    assert torch.allclose(x.mean((0, 2)), torch.zeros(16), atol=1e-4)
    picture = fitted(noise(channels=2), bands=8).view(noise(channels=2)[0])
    assert np.array_equal(preprocess.view(noise(channels=2)[0]).values, picture.values)


def test_a_constant_channel_is_not_used():
    values = noise(channels=2)
    values[:, 1] = 3
    assert fitted(values).unused_channels == (1,)
    assert fitted(values, bands_as="channels", bands=4).unused_channels == (4, 5, 6, 7)


def test_longer_signals_are_resampled_and_much_longer_ones_refused():
    preprocess = fitted(noise())
    assert preprocess(np.tile(noise()[0], 2)).shape == (1, 40, 32)
    assert not preprocess.fits(np.tile(noise()[0], 2))
    with pytest.raises(ValueError, match="3 times as many as the 1,024"):
        preprocess(np.tile(noise()[0], 3))
    assert preprocess.admitting(True)(np.tile(noise()[0], 3)).shape == (1, 40, 32)


def test_recordings_are_resampled_to_the_rate_of_training():
    preprocess = fitted([sine(440), sine(3000)])
    one, other = preprocess.view(sine(1000)).values, preprocess.view(sine(1000, 8000, rate=2 * RATE)).values
    assert one.shape == other.shape
    assert one[0].mean(axis=1).argmax() == other[0].mean(axis=1).argmax()


@pytest.mark.parametrize("bands_as", ["picture", "channels"])
def test_travels_as_a_dict(bands_as):
    preprocess = fitted([sine(440), sine(3000)], spectrogram="mel", bands_as=bands_as)
    stored = preprocess.to_dict()
    assert stored["kind"] == "spectrogram"
    assert preprocess_from_dict(stored) == preprocess


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 1000}, "step 1000 is longer than window 128"),
        ({"window": 0}, "window must be a whole number"),
        ({"scale": "mel"}, "mel needs a sample_rate"),
        ({"scale": "bark"}, "scale is mel or linear"),
        ({"inputs": 3}, "1 means do not fit 3 channels"),
        ({"bands_as": "channels"}, "need 1 axes"),
        ({"floor": math.nan}, "floor must be decibels"),
        ({"window": 2**30}, "do not fit into memory"),
        ({"silence": 3.0}, "silence must be decibels from 6 to 80"),
    ],
)
def test_damaged_files_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        preprocess_from_dict(fitted(noise()).to_dict() | change)


@pytest.mark.parametrize(
    ("rate", "length", "options", "expected"),
    [
        (8000, 10_504, {}, (256, 128)),
        (16_000, 16_000 * 20, {}, (2500, 1250)),
        (None, 1024, {}, (128, 32)),
        (None, 16, {}, (16, 4)),
        (8000, 8000, {"frame": "25ms", "frame_step": "10ms"}, (200, 80)),
        (None, 1024, {"frame": 100, "frame_step": "25%"}, (100, 25)),
    ],
)
def test_frames(rate, length, options, expected):
    assert plan_frames(SpectrogramOptions(**options), rate, length) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame": "20ms"}, "no sample rate"),
        ({"frame": "20%"}, "part of nothing"),
        ({"frame": 5000}, "the longest signal has 1,024"),
        ({"frame": 64, "frame_step": 65}, "at most a frame"),
        ({"spectrogram": "mel"}, "mel is a scale of Hz"),
    ],
)
def test_frames_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fitted(noise(), **options)


def test_silence_at_both_ends_and_speed_do_not_matter():
    preprocess = fitted([sine(440), sine(3000)], silence=30, frame=256, frame_step=128)
    alone = sine(700, samples=2560).values
    quiet = np.zeros((1, 1280), np.float32)
    within = np.concatenate([quiet, alone, quiet, quiet], axis=1)
    one, other, slow = (
        preprocess.masked(Recording(values, RATE)) for values in (alone, within, sine(700, samples=4000).values)
    )
    assert preprocess.size == (40, 32)
    assert (one[1], other[1], slow[1]) == (None, None, None)
    assert (one[0] - slow[0]).abs().mean() < 0.05
    assert (one[0] - other[0]).abs().mean() < 0.15  # a frame at each end that is partly silent
    whole = fitted([sine(440), sine(3000)], silence=0, frame=256, frame_step=128)
    assert whole.silence is None
    assert not whole.masked(Recording(alone, RATE))[1].all()


def test_noise_below_silence_does_not_matter():
    drawn = np.random.default_rng(0).standard_normal((1, 4000)).astype(np.float32)
    changes = []
    for silence in (30, 0):
        preprocess = fitted([sine(440), sine(3000)], silence=silence)
        clean, noisy = (preprocess.upright(Recording(sine(700).values + x * drawn, RATE)) for x in (0, 1e-2))
        changes.append(float(np.abs(clean - noisy).mean()))
        assert clean.min() == pytest.approx(-(silence or 80), abs=1e-3)
    assert changes[0] < 0.1  # dB
    assert changes[1] > 10


def test_a_recording_without_sound_is_kept_whole():
    preprocess = fitted([sine(440), sine(3000)], silence=30)
    x, mask = preprocess.masked(Recording(np.zeros((1, 4000), np.float32), RATE))
    assert mask is None
    assert x.isfinite().all()
    assert x.std() < 1e-6


def test_sound_files_are_solved_on_bands_without_silence(digits):
    planned = plan(Request(source=digits, progress=False, options={"rocket_features": 168}))
    assert planned.preset == "fast"
    assert planned.first.input_shape[0] == planned.preprocess.bands == 40
    assert planned.preprocess.silence == planned.recipe.silence == 30
    assert planned.preprocess.resize == "resample"
    assert any("--preset spectrogram" in note for note in planned.notes)
    assert any("cut off" in note and "--silence 0" in note for note in planned.notes)
    assert planned.recipe.speeds == (0.9, 1.1)
    kinds = [type(one).__name__ for one in solved_networks(planned.first.network)]
    assert kinds == ["RandomConvolutions", "EncoderFeatures"]  # no level, which depends on the microphone


def test_silence_is_kept_where_it_is_wanted(digits):
    planned = plan(Request(source=digits, progress=False, options={"rocket_features": 168, "silence": 0}))
    assert planned.preprocess.silence is None
    assert planned.preprocess.resize == "pad"
    assert not any("cut off" in note for note in planned.notes)
    assert planned.recipe.speeds is None


def test_sound_files_are_read_as_pictures_of_mel_by_networks(digits):
    planned = plan(Request(source=digits, progress=False, options={"steps": 1}))
    assert planned.preset == "spectrogram"
    assert planned.preprocess.scale == "mel"
    assert planned.first.input_shape[:2] == (1, planned.preprocess.bands)
    assert any("--spectrogram off" in note for note in planned.notes)
    assert planned.recipe.spectrogram == "mel"


def test_networks_of_signals_read_bands_as_channels(digits):
    planned = plan(Request(source=digits, preset="fast", progress=False, options={"rocket_features": 168}))
    assert planned.first.input_shape[0] == 40


def test_off_reads_waveforms(digits):
    planned = plan(Request(source=digits, progress=False, options={"spectrogram": "off"}))
    assert planned.preset == "fast"
    assert planned.preprocess.to_dict()["kind"] == "signal"


def test_arrays_are_read_as_they_are():
    x, y = toy(shape=(2, 256))
    assert plan(Request(source=(x, y), progress=False)).preprocess.to_dict()["kind"] == "signal"


def test_arrays_may_be_read_as_spectrograms():
    x, y = toy(shape=(2, 256))
    trained = fit_tiny((x, y), steps=2, spectrogram="linear", bands=16)
    assert trained.model.input_shape == (2, 16, 16)
    assert trained.model.predict_proba(x[:3]).shape == (3, 2)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 8, 8), {"spectrogram": "linear"}, "is for signals of one axis"),
        ((2, 64), {"bands": 8}, "would do nothing without a spectrogram"),
        ((2, 64), {"mask_bands": 0.2}, "mask_bands is for spectrograms"),
    ],
)
def test_options_for_other_data_are_refused(shape, options, message):
    with pytest.raises(ValueError, match=message):
        plan(Request(source=toy(shape=shape), model="vit_pico", progress=False, options=options))


@pytest.mark.parametrize("options", [{"bands_as": "picture"}, {"spectrogram": "off"}])
def test_speeds_that_would_do_nothing_are_refused(digits, options):
    with pytest.raises(ValueError, match=r"speeds (are for recordings|would do nothing)"):
        plan(Request(source=digits, preset="fast", progress=False, options={"speeds": (0.9,), **options}))


def test_a_recording_at_another_speed_has_another_pitch():
    faster = Examples([sine(1000)]).at_speed(1.25)
    preprocess = fitted([sine(500), sine(3000)])
    usual, fast = (preprocess.masked(one)[0][0, :, 5] for one in (sine(1250), faster[0]))
    assert usual.argmax() == fast.argmax() != preprocess.masked(sine(1000))[0][0, :, 5].argmax()
    assert preprocess.masked(faster[0])[1][0].sum() == pytest.approx(0.8 * preprocess.size[1], abs=1)


def test_copies_at_other_speeds_are_used_if_they_help(digits):
    planned = plan(Request(source=digits, progress=False, options={"rocket_features": 168, "encoder": False}))
    train, lines = Inputs(planned.data.train, planned.preprocess), []
    found = {}
    for speeds in ((1,), (0.9, 1.1), (0.5,)):
        network = planned.build(0).network
        recipe = replace(planned.recipe, speeds=speeds)
        (found[speeds],) = solve_networks(solved_networks(network), train, planned.task, recipe, lines.append)
        assert found[speeds].ridge.left_out.shape == (len(train), 2)
        assert found[speeds].ridge.facts["examples"] == len(train)
    one, two = (re.search(r"(helps|does not help).* loss ([\d.e-]+) -> ([\d.e-]+)$", line) for line in lines)
    assert "at 0.9 and 1.1 of their speed" in lines[0]
    for (verdict, before, after), speeds in ((one.groups(), (0.9, 1.1)), (two.groups(), (0.5,))):
        assert (verdict == "helps") == (float(after) < float(before))
        assert (found[speeds].ridge.facts["loss"] < found[1,].ridge.facts["loss"]) == (verdict == "helps")


def test_copies_are_left_out_with_their_example():
    """Labels are random: a solution that knows a copy of the example would answer all of them."""
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(30, 200, generator=generator), torch.randint(2, (30,), generator=generator)
    task, copies = Classification(("a", "b")), torch.cat([features, features + 0.01, features - 0.01])
    head = _head(copies, _Known(task, Recipe(), labels, labels, None, None), [])
    assert head.ridge.left_out.shape == (30, 2)
    assert head.ridge.facts["accuracy"] < 0.75
    assert head.ridge.facts["loss"] == pytest.approx(task.losses(head.ridge.left_out, labels).mean().item())


def test_sounds_that_are_too_many_for_copies_are_reported(digits, monkeypatch):
    monkeypatch.setattr("ndvit.training.closed_form.MOST_EXAMPLES", 15)
    planned = plan(Request(source=digits, progress=False, options={"rocket_features": 168, "encoder": False}))
    train, lines = Inputs(planned.data.train, planned.preprocess), []
    solve_networks(solved_networks(planned.build(0).network), train, planned.task, planned.recipe, lines.append)
    message = f"{len(train)} sounds of the training are read at their own speed only: at most 5 have copies"
    assert lines == [f"{message} at other speeds"]


def test_arrays_have_no_speed():
    with pytest.raises(ValueError, match="has no sample rate and cannot be read at another speed"):
        Examples([noise(1)[0]]).at_speed(0.9)[0]


def test_windows_of_sounds_are_explained_each_and_without_frequency_bands(digits):
    options = {"rocket_features": 168, "encoder": False, "speeds": (1,)}
    reading = ReadingOptions(window="100ms")
    model = fit(plan(Request(source=digits, progress=False, reading=reading, options=options)), **QUIET).model
    found = model.explain(str(digits / "low/0.wav"), window="100ms", log=lambda _: None)
    assert [one.name.rpartition("[")[2] for one in found] == ["0s:0.1s]", "0.1s:0.2s]"]
    with pytest.raises(ValueError, match="frequency bands exist for signals of one axis"):
        model.explain(str(digits / "low/0.wav"), bands=3, log=lambda _: None)


def test_a_run_predicts_the_same_from_its_file(digits, tmp_path):
    run = run_tiny(digits, tmp_path / "run", steps=2)
    files = sorted(map(str, digits.rglob("*.wav")))
    one, other = run.model.predict_proba(*files), load_model(run.folder).predict_proba(*files)
    assert np.array_equal(one, other)
    assert "spectrogram: mel" in (run.folder / "config.yaml").read_text()


def test_trained_weights_keep_their_spectrogram(digits, tmp_path):
    run = run_tiny(digits, tmp_path / "run", steps=1, bands=16, frame="20ms")
    planned = plan(Request(source=digits, weights=run.folder, progress=False))
    assert planned.preprocess.analysis == run.model.preprocess.analysis


def test_pictures_weights_read_spectrograms(digits):
    weights = fit_tiny(toy(shape=(3, 32, 32)), steps=1).model
    planned = plan(Request(source=digits, weights=weights, progress=False, options={"steps": 1}))
    assert planned.first.input_shape[0] == 1
    assert planned.preprocess.scale == "mel"


def test_the_graph_does_not_compute_the_spectrogram(digits, tmp_path):
    run = run_tiny(digits, tmp_path / "run", steps=1)
    with pytest.raises(ValueError, match="computed beside the graph"):
        run.model.export(tmp_path / "model.onnx", preprocess="inside")


def test_a_random_stretch_is_masked():
    x = random_mask(torch.ones(500, 2, 10, 20), 3, 0.5)
    hidden = (x == 0).all(2).all(1)
    assert torch.equal(hidden, (x == 0).any(2).any(1))  # whole columns
    assert hidden.sum(1).max() <= 11
    assert hidden.float().mean() == pytest.approx(0.25, abs=0.03)


@pytest.mark.usefixtures("_drawn")
def test_the_report_draws_seconds_and_hertz():
    preprocess = fitted([sine(440), sine(3000)], spectrogram="mel")
    figure, note = draw_example(sine(700), "a.wav", "f", preprocess.view)
    assert "time (s)" in figure
    assert "frequency (Hz)" in figure
    assert re.search(r"drawn as 40 bands up to 3,7\d\d Hz, 32 frames each 16 ms", note)


def test_a_sound_is_too_long_by_what_is_no_silence():
    preprocess = fitted([sine(440), sine(3000)], silence=30, frame=256, frame_step=128)
    word = sine(440).values
    late = Recording(np.concatenate([np.zeros((1, 12_000), np.float32), word], axis=1), RATE)
    longer = Recording(np.concatenate([word] * 3, axis=1), RATE)
    assert "4 times as many" in preprocess.too_long(header_of(late))  # a suspicion
    assert preprocess.too_long(late) is None
    assert find_unfit(Examples([late, longer]), preprocess).keys() == {1}
    one, other = (preprocess.masked(Recording(x.values, RATE))[0] for x in (late, Recording(word, RATE)))
    assert (one - other).abs().mean() < 0.15  # a frame at the beginning that is partly silent
    with pytest.raises(ValueError, match=r"has 1\.5.* s without the silence at its ends, over 2 times"):
        preprocess.masked(longer)
    preprocess.admitting(True).masked(longer)
