"""Synthetic signals and classification tasks of known difficulty."""

import numpy as np
import pytest

from ndvit.data.synthetic import FAMILIES, mix_channels, synthetic_signals, synthetic_tasks
from ndvit.data.synthetic.latents import Latents
from ndvit.data.synthetic.waves import coloured_noise, from_spectrum, generator, interpolate, normal, smooth, warped


def tasks(family=None, difficulty=0.2, *, count=4, classes=3, examples=6, length=64, seed=0):
    families = None if family is None else [family]
    return synthetic_tasks(
        count, classes, examples, length, seed=seed, difficulty=(difficulty, difficulty), families=families
    )


def accuracy(signals):
    """Mean accuracy of the nearest neighbour, each example of (tasks, classes, examples, length) left out once."""
    count, classes, examples, length = signals.shape
    labels = np.repeat(np.arange(classes), examples)
    right = []
    for x in signals.reshape(count, -1, length):
        similar = x @ x.T
        np.fill_diagonal(similar, -np.inf)
        right.append(labels[similar.argmax(1)] == labels)
    return np.mean(right)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_makes_finite_standardised_float32_signals(family):
    signals = tasks(family, count=6).signals
    assert signals.shape == (6, 3, 6, 64)
    assert signals.dtype == np.float32
    assert np.isfinite(signals).all()
    np.testing.assert_allclose(signals.mean(-1), 0, atol=0.05)  # clipping may move it
    np.testing.assert_allclose(signals.std(-1), 1, atol=0.05)
    assert np.abs(signals).max() <= 8


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_computes_in_float32(family):
    latents = Latents(generator(0), (2, 3, 4), 32, np.array([0.1, 0.2]))
    for _ in range(8):  # several of the ways that a family decides on
        signals = FAMILIES[family](latents)
        assert signals.dtype == np.float32
        assert signals.shape == (2, 3, 4, 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_classes_of_each_family_can_be_told_apart(family):
    easy = np.mean([accuracy(tasks(family, 0.05, seed=seed, count=12, length=128).signals) for seed in range(3)])
    assert easy > 0.4  # chance is a third


def test_a_seed_repeats_its_signals():
    one, same, other = (synthetic_signals(5, 64, seed=seed) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()
    one, same, other = (tasks(seed=seed) for seed in (1, 1, 2))
    assert (one.signals == same.signals).all()
    assert (one.difficulty == same.difficulty).all()
    assert one.families == same.families
    assert (one.signals != other.signals).any()


def test_a_generator_is_drawn_from():
    random = np.random.default_rng(0)
    first, second = (synthetic_signals(3, 32, seed=random) for _ in range(2))
    assert (first != second).any()
    random = np.random.default_rng(0)
    assert (synthetic_signals(3, 32, seed=random) == first).all()


def test_tasks_name_their_families_and_difficulties():
    made = synthetic_tasks(5, 2, 3, 32, difficulty=(0.1, 0.3), families=["chirps", "steps"])
    assert made.signals.shape == (5, 2, 3, 32)
    assert made.difficulty.shape == (5,)
    assert ((made.difficulty >= 0.1) & (made.difficulty <= 0.3)).all()
    assert len(made.families) == 5
    assert set(made.families) <= {"chirps", "steps"}


def test_all_families_are_drawn():
    assert set(synthetic_tasks(300, 1, 1, 16).families) == set(FAMILIES)


def test_harder_tasks_are_harder():
    levels = [0.02, 0.2, 1.0, 5.0]
    measured = [np.mean([accuracy(tasks(None, d, seed=s, count=20).signals) for s in range(4)]) for d in levels]
    assert measured == sorted(measured, reverse=True)
    assert measured[0] > measured[-1] + 0.1


@pytest.mark.parametrize(("count", "channels"), [(1, 1), (7, 1), (5, 3), (40, 2)])
def test_signals_have_counts_and_channels(count, channels):
    signals = synthetic_signals(count, 48, channels=channels)
    assert signals.shape == (count, channels, 48)
    assert signals.dtype == np.float32
    np.testing.assert_allclose(signals.std(-1), 1, atol=0.05)


def test_channels_share_their_sources():
    sources = synthetic_signals(30 * 3, 256, families=["spectra"]).reshape(30, 3, 256)
    mixed = mix_channels(sources, 4, seed=0)
    assert mixed.shape == (30, 4, 256)
    assert (mixed == mix_channels(sources, 4, seed=0)).all()
    similar = np.abs(np.einsum("nct,nst->ncs", mixed, sources) / 256).max(-1)
    assert np.median(similar) > 0.5  # one source of each channel outweighs the others
    between = np.einsum("nct,ndt->ncd", mixed, mixed)[:, *np.triu_indices(4, 1)] / 256
    assert np.abs(between).max(-1).mean() > 0.5  # two channels of most signals observe one source


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: synthetic_signals(1, 8), "length must be .* at least 16"),
        (lambda: synthetic_signals(0), "count must be .* at least 1"),
        (lambda: synthetic_signals(1, channels=0), "channels must be .* at least 1"),
        (lambda: synthetic_tasks(1, 0, 1), "classes must be .* at least 1"),
        (
            lambda: synthetic_tasks(1, 1, 1, families=["chirp"]),
            "unknown families chirp: choose from spectra, .*changes",
        ),
        (lambda: synthetic_tasks(1, 1, 1, families=[]), "families is empty: choose from"),
        (lambda: synthetic_tasks(1, 1, 1, difficulty=(0.5, 0.1)), r"range of positive numbers .* got \(0.5, 0.1\)"),
        (lambda: synthetic_tasks(1, 1, 1, difficulty=(0, 0.1)), "range of positive numbers"),
    ],
)
def test_wrong_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_normal_numbers_are_normal():
    x = normal(generator(1), (200_000,))
    assert x.dtype == np.float32
    np.testing.assert_allclose([x.mean(), x.std(), (x**4).mean()], [0, 1, 3], atol=0.05)
    np.testing.assert_allclose((np.abs(x) < 1.96).mean(), 0.95, atol=0.003)


def test_noise_has_the_slope_of_its_spectrum():
    x = coloured_noise(generator(0), (400,), 2.0, 256)
    power = (np.abs(np.fft.rfft(x * np.hanning(256))) ** 2).mean(0)
    slope = np.polyfit(np.log(np.arange(5, 60)), np.log(power[5:60]), 1)[0]
    np.testing.assert_allclose(slope, -2, atol=0.15)


def test_silent_frequencies_are_left_out_without_a_difference():
    amplitude = np.where(np.arange(128) < 20, 1, 0).astype(np.float32)
    short = from_spectrum(generator(0), (3,), amplitude, 128)
    amplitude[20:] = 1e-6
    assert (from_spectrum(generator(0), (3,), amplitude, 128) == short).all()
    assert np.abs(np.fft.rfft(short * np.hanning(128)))[:, 15:].max() < 0.1


@pytest.mark.parametrize("kind", ["gaussian", "matern", "periodic", "mixture"])
def test_smooth_functions_change_little_from_sample_to_sample(kind):
    x = smooth(generator(0), (4, 5), 256, kind)
    assert x.shape == (4, 5, 256)
    assert np.abs(np.diff(x)).mean() < 0.4


def test_interpolation_is_linear_and_holds_its_ends():
    x = np.array([0, 10, 20, 40], dtype=np.float32)
    place = np.array([-1, 0, 0.5, 5 / 6, 1, 2], dtype=np.float32)
    expected = [0, 0, 15, 30, 40, 40]
    np.testing.assert_allclose(interpolate(x, place), expected, atol=1e-4)
    np.testing.assert_allclose(interpolate(x[None], np.stack([place, place])), [expected, expected], atol=1e-4)


def test_warping_keeps_the_order_of_values():
    ramp = np.broadcast_to(np.linspace(0, 1, 50, dtype=np.float32), (6, 50))
    amount = np.full((6, 1), 0.3, dtype=np.float32)
    still = warped(generator(0), ramp, 0 * amount, 0 * amount)
    np.testing.assert_allclose(still, ramp, atol=1e-5)
    moved = warped(generator(0), ramp, amount, 0 * amount)
    assert (np.diff(moved) > 0).all()
    assert np.abs(moved - ramp).max() > 0.02
