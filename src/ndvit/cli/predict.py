import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from ndvit.cli.options import InferenceOptions
from ndvit.cli.printing import error_line, out, print_csv, print_json, remark

Flag = Annotated[bool, Parameter(negative=())]


def predict(
    run: str,
    files: Annotated[list[str] | None, Parameter(negative=())] = None,
    /,
    *,
    format: Literal["table", "csv", "json"] = "table",
    per_window: Flag = False,
    output: Path | None = None,
    devices: int | Literal["auto"] | None = None,
    force: bool = False,
    watch: Path | None = None,
    once: Flag = False,
    interval: float = 1.0,
    options: Annotated[InferenceOptions | None, Parameter(name="*")] = None,
) -> None:
    """Predict new examples, with probabilities.

    Files that cannot be read or do not fit the model are reported, and the others are answered; the exit status is
    then 2, unless they are left out by --skip-bad.

    Args:
        run: A run folder, weights as `info` takes them, or a .onnx or .xml file that `export` wrote.
        files: Images, recordings, tables (.csv, .parquet), files of arrays (.npy, .npz, .ts, .mat), or folders of them;
            or a folder of shards, or its address.
        format: A table of the most probable classes; csv or json with the probability of every class.
        per_window: Print the answer for each window of a recording, with its start and end, instead of their mean.
        output: A .parquet or .csv to write the answers to, for any number of examples. The same command continues when
            it was interrupted.
        devices: Processes that share the examples, one for each GPU, with --output; auto is all GPUs of this machine.
        force: Replace an existing output.
        watch: A folder instead of files: each new file in it is answered by a line of --output, a .csv, as soon as it
            is complete, until Ctrl-C or SIGTERM. A file that cannot be read has a line with the error. A .csv that
            exists is continued: what it has is not answered again.
        once: Answer the files that --watch finds now, and stop, for cron and other timers.
        interval: Seconds between two looks at the folder of --watch.
        options: How files are read, and where the model runs.
    """
    from ndvit import model

    settings: dict[str, Any] = dict(options or {})
    if watch is not None:
        if files or output is None or format != "table" or devices is not None or force:
            raise ValueError("--watch FOLDER needs --output FILE.csv, and no files, --format, --devices and --force")
        opened = model.load_model(run, ema=settings.pop("ema", None))
        opened.watch(watch, output, once=once, interval=interval, per_window=per_window, log=remark, **settings)
        return
    if not files:
        raise ValueError("no files to predict: name some, or a folder with --watch FOLDER --output FILE.csv")
    if once:
        raise ValueError("--once belongs to --watch FOLDER: leave it out, or watch one")
    if output is not None:
        _answer_into(run, files, output, devices, {"per_window": per_window, "force": force, **settings})
    elif devices is not None or force:
        raise ValueError("--devices and --force are for --output FILE.parquet, which several processes write")
    else:
        _answer(run, files, format, per_window, settings)


def _answer(run: str, files: list[str], format: str, per_window: bool, options: dict[str, Any]) -> None:
    from ndvit import model

    faults: list[str] = []
    predictions = model.predict(run, *files, per_window=per_window, on_fault=faults.append, log=remark, **options)
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
    if faults and not (predictions and options.get("skip_bad")):
        sys.exit(2)


_AGAIN = "run the same command again, which keeps the parts that are written"


def _answer_into(
    run: str, files: list[str], output: Path, devices: int | Literal["auto"] | None, settings: dict[str, Any]
) -> None:
    from ndvit import model
    from ndvit.cli.starting import words
    from ndvit.inference.batches import pick_device
    from ndvit.processes import started
    from ndvit.training.devices import launch, settle_devices

    place, settled = settle_devices({"devices": devices}, pick_device(settings.get("device", "auto")))
    if place is None and settled.get("devices", 1) > 1:
        if status := launch(int(settled["devices"]), words.get(), error_line, _AGAIN):
            sys.exit(status)
        return
    faults: list[str] = []
    rows = model.predict_to(run, *files, output=output, on_fault=faults.append, log=remark, **settings)
    if (place := started()) is None or place.rank == 0:
        out(f"{output}: {rows:,} rows")
    for fault in faults:
        error_line(fault)
    if faults and not (rows and settings.get("skip_bad")):
        sys.exit(2)
