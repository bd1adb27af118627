"""Masked pretraining: the network sees few patches of an example, and a light decoder predicts the others."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ndvit.network.draws import for_each
from ndvit.network.grid import patchify
from ndvit.network.layers import Block
from ndvit.network.positions import sincos_positions
from ndvit.tasks.base import Drawn, Objective
from ndvit.tasks.self_supervised import SelfSupervised

if TYPE_CHECKING:
    from ndvit.config import ViTConfig
    from ndvit.config.pretraining import PretrainingOptions
    from ndvit.config.recipe import Recipe
    from ndvit.network import VisionTransformer

_NARROWEST = 48  # width of the decoder is a multiple: it serves one to three axes, and heads of 16
_FLAT = 1e-2  # added to the variance of a patch, because what varies less than a tenth of the data is mostly noise


class Masked(SelfSupervised):
    """Masked autoencoding (MAE, "Masked Autoencoders Are Scalable Vision Learners", He et al., 2022)."""

    name = "masked"

    def objective(self, config: ViTConfig, recipe: Recipe, options: PretrainingOptions) -> Objective:
        """The loss of the masked patches.

        Raises:
            ValueError: for a network that merges tokens, or has fewer than two patches.
        """
        if config.merge_tokens:
            raise ValueError("merged tokens are no patches that could be predicted: set merge_tokens to 0 here")
        if config.num_patches < 2:
            raise ValueError("an example is one patch, so that none can be masked: set a smaller patch_size")
        return MaskedPatches(config, options)

    def describe(self, options: PretrainingOptions) -> str:
        """The loss in a few words."""
        blocks = f"{options.decoder_depth} block{'s' * (options.decoder_depth > 1)}"
        return f"masked: {options.mask_ratio:.0%} of the patches are predicted from the others by a decoder of {blocks}"


class Choice(NamedTuple):
    """The patches of a batch that are masked, see `choose_masked`."""

    masked: Tensor  # (B, N) boolean
    kept: Tensor  # (B, N) boolean: observed patches that are not masked
    indices: Tensor  # (B, K), in rising order: all kept patches, filled up with others where an example has fewer


def choose_masked(observed: Tensor, ratio: float) -> Choice:
    """Mask a random share of the observed patches of each example; at least one of them is masked, and one kept.

    Patches without any observed value are neither masked nor kept. An example with a single observed patch keeps it.

    Args:
        observed: (B, N) boolean, whether a patch has an observed value.
        ratio: share to mask.
    """
    count = observed.sum(1)  # (B,)
    wanted = (ratio * count).round().long().clamp(min=1)
    wanted = torch.minimum(wanted, (count - 1).clamp(min=0))
    scores = for_each(lambda n: torch.rand(n, observed.shape[1], device=observed.device), len(observed))
    scores = scores.masked_fill(~observed, torch.inf)
    rank = scores.argsort(1).argsort(1)  # unobserved patches come last
    masked = (rank < wanted[:, None]) & observed
    kept = observed & ~masked
    most = max(1, int(kept.sum(1).max()))
    return Choice(masked, kept, kept.int().argsort(dim=1, descending=True, stable=True)[:, :most].sort(1).values)


class MaskedPatches(Objective):
    """The squared error of predicted patches, each normalised by its own mean and deviation.

    The values of masked patches are set to 0, the mean of the data, before the network reads them. So nothing of them
    reaches the network through a stem or overlapping patches either. Then

      - the encoder gets the tokens of kept patches only, as in MAE;
      - a network with `relative_bias`, which needs the complete grid, gets all tokens, and the masked ones are masked
        as missing values are.

    In partly observed patches, observed values alone are scored, and mean and deviation are theirs.

    Args:
        config: config of the network.
        options: share of masked patches, and depth of the decoder.
    """

    positions: Tensor

    def __init__(self, config: ViTConfig, options: PretrainingOptions) -> None:
        super().__init__()
        self.config, self.ratio = config, options.mask_ratio
        dim = max(1, round(config.embed_dim / 2 / _NARROWEST)) * _NARROWEST
        blocks = replace(
            config,
            embed_dim=dim,
            num_heads=dim // 16,
            depth=options.decoder_depth,
            mlp_ratio=4.0,
            pos_embed="sincos",
            relative_bias=False,
            qk_scale=None,
            layer_scale=None,
            drop_rate=0.0,
            attn_drop_rate=0.0,
            representation_size=None,
        )
        # With pooling "avg" the network's final norm follows the pooling, so tokens come without one.
        norm = nn.LayerNorm(config.embed_dim) if config.pooling == "avg" else nn.Identity()
        self.embed = nn.Sequential(norm, nn.Linear(config.embed_dim, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions", sincos_positions(config.grid, dim)[None], persistent=False)
        self.blocks = nn.ModuleList(Block(blocks) for _ in range(options.decoder_depth))
        values = config.in_channels
        for n in config.token_size:
            values *= n
        self.predict = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, values))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)  # as in MAE
                nn.init.zeros_(module.bias)

    def forward(self, network: VisionTransformer, x: Tensor, mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss over masked patches; 0 if there are none."""
        choice = self._choose(x, mask)
        target, weight, _, _ = self._targets(x, mask)
        error = (self._predicted(network, x, mask, choice).float() - target).square()  # (B, N, C, P)
        error = (error * weight).sum((2, 3)) / (weight.sum((2, 3)) * x.shape[1]).clamp(min=1)  # (B, N)
        return (error * choice.masked).sum() / choice.masked.sum().clamp(min=1), {}

    def show(self, network: VisionTransformer, x: Tensor, mask: Tensor | None) -> Drawn:
        """Examples with their masked patches replaced by the predictions, at the patches' true mean and deviation."""
        choice = self._choose(x, mask)
        _, _, mean, std = self._targets(x, mask)
        patches = self._predicted(network, x, mask, choice).float() * std + mean  # (B, N, C, P)
        marked = self._spread(choice.masked)  # (B, *size)
        made = torch.where(marked[:, None], self._whole(patches), x)
        about = f"{self.ratio:.0%} of the patches were masked; they are drawn as predicted from the others."
        return Drawn(x, made, marked, about)

    def _choose(self, x: Tensor, mask: Tensor | None) -> Choice:
        shape = len(x), self.config.num_patches
        observed = x.new_ones(shape, dtype=torch.bool) if mask is None else self._patches(mask).any(2)
        return choose_masked(observed, self.ratio)

    def _predicted(self, network: VisionTransformer, x: Tensor, mask: Tensor | None, choice: Choice) -> Tensor:
        """Normalised values of all patches, (B, N, C, P), from the kept ones."""
        prefix = network.num_prefix_tokens
        hidden = self._spread(choice.masked)  # (B, *size)
        observed = None if mask is None else self._patches(mask).any(2)
        x = x.masked_fill(hidden[:, None], 0)
        places = choice.indices + prefix
        left = None if mask is None else mask & ~hidden
        if self.config.relative_bias:
            left = ~hidden if left is None else left
            encoded = network.stages(x, left).encoded  # (B, T, D)
            encoded = encoded.take_along_dim(self._with_prefix(places, prefix)[:, :, None], 1)
        else:
            encoded = network.stages(x, left, kept=self._with_prefix(places, prefix)).encoded  # (B, prefix + K, D)
        tokens = self.embed(encoded)  # (B, prefix + K, d)
        there = choice.kept.gather(1, choice.indices)[:, :, None]  # (B, K, 1)
        empty = self.mask_token.to(tokens).expand(len(x), self.config.num_patches, -1)  # (B, N, d)
        kept = torch.where(there, tokens[:, prefix:], empty[:, : places.shape[1]])
        full = empty.scatter(1, choice.indices[:, :, None].expand_as(kept), kept) + self.positions.to(tokens)
        y = torch.cat([tokens[:, :prefix], full], 1)  # (B, T, d)
        key_mask = None
        if observed is not None:
            key_mask = torch.cat([observed.new_ones(len(x), prefix), observed], 1)[:, None, None]  # (B, 1, 1, T)
        for block in self.blocks:
            y = block(y, key_mask)
        return self.predict(y[:, prefix:]).unflatten(2, (self.config.in_channels, -1))  # (B, N, C, P)

    @staticmethod
    def _with_prefix(places: Tensor, prefix: int) -> Tensor:
        """Indices of tokens (B, K) with those of the prefix tokens in front."""
        first = torch.arange(prefix, device=places.device).expand(len(places), -1)
        return torch.cat([first, places], 1)

    def _targets(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalised patches (B, N, C, P), weights of their values (B, N, 1, P), and means and deviations."""
        patches = self._patches(x.flatten(0, 1)).unflatten(0, x.shape[:2]).transpose(1, 2).float()  # (B, N, C, P)
        weight = torch.ones_like(patches[:, :, :1]) if mask is None else self._patches(mask).float()[:, :, None]
        count = (weight.sum((2, 3), keepdim=True) * x.shape[1]).clamp(min=1)
        mean = (patches * weight).sum((2, 3), keepdim=True) / count
        variance = ((patches - mean).square() * weight).sum((2, 3), keepdim=True) / count
        std = (variance + _FLAT).sqrt()
        return (patches - mean) / std, weight, mean, std

    def _patches(self, values: Tensor) -> Tensor:
        """(B, *size) -> (B, N, P)."""
        return patchify(values, self.config.token_size)

    def _spread(self, patches: Tensor) -> Tensor:
        """A value for each patch (B, N) as one for each place, (B, *size)."""
        out = patches.unflatten(1, self.config.grid)
        for axis, n in enumerate(self.config.token_size, start=1):
            out = out.repeat_interleave(n, axis)
        return out

    def _whole(self, patches: Tensor) -> Tensor:
        """The inverse of cutting: (B, N, C, P) -> (B, C, *size)."""
        dims = len(self.config.grid)
        x = patches.transpose(1, 2).unflatten(3, self.config.token_size).unflatten(2, self.config.grid)
        order = [2 + axis + side * dims for axis in range(dims) for side in (0, 1)]  # g0, p0, g1, p1, ...
        return x.permute(0, 1, *order).reshape(len(x), x.shape[1], *self.config.input_size)
