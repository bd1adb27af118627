"""Augmentation of batches in any number of dimensions, on the device of the batch.

Every function takes x (B, C, *size), and mask (B, *size) or None if it moves values, uses torch's default generator,
and returns new tensors. A training step seeds that generator, so random choices are a function of (seed, step) alone.
Several processes that share a batch draw in common, see `network.draws`.
"""

import math

import torch
from torch import Tensor

from ndvit.data.augment.mixing import Mixing
from ndvit.network.draws import for_each, noise_like


def random_crop_resize(
    x: Tensor, mask: Tensor | None, smallest: float, warp: float = 0.0, probability: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """Crop a random box from each example and resize it to the size of the example, linearly and axis by axis.

    The share of each axis is drawn independently, so the aspect varies.

    For a signal this is window slicing ("Data augmentation for time series classification using CNNs", 2016), for an
    image a random resized crop. With `warp`, a window of each axis also gets another speed, and the rest of the axis
    compensates (window warping, the best of the twelve methods in Iwana and Uchida, "An empirical survey of data
    augmentation for time series classification", 2021); both are one resampling. If the ends of an example are not
    observed (it is shorter than the batch), the box is cropped from the observed part and resized to it, and the ends
    stay unobserved.

    Args:
        x: the batch.
        mask: True for observed values; it is cropped, warped and resized with them.
        smallest: smallest share of the length, area or volume that is kept, in (0, 1].
        warp: largest logarithm of the speed of a window; 0 does not warp.
        probability: probability of changing an example.
    """
    batch, original, original_mask = len(x), x, mask
    smallest **= 1 / max(1, sum(length > 1 for length in x.shape[2:]))  # of each axis longer than 1
    for axis, length in enumerate(x.shape[2:], start=2):
        if length == 1:
            continue
        places = torch.arange(length, device=x.device).expand(batch, length)
        share = smallest + (1 - smallest) * _rand(batch, 1, device=x.device)
        first = (1 - share) * _rand(batch, 1, device=x.device)  # both as shares of the observed part
        low, high = _observed_range(mask, axis - 1, places)
        extent = high - low + 1
        time = (places - low + 0.5) / extent
        if warp:
            time = _warped(time, warp)
        position = low + (first + share * time) * extent - 0.5  # (B, length), in samples
        position = torch.minimum(torch.maximum(position, low), high)
        x = _sample_axis(x, axis, position)
        if mask is not None:
            inside = (low <= places) & (places <= high)
            inside = inside.view(batch, *[length if i == axis - 1 else 1 for i in range(1, mask.ndim)])
            mask = (_sample_axis(mask[:, None].to(x.dtype), axis, position)[:, 0] > 0.5) & inside
    if probability < 1:
        chosen = _rand(batch, device=x.device) < probability
        x = torch.where(_per_example(chosen, x), x, original)
        if mask is not None and original_mask is not None:
            mask = torch.where(_per_example(chosen, mask), mask, original_mask)
    return x, mask


_WINDOW = 0.1  # half the length of the warped window, as a share of the axis


def _warped(time: Tensor, warp: float) -> Tensor:
    """Map times in [0, 1], (B, length), onto [0, 1] such that a random window is exp(U(-warp, warp)) times as steep."""
    centre, draw = for_each(lambda n: torch.rand(2, n, 1, device=time.device), len(time), axis=1)
    begin = centre * (1 - 2 * _WINDOW)  # centres are in [.1, .9], so that no window is cut off
    faster = (warp * (2 * draw - 1)).expm1()
    return (time + faster * (time - begin).clamp(0, 2 * _WINDOW)) / (1 + faster * 2 * _WINDOW)


def _observed_range(mask: Tensor | None, axis: int, places: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last place (B, 1) along an axis of the mask with an observed value."""
    if mask is None:
        return places[:, :1], places[:, -1:]
    observed = mask.movedim(axis, 1).flatten(2).any(2) if mask.ndim > 2 else mask  # (B, length)
    low = torch.where(observed, places, places.shape[1]).amin(1, keepdim=True)
    high = torch.where(observed, places, -1).amax(1, keepdim=True)
    return low.clamp(max=places.shape[1] - 1), torch.maximum(high, low.clamp(max=places.shape[1] - 1))


def _sample_axis(x: Tensor, axis: int, position: Tensor) -> Tensor:
    """Interpolate x (B, C, *size) linearly at fractional positions (B, length) along an axis."""
    below = position.floor().long().clamp(max=x.shape[axis] - 2)
    shape = [len(x) if i == 0 else x.shape[axis] if i == axis else 1 for i in range(x.ndim)]
    low = below.view(shape).expand(x.shape)
    weight = (position - below).to(x.dtype).view(shape)
    return torch.lerp(x.gather(axis, low), x.gather(axis, low + 1), weight.expand(x.shape))


def random_flip(x: Tensor, mask: Tensor | None, probability: float) -> tuple[Tensor, Tensor | None]:
    """Mirror each example along its last axis with this probability."""
    flip = _rand(len(x), device=x.device) < probability
    x = torch.where(_per_example(flip, x), x.flip(-1), x)
    if mask is not None:
        mask = torch.where(_per_example(flip, mask), mask.flip(-1), mask)
    return x, mask


def random_erase(x: Tensor, probability: float) -> Tensor:
    """Replace a random box of each example by noise with this probability ("Random Erasing", Zhong et al., 2020).

    A box has 1/50 to 1/3 of the volume, sides with a ratio of at most 10 to 3, and is completely inside. The noise is
    standard normal, as strong as standardised examples.
    """
    batch, dims = len(x), x.ndim - 2
    share = 0.02 + (1 / 3 - 0.02) * _rand(batch, 1, device=x.device)
    stretch = math.log(10 / 3) / 2 * (2 * _rand(batch, dims, device=x.device) - 1)
    stretch = stretch - stretch.mean(1, keepdim=True)  # sides change, the volume does not
    side = (share ** (1 / dims) * stretch.exp()).clamp(max=1)
    first = (1 - side) * _rand(batch, dims, device=x.device)
    chosen = _rand(batch, 1, device=x.device) < probability
    sides = zip(_positions(x), first.split(1, 1), (first + side).split(1, 1))
    inside = _box([chosen & (begin <= position) & (position < end) for position, begin, end in sides])
    return torch.where(inside[:, None], noise_like(x), x)


def random_scale(x: Tensor, std: float) -> Tensor:
    """Multiply each example by exp(std n), where n is standard normal.

    All channels get the same factor, because the ratio of two sensors may distinguish the classes.
    """
    drawn = for_each(lambda n: torch.randn(n, *[1] * (x.ndim - 1), device=x.device), len(x))
    return x * torch.exp(std * drawn)


def channel_drop(x: Tensor, probability: float) -> Tensor:
    """Replace each channel of each example by 0, the training mean, with this probability.

    Each example keeps one channel at least, so a single channel is never dropped. A mask does not change: it marks
    positions that are observed in any channel.
    """
    draw = _rand(*x.shape[:2], device=x.device)
    keep = (draw >= probability) | (draw == draw.amax(1, keepdim=True))
    return torch.where(keep.view(*x.shape[:2], *[1] * (x.ndim - 2)), x, 0)


def random_mask(x: Tensor, axis: int, largest: float) -> Tensor:
    """Replace a random stretch of an axis of each example by 0, the training mean ("SpecAugment", Park et al., 2019).

    The stretch is the same in all other axes. Its share of the axis is uniform from 0 to `largest`, and so is its
    place.
    """
    share = largest * _rand(len(x), 1, device=x.device)
    first = (1 - share) * _rand(len(x), 1, device=x.device)
    places = (torch.arange(x.shape[axis], device=x.device) + 0.5) / x.shape[axis]
    hidden = (first <= places) & (places < first + share)  # (B, length)
    return torch.where(hidden.view([s if i in (0, axis) else 1 for i, s in enumerate(x.shape)]), 0, x)


def random_noise(x: Tensor, std: float) -> Tensor:
    """Add Gaussian noise of this standard deviation to every value."""
    return x + std * noise_like(x)


def mixup(x: Tensor, mask: Tensor | None, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """Average each example with another of the batch, and their targets ("mixup", Zhang et al., 2018).

    The weight of each example is drawn from Beta(alpha, alpha). A position is observed if it is in either example.
    """
    mixing = Mixing(len(x), x.device)
    share = _beta(len(x), alpha, x)
    masks = mixing.masks(mask, x)
    mixed = _mean(x, mixing.others(x), share), _mean(targets, mixing.others(targets), share)
    return mixed[0], None if masks is None else masks[0] | masks[1], mixed[1]


def cutmix(x: Tensor, mask: Tensor | None, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """Replace a box of each example by that of another; targets are averaged by volume ("CutMix", Yun et al., 2019).

    The volume is drawn from Beta(alpha, alpha), with sides in proportion to the axes and a uniform centre; targets use
    the volume inside the example.
    """
    mixing = Mixing(len(x), x.device)
    side = (1 - _beta(len(x), alpha, x)[:, None]) ** (1 / (x.ndim - 2))  # (B, 1), share of each axis
    centres = (_rand(len(x), 1, device=x.device) for _ in x.shape[2:])
    inside = _box([(position - centre).abs() < side / 2 for position, centre in zip(_positions(x), centres)])
    share = 1 - inside.flatten(1).to(x.dtype).mean(1)
    masks = mixing.masks(mask, x)
    x = torch.where(inside[:, None], mixing.others(x), x)
    if masks is not None:
        mask = torch.where(inside, masks[1], masks[0])
    return x, mask, _mean(targets, mixing.others(targets), share)


def _mean(values: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """The mean of each example, which has the weight `share` (B,), and of the other one."""
    weight = _per_example(share, values)
    return values * weight + other * (1 - weight)


def _per_example(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) with as many axes as another tensor, which they broadcast to."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _positions(x: Tensor) -> list[Tensor]:
    """The centres of the samples (length,) along each axis of x (B, C, *size), as shares of the axis."""
    return [(torch.arange(length, device=x.device) + 0.5) / length for length in x.shape[2:]]


def _box(sides: list[Tensor]) -> Tensor:
    """The box (B, *size) whose side along each axis is a mask (B, length)."""
    box, *others = sides
    for axis, side in enumerate(others, start=1):
        box = box[..., None] & side.view(len(side), *[1] * axis, -1)
    return box


def _beta(count: int, alpha: float, like: Tensor) -> Tensor:
    """`count` draws from Beta(alpha, alpha) with the type and device of another tensor."""

    def draw(n: int) -> Tensor:
        a = torch.full((n,), alpha, dtype=torch.float32, device=like.device)
        return torch.distributions.Beta(a, a).sample()

    return for_each(draw, count).to(like.dtype)


def _rand(count: int, *shape: int, device: torch.device) -> Tensor:
    """Uniform numbers (count, *shape) for the examples of a batch."""
    return for_each(lambda n: torch.rand(n, *shape, device=device), count)
