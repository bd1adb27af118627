"""From a source of weights to a network that carries them, with a report of what was done."""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ndvit.config import ViTConfig
from ndvit.data.images import ImagePreprocess
from ndvit.data.preprocess import Preprocess
from ndvit.network import VisionTransformer
from ndvit.weights.adapt import ChannelRule, fit_tensors, target_config
from ndvit.weights.architecture import infer, refute
from ndvit.weights.file import Described, check_tensors, describe
from ndvit.weights.formats import recognise
from ndvit.weights.hub import resolve
from ndvit.weights.layout import convert
from ndvit.weights.reading import Checkpoint, read_checkpoint
from ndvit.weights.report import LoadReport
from ndvit.weights.sidecars import Facts, read_facts
from ndvit.weights.zoo import Weights


def load_model(
    source: str | Path,
    device: str | torch.device = "cpu",
    *,
    channels: ChannelRule | None = None,
    preprocess: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    **overrides: Any,
) -> VisionTransformer:
    """Load a network with its weights, whoever published them, and adapt it where that is wanted.

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
        classes: names of the outputs that are wanted; other than the weights' own, they get a new head.
        **overrides: fields of `ViTConfig`. An int for `input_size` is the same along every axis.

    Returns:
        The network in eval mode with `config`, `classes`, `preprocess`, `provenance`, `untrained` and `load_report`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the source is no Vision Transformer, is damaged or unsafe, or cannot be made what is asked for.
    """
    return build_model(open_weights(source, overrides), device, channels, preprocess, classes, overrides)


def open_weights(source: str | Path, overrides: Mapping[str, Any] | None = None) -> Described:
    """Find, fetch and read weights; what they are of is told by the tensors and by the facts beside them.

    `source` and errors are as in `load_model`; of the overrides, those are read that no tensor can tell.
    """
    overrides = overrides or {}
    path, row = resolve(source)
    checkpoint = read_checkpoint(path)
    if "ndvit" in checkpoint.header:
        described = describe(checkpoint.path, checkpoint.header, checkpoint.tensors)
        _refuse_heads(overrides, described.config.num_heads, "its file")
    else:
        described = _describe_foreign(checkpoint, row, overrides)
    described.source = str(source)
    described.notes = (*checkpoint.notes, *described.notes)
    _check(checkpoint.path, described)
    return described


def build_model(
    described: Described,
    device: str | torch.device = "cpu",
    channels: ChannelRule | None = None,
    preprocess: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> VisionTransformer:
    """The second half of `load_model`: adapt opened weights and make the network that carries them."""
    overrides = dict(overrides or {})
    tensors = dict(described.tensors)
    ignored = dict(described.ignored)
    if classes is not None:
        if isinstance(classes, str) or len(set(classes)) != len(classes):
            raise ValueError(f"classes must be a list of different names, got {classes!r}")
        if overrides.setdefault("num_classes", len(classes)) != len(classes):
            raise ValueError(f"num_classes is {overrides['num_classes']}, but {len(classes)} classes are named")
        if tuple(classes) != described.classes:
            for name in [n for n in tensors if n.partition(".")[0] in ("head", "head_dist")]:
                ignored[name] = "its outputs are other classes"
                del tensors[name]
    config = target_config(described.config, overrides)
    fitted = fit_tensors(tensors, described.config, config, channels)
    # copies: torch may have mapped the file, which its owner may overwrite while the network lives
    tensors = {name: tensor.to(torch.float32, copy=True).contiguous() for name, tensor in fitted.tensors.items()}
    model = _allocate(config, tensors.keys())
    model.load_state_dict(tensors, strict=False, assign=True)

    if classes is not None:
        model.classes = tuple(classes)
    elif config.num_classes == described.config.num_classes:
        model.classes = described.classes
    model.preprocess, lost = _fit_preprocess(described, config, preprocess)
    model.provenance = dict(described.provenance)
    if fitted.adapted or fitted.new:  # what was measured was measured of another network
        model.provenance.pop("test_accuracy", None)
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
        assumed=tuple(line for line in described.assumed if line.split()[0] not in settled),
        notes=(*described.notes, *lost),
    )
    return model.to(device).eval()


def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet-1k in the order of every published head."""
    import ndvit._torchvision  # noqa: F401, I001  # makes the next import safe beside a CPU torch
    from torchvision.models import ViT_B_16_Weights

    return tuple(ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"])


def _describe_foreign(checkpoint: Checkpoint, row: Weights | None, overrides: Mapping[str, Any]) -> Described:
    format = recognise(checkpoint.tensors, checkpoint.path)
    converted = convert(checkpoint.tensors, format)
    notes: list[str] = []
    facts = read_facts(checkpoint.sidecars)
    contradiction = refute(facts.config, converted)
    if contradiction is not None:
        notes.append(f"config.json beside the file describes another model ({contradiction}) and is left aside")
        facts = read_facts({})
    if re.search(r"rope|_pe_|^eva|^beit", facts.architecture or ""):  # some have exactly the tensors of a plain ViT
        raise ValueError(f"{checkpoint.path} is of {facts.architecture}, whose rotations ndvit does not have")
    told = ({"input_size": row.input_size, **row.config} if row else {}) | facts.config
    known = converted.certain.get("num_heads", told.get("num_heads"))
    _refuse_heads(overrides, known, "its file" if "num_heads" in converted.certain else "config.json or the table")
    if known is None and "num_heads" in overrides:
        told["num_heads"] = overrides["num_heads"]
    inferred = infer(converted, told, checkpoint.path, overrides.get("input_size"))
    config = inferred.config
    described = Described(
        kind=format.name,
        config=config,
        tensors=inferred.tensors,
        provenance={"source": row.name, "licence": row.licence} if row else {"source": checkpoint.path.name},
        ignored=converted.ignored,
        notes=(*notes, *inferred.notes),
    )
    assumed = list(inferred.assumed)
    described.preprocess = _preprocess(config, format.preprocess, row, facts, format.name, assumed)
    described.classes = _classes(config, row, facts, assumed)
    described.assumed = tuple(assumed)
    return described


def _preprocess(
    config: ViTConfig,
    usual: Mapping[str, Any] | None,
    row: Weights | None,
    facts: Facts,
    kind: str,
    assumed: list[str],
) -> Preprocess | None:
    if len(config.input_size) != 2 or config.in_channels != 3 or usual is None:
        return None
    named = ("mean", "std", "interpolation", "crop_fraction", "resize")
    stated = {name: getattr(row, name) for name in named} if row else {}
    stated |= {k: v for k, v in facts.preprocess.items() if k != "size"}
    if not {"mean", "std"} <= stated.keys():
        assumed.append(
            f"mean {usual['mean']}, std {usual['std']}, {usual['interpolation']} resizing, crop "
            f"{usual['crop_fraction']:.3g}: usual in the {kind} layout; set preprocess=dict(mean=..., std=...)"
        )
    return ImagePreprocess(size=config.input_size, **{**usual, **stated})


def _classes(config: ViTConfig, row: Weights | None, facts: Facts, assumed: list[str]) -> tuple[str, ...]:
    if facts.classes and len(facts.classes) == config.num_classes:
        return facts.classes
    if config.num_classes != 1000 or len(config.input_size) != 2 or config.in_channels != 3:
        return ()
    if row is None:
        assumed.append("classes those of ImageNet-1k, as there are 1000 outputs; set classes=")
    elif row.classes != "imagenet-1k":
        return ()
    return imagenet_classes()


def _refuse_heads(overrides: Mapping[str, Any], known: int | None, who: str) -> None:
    if known is not None and overrides.get("num_heads", known) != known:
        raise ValueError(
            f"num_heads={overrides['num_heads']} is wrong for these weights: {who} says {known}, and with another "
            "number the network would compute something else. Leave num_heads out"
        )


def _check(path: Path, described: Described) -> None:
    """Compare the tensors with the network of the config, before anything is adapted."""
    with torch.device("meta"):
        network = VisionTransformer(described.config)
    buffers = {name for name, _ in network.named_buffers()}
    expected = {n: t for n, t in network.state_dict().items() if n not in buffers or n in described.tensors}
    check_tensors(path, expected, described.tensors)
    wrong = [f"{n} ({t.dtype})" for n, t in described.tensors.items() if not t.is_floating_point()]
    if wrong:
        raise ValueError(f"{path}: weights must be floating-point numbers, got {', '.join(wrong[:4])}")


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
    stem = f", resnet stem {config.stem_depths}" if config.stem != "none" else ""
    return (
        f"{config.embed_dim} wide, {config.depth} blocks, {config.num_heads} heads, input {size}{stem}, patch {patch}, "
        f"{config.num_classes} outputs"
    )
