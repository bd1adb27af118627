"""One model is one .safetensors file: tensors, and in its header the config, the classes and the preprocessing."""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ndvit.config import ViTConfig
from ndvit.data.preprocess import preprocess_from_dict
from ndvit.network import VisionTransformer

FORMAT = "1"  # of the header; raised when an older reader could not make sense of a newer file
MODEL_FILE = "model.safetensors"


def save_model(model: VisionTransformer, path: str | Path) -> None:
    """Write a model with its config, `classes`, `preprocess` and `provenance` into one file.

    The file appears whole or not at all. It holds plain tensors and JSON: nothing in it can run.
    """
    path = Path(path)
    header = {
        "ndvit": FORMAT,
        "config": json.dumps(model.config.to_dict()),
        "classes": json.dumps(list(model.classes)),
        "preprocess": json.dumps(None if model.preprocess is None else model.preprocess.to_dict()),
        "provenance": json.dumps(dict(model.provenance)),
    }
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(save(tensors, metadata=header))
    os.replace(temporary, path)


def load_model(path: str | Path, device: str | torch.device = "cpu") -> VisionTransformer:
    """Read a model that `save_model` or a training run wrote, from its file or the run's folder.

    The model is in eval mode on `device` and carries `config`, `classes`, `preprocess` and `provenance`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, is no model of ndvit's, or its tensors do not fit its config.
    """
    path = model_path(path)
    header, tensors = _read(path)
    if "ndvit" not in header:
        raise ValueError(
            f"{path} is a safetensors file of {len(tensors)} tensors but no model of ndvit's: its header has no config"
        )
    if header["ndvit"] != FORMAT:
        raise ValueError(f"{path} has file format {header['ndvit']}, this ndvit reads {FORMAT}: update ndvit")
    try:
        parts = {name: json.loads(header[name]) for name in ("config", "classes", "preprocess", "provenance")}
        model = VisionTransformer(ViTConfig.from_dict(parts["config"]))
        preprocess = None if parts["preprocess"] is None else preprocess_from_dict(parts["preprocess"])
        classes, provenance = tuple(map(str, parts["classes"])), dict(parts["provenance"])
        if classes and len(classes) != model.config.num_classes:
            raise ValueError(f"{len(classes)} classes for {model.config.num_classes} outputs")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: the header does not describe a model: {error}") from error
    check_tensors(path, model.state_dict(), tensors)
    model.load_state_dict(tensors)
    model.classes, model.preprocess, model.provenance = classes, preprocess, provenance
    return model.to(device).eval()


def model_path(path: str | Path) -> Path:
    """The model file that a path means: the file itself, or the one in a run's folder.

    Raises:
        FileNotFoundError: saying what is missing, for a run that has not finished how to finish it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no model at {path}: give a run folder or a .safetensors file")
    if path.is_dir():
        if not (path / MODEL_FILE).is_file():
            finish = f"; the run has not finished: ndvit train --resume {shlex.quote(str(path))}"
            broken = (path / "checkpoints").is_dir()
            raise FileNotFoundError(f"{path} is a folder without {MODEL_FILE}{finish if broken else ''}")
        path = path / MODEL_FILE
    return path


def check_tensors(path: Path, expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> None:
    """Raise a ValueError that shows both sides where names or shapes of tensors differ."""
    problems = []
    for title, names in (("missing", expected.keys() - found.keys()), ("unexpected", found.keys() - expected.keys())):
        if names:
            problems.append(f"{len(names)} {title} ({', '.join(sorted(names)[:5])}{', ...' if len(names) > 5 else ''})")
    for name in sorted(expected.keys() & found.keys()):
        if expected[name].shape != found[name].shape:
            problems.append(f"{name} is {tuple(found[name].shape)}, the config needs {tuple(expected[name].shape)}")
    if problems:
        raise ValueError(f"{path}: tensors do not fit the config: " + "; ".join(problems))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        kind = f"{path.stat().st_size} bytes" if path.stat().st_size else "empty"
        raise ValueError(f"{path} ({kind}) is not a readable safetensors file, or it is damaged: {error}") from error
