"""Read the tensors of checkpoints of torch.save. A pickle that would run code is refused before any of it runs."""

import argparse
import io
import pickle
import pickletools
import sys
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ndvit.weights.errors import damaged, note_left_out, some

# Keys under which training scripts store weights: the model before its moving average, DINO's teacher first.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "teacher", "student") + (
    "model_ema", "state_dict_ema", "ema")  # fmt: skip
_scalar = np.float64().__reduce__()[0]
# Harmless values that training scripts save beside weights: parsed arguments, paths, numbers of numpy.
_HARMLESS: list[Any] = [argparse.Namespace, np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}]
_HARMLESS += [(_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
_HARMLESS += [(PurePosixPath, f"{room}.PosixPath") for room in ("pathlib", "pathlib._local")]
_HARMLESS += [(PureWindowsPath, f"{room}.WindowsPath") for room in ("pathlib", "pathlib._local")]
# Modules of Python whose classes only hold values: not read, but no attack.
_DATA_MODULES = {"argparse", "collections", "datetime", "decimal", "enum", "fractions", "pathlib", "uuid"}


def read_pickle(path: Path, notes: list[str], mmap: bool) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, with mapped memory if `mmap`, and note what was unwrapped or left out.

    Raises:
        ValueError: if the pickle would run code, holds no tensors, or is damaged.
    """
    protocol, called = _scan(path)
    with safe_globals(_HARMLESS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on pickle protocols and old storages, of no use to a reader
        _refuse(path, called)
        try:
            # torch would map the bytes of compressed members, too, so the caller checks that there are none. It would
            # read a file with the name .safetensors as that format.
            if mmap and path.suffix != ".safetensors":
                value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            else:
                with path.open("rb") as file:
                    value = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # torch's own message advises to run the file
            raise ValueError(
                f"{path} cannot be read as plain tensors: it is cut short or damaged, or holds other things (pickle "
                f"protocol {protocol}; 2 and 3 are read). Download it again, or ask its author for a .safetensors file"
            ) from error
        except Exception as error:
            raise damaged(path, "checkpoint of torch.save", error) from error
    found = _unwrap(value, notes)
    if found is None:
        held = f"a dict of {some(list(map(str, value)))}" if isinstance(value, Mapping) else type(value).__name__
        raise ValueError(
            f"{path} holds {held}; expected a dict of tensors. Save model.state_dict() in a file of its own"
        )
    tensors = {n: t.detach() for n, t in found.items() if isinstance(n, str) and isinstance(t, Tensor)}
    for name, t in tensors.items():
        if t.layout != torch.strided or t.is_quantized or t.is_meta:
            raise ValueError(f"{path}: {name!r} is a sparse, quantized or empty (meta) tensor; save plain ones")
        if t.numel() * t.element_size() > t.untyped_storage().nbytes():  # a few bytes would fill the memory
            raise ValueError(f"{path}: {name!r} is an expanded tensor of shape {tuple(t.shape)}; save its contiguous()")
    note_left_out([str(name) for name in found if name not in tensors], notes)
    return tensors


def _scan(path: Path) -> tuple[int, list[str]]:
    """The protocol of the pickles in a file, and the functions and classes they name, in order; nothing is run."""
    protocol, names = 2, list[str]()
    value: Any
    with path.open("rb") as file, suppress(Exception):  # torch.load refuses what cannot be scanned
        streams: list[IO[bytes]] = [file] * 5  # the old format: magic, version, system, object, storages
        if file.read(2) == b"PK":
            with zipfile.ZipFile(file) as archive:
                streams = [io.BytesIO(archive.read(n)) for n in archive.namelist() if n.endswith(".pkl")]
        else:
            file.seek(0)
        for stream in streams:
            strings: list[Any] = []  # STACK_GLOBAL takes the last two strings, new or from the memo
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
    """Raise a ValueError if a pickle names anything beyond tensors and plain values."""
    imports = b"".join(b"c%s\n%s\n" % tuple(s.encode() for s in name.rpartition(".")[::2]) for name in names)
    probe = io.BytesIO()  # torch lists what it considers unsafe only in zips of protocol 2
    with zipfile.ZipFile(probe, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + imports + b".")
        archive.writestr("archive/version", b"3\n")
    probe.seek(0)
    unsafe = set(get_unsafe_globals_in_checkpoint(probe))
    unknown = [name for name in dict.fromkeys(names) if name in unsafe]
    tops = {name: name.partition(".")[0] for name in unknown}
    system = sys.stdlib_module_names | {"__builtin__"}
    calls = [name for name in unknown if tops[name] in system and tops[name] not in _DATA_MODULES]
    classes = [n for n in unknown if tops[n] in _DATA_MODULES or n.rpartition(".")[2].lstrip("_")[:1].isupper()]
    if calls or (unknown and not classes):
        raise ValueError(
            f"{path} is a pickle that would call {some(calls or unknown)} when loaded; refused. "
            "Ask its author for a .safetensors file"
        )
    if classes:
        raise ValueError(
            f"{path} holds a Python object of class {classes[0]}, not just tensors; refused. Save "
            "model.state_dict() instead, or ask its author for a .safetensors file"
        )


def _unwrap(value: Any, notes: list[str], levels: int = 4) -> Mapping[Any, Any] | None:
    """The mapping with tensors inside a saved value, at most `levels` deep, as a value may contain itself."""
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
            notes += [f"the tensors under {key!r} were read; beside it: {some(others) or 'nothing'}.", *inner_notes]
            return found
    return value if _has_tensors(value) else None


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(inner, Tensor) for inner in value.values())
