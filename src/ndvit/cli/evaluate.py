from typing import Annotated, Literal

from cyclopts import Parameter

from ndvit.cli.options import LabelledOptions, Split
from ndvit.cli.printing import out, print_json, remark


def evaluate(
    run: str,
    source: str,
    *,
    split: Split = "auto",
    format: Literal["table", "json"] = "table",
    options: Annotated[LabelledOptions | None, Parameter(name="*")] = None,
) -> None:
    """Test a trained model on labelled data.

    Args:
        run: A run folder, weights as `info` takes them, or a .onnx or .xml file that `export` wrote.
        source: Labelled data, as for train.
        split: auto is the test set if there is one or if the model was trained on this source; otherwise all.
        format: A table, or JSON with all metrics.
        options: How data are read (by default as in the model's training), and where the model runs.
    """
    from ndvit import model

    evaluation = model.evaluate(run, source, split=split, log=remark, **(options or {}))
    if format == "json":
        print_json(evaluation.to_dict())
    else:
        out(evaluation.table())
