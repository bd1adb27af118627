"""Random convolutions against naive loops."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ndvit.config import ViTConfig
from ndvit.network import VisionTransformer, random_convolutions
from ndvit.network.random_convolutions import KERNELS, RandomConvolutions

SMALLEST = RandomConvolutions.smallest


def drawn(channels, length, features, x=None, mask=None, seed=0):
    """Random convolutions whose biases were drawn from x, by default from noise."""
    network = RandomConvolutions(channels, length, features, 2)
    x = torch.randn(3, channels, length) if x is None else x
    network.draw(x, mask, torch.Generator().manual_seed(seed))
    return network


def test_bands_are_read_as_means_of_neighbours_and_their_differences():
    network = RandomConvolutions(24, 30, 6 * SMALLEST, 2)
    network.bands = 12
    network.draw(torch.randn(3, 24, 30), None, torch.Generator().manual_seed(0))
    weights = network.chosen.flatten(0, 1)
    differences, signals = 0, set()
    for row in weights:
        read = row.nonzero()[:, 0]
        assert read[-1] - read[0] == len(read) - 1  # neighbours
        assert read[0] // 12 == read[-1] // 12  # of one signal
        assert row.max() == pytest.approx(1 / int((row > 0).sum()))
        assert (row < 0).sum() in (0, (row > 0).sum())
        differences += bool((row < 0).any())
        signals.add(int(read[0]) // 12)
    # a width w is drawn with probability log13((w + 1) / w), and 13 - 2 w of 13 - w places have bands beside them
    expected = 0.6 * sum(math.log((w + 1) / w, 13) * (13 - 2 * w) / (13 - w) for w in range(1, 7))
    assert differences / len(weights) == pytest.approx(expected, abs=0.06)  # three standard deviations
    assert signals == {0, 1}


def test_kernels_are_all_placements_of_three_twos_and_sum_to_zero():
    kernels = RandomConvolutions(1, 50, 1000, 2).kernels
    assert kernels.shape == (84, 9)
    assert kernels.sum(1).eq(0).all()
    assert {tuple(np.flatnonzero(k)) for k in (kernels == 2).numpy()} == set(itertools.combinations(range(9), 3))


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("length", [5, 40])
def test_features_are_shares_above_biases_where_observed(channels, length, gaps):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, channels, length, generator=generator)
    observed = torch.rand(4, length, generator=generator) > 0.2 if gaps else torch.ones(4, length, dtype=torch.bool)
    mask = observed if gaps else None
    network = drawn(channels, length, 6 * SMALLEST, x, mask, seed=2)
    features = network.features(x, mask)
    assert features.shape == (4, 6 * SMALLEST) == (4, network.head.in_features)
    expected, start, number = [], 0, 0
    both = observed[:, 1:] & observed[:, :-1]  # a difference is observed where both its ends are
    for values, seen, plan in zip((x, x[:, :, 1:] - x[:, :, :-1]), (observed, both), network.plans):
        assert sum(count for _, count in plan) == 6
        for dilation, count in plan:
            for i in range(count):
                for k in range(KERNELS):
                    weight = network.chosen[number, k, :, None] * network.kernels[k]
                    padded = F.conv1d(values, weight[None], padding=4 * dilation, dilation=dilation)[:, 0]
                    edge, width = 4 * dilation, values.shape[2]
                    part = slice(edge, width - edge) if i % 2 and width > 2 * edge else slice(None)
                    above = (padded > network.biases[start + i * KERNELS + k])[:, part] & seen[:, part]
                    expected.append(above.sum(1) / seen[:, part].sum(1).clamp(min=1))
            start += count * KERNELS
            number += 1
    assert torch.allclose(features, torch.stack(expected, 1), atol=1e-6)
    assert (0.3 if length == 40 else 0.2) < features.mean() < 0.7  # biases are quantiles of such outputs


def test_biases_are_quantiles_of_observed_values():
    x = torch.randn(6, 1, 400)
    mask = torch.zeros(6, 400, dtype=torch.bool)
    mask[:, :40] = True
    x[:, :, 40:] = x[:, :, 39:40]  # as a short signal is held
    networks = [drawn(1, 400, 20 * SMALLEST, x, observed) for observed in (None, mask)]
    # Most outputs of the whole signal are 0.
    assert (networks[0].biases.abs() < 1e-3).float().mean() > 0.5
    assert (networks[1].biases.abs() < 1e-3).float().mean() < 0.05
    assert drawn(1, 400, SMALLEST, x, torch.zeros_like(mask)).biases.isfinite().all()  # no observed value


def test_some_samples_of_long_signals_give_the_quantiles(monkeypatch):
    x = torch.randn(8, 2, 3000, generator=torch.Generator().manual_seed(0))
    whole = drawn(2, 3000, 4 * SMALLEST, x)
    monkeypatch.setattr(random_convolutions, "_MOST_PLACES", 500)
    part = drawn(2, 3000, 4 * SMALLEST, x)
    assert not torch.equal(whole.biases, part.biases)
    assert (whole.features(x) - part.features(x)).abs().max() < 0.12  # of 500 draws a share is known to .02


def test_features_of_signals_with_few_levels_do_not_depend_on_rounding():
    random = np.random.default_rng(0)
    steps = np.repeat(random.standard_normal((8, 1, 8)), 32, axis=2).astype(np.float32)
    x = torch.from_numpy(steps)
    network = drawn(1, 256, 10_000, x)
    features = network.features(x)
    # levels that differ in rounding only, and another order of the sums
    assert torch.equal(network.features(x * (1 + 2e-7)), features)
    assert torch.equal(network.features(x[:1]), features[:1])
    assert torch.equal(network.features(x.double()), features)


def test_dilations_span_the_signal():
    plan = dict(RandomConvolutions(1, 129, 20_000, 2).plans[0])
    assert min(plan) == 1
    assert max(plan) == 16  # nine taps, 16 apart, are 129 samples
    assert sum(plan.values()) == 20_000 // (2 * 84)


def test_channels_are_chosen_at_random_and_few():
    network = drawn(12, 30, 2000)
    counts = network.chosen.sum(2)
    assert counts.min() == 1
    assert counts.max() <= 9
    assert counts.float().mean() < 5
    assert network.chosen.sum((0, 1)).min() > 0  # every channel is seen by some kernel


def test_masked_values_are_not_counted():
    x = torch.randn(2, 1, 64)
    network = drawn(1, 64, 400, x)
    assert torch.allclose(network.features(x, torch.ones(2, 64, dtype=torch.bool)), network.features(x), atol=1e-6)
    mask = torch.ones(2, 64, dtype=torch.bool)
    mask[:, 40:] = False
    other = x.clone()
    # kernels of dilation d reach 4 d samples: the first features (dilation 1, on the signal) see 4 behind the end
    other[:, :, 44:] = 9
    count = network.plans[0][0][1] * KERNELS
    assert torch.equal(network.features(x, mask)[:, :KERNELS], network.features(other, mask)[:, :KERNELS])
    assert not torch.equal(network.features(x)[:, :count], network.features(other)[:, :count])


def test_outputs_are_zero_before_the_head_is_solved():
    assert RandomConvolutions(2, 20, 400, 4)(torch.randn(3, 2, 20)).eq(0).all()


def test_autocast_does_not_change_the_outputs():
    network, x = drawn(1, 40, 800), torch.randn(4, 1, 40)
    torch.nn.init.normal_(network.head.weight)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(x)
    assert outputs.dtype == torch.float32
    assert torch.equal(outputs, network(x))
    assert outputs.std() > 1


def test_a_copy_has_the_tensors_and_outputs_of_the_original():
    network, x = drawn(2, 40, 800), torch.randn(4, 2, 40)
    torch.nn.init.normal_(network.head.weight)
    copy = RandomConvolutions(2, 40, network.num_features, 2)  # the number is already rounded down
    copy.load_state_dict(network.state_dict())
    assert torch.equal(copy(x), network(x))
    assert not any(p.requires_grad for p in network.parameters())
    assert network.num_features == network.head.in_features == 4 * SMALLEST
    network.init_weights()
    new = RandomConvolutions(2, 40, 800, 2).state_dict()
    assert all(torch.equal(tensor, new[name]) for name, tensor in network.state_dict().items())


def test_it_draws_as_many_random_numbers_as_its_head():
    """Seeds give the same initial weights as before random convolutions were a network of their own."""
    config = ViTConfig(input_size=(40,), patch_size=4, in_channels=1, embed_dim=8, depth=1, num_heads=2, num_classes=3)
    weights = []
    for build in (lambda: RandomConvolutions(1, 40, 400, 3), lambda: torch.nn.Linear(2 * SMALLEST, 3)):
        torch.manual_seed(0)
        build()
        weights.append(VisionTransformer(config).head.weight)
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("length", "features", "message"),
    [
        (2, 400, "signals of at least 3 samples, got 2"),
        (40, 167, "at least 168, one for each of 84 kernels .* got 167"),
    ],
)
def test_impossible_sizes(length, features, message):
    with pytest.raises(ValueError, match=message):
        RandomConvolutions(1, length, features, 2)
