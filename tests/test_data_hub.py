"""Data sets of the Hugging Face hub: made here as parquet files, loaded by the real library, never over a network."""

import hashlib
import importlib.util
import io
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

import datafiles
from ndvit import DataWarning
from ndvit.data import checking
from ndvit.data.loading import Inputs
from ndvit.data.preprocess import fit_preprocess
from ndvit.data.sources import hub
from ndvit.data.sources.hub import Address
from ndvit.data.sources.load import load_examples, load_source

datasets = pytest.importorskip("datasets")
CAT_DOG = datasets.ClassLabel(names=["cat", "dog"])
TYPES = {"image": datasets.Image(), "label": CAT_DOG}


def png(i, size=(12, 10)):
    return datafiles.png((10 * i % 256, 100, 50), size)


def columns(count=10, **others):
    """Pictures with labels, cat and dog in turn."""
    return {"image": [png(i) for i in range(count)], "label": [i % 2 for i in range(count)], **others}


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Give a data set out as the only one of the hub."""

    def make(types=None, fetch=None, **splits):
        folder = tmp_path / "hub"
        folder.mkdir(exist_ok=True)
        for name, values in splits.items():
            features = datasets.Features({**TYPES, **(types or {})})
            features = datasets.Features({k: v for k, v in features.items() if k in values})
            datasets.Dataset.from_dict(values, features=features).to_parquet(folder / f"{name}-00000-of-00001.parquet")
        calls = []

        def load(address):
            calls.append(address)
            return datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))

        monkeypatch.setattr(hub, "load", fetch or load)
        return calls

    datasets.disable_progress_bars()
    yield make
    datasets.enable_progress_bars()


def test_splits_as_they_are_named(publish):
    calls = publish(train=columns(), validation=columns(4), test=columns(6))
    source = load_source("hf:me/pets?revision=v1&config=small")
    assert calls == [Address("me/pets", config="small", revision="v1")]
    assert (source.name, source.kind, source.task.classes) == ("hf:me/pets", "image", ("cat", "dog"))
    assert [len(part) for part in (source.train, source.val, source.test)] == [10, 4, 6]
    assert source.train.targets.tolist() == [0, 1] * 5
    assert source.train.names[7] == "train[7]"
    assert source.val.names[3] == "validation[3]"
    assert source.notes[:2] == (
        "pictures from the column image, labels from label",
        "the hub's own splits: train, validation, test",
    )
    assert source.train[7].getpixel((0, 0)) == (70, 100, 50)


def test_rows_stay_in_the_cache_and_travel_to_workers(publish):
    publish(train=columns(40, image=[png(i, (200, 150)) for i in range(40)]))
    source = load_source("hf:me/pets", test_fraction=0)
    assert not source.train.in_memory
    packed = pickle.dumps(source.train)
    again = pickle.loads(packed)
    assert np.array_equal(np.asarray(again[3]), np.asarray(source.train[3]))
    assert len(packed) < 40 * 200  # no pictures in it
    preprocess = fit_preprocess(source)
    assert preprocess.size == (150, 200)
    batches = list(Inputs(source.train, preprocess).loader(16, workers=1))
    assert [len(batch.x) for batch in batches] == [16, 16, 8]
    assert batches[1].targets.tolist() == [0, 1] * 8


def test_no_split_of_its_own(publish):
    publish(train=columns())
    source = load_source("hf:me/pets", seed=1)
    assert (len(source.train), len(source.test)) == (8, 2)
    assert set(source.train.names) | set(source.test.names) == {f"train[{i}]" for i in range(10)}
    assert "20% held out for testing (2 examples), stratified, seed 1" in source.notes[-1]


def test_a_single_split_of_another_name_is_the_data_set(publish, tmp_path):
    one = datasets.Dataset.from_dict(columns(), features=datasets.Features(TYPES))
    publish(fetch=lambda address: {"data": one})
    source = load_source("hf:me/pets")
    assert "the only split, data, is the data set" in source.notes
    publish(fetch=lambda address: {"clean": one, "noisy": one})
    with pytest.raises(ValueError, match=r"hf:me/pets: has the splits clean, noisy; expected train, validation, test"):
        load_source("hf:me/pets")
    publish(fetch=lambda address: {"train": one, "extra": one})
    assert "splits left out: extra" in load_source("hf:me/pets").notes
    publish(fetch=lambda address: {"train": one, "val": one, "valid": one})
    with pytest.raises(ValueError, match="both splits val and valid could be the val set"):
        load_source("hf:me/pets")
    publish(fetch=lambda address: {"test": one})
    with pytest.raises(ValueError, match="hf:me/pets: has test but no training set"):
        load_source("hf:me/pets")


def test_a_test_set_whose_labels_are_kept_secret(publish):
    publish(train=columns(), validation=columns(4), test={**columns(6), "label": [-1] * 6})
    source = load_source("hf:me/pets")
    assert (len(source.test), source.val) == (4, None)
    assert "the split test is left out: it has no labels" in source.notes
    publish(train={**columns(), "label": [0, 1, -1, *[0, 1, 1, 0, 1, 0, 1]]})
    with pytest.raises(ValueError, match=r"1 labels are missing in the train set: train\[2\]"):
        load_source("hf:me/pets")


def test_classes_by_text_and_by_number(publish):
    publish({"label": datasets.Value("string")}, train={**columns(), "label": ["a", "b"] * 5})
    assert load_source("hf:me/pets").task.classes == ("a", "b")
    publish({"label": datasets.Value("int64")}, train={**columns(), "label": [10, 9] * 5})
    source = load_source("hf:me/pets")
    assert source.task.classes == ("9", "10")


NUMBERS = {
    "fine": datasets.ClassLabel(names=["x", "y"]),
    "age": datasets.Value("int32"),
    "size": datasets.Value("int8"),
}


@pytest.mark.parametrize(
    ("address", "types", "extra", "drop", "message"),
    [
        ("?label=fine", NUMBERS, {"fine": [1, 0] * 5}, "", None),
        ("", NUMBERS, {"fine": [1, 0] * 5}, "label", None),
        ("", NUMBERS, {"fine": [1, 0] * 5, "age": [3] * 10}, "label", None),
        (
            "",
            NUMBERS,
            {"age": [1, 0] * 5, "size": [1] * 10},
            "label",
            "could be labels, age, size: choose one with hf:me/p",
        ),
        (
            "",
            NUMBERS,
            {},
            "label",
            r"no column of labels: choose one with hf:me/pets\?label=COLUMN \(columns: image: Image",
        ),
        (
            "",
            {"back": datasets.Image()},
            {"back": [png(1)] * 10},
            "",
            "columns that could be pictures, image, back: choose one with",
        ),
        (
            "",
            {"image": datasets.Value("string")},
            {"image": ["x"] * 10},
            "",
            r"no column of pictures: .*\?image=COLUMN",
        ),
        (
            "?image=thing",
            {},
            {},
            "",
            r"no column thing \(for image=\); it has columns: image: Image, label: ClassLabel",
        ),
        ("?image=label", {}, {}, "", "the column label has no pictures"),
        ("?label=image", {}, {}, "", "the column image has no labels"),
    ],
)
def test_columns(publish, address, types, extra, drop, message):
    values = {name: column for name, column in columns(**extra).items() if name != drop}
    publish(types, train=values)
    if message is None:
        source = load_source(f"hf:me/pets{address}", test_fraction=0)
        assert (source.task.classes, source.train.targets.tolist()) == (("x", "y"), [1, 0] * 5)
        assert "pictures from the column image, labels from fine" in source.notes
    else:
        with pytest.raises(ValueError, match=f"hf:me/pets: .*{message}"):
            load_source(f"hf:me/pets{address}")


@pytest.mark.parametrize(("name", "address"), [("label", ""), ("outcome", "?label=outcome")])
def test_floats_are_labels_if_they_are_named_so(publish, name, address):
    """Where some labels were missing, tables of integers become floats."""
    values = {**columns(), name: [0.0, 1.0] * 5}
    values = {key: values[key] for key in ("image", name)}
    publish({name: datasets.Value("float32")}, train=values)
    assert len(load_source(f"hf:me/pets{address}", test_fraction=0).task.classes) == 2
    publish({name: datasets.Value("float32")}, train={**values, name: [0.0, 1.0, None, 0.0, float("nan"), *[1.0] * 5]})
    with pytest.raises(ValueError, match="2 labels are missing in the train set"):
        load_source(f"hf:me/pets{address}")


def test_other_columns_are_named(publish):
    publish(
        {"patient": datasets.Value("int64"), "age": datasets.Value("int64")},
        train=columns(age=[3] * 10, patient=[1] * 10),
    )
    with pytest.warns(DataWarning, match="columns not read: patient, age; the split at random ignores groups"):
        load_source("hf:me/pets")


def test_rows_that_are_not_what_the_schema_announces():
    with pytest.raises(ValueError, match="there is a str in this row, expected a picture"):
        hub.Row("train", [{"image": "../secret"}], 0).open()


def test_a_column_of_plain_bytes(publish):
    publish({"image": datasets.Value("binary")}, train=columns(image=[png(i)["bytes"] for i in range(10)]))
    source = load_source("hf:me/pets?image=image", test_fraction=0)
    assert source.train[4].getpixel((0, 0)) == (40, 100, 50)


@pytest.mark.parametrize("limit", [0, 100], ids=["headers", "whole"])
def test_bad_rows_are_named(publish, monkeypatch, limit):
    monkeypatch.setattr(checking, "_DECODE_AT_MOST", limit)
    images = [png(i) for i in range(12)]
    images[3] = {"bytes": b"hello", "path": None}
    images[5] = None
    publish(train=columns(12, image=images))
    message = r"2 of 12 examples cannot be used: train\[3\]: is not a picture.*; train\[5\]: there is no picture in"
    with pytest.raises(ValueError, match=message):
        load_source("hf:me/pets")
    source = load_source("hf:me/pets", skip_bad=True, test_fraction=0)
    assert source.train.names[2:5] == ["train[2]", "train[4]", "train[6]"]
    assert source.train[3].getpixel((0, 0)) == (40, 100, 50)


def test_rows_that_go_bad_later_are_named(publish, monkeypatch):
    publish(train=columns())
    source = load_source("hf:me/pets", test_fraction=0)
    monkeypatch.setattr(hub.Row, "open", lambda row: io.BytesIO(b""))
    with pytest.raises(ValueError, match=r"hf:me/pets train\[4\]: is not a picture"):
        _ = source.train[4]


def test_paths_in_a_table_are_not_followed(publish, tmp_path, monkeypatch):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(1)["bytes"])
    images = [png(i) for i in range(10)]
    images[6] = {"bytes": None, "path": str(secret)}
    images[7] = {"bytes": None, "path": "https://example.org/a.png"}
    table = datasets.Dataset.from_dict(columns(image=images), features=datasets.Features(TYPES))
    publish(fetch=lambda address: {"train": table})
    message = r"2 of 10 .*: train\[6\]: names a file that is not part of the data set.*; train\[7\]: names a file"
    with pytest.raises(ValueError, match=message):
        load_source("hf:me/pets")
    monkeypatch.setattr(hub, "_caches", lambda: [str(tmp_path)])  # as folders of pictures on the hub are kept
    assert load_source("hf:me/pets", skip_bad=True).train is not None


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf:", "is not the address of a data set: write hf:owner/name"),
        ("hf:pets", "is not the address"),
        ("hf:me/pets/data", "is not the address"),
        ("hf:../pets", "is not the address"),
        ("hf:me/pets@v1", "is not the address"),
        ("hf:me/pets?", None),
        ("hf:me/pets?image", "is not the address"),
        ("hf:me/pets?picture=a", "has unknown options .picture.: write hf:owner/name"),
        ("hf:me/pets?image=a&image=b", "has an option twice"),
        ("hf:me/pets?image=my%20column&label=l", None),
    ],
)
def test_addresses(address, message):
    if message is None:
        parsed = Address.parse(address)
        assert (parsed.repo, parsed.image) == ("me/pets", "my column" if "20" in address else None)
    else:
        with pytest.raises(ValueError, match=message):
            load_source(address)


def test_without_the_library(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "datasets" else find(name))
    with pytest.raises(ValueError, match=r"needs a package that is not installed: pip install 'ndvit\[datasets\]'"):
        load_source("hf:me/pets")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("doesn't exist"),
            FileNotFoundError,
            "doesn't exist .set HF_TOKEN or",
        ),
        (ConnectionError("no route"), OSError, r"hf:me/pets could not be fetched \(no route\): check the network"),
        (RuntimeError("Dataset scripts are no longer supported"), ValueError, "cannot be read .*scripts are no longer"),
        (
            ValueError("Config name is missing.\nPlease pick one among: a, b"),
            ValueError,
            r"cannot be read: choose one with hf:me/pets\?config=NAME .*pick one among: a, b",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_the_library_cannot_do(publish, error, kind, message):
    def fail(address):
        raise error

    publish(fetch=fail)
    with pytest.raises(kind, match=message):
        load_source("hf:me/pets")


def test_the_hub_is_used_even_if_a_folder_has_that_name(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **named: calls.append((args, named)) or {})
    hub.load(Address("me/pets", config="small", revision="v1"))
    assert calls == [(("hf://datasets/me/pets", "small"), {"revision": "v1"})]


def test_progress_bars_follow_the_option(publish):
    table = datasets.Dataset.from_dict(columns(), features=datasets.Features(TYPES))
    seen = []
    publish(fetch=lambda address: seen.append(datasets.are_progress_bars_disabled()) or {"train": table})
    datasets.enable_progress_bars()
    load_source("hf:me/pets", progress=True)
    load_source("hf:me/pets", progress=False)
    assert (seen, datasets.are_progress_bars_disabled()) == ([False, True], False)


def test_data_sets_to_predict(publish):
    publish(train=columns(), validation=columns(4), test={"image": columns(6)["image"]})
    kind, _, examples, notes = load_examples("hf:me/pets")
    assert (kind, len(examples), examples.targets) == ("image", 6, None)
    assert examples.names[5] == "hf:me/pets/test[5]"
    assert notes[-1] == "hf:me/pets has train, val and test: the test set is used"


# The real library and the real client, asking a server on this machine


class Hub(BaseHTTPRequestHandler):
    """Enough of the hub's paths for one data set, me/pets."""

    files: ClassVar[dict[str, bytes]] = {}
    fetched: ClassVar[list[tuple[str, int, int]]] = []  # parts of files

    def log_message(self, *_):
        pass

    def do_GET(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "datasets"] and parts[4:5] == ["tree"]:
            within = "".join(f"{part}/" for part in parts[6:])
            found = [name for name in self.files if name.startswith(within)]
            folders = {within + name.removeprefix(within).split("/")[0] for name in found} - set(found)
            entries = [{"type": "directory", "path": name, "size": 0, "oid": "d" * 40} for name in folders]
            for name in set(found) - {name for name in found if "/" in name.removeprefix(within)}:
                entries.append({"type": "file", "path": name, "size": len(self.files[name]), "oid": "e" * 40})
            self.answer(json.dumps(entries).encode())
        elif parts[:4] == ["api", "datasets", "me", "pets"]:
            siblings = [{"rfilename": name} for name in self.files]
            self.answer(json.dumps({"id": "me/pets", "sha": "c" * 40, "siblings": siblings, "tags": []}).encode())
        elif parts[:4] == ["datasets", "me", "pets", "resolve"] and "/".join(parts[5:]) in self.files:
            self.answer(self.files["/".join(parts[5:])])
        else:
            known = parts[:3] == ["datasets", "me", "pets"]
            self.answer(b"{}", 404, "EntryNotFound" if known else "RepoNotFound")

    do_HEAD = do_GET

    def answer(self, body, status=200, code=""):
        if ranged := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = map(int, ranged.groups())
            body, status = body[first : last + 1], 206
            self.fetched.append((self.path, first, last))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


LOADS = """
import os, sys
from ndvit.data.sources.load import load_source
for address in ("hf:me/pets", "hf:me/none", "hf:me/pets?streaming=1"):
    try:
        source = load_source(address, progress=False)
        train, test = source.train, source.test
        print(source.task.classes, len(train), test.names, train[2].getpixel((0, 0)), train.streamed)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}")
sys.stdout.flush()
os._exit(0)  # the threads of pyarrow can abort an interpreter that ends on a busy machine
"""


def test_the_real_client_finds_it_on_a_hub(tmp_path):
    (tmp_path / "me" / "pets").mkdir(parents=True)  # a folder here that is called like the data set
    for split, count in (("train", 10), ("test", 2)):
        table = datasets.Dataset.from_dict(columns(count), features=datasets.Features(TYPES))
        table.to_parquet(tmp_path / "part.parquet")
        Hub.files[f"data/{split}-00000-of-00001.parquet"] = (tmp_path / "part.parquet").read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    proxies = ("http_proxy", "https_proxy", "all_proxy", "hf_token", "hf_hub_offline")
    own = {name: value for name, value in os.environ.items() if name.lower() not in proxies}
    own |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
    own |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    try:
        command = [sys.executable, "-c", LOADS]
        done = subprocess.run(command, env=own, cwd=tmp_path, capture_output=True, text=True)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    first, second, streamed = done.stdout.splitlines()
    assert first == "('cat', 'dog') 10 ['test[0]', 'test[1]'] (20, 100, 50) False"
    assert re.match("FileNotFoundError: hf:me/none: .*doesn't exist on the Hub.*set HF_TOKEN", second)
    assert streamed == first.replace("False", "True")
    assert {path.rpartition("/")[2] for path, _, _ in Hub.fetched} == {"train-00000-of-00001.parquet"}
