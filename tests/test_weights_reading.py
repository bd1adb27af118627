"""Files of every kind: what comes out, what is refused, and that nothing in them runs."""

import argparse
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ndvit.weights.reading.files import read_tensors

STATE = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "a.bias": torch.tensor([1.5, -2.0], dtype=torch.float16),
    "b": torch.tensor([1.0, 3.0], dtype=torch.bfloat16),
    "c": torch.tensor(7),
    "d": torch.zeros(0, 4, dtype=torch.float64),
}


def same(found, expected=STATE):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor), name


def saved(path, value, **more):
    torch.save(value, path, **more)
    return path


def legacy(path, value):
    return saved(path, value, _use_new_zipfile_serialization=False)


def message(path, kind=ValueError):
    with pytest.raises(kind) as caught:
        read_tensors(path)
    text = str(caught.value)
    assert "\n" not in text
    assert Path(path).name in text
    return text


@pytest.mark.parametrize("write", [save_file, torch.save, lambda v, p: legacy(p, v)], ids=["safe", "zip", "legacy"])
def test_tensors_come_back_as_stored_whatever_the_name(tmp_path, write):
    path = tmp_path / "weights.png"
    write(STATE, path)
    found = read_tensors(str(path))
    same(found.tensors)
    assert (found.path, found.header, found.sidecars, found.notes) == (path, {}, {}, ())


def test_safetensors_metadata(tmp_path):
    save_file(STATE, tmp_path / "a", metadata={"format": "pt"})
    assert read_tensors(tmp_path / "a").header == {"format": "pt"}


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_protocols(tmp_path, protocol, zipped):
    path = saved(tmp_path / "a.pth", STATE, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    same(read_tensors(path).tensors)


def test_newer_pickle_protocol_says_so_and_does_not_advise_to_run_it(tmp_path):
    text = message(saved(tmp_path / "a.pth", STATE, pickle_protocol=4))
    assert "pickle protocol 4; 2 and 3 are read" in text
    assert "weights_only" not in text


def test_shared_tensors_and_parameters(tmp_path):
    shared = nn.Parameter(torch.arange(4.0))
    found = read_tensors(saved(tmp_path / "a.pth", {"x": shared, "y": shared, "z": shared[1:3]})).tensors
    same(found, {"x": torch.arange(4.0), "y": torch.arange(4.0), "z": torch.tensor([1.0, 2.0])})
    assert not any(t.requires_grad or isinstance(t, nn.Parameter) for t in found.values())


def test_packed_zip_is_not_mapped_as_it_lies(tmp_path):
    with zipfile.ZipFile(saved(tmp_path / "a.pth", STATE)) as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    same(read_tensors(tmp_path / "b.pth").tensors)


def test_npz(tmp_path):
    values = torch.tensor([1.0, -2.5, 3.140625])
    stored = values.to(torch.bfloat16).view(torch.int16).numpy().view("V2")
    arrays = {
        "params/img/cls": stored,
        "scalar": stored[2],
        "big": np.array([1.5, 2], ">f4"),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "count": np.array(3),
        "name": np.array("vit"),
    }
    np.savez(tmp_path / "a.bin", **arrays)
    (tmp_path / "a.bin.npz").rename(tmp_path / "a.bin")
    found = read_tensors(tmp_path / "a.bin")
    assert found.notes == ("1 entries that are no tensors were left out: name.",)
    expected = {
        "params/img/cls": values,
        "scalar": values[2],
        "big": torch.tensor([1.5, 2.0]),
        "columns": torch.arange(6.0, dtype=torch.float64).reshape(2, 3),
        "count": torch.tensor(3),
    }
    same(found.tensors, expected)


class Payload:
    """Makes a marker when unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("write", ["zip", "legacy", "plain"])
def test_pickles_that_would_run_code_are_refused_by_name(tmp_path, write, protocol):
    marker, path = tmp_path / "marker", tmp_path / "a.pth"
    value = {"model": STATE, "args": Payload(marker)}
    if write == "plain":
        path.write_bytes(pickle.dumps({"args": Payload(marker)}, protocol))
    else:
        torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=write == "zip")
    text = message(path)
    assert text == (
        f"{path} is a pickle that would call posix.system when loaded; refused. Ask its author for a .safetensors file"
    )
    assert not marker.exists()
    if write == "plain":  # the payload is real
        pickle.loads(path.read_bytes())
        assert marker.exists()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2)


@pytest.mark.parametrize("write", [saved, legacy])
def test_pickled_modules_are_named(tmp_path, write):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Net, "__module__", "test_weights_reading")
        text = message(write(tmp_path / "a.pth", Net()))
    assert "holds a Python object of class test_weights_reading.Net, not just tensors" in text
    assert "Save model.state_dict() instead" in text


def test_code_hidden_in_a_module_is_named_before_the_module(tmp_path):
    net = Net()
    net.extra = Payload(tmp_path / "marker")
    assert "would call posix.system" in message(saved(tmp_path / "a.pth", net))
    assert not (tmp_path / "marker").exists()


def test_names_that_do_not_print_are_kept_out_of_messages(tmp_path):
    forged = b"\x80\x04\x8c\x03a\nb\x8c\x06system\x93(tR."
    (tmp_path / "a.pth").write_bytes(forged)
    assert "cannot be read as plain tensors" in message(tmp_path / "a.pth")
    assert r"'\x1b[2J\n'" in message(saved(tmp_path / "b.pth", {"\x1b[2J\n": 1}))


def test_torch_script(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:  # the members of torch.jit.save's, which now warns
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"a/{name}", b"")
    assert "is a TorchScript archive, a program and not just tensors" in message(path)
    assert "state_dict()" in message(path)


def test_what_training_scripts_save_beside_weights(tmp_path):
    extras = {
        "args": argparse.Namespace(lr=0.1, name="vit", out=Path("runs")),
        "best": np.float64(0.5),
        "count": np.int64(3),
        "epoch": 3,
    }
    for write in (saved, legacy):
        found = read_tensors(write(tmp_path / "a.pth", STATE | extras))
        same(found.tensors)
        assert found.values == extras


OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}


def test_names_in_dicts_inside_dicts_are_joined(tmp_path):
    value = {"model": {"module": STATE, "step": 4}, "acc": torch.ones(1), "optimizer": OPTIMIZER, "best": None}
    found = read_tensors(saved(tmp_path / "a.pth", value))
    same(found.tensors, {f"model.module.{name}": t for name, t in STATE.items()} | {"acc": torch.ones(1)})
    assert found.values.keys() == {"model.step", "optimizer", "best"}
    assert found.values["model.step"] == 4
    assert found.notes == ()


def test_a_dict_under_two_keys_is_read_once(tmp_path):
    found = read_tensors(saved(tmp_path / "a.pth", {"model": STATE, "state_dict": STATE}))
    assert found.tensors.keys() == {f"model.{name}" for name in STATE}


def test_two_tensors_of_one_name_are_refused(tmp_path):
    value = {"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"two tensors of the file have the name a\.b"):
        read_tensors(saved(tmp_path / "a.pth", value))


def cyclic():
    value = {"epoch": 1}
    value["model"] = value
    return value


HELD = {
    "list": ([torch.ones(1)], "holds list; expected a dict of tensors"),
    "tensor": (torch.ones(1), "holds Tensor; expected a dict of tensors"),
    "optimizer": (
        OPTIMIZER,
        "holds a dict of state, param_groups; expected a dict of tensors (it has the state of an opt",
    ),
    "itself": (cyclic(), "holds a dict of epoch, model; expected"),
    "numbers": ({0: torch.ones(1)}, "holds a dict of 0; expected a dict of tensors"),
    "sparse": ({"a": torch.eye(2).to_sparse()}, "'a' is a sparse or empty"),
    "meta": ({"a": torch.empty(2, device="meta")}, "'a' is a sparse or empty"),
}


@pytest.mark.parametrize("name", HELD)
def test_other_contents(tmp_path, name):
    assert HELD[name][1] in message(saved(tmp_path / "a.pth", HELD[name][0]))


def safetensors_bytes():
    from safetensors.torch import save

    return save(STATE)


BYTES = {
    "empty": (b"", "is empty: download it again"),
    "short": (
        b"abc",
        r"is no weights file (3 bytes, the first are b'abc'); expected .safetensors, .npz or a checkpoint",
    ),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "run `git lfs pull`"),
    "html": (b"\n <!DOCTYPE html><html>no</html>", "is a web page, saved in place of the weights"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(99), "is a PNG picture; expected .safetensors"),
    "gzip": (b"\x1f\x8b" + bytes(99), "is a gzip archive, which has to be unpacked first"),
    "noise": (bytes(range(200, 256)), "is no weights file (56 bytes"),
    "json": (b'{"error": "not found"}', "is JSON without a weight_map"),
    "half a json": (b'{"error": ', "begins like JSON but cannot be read"),
    "deep json": (b'{"a":' * 100_000, "begins like JSON but cannot be read"),
    "huge header": (struct.pack("<Q", 2**62) + b'{"a', "header of 4,611,686,018,427,387,904 bytes in a file of 11"),
    "safetensors cut in the header": (safetensors_bytes()[:50], "in a file of 50: it is cut short or damaged"),
    "safetensors cut in the tensors": (safetensors_bytes()[:-5], "is a safetensors file cut short or damaged: "),
    "a byte too many": (safetensors_bytes() + b"x", "is a safetensors file cut short or damaged: "),
    "no JSON": (struct.pack("<Q", 8) + b"{" * 99, "is a safetensors file cut short or damaged: "),
    "pickle": (pickle.dumps({"a": 1}, 2), "is a checkpoint of torch.save cut short or damaged"),
    "half a pickle": (pickle.dumps({"a": "long" * 9}, 2)[:20], "cut short or damaged"),
}


@pytest.mark.parametrize("name", BYTES)
def test_other_files(tmp_path, name):
    path = tmp_path / "a.safetensors"
    path.write_bytes(BYTES[name][0])
    assert BYTES[name][1] in message(path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "npz"])
def test_cut_short(tmp_path, kind, part):
    path = tmp_path / "a.npz"
    if kind == "npz":
        np.savez(path, a=np.random.default_rng(0).normal(size=500))
    else:
        torch.save({"a": torch.randn(500)}, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    assert "cut short or damaged" in message(path)


def test_damage_inside_an_npz(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(500))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[1000] ^= 255
    (tmp_path / "a.npz").write_bytes(data)
    assert "array 'a'" in message(tmp_path / "a.npz")


def test_objects_in_an_npz_are_refused_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", fine=np.ones(1), evil=np.array([Payload(tmp_path / "marker")], dtype=object))
    text = message(tmp_path / "a.npz")
    assert "array 'evil' that is refused" in text
    assert "Object arrays cannot be loaded" in text
    assert not (tmp_path / "marker").exists()


def test_zips_of_other_things_and_bombs(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("photo.png", b"x")
    assert "is a zip archive of other things (photo.png)" in message(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w"):
        pass
    assert "of other things (nothing)" in message(tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "c.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", bytes(30_000_000))
    assert "would unpack to 30,000,000 bytes" in message(tmp_path / "c.npz")


def test_a_zeroed_head_is_no_bomb(tmp_path):
    rest = np.random.default_rng(0).normal(size=5000)
    np.savez_compressed(tmp_path / "a.npz", head=np.zeros((1000, 1000), np.float32), rest=rest)
    assert read_tensors(tmp_path / "a.npz").tensors["head"].shape == (1000, 1000)


def test_missing_and_forbidden(tmp_path, monkeypatch):
    assert "no weights at" in message(tmp_path / "nowhere", FileNotFoundError)
    os.mkfifo(tmp_path / "pipe")
    assert "is neither a file nor a folder" in message(tmp_path / "pipe")
    save_file(STATE, tmp_path / "a")

    def forbidden(self, *args, **more):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", forbidden)  # tests may run as root, whom no mode stops
    assert "cannot be read: permission denied" in message(tmp_path / "a")


def test_folders(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    assert "is a folder without weights; expected model.safetensors or one of" in message(folder, FileNotFoundError)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step=9.ckpt").touch()
    (folder / "checkpoints" / "step=10.ckpt").touch()
    words = message(folder, FileNotFoundError)
    assert "; the run has not finished: ndvit train --resume" in words
    assert words.endswith(f"or use its newest checkpoint {folder / 'checkpoints' / 'step=10.ckpt'}")
    shutil.rmtree(folder / "checkpoints")
    (folder / "README.md").write_text("#")
    saved(folder / "best.pth", {"a": torch.zeros(1)})
    assert read_tensors(folder).path == folder / "best.pth"
    saved(folder / "last.pth", {"a": torch.ones(1)})
    assert "holds 2 weights files; use the path of one: best.pth, last.pth" in message(folder)
    saved(folder / "pytorch_model.bin", {"a": torch.ones(2)})
    assert read_tensors(folder).path == folder / "pytorch_model.bin"
    save_file({"a": torch.ones(3)}, folder / "model.safetensors")
    assert read_tensors(folder).tensors["a"].shape == (3,)


def test_sidecars(tmp_path):
    save_file(STATE, tmp_path / "a.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "preprocessor_config.json").write_text("[1]")
    found = read_tensors(tmp_path / "a.safetensors")
    assert found.sidecars == {"config.json": {"model_type": "vit"}}
    assert found.notes == ("preprocessor_config.json was left out: it holds a list, not an object.",)
    (tmp_path / "config.json").write_text('{"a": "' + "x" * 5_000_000 + '"}')
    (tmp_path / "preprocessor_config.json").write_bytes(b"\xff\xfe{")
    found = read_tensors(tmp_path / "a.safetensors")
    assert found.sidecars == {}
    assert "config.json was left out: 5,000,009 bytes, at most 5,000,000 are read." in found.notes
    assert any(note.startswith("preprocessor_config.json was left out: 'utf-8'") for note in found.notes)


SHARDS = {"model-1.safetensors": ["a.weight", "a.bias"], "model-2.safetensors": ["b", "c", "d"]}


def sharded(folder, places=None):
    folder.mkdir(parents=True, exist_ok=True)
    for shard, names in SHARDS.items():
        save_file({f"model.{name}": STATE[name] for name in names}, folder / shard, metadata={"format": "pt"})
    weight_map = {f"model.{name}": shard for shard, names in SHARDS.items() for name in names} | (places or {})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_shards_are_joined(tmp_path):
    folder = sharded(tmp_path / "m")
    for path in (folder, folder / "model.safetensors.index.json"):
        found = read_tensors(path)
        same(found.tensors, {f"model.{name}": tensor for name, tensor in STATE.items()})
        assert (found.header, found.path.name) == ({"format": "pt"}, "model.safetensors.index.json")


def test_shards_of_torch(tmp_path):
    saved(tmp_path / "x-1.bin", {"a": torch.ones(1)})
    legacy(tmp_path / "x-2.bin", {"b": torch.zeros(1)})
    index = {"weight_map": {"a": "x-1.bin", "b": "x-2.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    same(read_tensors(tmp_path).tensors, {"a": torch.ones(1), "b": torch.zeros(1)})


BAD_SHARDS = {
    "missing tensor": ({"model.z": "model-1.safetensors"}, "shard model-1.safetensors lacks model.z"),
    "extra tensor": ({"model.b": "model-1.safetensors"}, "shard model-1.safetensors lacks model.b"),
    "above": ({"model.z": "../secret.safetensors"}, "shard '../secret.safetensors' is outside the folder of the index"),
    "dots": ({"model.z": ".."}, "shard '..' is outside the folder of the index"),
    "dot": ({"model.z": "."}, "shard '.' is outside the folder of the index"),
    "nothing": ({"model.z": ""}, "shard '' is outside the folder of the index"),
    "absolute": ({"model.z": "/etc/passwd"}, "shard '/etc/passwd' is outside the folder of the index"),
    "windows": ({"model.z": "..\\secret"}, "is outside the folder of the index"),
    "nul": ({"model.z": "a\0b"}, "is outside the folder of the index"),
    "number": ({"model.z": 3}, "is JSON without a weight_map"),
    "itself": ({"model.z": "model.safetensors.index.json"}, "is listed as a shard of weights but is JSON text"),
}


@pytest.mark.parametrize("name", BAD_SHARDS)
def test_bad_shards(tmp_path, name):
    save_file({"model.z": torch.ones(1)}, tmp_path / "secret.safetensors")
    folder = sharded(tmp_path / "m", BAD_SHARDS[name][0])
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json") as caught:
        read_tensors(folder)
    assert BAD_SHARDS[name][1] in str(caught.value)


def test_shards_missing_unlisted_or_linked_from_elsewhere(tmp_path):
    folder = sharded(tmp_path / "m")
    shard = folder / "model-2.safetensors"
    save_file({f"model.{name}": STATE[name] for name in "bcd"} | {"more": torch.ones(1)}, shard)
    with pytest.raises(ValueError, match=r"shard model-2\.safetensors has unlisted more; download shards"):
        read_tensors(folder)
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"index\.json: shard model-2\.safetensors is missing"):
        read_tensors(folder)
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"shard 'model-2\.safetensors' is a link out of the folder of the index"):
        read_tensors(folder)


def test_hugging_face_cache(tmp_path):
    repository = tmp_path / "models--me--vit"
    folder = sharded(repository / "snapshots" / "0f3")
    (repository / "blobs").mkdir()
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(repository / "blobs" / str(i))
        file.symlink_to(f"../../blobs/{i}")
    found = read_tensors(folder)
    same(found.tensors, {f"model.{name}": tensor for name, tensor in STATE.items()})
    assert found.path == folder / "model.safetensors.index.json"
    (repository / "blobs" / "0").rename(tmp_path / "models--me--other")
    first = min(folder.iterdir())
    first.unlink()
    first.symlink_to(tmp_path / "models--me--other")
    with pytest.raises(ValueError, match="is a link out of the folder"):
        read_tensors(folder)
