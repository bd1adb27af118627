"""Answers for any number of examples, written to a file part by part, so that a killed prediction continues."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ndvit import __version__, processes
from ndvit.config.recipe import Device
from ndvit.data.loading import Batch, Inputs, UnusableExample
from ndvit.files import csv_text, make_folder, refuse_existing, replace_file, sole_process
from ndvit.inference.batches import Log, check_finite, on_device, to_answers
from ndvit.inference.predict import check_ready, read_inputs
from ndvit.inference.progress import ProgressLines
from ndvit.inference.recordings import mean_answers, window_predictions
from ndvit.network.fast import only_read_tokens
from ndvit.parts import ModelParts
from ndvit.tasks.base import Prediction, Task

_ROWS = 8192  # of a part
_SECONDS = 20.0  # after which a part is written with fewer rows
_WAIT = 0.2  # seconds between two looks at the parts of other processes
_PART = re.compile(r"part-(\d+)-(\d+)-(\d+)\.(parquet|csv)")
_PLAN = "plan.json"


def predict_to(
    model: ModelParts,
    *inputs: Any,
    output: str | Path,
    per_window: bool = False,
    force: bool = False,
    on_fault: Log | None = None,
    batch_size: int = 64,
    device: Device = "auto",
    progress: bool = True,
    log: Log = print,
    **reading: Any,
) -> int:
    """Predict new examples into a file; arguments and errors as in `Model.predict_to`.

    Parts of the answers are in a folder beside the output, `NAME.parts`, until they are complete. Each process of
    several has a stretch of the examples, of which it computes what no part has yet; the first one then writes the
    output. They need no connection other than the folder.
    """
    target = Path(output).expanduser()
    place = processes.started()
    rank, count = (0, 1) if place is None else (place.rank, place.size)
    if place is not None and device in ("auto", "cuda") and torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank)
    log = log if rank == 0 else _ignore
    _check_output(target, force)
    task = check_ready(model, batch_size, device, log)
    folder = target.with_name(target.name + ".parts")
    make_folder(folder)
    with ExitStack() as held:
        if rank == 0:
            held.enter_context(sole_process(folder))
        report = on_fault if on_fault is None or rank == 0 else _ignore
        read = list(read_inputs(model, inputs, reading, log, report))
        if not read:
            raise ValueError("no example could be read")
        plan = _plan(model, read, per_window, target)
        _agree(folder, plan, rank, log)
        parts = _Parts(folder, target.suffix.lower())
        work = _Work(model, task, per_window, batch_size, device, on_fault is not None)
        total = sum(map(len, read))
        watch = _Watch(parts, total, progress and rank == 0, log)
        for number, one in enumerate(read):
            for start, stop in _gaps(_own(one, rank, count), parts.of(number)):
                work.run(parts, number, one, start, stop, watch)
        if rank:
            return 0
        watch.wait()
        rows = _merge(parts, [len(one) for one in read], target)
        for fault in parts.faults():
            assert on_fault is not None
            on_fault(fault)
        parts.delete()
    folder.rmdir()
    return rows


def _check_output(target: Path, force: bool) -> None:
    if target.suffix.lower() not in (".parquet", ".csv"):
        raise ValueError(f"{target}: predictions are written to a .parquet or a .csv")
    if target.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError(
            f"{target} needs a package that is not installed: pip install 'ndvit[parquet]' (or write .csv)"
        )
    refuse_existing(target, force)


def _ignore(line: str) -> None:
    """Receive lines that the first process reports."""


def _plan(model: ModelParts, read: Sequence[Inputs], per_window: bool, target: Path) -> dict[str, Any]:
    """What parts must agree on to belong together: the version, the model and the examples."""
    names = hashlib.blake2b(digest_size=16)
    for one in read:
        for name in one.examples.names:
            names.update(str(name).encode() + b"\0")
    crc = 0
    for tensor in model.network.state_dict().values():
        crc = zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data, crc)
    return {
        "ndvit": __version__,
        "model": crc,
        "temperature": float(model.temperature),
        "examples": [len(one) for one in read],
        "names": names.hexdigest(),
        "per_window": per_window,
        "ending": target.suffix.lower(),
    }


def _agree(folder: Path, plan: Mapping[str, Any], rank: int, log: Log) -> None:
    """Keep the parts of an earlier prediction of the same examples by the same model, and delete all others."""
    path = folder / _PLAN
    deadline = time.monotonic() + 600
    while True:
        earlier = json.loads(path.read_text()) if path.is_file() else None
        if earlier == plan:
            return
        if rank == 0:
            break
        if time.monotonic() > deadline:
            raise ValueError(f"{folder}: the first process reads other examples, or has another model")
        time.sleep(_WAIT)
    if earlier is not None:
        log(f"{folder} has parts of other predictions (another model, or other examples), which are deleted")
        for left in folder.glob("part-*"):
            left.unlink()
    replace_file(path, json.dumps(plan))


def _own(inputs: Inputs, rank: int, count: int) -> tuple[int, int]:
    """The stretch of the examples of one process; it has whole recordings."""
    breaks = _breaks(inputs)
    share = processes.dealt(len(inputs), count, rank)
    first, last = np.searchsorted(breaks, [share.start, share.stop])
    return int(breaks[first]), int(breaks[last])


def _breaks(inputs: Inputs) -> np.ndarray:
    """Sorted places between two examples at which parts may end: not amid the windows of a recording."""
    places = inputs.examples.places
    if places is None:
        return np.arange(len(inputs) + 1)
    names = np.array([place.recording for place in places])
    changes = np.flatnonzero(names[1:] != names[:-1]) + 1
    if len(changes) + 1 != len(set(names.tolist())):
        raise ValueError(
            "the windows of a recording are not one after the other in these shards, so that their answers cannot be "
            "averaged part by part: set per_window (--per-window)"
        )
    return np.concatenate([[0], changes, [len(inputs)]])


def _gaps(own: tuple[int, int], done: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The stretches of `own` that are in none of the sorted stretches `done`."""
    start, stop = own
    for first, last in done:
        if last <= start:
            continue
        if first >= stop:
            break
        if first > start:
            yield start, first
        start = max(start, last)
    if start < stop:
        yield start, stop


class _Parts:
    """The files of the parts, each with the answers for a stretch of the examples of one input."""

    def __init__(self, folder: Path, ending: str) -> None:
        self.folder, self.ending = folder, ending

    def of(self, number: int) -> list[tuple[int, int]]:
        """Sorted stretches of one input that are written."""
        found = [_PART.fullmatch(path.name) for path in self.folder.iterdir()]
        return sorted((int(one[2]), int(one[3])) for one in found if one and int(one[1]) == number)

    def done(self) -> int:
        """Examples in all parts."""
        found = [_PART.fullmatch(path.name) for path in self.folder.iterdir()]
        return sum(int(one[3]) - int(one[2]) for one in found if one)

    def path(self, number: int, start: int, stop: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{number}-{start}-{stop}{self.ending}"

    def write(self, number: int, start: int, stop: int, rows: list[Prediction], faults: Sequence[str]) -> None:
        """Write a part."""
        path = self.path(number, start, stop)
        if faults:
            replace_file(path.with_suffix(".faults"), json.dumps(faults))
        table = [prediction.row() for prediction in rows]
        names = _distinct([name for name, _ in table[0]]) if table else []
        if self.ending == ".csv":
            cells = [[value for _, value in row] for row in table]
            replace_file(path, csv_text([names, *cells] if table else []))
            return
        import pyarrow
        from pyarrow import parquet

        columns = [pyarrow.array([row[i][1] for row in table]) for i in range(len(names))]
        replace_file(path, lambda where: parquet.write_table(pyarrow.table(columns, names=names), where))

    def faults(self) -> list[str]:
        """The faults of examples that were left out."""
        return [fault for path in sorted(self.folder.glob("part-*.faults")) for fault in json.loads(path.read_text())]

    def delete(self) -> None:
        """Delete all parts, the plan last."""
        for path in [*self.folder.glob("part-*"), self.folder / _PLAN]:
            path.unlink()


def _distinct(names: Sequence[str]) -> list[str]:
    """The names of columns, with a number behind a repeated one."""
    return [f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name for i, name in enumerate(names)]


class _Watch:
    """Shows how many examples have answers, those of other processes among them."""

    def __init__(self, parts: _Parts, total: int, progress: bool, log: Log) -> None:
        from tqdm import tqdm

        self.parts, self.total = parts, total
        before = parts.done()
        self.bar = tqdm(desc="predicting", total=total, initial=before, leave=False, disable=not progress, unit="")
        words = "predicting: {done:,} of {total:,} examples"
        self.lines = None if progress else ProgressLines(log, words, total, before)
        if before:
            log(f"{before:,} of {total:,} examples have answers from an earlier start")

    def update(self) -> int:
        """Show the state; return the number of examples that are done."""
        done = self.parts.done()
        self.bar.update(done - self.bar.n)
        if self.lines is not None:
            self.lines.update(done)
        return done

    def wait(self) -> None:
        """Wait until all parts are there."""
        while self.update() < self.total:
            time.sleep(_WAIT)
        self.bar.close()


class _Work:
    """Computes answers and writes them in parts."""

    def __init__(
        self, model: ModelParts, task: Task, per_window: bool, batch_size: int, device: Device, lenient: bool
    ) -> None:
        self.model, self.task, self.per_window = model, task, per_window
        self.batch_size, self.lenient = batch_size, lenient
        self.network = on_device(model.network, device)

    def run(self, parts: _Parts, number: int, inputs: Inputs, start: int, stop: int, watch: _Watch) -> None:
        """Answer the examples from `start` to `stop`, which are not amid recordings."""
        breaks = _breaks(inputs)
        kept: list[int] = []  # examples that have answers, and no part yet
        rows: list[torch.Tensor] = []
        faults: list[str] = []
        first, began = start, time.monotonic()
        for position, indices, answers, found in self._answers(inputs, start, stop):
            kept += indices
            rows += [] if answers is None else [answers]
            faults += found
            late = time.monotonic() - began > _SECONDS
            until = int(breaks[np.searchsorted(breaks, position, side="right") - 1])
            if until > first and (position == stop or late or until - first >= _ROWS):
                whole = torch.cat(rows) if rows else None
                inside = sum(i < until for i in kept)
                predictions = [] if whole is None else self._predictions(inputs, kept[:inside], whole[:inside])
                parts.write(number, first, until, predictions, faults)
                kept, faults = kept[inside:], []
                rows = [] if whole is None or inside == len(whole) else [whole[inside:]]
                first, began = until, time.monotonic()
                watch.update()

    def _predictions(self, inputs: Inputs, indices: list[int], answers: torch.Tensor) -> list[Prediction]:
        if not indices:
            return []
        examples = inputs.examples.subset(indices)
        check_finite(answers, examples.names, "the answer")
        if self.per_window:
            return window_predictions(self.task, answers.numpy(), examples)
        names, means = mean_answers(answers.numpy(), examples)
        return list(self.task.predictions(means, names))

    def _answers(
        self, inputs: Inputs, start: int, stop: int
    ) -> Iterator[tuple[int, list[int], torch.Tensor | None, list[str]]]:
        """For each batch: where it ends, its examples, their answers, and the faults of those that are left out."""
        position = start
        with torch.inference_mode(), only_read_tokens(self.network):
            while position < stop:
                batches = [range(i, min(i + self.batch_size, stop)) for i in range(position, stop, self.batch_size)]
                try:
                    for batch, indices in zip(inputs.batches(batches), batches):
                        position = indices[-1] + 1
                        yield position, list(indices), self._forward(batch), []
                except UnusableExample:
                    if not self.lenient:
                        raise
                    last = min(position + self.batch_size, stop)
                    kept, answers, faults = self._one_by_one(inputs, range(position, last))
                    position = last
                    yield position, kept, answers, faults

    def _one_by_one(self, inputs: Inputs, indices: range) -> tuple[list[int], torch.Tensor | None, list[str]]:
        kept, rows, faults = list[int](), list[torch.Tensor](), list[str]()
        for i in indices:
            try:
                rows.append(self._forward(inputs[i]))
                kept.append(i)
            except UnusableExample as error:
                faults.append(str(error))
        return kept, torch.cat(rows) if rows else None, faults

    def _forward(self, batch: Batch) -> torch.Tensor:
        place = next((one.device for one in self.network.parameters()), torch.device("cpu"))
        mask = None if batch.mask is None else batch.mask.to(place)
        return to_answers(self.model, self.network(batch.x.to(place), mask).float().cpu(), self.task)


def _merge(parts: _Parts, lengths: Sequence[int], target: Path) -> int:
    """Join the parts in the order of the examples; return the number of rows."""
    files: list[Path] = []
    for number, length in enumerate(lengths):
        found = parts.of(number)
        assert [list(_gaps((0, length), found)), sum(b - a for a, b in found)] == [[], length], "overlapping parts"
        files += [parts.path(number, start, stop) for start, stop in found]
    rows = 0

    def join_parquet(where: Path) -> None:
        nonlocal rows
        from pyarrow import parquet

        with ExitStack() as opened:
            writer: Any = None
            for path in files:
                table = parquet.read_table(path)
                if not table.num_columns:  # every example of this part was left out
                    continue
                writer = writer or opened.enter_context(parquet.ParquetWriter(where, table.schema))
                writer.write_table(table.cast(writer.schema))
                rows += table.num_rows
        if writer is None:
            raise ValueError("no example could be answered")

    def join_csv(where: Path) -> None:
        nonlocal rows
        head = ""
        with where.open("w", encoding="utf-8", newline="") as joined:
            for path in files:
                with path.open(encoding="utf-8", newline="") as part:
                    line = part.readline()
                    if line and not head:
                        joined.write(head := line)
                    shutil.copyfileobj(part, joined)
        with where.open(encoding="utf-8", newline="") as joined:
            import csv

            rows = max(0, sum(1 for _ in csv.reader(joined)) - 1)
        if not head:
            raise ValueError("no example could be answered")

    replace_file(target, join_csv if parts.ending == ".csv" else join_parquet)
    return rows
