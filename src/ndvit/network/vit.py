"""The Vision Transformer ("An Image is Worth 16x16 Words", 2020; DeiT, 2021) in any number of dimensions."""

from collections import OrderedDict
from collections.abc import Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ndvit.config import ViTConfig, named_config
from ndvit.network.grid import patchify, relative_offsets, rope_periods, rotary_table, sincos_positions
from ndvit.network.layers import Attention, AttentionPool, Block, LayerScale, PatchEmbed, mean_and_max, visible_mean
from ndvit.network.random_convolutions import Rocket
from ndvit.network.stems.convolutional import ConvStem
from ndvit.network.stems.resnet import StdConv
from ndvit.network.tokens import draw_tokens, keep_tokens

HEADS = ("head", "head_dist", "stem_head", "rocket")
"""Names of the modules whose outputs are classes: they are new where there are other classes."""


def create_model(name: str, **overrides: Any) -> "VisionTransformer":
    """A new, untrained network by name, with any field of `ViTConfig` overridden.

    `create_model("vit_base_patch16_224", num_classes=10)` is the classic; `create_model("vit_base", input_size=(13,),
    patch_size=1, in_channels=1024)` reads signals. See `named_config` for names and for what an int means. A size
    alone, without `input_size`, is the 2-D network for 224 x 224 pictures in patches of 16.

    Raises:
        ValueError: for an unknown name or field, or values that make no network.
    """
    return VisionTransformer(named_config(name, **overrides))


class VisionTransformer(nn.Module):
    """A Vision Transformer that classifies signals (B, C, L), images (B, C, H, W) or volumes (B, C, D, H, W).

    The state dict has timm's keys. `grad_checkpointing = True` trades a second forward of each block, and of each stage
    of a stem, for memory.

    Attributes:
        config: the `ViTConfig` it was built from.
        num_prefix_tokens: class, distillation and register tokens before the patches.
        grad_checkpointing: recompute blocks and stages in the backward pass instead of keeping activations.
        classes: names of the outputs; empty where nobody named them.
        preprocess: makes an input of a picture or an array; None where the model was never told.
        untrained: names of tensors that were newly initialised in a network of trained weights, a new head for example;
            the answers of such a model mean nothing before it is trained. Empty for a network that is new as a whole.
        provenance: plain facts about the training, which travel in the model's file.
        temperature: what `predict_probabilities` divides the logits by, see `training.calibration`; 1 changes nothing.
        load_report: what `load_model` did to every tensor; None for a network that was not loaded.
    """

    # labels that others hang on a network; it does not read them
    classes: tuple[str, ...] = ()
    preprocess: Any = None
    untrained: tuple[str, ...] = ()
    temperature: float = 1.0
    load_report: Any = None
    rope_periods: Tensor
    head: nn.Module
    head_dist: nn.Module
    stem_head: nn.Module

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.provenance: dict[str, Any] = {}
        self.num_prefix_tokens = config.num_prefix_tokens
        self.grad_checkpointing = False
        dim, eps = config.embed_dim, config.norm_eps

        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if config.class_token else None
        self.dist_token = nn.Parameter(torch.empty(1, 1, dim)) if config.distilled else None
        self.reg_token = nn.Parameter(torch.empty(1, config.num_registers, dim)) if config.num_registers else None
        with_position = config.num_patches + (self.num_prefix_tokens if config.pos_embed_prefix else 0)
        if config.pos_embed == "learned":
            self.pos_embed = nn.Parameter(torch.empty(1, with_position, dim))
        elif config.pos_embed == "sincos":
            self.register_buffer("pos_embed", torch.empty(1, with_position, dim))
        else:  # a buffer that is saved: published networks have theirs rounded
            axes = len(config.input_size)
            self.register_buffer("rope_periods", torch.empty(dim // config.num_heads // (2 * axes)))
        self.pos_drop = nn.Dropout(config.drop_rate)
        self.norm_pre = nn.LayerNorm(dim, eps=eps) if config.pre_norm else nn.Identity()

        last = max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(Block(config, config.drop_path_rate * i / last) for i in range(config.depth))

        # with average pooling the final norm follows the pooling (MAE's fine-tuning); timm's names tell which is there
        after_pool = config.pooling == "avg"
        self.norm = nn.Identity() if after_pool else nn.LayerNorm(dim, eps=eps)
        self.fc_norm = nn.LayerNorm(dim, eps=eps) if after_pool else nn.Identity()
        self.attn_pool = AttentionPool(config) if config.pooling == "map" else None
        self.pre_logits: nn.Module = nn.Identity()
        if config.representation_size:
            linear = nn.Linear(config.pooled_dim, config.representation_size)
            self.pre_logits = nn.Sequential(OrderedDict(fc=linear, act=nn.Tanh()))
        self.head_norm = nn.BatchNorm1d(config.pooled_dim) if config.head_norm == "batch" else nn.Identity()
        self.head_drop = nn.Dropout(config.head_drop)
        for name, width in self._head_widths().items():
            setattr(self, name, nn.Linear(width, config.num_classes) if config.num_classes else nn.Identity())
        self.rocket = self._new_rocket()
        self.init_weights()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Class scores.

        Args:
            x: (B, C, *input_size), floating point.
            mask: (B, *input_size) boolean, True where a value was observed; None where all were. Patches without any
                observed value are seen by no token and left out of pooling, as is what a stem gives for a stretch
                without any. (A stem's convolutions and norms, and overlapping patches, still mix what stands in their
                place into their neighbours.)

        Returns:
            Logits (B, num_classes), or the pooled features for 0 classes. A distilled network returns the logits of its
            class and distillation heads as a pair in training, and their mean in evaluation; one with a `stem_head`
            returns the logits of both heads as a pair in training, and those of the first in evaluation. Random
            convolution features (`rocket`) have their say in evaluation only: a weighted mean of both logits.

        Raises:
            ValueError: if x or mask has another shape than the config's.
        """
        logits = self._heads(x, mask)
        if self.rocket is None or self.training:
            return logits
        assert isinstance(logits, Tensor)
        share = self.config.rocket_weight
        return (1 - share) * logits + share * self.rocket(x, mask)

    def _heads(self, x: Tensor, mask: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        visible = self._visible_tokens(x, mask)  # (B, 1, 1, T) or None
        stem = self._stem(x)  # (B, C, *size / stem_stride)
        # what the heads do not read, the last block need not compute
        read = 1 + self.config.distilled if self.config.pooling == "token" else None
        x, visible = self._encode(stem, visible, read)  # (B, T, D)
        if self.config.distilled:
            x = self.head_drop(x[:, :2])
            pair = self.head(x[:, 0]), self.head_dist(x[:, 1])  # each (B, classes)
            return pair if self.training else (pair[0] + pair[1]) / 2
        x = self.fc_norm(self._pool(x, visible))  # (B, D)
        if self.config.pooling == "stem_tokens":
            x = torch.cat([self._pool_stem(stem, mask), x], dim=1)  # (B, 2 C + D), or (B, 2 C + 2 D)
        x = self.head(self.head_drop(self.pre_logits(self.head_norm(x))))  # (B, classes)
        if self.config.stem_head and self.training:
            return x, self.stem_head(self._pool_stem(stem, mask))
        return x

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """All tokens after the encoder, prefix first: (B, prefix + patches, D).

        Without those that were left out or merged; where tokens are, the others are not in the order of their places.

        Arguments as in `forward`.
        """
        visible = self._visible_tokens(x, mask)
        return self._encode(self._stem(x), visible)[0]

    def _stem(self, x: Tensor) -> Tensor:
        return self.patch_embed.stem(x, recompute=self.grad_checkpointing and self.training)

    def _encode(self, stem: Tensor, visible: Tensor | None, first: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Tokens after the last block, all that are left or the first ones alone, and which of them may be seen."""
        x = self._add_positions(self.patch_embed.tokens(stem))  # (B, T, D)
        rotation = offsets = None
        if self.config.pos_embed == "rope":
            rotation = rotary_table(self.config.grid, self.rope_periods, self.num_prefix_tokens)
        if self.config.relative_bias:
            offsets = relative_offsets(self.config.grid, x.device)
        if self.config.patch_drop_rate and self.training:
            kept = draw_tokens(x, visible, self.num_prefix_tokens, self.config.patch_drop_rate)  # (B, fewer)
            x, visible, rotation = keep_tokens(kept, x, visible, rotation)
        x = self.norm_pre(self.pos_drop(x))
        for i, block in enumerate(self.blocks, start=1):
            inputs = x, visible, rotation, offsets, first if i == len(self.blocks) else None
            recompute = self.grad_checkpointing and self.training
            x, visible = checkpoint(block, *inputs, use_reentrant=False) if recompute else block(*inputs)
        return self.norm(x), visible

    def _add_positions(self, x: Tensor) -> Tensor:
        """Prefix tokens in front of the patches, positions added: (B, N, D) -> (B, T, D)."""
        tokens = (self.cls_token, self.dist_token, self.reg_token)
        prefix = [t.expand(x.shape[0], -1, -1) for t in tokens if t is not None]
        if self.config.pos_embed == "rope":  # positions turn queries and keys instead
            return torch.cat([*prefix, x], dim=1)
        if self.config.pos_embed_prefix:
            return torch.cat([*prefix, x], dim=1) + self.pos_embed
        return torch.cat([*prefix, x + self.pos_embed], dim=1)

    def _pool(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """One vector of the tokens for each example: (B, T, D) -> (B, D), or (B, 2 D) with the class token."""
        token = x[:, 0]
        if self.config.pooling == "token":
            return token
        x = x[:, self.num_prefix_tokens :]  # (B, N, D)
        if visible is not None:
            visible = visible[..., self.num_prefix_tokens :]  # (B, 1, 1, N)
        if self.attn_pool is not None:
            return self.attn_pool(x, visible)
        mean = visible_mean(x, None if visible is None else visible[:, 0, 0])
        both = self.config.pooling in ("token_avg", "stem_tokens") and self.config.class_token
        return torch.cat([token, mean], dim=1) if both else mean

    def _pool_stem(self, stem: Tensor, mask: Tensor | None) -> Tensor:
        """Mean and maximum of what the stem gave, where something was observed: (B, C, *places) -> (B, 2 C)."""
        visible = None
        if mask is not None:
            visible = patchify(mask, (self.config.stem_stride,) * len(self.config.input_size)).any(2)
        return mean_and_max(stem.flatten(2).transpose(1, 2), visible)

    def _visible_tokens(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """Check the input, and turn the mask of values into one of tokens: (B, *size) -> (B, 1, 1, T)."""
        size = self.config.input_size
        if tuple(x.shape[1:]) != (self.config.in_channels, *size) or not x.is_floating_point():
            expected = ", ".join(map(str, ("batch", self.config.in_channels, *size)))
            hint = ""
            if tuple(x.shape) == (self.config.in_channels, *size):
                hint = " A single example still needs the batch axis: x[None]."
            elif len(x.shape) == 2 + len(size) and x.shape[1] != self.config.in_channels:
                hint = f" The network has in_channels={self.config.in_channels}, the input {x.shape[1]} channels."
            elif len(x.shape) == 2 + len(size):
                hint = " Resize or pad the input, or build the network with this input_size."
            raise ValueError(
                f"expected a floating-point input of shape ({expected}), got {x.dtype} of {tuple(x.shape)}.{hint}"
            )
        if mask is None:
            return None
        if mask.shape != (x.shape[0], *size) or mask.dtype != torch.bool:
            raise ValueError(
                f"expected a boolean mask of shape {(x.shape[0], *size)}, got {mask.dtype} {tuple(mask.shape)}"
            )
        patches = patchify(mask, self.config.token_size).any(2)  # (B, N)
        return torch.cat([patches.new_ones(x.shape[0], self.num_prefix_tokens), patches], dim=1)[:, None, None]

    def reset_head(self, num_classes: int) -> None:
        """Replace every head by a new one for `num_classes`; 0 leaves the features bare."""
        self.config = replace(self.config, num_classes=num_classes)
        self.classes, self.temperature = (), 1.0  # the new outputs have no names yet
        like = self.patch_embed.proj.weight
        for name, width in self._head_widths().items():
            head = nn.Linear(width, num_classes).to(like) if num_classes else nn.Identity()
            head.apply(self._init_module)
            setattr(self, name, head)
        self.rocket = self._new_rocket()
        if self.rocket is not None:
            self.rocket.to(like)
        heads = tuple(name for name in self.state_dict() if name.partition(".")[0] in HEADS)
        self.untrained = (*(n for n in self.untrained if n.partition(".")[0] not in HEADS), *heads)

    def _head_widths(self) -> dict[str, int]:
        """What each head of this config reads."""
        config, width = self.config, self.config.representation_size or self.config.pooled_dim
        there = {"head": width}
        if config.distilled:
            there["head_dist"] = width
        if config.stem_head:
            there["stem_head"] = 2 * config.stem_channels
        return there

    def _new_rocket(self) -> Rocket | None:
        """Random convolution features that nobody has solved yet, where the config wants some and there are classes."""
        config = self.config
        if not (config.rocket_features and config.num_classes):
            return None
        return Rocket(config.in_channels, config.input_size[0], config.rocket_features, config.num_classes)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters grouped by depth and by whether weight decay is meant for them.

        Returns:
            A list of {"depth", "decay", "names", "params"}. Depth is 0 for stem, patches, tokens and positions, i + 1
            for block i, and config.depth + 1 for everything after the blocks, as layer-wise learning rates need it
            (BEiT, MAE). `decay` is False for norms, biases, scales, tokens and positions, relative ones, too.
        """
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        undecayed = {"cls_token", "dist_token", "reg_token", "pos_embed", "attn_pool.latent"}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            bare = name in undecayed or name.endswith("relative_bias")
            key = self.depth_of(name), parameter.ndim > 1 and not bare
            group = groups.setdefault(key, {"depth": key[0], "decay": key[1], "names": [], "params": []})
            group["names"].append(name)
            group["params"].append(parameter)
        return [groups[key] for key in sorted(groups)]

    def depth_of(self, name: str) -> int:
        """The depth of a parameter of this name, as in `parameter_groups`."""
        part, _, rest = name.partition(".")
        if part == "blocks":
            return int(rest.partition(".")[0]) + 1
        before_blocks = ("patch_embed", "cls_token", "dist_token", "reg_token", "pos_embed", "norm_pre")
        return 0 if part in before_blocks else self.config.depth + 1

    def init_weights(self, only: Set[str] | None = None) -> None:
        """Fill parameters and buffers with their initial values, see `ViTConfig.weight_init`.

        Args:
            only: names in the state dict; None means all. A module with a parameter among them is filled as a whole.
        """
        # A patch of standardised samples under Kaiming's fan-out becomes a token of std sqrt(2 channels / width); a
        # position as strong as that tells places apart from the first step on.
        balanced = self.config.weight_init == "balanced"
        std = (2 * self.patch_embed.proj.in_channels / self.config.embed_dim) ** 0.5 if balanced else 0.02
        bound = max(2.0, 4 * std)  # torch's own bound of 2 would cut the wide distributions of many channels
        state = self.state_dict(keep_vars=True)
        for name in ("cls_token", "dist_token", "reg_token", "attn_pool.latent", "pos_embed", "rope_periods"):
            if name not in state or (only is not None and name not in only):
                continue
            if name == "rope_periods":
                head_dim = self.config.embed_dim // self.config.num_heads
                state[name].copy_(rope_periods(head_dim, len(self.config.input_size), self.config.rope_base))
            elif name == "pos_embed" and self.config.pos_embed == "sincos":
                patches = sincos_positions(self.config.grid, self.config.embed_dim)
                with torch.no_grad():  # prefix tokens, which stand nowhere, get zeros, as in MAE
                    state[name].zero_()[0, -len(patches) :] = patches.to(state[name].device)
            else:
                nn.init.trunc_normal_(state[name], std=std, a=-bound, b=bound)
        stem = set(self.patch_embed.backbone.modules()) if isinstance(self.patch_embed.backbone, ConvStem) else set()
        for path, module in self.named_modules():
            names = [f"{path}.{leaf}" for leaf, _ in module.named_parameters(recurse=False)]
            if path.partition(".")[0] != "rocket" and (only is None or not only.isdisjoint(names)):
                self._init_module(module, in_stem=module in stem)
        if self.rocket is not None and (only is None or any(name.startswith("rocket.") for name in only)):
            self.rocket.init_weights()

    def _init_module(self, module: nn.Module, in_stem: bool = False) -> None:
        if isinstance(module, nn.Linear):
            balanced = self.config.weight_init == "balanced"
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5 if balanced else 0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, StdConv):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            by_fan_in = in_stem and self.config.weight_init == "balanced"
            nn.init.kaiming_normal_(module.weight, mode="fan_in" if by_fan_in else "fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, _BatchNorm):
            module.reset_parameters()  # running statistics, too
        elif isinstance(module, Attention) and module.relative_bias is not None:
            nn.init.zeros_(module.relative_bias)
        elif isinstance(module, LayerScale):
            nn.init.constant_(module.gamma, module.init)
