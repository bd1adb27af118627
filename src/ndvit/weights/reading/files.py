"""Any weights file on disk -> plain tensors, with nothing in it run.

What a file is, its first bytes tell and never its name. Safetensors, numpy's .npz, torch.save's two formats and folders
of shards are read; everything else is refused in one line that says what came.
"""

import json
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

SIDECARS = ("config.json", "preprocessor_config.json")
_SIDECAR_BYTES, _INDEX_BYTES, _HEADER_BYTES = 5_000_000, 50_000_000, 100_000_000  # the last is safetensors' own limit
_NAME_LENGTH = 500  # patterns are matched against names: time must not depend on what a stranger writes there
_SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")
_NAMED = (MODEL_FILE, f"{MODEL_FILE}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_PREFIXES = ("module.", "_orig_mod.", "model.")
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


@dataclass(frozen=True)
class Checkpoint:
    """Tensors as a file names them, and the plain facts that lie beside them."""

    path: Path
    """The weights file, or the index of its shards; shown in messages."""
    tensors: dict[str, Tensor]
    """By the file's names after unwrapping and without prefixes common to all; every dtype as stored."""
    header: dict[str, str]
    """Safetensors metadata; empty for other files."""
    sidecars: dict[str, dict[str, Any]]
    """Contents of `config.json` and `preprocessor_config.json`, those that lie beside the file."""
    notes: tuple[str, ...]
    """What was unwrapped, chosen or left out, one sentence each."""


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the tensors of a weights file, of an index of shards, or of a folder with either.

    Nothing in the file is run: of pickles only tensors and plain values are read. Tensors may lie in memory that is
    mapped from the file, so do not overwrite it while they are in use.

    Raises:
        FileNotFoundError: no such file, no weights in the folder, a missing shard, or an unfinished run of ndvit's.
        ValueError: anything that is not weights, is damaged, ambiguous, not permitted or would run code.
    """
    path, notes = Path(path), list[str]()
    try:
        path = _weights_file(path)
        tensors, header = _read(path, notes)
        sidecars = _read_sidecars(path.parent, notes)
    except PermissionError as error:
        raise ValueError(
            f"{error.filename or path} cannot be read: permission denied. Ask its owner, or copy it"
        ) from error
    if long := next((name for name in tensors if len(name) > _NAME_LENGTH), None):
        raise ValueError(f"{path} has names of tensors of over {_NAME_LENGTH} characters, such as {long[:60]!r}...")
    removed = ""
    while prefix := next((p for p in _PREFIXES if all(n.startswith(p) and n != p for n in tensors)), None):
        tensors, removed = {name.removeprefix(prefix): t for name, t in tensors.items()}, removed + prefix
    if removed:
        notes.append(f"{removed!r} was taken off every name.")
    return Checkpoint(path, tensors, header, sidecars, tuple(notes))


def _weights_file(path: Path) -> Path:
    """The file that a path means."""
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}: give a file or a folder; {_EXPECTED}")
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"{path} is neither a file nor a folder; {_EXPECTED}")
    if not (path / MODEL_FILE).is_file() and any((path / name).is_dir() for name in ("checkpoints", "members")):
        raise FileNotFoundError(
            f"{path} is a folder without {MODEL_FILE}; the run has not finished: "
            f"ndvit train --resume {shlex.quote(str(path))}"
        )
    if named := [path / name for name in _NAMED if (path / name).is_file()]:
        return named[0]
    found = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file())
    if not found:
        raise FileNotFoundError(
            f"{path} is a folder without weights; expected {MODEL_FILE} or one of {', '.join(_SUFFIXES)}"
        )
    if len(found) > 1:
        raise ValueError(f"{path} holds {len(found)} weights files; give one: {some([file.name for file in found])}")
    return found[0]


def _read(path: Path, notes: list[str], shard: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and header."""
    kind, stored = _kind(path), False
    if kind == "zip":
        kind, stored = _kind_of_zip(path)
    if shard and kind == "index":
        raise ValueError(f"{path} is listed as a shard of weights but is JSON text: fetch it again")
    tensors: dict[str, Tensor] = {}
    header: dict[str, str] = {}
    if kind == "safetensors":
        with damage(path, "safetensors file"), safe_open(path, framework="pt") as file:
            header, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    elif kind == "npz":
        tensors = _read_npz(path, notes)
    elif kind == "torch":
        tensors = read_pickle(path, notes, stored)
    else:
        tensors, header = _read_shards(path, notes)
    if not tensors:
        raise ValueError(f"{path} holds no tensors; expected the weights of a network")
    return tensors, header


def _kind(path: Path) -> str:
    """Tell "safetensors", "zip", "torch" (its format before zip) or "index" by the first bytes; refuse the rest."""
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
        came = "is empty: fetch it again"
    elif head.startswith(b"version https://git-lfs"):
        came = "is a pointer of git-lfs, not the weights themselves: run `git lfs pull` in its repository"
    elif text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        came = "is a web page, saved in place of the weights: check the address (and access) and fetch it again"
    elif other := next((words for magic, words in _OTHERS.items() if head.startswith(magic)), None):
        came = f"is {other}; {_EXPECTED}"
    elif head[8:9] == b"{":
        came = (
            f"begins like a safetensors file, but with a header of {header:,} bytes in a file of {size:,}: "
            "it is cut short or damaged; fetch it again"
        )
    else:
        came = f"is no weights file ({size:,} bytes, the first are {head[:8]!r}); {_EXPECTED}"
    raise ValueError(f"{path} {came}")


def _kind_of_zip(path: Path) -> tuple[str, bool]:
    """Tell "torch" or "npz", and whether its members are stored as they are, so that memory can be mapped."""
    with damage(path, "zip archive (as torch.save and numpy write)"), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    # Over the whole archive: one member alone, such as the zeroed head of Google's ImageNet-21k models, shrinks that
    # much in earnest. Bombs of overlapping members are caught because the file itself is what is compared.
    unpacked = sum(member.file_size for member in members)
    if unpacked > 1000 * path.stat().st_size:
        raise ValueError(f"{path} would unpack to {unpacked:,} bytes, over 1000 times its size; refused as a zip bomb")
    names = [member.filename for member in members]
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        raise ValueError(
            f"{path} is a TorchScript archive, a program and not just tensors. Load it where you trust it, and save "
            "its state_dict(): torch.save(torch.jit.load(path).state_dict(), new_path)"
        )
    if "data.pkl" in last:
        return "torch", all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if any(name.endswith(".npy") for name in names):
        return "npz", False
    raise ValueError(f"{path} is a zip archive of other things ({some(names) or 'nothing'}); {_EXPECTED}")


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
                elif array.dtype == np.dtype("V2"):  # how numpy stores bfloat16, which it does not know (big_vision)
                    tensors[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).float()
                else:
                    tensors[name] = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    note_left_out(left, notes)
    return tensors


def _read_shards(path: Path, notes: list[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Join the shards of an index {"weight_map": {tensor: file}}, checked against it."""
    try:
        index = _json(path, _INDEX_BYTES)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is text that begins like JSON but is none ({error}); {_EXPECTED}") from error
    places = index.get("weight_map")
    if not (isinstance(places, dict) and places and all(isinstance(shard, str) for shard in places.values())):
        raise ValueError(f"{path} is JSON without a weight_map, so neither weights nor an index of shards; {_EXPECTED}")
    tensors: dict[str, Tensor] = {}
    header: dict[str, str] = {}
    for shard in sorted(set(places.values())):
        part, more = _read(_shard(path, shard), notes, shard=True)
        listed = {name for name, place in places.items() if place == shard}
        for words, names in (("lacks", listed - part.keys()), ("has unlisted", part.keys() - listed)):
            if names:
                raise ValueError(f"{path}: shard {shard} {words} {some(sorted(names))}; fetch shards and index again")
        tensors, header = tensors | part, header | more
    return tensors, header


def _shard(index: Path, shard: str) -> Path:
    """The file of a shard, which must lie in the folder of its index."""
    folder = index.parent.resolve()
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        folder = folder.parents[1]  # Hugging Face's cache: snapshots are links into ../../blobs
    file = index.parent / shard
    if (
        not shard
        or Path(shard).name != shard
        or "\\" in shard
        or "\0" in shard
        or not file.resolve().is_relative_to(folder)
    ):
        raise ValueError(f"{index}: shard {shard!r} leads out of the folder; refused. Shards lie beside their index")
    if not file.is_file():
        raise FileNotFoundError(f"{index}: shard {shard} is missing; fetch it into the same folder")
    return file


def _read_sidecars(folder: Path, notes: list[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for name in SIDECARS:
        if (folder / name).is_file():
            try:
                found[name] = _json(folder / name, _SIDECAR_BYTES)
            except (OSError, ValueError, RecursionError) as error:
                notes.append(f"{name} was left out: {error}.")
    return found


def _json(path: Path, limit: int) -> dict[str, Any]:
    if path.stat().st_size > limit:
        raise ValueError(f"{path.stat().st_size:,} bytes, at most {limit:,} are read")
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not an object")
    return value
