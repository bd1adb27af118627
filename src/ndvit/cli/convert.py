from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ndvit.cli.options import NetworkOptions, overrides
from ndvit.cli.printing import out, remark


def convert(
    source: str,
    output: Path,
    *,
    to: Literal["ndvit", "timm", "transformers", "torchvision"],
    member: int | None = None,
    ema: bool | None = None,
    force: bool = False,
    options: Annotated[NetworkOptions | None, Parameter(name="*")] = None,
) -> None:
    """Write weights of any layout in the layout of ndvit or of another library, adapted if options require it.

    Args:
        source: A run folder, a file of weights, a name that `ndvit weights` lists, or hf:owner/name.
        output: A .safetensors or .pth file; for timm and transformers also a folder, which gets a config.json, too.
        to: ndvit stores everything in one .safetensors: config, classes and preprocessing.
        member: The number of one network of an ensemble, from 0; other libraries have no ensembles.
        ema: Of several copies of a network in a file of weights, the averaged one (a teacher, a moving average), or the
            other one. [default: what the program that wrote the file evaluates]
        force: Replace an existing output.
        options: Fields of ViTConfig: values that the weights do not contain, or that they are adapted to.
    """
    from ndvit.files import refuse_existing
    from ndvit.model import load_model
    from ndvit.weights.convert import export_state_dict

    refuse_existing(output, force, kind="file" if output.suffix else "folder")
    if to == "ndvit" and output.suffix != ".safetensors":
        raise ValueError(f"models of ndvit are .safetensors files, got {output}")
    model = load_model(source, ema=ema, **overrides(options))
    report = str(model.load_report)
    if member is not None:
        members = model.members
        if len(members) == 1:
            raise ValueError(f"there is no member {member}: this is a single network, no ensemble. Leave member out")
        if not 0 <= member < len(members):
            raise ValueError(f"there is no member {member}: the ensemble has 0 to {len(members) - 1}")
        model = members[member]
    remark(report)
    if to == "ndvit":
        model.save(output)
    else:
        export_state_dict(model, to, output, force)
        if model.temperature != 1:
            remark(
                f"{to} cannot store the temperature {model.temperature:.2f}: divide logits by it before the softmax "
                "for calibrated probabilities"
            )
    out(f"{output}: {len(model.network.state_dict())} tensors in the layout of {to}")
