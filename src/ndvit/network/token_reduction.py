"""Fewer tokens: patches dropped in training, and similar tokens merged into one. The dimensions play no role here."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ndvit.network.draws import for_each


def draw_tokens(x: Tensor, key_mask: Tensor | None, prefix: int, drop_rate: float) -> Tensor:
    """Choose the tokens that training keeps ("PatchDropout", Liu et al., 2022).

    These are all prefix tokens, and for each example the same number of random patches. Masked patches are dropped
    first.

    Args:
        x: (B, T, D), prefix tokens first.
        key_mask: (B, 1, 1, T) boolean, False for masked patches; None if there are none.
        prefix: number of prefix tokens.
        drop_rate: share of the patches to drop; at least one is kept.

    Returns:
        Indices of the kept tokens (B, fewer), in rising order.
    """
    batch, patches = len(x), x.shape[1] - prefix
    keep = max(1, round(patches * (1 - drop_rate)))
    scores = for_each(lambda n: torch.rand(n, patches, device=x.device), batch)
    if key_mask is not None:
        scores = scores + key_mask[:, 0, 0, prefix:]
    drawn = scores.topk(keep).indices.sort().values
    return torch.cat([torch.arange(prefix, device=x.device).expand(batch, -1), prefix + drawn], dim=1)


def keep_tokens(
    kept: Tensor, x: Tensor, key_mask: Tensor | None, rotation: tuple[Tensor, ...] | None
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...] | None]:
    """Select the tokens x (B, T, D) at the indices of `draw_tokens` (B, fewer), with their mask and rotation.

    Cosines and sines of the rotation, each (T, head_dim), become (B, 1, fewer, head_dim).
    """
    if key_mask is not None:
        key_mask = key_mask.gather(3, kept[:, None, None])
    if rotation is not None:
        rotation = tuple(part[kept][:, None] for part in rotation)
    return _pick(x, kept), key_mask, rotation


def merge_tokens(
    x: Tensor, key_mask: Tensor | None, keys: Tensor, count: int, prefix: int
) -> tuple[Tensor, Tensor | None]:
    """Merge similar patches ("Token Merging: Your ViT But Faster", ToMe, Bolya et al., 2022).

    Every second patch is a source and finds its most similar target among the other patches, by the cosine of their
    keys. The `count` most similar pairs are merged: a target becomes the mean of all patches that it stands for.
    Masked tokens have size 0. As sources they are merged first, and do not change their target; as targets they are
    chosen only if there is no other.

    Args:
        x: (B, T, D), prefix tokens first; these are not merged.
        key_mask: (B, 1, 1, T), the number of observed patches that each token stands for, or a boolean mask; None
            means one patch each.
        keys: (B, T, any width), compared for similarity.
        count: number of tokens to merge, at most half of the patches.
        prefix: number of prefix tokens.

    Returns:
        The tokens left, (B, T - count, D): prefix, sources that were not merged, targets; and their sizes
        (B, 1, 1, T - count), the new `key_mask`.
    """
    batch, tokens = x.shape[:2]
    count = min(count, (tokens - prefix) // 2)
    if count == 0:
        return x, key_mask
    exact = torch.promote_types(x.dtype, torch.float32)
    with torch.no_grad():
        sizes = x.new_ones(batch, tokens, dtype=exact) if key_mask is None else key_mask.flatten(1).to(exact)
        places = torch.arange(tokens, device=x.device).expand(batch, -1)
        sources, targets = places[:, prefix + 1 :: 2], places[:, prefix::2]
        keys = F.normalize(keys.to(exact), dim=-1)
        similarity = keys[:, prefix + 1 :: 2] @ keys[:, prefix::2].mT  # (B, sources, targets), from -1 to 1
        if key_mask is not None:
            similarity = similarity.masked_fill(sizes[:, None, prefix::2] == 0, -2)
        best, found = similarity.max(2)
        best = best.masked_fill(sizes[:, prefix + 1 :: 2] == 0, 2)
        order = best.argsort(dim=1, descending=True)
        merged, staying = order[:, :count], order[:, count:].sort(1).values
        source, target = sources.gather(1, merged), found.gather(1, merged) + tokens - count - targets.shape[1]
        kept = torch.cat([places[:, :prefix], sources.gather(1, staying), targets], dim=1)
        old, moved = sizes.gather(1, kept), sizes.gather(1, source)
        new = old.scatter_add(1, target, moved)
        # shares of the mean; exactly 1 for a target without sources
        own = old / new.clamp(min=1)
        added = moved / new.gather(1, target).clamp(min=1)
    x = _add_at(_weigh(_pick(x, kept), own), target, _weigh(_pick(x, source), added))
    return x, new[:, None, None]


def _pick(x: Tensor, places: Tensor) -> Tensor:
    """The tokens at the indices of each example: (B, T, D), (B, n) -> (B, n, D)."""
    return x.flatten(0, 1).index_select(0, _rows(places, x.shape[1])).unflatten(0, places.shape)


def _add_at(x: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """Add values to x at the indices of each example: (B, T, D), (B, n), (B, n, D) -> (B, T, D)."""
    rows = _rows(places, x.shape[1])
    return x.flatten(0, 1).index_add(0, rows, values.flatten(0, 1)).view_as(x)


def _rows(places: Tensor, tokens: int) -> Tensor:
    """Indices within each example as rows of the flattened (B T, D): (B, n) -> (B n,)."""
    # Selecting whole rows is many times as fast as `gather`, which needs one index for each value.
    return (places + tokens * torch.arange(places.shape[0], device=places.device)[:, None]).flatten()


def _weigh(x: Tensor, weights: Tensor) -> Tensor:
    return x * weights[:, :, None].to(x.dtype)
