"""Readers of data files never fail in another way than a ValueError or OSError, whatever bytes they get."""

import ast
import io
import os
import struct
import warnings
import zipfile
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest
import soundfile
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from datafiles import TS_HEAD, picture
from ndvit.data.sources.columns import NO_ROLES, Roles
from ndvit.data.sources.files import header_of, read_example
from ndvit.data.sources.lists import read_list
from ndvit.data.sources.named_arrays import read_many, read_one
from ndvit.data.sources.npy import has_many_examples, load_array, npy_shape, read_npy_slice
from ndvit.data.sources.rasters import has_doubtful_alpha, raster_shape, read_raster
from ndvit.data.sources.recordings import read_file
from ndvit.data.sources.sounds import read_audio, sound_header
from ndvit.data.sources.tables import read_table

EXAMPLES = int(os.environ.get("NDVIT_FUZZ_EXAMPLES", 30))  # of each format; more find rarer faults
settings.register_profile(
    "ndvit",
    max_examples=EXAMPLES,
    derandomize="NDVIT_FUZZ_EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("ndvit")


def saved(write, *args, **named):
    file = io.BytesIO()
    write(file, *args, **named)
    return file.getvalue()


def zipped(method, **members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, array in members.items():
            archive.writestr(f"{name}.npy", saved(np.save, array))
    return file.getvalue()


def hdf5(**how):
    h5py = pytest.importorskip("h5py")
    file = io.BytesIO()
    with h5py.File(file, "w") as stored:
        stored.create_dataset("X", data=X, **how)
        stored["y"] = [b"a", b"b"] * 2
    return file.getvalue()


X = np.arange(24, dtype=np.float32).reshape(4, 6)
Y = np.array([0, 1, 0, 1])
LONG = pd.DataFrame({"id": [1, 1, 2], "t": [0, 1, 0], "a": [1.5, 2, 3], "label": ["x", "x", "y"]})
CELLS = np.array([["a"], ["b"], ["a"], ["b"]], dtype=object)
MAT = {"X": X, "y": Y, "text": "words", "labels": CELLS, "fields": {"a": X}}
WAVES = np.sin(np.arange(80) / 3)[:, None]
PIXELS = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))


def sound(kind, subtype=None):
    return saved(soundfile.write, WAVES, 8000, format=kind, subtype=subtype)


def raster(**how):
    return saved(tifffile.imwrite, np.arange(320, dtype=np.uint16).reshape(8, 8, 5), photometric="minisblack", **how)


def table(path):
    read_table(path)
    has_many_examples(path, 1, 1)


def array(path):
    npy_shape(path)
    load_array(path)
    read_example(str(path))


def listed(path):
    for name in "ab":
        if not (path.parent / f"{name}.png").exists():
            picture(path.parent / f"{name}.png")
    read_list(path, with_targets=True, skip_bad=False)


def values(path):
    for roles in (NO_ROLES, Roles(id=("id",), time="t", channels=("a",))):
        with suppress(ValueError, OSError):
            read_table(path, roles)
    with suppress(ValueError, OSError):
        read_file(path, NO_ROLES)


def named(path):
    read_many(path, NO_ROLES, with_targets=False)
    read_one(path, Roles(array=("X",)))


def tiff(path):
    raster_shape(path)
    has_doubtful_alpha(path)
    read_raster(path)


def recording(path):
    # libsndfile has an error of its own, which `describe_fault` knows
    for read in (sound_header, read_audio):
        with suppress(soundfile.LibsndfileError):
            read(path)


def stored(path):
    read_example(str(path))
    header_of(str(path))


FORMATS = {
    "npy": (".npy", array, [saved(np.save, X), saved(np.save, np.asfortranarray(X)), saved(np.save, Y.astype(">i2"))]),
    "npy, table": (".npy", table, [saved(np.save, X)]),
    "npz": (".npz", table, [zipped(method, X=X, y=Y) for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]),
    "npz, one array": (".npz", array, [zipped(zipfile.ZIP_DEFLATED, a=X)]),
    "ts": (".ts", table, [(TS_HEAD + "1,2,?:3,4:a\n2,3:1,2:b\n").encode()]),
    "tsv": (".tsv", table, [b"1\t0.5\tNaN\n2\t-1e3\t4\n"]),
    "csv": (".csv", listed, [b"path,label,split\na.png,x,train\nb.png,y,test\n"]),
    "csv, values": (
        ".csv",
        values,
        [b"id,t,a,label\n1,0,2,x\n1,1,3,x\n2,0,4,y\n", b"t;a\n0,5;1\n1,5;2\n", b"1 2\n3 4\n"],
    ),
    "parquet": (".parquet", values, [LONG.to_parquet(), LONG.to_parquet(compression="gzip")]),
    "arff": (".arff", values, [b"@relation r\n@attribute a numeric\n@attribute c {x,y}\n@data\n1,x\n?,y\n"]),
    "mat": (
        ".mat",
        named,
        [saved(savemat, MAT), saved(savemat, MAT, do_compression=True), saved(savemat, {"X": X}, format="4")],
    ),
    "hdf5": (".h5", named, [hdf5(), hdf5(chunks=(2, 3), compression="gzip", shuffle=True, fletcher32=True)]),
    "tiff": (".tif", tiff, [raster(planarconfig="contig"), raster(compression="zlib"), saved(PIXELS.save, "TIFF")]),
    "picture": (".png", stored, [saved(PIXELS.save, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP")]),
    "sound": (".wav", recording, [sound("WAV"), sound("WAV", "FLOAT"), sound("FLAC"), sound("OGG")]),
}
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
WORDS = [b"\0", b"\n", b"\r", b",", b":", b"\t", b'"', b"@data\n", b"nan", b"inf", b"1e999", b"1_0", b"-", b"\xff\xfe"]
WORDS += [b"(", b")", b"{", b"'", b"<f8", b"|O", b"PK\x01\x02", b"PK\x05\x06", b"\x93NUMPY", b"../", b"9" * 30]


@st.composite
def damaged(draw, seeds):
    """One of the seeds with up to eight changes: bits, numbers, words, cuts and copies, mostly near its beginning."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 8))):
        most = draw(st.sampled_from([16, 64, 256, len(data)]))
        at = draw(st.integers(0, max(0, min(most, len(data)) - 1)))
        if draw(st.integers(0, 4)) == 0:
            at = max(0, len(data) - 1 - at)  # where a zip has its directory
        kind = draw(st.sampled_from(["bit", "byte", "number", "word", "cut", "drop", "copy", "bytes"]))
        if kind == "bit" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "number":
            number = struct.pack(draw(st.sampled_from("<>")) + "Q", draw(st.sampled_from(NUMBERS)))
            width = draw(st.sampled_from([1, 2, 4, 8]))
            number = number[:width] if draw(st.booleans()) else number[-width:]
            data[at : at + width] = number
        elif kind == "word":
            word = draw(st.sampled_from(WORDS))
            data[at : at + draw(st.sampled_from([0, len(word)]))] = word
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == "copy":
            data[at:at] = data[at : at + draw(st.integers(1, 200))] * draw(st.integers(1, 20))
        elif kind == "bytes":
            data[at:at] = draw(st.binary(max_size=30))
    return bytes(data)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_an_error_of_pythons_parser_is_no_damage(tmp_path, monkeypatch, name):
    """Python 3.11 may raise it for any text while several threads parse."""
    values, calls, real = np.arange(6.0).reshape(2, 3), [], ast.literal_eval

    def parse(text):
        calls.append(text)
        if len(calls) % 2:
            raise SystemError("AST constructor recursion depth mismatch (before=45, after=39)")
        return real(text)

    (np.save if name.endswith("npy") else np.savez)(tmp_path / name, values)
    monkeypatch.setattr(ast, "literal_eval", parse)
    np.testing.assert_array_equal(load_array(tmp_path / name), values)
    assert len(calls) == 4  # the header is parsed before and with the values
    if name == "a.npy":
        np.testing.assert_array_equal(read_npy_slice(tmp_path / name, 1, 3), values[:, 1:])


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_data_or_errors_of_two_kinds(tmp_path, name):
    suffix, read, seeds = FORMATS[name]
    path = tmp_path / f"x{suffix}"

    @given(damaged(seeds))
    def check(data):
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numpy and PIL, about the same damage
            with suppress(ValueError, OSError):
                read(path)

    for seed in seeds:
        path.write_bytes(seed)
        read(path)  # undamaged
    check()


AXES = st.one_of(
    st.integers(0, 9), st.integers(), st.sampled_from([2**31, 2**62, 2**63, 2**70, -1, 1.5, True, None, "3"])
)
TYPES = st.one_of(
    st.sampled_from(
        ["<f4", ">f8", "<i8", "|u1", "|b1", "<c8", "<U3", "|S2", "|O", "|V4", "<M8[s]", "<U0", "<f2", "<f16"]
    ),
    st.text(max_size=5),
    st.lists(st.tuples(st.text(max_size=2), st.sampled_from(["<f4", "|O"])), max_size=3),
)


@given(
    shape=st.lists(AXES, max_size=5).map(tuple),
    descr=TYPES,
    fortran=st.sampled_from([False, True, 3, None]),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0), (4, 0), (1, 7)]),
    content=st.binary(max_size=64),
    exact=st.booleans(),
)
def test_headers_of_arrays_with_any_content(tmp_path_factory, shape, descr, fortran, version, content, exact):
    text = repr({"descr": descr, "fortran_order": fortran, "shape": shape}).encode("utf-8", "surrogatepass") + b"\n"
    if exact:
        with suppress(TypeError, ValueError, OverflowError):
            content = bytes(min(4096, int(np.prod(shape)) * np.dtype(descr).itemsize))
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    path = tmp_path_factory.getbasetemp() / "any.npy"
    path.write_bytes(b"\x93NUMPY" + bytes(version) + length + text + content)
    for read in (npy_shape, load_array, read_table):
        with suppress(ValueError, OSError):
            read(path)


@given(
    st.lists(
        st.lists(st.sampled_from(["1", "-2.5", "NaN", "?", "", "1e999", "x", "1_0", "a\0"]), max_size=4), max_size=4
    )
)
def test_lines_of_any_channels(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "any.ts"
    for between in (":", ","):
        path.write_text(TS_HEAD + "\n".join(between.join(line) for line in lines), encoding="utf-8")
        try:
            part = read_table(path).parts["train"]
        except ValueError:
            continue
        assert len(part.items) == len(part.targets)
        assert all(item.ndim == 2 and item.dtype == np.float32 for item in part.items)
