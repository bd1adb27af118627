from typing import Annotated

from cyclopts import Parameter

from ndvit.cli.options import NetworkOptions, overrides
from ndvit.cli.printing import out, shortened


def info(
    source: str, *, ema: bool | None = None, options: Annotated[NetworkOptions | None, Parameter(name="*")] = None
) -> None:
    """Describe weights: origin, network, classes, preprocessing, and how each tensor was read.

    Args:
        source: A run folder, a file of weights of any known layout, a name that `ndvit weights` lists, or
            hf:owner/name. FILE#PREFIX is the network under this prefix of a file with several.
        ema: Of several copies of a network in a file of weights, the averaged one (a teacher, a moving average), or the
            other one. [default: what the program that wrote the file evaluates]
        options: Fields of ViTConfig: values that the weights do not contain, or that they would be adapted to.
    """
    from ndvit.model import load_features
    from ndvit.network import count_cost
    from ndvit.network.committee import transformers

    model = load_features(source, ema=ema, **overrides(options))
    stored = getattr(model.network, "config", None)  # of an exported file
    configs = [network.config for network in transformers(model.network)] or ([stored] if stored else [])
    parameters = sum(p.numel() for p in model.network.parameters()) or sum(count_cost(c)[0] for c in configs)
    if model.load_report is not None:
        out(model.load_report)
    if len(model.members) > 1:
        out(f"members  {len(model.members)}, whose probabilities are averaged")
    cost = f", {sum(count_cost(c)[1] for c in configs) / 1e9:.3f} GMACs an example" if configs else ""
    out(f"size     {parameters:,} parameters{cost}")
    outputs = model.classes or (model.task.output_names() if model.task is not None else ())
    names = ", ".join(outputs[:20]) + (", ..." if len(outputs) > 20 else "")
    title = "classes " if model.classes or model.task is None else "outputs "
    out(shortened(f"{title} {len(outputs)}{': ' + names if names else ': the file names none'}"))
    if model.task is not None and model.task.name != "classification":
        out(shortened("; ".join([f"task     {model.task.name}", *map(": ".join, model.task.facts().items())])))
    sections = {
        "network": configs[0].to_dict() if configs else {"none": "nothing was trained by descent"},
        "preprocessing": model.preprocess.to_dict() if model.preprocess else {"none": "the file contains none"},
        "provenance": model.provenance,
    }
    for title, values in sections.items():
        out(f"\n{title}")
        for name, value in values.items():
            out(shortened(f"  {name:22} {value}", 500))
