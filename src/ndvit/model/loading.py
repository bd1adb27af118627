"""Reading and writing models: `load_model` of any origin, exported files, `save_model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ndvit.exporting.formats import ENDINGS, HARMLESS, Precision, is_exported
from ndvit.exporting.runtimes import open_exported
from ndvit.model.model import Model
from ndvit.parts import ModelParts
from ndvit.tasks.classification import Classification
from ndvit.weights.adapt import ChannelRule
from ndvit.weights.building import build
from ndvit.weights.file import write_model
from ndvit.weights.opening import open_weights


def as_model(parts: ModelParts) -> Model:
    """The model of parts, such as those that were built from weights."""
    return Model(**vars(parts))


def load_model(
    source: str | Path,
    device: str | torch.device = "cpu",
    *,
    channels: ChannelRule | None = None,
    preprocess: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    ema: bool | None = None,
    **overrides: Any,
) -> Model:
    """Load a model of any origin, and adapt it if anything else is wanted of it.

    The layout of weights is recognised by the tensors, never by the file's name: ndvit's own files and runs, timm,
    torchvision, transformers, Google's .npz, and the releases of DeiT, MAE, DINOv2 and DINOv3. The network may lie
    under any prefix, beside other networks and losses. Nothing in a file is executed.

    What the file does not state is assumed and listed in `load_report`; the first prediction raises a `WeightsWarning`.

    `load_model("vit_small_patch16_224.augreg_in21k_ft_in1k", num_classes=10, input_size=384)` fits published weights to
    ten classes and larger pictures; `input_size=(1024,)` makes a network for signals of them.

    Args:
        source: a file, a folder (a run, or one with config.json), a name that `ndvit weights` lists,
            `hf:owner/name[/file][@revision]`, or an exported .onnx or .xml file. `FILE#PREFIX` reads the network under
            this prefix of a file with several.
        device: where to put the network.
        channels: how the first kernels are fitted to another number of input channels, see `fit_tensors`.
        preprocess: fields of `ImagePreprocess` (mean, std, ...) that replace those that were found or assumed.
        classes: names of the outputs. If the weights have other classes, the head is new; if they name none, these are
            the names of their outputs. An old head that is not one linear layer is then no hindrance.
        ema: of several copies of a network in one file, the averaged one (a teacher, a moving average) or the other
            one; None is what the program that wrote the file evaluates.
        **overrides: fields of `ViTConfig`. An int for `input_size` is the same along every axis.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the source is not a Vision Transformer, is damaged or unsafe, or cannot be adapted as requested.

    Example:
        >>> import ndvit
        >>> ndvit.save_model(ndvit.create_model("vit_pico", input_size=(32, 32), num_classes=5), "pictures.safetensors")
        >>> model = ndvit.load_model("pictures.safetensors", input_size=(128,), classes=("calm", "storm"))
        >>> model.config.input_size, model.classes
        ((128,), ('calm', 'storm'))
    """
    if is_exported(source):
        if not str(source).endswith(tuple(ENDINGS[format] for format in HARMLESS)):
            raise ValueError(
                f"{source} is not opened, because files of this format can execute the code of their author: export to "
                "onnx or openvino; or load your own file with ndvit.model.load_exported(FILE) in Python"
            )
        set_here = {"channels": channels, "preprocess": preprocess, "classes": classes, "ema": ema}
        changes = [name for name, value in set_here.items() if value]
        if changes or overrides:
            raise ValueError(
                f"{source} is exported and cannot be adapted: leave {', '.join([*changes, *overrides])} out"
            )
        return load_exported(source).to(device)
    checkpoint = open_weights(source, overrides, ema=ema)
    return as_model(build(checkpoint, device, channels, preprocess, classes, overrides))


def load_features(source: str | Path, *, ema: bool | None = None, **overrides: Any) -> Model:
    """`load_model`, but a head that ndvit cannot compute is left out: features do not need it."""
    if is_exported(source):
        return load_model(source, ema=ema, **overrides)
    checkpoint = open_weights(source, overrides, ema=ema)
    if checkpoint.lost_head:
        overrides.setdefault("num_classes", 0)
    return as_model(build(checkpoint, overrides=overrides))


def load_exported(path: str | Path, threads: int | None = None, precision: Precision = "float32") -> Model:
    """Load a file that `Model.export` wrote, to run on the CPU.

    .onnx and .xml (OpenVINO) files hold no code and are safe to load. .pt2 and .ts files can execute code of their
    author when they are loaded or called: load only your own.

    Args:
        path: a .onnx, .xml, .pt2 or .ts file.
        threads: number of threads of ONNX Runtime and OpenVINO; None is torch's. The other formats run in torch.
        precision: precision that OpenVINO computes in. "bfloat16" is about twice as fast on CPUs with AVX-512 BF16 or
            AMX; answers differ by a few hundredths of their spread.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if ndvit did not write it, it is damaged, or the package that runs it is not installed.
    """
    runtime, checkpoint = open_exported(path, threads, precision)
    return Model(
        runtime,
        checkpoint.task,
        checkpoint.preprocess,
        temperature=checkpoint.temperature,
        untrained=checkpoint.untrained,
        provenance=checkpoint.provenance,
    )


def save_model(model: ModelParts | nn.Module, path: str | Path) -> None:
    """Write a model as `Model.save` does. A bare network is written without task and preprocessing.

    `classes`, `preprocess` and `temperature` that were set on a bare network, as earlier versions required, are kept.

    Example:
        >>> import ndvit
        >>> ndvit.save_model(ndvit.create_model("vit_pico", num_classes=3), "three.safetensors")
        >>> ndvit.load_model("three.safetensors").config.num_classes
        3
    """
    if isinstance(model, ModelParts):
        as_model(model).save(path)
        return
    known = {name: getattr(model, name) for name in ("preprocess", "temperature") if hasattr(model, name)}
    classes, training = getattr(model, "classes", ()), model.training
    try:
        write_model(ModelParts(model, Classification(classes) if classes else None, **known), path)
    finally:
        model.train(training)  # as it was before
