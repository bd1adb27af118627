"""Application of a preset to data: the options of a run, from the preset and the user."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ndvit.config import Recipe, ViTConfig, named_config
from ndvit.config.presets import PRESETS, Preset, resolve_preset
from ndvit.config.pretraining import PRETRAINING_PRESETS, PretrainingOptions, pretraining_preset
from ndvit.config.recipe import SOLVED_BY
from ndvit.config.solved import SOLVED, reads_signals
from ndvit.data.examples import Source
from ndvit.data.preprocess.images import median_size
from ndvit.data.sources.files import header_of
from ndvit.training.spectrograms import are_sounds

_ENOUGH = 10
"""Training examples a class from which on a network that is trained on them may add to the solved ones."""
_DESCENT = (Recipe.__dataclass_fields__.keys() - SOLVED_BY) | (ViTConfig.__dataclass_fields__.keys() - {"input_size"})
"""Options that only training by steps reads."""
_TRAINED_TOO = Recipe.__dataclass_fields__.keys() | PretrainingOptions.__dataclass_fields__.keys() | {"drop_path_rate"}
"""Options of a preset that also apply to trained weights; others describe a new network."""


_SHORTEST = replace(PRESETS["signal"], model="signal_tiny", recipe={"steps": 60, "learning_rate": 1e-2}, passes=0)
"""In place of preset fast for signals of one or two samples, in which there is little to learn."""


@dataclass(frozen=True)
class Choice:
    """A preset applied to data: its name, the network's (None if trained weights bring one), options, and notes."""

    preset: str
    model: str | None
    options: dict[str, Any]
    notes: tuple[str, ...] = ()


def descends(own: Mapping[str, Any]) -> bool:
    """Whether options are set that only training by steps reads."""
    return bool(own.keys() & _DESCENT)


def choose(
    name: str,
    data: Source,
    model: str | None,
    own: Mapping[str, Any],
    trained: ViTConfig | None = None,
    objective: str | None = None,
) -> Choice:
    """Combine a preset with the user's options.

    Args:
        name: a preset, or "auto", see `resolve_preset`.
        data: data to train on.
        model: name of the network; None if the preset is to choose it.
        own: the user's options, which replace the preset's.
        trained: config of trained weights, if training starts from them.
        objective: name of the objective of a pretraining, which has presets of its own; None for a training.

    Raises:
        ValueError: for an unknown preset, one for other data, or one that needs trained weights; and for options
            that need trained weights, or adapters wider than those.
    """
    automatic, notes, few = name == "auto", list[str](), False
    if objective is None:
        name = resolve_preset(
            name,
            model=model,
            kind="spectrogram" if data.spectrogram and data.input_dims == 2 else data.kind,
            dims=data.input_dims,
            trained=trained is not None,
            source=data.name,
        )
        few = len(data.train) / data.task.num_kinds < _ENOUGH
        free = automatic and name == "signal" and model is None and not descends(own)
        if free and data.spectrogram is not None and are_sounds(data.train):
            name = "fast"
            notes.append(
                "preset fast, which knows new speakers better than a trained network; --preset spectrogram trains one"
            )
        elif free and few:
            name = "fast"
            notes.append(
                f"fewer than {_ENOUGH} training examples a class{_of_numbers(data)}: preset fast, because a network "
                "adds nothing to solved ones then; --preset signal trains one"
            )
        preset = PRESETS[name]
        if name == "fast" and model is None and trained is None and len(data.train) and not _readable(data):
            name, preset = "signal", _SHORTEST
            notes = ["a small network and few steps, because solved networks read signals of at least 3 samples"]
    else:
        name = pretraining_preset(objective, data.kind, data.input_dims)
        preset = PRETRAINING_PRESETS[name]
    model = model or (preset.model if trained is None else None)
    width = own.get("embed_dim") or 0
    if model != SOLVED:
        width = width or (trained or named_config(model or "")).embed_dim
    options = preset.options(width if isinstance(width, int) else 0)
    options |= {key: value for key, value in data.task.preset_changes.items() if key in options}
    if options.get("val_fraction") and (data.val is not None or data.train.streamed or few or trained is not None):
        options.pop("val_fraction")  # nothing can be held out, or too little to decide anything by
    if trained is not None:
        options = {key: value for key, value in options.items() if key in _TRAINED_TOO}
        if not preset.batch:  # the learning rate is for a new network; `Recipe` has a default for trained weights
            options.pop("learning_rate", None)
    solved = {**options, **own}.get("head") == "solved"
    if solved:
        options = {key: value for key, value in options.items() if key in SOLVED_BY}
    usual = {field.name: field.default for field in fields(Recipe)} | options
    options |= own
    if "final_share" not in own and not options.get("val_fraction"):
        options.pop("final_share", None)
    _check_adaptation(options, trained, model)
    unused = sorted(  # a config.yaml has every option, also those that were not set
        key for key, value in own.items() if key in _DESCENT and value is not None and value != usual.get(key)
    )
    if model == SOLVED and unused:
        raise ValueError(
            f"{' and '.join(unused)} would do nothing: preset {name} solves {SOLVED}, and trains no network by steps. "
            f"Leave {'it' if len(unused) == 1 else 'them'} out, or set --preset signal (preset='signal')"
        )
    devices = _devices(options)
    if preset.small_batches and "batch_size" not in own:
        options["batch_size"] = math.ceil(min(Recipe.batch_size, max(8, len(data.train) // 8)) / devices)
    if objective is not None and "batch_size" not in own:  # no example twice, where that is possible
        options["batch_size"] = max(4, min(options["batch_size"], options.get("repeats", 1) * len(data.train)))
    if "batch_size" in own and "accumulate" not in own:
        options.pop("accumulate", None)  # the preset's value belongs to the preset's batch size
    if "accumulate" in options and "accumulate" not in own:  # parts of a large batch go to devices first
        options["accumulate"] = max(1, options["accumulate"] // devices)
    if not solved:
        _count_steps(options, preset, own, len(data.train))
        notes += _scale_learning_rate(options, name, preset, own)
    if preset.small_images and data.kind == "image" and trained is not None and "input_size" not in own:
        notes += _shrink_input(options, data, trained)
    return Choice(name, model, options, tuple(notes))


def _of_numbers(data: Source) -> str:
    """A remark for tasks that count as having other numbers of classes than outputs."""
    kinds = data.task.num_kinds
    return "" if kinds == data.task.num_outputs else f" ({data.task.name} counts as {kinds} classes)"


def _readable(data: Source) -> bool:
    """Whether solved networks can read the first example, and so the longest one."""
    return reads_signals(header_of(data.train.items[0]).grid)


def _check_adaptation(options: Mapping[str, Any], trained: ViTConfig | None, model: str | None) -> None:
    """Raise a ValueError for a new network that is partly frozen, or for adapters wider than the layers."""
    frozen = [f"{name}={options[name]}" for name in ("freeze", "lora") if options.get(name) is not None]
    frozen += ["head='solved'"] if options.get("head") == "solved" and model != SOLVED else []
    if frozen and trained is None:
        raise ValueError(
            f"{' and '.join(frozen)} needs trained weights, because frozen layers of a new network never learn: set "
            "--weights (weights=), or leave the option out"
        )
    rank = options.get("lora")
    if trained is not None and isinstance(rank, int) and rank > trained.embed_dim:
        raise ValueError(
            f"lora={rank}: a rank above the {trained.embed_dim} numbers of a token makes adapters larger than the "
            "layers that they replace: 4 to 16 are usual"
        )


def _count_steps(options: dict[str, Any], preset: Preset, own: Mapping[str, Any], examples: int) -> None:
    """Replace the preset's steps by the user's steps or epochs, or extend them for large data."""
    if own.get("steps") is not None or own.get("epochs") is not None:
        options |= {name: own.get(name) for name in ("steps", "epochs")}
    elif preset.passes:
        options["steps"] = max(preset.recipe["steps"], math.ceil(preset.passes * examples / _batch(options)))


def _scale_learning_rate(options: dict[str, Any], name: str, preset: Preset, own: Mapping[str, Any]) -> list[str]:
    """Scale the preset's learning rate to the effective batch; a note if it changes."""
    batch = _batch(options)
    if not preset.batch or "learning_rate" in own or batch == preset.batch:
        return []
    usual = options["learning_rate"]
    options["learning_rate"] = preset.scale(usual, batch)
    return [
        f"learning rate {options['learning_rate']:.2g}: {usual:.2g} of preset {name} is for {preset.batch:,} examples "
        f"in a step, scaled {preset.scaled} to {batch:,}"
    ]


def _batch(options: Mapping[str, Any]) -> int:
    """Effective batch size."""
    size: int = options.get("batch_size", Recipe.batch_size) * options.get("accumulate", Recipe.accumulate)
    return size * _devices(options)


def _devices(options: Mapping[str, Any]) -> int:
    """Devices that share an optimizer step."""
    return Recipe(**{name: options[name] for name in ("devices", "nodes") if name in options}).replicas


def _shrink_input(options: dict[str, Any], data: Source, trained: ViTConfig) -> list[str]:
    """Keep the size of images smaller than the weights' input; a note if they are."""
    size, patch = trained.input_size, trained.token_size
    if len(size) != 2:
        return []
    longest = max(median_size(data.train))
    wanted = tuple(min(s, max(math.ceil(longest / p), math.ceil(s / 2 / p)) * p) for s, p in zip(size, patch))
    if wanted == size:
        return []
    options["input_size"] = wanted
    smaller, usual = (" x ".join(map(str, pixels)) for pixels in (wanted, size))
    return [
        f"images are small (median longest side {longest}): the input is {smaller} instead of the weights' {usual}, "
        "which costs a fraction of the time; --input-size sets another"
    ]
