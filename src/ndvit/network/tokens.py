"""Fewer tokens: some patches left out in training, and tokens that are alike merged into one.

All of it is about lists of tokens, so nothing here asks in how many dimensions they stand.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def draw_tokens(x: Tensor, visible: Tensor | None, prefix: int, drop_rate: float) -> Tensor:
    """Which tokens training keeps: every prefix token, and as many patches of each example, drawn at random.

    Hidden patches go first, whatever was drawn.

    ("PatchDropout", Liu et al., 2022.)

    Args:
        x: (B, T, D), prefix tokens first.
        visible: (B, 1, 1, T), True where a token may be seen; None means all.
        prefix: how many of them there are.
        drop_rate: share of the patches that is left out; one is always kept.

    Returns:
        Their places (B, fewer), in rising order.
    """
    batch, patches = len(x), x.shape[1] - prefix
    keep = max(1, round(patches * (1 - drop_rate)))
    scores = torch.rand(batch, patches, device=x.device)
    if visible is not None:
        scores = scores + visible[:, 0, 0, prefix:]
    drawn = scores.topk(keep).indices.sort().values
    return torch.cat([torch.arange(prefix, device=x.device).expand(batch, -1), prefix + drawn], dim=1)


def keep_tokens(
    kept: Tensor, x: Tensor, visible: Tensor | None, rotation: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
    """The tokens at these places (B, fewer), with what is known of each.

    Args:
        kept: as `draw_tokens` gives it.
        x: (B, T, D).
        visible: (B, 1, 1, T).
        rotation: cosines and sines, each (T, head_dim); they become (B, 1, fewer, head_dim).
    """
    if visible is not None:
        visible = visible.gather(3, kept[:, None, None])
    if rotation is not None:
        rotation = rotation[0][kept][:, None], rotation[1][kept][:, None]
    return _pick(x, kept), visible, rotation


def merge_tokens(
    x: Tensor, visible: Tensor | None, keys: Tensor, count: int, prefix: int
) -> tuple[Tensor, Tensor | None]:
    """Merge patches into others that are most like them ("Token Merging: Your ViT But Faster", Bolya et al., 2022).

    Every second patch finds the likest of the other half, by the cosine of their keys, and the `count` likest pairs
    are merged: a token is the mean of its patches. Hidden tokens have size 0: they go first, change nothing of the
    token that takes them in, and take others in only where there is nothing else.

    Args:
        x: (B, T, D), prefix tokens first; these stay as they are.
        visible: (B, 1, 1, T), how many observed patches each token stands for, or whether it may be seen; None means
            one patch each.
        keys: (B, T, any width), what is compared.
        count: tokens to merge, at most half of the patches.
        prefix: number of prefix tokens.

    Returns:
        The tokens left, (B, T - count, D): prefix, then seekers that found nobody, then the other half; and their sizes
        (B, 1, 1, T - count).
    """
    batch, tokens = x.shape[:2]
    count = min(count, (tokens - prefix) // 2)
    if count == 0:
        return x, visible
    exact = torch.promote_types(x.dtype, torch.float32)
    with torch.no_grad():
        sizes = x.new_ones(batch, tokens, dtype=exact) if visible is None else visible.flatten(1).to(exact)
        places = torch.arange(tokens, device=x.device).expand(batch, -1)
        seekers, takers = places[:, prefix + 1 :: 2], places[:, prefix::2]
        keys = F.normalize(keys.to(exact), dim=-1)
        likeness = keys[:, prefix + 1 :: 2] @ keys[:, prefix::2].mT  # (B, seekers, takers), from -1 to 1
        if visible is not None:
            likeness = likeness.masked_fill(sizes[:, None, prefix::2] == 0, -2)
        best, found = likeness.max(2)
        best = best.masked_fill(sizes[:, prefix + 1 :: 2] == 0, 2)
        order = best.argsort(dim=1, descending=True)
        gone, staying = order[:, :count], order[:, count:].sort(1).values
        source, target = seekers.gather(1, gone), found.gather(1, gone) + tokens - count - takers.shape[1]
        kept = torch.cat([places[:, :prefix], seekers.gather(1, staying), takers], dim=1)
        old, moved = sizes.gather(1, kept), sizes.gather(1, source)
        new = old.scatter_add(1, target, moved)
        # shares of the mean; a token that takes nobody in keeps exactly what it is
        stays = old / new.clamp(min=1)
        comes = moved / new.gather(1, target).clamp(min=1)
    x = _add_at(_weigh(_pick(x, kept), stays), target, _weigh(_pick(x, source), comes))
    return x, new[:, None, None]


def _pick(x: Tensor, places: Tensor) -> Tensor:
    """The tokens at each example's places: (B, T, D), (B, n) -> (B, n, D)."""
    return x.flatten(0, 1).index_select(0, _rows(places, x.shape[1])).unflatten(0, places.shape)


def _add_at(x: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """Add values to x at each example's places: (B, T, D), (B, n), (B, n, D) -> (B, T, D)."""
    rows = _rows(places, x.shape[1])
    return x.flatten(0, 1).index_add(0, rows, values.flatten(0, 1)).view_as(x)


def _rows(places: Tensor, tokens: int) -> Tensor:
    """Places in examples as rows of all examples below each other: (B, n) -> (B n,)."""
    # rows and not places: gathering with one index for a whole vector is many times as fast
    return (places + tokens * torch.arange(places.shape[0], device=places.device)[:, None]).flatten()


def _weigh(x: Tensor, weights: Tensor) -> Tensor:
    return x * weights[:, :, None].to(x.dtype)
