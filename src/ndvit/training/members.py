"""Untrained members of a run: a transformer, new or with trained weights, and the random convolutions beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ndvit.config import ViTConfig, named_config, plan_strides, stem_stride
from ndvit.config.random_convolutions import RandomConvolutionOptions, default_features, split_legacy
from ndvit.config.recipe import Recipe, Resize
from ndvit.data.examples import Source
from ndvit.data.fitting import fit_patch, fit_size, fit_to_weights
from ndvit.data.preprocess import preprocess_from_dict
from ndvit.data.preprocess.base import Preprocess
from ndvit.files import make_folder, replace_file
from ndvit.load_report import LoadReport
from ndvit.model import Model, as_model
from ndvit.network import VisionTransformer
from ndvit.network.committee import Committee
from ndvit.network.cost import check_memory
from ndvit.network.random_convolutions import RandomConvolutions
from ndvit.tasks.base import Task
from ndvit.weights.building import build
from ndvit.weights.file import Checkpoint
from ndvit.weights.opening import open_weights

_ENOUGH = 10  # examples per output from which on the network has as much weight as the random convolutions
_MANY = 500  # examples per output from which on it has more, because it learns from all of them
_NETWORK_FILE = "checkpoints/network.json"


def open_to_train(weights: Any, overrides: Mapping[str, Any], ema: bool | None = None) -> Checkpoint:
    """The weights of a single transformer, from a path, a name, a `Model` or a `Checkpoint`.

    Raises:
        ValueError: for an ensemble, and for `ema` without a file to choose from.
    """
    if ema is not None and isinstance(weights, Model | Checkpoint | None):
        raise ValueError(f"ema={ema} chooses among the weights of a file: leave it out")
    if isinstance(weights, Model):
        weights = Checkpoint.from_model(weights)
    elif not isinstance(weights, Checkpoint):
        weights = open_weights(weights, overrides, ema=ema)
    transformers = weights.transformers()
    if len(transformers) > 1:
        raise ValueError(
            f"{weights.source} is an ensemble of {len(transformers)} networks, and training starts from one: pass one "
            "of its run's members/0, members/1, ... or write one to a file with `ndvit convert --to ndvit --member 0`"
        )
    return transformers[0]


@dataclass(frozen=True, eq=False)
class Adapted:
    """What trained weights were adapted to. A run folder keeps it, because a resumed run reads no weights again."""

    config: ViTConfig
    preprocess: Preprocess
    licence: str | None
    report: LoadReport
    random_features: int

    def write(self, folder: Path) -> None:
        """Write it into a run folder."""
        values = {
            "config": self.config.to_dict(),
            "preprocess": self.preprocess.to_dict(),
            "licence": self.licence,
            "report": asdict(self.report),
            "random_features": self.random_features,
        }
        make_folder((folder / _NETWORK_FILE).parent)
        replace_file(folder / _NETWORK_FILE, json.dumps(values, indent=1))

    @classmethod
    def read(cls, folder: Path) -> Adapted | None:
        """What `write` left in a run folder, or None."""
        if not (folder / _NETWORK_FILE).is_file():
            return None
        values = json.loads((folder / _NETWORK_FILE).read_text(encoding="utf-8"))
        config, legacy = split_legacy(values["config"])
        return cls(
            ViTConfig.from_dict(config),
            preprocess_from_dict(values["preprocess"]),
            values["licence"],
            LoadReport.from_json(values["report"]),
            values.get("random_features", legacy.get("rocket_features", 0)),
        )


@dataclass(frozen=True)
class MemberBuilder:
    """Makes members: a transformer, new or with trained weights, and random convolutions beside it."""

    task: Task
    preprocess: Preprocess
    transformer: Callable[[], Model]
    fresh: bool
    features: int
    weight: float
    trained_for: Task | None = None

    def seeded(self, recipe: Recipe) -> Callable[[int], Model]:
        """A function from a seed to a member."""
        bias = self.task.initial_bias(recipe)

        def build_member(seed: int) -> Model:
            torch.manual_seed(seed)
            # New random convolutions are made before a new network, so that a seed gives the weights it always gave.
            convolutions = self._convolutions() if self.fresh else None
            model = self.transformer()
            if bias is not None:
                for name, parameter in model.network.named_parameters():
                    if (self.fresh or name in model.untrained) and name in _HEAD_BIASES:
                        with torch.no_grad():
                            parameter[self._new_outputs(model, name)] = bias
            if not self.fresh:
                with torch.random.fork_rng([]):
                    convolutions = self._convolutions()
            if convolutions is not None:
                model = model.with_network(
                    Committee([model.network, convolutions], [1 - self.weight, self.weight], combine="outputs")
                )
            return model

        return build_member

    def _new_outputs(self, model: Model, name: str) -> list[int]:
        """Outputs of a head bias that trained weights do not have."""
        kept = None
        if self.trained_for is not None and model.load_report is not None and name not in model.load_report.new:
            kept = self.task.kept_outputs(self.trained_for)
        return [i for i in range(self.task.num_outputs) if kept is None or kept[i] is None]

    def _convolutions(self) -> RandomConvolutions | None:
        if not self.features:
            return None
        channels, (length,) = self.preprocess.channels, self.preprocess.size
        return RandomConvolutions(channels, length, self.features, self.task.num_outputs)


_HEAD_BIASES = ("head.bias", "head_dist.bias", "stem_head.bias")


def member_builder(
    data: Source,
    name: str | None,
    overrides: dict[str, Any],
    convolutions: RandomConvolutionOptions,
    checkpoint: Checkpoint | None,
    adapted: Adapted | None,
    resize: Resize | None = None,
) -> MemberBuilder:
    """Fit preprocessing and network to the data; `resize` is that of the recipe."""
    task = data.task
    if adapted is not None:
        preprocess, usual_features = adapted.preprocess, adapted.random_features
        provenance = {"licence": adapted.licence}

        def transformer() -> Model:
            network = VisionTransformer(adapted.config)
            return Model(network, task, preprocess, provenance=provenance, load_report=adapted.report)

    elif checkpoint is not None:
        preprocess, fitting = fit_to_weights(data, checkpoint.config, checkpoint.preprocess, overrides, resize)
        fitting = {"drop_path_rate": 0.0, **overrides, **fitting}
        usual_features = checkpoint.random_features

        def transformer() -> Model:
            built = build(checkpoint, overrides=fitting, task=task, new_head=True)
            return as_model(replace(built, preprocess=preprocess))

    else:
        assert name is not None
        preprocess, config = _new_network(data, name, overrides, resize)
        usual_features = default_features(name, config.input_size)

        def transformer() -> Model:
            return Model(VisionTransformer(config), task, preprocess)

    weight = convolutions.rocket_weight
    if weight is None:
        weight = usual_weight(len(data.train) / task.num_outputs)
    fresh = adapted is None and checkpoint is None
    features = convolutions.features(usual_features, preprocess.size)
    trained_for = None if checkpoint is None else checkpoint.task
    return MemberBuilder(task, preprocess, transformer, fresh, features, weight, trained_for)


def usual_weight(examples: float) -> float:
    """Default weight of random convolutions beside a network, for this many training examples per output.

    Few examples teach a network less than random convolutions know. Of many examples it learns what a linear solution
    on a sample of them cannot express, and that holds better for other recordings than those in the training set.
    """
    if examples < _ENOUGH:
        return 1 - examples / _ENOUGH / 2
    return 0.5 * min(1.0, _MANY / examples)


def _new_network(
    data: Source, name: str, overrides: Mapping[str, Any], resize: Resize | None
) -> tuple[Preprocess, ViTConfig]:
    """Preprocessing and config of a named network for the data.

    The input size is the user's, or the one in the name, or that of the data, rounded up to whole patches.
    """
    named, dims = named_config(name), data.dims
    size, patch = overrides.get("input_size"), overrides.get("patch_size")
    if "_patch" in name:
        if len(named.input_size) != dims:
            raise ValueError(
                f"{name} reads pictures, but {data.name} has {dims} dimension{'s' * (dims > 1)}: "
                f"use {name.partition('_patch')[0]}, which takes its dimensions from the data"
            )
        size, patch = size or named.input_size, patch or named.patch_size
    stem, depths = (overrides.get(key, getattr(named, key)) for key in ("stem", "stem_depths"))
    strides = overrides.get("stem_strides", ())
    # Options that cannot work are refused before the data is read.
    small = (4 * stem_stride(stem, depths, strides),) * dims
    probe = named_config(name, **{**overrides, "input_size": small, "patch_size": 1})
    preprocess = fit_size(data, size, resize)
    if probe.stem in ("inception", "residual") and "stem_strides" not in overrides:
        strides = plan_strides(preprocess.size, len(probe.stem_depths))
    preprocess, patch = fit_patch(preprocess, size, patch, stem, stem_stride(stem, depths, strides))
    # The article's initial weights need more steps than small data allows, see `ViTConfig.weight_init`.
    values = {"weight_init": "balanced", **overrides} | {
        "input_size": preprocess.size,
        "patch_size": patch,
        "stem_strides": strides,
        "in_channels": preprocess.channels,
        "num_classes": data.task.num_outputs,
    }
    config = named_config(name, **values)
    check_memory(config)
    return preprocess, config
