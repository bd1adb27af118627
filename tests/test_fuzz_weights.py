"""Readers of untrusted weights and settings return a value or raise a ValueError or OSError, whatever the bytes."""

import io
import json
import pickle
import struct

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from fuzz import FAST, damaged, odd_numbers, refuses_or_reads, values
from googlefiles import make_arrays
from ndvit import VisionTransformer, ViTConfig
from ndvit.training.settings import read_config
from ndvit.weights.reading.shards import read_index, read_json
from weightfiles import as_model, header_of, load_model, save_model

CONFIG = ViTConfig(input_size=(16, 16), patch_size=8, embed_dim=32, depth=1, num_heads=1, num_classes=2, in_channels=3)


def whole(write):
    file = io.BytesIO()
    write(file)
    return file.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_model(as_model(VisionTransformer(CONFIG), ("a", "b"), provenance={"seed": 3, "source": "toy"}), path)
    return path


STATE = VisionTransformer(CONFIG).state_dict()
NPZ = {"a": np.ones(3, np.float32), "b": np.zeros((2, 2), np.float32)}
FILES = {
    "safetensors": save(STATE, metadata={"format": "pt"}),
    "torch": whole(lambda file: torch.save(STATE, file)),
    "old torch": whole(lambda file: torch.save(STATE, file, _use_new_zipfile_serialization=False)),
    "npz": whole(lambda file: np.savez(file, **NPZ)),
    "compressed npz": whole(lambda file: np.savez_compressed(file, **NPZ)),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_weights(tmp_path, name):
    path = tmp_path / "w"

    @FAST
    @given(damaged(FILES[name]))
    def check(data):
        path.write_bytes(data)
        refuses_or_reads(lambda: load_model(path))

    check()


@FAST
@given(st.binary(max_size=60))
def test_damaged_pickles(tmp_path, data):
    for start in (b"\x80\x02", b"\x80\x02}q\x00(", b"\x80\x02ccollections\nOrderedDict\n)Rq\x00"):
        (tmp_path / "w.pth").write_bytes(start + data)
        refuses_or_reads(lambda: load_model(tmp_path / "w.pth"))


@FAST
@given(st.dictionaries(st.sampled_from(["model", "state_dict", "a", "blocks.0.w"]), values, max_size=3))
def test_pickles_of_other_values(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(pickle.dumps(content, 2))
    refuses_or_reads(lambda: load_model(tmp_path / "w.pth"))


def rewritten(model, path, header):
    data = model.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    whole = json.loads(data[8 : 8 + length])
    whole["__metadata__"] |= header
    text = json.dumps(whole).encode("utf-8", "replace")
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@FAST
@given(st.sampled_from(["task", "network", "preprocess", "provenance", "untrained", "temperature", "other"]), values)
def test_entries_of_a_header(tmp_path, model, name, value):
    rewritten(model, tmp_path / "m.safetensors", {name: json.dumps(value)})
    refuses_or_reads(lambda: load_model(tmp_path / "m.safetensors"))


@FAST
@given(st.sampled_from(sorted(CONFIG.to_dict())), values | odd_numbers)
def test_fields_of_a_network(tmp_path, model, name, value):
    network = json.loads(header_of(model)["network"])
    network["config"][name] = value
    rewritten(model, tmp_path / "m.safetensors", {"network": json.dumps(network)})
    refuses_or_reads(lambda: load_model(tmp_path / "m.safetensors"))


GOOGLE = make_arrays(lambda name, shape: np.ones(shape, np.float32), depth=1, width=32, hidden=32, patch=4)


@FAST
@given(st.dictionaries(st.sampled_from(sorted(GOOGLE)), st.lists(st.integers(0, 5), max_size=5)))
def test_shapes_of_googles_arrays(tmp_path, shapes):
    arrays = GOOGLE | {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    np.savez(tmp_path / "w.npz", **arrays)
    refuses_or_reads(lambda: load_model(tmp_path / "w.npz"))


SIDECAR = st.sampled_from(
    ["architecture", "model_args", "pretrained_cfg", "label_names", "num_classes", "model_type", "hidden_act"]
    + ["image_size", "patch_size", "id2label", "architectures", "vision_config", "num_attention_heads", "global_pool"]
)


@FAST
@given(st.dictionaries(SIDECAR, values, max_size=4))
def test_sidecars(tmp_path, config):
    save_file(STATE, tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    refuses_or_reads(lambda: load_model(tmp_path / "w.safetensors"))


@FAST
@given(values | st.dictionaries(st.just("weight_map"), values))
def test_indices(tmp_path, content):
    (tmp_path / "i.json").write_text(json.dumps(content))
    refuses_or_reads(lambda: read_index(tmp_path / "i.json"))


@FAST
@given(st.binary(max_size=40))
def test_json(tmp_path, data):
    (tmp_path / "i.json").write_bytes(data)
    refuses_or_reads(lambda: read_json(tmp_path / "i.json"))


@FAST
@given(values.map(lambda value: yaml.safe_dump(value).encode("utf-8", "replace")) | st.binary(max_size=40))
def test_settings(tmp_path, data):
    (tmp_path / "config.yaml").write_bytes(data)
    refuses_or_reads(lambda: read_config(tmp_path / "config.yaml"))
