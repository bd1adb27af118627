"""The settings of a run as its config.yaml holds them: flat values, read without executing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ndvit import __version__
from ndvit.config.pretraining import IDLE, UNSPLIT
from ndvit.config.reading import take_reading_options
from ndvit.data.sources.finding import builtin_sources
from ndvit.training.plan import Plan, Request
from ndvit.weights.opening import split_part

CONFIG_FILE = "config.yaml"
HEAD = "# ndvit "
"""First characters of every config.yaml."""
IN_MEMORY = "in memory: "
"""Marks a teacher that config.yaml cannot name."""
_CONFIG_BYTES = 1_000_000
_SETTINGS: dict[str, Any] = {  # settings of a run beside its options, with their types
    "source": str | None,
    "task": str,
    "preset": str,
    "model": str | None,
    "weights": str | None,
    "ema": bool | None,
    "members": int,
    "teacher": str | None,
    "language": str,
}
_DEFAULTS = {"task": "classification", "preset": "basic", "weights": None, "ema": None, "members": 1, "teacher": None}
_DEFAULTS |= {"language": "en"}
_DEFAULTS |= {"encoder": False, "levels": False, "solved_weight": "usual"}
"""Settings that runs of earlier versions lack."""
_ALWAYS = ("test_fraction", "skip_bad")
"""Options of reading that runs of every version write."""


def settings_of(request: Request) -> dict[str, Any]:
    """What config.yaml holds of a request beside its options."""
    settings = {
        "source": as_written(request.source),
        "task": request.task if isinstance(request.task, str) else request.task.name,
        "preset": request.preset,
        "model": request.model,
        "weights": as_written(request.weights, weights=True),
        "ema": request.ema,
        "members": request.members,
        "teacher": teacher_as_written(request.teacher),
    }
    settings |= {} if request.language == _DEFAULTS["language"] else {"language": request.language}
    reading = request.reading.set_options()
    if not request.learns_from_targets:
        settings = {"objective": settings.pop("task"), **settings}
        settings = {name: settings[name] for name in ("source", "objective", "model", "weights", "ema")}
        reading = {name: value for name, value in reading.items() if name not in UNSPLIT}
    for name in ("split_file", "label_file"):
        if (path := reading.get(name)) is not None:
            reading[name] = str(Path(path).expanduser().resolve())
    return settings | reading


def request_of(settings: dict[str, Any], where: Path, source: Any, teacher: Any, progress: bool) -> Request:
    """The request that a run was started with.

    Args:
        settings: from its config.yaml.
        where: that file, for messages.
        source: the source in memory again, or None.
        teacher: the teacher in memory again, or None.
        progress: show progress bars.

    Raises:
        ValueError: for settings that no run has written, and for data or a teacher that only memory held.
    """
    if "folds" in settings:
        raise ValueError(f"{where.parent} is a cross-validation: continue it with ndvit crossvalidate --resume")
    settings = _DEFAULTS | settings
    if "objective" in settings:
        settings |= {"task": settings.pop("objective"), "test_fraction": 0.0}
    for name, kind in (_SETTINGS | dict.fromkeys(_ALWAYS, int | float)).items():
        if name not in settings or not isinstance(settings[name], kind):
            raise ValueError(f"{where} has been changed since the run wrote it: {name} is {settings.get(name)!r}")
    source = settings["source"] if source is None else source
    if source is None:
        raise ValueError(f"{where.parent} was trained on arrays: resume it from Python with source= the same arrays")
    teacher = settings["teacher"] if teacher is None else teacher
    if isinstance(teacher, str) and teacher.startswith(IN_MEMORY):
        kind = teacher.removeprefix(IN_MEMORY)
        raise ValueError(f"the teacher of this run was a {kind} in memory: from Python, pass teacher= the same again")
    try:
        reading, options = take_reading_options(
            {name: value for name, value in settings.items() if name not in _SETTINGS}
        )
    except ValueError as error:
        raise ValueError(f"{where} has been changed since the run wrote it: {error}") from error
    own = {name: settings[name] for name in _SETTINGS} | {"source": source, "teacher": teacher}
    return Request(**own, reading=reading, options=options, progress=progress)


def command_of(planned: Plan) -> str:
    """The command that makes such a run."""
    return "train" if planned.task.learns_from_targets else "pretrain"


def settings_text(settings: dict[str, Any], planned: Plan) -> str:
    """The content of config.yaml."""
    command = command_of(planned)
    rerun = f"ndvit {command} --config {CONFIG_FILE} --output NEW_FOLDER"
    if settings["source"] is None:
        rerun = f"the source was arrays; in Python, {command}(arrays, **settings)"
    recipe = planned.recipe.to_dict()
    if not planned.task.learns_from_targets:
        recipe = {name: value for name, value in recipe.items() if name not in IDLE} | planned.pretraining.to_dict()
    settings = {**settings, **planned.options, **recipe}
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}
    return f"{HEAD}{__version__}. Rerun: {rerun}\n{yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)}"


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a config.yaml: flat values and lists of them, without the aliases and objects of YAML.

    Raises:
        ValueError: if it is not that, with the file.
    """
    return parse_config(read_text(path), path)


def read_text(path: Path) -> str:
    """The text of a file of settings, of bounded length."""
    if path.stat().st_size > _CONFIG_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, at most {_CONFIG_BYTES:,} are read as settings")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not readable YAML: {error}") from error


class _FlatLoader(yaml.SafeLoader):
    """YAML without aliases, from which a few lines can make billions of values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.YAMLError(f"aliases (*name) are not read, line {mark.line + 1} has one")
        return super().compose_node(parent, index)


def parse_config(text: str, path: Path) -> dict[str, Any]:
    """As `read_config`, from the text of the file."""
    try:
        settings = yaml.load(text, _FlatLoader)
    except RecursionError:
        raise ValueError(f"{path} is not readable YAML: its values nest too deep") from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, OverflowError) as error:  # the last: values of a tag
        raise ValueError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold settings as `name: value` lines, got {type(settings).__name__}")
    if "rocket_weight" in settings:  # of earlier versions
        settings["solved_weight"] = settings.pop("rocket_weight")
    for name, value in settings.items():
        if not isinstance(name, str):
            raise ValueError(f"{path}: the name of a setting is text, got {name!r}")
        for one in value if isinstance(value, list) else [value]:
            if one is not None and type(one) not in (bool, int, float, str):
                raise ValueError(f"{path}: {name} must be a value or a list of values, got a {type(one).__name__}")
    return settings


def as_written(source: Any, weights: bool = False) -> str | None:
    """A source as config.yaml stores it: paths are absolute; None for arrays."""
    if not isinstance(source, str | Path):
        return None
    source, part = split_part(source) if weights else (source, None)
    path = Path(source).expanduser()
    is_name = isinstance(source, str) and (source.lower() in builtin_sources() or source.lower().startswith("ucr:"))
    written = str(path.resolve()) if path.exists() and (weights or not is_name) else str(source)
    return written if part is None else f"{written}#{part}"


def teacher_as_written(teacher: Any) -> str | None:
    """A teacher as config.yaml stores it."""
    if teacher is None or isinstance(teacher, str | Path):
        return as_written(teacher, weights=True)
    return f"{IN_MEMORY}{type(teacher).__name__}"
