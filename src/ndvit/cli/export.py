from pathlib import Path
from typing import Literal

from ndvit.cli.printing import out, remark


def export(
    run: str,
    *,
    output: Path | None = None,
    bundle: Path | None = None,
    format: Literal["onnx", "openvino", "pt2", "torchscript"] = "onnx",
    int8: bool = False,
    fp16: bool = False,
    opset: int | None = None,
    data: str | None = None,
    dynamic_batch: bool = True,
    softmax: bool = False,
    preprocess: Literal["beside", "inside"] = "beside",
    mask: bool | None = None,
    min_agreement: float = 0.98,
    min_saving: float = 0.25,
    ema: bool | None = None,
    force: bool = False,
) -> None:
    """Write a model for ONNX Runtime, OpenVINO or torch alone, after comparing its outputs with the model's.

    Args:
        run: A run folder, or weights as `info` takes them.
        output: A .onnx, .xml (OpenVINO, with a .bin beside it), .pt2 or .ts file. [default: beside the weights]
        bundle: A folder to write instead of a file: an .onnx that reads raw pictures or signals, programs for Python
            and browsers without ndvit and torch, a Dockerfile of the service, and a self-test with real inputs.
        format: onnx, openvino, pt2 (torch.export) or torchscript.
        int8: Quantise to 8-bit integers; onnx and openvino only, needs --data. Networks that it saves little of are
            refused, see --min-saving.
        fp16: Store the weights of an .onnx as 16-bit floating-point numbers: half the size, computed in float32.
        opset: Opset of an .onnx, 18 to 23. [default: 20]
        data: Labelled data as for train, or files as for predict: int8 is calibrated on its training set, and outputs
            are compared on its test set. [default: the run's own test set, if available; else random inputs]
        dynamic_batch: Accept any number of examples at a time; else only one.
        softmax: Output probabilities, which are calibrated if the model is, or numbers in the units of a regression's
            targets; else logits, or standardised numbers.
        preprocess: beside leaves mean and standard deviation to the caller; inside makes them part of the graph, which
            then takes raw values: pixels from 0 to 255, signals as recorded.
        mask: A second input that marks observed values, for missing values and padding. [default: for signals whose
            preprocessing pads]
        min_agreement: Least share of examples for which int8 must predict the same class as the model.
        min_saving: Least share of the file, and of the work, that int8 must save, by an estimate before it starts; 0
            quantises every network. Networks that get less than 1 MB smaller are refused, too.
        ema: Of several copies of a network in a file of weights, the averaged one (a teacher, a moving average), or the
            other one. [default: what the program that wrote the file evaluates]
        force: Replace an existing file.
    """
    options = {name: value for name, value in locals().items() if name not in ("run", "output", "bundle")}
    from ndvit import model

    if bundle is None:
        out(model.export(run, output, log=remark, **options))
        return
    ours = {"int8", "fp16", "opset", "data", "min_agreement", "min_saving", "ema", "force"}
    usual = {"format": "onnx", "dynamic_batch": True, "softmax": False, "preprocess": "beside", "mask": None}
    if set_too := [name for name, value in usual.items() if options[name] != value] + ["output"] * (output is not None):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in set_too)
        raise ValueError(f"{flags} is for a single file, and a bundle decides it: leave it out beside --bundle")
    kept = {name: value for name, value in options.items() if name in ours and value is not None}
    out(model.export_bundle(run, bundle, log=remark, **kept))
