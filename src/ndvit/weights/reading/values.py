"""Read what a checkpoint of torch.save holds beside its tensors: settings of a training, class names, preprocessing."""

import argparse
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ndvit.weights.reading.sidecars import (
    RESAMPLING,
    TIMM,
    TRANSFORMERS,
    Sidecars,
    fields_of_name,
    moments_of,
    pair_of,
    task_of,
)

# Names of the values there, which may be nested in args, hyper_parameters and the like: fields of `ViTConfig` as above.
_MOMENTS = (("mean", "std"), ("image_mean", "image_std"), ("norm_mean", "norm_std"), ("img_mean", "img_std"))
_NAMES = ("class_names", "classes", "class_to_idx", "idx_to_class", "id2label", "label2id", "label_names", "labels")
_INVERSE = ("class_to_idx", "label2id")
_ARCHITECTURES = ("model", "arch", "architecture", "model_name", "backbone")
_SETTINGS = re.compile(r"(?:^|\.)(?:args|hyper_parameters|datamodule_hyper_parameters|hparams|config|cfg|opt|meta)$")
_DEEPEST, _MOST = 4, 10_000  # levels and values of settings that are searched


def read_values(values: Mapping[str, Any], actual: Mapping[str, Any]) -> tuple[Sidecars, list[str]]:
    """Read what a checkpoint holds beside its tensors: `args`, `hyper_parameters`, `class_to_idx` and the like.

    Such values may belong to anything, so that one that cannot be used is left out.

    Args:
        values: values by their names in the file.
        actual: fields of `ViTConfig` that the tensors determine, and "num_classes", the number of outputs.

    Returns:
        The fields, and notes on those that were used and left out.
    """
    leaves = _leaves(values)
    used, left = list[str](), list[str]()

    def take(names: Sequence[str], read: Callable[..., Any]) -> Any:
        """What the first readable value of a name, or of several names side by side, says."""
        for group in leaves:
            if any(group.get(name) is None for name in names):
                continue
            paths = [f"{group['']}{name}" for name in names]
            try:
                found = read(*(group[name] for name in names))
            except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
                left.append(f"{' and '.join(paths)} ({error})")
                continue
            if found is not None:
                used.extend(paths)
                return found
        return None

    config: dict[str, Any] = {}
    for theirs, ours in (TRANSFORMERS | TIMM).items():
        read = _size if ours in ("patch_size", "input_size") else _count if ours != "norm_eps" else float
        if ours not in config and (value := take([theirs], partial(_agreeing, ours, read, actual))) is not None:
            config[ours] = value
    if "input_size" not in config and (size := take(["input_size"], _size)) is not None:
        config["input_size"] = size
    architecture = None
    for name in _ARCHITECTURES:
        architecture = architecture or take([name], lambda value: value if isinstance(value, str) else None)
    config = fields_of_name(architecture or "") | config
    if (pooling := take(["gp"], _pooling) or take(["global_pool"], _pooling)) is not None:
        config["pooling"] = pooling
    preprocess: dict[str, Any] = {}
    for pair in _MOMENTS:
        if not preprocess and (moments := take(pair, partial(_checked_moments, actual.get("in_channels")))) is not None:
            preprocess |= moments
    filters = RESAMPLING.values()
    if (found := take(["interpolation"], lambda value: value if value in filters else None)) is not None:
        preprocess["interpolation"] = found
    share = take(["crop_pct"], _fraction)
    if share is None:  # of torchvision's program
        share = take(["val_crop_size", "val_resize_size"], lambda crop, size: _fraction(crop / size))
    if share is not None:
        preprocess["crop_fraction"] = share
    if (found := take(["crop_mode"], {"center": "cover", "squash": "stretch"}.get)) is not None:
        preprocess["resize"] = found
    count = actual.get("num_classes", 0)
    classes = next((c for n in _NAMES if (c := take([n], partial(_names, count, n.startswith(_INVERSE))))), ())
    problem = take(["problem_type"], str)
    notes = []
    if used:
        notes.append(f"taken from the file: {', '.join(dict.fromkeys(used))}")
    if left:
        notes.append(f"left out: {'; '.join(left[:5])}")
    return Sidecars(architecture, config, classes, preprocess, *task_of(problem, "the file")), notes


def _leaves(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Groups of values side by side, each with its path under "": those of the file, then those of its settings."""
    groups, left = list[dict[str, Any]](), _MOST
    queue: list[tuple[str, Any, int]] = [("", values, 0)]
    while queue and left > 0:
        path, value, depth = queue.pop(0)
        group = dict(vars(value)) if isinstance(value, argparse.Namespace) else dict(value)
        left -= len(group)
        groups.append({**{k: v for k, v in group.items() if isinstance(k, str)}, "": path})
        for name, inner in group.items():
            nested = isinstance(inner, Mapping | argparse.Namespace) and isinstance(name, str) and depth < _DEEPEST
            if nested and (depth or _SETTINGS.search(name)):
                queue.append((f"{path}{name}.", inner, depth + 1))
    return groups


def _agreeing(name: str, read: Callable[[Any], Any], actual: Mapping[str, Any], value: Any) -> Any:
    """A field of `ViTConfig`, or None if the tensors contradict it."""
    found = read(value)
    if name == "num_heads" and actual.get("embed_dim", 0) % found:
        return None
    return found if actual.get(name, found) == found else None


def _count(value: Any) -> int:
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise ValueError(f"expected a whole number above 0, got {str(value)[:40]}")
    return int(value)


def _size(value: Any) -> tuple[int, ...]:
    """(height, width), also from one number or from (channels, height, width)."""
    value = list(value)[-2:] if isinstance(value, list | tuple) else value
    return pair_of(value, "it")


def _fraction(value: Any) -> float:
    if not 0 < float(value) <= 1:
        raise ValueError(f"expected a share of at most 1, got {str(value)[:40]}")
    return float(value)


def _pooling(value: Any) -> str | None:
    return value if value in ("token", "avg", "map") else None


def _checked_moments(channels: int | None, mean: Any, std: Any) -> dict[str, Any] | None:
    if isinstance(mean, int | float) or isinstance(std, int | float):
        return None
    found = moments_of(mean, std)
    numbers = [*found["mean"], *found["std"]]
    if {len(found["mean"]), len(found["std"])} != {channels} or not all(map(math.isfinite, numbers)):
        raise ValueError(f"expected {channels} finite numbers each, got {str(mean)[:40]} and {str(std)[:40]}")
    if min(found["std"]) <= 0:
        raise ValueError(f"standard deviations must be above 0, got {str(std)[:40]}")
    if max(numbers) > 2:  # of pixels from 0 to 255
        found |= {name: tuple(number / 255 for number in found[name]) for name in ("mean", "std")}
    return found


def _names(count: int, inverse: bool, value: Any) -> tuple[str, ...] | None:
    """Class names in the order of the outputs: from a list, or a dict from outputs to names or, if `inverse`, back."""
    if isinstance(value, Mapping):
        by_output = {int(i): n for n, i in value.items()} if inverse else {int(i): n for i, n in value.items()}
        value = [by_output[i] for i in range(len(by_output))]
    if not isinstance(value, list | tuple) or not all(isinstance(name, str | int) for name in value):
        return None
    names = tuple(map(str, value))
    if len(set(names)) != len(names) or names == tuple(f"LABEL_{i}" for i in range(len(names))):
        return None
    if len(names) != count:
        raise ValueError(f"{len(names):,} class names for {count:,} outputs")
    return names
