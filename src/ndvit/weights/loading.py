"""From a source of weights to a network that carries them, adapted where that is wanted, with a report."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ndvit.config import ViTConfig
from ndvit.data.preprocess.base import Preprocess
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.network import VisionTransformer
from ndvit.network.committee import Ensemble, Model, member_name
from ndvit.network.vit import HEADS
from ndvit.weights.adapt import ChannelRule, fit_tensors, target_config
from ndvit.weights.errors import some
from ndvit.weights.file import Described
from ndvit.weights.load_report import LoadReport
from ndvit.weights.opening import open_weights


def load_model(
    source: str | Path,
    device: str | torch.device = "cpu",
    *,
    channels: ChannelRule | None = None,
    preprocess: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    **overrides: Any,
) -> Model:
    """Load a model with its weights, whoever published them, and adapt it where that is wanted.

    The layout is told by the tensors, never by the file's name: ndvit's own files and runs, timm, torchvision,
    transformers, Google's .npz, and the releases of DeiT, MAE, DINOv2 and DINOv3. Nothing in a file is executed.

    `load_model("vit_small_patch16_224.augreg_in21k_ft_in1k", num_classes=10, input_size=384)` fits published weights to
    ten classes and larger pictures; `input_size=(1024,)` makes a network for signals of them.

    Args:
        source: a file, a folder (a run, or one with config.json), a name that `ndvit weights` lists, or
            `hf:owner/name[/file][@revision]`.
        device: where the network shall be.
        channels: how the first kernels are fitted to another number of input channels, see `fit_tensors`.
        preprocess: fields of `ImagePreprocess` (mean, std, ...) that are other than found or assumed.
        classes: names of the outputs that are wanted. If the weights name others, there is a new head for them; if they
            name none, these are the names.
        **overrides: fields of `ViTConfig`. An int for `input_size` is the same along every axis.

    Returns:
        The `VisionTransformer`, or the `Ensemble` where the file holds one, in eval mode with `config`, `classes`,
        `preprocess`, `provenance`, `untrained`, `temperature` and `load_report`; the temperature is 1 if anything was
        adapted.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the source is no Vision Transformer, is damaged or unsafe, or cannot be made what is asked for.
    """
    described = open_weights(source, overrides)
    members = described.members
    networks = [build_model(one, device, channels, preprocess, classes, overrides) for one in members or [described]]
    return _ensemble(described, networks) if members else networks[0]


def build_model(
    described: Described,
    device: str | torch.device = "cpu",
    channels: ChannelRule | None = None,
    preprocess: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    new_head: bool = False,
) -> VisionTransformer:
    """The second half of `load_model`: adapt opened weights and make the network that carries them.

    With `new_head`, outputs that have no names are taken to be other classes than those that are wanted.
    """
    overrides = dict(overrides or {})
    _usable(device)
    tensors = dict(described.tensors)
    ignored, guessed = dict(described.ignored), "classes" in described.assumed
    if classes is not None:
        classes = _names_of_classes(classes)
        if overrides.setdefault("num_classes", len(classes)) != len(classes):
            raise ValueError(f"num_classes is {overrides['num_classes']}, but {len(classes)} classes are named")
        if tuple(classes) != described.classes and (new_head or (described.classes and not guessed)):
            for name in [n for n in tensors if n.partition(".")[0] in HEADS]:
                ignored[name] = "its outputs are other classes"
                del tensors[name]
    config = target_config(described.config, overrides)
    fitted = fit_tensors(tensors, described.config, config, channels)
    # copies of what was read: torch may have mapped the file, which its owner may overwrite while the network lives
    read = {id(tensor) for tensor in described.tensors.values()}
    tensors = {n: t.clone() if id(t) in read else t for n, t in fitted.tensors.items()}
    tensors = {n: t.float().contiguous() if t.is_floating_point() else t for n, t in tensors.items()}
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{described.source}: {some(broken)} hold NaN or infinity: the weights are damaged")
    model = _allocate(config, tensors.keys())
    model.load_state_dict(tensors, strict=False, assign=True)

    if classes is not None:
        model.classes = tuple(classes)
    elif config.num_classes == described.config.num_classes:
        model.classes = described.classes
    model.preprocess, lost = _fit_preprocess(described, config, preprocess)
    model.provenance = dict(described.provenance)
    merges = config.merge_tokens != described.config.merge_tokens
    if fitted.adapted or fitted.new or merges:  # what was measured was measured of another network
        model.provenance.pop("test_accuracy", None)
    if not (fitted.adapted or fitted.new or new_head):  # with a new_head it is trained on, and calibrated anew
        model.temperature = described.temperature
    model.untrained = (*(n for n in described.untrained if n in fitted.tensors), *fitted.new)
    changed = {change.name for change in fitted.adapted}
    settled = {*overrides, *(preprocess or {})}  # what was assumed of these does not matter any more
    settled |= {"mean"} if model.preprocess is None else set()
    settled |= {"classes"} if model.classes != described.classes else set()
    model.load_report = LoadReport(
        source=described.source,
        kind=described.kind,
        network=_in_a_line(config),
        loaded=tuple(name for name in tensors if name not in changed),
        adapted=tuple(fitted.adapted),
        new=fitted.new,
        ignored=ignored | fitted.ignored,
        assumed=tuple(line for name, line in described.assumed.items() if name not in settled),
        notes=(*described.notes, *lost),
    )
    return model.to(device, torch.float32).eval()


def _ensemble(described: Described, networks: list[VisionTransformer]) -> Ensemble:
    """The members of a file as one, with one report of all their tensors."""
    model, reports = Ensemble(networks), [network.load_report for network in networks]
    first: LoadReport = reports[0]
    model.load_report = replace(
        first,
        network=f"{len(networks)} members, each {first.network}",
        loaded=tuple(member_name(i, name) for i, report in enumerate(reports) for name in report.loaded),
        adapted=tuple(
            replace(c, name=member_name(i, c.name)) for i, report in enumerate(reports) for c in report.adapted
        ),
        new=tuple(member_name(i, name) for i, report in enumerate(reports) for name in report.new),
        ignored={member_name(i, name): why for i, report in enumerate(reports) for name, why in report.ignored.items()},
    )
    model.provenance = dict(described.provenance)
    if first.adapted or first.new or model.config.merge_tokens != described.config.merge_tokens:
        model.provenance.pop("test_accuracy", None)
    if not (first.adapted or first.new):
        model.temperature = described.temperature
    return model


def _fit_preprocess(
    described: Described, config: ViTConfig, given: Mapping[str, Any] | None
) -> tuple[Preprocess | None, list[str]]:
    """The preprocessing for the adapted network, and what is to be said of it."""
    old, was, given = described.preprocess, described.config, given or {}
    if old is None:
        if given:
            raise ValueError("preprocess has nothing to change: these weights have no preprocessing of pictures")
        return None, []
    known = [f.name for f in fields(old) if f.name != "size"]  # type: ignore[arg-type]  # every one is a dataclass
    if wrong := [name for name in given if name not in known]:
        raise ValueError(f"preprocess has no {', '.join(wrong)} to set: it has {', '.join(known)}")
    changes, lost = dict[str, Any](), ""
    if (config.input_size, config.in_channels) != (was.input_size, was.in_channels):
        changes["size"] = config.input_size
        pictures = isinstance(old, ImagePreprocess) and {config.in_channels, old.channels} == {1, 3}
        if len(config.input_size) != len(old.size):
            lost = "the preprocessing was for another number of axes, and is left out"
        elif config.in_channels != old.channels and not pictures:
            lost = f"the preprocessing was for {old.channels} channels, and is left out"
        elif isinstance(old, ImagePreprocess) and config.in_channels < old.channels:
            changes |= {"mode": "L", "mean": (sum(old.mean) / 3,), "std": (sum(old.std) / 3,)}
        elif isinstance(old, ImagePreprocess) and config.in_channels > old.channels:
            changes |= {"mode": "RGB", "mean": old.mean * 3, "std": old.std * 3}
    if lost:
        if given:
            raise ValueError(f"preprocess has nothing to change: {lost}")
        return None, [lost]
    new = replace(old, **(changes | dict(given)))  # type: ignore[type-var]
    if given and new.channels != config.in_channels:
        raise ValueError(f"preprocess gives {new.channels} channels, and the network reads {config.in_channels}")
    return new, []


def _names_of_classes(classes: Sequence[str]) -> tuple[str, ...]:
    names = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    if not names or len(set(classes)) != len(classes):
        raise ValueError(f"classes must be a list of different names, got {classes!r}")
    return tuple(classes)


def _usable(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device {str(device)!r} is not here: {str(error).splitlines()[0]}") from error


def _allocate(config: ViTConfig, given: Set[str]) -> VisionTransformer:
    """A network that has memory, and initial values, only for tensors that are not given: those of a new head."""
    with torch.device("meta"):
        model = VisionTransformer(config)
    missing = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name not in given}
    for name, tensor in missing.items():
        module, _, leaf = name.rpartition(".")
        empty = torch.empty_like(tensor, device="cpu")
        setattr(model.get_submodule(module), leaf, nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty)
    model.init_weights(only=missing.keys())
    return model


def _in_a_line(config: ViTConfig) -> str:
    size = " x ".join(map(str, (config.in_channels, *config.input_size)))
    patch = " x ".join(map(str, config.patch_size))
    stem = f", {config.stem} stem {config.stem_depths}" if config.stem != "none" else ""
    merged = f", {config.merge_tokens} tokens merged in each block" if config.merge_tokens else ""
    return (
        f"{config.embed_dim} wide, {config.depth} blocks, {config.num_heads} heads, input {size}{stem}, patch {patch}, "
        f"{config.num_classes} outputs{merged}"
    )
