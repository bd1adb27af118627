from typing import Annotated

from cyclopts import Parameter

from ndvit.cli.printing import out


def weights(words: Annotated[list[str] | None, Parameter(negative=())] = None, /) -> None:
    """List published weights: name, input, ImageNet-1k top-1 in percent, classes, licence.

    Args:
        words: Only names that contain all of these, for example: dinov2 base
    """
    from ndvit.weights.reading.zoo import find_weights, list_weights

    chosen = [name for name in list_weights() if all(word.lower() in name.lower() for word in words or ())]
    if not chosen:
        wanted = " and ".join(words or ())
        raise ValueError(f"no published weights with {wanted} in their name: `ndvit weights` lists them all")
    width = max(map(len, chosen))
    out(f"{'name':{width}}  {'input':>9}  {'top-1':>5}  {'classes':12}  licence")
    for row in filter(None, map(find_weights, chosen)):
        size, top1 = " x ".join(map(str, row.input_size)), f"{row.top1:.1f}" if row.top1 else "–"
        out(f"{row.name:{width}}  {size:>9}  {top1:>5}  {row.classes or '–':12}  {row.licence}")
    out("\nTop-1 as published, – if unknown. The licences are those of the authors: read them before use.")
