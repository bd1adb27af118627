"""Read the tensors of any weights file without running anything in it.

The format is recognised by the first bytes, never by the name: safetensors, numpy's .npz, both formats of torch.save,
and folders of shards. Anything else is refused in one line that names what the file is.
"""

import re
import shlex
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ndvit.weights.errors import damage, note_left_out, some
from ndvit.weights.file import MODEL_FILE
from ndvit.weights.reading.pickles import read_pickle
from ndvit.weights.reading.shards import SIDECARS, read_index, read_json

_HEADER_BYTES = 12_000_000  # 500 networks of 150 tensors; the limit of safetensors itself is 100 MB
_DIRECTORY_BYTES = 20_000_000  # of the names in a zip archive
_RATIO, _SMALL = 20, 20_000_000  # a file unpacks to so many times its size, or so many bytes
_NAME_LENGTH = 500  # names are matched against patterns, whose time grows with the length
_SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")
_NAMED = (MODEL_FILE, f"{MODEL_FILE}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# What trainers write beside weights.
_NOT_WEIGHTS = re.compile(
    r"(optimizer|scheduler|scaler|rng_state|training_args|trainer_state|random_states)\b|rng_state"
)
_OTHERS = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"%PDF": "a PDF document",
    b"\x1f\x8b": "a gzip archive, which has to be unpacked first",
    b"\x89HDF": "an HDF5 file (Keras)",
    b"\x93NUMPY": "a single numpy array",
    b"GGUF": "a GGUF file",
}
_EXPECTED = "expected .safetensors, .npz or a checkpoint of torch.save"
_UNFINISHED = (
    "final/checkpoints/step=*.ckpt",  # of the steps on all training examples, after the others
    "checkpoints/step=*.ckpt",
    "members/*/final/checkpoints/step=*.ckpt",
    "members/*/checkpoints/step=*.ckpt",
)
"""Where an unfinished run has checkpoints, the latest steps first."""


@dataclass(frozen=True)
class TensorFile:
    """The raw tensors of a weights file, and the contents of the files beside it."""

    path: Path  # the weights file, or the index of its shards
    tensors: dict[str, Tensor]  # by the names in the file, those in dicts inside dicts joined by dots; as stored
    values: dict[str, Any]  # what a checkpoint of torch.save holds beside tensors, such as args; likewise named
    header: dict[str, str]  # safetensors metadata; empty for other files
    sidecars: dict[str, dict[str, Any]]  # `config.json` and `preprocessor_config.json`, if they are in the same folder
    notes: tuple[str, ...]  # what was left out, one sentence each


def read_tensors(path: str | Path) -> TensorFile:
    """Read the tensors of a weights file, of an index of shards, or of a folder with either.

    Nothing in the file is run: of pickles only tensors and plain values are read. The memory of tensors may be mapped
    from the file, so do not overwrite it while they are in use.

    Raises:
        FileNotFoundError: if there is no such file, no weights in the folder, or a shard is missing.
        ValueError: if the file holds no weights, is damaged, ambiguous, not readable, or would run code.
    """
    path, notes, values = Path(path), list[str](), dict[str, Any]()
    try:
        path = _weights_file(path)
        tensors, header = _read(path, notes, values)
        sidecars = _read_sidecars(path.parent, notes)
    except PermissionError as error:
        raise ValueError(
            f"{error.filename or path} cannot be read: permission denied. Ask its owner, or copy it"
        ) from error
    except OSError as error:
        if isinstance(error, FileNotFoundError) or not error.strerror:
            raise
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if long := next((name for name in tensors if len(name) > _NAME_LENGTH), None):
        raise ValueError(f"{path} has names of tensors of over {_NAME_LENGTH} characters, such as {long[:60]!r}...")
    return TensorFile(path, tensors, values, header, sidecars, tuple(notes))


def _weights_file(path: Path) -> Path:
    """The weights file at a path."""
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}: use the path of a file or a folder; {_EXPECTED}")
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"{path} is neither a file nor a folder; {_EXPECTED}")
    if named := [path / name for name in _NAMED if (path / name).is_file()]:
        return named[0]
    newest = _newest(path, _UNFINISHED)
    started = any((path / name).is_dir() for name in ("checkpoints", "members"))
    if newest or (started and not any((path / "checkpoints").glob("*.[cp][kt]*"))):  # else of another program
        look = f", or use its newest checkpoint {newest[-1]}" if newest else ""
        raise FileNotFoundError(
            f"{path} is a folder without {MODEL_FILE}; the run has not finished: "
            f"ndvit train --resume {shlex.quote(str(path))}{look}"
        )
    found = sorted(
        file
        for file in path.iterdir()
        if file.suffix in _SUFFIXES and file.is_file() and not _NOT_WEIGHTS.match(file.name)
    )
    if not found:
        below = _newest(path, ("checkpoint-*", "checkpoints/*.ckpt", "checkpoints/*.pt*", "*.ckpt", "*.pth.tar"))
        look = f"expected {MODEL_FILE} or one of {', '.join(_SUFFIXES)}"
        if below:
            look = f"but with {len(below)} checkpoints: use the path of one; the newest is {below[-1]}"
            look += _best_of_trainer(below[-1])
        raise FileNotFoundError(f"{path} is a folder without weights; {look}")
    if len(found) > 1:
        raise ValueError(
            f"{path} holds {len(found)} weights files; use the path of one: {some([file.name for file in found])}"
        )
    return found[0]


def _newest(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """What matches the first pattern that matches anything, in the order of the last numbers in the names."""

    def steps(path: Path) -> list[int]:
        return [int(number) for number in re.findall(r"\d{1,18}", path.name)]

    found = ([path for path in folder.glob(pattern)] for pattern in patterns)
    return sorted(next(filter(None, found), []), key=lambda path: (steps(path), path.name))


def _best_of_trainer(checkpoint: Path) -> str:
    """Which checkpoint the Trainer of transformers found best, in words; empty if it does not tell."""
    try:
        best = read_json(checkpoint / "trainer_state.json").get("best_model_checkpoint")
    except (OSError, ValueError):
        return ""
    return f", the best by its trainer_state.json is {Path(best).name}" if isinstance(best, str) else ""


def _read(
    path: Path, notes: list[str], values: dict[str, Any], shard: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and header, and add other values to `values`."""
    kind, stored = _kind(path), False
    if kind == "zip":
        kind, stored = _kind_of_zip(path)
    if shard and kind == "index":
        raise ValueError(f"{path} is listed as a shard of weights but is JSON text: download it again")
    tensors, header = dict[str, Tensor](), dict[str, str]()
    if kind == "safetensors":
        with damage(path, "safetensors file"), safe_open(path, framework="pt") as file:
            header, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    elif kind == "npz":
        tensors = _read_npz(path, notes)
    elif kind == "torch":
        tensors, others = read_pickle(path, stored)
        values |= others
    else:
        tensors, header = _read_shards(path, notes, values)
    if not tensors:
        raise ValueError(f"{path} holds no tensors; expected the weights of a network")
    return tensors, header


def _kind(path: Path) -> str:
    """Recognise "safetensors", "zip", "torch" (its format before zip) or "index" by the first bytes; refuse others."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    header, text = int.from_bytes(head[:8], "little"), head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head[8:9] == b"{" and header <= min(size - 8, _HEADER_BYTES):
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "torch"
    if text.startswith(b"{"):
        return "index"
    if not head:
        problem = "is empty: download it again"
    elif head.startswith(b"version https://git-lfs"):
        problem = "is a pointer of git-lfs, not the weights themselves: run `git lfs pull` in its repository"
    elif text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        problem = "is a web page, saved in place of the weights: check the address (and access) and download it again"
    elif other := next((words for magic, words in _OTHERS.items() if head.startswith(magic)), None):
        problem = f"is {other}; {_EXPECTED}"
    elif head[8:9] == b"{":
        problem = (
            f"begins like a safetensors file, but with a header of {header:,} bytes in a file of {size:,}: "
            "it is cut short or damaged; download it again"
        )
    else:
        problem = f"is no weights file ({size:,} bytes, the first are {head[:8]!r}); {_EXPECTED}"
    raise ValueError(f"{path} {problem}")


def _kind_of_zip(path: Path) -> tuple[str, bool]:
    """Recognise "torch" or "npz", and whether its members are uncompressed, so that memory can be mapped."""
    if (names_take := _directory_bytes(path)) > _DIRECTORY_BYTES:
        raise ValueError(f"{path} has a directory of {names_take:,} bytes, at most {_DIRECTORY_BYTES:,} are read")
    with damage(path, "zip archive (as torch.save and numpy write)"), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    # The whole archive is compared, as a single member may really shrink that much: the zeroed head of Google's
    # ImageNet-21k models does. Comparing with the size of the file also catches members that overlap. Trained weights
    # shrink by a tenth, or to a quarter if they were rounded.
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(_RATIO * path.stat().st_size, _SMALL):
        raise ValueError(
            f"{path} would unpack to {unpacked:,} bytes, over {_RATIO} times its size; refused as a zip bomb: weights "
            "do not shrink that much. Ask its author for a .safetensors file"
        )
    names = [member.filename for member in members]
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        raise ValueError(
            f"{path} is a TorchScript archive, a program and not just tensors. Load it where you trust it, and save "
            "its state_dict(): torch.save(torch.jit.load(path).state_dict(), new_path)"
        )
    if "serialized_exported_program.json" in last or any(
        "/models/" in name and name.endswith(".json") for name in names
    ):
        raise ValueError(
            f"{path} is a program of torch.export, not just tensors. Save the state_dict() of the network that it was "
            "made of"
        )
    if "data.pkl" in last:
        return "torch", all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if any(name.endswith(".npy") for name in names):
        return "npz", False
    raise ValueError(f"{path} is a zip archive of other things ({some(names) or 'nothing'}); {_EXPECTED}")


def _directory_bytes(path: Path) -> int:
    """The size of the directory of a zip archive, from its last record; 0 if there is none.

    `zipfile` reads all of the directory at once, and needs ten times its size.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2**16 - 100))
        tail = file.read()
    end, end_64 = tail.rfind(b"PK\5\6"), tail.rfind(b"PK\6\6")
    size = int.from_bytes(tail[end + 12 : end + 16], "little") if end >= 0 else 0
    return int.from_bytes(tail[end_64 + 40 : end_64 + 48], "little") if size == 2**32 - 1 and end_64 >= 0 else size


def _read_npz(path: Path, notes: list[str]) -> dict[str, Tensor]:
    tensors, left = {}, []
    with damage(path, "npz archive"):
        archive = np.load(path, allow_pickle=False)
    with archive:
        for name in archive.files:
            with damage(path, f"npz archive with an array {name!r} that is refused,"):
                array = archive[name]
                if not isinstance(array, np.ndarray) or array.dtype.kind in "SUMm":
                    left.append(name)
                elif array.dtype == np.dtype("V2"):  # bfloat16 as numpy stores it (big_vision)
                    tensors[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).float()
                else:
                    tensors[name] = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    note_left_out(left, notes)
    return tensors


def _read_shards(path: Path, notes: list[str], values: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Join the shards of an index, checked against it."""
    places, tensors, header = read_index(path), dict[str, Tensor](), dict[str, str]()
    for shard in sorted(set(places.values())):
        part, more = _read(_shard(path, shard), notes, values, shard=True)
        listed = {name for name, place in places.items() if place == shard}
        for words, names in (("lacks", listed - part.keys()), ("has unlisted", part.keys() - listed)):
            if names:
                raise ValueError(
                    f"{path}: shard {shard} {words} {some(sorted(names))}; download shards and index again"
                )
        tensors, header = tensors | part, header | more
    return tensors, header


def _shard(index: Path, shard: str) -> Path:
    """The file of a shard, which must be in the folder of its index."""
    folder = index.parent.resolve()
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        folder = folder.parents[1]  # in Hugging Face's cache, snapshots are links into ../../blobs
    file = index.parent / shard
    if not file.resolve().is_relative_to(folder):
        raise ValueError(f"{index}: shard {shard!r} is a link out of the folder of the index; refused")
    if not file.is_file():
        raise FileNotFoundError(f"{index}: shard {shard} is missing; download it into the same folder")
    return file


def _read_sidecars(folder: Path, notes: list[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for name in SIDECARS:
        if (folder / name).is_file():
            try:
                found[name] = read_json(folder / name)
            except (OSError, ValueError) as error:
                notes.append(f"{name} was left out: {error}.")
    return found
