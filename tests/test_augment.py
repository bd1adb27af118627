"""Augmentation in one, two and three dimensions: what it does to values, masks and targets, in numbers."""

import pytest
import torch

from ndvit.data.augment.batches import (
    _beta,
    _warped,
    channel_drop,
    cutmix,
    mixup,
    random_crop_resize,
    random_erase,
    random_flip,
    random_noise,
    random_scale,
)

SIZES = [(12,), (8, 6), (4, 6, 8)]
size_of_each_dimension = pytest.mark.parametrize("size", SIZES, ids=["1d", "2d", "3d"])


def batch(size, n=16, channels=2):
    """Noise, a mask that misses about a fifth, and one-hot targets of n classes, so that each example is known."""
    return torch.randn(n, channels, *size), torch.rand(n, *size) > 0.2, torch.eye(n)


# crop and resize


@size_of_each_dimension
def test_a_crop_of_everything_is_the_identity(size):
    x, mask, _ = batch(size)
    y, seen = random_crop_resize(x, mask, 1.0)
    assert torch.equal(seen, mask)
    observed = mask[:, None].expand_as(x)
    assert torch.allclose(y[observed], x[observed], atol=1e-5)
    assert torch.allclose(random_crop_resize(x, None, 1.0)[0], x, atol=1e-5)


@size_of_each_dimension
def test_a_ramp_stays_a_ramp(size):
    # linear interpolation of a linear function is exact: each cut is a ramp with the slope of its share
    axes = [torch.arange(n, dtype=torch.float32) for n in size]
    ramps = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # a channel an axis
    x = ramps.expand(200, *ramps.shape)
    y, _ = random_crop_resize(x, None, 0.5 ** len(size))  # of the volume: a half of each axis
    for axis, length in enumerate(size):
        along = y[:, axis].movedim(axis + 1, -1)
        assert torch.allclose(along, along.reshape(200, -1, length)[:, :1].view(200, *[1] * (len(size) - 1), length))
        line = along.reshape(200, -1, length)[:, 0]
        inner = line[:, 1:-1].diff(dim=1)  # at the ends a cut may reach half a sample beyond the data, and holds it
        assert torch.allclose(inner, inner[:, :1].expand_as(inner), atol=1e-4)
        share = inner[:, 0]
        assert 0.5 - 1e-4 <= share.min() < 0.55
        assert 0.95 < share.max() <= 1 + 1e-4
        assert abs(share.mean() - 0.75) < 0.04  # uniform in [1/2, 1]
        assert line.min() >= 0
        assert line.max() <= length - 1
        # a cut lies anywhere: its middle is that of the data on average
        assert abs(line.mean() - (length - 1) / 2) < 0.05 * length


@size_of_each_dimension
@pytest.mark.parametrize("warp", [0.0, 1.0], ids=["crop", "warp"])
def test_what_was_not_observed_is_neither_cropped_nor_warped(size, warp):
    # the first half of each axis is observed, as in an example shorter than the batch; the rest holds other values
    halves = [torch.arange(n) < n // 2 for n in size]
    mask = torch.stack(torch.meshgrid(*halves, indexing="ij")).all(0).expand(64, *size)
    ramp = sum(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in size), indexing="ij"))
    x = torch.where(mask, ramp, 1e6)[:, None]
    y, seen = random_crop_resize(x, mask, 0.4, warp)
    assert seen.dtype == torch.bool
    assert torch.equal(seen, mask)  # as long as before, however small the box
    assert y[:, 0][seen].max() <= ramp[mask[0]].max()  # nothing comes from beyond the observed part
    assert len({round(float(one[0].max()), 3) for one in torch.where(seen[:, None], y, 0)}) > 9  # and the boxes differ
    y, seen = random_crop_resize(x, torch.zeros_like(mask), 0.4, warp)  # of nothing observed comes nothing
    assert not seen.any()
    assert not y.isnan().any()


def test_a_gap_travels_with_the_values():
    x = torch.arange(12.0).expand(64, 1, 12).clone()
    mask = torch.ones(64, 12, dtype=torch.bool)
    mask[:, 5:7] = False
    x[:, :, 5:7] = -100
    y, seen = random_crop_resize(x, mask, 0.5)
    assert (y[:, 0][seen] > -51).all()  # at most half of an observed place comes from the gap
    assert len({int(one.sum()) for one in seen}) > 1


def test_axes_of_one_sample_are_left_alone():
    x = torch.randn(3, 2, 1, 5)
    y, _ = random_crop_resize(x, None, 0.5)
    assert y.shape == x.shape
    one = torch.randn(3, 2, 1)
    assert torch.equal(random_crop_resize(one, None, 0.5)[0], one)


def test_each_example_has_a_cut_of_its_own():
    y, _ = random_crop_resize(torch.arange(20.0).expand(50, 1, 20), None, 0.5)
    assert len({round(float(v), 4) for v in y[:, 0, 10]}) == 50


def test_noise_covers_boxes_of_a_fiftieth_to_a_third():
    for size in ((200,), (40, 50), (20, 20, 20)):
        x = torch.full((600, 2, *size), 7.0)
        y = random_erase(x, 0.5)
        gone = (y != x).all(1)
        assert torch.equal(gone, (y != x).any(1))  # of all channels alike
        hit = gone.flatten(1).any(1)
        assert hit.float().mean() == pytest.approx(0.5, abs=0.07)
        share = gone[hit].flatten(1).float().mean(1)
        assert 0.005 < share.min() < 0.06
        assert 0.28 < share.max() < 0.37
        assert share.mean() == pytest.approx((1 / 50 + 1 / 3) / 2, rel=0.12)
        for axis in range(len(size)):  # a box: what it covers of an axis hangs together
            others = [i + 1 for i in range(len(size)) if i != axis]
            line = gone[hit].any(dim=tuple(others)) if others else gone[hit]
            assert (line.int().diff(dim=1) == 1).sum(1).max() <= 1
            assert line.any(0).float().mean() > 0.97  # they lie anywhere
        noise = y[(y != x)]
        assert noise.mean() == pytest.approx(0, abs=0.02)
        assert noise.std() == pytest.approx(1, abs=0.02)
    assert torch.equal(random_erase(x, 0.0), x)


# warp


def test_a_warp_is_a_map_of_three_pieces():
    time = torch.linspace(0, 1, 1001, dtype=torch.float64).expand(500, 1001)
    u = _warped(time, 0.7)
    assert torch.equal(u[:, 0], torch.zeros(500, dtype=torch.float64))  # ends stay
    assert torch.allclose(u[:, -1], torch.ones(500, dtype=torch.float64))
    slope = u.diff(dim=1) * 1000
    assert (slope > 0).all()  # time never goes back
    outside, window = slope.new_empty(500), slope.new_empty(500)
    for i, row in enumerate(slope):
        at_rest = row[0] if (row - row[0]).abs().lt(1e-9).sum() > 500 else row[-1]  # where the window is not
        inside = ((row - at_rest).abs() > 1e-9).nonzero()[:, 0]
        assert abs(len(inside) - 200) <= 2  # a fifth of the axis, in one piece
        assert inside[-1] - inside[0] == len(inside) - 1
        outside[i], window[i] = at_rest, row[inside[len(inside) // 2]]
    speed = (window / outside).log()
    assert torch.allclose(outside, 1 / (0.8 + 0.2 * speed.exp()))  # what one part gains, the other loses
    assert -0.7 <= speed.min() < -0.65  # uniform in [-.7, .7]
    assert 0.65 < speed.max() <= 0.7
    assert abs(speed.mean()) < 0.06  # standard error .018
    assert speed.var() == pytest.approx(0.7**2 / 3, rel=0.15)


def test_windows_lie_anywhere():
    time = torch.linspace(0, 1, 101).expand(2000, 101)
    change = (_warped(time, 0.7).diff(dim=1).diff(dim=1).abs() > 1e-4).float().mean(0)  # where the speed changes
    begin = change[:78]  # windows begin in [0, .8], where some of them end, too
    assert begin.min() > 0.5 * begin.mean()


@size_of_each_dimension
def test_a_warped_ramp_rises_and_keeps_its_ends(size):
    ramps = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in size], indexing="ij"))
    x = ramps.expand(100, *ramps.shape)
    y, mask = random_crop_resize(x, None, 1.0, 1.0)
    assert mask is None
    for axis, length in enumerate(size):
        along = y[:, axis].movedim(axis + 1, -1).reshape(100, -1, length)
        assert torch.allclose(along, along[:, :1].expand_as(along))  # each axis is warped as a whole
        line = along[:, 0]
        assert (line.diff(dim=1) > 0).all()
        assert line[:, 0].max() < 1  # the half sample before the first
        assert line[:, -1].min() > length - 2
        assert (line - torch.arange(length)).abs().amax(1).gt(0.1).float().mean() > 0.7
        assert not torch.allclose(line[0], line[1], atol=1e-3)  # one for each example


@size_of_each_dimension
def test_a_share_of_the_examples_is_left_whole(size):
    x, mask, _ = batch(size)
    x, mask = x[:1].repeat(400, *[1] * (x.ndim - 1)), mask[:1].repeat(400, *[1] * (mask.ndim - 1))
    y, seen = random_crop_resize(x, mask, 0.5, 0.7, 0.25)
    whole = (y == x).flatten(1).all(1)
    assert 0.65 < whole.float().mean() < 0.85
    assert torch.equal(seen[whole], mask[whole])  # values and what was observed go together
    assert torch.equal(random_crop_resize(x, None, 0.5, 0.7, 0.0)[0], x)


def test_a_crop_and_a_warp_are_one_resampling():
    # a warp of a crop of a ramp is linear in three pieces, each sampled exactly
    x = torch.arange(400.0).expand(50, 1, 400)
    y, _ = random_crop_resize(x, None, 0.5, 0.7)
    slope = y[:, 0, 2:-2].diff(dim=1)
    kinks = ((slope.diff(dim=1).abs() > 1e-2).float()).sum(1)
    assert kinks.max() <= 4  # two, each of which may fall between two samples
    length = y[:, 0, -1] - y[:, 0, 0]
    assert 195 < length.min() < 230
    assert 370 < length.max() < 400


# flip


@size_of_each_dimension
def test_flips_mirror_the_last_axis(size):
    x, mask, _ = batch(size, n=400)
    y, seen = random_flip(x, mask, 0.3)
    flipped = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(y, x)])
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(y, x)])
    assert (flipped ^ kept).all()
    assert 0.2 < flipped.float().mean() < 0.4  # standard error .023
    assert all(torch.equal(s, m.flip(-1) if f else m) for s, m, f in zip(seen, mask, flipped))
    y, seen = random_flip(x, None, 1.0)
    assert torch.equal(y, x.flip(-1))
    assert seen is None
    assert torch.equal(random_flip(x, None, 0.0)[0], x)


# scale, channel drop, noise


@size_of_each_dimension
def test_an_example_is_scaled_as_a_whole(size):
    x, _, _ = batch(size, n=2000)
    y = random_scale(x, 0.2)
    factor = (y / x).flatten(1)
    assert torch.allclose(factor, factor[:, :1].expand_as(factor), rtol=1e-3)  # all channels alike
    logs = factor[:, 0].log()
    assert logs.mean() == pytest.approx(0, abs=0.02)  # standard error .0045
    assert logs.std() == pytest.approx(0.2, rel=0.07)
    assert torch.equal(random_scale(x, 0.0), x)


@size_of_each_dimension
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_dropped_channels(size, channels):
    x = torch.randn(4000, channels, *size)
    y = channel_drop(x, 0.4)
    kept = (y == x).flatten(2).all(2)
    gone = (y == 0).flatten(2).all(2)
    assert (kept ^ gone).all()  # a channel goes as a whole or not at all
    assert kept.any(1).all()  # never all of an example
    expected = 0.4 - 0.4**channels / channels  # all would go with probability .4^channels, and one of them stays
    assert gone.float().mean() == pytest.approx(expected, abs=0.03)
    assert gone.float().mean(0).std(correction=0) < 0.03  # each channel as often as another
    assert torch.equal(channel_drop(x, 0.0), x)


def test_a_dropped_channel_holds_nothing_however_large_it_was():
    x = torch.full((50, 3, 8), float("inf"))
    y = channel_drop(x, 0.9)
    assert set(y.unique().tolist()) == {0.0, float("inf")}


def test_noise_is_added_to_every_value():
    x, _, _ = batch((500,), n=40)
    noise = random_noise(x, 0.3) - x
    assert noise.std() == pytest.approx(0.3, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert len(noise.unique()) > 0.9 * noise.numel()
    assert torch.equal(random_noise(x, 0.0), x)


# mixup


@size_of_each_dimension
def test_mixup_blends_values_and_targets_alike(size):
    x, mask, targets = batch(size)
    y, seen, mixed = mixup(x, mask, targets, 0.8)
    assert torch.allclose(mixed.sum(1), torch.ones(16))
    # the targets are one-hot of the example, so they show which examples were mixed
    expected = torch.einsum("ij,j...->i...", mixed, x)
    assert torch.allclose(y, expected, atol=1e-5)
    for i in range(16):
        others = [j for j in range(16) if mixed[i, j] > 0 and j != i] or [i]
        assert len(others) == 1
        assert torch.equal(seen[i], mask[i] | mask[others[0]])
    assert len(set(mixed.diagonal().tolist())) > 8  # a share for each example
    assert mixup(x, None, targets, 0.8)[1] is None


def test_mixup_of_equal_examples_changes_nothing():
    x, _, _ = batch((9,))
    same = x[:1].expand(16, -1, -1)
    targets = torch.tensor([[0.9, 0.1]]).expand(16, -1)
    y, _, mixed = mixup(same, None, targets, 0.4)
    assert torch.allclose(y, same, atol=1e-6)
    assert torch.allclose(mixed, targets)


# cutmix


@size_of_each_dimension
def test_cutmix_shares_targets_by_volume(size):
    x, mask, targets = batch(size, n=64)
    y, seen, mixed = cutmix(x, mask, targets, 1.0)
    volume = x[0, 0].numel()
    boxed = 0
    for i in range(64):
        others = [j for j in range(64) if mixed[i, j] > 0 and j != i]
        if not others:
            assert torch.equal(y[i], x[i])
            assert mixed[i, i] == 1
            continue
        (j,) = others
        own = (y[i] == x[i]).all(0)
        assert torch.equal(y[i][:, own], x[i][:, own])
        assert torch.equal(y[i][:, ~own], x[j][:, ~own])
        assert torch.equal(seen[i], torch.where(own, mask[i], mask[j]))
        # exactly the share of the volume, to the rounding of float32
        assert mixed[i, i] * volume == pytest.approx(int(own.sum()), abs=1e-3)
        assert mixed[i, j] * volume == pytest.approx(int((~own).sum()), abs=1e-3)
        # the other part is a box: its size is the product of its projections on the axes
        inside = (~own).nonzero()
        sides = (inside.amax(0) - inside.amin(0) + 1).tolist()
        assert int((~own).sum()) == torch.tensor(sides).prod()
        boxed += 1
    assert boxed > 32
    assert torch.allclose(mixed.sum(1), torch.ones(64))
    assert cutmix(x, None, targets, 1.0)[1] is None


@size_of_each_dimension
def test_the_sides_of_boxes_are_in_proportion_to_the_axes(size):
    size = tuple(10 * n for n in size)[:2] or size
    x = torch.zeros(300, 1, *size)
    x[150:] = 1
    y, _, _ = cutmix(x, None, torch.eye(300), 1.0)
    checked = 0
    for a, b in zip(y[:, 0], x[:, 0]):
        inside = (a != b).nonzero()
        if len(inside) == 0:
            continue
        low, high = inside.amin(0), inside.amax(0)
        if (low == 0).any() or (high == torch.tensor(size) - 1).any():
            continue  # the border cut it off
        shares = (high - low + 1) / torch.tensor(size)
        assert (shares - shares[0]).abs().max() <= 2 / min(size)
        checked += 1
    assert checked > 10


def test_the_volume_is_drawn_from_the_beta_distribution():
    # boxes are cut off by the border, so the mean share of the other is below 1/2, but small boxes seldom are
    x = torch.randn(2000, 1, 1000)
    _, _, mixed = cutmix(x, None, torch.eye(2000), 1.0)
    other = 1 - mixed.diagonal()
    assert 0.3 < other.mean() < 0.45  # in one dimension: E[s] - E[s^2]/4 - ... = 3/8 or so for a uniform share
    assert other.min() < 0.01
    assert other.max() > 0.9


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_beta_has_its_moments(alpha):
    like = torch.zeros(1, dtype=torch.float64)
    drawn = _beta(20_000, alpha, like)
    assert drawn.dtype == torch.float64
    assert drawn.mean() == pytest.approx(0.5, abs=0.015)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    assert 0 <= drawn.min() <= drawn.max() <= 1


@pytest.mark.parametrize(
    "change",
    [
        lambda x, m, t: random_crop_resize(x, m, 0.5),
        lambda x, m, t: random_crop_resize(x, m, 1.0, 0.7),
        lambda x, m, t: random_flip(x, m, 0.5),
        lambda x, m, t: (random_scale(x, 0.1), m),
        lambda x, m, t: (random_erase(x, 0.5), m),
        lambda x, m, t: (channel_drop(x, 0.5), m),
        lambda x, m, t: (random_noise(x, 0.1), m),
    ],
)
def test_the_generator_decides_and_the_input_stays(change):
    x, mask, targets = batch((8, 6))
    before = x.clone(), mask.clone()
    torch.manual_seed(5)
    one = change(x, mask, targets)
    torch.manual_seed(5)
    two = change(x, mask, targets)
    assert all(torch.equal(a, b) for a, b in zip(one, two))
    assert not torch.equal(one[0], change(x, mask, targets)[0])
    assert torch.equal(x, before[0])
    assert torch.equal(mask, before[1])


@size_of_each_dimension
@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_mixing_one_example_with_itself(size, mix):
    x, mask, targets = batch(size, n=1)
    y, seen, mixed = mix(x, mask, targets, 0.5)
    assert torch.allclose(y, x, atol=1e-6)
    assert torch.equal(seen, mask)
    assert torch.equal(mixed, targets)
