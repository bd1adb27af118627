"""The Open Inference Protocol, version 2: tensors in JSON, or behind it as bytes ("binary data").

https://github.com/open-inference/open-inference-protocol; the extension for binary data is that of Triton.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ndvit.config.serving import ServingOptions
from ndvit.data.messages import printable
from ndvit.parts import ModelParts
from ndvit.serving.errors import Invalid
from ndvit.serving.reading import Upload, parse_json, refuse_large_arrays

HEADER = "inference-header-content-length"
"""Header with the number of bytes of JSON before the binary data."""
PLATFORM = "ndvit"
_NUMBERS = {
    "BOOL": "?",
    **{f"UINT{8 * n}": f"<u{n}" for n in (1, 2, 4, 8)},
    **{f"INT{8 * n}": f"<i{n}" for n in (1, 2, 4, 8)},
    **{f"FP{8 * n}": f"<f{n}" for n in (2, 4, 8)},
}
_MOST_AXES = 8


class Infer:
    """A request for inference.

    Args:
        body: JSON, perhaps with binary data behind it.
        header: the value of `HEADER`; None without binary data.
        model: the model that answers.
        options: of the service.

    Attributes:
        id: number or name that the client gave the request.
        uploads: what is read, see `reading`.
        outputs: names of the outputs that are wanted; empty for all.
        binary: outputs that are returned as bytes; None for all.

    Raises:
        Invalid: for a request that is not of the protocol, or tensors that the model does not read.
        TooLarge: for too many values.
    """

    def __init__(self, body: bytes, header: str | None, model: ModelParts, options: ServingOptions) -> None:
        length = _length(header, len(body))
        request = parse_json(body[:length])
        if not isinstance(request, dict):
            raise Invalid("expected a JSON object with inputs")
        inputs = request.get("inputs")
        if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
            raise Invalid("expected one tensor in inputs: the model has one input, called input")
        wanted = request.get("outputs") or []
        if not isinstance(wanted, list) or not all(
            isinstance(o, dict) and isinstance(o.get("name"), str) for o in wanted
        ):
            raise Invalid("outputs must be a list of objects with a name")
        self.id = request.get("id", "")
        if not isinstance(self.id, str) or len(self.id) > 1000:
            raise Invalid("id must be a text of at most 1,000 letters")
        every = bool(_parameters(request).get("binary_data_output"))
        self.outputs = [one["name"] for one in wanted]
        binary = [one["name"] for one in wanted if _parameters(one).get("binary_data", every)]
        self.binary: list[str] | None = None if every and not wanted else binary
        self.uploads = _uploads(inputs[0], body[length:], model, options)


def metadata(name: str, versions: Sequence[str], model: ModelParts) -> dict[str, Any]:
    """Inputs and outputs of a model."""
    assert model.preprocess is not None
    assert model.task is not None
    if model.preprocess.kind == "image":
        own = {"datatype": "UINT8", "shape": [-1, -1, -1, 3]}
        about = "pictures (n, height, width, channels), or as BYTES the content of files"
    else:
        own = {"datatype": "FP32", "shape": [-1, model.preprocess.raw_channels, *[-1] * len(model.preprocess.raw_size)]}
        about = "raw values (n, channels, time, ...), NaN where missing, or as BYTES the content of files"
    outputs = outputs_of([_dummy(model)])
    return {
        "name": name,
        "versions": list(versions),
        "platform": PLATFORM,
        "inputs": [{"name": "input", **own, "parameters": {"about": about}}],
        "outputs": [
            {"name": key, "datatype": _datatype(values), "shape": [-1, *values.shape[1:]]}
            for key, values in outputs.items()
        ],
        "parameters": {"outputs": list(model.task.output_names())},
    }


def outputs_of(predictions: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Predictions as arrays whose first axis is that of the examples, by the name of the output.

    They are called as in JSON: class, labels (joined by semicolons), probabilities, values, intervals.
    """
    found: dict[str, np.ndarray] = {}
    for key in (key for key in predictions[0] if key != "name"):
        values = [one[key] for one in predictions]
        if isinstance(values[0], dict):
            found[key] = np.array([list(one.values()) for one in values], dtype=np.float32)
        else:
            texts = [";".join(one) if isinstance(one, list) else str(one) for one in values]
            found[key] = np.array([text.encode() for text in texts], dtype=object)
    return found


def encode(answer: dict[str, Any], outputs: dict[str, np.ndarray], request: Infer) -> tuple[bytes, dict[str, str]]:
    """The body of an answer and its headers.

    Raises:
        Invalid: for an output that there is not.
    """
    wanted = request.outputs or list(outputs)
    listed, blobs = [], list[bytes]()
    for name in wanted:
        if name not in outputs:
            raise Invalid(f"there is no output {printable(name[:60])}; the model has {', '.join(outputs)}")
        values = outputs[name]
        tensor: dict[str, Any] = {"name": name, "datatype": _datatype(values), "shape": list(values.shape)}
        if request.binary is None or name in request.binary:
            blobs.append(_to_bytes(values))
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            flat = values.ravel().tolist()
            tensor["data"] = [v.decode() for v in flat] if values.dtype == object else flat
        listed.append(tensor)
    text = json.dumps({**answer, "outputs": listed}, ensure_ascii=False).encode()
    if not blobs:
        return text, {"content-type": "application/json"}
    return b"".join([text, *blobs]), {"content-type": "application/octet-stream", HEADER: str(len(text))}


def _uploads(tensor: dict[str, Any], binary: bytes, model: ModelParts, options: ServingOptions) -> list[Any]:
    """What is read for a tensor: files for BYTES, pictures or arrays for numbers."""
    shape, datatype = tensor.get("shape"), tensor.get("datatype")
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= _MOST_AXES
        or any(type(n) is not int or not 0 < n <= 2**40 for n in shape)
    ):
        raise Invalid("the shape of a tensor must be a list of 1 to 8 positive whole numbers")
    size = _parameters(tensor).get("binary_data_size")
    if size is not None:
        if type(size) is not int or size != len(binary):
            raise Invalid(f"binary_data_size is {str(size)[:20]}, and {len(binary):,} bytes follow the JSON")
    elif binary:
        raise Invalid(f"{len(binary):,} bytes follow the JSON, and no tensor has a binary_data_size")
    if datatype == "BYTES":
        contents = _split_bytes(binary) if size is not None else _decoded(tensor.get("data"))
        if len(contents) != math.prod(shape):
            raise Invalid(f"the tensor has {len(contents)} elements, and its shape is {shape}")
        return [Upload(f"input[{i}]", content) for i, content in enumerate(contents)]
    if not isinstance(datatype, str) or datatype not in _NUMBERS:
        raise Invalid(f"datatype must be BYTES or one of {', '.join(_NUMBERS)}; got {printable(str(datatype)[:20])}")
    array = _numbers(tensor, shape, np.dtype(_NUMBERS[datatype]), binary if size is not None else None)
    refuse_large_arrays(list(array), options)
    if model.preprocess is not None and model.preprocess.kind == "image":
        if datatype != "UINT8" or array.ndim != 4 or shape[-1] not in (1, 3, 4):
            raise Invalid(
                f"pictures are UINT8 (n, height, width, channels) with 1, 3 or 4 channels, or BYTES with files; got "
                f"{datatype} {shape}"
            )
        return [[Image.fromarray(row[..., 0] if shape[-1] == 1 else row) for row in array]]
    if array.ndim < 2:
        raise Invalid(f"the tensor has the shape {shape}; expected (n, time) or (n, channels, time, ...)")
    return [array]


def _numbers(tensor: dict[str, Any], shape: list[int], dtype: np.dtype, binary: bytes | None) -> np.ndarray:
    count = math.prod(shape)
    if binary is not None:
        if len(binary) != count * dtype.itemsize:
            raise Invalid(f"a tensor of the shape {shape} has {count * dtype.itemsize:,} bytes, got {len(binary):,}")
        return np.frombuffer(binary, dtype).reshape(shape)
    try:
        array = np.array(tensor.get("data"), dtype=np.float64 if dtype.kind == "f" else dtype)
    except (TypeError, ValueError, OverflowError):
        raise Invalid(f"data is no list of numbers of the type {tensor['datatype']}") from None
    if array.size != count:
        raise Invalid(f"a tensor of the shape {shape} has {count:,} values, got {array.size:,}")
    return array.reshape(shape)


def _decoded(data: Any) -> list[bytes]:
    if not isinstance(data, list) or not all(isinstance(one, str) for one in data):
        raise Invalid("data of BYTES in JSON is a list of texts, each the content of a file in base64")
    try:
        return [base64.b64decode(one, validate=True) for one in data]
    except (binascii.Error, ValueError):
        raise Invalid("data of BYTES in JSON is a list of texts, each the content of a file in base64") from None


def _split_bytes(binary: bytes) -> list[bytes]:
    """Elements of BYTES, each behind its length in four bytes."""
    found, at = [], 0
    while at < len(binary):
        length = int.from_bytes(binary[at : at + 4], "little")
        if at + 4 + length > len(binary):
            raise Invalid("the binary data of BYTES are cut off")
        found.append(binary[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def _to_bytes(values: np.ndarray) -> bytes:
    if values.dtype != object:
        return np.ascontiguousarray(values, dtype="<f4").tobytes()
    return b"".join(len(one).to_bytes(4, "little") + one for one in values.ravel().tolist())


def _datatype(values: np.ndarray) -> str:
    return "BYTES" if values.dtype == object else "FP32"


def _length(header: str | None, total: int) -> int:
    if header is None:
        return total
    if not (header.isascii() and header.isdecimal()) or len(header) > 12 or int(header) > total:
        raise Invalid(f"{HEADER} must be the number of bytes of JSON, at most {total:,}")
    return int(header)


def _parameters(values: dict[str, Any]) -> dict[str, Any]:
    found = values.get("parameters")
    return found if isinstance(found, dict) else {}


def _dummy(model: ModelParts) -> dict[str, Any]:
    """The plain values of any answer, of which only the form counts."""
    assert model.task is not None
    answers = np.full((1, model.task.num_outputs), 1 / model.task.num_outputs, dtype=np.float32)
    return model.task.predictions(answers, [""])[0].to_dict()
