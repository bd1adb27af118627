from typing import Annotated, Literal

from cyclopts import Parameter

from ndvit.cli.options import InferenceOptions, Split
from ndvit.cli.printing import print_json, remark


def evaluate(
    run: str,
    source: str,
    *,
    split: Split = "auto",
    format: Literal["table", "json"] = "table",
    options: Annotated[InferenceOptions | None, Parameter(name="*")] = None,
) -> None:
    """Test a trained model on labelled data.

    Args:
        run: A run folder, weights as `info` takes them, or a .onnx or .xml file that `export` wrote.
        source: Labelled data, as for train.
        split: auto is the test set if there is one or if the model was trained on this source; otherwise all.
        format: A table, or JSON with all metrics.
        options: How files are read, and where the model runs.
    """
    from ndvit import model

    evaluation = model.evaluate(run, source, split=split, log=remark, **(options or {}))
    if format == "json":
        print_json(evaluation.to_dict())
    else:
        print(evaluation.table())
