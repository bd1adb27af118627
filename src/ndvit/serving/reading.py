"""From the body of a request to inputs of the network, by the same readers as the command line.

What users send is written to a private temporary folder and read from there, so that the readers see nothing else of
the file system. Lists of files, which name other files, are refused.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import os
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ndvit.config.reading import FileOptions, file_options
from ndvit.config.serving import ServingOptions
from ndvit.data.examples import Examples
from ndvit.data.loading import Batch, Inputs
from ndvit.data.messages import DataWarning, printable
from ndvit.data.preprocess.base import Preprocess
from ndvit.data.sources.files import Header, header_of, known_endings, medium
from ndvit.data.sources.lists import is_list
from ndvit.data.sources.pictures import image_size, read_image
from ndvit.data.sources.tables import TABLES
from ndvit.inference.predict import load_fitting
from ndvit.parts import ModelParts
from ndvit.serving.errors import Invalid, TooLarge

_UNSAFE = re.compile(r"[^\w.+() -]", re.ASCII)
_LONGEST = 100  # letters of a name
_RASTERS = (".tif", ".tiff")  # which may hold other arrays than pictures
_LOOK = 16  # examples that are compared with the training data
_SIGNATURES = {
    b"RIFF....WAVE": ".wav",
    b"fLaC": ".flac",
    b"OggS": ".ogg",
    b"\x93NUMPY": ".npy",
    b"PK\x03\x04": ".npz",
    b"PAR1": ".parquet",
    b"\x89HDF": ".h5",
}
_ROUTES = threading.local()  # where warnings of each thread go
_OPTIONS: WeakKeyDictionary[ModelParts, FileOptions] = WeakKeyDictionary()  # checking them takes a millisecond


class _PrivateFolder:
    """A temporary folder that only this user can read; it is made when it is needed, because that takes time."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._path: Path | None = None

    def path(self) -> Path:
        """The folder, which is deleted at the end of the stack."""
        if self._path is None:
            made = TemporaryDirectory(prefix="ndvit-", ignore_cleanup_errors=True)
            self._path = Path(self._stack.enter_context(made))
        return self._path


class Upload(NamedTuple):
    """A file that a client has sent."""

    name: str
    content: bytes


@dataclass
class Read:
    """What was read of a request: for each readable upload its inputs; and the faults of the others.

    Attributes:
        inputs: preprocessed examples, or windows of recordings, of each upload.
        batches: the same as tensors.
        notes: what was decided while they were read, and in which way they are unlike the training data.
        faults: (name, message) of each upload that cannot be answered.
    """

    inputs: list[Inputs] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)

    def joined(self) -> tuple[Tensor, Tensor | None]:
        """All inputs as one batch (n, C, *size) with its mask, None if everything was observed."""
        if len(self.batches) == 1:
            return self.batches[0].x, self.batches[0].mask
        x = torch.cat([batch.x for batch in self.batches])
        if all(batch.mask is None for batch in self.batches):
            return x, None
        masks = [torch.ones_like(b.x[:, 0], dtype=torch.bool) if b.mask is None else b.mask for b in self.batches]
        return x, torch.cat(masks)


@contextmanager
def reading(model: ModelParts, uploads: Sequence[Upload | list[Any]], options: ServingOptions) -> Iterator[Read]:
    """Read uploads, or lists of arrays, as `predict` reads files and arrays; they may be used until the context ends.

    Raises:
        TooLarge: above one of the limits.
        Invalid: if there is nothing to read.
    """
    found = Read()
    if not uploads:
        raise Invalid("nothing to read: send one or several files in the field files, or JSON with inputs")
    with ExitStack() as stack, _collected(found.notes):
        folder = _PrivateFolder(stack)
        left = options.max_examples
        for number, upload in enumerate(uploads):
            if isinstance(upload, Upload):
                _read_file(model, upload, folder, number, options, left, found)
            else:
                _read_arrays(model, upload, options, left, found)
            left = options.max_examples - sum(map(len, found.inputs))
        found.notes[:] = dict.fromkeys(found.notes)
        yield found


def refuse_large_arrays(arrays: Sequence[Any], options: ServingOptions) -> None:
    """Raise a TooLarge for arrays of more values than one request may have."""
    if len(arrays) > options.max_examples:
        raise _too_many(len(arrays), options.max_examples)
    for i, array in enumerate(arrays):
        _check_values(f"inputs[{i}]", Header("signal", 1, np.shape(array)), options)


def _read_file(
    model: ModelParts,
    upload: Upload,
    folder: _PrivateFolder,
    number: int,
    options: ServingOptions,
    left: int,
    found: Read,
) -> None:
    """Add the inputs of one file, or its fault, to `found`."""
    path = Path(safe_name(upload))
    name = printable(os.path.basename(upload.name.replace("\\", "/"))[:_LONGEST]) or path.name
    if (image := _picture(upload, path, name, options)) is not None:
        with suppress(ValueError):  # in which case the file is read again, for the message that a file has
            _add(model, [image], options, left, found).names = [name]
            return
    path = folder.path() / str(number) / path
    path.parent.mkdir()
    path.write_bytes(upload.content)
    try:
        _check_kind(path)
        _check_header(path, name, options)
        examples = _add(model, str(path), options, left, found)
    except (ValueError, OSError) as error:
        found.faults.append((name, plain_message(str(error), path, name)))
        return
    examples.names = [plain_message(str(one), path, name) for one in examples.names]
    if examples.places is not None:
        examples.places = [p._replace(recording=plain_message(p.recording, path, name)) for p in examples.places]
    found.notes[:] = [plain_message(note, path, name) for note in found.notes]


def _picture(upload: Upload, path: Path, name: str, options: ServingOptions) -> Image.Image | None:
    """The picture in an upload, decoded in memory and once only; None for anything else, and for faulty ones."""
    if medium(path) != "images" or path.suffix.lower() in _RASTERS:
        return None
    try:
        size = image_size(io.BytesIO(upload.content))
        _check_values(name, Header("image", 0, size), options)
        return read_image(io.BytesIO(upload.content))
    except (ValueError, OSError):
        return None


def _read_arrays(model: ModelParts, arrays: list[Any], options: ServingOptions, left: int, found: Read) -> None:
    try:
        _add(model, arrays, options, left, found)
    except (ValueError, OSError) as error:
        found.faults.append(("inputs", str(error)))


def _add(model: ModelParts, source: Any, options: ServingOptions, left: int, found: Read) -> Examples:
    """Read a source and add its inputs to `found`."""
    preprocess: Preprocess | None = model.preprocess
    assert preprocess is not None
    how = _OPTIONS.get(model)
    if how is None:
        how = _OPTIONS[model] = file_options(model.provenance, {})
    preprocess = preprocess.admitting(how.resample_long)
    loaded = load_fitting(source, preprocess, how, found.notes.append, model.channel_names)
    examples = loaded.examples
    if len(examples) > left:
        raise _too_many(len(examples), options.max_examples)
    for name, item in zip(examples.names, examples.items):
        _check_values(str(name), header_of(item), options)
    if preprocess.kind != "signal" or preprocess.unused_channels:
        found.notes += preprocess.unlike_training([examples[i] for i in examples.sample(_LOOK)])
    inputs = Inputs(examples, preprocess)
    batch = inputs.__getitems__(range(len(inputs)))
    found.inputs.append(inputs)
    found.batches.append(batch)
    return examples


def _check_kind(path: Path) -> None:
    """Refuse what is no file of examples."""
    ending = path.suffix.lower()
    if medium(path) is None and ending not in TABLES:
        raise ValueError(f"{path}: unknown type of file {ending!r}; known: {known_endings()}, {', '.join(TABLES)}")
    if is_list(path):
        raise ValueError(f"{path}: is a list of files, which are not read here: send the files themselves")


def _check_header(path: Path, name: str, options: ServingOptions) -> None:
    """Refuse a file by its header, before it is decoded; headers that cannot be read are left to the reader."""
    if medium(path) not in ("images", "sound files", "npy files"):
        return
    try:
        header = header_of(str(path))
    except Exception:  # decoders raise any error, which the reader describes
        return
    _check_values(name, header, options)


def _check_values(name: str, header: Header, options: ServingOptions) -> None:
    count = max(1, header.channels) * math.prod(header.grid)
    if header.kind == "image" and count > options.max_pixels:
        raise TooLarge(f"{name} has {count:,} pixels, at most {options.max_pixels:,} are accepted: scale it down")
    if header.kind == "signal" and count > options.max_samples:
        raise TooLarge(f"{name} has {count:,} values, at most {options.max_samples:,} are accepted: cut it")


def _too_many(count: int, most: int) -> TooLarge:
    return TooLarge(f"{count:,} examples or windows in one request, at most {most:,} are accepted: send them in parts")


def safe_name(upload: Upload) -> str:
    """A plain file name with the ending of an upload, or with one that its first bytes suggest."""
    name = os.path.basename(upload.name.replace("\\", "/"))
    stem, ending = os.path.splitext(name)
    if not ending:
        found = (e for magic, e in _SIGNATURES.items() if re.match(magic, upload.content[:12], re.DOTALL))
        ending = next(found, ".png")  # the format of pictures is in their content
    plain = _UNSAFE.sub("_", stem[:_LONGEST]).strip(". ") or "upload"
    return f"{plain}{_UNSAFE.sub('_', ending[:20])}"


def plain_message(message: str, path: Path, name: str) -> str:
    """A message or name of an example without the folder that only the service knows."""
    return message.replace(printable(str(path)), name).replace(str(path), name).replace(f"{path.parent}{os.sep}", "")


@contextmanager
def _collected(notes: list[str]) -> Iterator[None]:
    """Collect the doubts about data that readers raise as warnings in this thread, see `route_warnings`."""
    before = getattr(_ROUTES, "notes", None)
    _ROUTES.notes = notes
    try:
        yield
    finally:
        _ROUTES.notes = before


def route_warnings() -> None:
    """Send warnings about data to the request that raised them instead of the terminal, for the whole process."""
    usual = warnings.showwarning
    warnings.simplefilter("always", DataWarning)

    def route(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        notes = getattr(_ROUTES, "notes", None)
        if notes is not None:
            notes.append(str(message))
        elif not issubclass(category, DataWarning):
            usual(message, category, *place, **more)

    warnings.showwarning = route


# --------------------------------------------------------------------------- JSON


def parse_json(body: bytes) -> Any:
    """Plain values of a JSON text.

    Raises:
        Invalid: for anything else.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise Invalid(f"the body is no JSON: {printable(reason)}") from None


def uploads_of_json(body: bytes, options: ServingOptions) -> list[Upload | list[Any]]:
    """Arrays or files in a JSON body: {"inputs": [ARRAY or {"file": BASE64, "name": NAME}, ...]}.

    Raises:
        Invalid: for another form, or arrays that are no numbers.
        TooLarge: for too many inputs, or too many values.
    """
    values = parse_json(body)
    inputs = values.get("inputs") if isinstance(values, dict) else None
    if not isinstance(inputs, list) or not inputs:
        raise Invalid(
            'expected {"inputs": [...]} with one array for each example, (time,) or (channels, time, ...), or '
            '{"file": BASE64, "name": "a.png"} for each file'
        )
    if len(inputs) > options.max_examples:
        raise _too_many(len(inputs), options.max_examples)
    if isinstance(inputs[0], dict):
        return [_decoded(one, i) for i, one in enumerate(inputs)]
    if not isinstance(inputs[0], list):
        raise Invalid("inputs is one array, expected a list of arrays, one for each example: [[1.0, 2.0, 3.0]]")
    arrays = [_array(one, i) for i, one in enumerate(inputs)]
    refuse_large_arrays(arrays, options)
    return [arrays]


def _decoded(one: Any, number: int) -> Upload:
    content, name = (one.get("file"), one.get("name", "")) if isinstance(one, dict) else (None, "")
    if not isinstance(content, str) or not isinstance(name, str):
        raise Invalid(f'inputs[{number}]: expected {{"file": BASE64, "name": "a.png"}}')
    try:
        return Upload(name or f"inputs[{number}]", base64.b64decode(content, validate=True))
    except (binascii.Error, ValueError):
        raise Invalid(f"inputs[{number}]: the file is no base64") from None


def _array(one: Any, number: int) -> np.ndarray:
    try:
        array = np.array(one, dtype=np.float64)  # null is a missing value
    except (TypeError, ValueError, OverflowError):
        raise Invalid(
            f"inputs[{number}] is no array of numbers with rows of equal length; missing values are null"
        ) from None
    if not array.size or array.ndim > 8:
        raise Invalid(f"inputs[{number}] has the shape {array.shape}; expected (time,) or (channels, time, ...)")
    return array
