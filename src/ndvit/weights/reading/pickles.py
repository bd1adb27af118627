"""Read the tensors of checkpoints of torch.save. A pickle that would run code is refused before any of it runs."""

import argparse
import io
import math
import pickle
import pickletools
import re
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

from ndvit.weights.errors import damaged, quantised, some

_scalar = np.float64().__reduce__()[0]
# Harmless values that training scripts save beside weights: parsed arguments, paths, numbers of numpy.
_HARMLESS: list[Any] = [argparse.Namespace, np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}]
_HARMLESS += [(_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
_HARMLESS += [(PurePosixPath, f"{room}.PosixPath") for room in ("pathlib", "pathlib._local")]
_HARMLESS += [(PureWindowsPath, f"{room}.WindowsPath") for room in ("pathlib", "pathlib._local")]
# What pickles of whole modules call beside their own classes.
_MODULE_CALLS = {"functools.partial", "copyreg._reconstructor", "copy_reg._reconstructor"}
_MODULE_CALLS |= {f"{room}.{name}" for room in ("builtins", "__builtin__") for name in ("object", "set", "getattr")}
_LEVELS = 6  # of dicts inside dicts that are searched for tensors
# Modules of Python whose classes only hold values: not read, but no attack.
_DATA_MODULES = {"argparse", "collections", "datetime", "decimal", "enum", "fractions", "pathlib", "uuid"}
# A checkpoint of 6,000 tensors and their optimizer has 700,000 operations in 2 MB.
_MOST_OPERATIONS, _MOST_BYTES = 1_500_000, 64_000_000
_MOST_IN_TUPLE = 1_000_000


def read_pickle(path: Path, mmap: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint, with mapped memory if `mmap`.

    Returns:
        All tensors, and all other values. The names of what lies in dicts inside dicts are joined by dots; a dict
        without tensors is one value.

    Raises:
        ValueError: if the pickle would run code, holds no tensors, or is damaged.
    """
    protocol, called, size = _scan(path)
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
        except (Exception, RecursionError) as error:
            raise damaged(path, "checkpoint of torch.save", error) from error
    tensors, values = _flatten(value, set()) if isinstance(value, Mapping) else ({}, {})
    if not tensors:
        held = f"a dict of {some(list(map(str, value)))}" if isinstance(value, Mapping) else type(value).__name__
        optimizer = [name for name in values if re.match("optim|param_groups", name)]
        without = " (it has the state of an optimizer and no weights)" if optimizer else ""
        raise ValueError(
            f"{path} holds {held}; expected a dict of tensors{without}. Save model.state_dict() in a file of its own"
        )
    for name, t in tensors.items():
        if t.is_quantized:
            raise ValueError(quantised(path, name, t.dtype))
        if t.layout != torch.strided or t.is_meta:
            raise ValueError(f"{path}: {name!r} is a sparse or empty (meta) tensor; save plain ones")
        if t.numel() * t.element_size() > t.untyped_storage().nbytes():  # a few bytes would fill the memory
            raise ValueError(f"{path}: {name!r} is an expanded tensor of shape {tuple(t.shape)}; save its contiguous()")
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors.values()}
    if sum(storages.values()) > size:  # memory that no byte of the file fills
        raise ValueError(f"{path} claims tensors of {sum(storages.values()):,} bytes and has {size:,}; refused")
    return tensors, values


def _scan(path: Path) -> tuple[int, list[str], int]:
    """The protocol of the pickles in a file, the functions and classes they name, and the bytes of all its content.

    Nothing is run.

    Raises:
        ValueError: for pickles that would take minutes to read.
    """
    protocol, names, operations, largest, size = 2, list[str](), 0, 0.0, path.stat().st_size
    value: Any
    with path.open("rb") as file, suppress(Exception):  # torch.load refuses what cannot be scanned
        streams: list[IO[bytes]] = [file] * 5  # the old format: magic, version, system, object, storages
        if file.read(2) == b"PK":
            with zipfile.ZipFile(file) as archive:
                pickles = [member for member in archive.infolist() if member.filename.endswith(".pkl")]
                size = sum(member.file_size for member in archive.infolist())
                if sum(member.file_size for member in pickles) > _MOST_BYTES:
                    operations = _MOST_OPERATIONS + 1
                    pickles = []
                streams = [io.BytesIO(archive.read(member)) for member in pickles]
        else:
            file.seek(0)
        for stream in streams:
            strings: list[Any] = []  # STACK_GLOBAL takes the last two strings, new or from the memo
            memo: dict[int, Any] = {}
            sizes = _Sizes()
            for code, value, _ in pickletools.genops(stream):
                operations += 1
                largest = max(largest, sizes.after(code, value))
                if operations > _MOST_OPERATIONS or largest > _MOST_IN_TUPLE:
                    break
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
    if operations > _MOST_OPERATIONS:
        raise ValueError(
            f"{path} holds a pickle of over {_MOST_OPERATIONS:,} values or {_MOST_BYTES:,} bytes beside its tensors; "
            "refused. Save model.state_dict() alone, or ask its author for a .safetensors file"
        )
    if largest > _MOST_IN_TUPLE:
        raise ValueError(f"{path} holds a damaged pickle, or one of tuples within tuples that takes for ever; refused")
    return protocol, [name for name in names if name.isprintable()], size  # torch refuses the others


class _Sizes:
    """Numbers of values inside the values on the stack of a pickle, which a few bytes double again and again.

    Only those of tuples are counted: as keys they are hashed, which visits each value inside. All others count as one.
    """

    def __init__(self) -> None:
        self.stack: list[int | None] = []  # None is a mark
        self.memo: dict[int, int] = {}

    def after(self, code: Any, value: Any) -> float:
        """Apply an operation, and return the size of its result; infinity for one that cannot be applied."""
        try:
            return self._apply(code, value)
        except (IndexError, KeyError):
            return math.inf

    def _apply(self, code: Any, value: Any) -> int:
        if code.name == "MARK":
            self.stack.append(None)
            return 0
        if code.name.endswith("PUT"):
            self.memo[value] = self.stack[-1] or 1
            return 0
        taken, count = list[int](), len(code.stack_before)
        if pickletools.markobject in code.stack_before:
            count = code.stack_before.index(pickletools.markobject)
            while (top := self.stack.pop()) is not None:
                taken.append(top)
        taken += [self.stack.pop() or 1 for _ in range(count)]
        size = taken[0] if code.name in ("MEMOIZE", "DUP") else 1
        if code.name.startswith("TUPLE"):
            size += sum(taken)
        elif code.name.endswith("GET"):
            size = self.memo[value]
        if code.name == "MEMOIZE":
            self.memo[len(self.memo)] = size
        self.stack += [size] * len(code.stack_after)
        return size


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
    calls += [name for name in names if name.endswith(".bytearray")]  # torch allows it, and it fills any memory
    classes = [n for n in unknown if tops[n] in _DATA_MODULES or n.rpartition(".")[2].lstrip("_")[:1].isupper()]
    if set(calls) <= _MODULE_CALLS and any(name.startswith("torch.nn.modules.") for name in unknown):
        module = next((name for name in classes if tops[name] != "torch"), classes[0])
        raise ValueError(
            f"{path} holds a Python object of class {module}, not just tensors; refused, as a module is a program. "
            "Save model.state_dict() instead; where you trust the file and have its classes: "
            "torch.save(torch.load(FILE, weights_only=False).state_dict(), NEW_FILE)"
        )
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


def _flatten(
    value: Mapping[Any, Any], seen: set[int], levels: int = _LEVELS
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and other values by their keys joined by dots. Each dict is visited once, as it may hold itself."""
    tensors, values = dict[str, Tensor](), dict[str, Any]()
    seen.add(id(value))
    for key, inner in value.items():
        below: dict[str, Tensor] = {}
        if isinstance(inner, Tensor) and isinstance(key, str):
            below = {key: inner.detach()}
        elif isinstance(inner, Mapping) and isinstance(key, str) and levels > 1:
            if id(inner) in seen:
                continue
            found, others = _flatten(inner, seen, levels - 1)
            below = {f"{key}.{name}": tensor for name, tensor in found.items()}
            values |= {f"{key}.{name}": other for name, other in others.items()} if found else {key: inner}
        else:
            values[str(key)] = inner
        if twice := below.keys() & tensors.keys():
            raise ValueError(f"two tensors of the file have the name {some(sorted(twice))}")
        tensors |= below
    return tensors, values
