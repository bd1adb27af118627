"""From a checkpoint to a network that has its weights, adapted to other inputs, outputs or options, with a report."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from ndvit.config.bounds import brief
from ndvit.data.preprocess.base import Preprocess
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.load_report import LoadReport
from ndvit.network import VisionTransformer
from ndvit.parts import ModelParts, is_result
from ndvit.tasks.base import Task
from ndvit.tasks.class_names import check_class_names
from ndvit.tasks.classification import Classification
from ndvit.tasks.multilabel import Multilabel
from ndvit.weights.adapt import ChannelRule, Kept, Target, fit_structure
from ndvit.weights.errors import some
from ndvit.weights.file import Checkpoint
from ndvit.weights.structure import Structure, configs_in, inputs_of, make_network, networks_in, outputs_of, summary


def build(
    checkpoint: Checkpoint,
    device: str | torch.device = "cpu",
    channels: ChannelRule | None = None,
    preprocess: Mapping[str, Any] | None = None,
    task: Task | Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    new_head: bool = False,
) -> ModelParts:
    """Build the network of a checkpoint, adapted where options differ from it.

    `device`, `channels`, `preprocess` and `overrides` are as in `load_model`. `task` is the meaning of the outputs or a
    list of class names: if the checkpoint has another one, outputs of the same name are kept, and the others are new;
    if it has none, the outputs get this meaning. With `new_head`, outputs without known meaning count as different from
    `task`, so that the heads are new.

    Raises:
        ValueError: if an option does not exist, cannot be fitted to the weights, or the weights are damaged.
    """
    options = dict(overrides or {})
    _require_device(device)
    if task is not None:
        kind = Multilabel if isinstance(checkpoint.task, Multilabel) else Classification
        task = task if isinstance(task, Task) else kind(_class_names(task))
        if options.setdefault("num_classes", task.num_outputs) != task.num_outputs:
            raise ValueError(f"num_classes is {options['num_classes']}, but the task has {task.num_outputs} outputs")
    if checkpoint.lost_head and task is None and "num_classes" not in options:
        raise ValueError(
            f"{checkpoint.source}: {checkpoint.lost_head}. Load the network without it (num_classes=0: features), with "
            "a new head (classes= or num_classes=), or fine-tune it: ndvit train SOURCE --weights FILE"
        )
    known = checkpoint.task is not None and "classes" not in checkpoint.assumed
    certain = new_head or known or bool(checkpoint.no_task)
    kept = None
    if another := task is not None and task != checkpoint.task and certain:
        kept = _kept_outputs(task, checkpoint)
    target = Target(options, channels, new_heads=another and kept is None, kept=kept)
    old = checkpoint.structure
    new, fitted = fit_structure(old, checkpoint.tensors, checkpoint.untrained, target)
    if new is None:
        raise ValueError("random convolutions read signals of at least 3 samples, and need at least one output")
    # Tensors are copied: torch may have mapped them from the file, which may be overwritten while the network lives.
    read = {id(tensor) for tensor in checkpoint.tensors.values()}
    tensors = {n: t.clone() if id(t) in read else t for n, t in fitted.tensors.items()}
    tensors = {n: t.float().contiguous() if t.is_floating_point() else t for n, t in tensors.items()}
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{checkpoint.source}: {some(broken)} hold NaN or infinity: the weights are damaged")
    network = _allocate(new, tensors.keys())
    network.load_state_dict(tensors, strict=False, assign=True)

    built_task = task or (checkpoint.task if outputs_of(new) == outputs_of(old) else None)
    fitted_preprocess, lost = _fit_preprocess(checkpoint, new, preprocess or {})
    changed = bool(fitted.adapted or fitted.new) or new["kind"] != old["kind"]
    merged = [c.merge_tokens for c in configs_in(new)] != [c.merge_tokens for c in configs_in(old)]
    provenance = dict(checkpoint.provenance)
    if changed or merged:  # the accuracy was measured with another network
        provenance = {name: value for name, value in provenance.items() if not is_result(name)}
    names = {change.name for change in fitted.adapted}
    settled = {*options, *(preprocess or {})}  # assumptions that the options replace
    settled |= {"mean"} if fitted_preprocess is None else set()
    settled |= {"classes"} if built_task != checkpoint.task else set()
    report = LoadReport(
        source=checkpoint.source,
        kind=checkpoint.layout,
        network=summary(new),
        loaded=tuple(name for name in tensors if name not in names),
        adapted=tuple(fitted.adapted),
        new=fitted.new,
        ignored=checkpoint.ignored | fitted.ignored,
        assumed=tuple(line for name, line in checkpoint.assumed.items() if name not in settled),
        notes=(*checkpoint.notes, *lost),
        no_task=checkpoint.no_task if built_task is None and not fitted.new else "",
    )
    return ModelParts(
        network=network.to(device, torch.float32),
        task=built_task,
        preprocess=fitted_preprocess,
        temperature=1.0 if changed or new_head else checkpoint.temperature,
        untrained=fitted.untrained,
        provenance=provenance,
        load_report=report,
    )


def _kept_outputs(task: Task, checkpoint: Checkpoint) -> Kept | None:
    """Outputs of a checkpoint that a new task has too; None if there are none, or their meaning is only assumed."""
    if checkpoint.task is None or "classes" in checkpoint.assumed:
        return None
    places = task.kept_outputs(checkpoint.task)
    if places is None:
        return None
    return Kept(tuple(places), tuple(task.output_names()), tuple(checkpoint.task.output_names()))


def _fit_preprocess(
    checkpoint: Checkpoint, new: Structure, options: Mapping[str, Any]
) -> tuple[Preprocess | None, list[str]]:
    """The preprocessing for the adapted network, and notes on it."""
    old = checkpoint.preprocess
    if old is None:
        if options:
            raise ValueError("preprocess has no effect: these weights have no preprocessing of pictures")
        return None, []
    known = [f.name for f in fields(old) if f.name != "size"]
    if wrong := [name for name in options if name not in known]:
        raise ValueError(f"preprocess has no field {', '.join(wrong)}: it has {', '.join(known)}")
    changes, lost, (channels, size) = dict[str, Any](), "", inputs_of(new)
    if (channels, size) != inputs_of(checkpoint.structure):
        changes["size"] = size
        if len(size) != len(old.size):
            lost = "the preprocessing was for another number of axes, and is left out"
        elif channels != old.channels and not (isinstance(old, ImagePreprocess) and {channels, old.channels} == {1, 3}):
            lost = f"the preprocessing was for {old.channels} channels, and is left out"
        elif isinstance(old, ImagePreprocess) and channels < old.channels:
            changes |= {"mode": "L", "mean": (sum(old.mean) / 3,), "std": (sum(old.std) / 3,)}
        elif isinstance(old, ImagePreprocess) and channels > old.channels:
            changes |= {"mode": "RGB", "mean": old.mean * 3, "std": old.std * 3}
    if lost:
        if options:
            raise ValueError(f"preprocess has no effect: {lost}")
        return None, [lost]
    fitted = replace(old, **(changes | dict(options)))
    if options and fitted.channels != channels:
        raise ValueError(f"preprocess yields {fitted.channels} channels, and the network reads {channels}")
    return fitted, []


def _class_names(classes: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(classes, list | tuple):
        raise ValueError(f"classes must be a list of different names, got {brief(classes)}")
    return check_class_names(classes)


def _require_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device {str(device)!r} is not available: {str(error).splitlines()[0]}") from error


def _allocate(structure: Structure, loaded: Set[str]) -> nn.Module:
    """A network that has memory and initial values only for tensors that are not loaded, such as a new head."""
    with torch.device("meta"):
        network = make_network(structure)
    missing = {name: tensor for name, tensor in network.state_dict(keep_vars=True).items() if name not in loaded}
    for name, tensor in missing.items():
        module, _, leaf = name.rpartition(".")
        empty = torch.empty_like(tensor, device="cpu")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, tensor.requires_grad)
        setattr(network.get_submodule(module), leaf, empty)
    for prefix, _ in networks_in(structure):
        part: Any = network.get_submodule(prefix.removesuffix("."))
        names = {name.removeprefix(prefix) for name in missing if name.startswith(prefix)}
        if isinstance(part, VisionTransformer):
            part.init_weights(only=names)
        elif names:
            part.init_weights()
    return network
