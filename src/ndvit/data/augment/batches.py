"""Augmentation of batches in any number of dimensions, on whatever device the batch is.

Every function takes x (B, C, *size), and mask (B, *size) or None where it moves values, draws from torch's default
generator, and returns new tensors. A training step seeds that generator, so what is drawn is a function of (seed, step)
alone.
"""

import math

import torch
from torch import Tensor


def random_crop_resize(
    x: Tensor, mask: Tensor | None, smallest: float, warp: float = 0.0, probability: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """Cut a random box out of each example and stretch it to the example's size, linearly, one axis after another.

    Each axis keeps a share of itself for itself, so the aspect varies, too.

    For a signal this is window slicing ("Data augmentation for time series classification using CNNs", 2016), for an
    image a random resized crop. With `warp`, a window of each axis is played faster or slower as well, and the rest
    makes up for it (window warping, the best of the twelve compared by Iwana and Uchida, "An empirical survey of data
    augmentation for time series classification", 2021); both are one resampling. Where a mask tells that an example is
    shorter than the batch (its ends were never observed), the box is cut out of the observed part and stretched over
    it, and the ends stay unobserved.

    Args:
        x: the batch.
        mask: where values were observed; it is cut, warped and stretched with them.
        smallest: the least share of the length, area or volume that is kept, in (0, 1].
        warp: the largest logarithm of a window's speed; 0 leaves warping out.
        probability: of each example to be cut and warped at all.
    """
    batch, given, given_mask = len(x), x, mask
    smallest **= 1 / max(1, sum(length > 1 for length in x.shape[2:]))  # of each axis that can be cut
    for axis, length in enumerate(x.shape[2:], start=2):
        if length == 1:
            continue
        places = torch.arange(length, device=x.device).expand(batch, length)
        share = smallest + (1 - smallest) * torch.rand(batch, 1, device=x.device)
        first = (1 - share) * torch.rand(batch, 1, device=x.device)  # both in shares of the observed part
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
        chosen = torch.rand(batch, device=x.device) < probability
        x = torch.where(chosen.view(-1, *[1] * (x.ndim - 1)), x, given)
        if mask is not None and given_mask is not None:
            mask = torch.where(chosen.view(-1, *[1] * (mask.ndim - 1)), mask, given_mask)
    return x, mask


_WINDOW = 0.1  # half the length of the window that is warped, as a share of the axis


def _warped(time: Tensor, warp: float) -> Tensor:
    """Map times in [0, 1], (B, length), so that a random window of each row is exp(U(-warp, warp)) times as steep.

    A piecewise linear map that rises and leaves 0 and 1 where they are: in the result, a window of a fifth of the axis
    plays the example at another speed than the rest of it.
    """
    centre, draw = torch.rand(2, len(time), 1, device=time.device)
    begin = centre * (1 - 2 * _WINDOW)  # centres lie in [.1, .9], so that no window is cut off
    faster = (warp * (2 * draw - 1)).expm1()
    return (time + faster * (time - begin).clamp(0, 2 * _WINDOW)) / (1 + faster * 2 * _WINDOW)


def _observed_range(mask: Tensor | None, axis: int, places: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last place (B, 1) along an axis of the mask at which anything was observed."""
    if mask is None:
        return places[:, :1], places[:, -1:]
    seen = mask.movedim(axis, 1).flatten(2).any(2) if mask.ndim > 2 else mask  # (B, length)
    low = torch.where(seen, places, places.shape[1]).amin(1, keepdim=True)
    high = torch.where(seen, places, -1).amax(1, keepdim=True)
    return low.clamp(max=places.shape[1] - 1), torch.maximum(high, low.clamp(max=places.shape[1] - 1))


def _sample_axis(x: Tensor, axis: int, position: Tensor) -> Tensor:
    """Values of x (B, C, *size) at fractional positions (B, length) along an axis, linearly interpolated."""
    below = position.floor().long().clamp(max=x.shape[axis] - 2)
    shape = [len(x) if i == 0 else x.shape[axis] if i == axis else 1 for i in range(x.ndim)]
    low = below.view(shape).expand(x.shape)
    weight = (position - below).to(x.dtype).view(shape)
    return torch.lerp(x.gather(axis, low), x.gather(axis, low + 1), weight.expand(x.shape))


def random_flip(x: Tensor, mask: Tensor | None, probability: float) -> tuple[Tensor, Tensor | None]:
    """Mirror each example along its last axis with this probability."""
    flip = torch.rand(len(x), device=x.device) < probability
    x = torch.where(flip.view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)
    if mask is not None:
        mask = torch.where(flip.view(-1, *[1] * (mask.ndim - 1)), mask.flip(-1), mask)
    return x, mask


def random_erase(x: Tensor, probability: float) -> Tensor:
    """Put noise in place of a random box of each example with this probability ("Random Erasing", Zhong et al., 2020).

    A box has a fiftieth to a third of the volume, its sides differ by up to 10 to 3, and it lies inside. The noise is
    standard normal, as strong as standardised examples are.
    """
    batch, dims = len(x), x.ndim - 2
    share = 0.02 + (1 / 3 - 0.02) * torch.rand(batch, 1, device=x.device)
    stretch = math.log(10 / 3) / 2 * (2 * torch.rand(batch, dims, device=x.device) - 1)
    stretch = stretch - stretch.mean(1, keepdim=True)  # sides change, the volume does not
    side = (share ** (1 / dims) * stretch.exp()).clamp(max=1)
    first = (1 - side) * torch.rand(batch, dims, device=x.device)
    inside = torch.rand(batch, *[1] * dims, device=x.device) < probability
    for axis, length in enumerate(x.shape[2:]):
        position = (torch.arange(length, device=x.device) + 0.5) / length
        begin, end = first[:, axis, None], (first + side)[:, axis, None]
        hit = (begin <= position) & (position < end)  # (B, length)
        inside = inside & hit.view(batch, *[length if i == axis else 1 for i in range(dims)])
    return torch.where(inside[:, None], torch.randn_like(x), x)


def random_scale(x: Tensor, std: float) -> Tensor:
    """Multiply each example by exp(std n), n drawn from the normal distribution.

    All its channels alike: how much stronger one sensor's signal is than another's may be what tells the classes apart.
    """
    return x * torch.exp(std * torch.randn(len(x), *[1] * (x.ndim - 1), device=x.device))


def channel_drop(x: Tensor, probability: float) -> Tensor:
    """Put 0, the training mean, in place of each channel of each example with this probability.

    One channel at least is left to each example, so a single channel is never dropped. (A mask stays as it is: it says
    where anything was observed, not in which channel.)
    """
    draw = torch.rand(*x.shape[:2], device=x.device)
    keep = (draw >= probability) | (draw == draw.amax(1, keepdim=True))
    return torch.where(keep.view(*x.shape[:2], *[1] * (x.ndim - 2)), x, 0)


def random_noise(x: Tensor, std: float) -> Tensor:
    """Add Gaussian noise of this standard deviation to every value."""
    return x + std * torch.randn_like(x)


def mixup(x: Tensor, mask: Tensor | None, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """Blend each example with another of the batch, and their targets alike ("mixup", Zhang et al., 2018).

    The share of the example itself is drawn for each from Beta(alpha, alpha). A value counts as observed where either
    of the two was.
    """
    other = torch.randperm(len(x), device=x.device)
    share = _beta(len(x), alpha, x)
    weight = share.view(-1, *[1] * (x.ndim - 1))
    mixed = x * weight + x[other] * (1 - weight)
    if mask is not None:
        mask = mask | mask[other]
    return mixed, mask, targets * share[:, None] + targets[other] * (1 - share[:, None])


def cutmix(x: Tensor, mask: Tensor | None, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """Put a box of another example into each one; targets share by volume ("CutMix", Yun et al., 2019).

    The volume is drawn from Beta(alpha, alpha), its sides in proportion to the axes, its centre anywhere; what the
    border cuts off is taken into account.
    """
    other = torch.randperm(len(x), device=x.device)
    dims = x.ndim - 2
    side = (1 - _beta(len(x), alpha, x)) ** (1 / dims)  # share of each axis
    inside = x.new_ones(len(x), *[1] * dims, dtype=torch.bool)
    for axis, length in enumerate(x.shape[2:]):
        centre = torch.rand(len(x), 1, device=x.device)
        position = (torch.arange(length, device=x.device) + 0.5) / length
        hit = (position - centre).abs() < side[:, None] / 2  # (B, length)
        inside = inside & hit.view(len(x), *[length if i == axis else 1 for i in range(dims)])
    share = 1 - inside.flatten(1).to(x.dtype).mean(1)
    x = torch.where(inside[:, None], x[other], x)
    if mask is not None:
        mask = torch.where(inside, mask[other], mask)
    return x, mask, targets * share[:, None] + targets[other] * (1 - share[:, None])


def _beta(count: int, alpha: float, like: Tensor) -> Tensor:
    """`count` draws from Beta(alpha, alpha) in the type and place of another tensor."""
    a = torch.full((count,), alpha, dtype=torch.float32, device=like.device)
    return torch.distributions.Beta(a, a).sample().to(like.dtype)
