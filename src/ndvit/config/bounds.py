"""What every field of a config must be by itself, which fields go together, and how to mend what does not."""

import difflib
import math
from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from ndvit.config.network import ViTConfig


SHORTEST_ROCKET = 3  # samples, which have two differences: kernels are laid over both


def check_values(config: "ViTConfig") -> None:
    """Raise a ValueError for the first field that is wrong whatever the others are."""
    for name in ("in_channels", "embed_dim", "depth", "num_heads", "stem_width", "stem_kernel"):
        require_whole(name, getattr(config, name), at_least=1)
    for name in ("num_classes", "num_registers", "rocket_features", "merge_tokens"):
        require_whole(name, getattr(config, name), at_least=0)
    if config.representation_size is not None:
        require_whole("representation_size", config.representation_size, at_least=1)
    for name in ("mlp_ratio", "norm_eps", "qk_scale", "layer_scale", "rope_base"):
        value = getattr(config, name)
        if value is not None and not (_is_number(value) and 0 < value < math.inf):
            raise ValueError(f"{name} must be a positive number, got {value!r}")
    for name in ("drop_rate", "attn_drop_rate", "drop_path_rate", "patch_drop_rate", "head_drop"):
        value = getattr(config, name)
        if not (_is_number(value) and 0 <= value < 1):
            raise ValueError(f"{name} is a probability: it must be at least 0 and below 1, got {value!r}")
    if not (_is_number(config.rocket_weight) and 0 <= config.rocket_weight <= 1):
        raise ValueError(f"rocket_weight must be a number from 0 to 1, got {config.rocket_weight!r}")
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if kind is bool and not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {value!r}")
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}; got {value!r}")


def check_combinations(config: "ViTConfig") -> None:
    """Raise a ValueError for fields that are right by themselves and make no network together."""
    _check_stem(config)
    _check_input(config)
    _check_encoder(config)
    _check_head(config)


def _check_input(config: "ViTConfig") -> None:
    size, patch, stride = config.input_size, config.patch_size, config.stem_stride
    if len(patch) != len(size):
        raise ValueError(
            f"patch_size {patch} has {len(patch)} axes but input_size {size} has {len(size)}: "
            "give one number for every axis, or a single number for all"
        )
    for axis, (s, p) in enumerate(zip(size, config.token_size)):
        if s % p:
            near = sorted({max(p, s // p * p), (s // p + 1) * p})
            behind = f" behind a stem of stride {stride}" if stride > 1 else ""
            other = f", or a patch of {_divisors_near(s, p)}" if stride == 1 else ""
            raise ValueError(
                f"input_size {size} is not divisible by patch_size {patch}{behind} along axis {axis} ({s} = "
                f"{s // p} x {p} + {s % p}): use an input of {' or '.join(map(str, near))}{other}"
            )


def _check_stem(config: "ViTConfig") -> None:
    depths, strides = config.stem_depths, config.stem_strides
    if config.stem in ("none", "resnet") and strides:
        why = "halves its grid by itself" if config.stem == "resnet" else "is no stem"
        raise ValueError(
            f"stem_strides {strides} are of the inception and residual stems, but stem={config.stem!r} {why}: "
            "leave them out, or set stem='inception'"
        )
    if config.stem in ("inception", "residual") and not depths:
        raise ValueError(f"stem_depths is empty: the {config.stem} stem needs one group at least, for example (3,)")
    if len(strides) > len(depths):
        raise ValueError(
            f"stem_strides {strides} has {len(strides)} strides for {len(depths)} groups (stem_depths {depths}): "
            "a group has one, and a missing one is 1"
        )
    if len(config.stem_dilations) > 8:
        raise ValueError(f"stem_dilations has {len(config.stem_dilations)} branches: a module has at most eight")
    if config.stem_kernel % 2 == 0:
        near = f"{config.stem_kernel - 1} or {config.stem_kernel + 1}"
        raise ValueError(f"stem_kernel {config.stem_kernel} is even and has no middle: use {near}")
    if config.stem == "resnet" and config.stem_width % 32:
        raise ValueError(f"stem_width {config.stem_width} is not a multiple of 32: GroupNorm has 32 groups")
    if config.stem == "none":
        for name, given in (
            ("pooling='stem_tokens'", config.pooling == "stem_tokens"),
            ("stem_head=True", config.stem_head),
        ):
            if given:
                raise ValueError(
                    f"{name} reads the output of a stem, and there is none: set stem='inception', 'residual' or "
                    "'resnet', or leave it out"
                )


def _check_encoder(config: "ViTConfig") -> None:
    dims = len(config.input_size)
    if config.relative_bias and config.patch_drop_rate:
        raise ValueError(
            f"patch_drop_rate={config.patch_drop_rate} and relative_bias exclude each other: the bias is of a whole "
            "grid. Set patch_drop_rate=0 or relative_bias=False"
        )
    others = {
        "pos_embed='rope'": (config.pos_embed == "rope", "pos_embed='learned' or 'sincos'"),
        "relative_bias=True": (config.relative_bias, "relative_bias=False"),
    }
    for name, (given, instead) in others.items():
        if config.merge_tokens and given:
            raise ValueError(
                f"merge_tokens={config.merge_tokens} and {name} exclude each other: a merged token stands in no single "
                f"place of the grid. Set merge_tokens=0, or {instead}"
            )
    if config.embed_dim % config.num_heads:
        raise ValueError(
            f"embed_dim {config.embed_dim} is not divisible by num_heads {config.num_heads}: "
            f"use {_divisors_near(config.embed_dim, config.num_heads)} heads"
        )
    if config.pos_embed == "sincos" and config.embed_dim % (2 * dims):
        raise ValueError(
            f"sin-cos positions in {dims} dimensions need embed_dim divisible by {2 * dims}, got "
            f"{config.embed_dim}: change the width or use pos_embed='learned'"
        )
    if config.pos_embed == "rope" and (config.embed_dim // config.num_heads) % (2 * dims):
        raise ValueError(
            f"rope in {dims} dimensions needs a head width divisible by {2 * dims}, got embed_dim "
            f"{config.embed_dim} / {config.num_heads} heads: change either or use pos_embed='learned'"
        )


def _check_head(config: "ViTConfig") -> None:
    if config.distilled and config.representation_size is not None:
        raise ValueError(
            "distilled and representation_size exclude each other: the distillation head reads its token directly. "
            "Set representation_size=None or distilled=False"
        )
    if config.distilled and not (config.class_token and config.pooling == "token"):
        raise ValueError("distilled needs class_token=True and pooling='token': its two heads read two tokens")
    if config.distilled and config.head_norm != "none":
        raise ValueError(
            f"distilled and head_norm={config.head_norm!r} exclude each other: the two heads read their tokens "
            "directly. Set head_norm='none' or distilled=False"
        )
    if config.distilled and config.stem_head:
        raise ValueError(
            "distilled and stem_head exclude each other: training returns one pair of outputs. Set one of them to False"
        )
    if config.pooling in ("token", "token_avg") and not config.class_token:
        raise ValueError(
            f"pooling={config.pooling!r} reads the class token: set class_token=True, or pooling='avg' or 'map'"
        )
    if config.rocket_features:
        _check_rocket(config)


def _check_rocket(config: "ViTConfig") -> None:
    if len(config.input_size) != 1:
        raise ValueError(
            f"rocket_features are of signals of one axis, but input_size {config.input_size} has "
            f"{len(config.input_size)}: leave rocket_features at 0"
        )
    if config.input_size[0] < SHORTEST_ROCKET:
        raise ValueError(
            f"rocket_features need signals of at least {SHORTEST_ROCKET} samples, but input_size is "
            f"{config.input_size[0]}: leave rocket_features at 0"
        )
    if config.rocket_features < 168:
        raise ValueError(
            f"rocket_features must be 0 or at least 168, one for each of 84 kernels on the signal and on its "
            f"differences; got {config.rocket_features}: 10,000 is usual"
        )


def check_field_names(cls: type, names: Iterable[str]) -> None:
    """Raise a ValueError that names the nearest known field for each name that `cls`, a dataclass, does not have."""
    known = [f.name for f in fields(cls)]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"{cls.__name__} has no field {name!r}: {hint}")


def unwrap_numbers(config: Any) -> None:
    """Turn numpy's scalars among the fields of a frozen dataclass into Python's, which JSON and YAML can hold."""
    for field in fields(config):
        value = getattr(config, field.name)
        if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0:
            object.__setattr__(config, field.name, value.item())


def require_whole(name: str, value: Any, at_least: int) -> None:
    """Raise a ValueError for anything but a whole number of at least `at_least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{name} must be a whole number of at least {at_least}, got {value!r}")


def whole_numbers(name: str, value: Any, empty: bool = False) -> tuple[int, ...]:
    """A tuple of whole numbers of at least 1; a bare number is a tuple of one, and none at all only where allowed."""
    numbers = tuple(value) if isinstance(value, tuple | list) else (value,)
    if not numbers and not empty:
        raise ValueError(f"{name} is empty: give one whole number for every axis")
    for number in numbers:
        require_whole(name, number, at_least=1)
    return numbers


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _divisors_near(value: int, wanted: int) -> str:
    """Up to four divisors of a value, the nearest to the wanted one, as words."""
    small = [d for d in range(1, min(math.isqrt(value), 100_000) + 1) if value % d == 0]
    divisors = sorted({*small, *(value // d for d in small)})
    near = sorted(sorted(divisors, key=lambda d: (abs(d - wanted), d))[:4])
    return ", ".join(map(str, near[:-1])) + (" or " if len(near) > 1 else "") + str(near[-1])
