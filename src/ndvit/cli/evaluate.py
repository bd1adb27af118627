from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ndvit.cli.options import LabelledOptions, Split
from ndvit.cli.printing import out, print_json, remark
from ndvit.config.names import Language


def evaluate(
    run: str,
    source: str,
    *,
    split: Split = "auto",
    predictions: Path | None = None,
    force: bool = False,
    language: Language = "en",
    format: Literal["table", "json"] = "table",
    options: Annotated[LabelledOptions | None, Parameter(name="*")] = None,
) -> None:
    """Test a trained model on labelled data.

    Args:
        run: A run folder, weights as `info` takes them, or a .onnx or .xml file that `export` wrote.
        source: Labelled data, as for train.
        split: auto is the test set if there is one or if the model was trained on this source; otherwise all.
        predictions: A .csv to write name, target, group and answer of each example to.
        force: Replace an existing file of predictions.
        language: Language of the table.
        format: A table, or JSON with all metrics.
        options: How data are read (by default as in the model's training), and where the model runs.
    """
    from ndvit import model
    from ndvit.evaluation.words import language as written_in

    evaluation = model.evaluate(
        run, source, split=split, predictions=predictions, force=force, log=remark, **(options or {})
    )
    if format == "json":
        print_json(evaluation.to_dict())
        return
    with written_in(language):
        out(evaluation.table())
