"""Untrained members of a run: a transformer, new or with trained weights, and the solved networks beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ndvit.config import ViTConfig, named_config, plan_strides, stem_stride
from ndvit.config.recipe import Recipe, Resize
from ndvit.config.solved import SOLVED, SolvedOptions, default_features, split_legacy
from ndvit.data.examples import Source
from ndvit.data.fitting import fit_patch, fit_size, fit_to_weights
from ndvit.data.preprocess import preprocess_from_dict
from ndvit.data.preprocess.base import Preprocess
from ndvit.data.preprocess.spectrograms import SpectrogramPreprocess
from ndvit.files import make_folder, replace_file
from ndvit.load_report import LoadReport
from ndvit.model import Model, as_model
from ndvit.network import VisionTransformer
from ndvit.network.committee import Committee
from ndvit.network.cost import check_memory
from ndvit.network.encoder_features import EncoderFeatures
from ndvit.network.level_features import LevelFeatures
from ndvit.network.random_convolutions import RandomConvolutions
from ndvit.network.solved import SolvedNetwork
from ndvit.tasks.base import Task
from ndvit.training.closed_form import ENCODER_WEIGHT, usual_shares
from ndvit.weights.building import build
from ndvit.weights.file import Checkpoint
from ndvit.weights.opening import open_weights
from ndvit.weights.signal_encoder import signal_encoder

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
    weights.check_transformer()
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
    """Makes members: a transformer, new or with trained weights, if there is one, and the solved networks beside it.

    Attributes:
        task: what they are trained for.
        preprocess: makes their inputs.
        transformer: makes the transformer; None for solved networks alone.
        fresh: whether the transformer is new.
        features: number of random convolution features; 0 for none.
        encoder: whether the frozen encoder is beside it.
        levels: whether level and spread of the channels are beside it.
        solved_weight: weight of the solved networks together.
        encoder_weight: weight of the encoder among them.
        trained_for: task of the trained weights.
    """

    task: Task
    preprocess: Preprocess
    transformer: Callable[[], Model] | None
    fresh: bool
    features: int
    encoder: bool
    levels: bool
    solved_weight: float
    encoder_weight: float
    trained_for: Task | None = None

    def seeded(self, recipe: Recipe) -> Callable[[int], Model]:
        """A function from a seed to a member."""
        bias = self.task.initial_bias(recipe)

        def build_member(seed: int) -> Model:
            torch.manual_seed(seed)
            if self.transformer is None:
                return Model(self._committee([]), self.task, self.preprocess)
            # New random convolutions are made before a new network, so that a seed gives the weights it always gave.
            solved = self._solved() if self.fresh else []
            model = self.transformer()
            if bias is not None:
                for name, parameter in model.network.named_parameters():
                    if (self.fresh or name in model.untrained) and name in _HEAD_BIASES:
                        with torch.no_grad():
                            parameter[self._new_outputs(model, name)] = bias
            if not self.fresh:
                with torch.random.fork_rng([]):
                    solved = self._solved()
            return model.with_network(self._committee([model.network], solved)) if solved else model

        return build_member

    def _new_outputs(self, model: Model, name: str) -> list[int]:
        """Outputs of a head bias that trained weights do not have."""
        kept = None
        if self.trained_for is not None and model.load_report is not None and name not in model.load_report.new:
            kept = self.task.kept_outputs(self.trained_for)
        return [i for i in range(self.task.num_outputs) if kept is None or kept[i] is None]

    def _solved(self) -> list[SolvedNetwork]:
        """Random convolutions, the frozen encoder, level and spread, as far as the options have them."""
        networks: list[SolvedNetwork] = []
        channels, size, outputs = self.preprocess.channels, self.preprocess.size, self.task.num_outputs
        if self.features:
            convolutions = RandomConvolutions(channels, size[0], self.features, outputs)
            if isinstance(self.preprocess, SpectrogramPreprocess):
                convolutions.bands = self.preprocess.bands
            networks.append(convolutions)
        if self.encoder:
            with torch.random.fork_rng([]):
                config, tensors = signal_encoder()
                features = EncoderFeatures(config, channels, size[0], outputs)
            features.encoder.load_state_dict(tensors)
            networks.append(features)
        if self.levels:
            networks.append(LevelFeatures(channels, size[0], outputs))
        return networks

    def _committee(self, trained: list[nn.Module], solved: list[SolvedNetwork] | None = None) -> nn.Module:
        """The mean of trained and solved networks by their usual weights; a single network itself."""
        solved = self._solved() if solved is None else solved
        total = self.solved_weight if trained else 1.0
        shares = usual_shares(solved, self.encoder_weight)
        weights = [1 - total] * len(trained) + [total * share for share in shares]
        networks = [*trained, *solved]
        return networks[0] if len(networks) == 1 else Committee(networks, weights, combine="outputs")


_HEAD_BIASES = ("head.bias", "head_dist.bias", "stem_head.bias")


def member_builder(
    data: Source,
    name: str | None,
    overrides: dict[str, Any],
    options: SolvedOptions,
    checkpoint: Checkpoint | None,
    adapted: Adapted | None,
    resize: Resize | None = None,
) -> MemberBuilder:
    """Fit preprocessing and network to the data; `resize` is that of the recipe."""
    task, transformer = data.task, None
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

    elif name == SOLVED:
        preprocess = fit_size(data, overrides.get("input_size"), resize)
        usual_features = default_features(name, preprocess.size)
        if not usual_features:
            raise ValueError(
                f"{SOLVED} reads signals of one axis and at least 3 samples, and {data.name} has inputs of "
                f"{preprocess.size}: leave model (--model) out"
            )
    else:
        assert name is not None
        preprocess, config = _new_network(data, name, overrides, resize)
        usual_features = default_features(name, config.input_size)

        def transformer() -> Model:
            return Model(VisionTransformer(config), task, preprocess)

    share, fixed = options.encoder_weight, options.solved_weight
    fresh, outputs = adapted is None and checkpoint is None, task.num_outputs
    features = options.features(usual_features, preprocess.size) if outputs else 0
    encoder = outputs > 0 and options.encodes(fresh and bool(usual_features), preprocess.size)
    solved = encoder or features > 0
    sounds = isinstance(preprocess, SpectrogramPreprocess)  # whose loudness depends on the microphone
    builder = MemberBuilder(
        task=task,
        preprocess=preprocess,
        transformer=transformer,
        fresh=fresh,
        features=features,
        encoder=encoder,
        levels=outputs > 0 and options.reads_levels(fresh and solved and not sounds, preprocess.size),
        solved_weight=fixed if isinstance(fixed, float | int) else usual_weight(len(data.train) / task.num_kinds),
        encoder_weight=ENCODER_WEIGHT if share is None else share,
        trained_for=None if checkpoint is None else checkpoint.task,
    )
    if transformer is None and not (builder.features or builder.encoder or builder.levels):
        raise ValueError(f"{SOLVED} without random convolutions and encoder is empty: switch one of them on")
    return builder


def usual_weight(examples: float) -> float:
    """Usual weight of solved networks beside a trained one, for this many training examples per output.

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
    named, dims = named_config(name), data.input_dims
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
