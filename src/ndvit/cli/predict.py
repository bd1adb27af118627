import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ndvit.cli.options import InferenceOptions
from ndvit.cli.printing import error_line, out, print_csv, print_json, remark


def predict(
    run: str,
    files: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    format: Literal["table", "csv", "json"] = "table",
    per_window: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[InferenceOptions | None, Parameter(name="*")] = None,
) -> None:
    """Predict new examples, with probabilities.

    Files that cannot be read or do not fit the model are reported, and the others are answered; the exit status is
    then 2, unless they are left out by --skip-bad.

    Args:
        run: A run folder, weights as `info` takes them, or a .onnx or .xml file that `export` wrote.
        files: Images, recordings, tables (.csv, .parquet), files of arrays (.npy, .npz, .ts, .mat), or folders of them.
        format: A table of the most probable classes; csv or json with the probability of every class.
        per_window: Print the answer for each window of a recording, with its start and end, instead of their mean.
        options: How files are read, and where the model runs.
    """
    from ndvit import model

    faults: list[str] = []
    predictions = model.predict(
        run, *files, per_window=per_window, on_fault=faults.append, log=remark, **(options or {})
    )
    if format == "json":
        print_json([prediction.to_dict() for prediction in predictions])
    elif format == "csv":
        rows = [prediction.row() for prediction in predictions]
        head = [column for column, _ in rows[0]] if rows else ["name"]
        print_csv([head, *([value for _, value in row] for row in rows)])
    else:
        width = max((len(prediction.name) for prediction in predictions), default=0)
        for prediction in predictions:
            out(f"{prediction.name:{width}}  {prediction.text()}")
    for fault in faults:
        error_line(fault)
    if faults and not (predictions and (options or {}).get("skip_bad")):
        sys.exit(2)
