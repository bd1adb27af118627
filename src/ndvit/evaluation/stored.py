"""Reports as a file, from which a page is written again: in another language, or with its figures as files.

The file is a .npz of plain arrays, one of which is JSON that names the others. Only the classes in `CLASSES` are made.
"""

from __future__ import annotations

import io
import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from ndvit.evaluation.cards import Card, Sketch
from ndvit.evaluation.classification import ClassificationEvaluation
from ndvit.evaluation.folds import NumberTable
from ndvit.evaluation.maps import FeatureMap, Method
from ndvit.evaluation.multilabel import MultilabelEvaluation
from ndvit.evaluation.pretraining import PretrainingEvaluation
from ndvit.evaluation.recordings import RecordingEvaluation, Track
from ndvit.evaluation.regression import RegressionEvaluation
from ndvit.evaluation.relevance import Reason, Relevance, RelevanceSketch, sketch_relevance
from ndvit.evaluation.report import Report, write_report
from ndvit.files import check_regular, make_folder, replace_file, unpacking_fault

STORED_FILE = "report.npz"
_HEAD = "report"
_FORMAT = 1
CLASSES: dict[str, Any] = {
    one.__name__: one
    for one in (
        Report,
        Card,
        Sketch,
        Reason,
        RelevanceSketch,
        FeatureMap,
        NumberTable,
        Track,
        ClassificationEvaluation,
        MultilabelEvaluation,
        RegressionEvaluation,
        RecordingEvaluation,
        PretrainingEvaluation,
    )
}


def store_report(report: Report, path: Path) -> bool:
    """Write what the page has into a file.

    Returns:
        Whether that was possible: the evaluation of a task from outside ndvit is not stored.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        head = json.dumps({"format": _FORMAT, "report": _packed(report, arrays)})
    except TypeError:
        return False
    arrays[_HEAD] = np.frombuffer(head.encode(), dtype=np.uint8)
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    replace_file(path, file.getvalue())
    return True


def load_report(path: Path) -> Report:
    """What `store_report` wrote.

    Raises:
        FileNotFoundError: without such a file.
        ValueError: for another file.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} has no {path.name}, from which its page could be written again: it is no run, or was made "
            "by an earlier version or for a task of your own; ndvit evaluate tests its model again"
        )
    check_regular(path)
    try:
        with ZipFile(path) as archive:
            fault = unpacking_fault(sum(one.file_size for one in archive.infolist()), path.stat().st_size)
        if fault:
            raise ValueError(fault)
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        head = json.loads(arrays[_HEAD].tobytes())
        if head["format"] != _FORMAT:
            raise ValueError(f"has the format {head['format']}, and this version of ndvit reads {_FORMAT}")
        report = _unpacked(head["report"], arrays)
        if not isinstance(report, Report):
            raise ValueError("holds no report")
    except (ValueError, KeyError, TypeError, AttributeError, BadZipFile, OSError, EOFError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or no file of ndvit ({error})") from error
    return report


def rewrite_report(folder: Path, output: Path, written_in: str, figures: Path | None, map_method: Method) -> list[Path]:
    """Write the page of a run again from what the run stored; nothing is trained or tested.

    Args:
        folder: the run.
        output: the page.
        written_in: the language of its words.
        figures: folder for each figure as SVG and PDF; None writes the page only.
        map_method: how the embedding map is made.

    Returns:
        The files of figures.

    Raises:
        FileNotFoundError, ValueError: as `load_report`, and for an unknown language.
    """
    from ndvit.evaluation.figures import saving

    report = load_report(folder / STORED_FILE)
    if figures is None:
        write_report(report, output, written_in, map_method)
        return []
    make_folder(figures)
    with saving(figures) as saved:
        write_report(report, output, written_in, map_method)
    return saved


def _packed(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A value as JSON; arrays are put into `arrays`, and replaced by their names."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float | np.number | np.bool_):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufU":
            raise TypeError(f"arrays of {value.dtype} are not stored")
        name = f"a{len(arrays)}"
        arrays[name] = value
        return {"array": name}
    if isinstance(value, Relevance):
        value = sketch_relevance(value)
    if type(value).__name__ in CLASSES and type(value) is CLASSES[type(value).__name__]:
        names = getattr(value, "_fields", None) or [field.name for field in fields(value)]
        packed = {name: _packed(getattr(value, name), arrays) for name in names}
        groups = getattr(value, "groups", None) if is_dataclass(value) else None
        more = {"groups": _packed(groups, arrays)} if groups is not None and "groups" not in packed else {}
        return {"class": type(value).__name__, "fields": packed, **more}
    if isinstance(value, dict):
        return {"dict": [[_packed(key, arrays), _packed(one, arrays)] for key, one in value.items()]}
    if isinstance(value, list | tuple):
        return {"list" if isinstance(value, list) else "tuple": [_packed(one, arrays) for one in value]}
    raise TypeError(f"values of {type(value).__name__} are not stored")


def _unpacked(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "class" in value:
        made = CLASSES[value["class"]](**{name: _unpacked(one, arrays) for name, one in value["fields"].items()})
        return made.grouped(_unpacked(value["groups"], arrays)) if "groups" in value else made
    if "dict" in value:
        return {_unpacked(key, arrays): _unpacked(one, arrays) for key, one in value["dict"]}
    kind = "list" if "list" in value else "tuple"
    made_list = [_unpacked(one, arrays) for one in value[kind]]
    return made_list if kind == "list" else tuple(made_list)
