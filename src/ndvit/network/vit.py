"""The Vision Transformer ("An Image is Worth 16x16 Words", 2020; DeiT, 2021) in any number of dimensions."""

import math
from collections import OrderedDict
from collections.abc import Collection, Set
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ndvit.config import ViTConfig, named_config
from ndvit.network import fast
from ndvit.network.checkpointing import checkpointed
from ndvit.network.draws import Dropout
from ndvit.network.grid import observed_patches, patchify
from ndvit.network.layers import (
    Attention,
    AttentionPool,
    Block,
    BlockTrace,
    LayerScale,
    MergingBlock,
    PatchEmbed,
    Rotation,
    make_norm,
    masked_mean,
    mean_and_max,
)
from ndvit.network.positions import (
    relative_offsets,
    rope_periods,
    rotary_table,
    sincos_positions,
    xpos_decay,
    xpos_table,
)
from ndvit.network.stems.mantis import ScalarEncoder
from ndvit.network.stems.resnet import StdConv
from ndvit.network.token_reduction import draw_tokens, keep_tokens

HEADS = ("head", "head_dist", "stem_head")
"""Names of the modules that give the outputs. They are new where there are other outputs."""


class Stages(NamedTuple):
    """Intermediate results of a forward pass, see `VisionTransformer.stages`.

    T is the number of prefix and patch tokens. Patches that training drops (`patch_drop_rate`) are missing from all
    tokens, and each block has fewer than the one before if tokens are merged (`merge_tokens`).
    """

    stem: Tensor  # (B, C, *places), output of the stem; the input if there is none
    tokens: Tensor  # (B, T, D), prefix tokens and embedded patches with positions: input of the first block
    blocks: dict[int, Tensor]  # (B, T, D), outputs of the requested blocks by their index
    encoded: Tensor  # (B, T, D), after the final norm (before it if `pooling` is "avg", where the norm follows pooling)
    features: dict[str, Tensor]  # (B, width) for "head", "head_dist" if distilled, and "stem_head" in training
    key_mask: Tensor | None  # (B, 1, 1, T) of the last tokens, see `layers.attention_mask`; None if all count once
    traces: dict[int, BlockTrace]  # attention and merging of the traced blocks by their index


def create_model(name: str, **overrides: Any) -> "VisionTransformer":
    """A new, untrained network by name, with any field of `ViTConfig` overridden.

    `create_model("vit_base_patch16_224", num_classes=10)` is the classic; `create_model("vit_base", input_size=(13,),
    patch_size=1, in_channels=1024)` reads signals. See `named_config` for names and for the meaning of an int. A size
    alone, without `input_size`, is the 2-D network for 224 x 224 images in patches of 16.

    Raises:
        ValueError: for an unknown name or field, or values that do not describe a network.

    Example:
        >>> from ndvit import create_model
        >>> network = create_model("vit_tiny", input_size=(32, 64, 64), patch_size=16, in_channels=1, num_classes=4)
        >>> network.config.grid  # of a volume
        (2, 4, 4)
    """
    return VisionTransformer(named_config(name, **overrides))


class VisionTransformer(nn.Module):
    """A Vision Transformer for signals (B, C, L), images (B, C, H, W) or volumes (B, C, D, H, W).

    The state dict has timm's keys.

    Attributes:
        config: the `ViTConfig` that it was built from.
        num_prefix_tokens: class, distillation and register tokens before the patches.
        grad_checkpointing: compute blocks, and stages of a stem, again in the backward pass instead of keeping their
            activations: less memory for a second forward pass. Default False.
        skip_unread_tokens: compute only the tokens that the heads read in the last block; outputs then differ by
            rounding at most, but forward hooks on that block see (B, 1, D). Default False, see `fast.only_read_tokens`.

    Example:
        >>> import torch
        >>> from ndvit import ViTConfig, VisionTransformer
        >>> config = ViTConfig(input_size=(64, 64), patch_size=16, embed_dim=48, depth=2, num_heads=4, num_classes=5)
        >>> network = VisionTransformer(config).eval()
        >>> network(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 5])
        >>> network.stages(torch.zeros(2, 3, 64, 64)).tokens.shape  # 16 patches and a class token
        torch.Size([2, 17, 48])
    """

    rope_periods: Tensor
    xpos_decay: Tensor
    head: nn.Module
    head_dist: nn.Module
    stem_head: nn.Module

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.num_prefix_tokens = config.num_prefix_tokens
        self.grad_checkpointing = False
        self.skip_unread_tokens = False
        dim = config.embed_dim

        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if config.class_token else None
        self.dist_token = nn.Parameter(torch.empty(1, 1, dim)) if config.distilled else None
        self.reg_token = nn.Parameter(torch.empty(1, config.num_registers, dim)) if config.num_registers else None
        positions = config.num_patches + (self.num_prefix_tokens if config.pos_embed_prefix else 0)
        if config.pos_embed == "learned":
            self.pos_embed = nn.Parameter(torch.empty(1, positions, dim))
        elif config.pos_embed == "sincos":
            self.register_buffer("pos_embed", torch.empty(1, positions, dim))
        else:  # buffers that are saved, because published networks have rounded periods, or decays of their own
            self.register_buffer("rope_periods", torch.empty(config.head_width // (2 * len(config.input_size))))
            if config.pos_embed == "xpos":
                self.register_buffer("xpos_decay", torch.empty(config.head_width))
        self.pos_drop = Dropout(config.drop_rate)
        self.norm_pre = make_norm(config) if config.pre_norm else nn.Identity()

        kind, last = MergingBlock if config.merge_tokens else Block, max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(kind(config, config.drop_path_rate * i / last) for i in range(config.depth))

        # For average pooling the final norm follows the pooling (MAE's fine-tuning); the names are timm's.
        after_pool = config.pooling == "avg"
        self.norm = make_norm(config) if config.final_norm and not after_pool else nn.Identity()
        self.fc_norm = make_norm(config) if config.final_norm and after_pool else nn.Identity()
        self.attn_pool = AttentionPool(config) if config.pooling == "map" else None
        self.pre_logits: nn.Module = nn.Identity()
        if config.representation_size:
            linear = nn.Linear(config.pooled_dim, config.representation_size)
            self.pre_logits = nn.Sequential(OrderedDict(fc=linear, act=nn.Tanh()))
        self.head_norm: nn.Module = nn.Identity()
        if config.head_norm == "batch":
            self.head_norm = nn.BatchNorm1d(config.pooled_dim)
        elif config.head_norm == "layer":
            self.head_norm = nn.LayerNorm(config.pooled_dim, eps=config.norm_eps)
        self.head_drop = Dropout(config.head_drop)
        for name, width in self._head_widths().items():
            setattr(self, name, nn.Linear(width, config.num_classes) if config.num_classes else nn.Identity())
        if not next(self.parameters()).is_meta:  # where there are no values
            self.init_weights()
        fast.install(self)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Outputs of the heads, logits for classification.

        Args:
            x: (B, C, *input_size), floating point.
            mask: (B, *input_size) boolean, True where a value was observed; None if all were. Patches without any
                observed value are left out of attention and pooling, and so are such stretches of a stem's output. (The
                convolutions and norms of a stem, and overlapping patches, still mix the values that stand there into
                their neighbours.)

        Returns:
            Outputs (B, num_classes), or the pooled features for 0 classes. A distilled network returns the outputs of
            its class and distillation heads as a pair in training, and their mean in evaluation. A network with a
            `stem_head` returns the outputs of both heads as a pair in training, and those of `head` in evaluation.

        Raises:
            ValueError: if x or mask does not have the shape of the config.
        """
        return self.outputs(self.stages(x, mask))

    def outputs(self, stages: Stages) -> Tensor | tuple[Tensor, Tensor]:
        """Apply the heads to what `stages` returned; outputs as in `forward`."""
        features = stages.features  # {head: (B, width)}
        first, *second = [self.get_submodule(head)(read) for head, read in features.items()]  # each (B, num_classes)
        if not second:
            return first
        return (first, second[0]) if self.training else (first + second[0]) / 2

    def stages(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        blocks: Collection[int] = (),
        kept: Tensor | None = None,
        traced: Collection[int] = (),
    ) -> Stages:
        """Compute everything before the heads, and return the intermediate results by name.

        Args:
            x: as in `forward`.
            mask: as in `forward`.
            blocks: indices of the blocks whose outputs are returned, from 0.
            kept: (B, K) indices of the tokens that are encoded, prefix tokens included, in rising order; all others are
                left out before the first block (as in MAE's encoder). None keeps all tokens, or in training those that
                `patch_drop_rate` leaves.
            traced: indices of the blocks whose attention weights are computed and returned. The other blocks use the
                fused kernel, which has none.

        Raises:
            ValueError: as in `forward`, for a block that does not exist, and for `kept` in a network with
                `relative_bias`, which needs the complete grid.
        """
        config, recompute = self.config, self.grad_checkpointing and self.training
        if not {*blocks, *traced} <= set(range(config.depth)):
            raise ValueError(f"the network has blocks 0 to {config.depth - 1}, got {sorted({*blocks, *traced})}")
        if kept is not None and config.relative_bias:
            raise ValueError("relative_bias needs the complete grid: mask patches instead of leaving tokens out")
        self._check_shapes(x, mask)
        key_mask = None if mask is None else self._key_mask(mask)  # (B, 1, 1, T)
        stem = self.patch_embed.stem(x, recompute)  # (B, C, *size / stem_stride)
        x = self._add_positions(self.patch_embed.tokens(stem))  # (B, N, D) -> (B, T, D)
        rotation: Rotation | None = None
        offsets = None
        if config.pos_embed == "rope":
            rotation = rotary_table(config.grid, self.rope_periods, self.num_prefix_tokens)  # each (T, head_dim)
        elif config.pos_embed == "xpos":
            rotation = xpos_table(config.grid, self.rope_periods, self.xpos_decay, self.num_prefix_tokens)
        if config.relative_bias:
            offsets = relative_offsets(config.grid, x.device)  # (N, N)
        if kept is None and config.patch_drop_rate and self.training:
            kept = draw_tokens(x, key_mask, self.num_prefix_tokens, config.patch_drop_rate)  # (B, fewer)
        if kept is not None:
            x, key_mask, rotation = keep_tokens(kept, x, key_mask, rotation)  # (B, fewer, D)
        x = tokens = self.norm_pre(self.pos_drop(x))  # (B, T, D)

        outputs, traces = {}, {i: BlockTrace() for i in traced}
        skipping = self.skip_unread_tokens and config.pooling == "token" and config.depth - 1 not in {*blocks, *traced}
        read = 1 + config.distilled if skipping else None  # leading tokens that the heads read of the last block
        for i, block in enumerate(self.blocks):
            inputs = x, key_mask, rotation, offsets, read if i == config.depth - 1 else None, traces.get(i)
            x = checkpointed(block, *inputs) if recompute else block(*inputs)  # (B, T, D)
            if config.merge_tokens:
                x, key_mask = x  # (B, fewer, D), (B, 1, 1, fewer)
            if i in blocks:
                outputs[i] = x
        x = self.norm(x)  # (B, T, D)
        return Stages(stem, tokens, outputs, x, self._pool_for_heads(x, key_mask, stem, mask), key_mask, traces)

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """All tokens after the last block and its norm, (B, T, D): timm's name for `stages(x).encoded`."""
        return self.stages(x, mask).encoded

    def features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the head reads, (B, width); for a distilled network, what its two heads read, side by side.

        Arguments and errors as in `forward`.
        """
        features = self.stages(x, mask).features
        return torch.cat([read for head, read in features.items() if head != "stem_head"], dim=1)

    def _add_positions(self, x: Tensor) -> Tensor:
        """Put prefix tokens in front of the patches and add positions: (B, N, D) -> (B, T, D)."""
        tokens = (self.cls_token, self.dist_token, self.reg_token)
        prefix = [t.expand(x.shape[0], -1, -1) for t in tokens if t is not None]
        if self.config.pos_embed in ("rope", "xpos"):  # positions rotate queries and keys instead
            return torch.cat([*prefix, x], dim=1)
        if self.config.pos_embed_prefix:
            return torch.cat([*prefix, x], dim=1) + self.pos_embed
        return torch.cat([*prefix, x + self.pos_embed], dim=1)

    def _pool_for_heads(
        self, x: Tensor, key_mask: Tensor | None, stem: Tensor, mask: Tensor | None
    ) -> dict[str, Tensor]:
        """Encoded tokens (B, T, D) -> input of each head that gives an output, (B, width)."""
        if self.config.distilled:
            x = self.head_drop(x[:, :2])  # (B, 2, D)
            return {"head": x[:, 0], "head_dist": x[:, 1]}
        x = self.fc_norm(self._pool(x, key_mask))  # (B, D), or (B, 2 D)
        if self.config.pooling == "stem_tokens":
            x = torch.cat([self._pool_stem(stem, mask), x], dim=1)  # (B, 2 C + D), or (B, 2 C + 2 D)
        features = {"head": self.head_drop(self.pre_logits(self.head_norm(x)))}
        if self.config.stem_head and self.training:
            features["stem_head"] = self._pool_stem(stem, mask)  # (B, 2 C)
        return features

    def _pool(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        """One vector for each example: (B, T, D) -> (B, D), or (B, 2 D) with class token and mean."""
        token = x[:, 0]
        if self.config.pooling == "token":
            return token
        if self.config.pooling == "prefix_avg":
            return x[:, : self.num_prefix_tokens].mean(1)
        x = x[:, self.num_prefix_tokens :]  # (B, N, D)
        if key_mask is not None:
            key_mask = key_mask[..., self.num_prefix_tokens :]  # (B, 1, 1, N)
        if self.attn_pool is not None:
            return self.attn_pool(x, key_mask)
        mean = masked_mean(x, None if key_mask is None else key_mask[:, 0, 0])
        both = self.config.pooling in ("token_avg", "stem_tokens") and self.config.class_token
        return torch.cat([token, mean], dim=1) if both else mean

    def _pool_stem(self, stem: Tensor, mask: Tensor | None) -> Tensor:
        """Mean and maximum of the stem's output over places with observed values: (B, C, *places) -> (B, 2 C)."""
        if mask is not None:
            mask = patchify(mask, (self.config.stem_stride,) * len(self.config.input_size)).any(2)  # (B, places)
        return mean_and_max(stem.flatten(2).transpose(1, 2), mask)

    def _key_mask(self, mask: Tensor) -> Tensor:
        """Mask of values to mask of tokens: (B, *size) -> (B, 1, 1, T); prefix tokens are never masked."""
        patches = observed_patches(mask, self.config.token_size, self.config.token_step)  # (B, N)
        # In an exported graph, len(patches) would make the batch size a constant.
        prefix = patches.new_ones(patches.shape[0], self.num_prefix_tokens)
        return torch.cat([prefix, patches], dim=1)[:, None, None]

    def _check_shapes(self, x: Tensor, mask: Tensor | None) -> None:
        size, channels = self.config.input_size, self.config.in_channels
        if tuple(x.shape[1:]) != (channels, *size) or not x.is_floating_point():
            hint = ""
            if tuple(x.shape) == (channels, *size):
                hint = " A single example still needs the batch axis: x[None]."
            elif x.ndim == 2 + len(size) and x.shape[1] != channels:
                hint = f" The network has in_channels={channels}, the input {x.shape[1]} channels."
            elif x.ndim == 2 + len(size):
                hint = " Resize or pad the input, or build the network with this input_size."
            expected = ", ".join(map(str, ("batch", channels, *size)))
            raise ValueError(
                f"expected a floating-point input of shape ({expected}), got {x.dtype} of {tuple(x.shape)}.{hint}"
            )
        if mask is not None and (mask.shape != (x.shape[0], *size) or mask.dtype != torch.bool):
            raise ValueError(
                f"expected a boolean mask of shape {(x.shape[0], *size)}, got {mask.dtype} {tuple(mask.shape)}"
            )

    def reset_head(self, num_classes: int) -> None:
        """Replace every head by a new one with `num_classes` outputs; 0 leaves the bare features."""
        self.config = replace(self.config, num_classes=num_classes)
        like = self.patch_embed.proj.weight
        for name, width in self._head_widths().items():
            head = nn.Linear(width, num_classes).to(like) if num_classes else nn.Identity()
            head.apply(self._init_module)
            setattr(self, name, head)

    def _head_widths(self) -> dict[str, int]:
        """Width of the input of each head."""
        config, width = self.config, self.config.representation_size or self.config.pooled_dim
        widths = {"head": width}
        if config.distilled:
            widths["head_dist"] = width
        if config.stem_head:
            widths["stem_head"] = 2 * config.stem_channels
        return widths

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Group the trainable parameters by depth and by whether weight decay applies to them.

        Returns:
            A list of {"depth", "decay", "names", "params"}. Depth is 0 for stem, patches, tokens and positions, i + 1
            for block i, and config.depth + 1 for everything after the blocks, for layer-wise learning rates (BEiT,
            MAE). `decay` is False for norms, biases, scales, tokens and positions, including relative ones.
        """
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        undecayed = {"cls_token", "dist_token", "reg_token", "pos_embed", "attn_pool.latent"}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            exempt = name in undecayed or name.endswith("relative_bias")
            key = self.depth_of(name), parameter.ndim > 1 and not exempt
            group = groups.setdefault(key, {"depth": key[0], "decay": key[1], "names": [], "params": []})
            group["names"].append(name)
            group["params"].append(parameter)
        return [groups[key] for key in sorted(groups)]

    def depth_of(self, name: str) -> int:
        """The depth of the parameter of this name, as in `parameter_groups`."""
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
        # Under Kaiming's fan-out, a patch of standardised samples becomes a token of std sqrt(2 channels / width).
        # Balanced positions are as strong, so that they tell places apart from the first training step on.
        balanced = self.config.weight_init == "balanced"
        std = (2 * self.patch_embed.proj.in_channels / self.config.embed_dim) ** 0.5 if balanced else 0.02
        bound = max(2.0, 4 * std)  # torch's default of 2 would cut the wide distributions of many channels
        state = self.state_dict(keep_vars=True)
        head_dim, axes = self.config.head_width, len(self.config.input_size)
        tokens = ("cls_token", "dist_token", "reg_token", "attn_pool.latent")
        for name in (*tokens, "pos_embed", "rope_periods", "xpos_decay"):
            if name not in state or (only is not None and name not in only):
                continue
            if name == "rope_periods":  # of xpos in patches, where rope has half the length of an axis
                unit = 2 * math.pi if self.config.pos_embed == "xpos" else 1
                state[name].copy_(unit * rope_periods(head_dim, axes, self.config.rope_base))
            elif name == "xpos_decay":
                state[name].copy_(xpos_decay(head_dim, axes))
            elif name == "pos_embed" and self.config.pos_embed == "sincos":
                patches = sincos_positions(self.config.grid, self.config.embed_dim)
                with torch.no_grad():  # prefix tokens have no place and get zeros, as in MAE
                    state[name].zero_()[0, -len(patches) :] = patches.to(state[name].device)
            else:
                nn.init.trunc_normal_(state[name], std=std, a=-bound, b=bound)
        for path, module in self.named_modules():
            names = [f"{path}.{leaf}" for leaf, _ in module.named_parameters(recurse=False)]
            if only is None or not only.isdisjoint(names):
                self._init_module(module, in_stem=path.startswith("patch_embed.backbone."))

    def _init_module(self, module: nn.Module, in_stem: bool = False) -> None:
        balanced = self.config.weight_init == "balanced"
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5 if balanced else 0.01)
        elif isinstance(module, StdConv):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            by_fan_in = in_stem and balanced
            nn.init.kaiming_normal_(module.weight, mode="fan_in" if by_fan_in else "fan_out", nonlinearity="relu")
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, ScalarEncoder):
            module.reset_parameters()
        elif isinstance(module, _BatchNorm):
            module.reset_parameters()  # running statistics, too
        elif isinstance(module, Attention) and module.relative_bias is not None:
            nn.init.zeros_(module.relative_bias)
        elif isinstance(module, LayerScale):
            nn.init.constant_(module.gamma, module.init)
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
