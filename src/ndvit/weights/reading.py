"""Any weights file on disk -> plain tensors, with nothing in it run.

What a file is, its first bytes tell and never its name. Safetensors, numpy's .npz, torch.save's two formats and folders
of shards are read; everything else is refused in one line that says what came.
"""

import argparse
import io
import json
import pickle
import pickletools
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ndvit.weights.file import MODEL_FILE, model_path

SIDECARS = ("config.json", "preprocessor_config.json")
_SIDECAR_BYTES, _INDEX_BYTES, _HEADER_BYTES = 5_000_000, 50_000_000, 100_000_000  # the last is safetensors' own limit
_SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")
_NAMED = (MODEL_FILE, f"{MODEL_FILE}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# where training scripts put the weights; the raw model before its moving average, DINO's teacher before its student
_WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "teacher", "student") + (
    "model_ema", "state_dict_ema", "ema")  # fmt: skip
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
_scalar = np.float64().__reduce__()[0]
# What training scripts save beside weights and that can do no harm: parsed arguments, paths, scores as numpy numbers.
_HARMLESS: list[Any] = [argparse.Namespace, np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}]
_HARMLESS += [(_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
_HARMLESS += [(PurePosixPath, f"{room}.PosixPath") for room in ("pathlib", "pathlib._local")]
_HARMLESS += [(PureWindowsPath, f"{room}.WindowsPath") for room in ("pathlib", "pathlib._local")]
# Modules of Python whose classes only hold values: not read, but no attack either.
_DATA_MODULES = {"argparse", "collections", "datetime", "decimal", "enum", "fractions", "pathlib", "uuid"}


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
    npz: bool
    """Whether the tensors came from a numpy .npz, where Google's layout has other axis orders."""


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
        tensors, header, kind = _read(path, notes)
        sidecars = _read_sidecars(path.parent, notes)
    except PermissionError as error:
        raise ValueError(
            f"{error.filename or path} cannot be read: permission denied. Ask its owner, or copy it"
        ) from error
    removed = ""
    while prefix := next((p for p in _PREFIXES if all(n.startswith(p) and n != p for n in tensors)), None):
        tensors, removed = {name.removeprefix(prefix): t for name, t in tensors.items()}, removed + prefix
    if removed:
        notes.append(f"{removed!r} was taken off every name.")
    return Checkpoint(path, tensors, header, sidecars, tuple(notes), kind == "npz")


def _weights_file(path: Path) -> Path:
    """The file that a path means."""
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}: give a file or a folder; {_EXPECTED}")
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"{path} is neither a file nor a folder; {_EXPECTED}")
    if not (path / MODEL_FILE).is_file() and (path / "checkpoints").is_dir():
        return model_path(path)  # which raises, saying how to finish the run
    if named := [path / name for name in _NAMED if (path / name).is_file()]:
        return named[0]
    found = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file())
    if not found:
        raise FileNotFoundError(
            f"{path} is a folder without weights; expected {MODEL_FILE} or one of {', '.join(_SUFFIXES)}"
        )
    if len(found) > 1:
        raise ValueError(f"{path} holds {len(found)} weights files; give one: {_some([file.name for file in found])}")
    return found[0]


def _read(path: Path, notes: list[str], shard: bool = False) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """Return tensors, header and kind of file: "safetensors", "npz", "torch" or "index"."""
    kind, stored = _kind(path), False
    if kind == "zip":
        kind, stored = _kind_of_zip(path)
    if shard and kind == "index":
        raise ValueError(f"{path} is listed as a shard of weights but is JSON text: fetch it again")
    tensors: dict[str, Tensor] = {}
    header: dict[str, str] = {}
    if kind == "safetensors":
        with _damage(path, "safetensors file"), safe_open(path, framework="pt") as file:
            header, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    elif kind == "npz":
        tensors = _read_npz(path, notes)
    elif kind == "torch":
        tensors = _read_torch(path, notes, stored)
    else:
        tensors, header = _read_shards(path, notes)
    if not tensors:
        raise ValueError(f"{path} holds no tensors; expected the weights of a network")
    return tensors, header, kind


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
    with _damage(path, "zip archive (as torch.save and numpy write)"), zipfile.ZipFile(path) as archive:
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
    raise ValueError(f"{path} is a zip archive of other things ({_some(names) or 'nothing'}); {_EXPECTED}")


def _read_npz(path: Path, notes: list[str]) -> dict[str, Tensor]:
    tensors, left = {}, []
    with _damage(path, "npz archive"):
        archive = np.load(path, allow_pickle=False)
    with archive:
        for name in archive.files:
            with _damage(path, f"npz archive with an array {name!r} that is refused,"):
                array = archive[name]
                if not isinstance(array, np.ndarray) or array.dtype.kind in "SUMm":
                    left.append(name)
                elif array.dtype == np.dtype("V2"):  # how numpy stores bfloat16, which it does not know (big_vision)
                    tensors[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).float()
                else:
                    tensors[name] = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    _note_left_out(left, notes)
    return tensors


def _read_torch(path: Path, notes: list[str], mmap: bool) -> dict[str, Tensor]:
    protocol, called = _scan(path)
    with safe_globals(_HARMLESS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle protocols and old storages: nothing that a reader could mend
        _refuse(path, called)
        try:
            # Memory can be mapped where a zip's members lie uncompressed; torch would map packed bytes just the same.
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as error:  # torch's own text advises to run the file
            raise ValueError(
                f"{path} cannot be read as plain tensors: it is cut short or damaged, or holds other things (pickle "
                f"protocol {protocol}; 2 and 3 are read). Fetch it again, or ask its author for a .safetensors file"
            ) from error
        except Exception as error:
            raise _damaged(path, "checkpoint of torch.save", error) from error
    found = _unwrap(value, notes)
    if found is None:
        held = f"a dict of {_some(list(map(str, value)))}" if isinstance(value, Mapping) else type(value).__name__
        raise ValueError(
            f"{path} holds {held}; expected a dict of tensors. Save model.state_dict() in a file of its own"
        )
    tensors = {n: t.detach() for n, t in found.items() if isinstance(n, str) and isinstance(t, Tensor)}
    for name, t in tensors.items():
        if t.layout != torch.strided or t.is_quantized or t.is_meta:
            raise ValueError(f"{path}: {name!r} is a sparse, quantized or empty (meta) tensor; save plain ones")
    _note_left_out([str(name) for name in found if name not in tensors], notes)
    return tensors


def _scan(path: Path) -> tuple[int, list[str]]:
    """The protocol of a file's pickles and all they name (functions, classes), in order; nothing is run."""
    protocol, names = 2, list[str]()
    value: Any
    with path.open("rb") as file, suppress(Exception):  # what cannot be scanned, torch.load will refuse
        streams: list[IO[bytes]] = [file] * 5  # torch's old format: magic, version, system, the object, its storages
        if file.read(2) == b"PK":
            with zipfile.ZipFile(file) as archive:
                streams = [io.BytesIO(archive.read(n)) for n in archive.namelist() if n.endswith(".pkl")]
        else:
            file.seek(0)
        for stream in streams:
            strings: list[Any] = []  # STACK_GLOBAL takes the last two strings, fresh or from the memo
            memo: dict[int, Any] = {}
            for code, value, _ in pickletools.genops(stream):
                if code.name == "PROTO":
                    protocol = value
                elif code.name in ("GLOBAL", "INST"):
                    names.append(value.replace(" ", "."))
                elif code.name == "STACK_GLOBAL":
                    names.append(".".join(map(str, strings[-2:])))
                elif code.name == "MEMOIZE" or code.name.endswith("PUT"):
                    memo[len(memo) if value is None else value] = strings[-1] if strings else None
                elif code.name.endswith("GET"):
                    strings.append(memo.get(value))
                elif isinstance(value, str):
                    strings.append(value)
    return protocol, [name for name in names if name.isprintable()]  # torch refuses the others


def _refuse(path: Path, names: list[str]) -> None:
    """Raise a ValueError for what a pickle names beyond tensors and plain values."""
    imports = b"".join(b"c%s\n%s\n" % tuple(s.encode() for s in name.rpartition(".")[::2]) for name in names)
    plain = io.BytesIO()  # torch tells what it deems safe for zips of pickle protocol 2 alone, so this is one
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + imports + b".")
        archive.writestr("archive/version", b"3\n")
    plain.seek(0)
    unsafe = set(get_unsafe_globals_in_checkpoint(plain))
    unknown = [name for name in dict.fromkeys(names) if name in unsafe]
    tops = {name: name.partition(".")[0] for name in unknown}
    system = sys.stdlib_module_names | {"__builtin__"}
    calls = [name for name in unknown if tops[name] in system and tops[name] not in _DATA_MODULES]
    classes = [n for n in unknown if tops[n] in _DATA_MODULES or n.rpartition(".")[2].lstrip("_")[:1].isupper()]
    if calls or (unknown and not classes):
        raise ValueError(
            f"{path} is a pickle that would call {_some(calls or unknown)} when loaded; refused. "
            "Ask its author for a .safetensors file"
        )
    if classes:
        raise ValueError(
            f"{path} holds a Python object of class {classes[0]}, not just tensors; refused. Where it was made, save "
            "model.state_dict() instead, or ask its author for a .safetensors file"
        )


def _unwrap(value: Any, notes: list[str], levels: int = 4) -> Mapping[Any, Any] | None:
    """The mapping that holds tensors in what a training script saved, `levels` deep at most: it may hold itself."""
    if not isinstance(value, Mapping) or not levels:
        return None
    keys = [key for key in _WRAPPERS if key in value]
    if not _has_tensors(value):
        inside = [key for key, inner in value.items() if _has_tensors(inner)]
        keys += inside if len(inside) == 1 else []
    for key in keys:
        inner_notes: list[str] = []
        if (found := _unwrap(value[key], inner_notes, levels - 1)) is not None:
            others = [str(other) for other in value if other != key]
            notes += [f"the tensors under {key!r} were taken; beside it: {_some(others) or 'nothing'}.", *inner_notes]
            return found
    return value if _has_tensors(value) else None


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(inner, Tensor) for inner in value.values())


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
        part, more, _ = _read(_shard(path, shard), notes, shard=True)
        listed = {name for name, place in places.items() if place == shard}
        for words, names in (("lacks", listed - part.keys()), ("has unlisted", part.keys() - listed)):
            if names:
                raise ValueError(f"{path}: shard {shard} {words} {_some(sorted(names))}; fetch shards and index again")
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


@contextmanager
def _damage(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a reader raises on damaged bytes, and it may be anything, into one clear line."""
    try:
        yield
    except Exception as error:
        raise _damaged(path, what, error) from error


def _damaged(path: Path, what: str, error: Exception) -> ValueError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    size = path.stat().st_size
    return ValueError(f"{path} ({size:,} bytes) is a {what} cut short or damaged: {reason}. Fetch it again")


def _note_left_out(names: list[str], notes: list[str]) -> None:
    if names:
        notes.append(f"{len(names)} entries that are no tensors were left out: {_some(names)}.")


def _some(names: list[str]) -> str:
    """The first five, what would not print escaped: names come from files of strangers."""
    shown = [name if name.isprintable() else ascii(name) for name in names[:5]]
    return ", ".join(shown) + (", ..." if len(names) > 5 else "")
