"""What a run will do: data, split, network, recipe and cost, decided before anything is trained or written.

`plan` is the only way from a request to a training. The command line, `train` and `ViTClassifier` all use it, so every
rule is written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ndvit import __version__
from ndvit.config.bounds import Members, checked, counted
from ndvit.config.options import split_options
from ndvit.config.pretraining import PretrainingOptions, take_pretraining_options
from ndvit.config.reading import ReadingOptions
from ndvit.config.recipe import Recipe
from ndvit.data.augment import Augmentation, plan_augmentation
from ndvit.data.examples import Examples, Source
from ndvit.data.groups import FEW_GROUPS, named_groups
from ndvit.data.loading import Inputs
from ndvit.data.messages import listing, warn_of_doubts
from ndvit.data.preprocess import describe_fit, describe_resampling
from ndvit.data.preprocess.base import Preprocess
from ndvit.data.sources.load import load_source
from ndvit.data.splits import hold_out
from ndvit.data.windows import cut_outliers
from ndvit.inference.batches import pick_device
from ndvit.model import Model
from ndvit.network.committee import solved_networks, transformers
from ndvit.tasks.base import Objective, Task, task_class
from ndvit.tasks.self_supervised import UNLABELLED
from ndvit.training.adapters import check_adapters, describe_trainable
from ndvit.training.closed_form import ENCODER_WEIGHT
from ndvit.training.cost import Cost, estimate_cost, foresee
from ndvit.training.isolation import isolated
from ndvit.training.members import Adapted, member_builder, open_to_train
from ndvit.training.presets import choose, descends
from ndvit.training.spectrograms import choose_spectrogram
from ndvit.training.trackers import check_tracker
from ndvit.weights.opening import split_part
from ndvit.weights.structure import structure_of, summary

_MOST_PROBED = 1000  # labelled examples in probes


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user wants trained.

    Attributes:
        source: whatever `load_source` takes, or a `Source`.
        task: name or class of the task.
        preset: name of a preset, or "auto".
        model: name of a network; None leaves it to the preset.
        weights: trained weights to start from: a path, a name, `hf:...`, a `Model` or a `Checkpoint`.
        ema: which weights of a file with several copies of a network, as in `load_model`.
        members: networks in the ensemble.
        teacher: what the networks also learn from, see `make_teacher`.
        reading: how the source is read and split.
        write_split: a file to write the split to, as `ReadingOptions.split_file` reads it; None writes it into the run
            folder only.
        options: fields of `Recipe`, `ViTConfig` and `SolvedOptions`; and of `PretrainingOptions` for a task without
            targets.
        language: the language of the report's words.
        usual_val_fraction: `val_fraction` where neither the user nor the preset sets it; None leaves it to the number
            of examples.
        progress: show progress bars while reading.
    """

    source: Any
    task: str | type[Task] = "classification"
    preset: str = "auto"
    model: str | None = None
    weights: Any = None
    ema: bool | None = None
    members: int = 1
    teacher: Any = None
    reading: ReadingOptions = field(default_factory=ReadingOptions)
    write_split: str | Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    language: str = "en"
    usual_val_fraction: float | None = None
    progress: bool = True

    @property
    def learns_from_targets(self) -> bool:
        """Whether the task learns from targets, see `Task`."""
        return task_class(self.task).learns_from_targets


@dataclass(frozen=True, eq=False)
class Plan:
    """What will be trained on what.

    Attributes:
        data: training, validation and test examples, with the task.
        preset: name of the preset that was chosen.
        model: name of the network; None for the network of trained weights.
        members: networks in the ensemble; member i has seed + i.
        recipe: how they are trained.
        options: fields of `ViTConfig` and `SolvedOptions` that were set, for config.yaml.
        preprocess: turns examples into inputs.
        augmentation: how training examples are varied.
        teacher: what the networks also learn from, or None.
        notes: everything that was decided about preset and data.
        build: makes a member with its initial weights from a seed, which it leaves in torch's global generator.
        first: the first member, untrained.
        provenance: facts that travel in the model file.
        weights: what trained weights were adapted to; None without them.
        held_out_of: the training examples with those held out for validation, on which solved networks are solved in
            the end, and the final steps are trained; None if there is nothing to add.
        weigh: whether validation examples decide how much the solved networks count beside the trained one.
        weigh_encoder: whether leaving one example out decides how much the encoder counts.
        encoder_weight: usual weight of the encoder beside random convolutions, or the fixed one.
        pretraining: options of the objective of a task without targets.
        reading: how the source was read and split: as requested, perhaps with a window for recordings that are much
            longer than the others.
    """

    data: Source
    preset: str
    model: str | None
    members: int
    recipe: Recipe
    options: dict[str, Any]
    preprocess: Preprocess
    augmentation: Augmentation
    teacher: Any
    notes: tuple[str, ...]
    build: Callable[[int], Model]
    first: Model
    provenance: dict[str, Any]
    weights: Adapted | None
    held_out_of: Examples | None = None
    weigh: bool = True
    weigh_encoder: bool = True
    encoder_weight: float = ENCODER_WEIGHT
    pretraining: PretrainingOptions = field(default_factory=PretrainingOptions)
    reading: ReadingOptions = field(default_factory=ReadingOptions)

    @property
    def task(self) -> Task:
        """The task."""
        return self.data.task

    @property
    def steps(self) -> int:
        """Optimizer steps of each member; 0 if the head is solved."""
        return 0 if self.recipe.head == "solved" else self.recipe.total_steps(len(self.data.train))

    @property
    def final_steps(self) -> int:
        """Optimizer steps of each member on all training examples, after the others, unless these stop early."""
        return 0 if self.held_out_of is None else math.ceil(self.recipe.final_share * self.steps)

    @cached_property
    def cost(self) -> Cost:
        """Estimated seconds and memory, measured with a few training steps on random inputs."""
        cost = estimate_cost(self.first, self.recipe, self.inputs()[0], self.steps + self.final_steps, self.objective())
        return replace(cost, seconds=cost.seconds * self.members)

    @property
    def weighing(self) -> tuple[bool, float]:
        """How `solve_beside` weighs the encoder."""
        return self.weigh_encoder, self.encoder_weight

    def objective(self) -> Objective | None:
        """A new objective of a task without targets, see `Task.objective`."""
        if self.task.learns_from_targets:
            return None
        return self.task.objective(self.first.config, self.recipe, self.pretraining)

    def inputs(self) -> tuple[Inputs, Inputs | None]:
        """Preprocessed training and validation examples."""
        train = Inputs(self.data.train.counted(), self.preprocess, self.augmentation.per_example)
        return train, None if self.data.val is None else Inputs(self.data.val, self.preprocess)

    def facts(self) -> dict[str, str]:
        """Network, input, data and steps in words."""
        recipe, network = self.recipe, self.first.network
        report, trained = self.first.load_report, transformers(network)
        parameters = f"{sum(p.numel() for p in network.parameters()):,} parameters"
        name = self.provenance["model"]
        facts = {"model": f"{name}, {parameters}"}
        if self.members > 1:
            facts["model"] = f"{self.members} members of {name}, each {parameters}"
        if report is not None:
            facts["weights"] = report.summary()
        if trained and (trainable := describe_trainable(trained[0], recipe)) is not None:
            facts["trained"] = trainable
        facts["input"] = _by(self.first.input_shape)
        if trained:
            config = trained[0].config
            facts["input"] += f", as {config.num_patches:,} tokens of {_by(config.token_size)}"
        if solved := solved_networks(network):
            facts["solved"] = ", ".join(summary(structure_of(one)) for one in solved)
        counts = [len(part or ()) for part in (self.data.train, self.data.val, self.data.test)]
        facts["examples"] = "{:,} training, {:,} validation, {:,} test".format(*counts)
        facts["examples"] += " windows" if self.data.train.places is not None else ""
        if not self.task.learns_from_targets:
            facts["examples"] = "{:,} training, {:,} of them for probes".format(*counts)
        facts["task"] = self.task.describe(self.pretraining)
        facts["steps"] = f"none: the {'head is' if trained else 'heads are'} solved on frozen features"
        if self.steps:
            peak = recipe.peak_learning_rate(trained[0].config.embed_dim, pretrained=report is not None)
            devices = f" on {recipe.replicas} devices" if recipe.replicas > 1 else ""
            batch = recipe.step_examples
            facts["steps"] = f"{self.steps:,} of {batch} examples{devices}, peak learning rate {peak:.2g}"
            if self.final_steps:
                facts["steps"] += f", then {self.final_steps:,} on all training examples"
        return facts

    def lines(self) -> list[str]:
        """What `train` prints before it starts."""
        report = self.first.load_report
        facts = "; ".join(f"{name}: {value}" for name, value in self.facts().items())
        counts = self.task.brief(self._targets())
        return [*self.notes, *([] if report is None else [str(report)]), *self.data.decisions, counts, facts]

    def _targets(self) -> dict[str, np.ndarray]:
        """Encoded targets of each split that has examples."""
        parts = {"train": self.data.train, "val": self.data.val, "test": self.data.test}
        return {name: part.targets for name, part in parts.items() if part and part.targets is not None}

    def __str__(self) -> str:
        """The whole plan, for `ndvit train --dry-run`."""
        data, recipe, report = self.data, self.recipe, self.first.load_report
        seeds = [recipe.seed + i for i in range(self.members)]
        rows = {
            "data": f"{data.name}, {data.kind}s of {data.dims} {'axis' if data.dims == 1 else 'axes'}",
            "preset": self.preset,
            **self.facts(),
            "seed": f"{seeds[0]}" if self.members == 1 else f"{seeds[0]} to {seeds[-1]}",
        }
        if self.teacher is not None:
            rows["teacher"] = f"{source_name(self.teacher)}; its time and memory are not estimated"
        lines = []
        for name, value in (rows | self.cost.facts()).items():
            lines += [str(report)] if name == "weights" else [f"{name:8} {value}"]
            if name == "examples":
                described = any("split" in note or "test set" in note for note in data.notes)
                split = () if described else ("the data's own split",)
                lines += [f"{'':8} {note}" for note in (*split, *data.decisions)]  # the others are warnings
            if name == "preset":
                lines += [f"{'':8} {note}" for note in self.notes]
        return "\n".join([*lines, "", *self.task.summary(self._targets())])


def plan(request: Request, *, resumed: Path | None = None) -> Plan:
    """Decide what a run will do. Nothing is trained, written or printed; doubts about the data are warnings.

    Args:
        request: what is wanted.
        resumed: folder of an unfinished run whose settings the request repeats; presets are then not applied again.

    Raises:
        ValueError: for data, options or combinations that cannot work, with the remedy; among them a training step that
            needs more memory than there is.
    """
    checked("members", Members, request.members)
    if request.weights is not None and request.model is not None:
        raise ValueError(f"weights have their own network: pass model={request.model!r} or weights, not both")
    source = request.source
    task = source.task if isinstance(source, Source) else task_class(request.task)
    pretraining, options = PretrainingOptions(), request.options
    if not task.learns_from_targets:
        if request.teacher is not None or request.members > 1:
            raise ValueError("pretraining trains one network without a teacher: leave members and teacher out")
        pretraining, options = take_pretraining_options(options)
    recipe, overrides, solved_options = split_options(options)
    pick_device(recipe.device)
    check_tracker(recipe)
    adapted = None if resumed is None else Adapted.read(resumed)
    checkpoint = None
    if (request.weights is not None or request.ema is not None) and adapted is None:
        checkpoint = open_to_train(request.weights, overrides, request.ema)  # refused before a large source is read
    data = request.source
    if not isinstance(data, Source):
        data = load_source(
            data,
            task=request.task,
            seed=recipe.seed,
            progress=request.progress,
            **request.reading.to_dict(),
        )
    reading = request.reading
    if not (isinstance(request.source, Source) or "input_size" in overrides):
        data, reading = cut_outliers(data, reading)
    preset, name = request.preset, request.model
    data, chosen, notes = choose_spectrogram(
        data,
        recipe,
        preset,
        name,
        checkpoint,
        new=resumed is None and data.task.learns_from_targets,
        by_steps=request.teacher is not None or descends(request.options),
    )
    recipe = replace(recipe, **chosen)
    if resumed is None:
        trained = None if checkpoint is None else checkpoint.config
        objective = None if task.learns_from_targets else task.name
        choice = choose(preset, data, name, dict(request.options) | chosen, trained, objective)
        preset, name, options = choice.preset, choice.model, choice.options
        notes += choice.notes
        if not task.learns_from_targets:
            pretraining, options = take_pretraining_options(options)
        recipe, overrides, solved_options = split_options(options)
    if recipe.val_fraction is None and request.usual_val_fraction is not None:
        recipe = replace(recipe, val_fraction=request.usual_val_fraction)
    whole = data.train
    data = hold_out_validation(data, recipe) if task.learns_from_targets else _choose_probes(data)
    if data.train.targets is not None:
        data = replace(data, task=data.task.prepared(recipe, data.train.targets))
    builder = member_builder(data, name, overrides, solved_options, checkpoint, adapted, recipe.resize)
    build_member = builder.seeded(recipe)
    with isolated():
        first = build_member(recipe.seed)
        if transformers(first.network):
            data.task.objective(first.config, recipe, pretraining)  # raises an error if it does not suit them
    steps = 0 if recipe.head == "solved" else recipe.total_steps(len(data.train))
    preprocess = builder.preprocess.admitting(reading.resample_long)
    splits = [part for part in (data.train, data.val, data.test) if part is not None]
    resampled = describe_resampling(splits, preprocess)
    if resampled and preprocess.to_dict().get("resize") == "pad":
        data = replace(data, notes=(*data.notes, resampled))
    found = describe_fit(data, preprocess) + foresee(first, recipe, len(data.train), steps, request.members)
    warn_of_doubts(found)
    data = replace(data, notes=(*data.notes, *found))
    config = first.config if transformers(first.network) else None
    check_adapters(recipe, 0 if config is None else config.depth, taught=request.teacher is not None)
    if recipe.batch_size * recipe.replicas == 1 and config is not None and config.head_norm == "batch":
        raise ValueError(
            "batch_size is 1, but BatchNorm before the head needs at least 2: increase it, or set head_norm='none'"
        )
    weighable = type(data.task).losses is not Task.losses and bool(solved_networks(first.network))
    weigh = weighable and solved_options.solved_weight is None
    held_out_of = whole.counted() if (weigh or recipe.final_share) and data.train is not whole else None
    if resumed is None and request.options.get("final_share") and held_out_of is None:
        raise ValueError(
            f"final_share {recipe.final_share:g} adds steps on examples that were held out for validation, and none "
            "are: set val_fraction, or leave final_share out"
        )
    report = first.load_report
    provenance = {"model": name or source_name(report.source if report else ""), "seed": recipe.seed}
    provenance |= {"ndvit": __version__}
    if data.channels:
        provenance["channel_names"] = list(data.channels)
    if recipe.class_weight is not None:
        provenance["class_weight"] = recipe.to_dict()["class_weight"]
    if report is not None:
        licence = first.provenance.get("licence")
        provenance |= {"weights": report.source, "adapted": report.to_dict()["adapted"]}
        provenance |= {"licence": licence} if licence else {}
        adapted = Adapted(first.config, builder.preprocess, licence, report, builder.features)
    return Plan(
        data=data,
        preset=preset,
        model=name,
        members=request.members,
        recipe=recipe,
        options=overrides
        | {k: v for k, v in asdict(solved_options).items() if v is not None}
        | {"encoder": builder.encoder, "levels": builder.levels, "solved_weight": solved_options.solved_weight},
        preprocess=preprocess,
        augmentation=plan_augmentation(preprocess, recipe),
        teacher=request.teacher,
        notes=tuple(notes),
        build=build_member,
        first=first,
        provenance=provenance,
        weights=adapted,
        held_out_of=held_out_of,
        weigh=weigh,
        weigh_encoder=weighable and solved_options.encoder_weight is None,
        encoder_weight=builder.encoder_weight,
        pretraining=pretraining,
        reading=reading,
    )


def hold_out_validation(data: Source, recipe: Recipe) -> Source:
    """Hold a validation set out of the training set if the recipe wants one and the source has none.

    Raises:
        ValueError: for early stopping without validation data.
    """
    if data.val is not None:
        return _note_missing(data)
    fraction, requested = recipe.val_fraction, recipe.val_fraction is not None
    if fraction and data.train.streamed:
        raise ValueError(
            f"val_fraction {fraction}: {data.name} is streamed, and each validation would fetch all of it again: leave "
            "val_fraction out, or use data with a validation set of its own (ndvit shard --val-fraction writes one)"
        )
    if fraction is None:
        fraction = 0.1 if len(data.train) >= 2000 and not data.train.streamed else 0.0
    if not fraction:
        if recipe.early_stop:
            raise ValueError(
                "early_stop needs validation data: set val_fraction (0.1, for example) or add a val/ folder"
            )
        return data
    try:
        kept, held = hold_out(data.train, data.task, fraction, recipe.seed, data.name, both_sides=requested)
    except ValueError as error:
        if requested or data.train.groups is None:
            raise
        return replace(data, notes=(*data.notes, f"no validation set: {error}"))
    train, val = data.train.subset(kept), data.train.subset(held)
    groups = ""
    if val.groups is not None and data.train.groups is not None:
        names = named_groups(val.groups) if len(set(val.groups)) <= FEW_GROUPS else ""
        groups = f", {len(set(val.groups)):,} of {counted(len(set(data.train.groups)), 'group')}{names}"
    share = f"{len(val):,} of the {len(data.train):,} training examples{groups}"
    note = f"validation: {share}, stratified, seed {recipe.seed}"
    assert data.train.targets is not None
    strata = data.task.strata(data.train.targets)
    values, counts = np.unique([] if strata is None else strata, return_counts=True)
    if single := [data.task.stratum_name(int(stratum)) for stratum in values[counts == 1]]:
        note += f"; not in it, because they have a single example: {listing(single)}"
    return replace(data, train=train, val=val, notes=(*data.notes, note))


def _choose_probes(data: Source) -> Source:
    """Take labelled training examples for the probes of a task without targets, as what is validated on."""
    targets = data.train.targets
    labelled = np.empty(0, dtype=np.int64) if targets is None else np.flatnonzero(targets != UNLABELLED)
    if not len(labelled):
        return replace(data, val=None)
    if len(labelled) > _MOST_PROBED:
        labelled = np.sort(np.random.default_rng(0).permutation(labelled)[:_MOST_PROBED])
    note = f"probes: {len(labelled):,} labelled training examples, each classified from the features of the others"
    return replace(data, val=data.train.subset(labelled), notes=(*data.notes, note))


def _note_missing(data: Source) -> Source:
    """Note strata of the training set, such as classes, that the data's own validation set lacks."""
    assert data.val is not None
    known, there = data.train.targets, data.val.targets
    missing = [] if known is None or there is None or not len(there) else data.task.absent(known, there)
    if not missing:
        return data
    note = (
        f"the validation set has no example of {listing(missing)}, so its metrics and the temperature do not know them"
    )
    return replace(data, notes=(*data.notes, note))


def source_name(source: Any) -> str:
    """A short name of a source of data or weights, suitable for a folder."""
    if not isinstance(source, str | Path):
        return "arrays"
    text = str(split_part(source)[0])
    if not Path(text).exists() and text.startswith(("ucr:", "hf:")):
        return text.partition(":")[2].partition("?")[0].replace("/", "-").lower()
    path = Path(text).resolve()
    name = path.stem if path.suffix and (path.exists() or "/" in text) else path.name
    return name.removesuffix("_TRAIN").lower() or "data"


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
