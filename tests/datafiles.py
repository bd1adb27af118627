"""Small data files for tests: pictures, sounds, tables and folders of classes."""

import io
import struct
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image


def picture(path: Path, colour=(200, 30, 90), size=(12, 10), mode="RGB", **save) -> Path:
    """A picture of one colour with a darker corner; size is PIL's (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colour)
    image.paste((10, 10, 10), (0, 0, size[0] // 3, size[1] // 3))
    image.convert(mode).save(path, **save)
    return path


def png(colour, size=(12, 10)) -> dict:
    """A picture of one colour, but for its last pixel, as a row of a data set on the hub."""
    file, image = io.BytesIO(), Image.new("RGB", size, colour)
    image.putpixel((size[0] - 1, size[1] - 1), (0, 0, 0))
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def sound(path: Path, frames=400, rate=8000, channels=1, pitch=440.0, subtype=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(frames)[:, None] / rate
    values = 0.5 * np.sin(2 * np.pi * pitch * time + np.arange(channels))
    soundfile.write(path, values.astype(np.float32), rate, subtype=subtype)
    return path


def npy(path: Path, values, **save) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values, **save)
    return path


def cut(path: Path, keep=0.5) -> Path:
    """Cut a file off."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def pictures(root: Path, classes=("cat", "dog"), count=4, suffix=".png", **made) -> Path:
    """A folder of classes, each with `count` pictures."""
    for number, name in enumerate(classes):
        for i in range(count):
            picture(root / name / f"{i}{suffix}", (60 * number + i, 100, 200 - 40 * number), **made)
    return root


def arrays(root: Path, classes=("a", "b"), count=4, shape=(20,)) -> Path:
    """A folder of classes, each with `count` .npy files."""
    random = np.random.default_rng(0)
    for number, name in enumerate(classes):
        for i in range(count):
            npy(root / name / f"{i}.npy", random.normal(number, 1, shape))
    return root


TS_HEAD = "@problemName toy\n@timeStamps false\n@univariate true\n@classLabel true a b\n@data\n"


def ts(path: Path, lines=("1,2,3:a", "2,3,4:a", "5,6,7:b", "6,7,8:b"), head=TS_HEAD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + "\n".join(lines) + "\n")
    return path


def xy(n=8, shape=(10,), classes=2):
    """Arrays (n, *shape) and labels."""
    random = np.random.default_rng(0)
    return random.normal(size=(n, *shape)).astype(np.float32), np.arange(n) % classes


def walks(recordings=12, rows=40, rate=50.0, seed=0) -> dict[str, np.ndarray]:
    """Columns of a long table: each recording has a subject, an activity, times in seconds and two channels."""
    random = np.random.default_rng(seed)
    number = np.repeat(np.arange(recordings), rows)
    time = np.tile(np.arange(rows) / rate, recordings)
    activity = np.where(number % 2, "walk", "run")
    return {
        "recording": number,
        "subject": np.array([f"s{i // 4}" for i in number]),
        "time_s": time,
        "ax": np.sin(time * np.where(number % 2, 6, 30)) + random.normal(0, 0.1, len(time)),
        "ay": random.normal(size=len(time)),
        "activity": activity,
    }


def table(path: Path, columns, separator=",") -> Path:
    """A text table with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(*(np.asarray(values).tolist() for values in columns.values()))
    lines = [separator.join(map(str, row)) for row in (columns, *rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def cells(values):
    """A cell array for savemat."""
    array = np.empty((len(values), 1), dtype=object)
    array[:, 0] = list(values)
    return array


def mat_element(kind, data):
    """An element of a .mat file of version 5."""
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def mat_matrix(kind, content, shape=(1, 1), name=b"a"):
    """An array of a .mat file of version 5, of one of MATLAB's classes."""
    flags, axes = struct.pack("<II", kind, 0), struct.pack(f"<{len(shape)}i", *shape)
    return mat_element(14, mat_element(6, flags) + mat_element(5, axes) + mat_element(1, name) + content)


def mat(path, content):
    """Write a .mat file of version 5."""
    path.write_bytes(b"MATLAB 5.0".ljust(124) + b"\0\x01IM" + content)
    return path


MAT_NUMBER = mat_element(9, struct.pack("<d", 1.0))
