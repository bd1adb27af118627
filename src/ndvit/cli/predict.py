from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ndvit.cli.options import InferenceOptions
from ndvit.cli.printing import out, print_csv, print_json, remark


def predict(
    run: str,
    files: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    format: Literal["table", "csv", "json"] = "table",
    options: Annotated[InferenceOptions | None, Parameter(name="*")] = None,
) -> None:
    """Predict new examples, with probabilities.

    Args:
        run: A run folder, weights as `info` takes them, or a .onnx or .xml file that `export` wrote.
        files: Images, recordings, files of arrays (.npy, .npz, .ts, .tsv), or folders of them.
        format: A table of the most probable classes; csv or json with the probability of every class.
        options: How files are read, and where the model runs.
    """
    from ndvit import model

    predictions = model.predict(run, *files, log=remark, **(options or {}))
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
