from typing import Annotated, Any, Literal

from cyclopts import Parameter

from ndvit.cli.options import InferenceOptions, Split
from ndvit.cli.printing import out, print_json, remark


def evaluate(
    run: str,
    source: str,
    *,
    split: Split = "auto",
    literal_labels: bool | None = None,
    drop_copies: bool = False,
    format: Literal["table", "json"] = "table",
    options: Annotated[InferenceOptions | None, Parameter(name="*")] = None,
) -> None:
    """Test a trained model on labelled data.

    Args:
        run: A run folder, weights as `info` takes them, or a .onnx or .xml file that `export` wrote.
        source: Labelled data, as for train.
        split: auto is the test set if there is one or if the model was trained on this source; otherwise all.
        literal_labels: Take every label as the name of a class, also NA or 1.5. [default: as in the model's training]
        drop_copies: Leave out exact copies, as in train.
        format: A table, or JSON with all metrics.
        options: How files are read, and where the model runs.
    """
    from ndvit import model

    how: dict[str, Any] = {
        "split": split,
        "literal_labels": literal_labels,
        "drop_copies": drop_copies,
        **(options or {}),
    }
    evaluation = model.evaluate(run, source, log=remark, **how)
    if format == "json":
        print_json(evaluation.to_dict())
    else:
        out(evaluation.table())
