"""Damaged and odd requests for a service: bodies of every route, changed at random. Each is (path, headers, body)."""

import base64
import io
import json
import random
from collections.abc import Iterator

import numpy as np
from PIL import Image

Request = tuple[str, dict[str, str], bytes]
ODD = [
    None,
    True,
    -1,
    0,
    1e400,
    10**30,
    "",
    "x" * 3000,
    "\x00",
    "\u202e",
    "../../etc/passwd",
    [],
    {},
    [[]],
    [None],
    {"a": []},
]
NAMES = ["a.png", "a.npy", "a.wav", "a.csv", "a.npz", "a.mat", "a.h5", "a.ts", "a.tif", "a.parquet", "a.edf", "a.arff"]
NAMES += [
    "",
    "..",
    "/etc/passwd",
    "a.zip",
    "hf:a/b",
    "a\x00.png",
    "a" * 400 + ".png",
    "CON",
    "a.png/b.npy",
    "a.jpg",
    "a.gif",
]


def contents() -> list[bytes]:
    """Small files of the kinds that a service reads."""
    made = []
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        file = io.BytesIO()
        Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(file, kind)
        made.append(file.getvalue())
    file = io.BytesIO()
    np.save(file, np.ones((2, 16), np.float32))
    made.append(file.getvalue())
    file = io.BytesIO()
    np.savez(file, X=np.ones((3, 2, 16), np.float32))
    made.append(file.getvalue())
    wav = np.zeros(64, "<i2").tobytes()
    head = b"fmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data" + len(wav).to_bytes(4, "little")
    made.append(b"RIFF" + (len(head) + len(wav) + 4).to_bytes(4, "little") + b"WAVE" + head + wav)
    made += [
        b"a,b\n" + b"1,2\n" * 16,
        b"path,label\n/etc/passwd,1\n",
        b"",
        b"\x00" * 50,
        b"\x89HDF\r\n\x1a\n" + bytes(80),
    ]
    made.append(b"@problemName x\n@classLabel false\n@data\n1,2,3\n")
    return made


def damaged(data: bytes, choice: random.Random) -> bytes:
    """Bytes of which a few are changed, left out or added."""
    out = bytearray(data)
    for _ in range(choice.randint(0, 4)):
        at = choice.randrange(len(out) + 1)
        match choice.randrange(4):
            case 0 if at < len(out):
                out[at] ^= 1 << choice.randrange(8)
            case 1:
                del out[at : at + choice.randint(1, 200)]
            case 2:
                out[at:at] = choice.randbytes(choice.randint(1, 20))
            case _:
                out[at : at + 8] = bytes(len(out[at : at + 8]))
    return bytes(out)


def odd(value: object, choice: random.Random) -> object:
    """Values of JSON of which some are replaced by odd ones."""
    if choice.random() < 0.08:
        return choice.choice(ODD)
    if isinstance(value, dict):
        return {key: odd(inner, choice) for key, inner in value.items() if choice.random() > 0.03}
    if isinstance(value, list):
        return [odd(inner, choice) for inner in value]
    return value


def requests(count: int, models: list[str], seed: int = 0) -> Iterator[Request]:
    """Odd requests to every route that reads a body."""
    choice, files = random.Random(seed), contents()
    for _ in range(count):
        model = choice.choice([*models, *models, *models, "nobody"])
        route = choice.choice(["/predict", "/predict", "/explain", "/v2"])
        file, name = damaged(choice.choice(files), choice), choice.choice(NAMES)
        query = choice.choice(
            ["", "&per_window=true", "&top=2", "&top=-1", "&target=0", "&target=zz", "&method=nothing"]
        )
        path = f"/v2/models/{model}/infer" if route == "/v2" else f"{route}?model={model}{query}"
        if route == "/v2":
            yield path, *_infer(file, choice)
        elif choice.random() < 0.4:
            yield (
                path,
                *_form([(choice.choice(NAMES) if i else name, file) for i in range(choice.randint(1, 3))], choice),
            )
        elif choice.random() < 0.5:
            yield path, *_json(file, name, choice)
        else:
            kind = choice.choice(
                ["image/png", "text/csv", "application/octet-stream", "", "audio/wav", "\xff", "text/html"]
            )
            yield path, {"content-type": kind}, file


def _json(file: bytes, name: str, choice: random.Random) -> tuple[dict[str, str], bytes]:
    encoded = {"file": base64.b64encode(file).decode(), "name": name}
    arrays = [[[0.5] * 16] * 2] * choice.randint(1, 3)
    deep = b"[" * choice.choice([10, 100_000])
    body = json.dumps(odd({"inputs": choice.choice([arrays, [encoded], [[1.0] * 16], [[1, "a"]]])}, choice)).encode()
    body = deep if choice.random() < 0.02 else damaged(body, choice) if choice.random() < 0.4 else body
    return {"content-type": choice.choice(["application/json", "application/json; charset=x", ""])}, body


def _form(files: list[tuple[str, bytes]], choice: random.Random) -> tuple[dict[str, str], bytes]:
    parts = [
        f'--xx\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in files
    ]
    body = b"".join(parts) + b"--xx--\r\n"
    body = damaged(body, choice) if choice.random() < 0.5 else body
    kinds = ["multipart/form-data; boundary=xx"] * 6 + [
        "multipart/form-data",
        "multipart/form-data; boundary=" + "y" * 500,
    ]
    return {"content-type": choice.choice(kinds)}, body


def _infer(file: bytes, choice: random.Random) -> tuple[dict[str, str], bytes]:
    array = np.ones((1, 2, 16), np.float32)
    element = len(file).to_bytes(4, "little") + file
    tensor = {"name": "input", "shape": [1, 2, 16], "datatype": "FP32", "data": array.ravel().tolist()}
    binary = b""
    match choice.randrange(4):
        case 0:
            binary = array.tobytes()
            tensor |= {"parameters": {"binary_data_size": len(binary)}, "data": []}
        case 1:
            binary = element
            tensor |= {"shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(binary)}}
        case 2:
            tensor |= {"shape": [1], "datatype": "BYTES", "data": [base64.b64encode(file).decode()]}
    tensor["datatype"] = choice.choice([tensor["datatype"]] * 6 + ["INT8", "BOOL", "FP16", "UINT8", "nothing"])
    request = {"id": "1", "inputs": [tensor], "outputs": choice.choice([[], [{"name": "class"}], [{"name": "zz"}]])}
    head = json.dumps(odd(request, choice)).encode()
    length = choice.choice([str(len(head))] * 6 + ["0", "-1", "x", "99999999999999"])
    headers = {"inference-header-content-length": length} if binary or choice.random() < 0.1 else {}
    return headers, damaged(head + binary, choice) if choice.random() < 0.3 else head + binary
