"""Shards: what is written is read again, from a disk, by HTTP and from S3; faults are named, nothing is executed."""

import http.server
import io
import json
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datafiles import picture
from ndvit.data.loading import Dealt, Inputs
from ndvit.data.preprocess import fit_preprocess
from ndvit.data.sharding import shard
from ndvit.data.sources import remote
from ndvit.data.sources.load import load_examples, load_source
from ndvit.data.sources.remote import Files, cache_folder
from tinyruns import command, different, fit_tiny, toy

litdata = pytest.importorskip("litdata")
QUIET = {"progress": False, "log": lambda line: None}


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """A cache of its own, and no pauses before another try."""
    monkeypatch.setenv("NDVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_PAUSE", 0.0)


@pytest.fixture(scope="module")
def signals(tmp_path_factory):
    """Shards of 40 examples (2, 16) of 11 classes, about five in a chunk, a fifth of them to test."""
    x, y = toy(44, classes=11)
    return shard((x, y), tmp_path_factory.mktemp("shards") / "toy", chunk_size="1kB", **QUIET)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; the first answers for a path are those of `faults`."""

    requests: list[str]
    faults: dict[str, list[str]]
    stall: threading.Event

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.requests.append(self.path)
        left = self.faults.get(Path(self.path).name, [])
        fault = left.pop(0) if left else ""
        data = Path(self.translate_path(self.path))
        if fault == "gone" or not data.is_file():
            self.send_error(404)
        elif fault == "busy":
            self.send_error(503)
        else:
            content = data.read_bytes()
            if fault == "stall":
                self.stall.wait(20)
            if fault == "lie":
                content = content[:-1] + bytes([content[-1] ^ 1])
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if fault == "drop" else content)


@contextmanager
def served(folder):
    handler = type("Own", (Handler,), {"requests": [], "faults": {}, "stall": threading.Event()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        handler.stall.set()
        server.shutdown()
        server.server_close()


def content(examples):
    """Examples of a split, in any order."""
    targets = [None] * len(examples) if examples.targets is None else examples.targets.tolist()
    rows = [(name, str(t), np.asarray(x).tobytes()) for name, t, x in zip(examples.names, targets, examples)]
    return sorted(rows)


def test_signals_come_back_with_their_classes_names_and_split(signals):
    x, y = toy(44, classes=11)
    before, after = load_source((x, y)), load_source(str(signals))
    assert after.classes == before.classes == tuple(map(str, range(11)))
    assert (after.kind, after.dims, after.train.streamed) == ("signal", 1, True)
    assert content(after.train) == content(before.train)
    assert list(after.test.names) == list(before.test.names)
    assert after.test.targets.tolist() == before.test.targets.tolist()
    assert list(after.train.names) != list(before.train.names)  # training examples are in random order
    assert fit_preprocess(after).mean == pytest.approx(fit_preprocess(before).mean)


def test_a_note_of_a_single_split_is_kept_and_the_folder_is_described(tmp_path, capsys):
    assert command("shard", "gunpoint", tmp_path / "out", "--chunk-size", "10kB", "--no-progress") == 0
    assert "train  50 examples in 4 chunks" in capsys.readouterr().out
    assert any("the archive's own split" in note for note in load_source(str(tmp_path / "out")).notes)
    assert command("shard", "gunpoint", tmp_path / "out") == 2
    assert "exists" in capsys.readouterr().err


def test_pictures_are_copied_as_they_are(tmp_path):
    for name in ("a", "b"):
        for i in range(3):
            picture(tmp_path / "in" / name / f"{i}.jpg", (90 * i, 20, 200 if name == "a" else 100), (12 + i, 10))
    folder = shard(tmp_path / "in", tmp_path / "out", test_fraction=0, **QUIET)
    after = load_source(str(folder), test_fraction=0)
    assert (after.kind, after.dims, after.classes) == ("image", 2, ("a", "b"))
    for item, name in zip(after.train.items, after.train.names):
        assert item.open().read() == (tmp_path / "in" / name).read_bytes()
    loaded = load_examples(str(folder))
    assert (loaded.kind, loaded.examples.targets, len(loaded.examples)) == ("image", None, 6)


def test_pictures_in_memory_keep_their_pixels(tmp_path):
    deep = [Image.fromarray(np.full((9, 9), 300 * i, np.uint16) + np.eye(9, dtype=np.uint16)) for i in range(6)]
    folder = shard((deep, [0, 1] * 3), tmp_path / "out", test_fraction=0, **QUIET)
    after = load_source(str(folder), test_fraction=0)
    before = load_source((deep, [0, 1] * 3), test_fraction=0)
    assert content(after.train) == content(before.train)
    assert after.train[0].mode == before.train[0].mode == "I;16"


@pytest.mark.parametrize(
    ("task", "targets"),
    [
        ("regression", [0.5, -1.25, 3.0, 7.5] * 2),
        ("regression", np.array([[1.0, -2.5], [0.25, 4.0]] * 4)),
        ("multilabel", ["x;y", "y", "x", "x;y"] * 2),
    ],
)
def test_targets_of_every_task(tmp_path, task, targets):
    source = (toy(8)[0], targets)
    before = load_source(source, task=task, test_fraction=0)
    shard(source, tmp_path / "out", task=task, test_fraction=0, **QUIET)
    after = load_source(str(tmp_path / "out"), task=task, test_fraction=0)
    assert after.task == before.task
    assert content(after.train) == content(before.train)


def test_data_without_labels(tmp_path):
    shard(toy(6)[0], tmp_path / "out", labels=False, **QUIET)
    assert len(load_examples(str(tmp_path / "out"), dims=1).examples) == 6
    assert len(load_source(str(tmp_path / "out"), task="masked").train) == 6
    with pytest.raises(ValueError, match="have no labels; use them with ndvit pretrain or predict"):
        load_source(str(tmp_path / "out"))


def test_windows_and_groups_are_kept(tmp_path):
    source = {"X": toy(8, (1, 32))[0], "y": [0, 1] * 4, "subject": [f"s{i // 2}" for i in range(8)]}
    options = {"window": 16, "group_by": "subject", "test_fraction": 0.25}
    before = load_source(source, **options)
    shard(source, tmp_path / "out", **options, **QUIET)
    after = load_source(str(tmp_path / "out"), group_by="subject")
    assert sorted(after.train.places) == sorted(before.train.places)
    assert after.test.groups.tolist() == before.test.groups.tolist()
    with pytest.raises(ValueError, match="set window, mono and channels when they are written"):
        load_source(str(tmp_path / "out"), window=8)


def test_a_validation_set_can_be_written(tmp_path):
    shard(toy(40), tmp_path / "out", val_fraction=0.25, **QUIET)
    source = load_source(str(tmp_path / "out"))
    assert (len(source.train), len(source.val), len(source.test)) == (24, 8, 8)


@pytest.mark.filterwarnings("ignore")  # litdata leaves files open
def test_litdata_reads_what_was_written(signals):
    own = load_source(str(signals)).train
    theirs = litdata.StreamingDataset(str(signals / "train"))
    assert len(theirs) == len(own)
    for i in (0, 17, len(own) - 1):
        assert (theirs[i]["signal"] == own[i]).all()
        assert theirs[i]["target"] == own.targets[i]


def change(folder, target, **values):
    """A copy of shards with other values in the manifest of the training set."""
    target.mkdir()
    for part in folder.rglob("*"):
        (target / part.relative_to(folder)).parent.mkdir(exist_ok=True)
        if part.is_file():
            (target / part.relative_to(folder)).write_bytes(part.read_bytes())
    manifest = json.loads((target / "ndvit.json").read_text())
    manifest["splits"]["train"] |= values
    (target / "ndvit.json").write_text(json.dumps(manifest))
    return str(target)


def test_no_pickle_is_read(signals, tmp_path):
    pickled = change(signals, tmp_path / "a", fields={"signal": "pickle", "target": "int"})
    with pytest.raises(ValueError, match="fields that are not read, signal: pickle"):
        load_source(pickled)
    file = io.BytesIO()
    np.savez(file, targets=np.array([print], dtype=object))
    (tmp_path / "b").parent.mkdir(exist_ok=True)
    crc = remote.zlib.crc32(file.getvalue())
    objects = change(signals, tmp_path / "b", table=["examples.npz", len(file.getvalue()), crc])
    (tmp_path / "b/train/examples.npz").write_bytes(file.getvalue())
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_source(objects)


@pytest.mark.parametrize("name", ["../ndvit.json", "/etc/passwd", "a/b", ".lock"])
def test_no_name_leads_out_of_the_folder(signals, tmp_path, name):
    with pytest.raises(ValueError, match="is no name of a file"):
        load_source(change(signals, tmp_path / "a", chunks=[[name, 1, 2, 35]]))


def test_damaged_and_missing_chunks_are_named(signals, tmp_path):
    folder = Path(change(signals, tmp_path / "a"))
    chunk = folder / "train/chunk-0-2.bin"
    data = chunk.read_bytes()
    chunk.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    inputs = Inputs(load_source(folder).train, fit_preprocess(load_source(signals)))
    with pytest.raises(ValueError, match=r"train/chunk-0-2\.bin: cannot be read after 5 tries .*checksum differs"):
        list(inputs.loader(4, 0))
    chunk.unlink()
    with pytest.raises(ValueError, match=r"train/chunk-0-2\.bin: does not exist after 5 tries"):
        list(inputs.loader(4, 0))


def test_by_http_as_from_the_disk_and_each_chunk_is_fetched_once(signals):
    local = load_source(signals).train
    with served(signals) as (address, handler):
        source = load_source(address, cache_size="1MB")
        assert content(source.train) == content(local)
        chunks = [path for path in handler.requests if path.endswith(".bin")]
        assert len(chunks) == len(set(chunks)) == len(list((signals / "train").glob("*.bin")))
        again = load_source(address, cache_size="1MB").train  # as another process, which has nothing in memory
        del handler.requests[:]
        assert content(again) == content(local)
        assert handler.requests == []
        with pytest.raises(FileNotFoundError, match=r"no shards, there is no ndvit\.json"):
            load_source(f"{address}/other")


def test_the_cache_has_a_bound(signals):
    with served(signals) as (address, handler):
        for size in ("3kB", 0):
            assert len(content(load_source(address, cache_size=size).train)) == 33
            assert sum(path.stat().st_size for path in cache_folder().glob("*")) <= 3000
        assert len(handler.requests) > 2 * 7


@pytest.mark.parametrize("fault", ["busy", "gone", "drop", "lie", "stall"])
def test_a_server_that_fails_twice_is_asked_a_third_time(signals, monkeypatch, fault):
    monkeypatch.setattr(remote, "_PATIENCE", 0.7 if fault == "stall" else 60.0)
    with served(signals) as (address, handler):
        handler.faults["chunk-0-0.bin"] = [fault] * 2
        examples = load_source(address).train
        assert examples[0].shape == (2, 16)
        assert handler.requests.count("/train/chunk-0-0.bin") == 3


def test_a_server_that_lies_for_ever_is_named(signals):
    with served(signals) as (address, handler):
        handler.faults["chunk-0-0.bin"] = ["lie"] * 99
        with pytest.raises(ValueError, match=rf"{address}/train/chunk-0-0\.bin: .* after 5 tries .*checksum differs"):
            load_source(address).train[0]


def test_any_step_and_any_number_of_processes_give_the_same_stream(signals):
    source = load_source(signals)
    inputs = Inputs(source.train, fit_preprocess(source))
    whole = [batch.targets.tolist() for batch in inputs.stream(8, 12, 0, 0, 0, dealt=Dealt(1, 0, 4))]
    later = [batch.targets.tolist() for batch in inputs.stream(8, 12, 0, 7, 0, dealt=Dealt(1, 0, 4))]
    assert later == whole[7:]
    two = [list(inputs.stream(8, 12, 0, 0, 0, dealt=Dealt(2, part, 4))) for part in (0, 1)]
    assert [a.targets.tolist() + b.targets.tolist() for a, b in zip(*two)] == whole
    order = [i for batch in inputs.stream(3, 11, 3, 0, 0).batch_sampler for i in batch]
    assert sorted(order) == list(range(33))  # every example once a pass


def test_a_network_learns_the_same_by_http(signals):
    options = {"steps": 4, "batch_size": 8, "workers": 0, "test_fraction": 0.2}
    local = fit_tiny(str(signals), **options)
    with served(signals) as (address, _):
        assert not different(fit_tiny(address, **options), local)
        assert len(local.model.evaluate(address, **QUIET)) == 11
        assert len(local.model.embed(address, split="test", **QUIET)) == 11


def test_from_s3(signals, monkeypatch):
    server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import fsspec

    for name, value in {"KEY_ID": "x", "SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(f"AWS_{'ACCESS_' if name == 'KEY_ID' else ''}{name}", value)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        system = fsspec.filesystem("s3")
        system.mkdir("bucket")
        system.put(str(signals), "bucket/toy", recursive=True)
        assert content(load_source("s3://bucket/toy").train) == content(load_source(signals).train)
    finally:
        running.stop()


def test_only_known_addresses_are_remote():
    assert remote.is_remote("s3://bucket/folder")
    assert not any(map(remote.is_remote, ("file:///etc", "zip://a::http://b", "C:\\data", "hf:owner/name", "ucr:x")))
    assert Files("https://host/a/").path("train/x.bin") == "https://host/a/train/x.bin"
