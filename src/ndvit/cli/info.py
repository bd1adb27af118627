from typing import Annotated

from cyclopts import Parameter

from ndvit.cli.options import NetworkOptions, overrides


def info(source: str, *, options: Annotated[NetworkOptions | None, Parameter(name="*")] = None) -> None:
    """Describe weights: origin, network, classes, preprocessing, and how each tensor was read.

    Args:
        source: A run folder, a file of weights of any known layout, a name that `ndvit weights` lists, or
            hf:owner/name.
        options: Fields of ViTConfig: values that the weights do not contain, or that they would be adapted to.
    """
    from ndvit.model import load_model
    from ndvit.network import count_cost
    from ndvit.network.committee import transformers

    model = load_model(source, **overrides(options))
    configs = [network.config for network in transformers(model.network)] or [model.config]
    parameters = sum(p.numel() for p in model.network.parameters()) or count_cost(model.config)[0]
    if model.load_report is not None:
        print(model.load_report)
    if len(model.members) > 1:
        print(f"members  {len(model.members)}, whose probabilities are averaged")
    print(f"size     {parameters:,} parameters, {sum(count_cost(c)[1] for c in configs) / 1e9:.3f} GMACs an example")
    names = ", ".join(model.classes[:20]) + (", ..." if len(model.classes) > 20 else "")
    print(f"classes  {len(model.classes)}{': ' + names if names else ': the file names none'}")
    sections = {
        "network": model.config.to_dict(),
        "preprocessing": model.preprocess.to_dict() if model.preprocess else {"none": "the file contains none"},
        "provenance": model.provenance,
    }
    for title, values in sections.items():
        print(f"\n{title}")
        for name, value in values.items():
            print(f"  {name:22} {value}")
