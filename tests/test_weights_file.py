"""One model, one file: what is saved comes back, and every bad file has its message."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ndvit import VisionTransformer, ViTConfig, create_model, load_model, save_model
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.preprocess.signals import SignalPreprocess

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
CONFIGS = {
    "1d": ViTConfig(input_size=16, patch_size=4, in_channels=2, **SMALL),
    "2d": ViTConfig(input_size=(8, 12), patch_size=(4, 2), **SMALL),
    "3d": ViTConfig(input_size=(4, 4, 8), patch_size=2, in_channels=1, **SMALL),
    "distilled": ViTConfig(input_size=16, patch_size=4, distilled=True, **SMALL),
    "representation": ViTConfig(input_size=16, patch_size=4, representation_size=7, **SMALL),
    "many options": ViTConfig(
        input_size=(8, 8), patch_size=4, pos_embed="sincos", pooling="map", layer_scale=0.1, num_registers=2,
        qk_norm=True, activation="swiglu", pre_norm=True, patch_norm=True, qkv_bias=False, norm_eps=1e-5,
        drop_path_rate=0.3, class_token=False, **SMALL,
    ),
    # the two networks of the article: their width, but two blocks
    "article 2d": ViTConfig(input_size=(224, 224), patch_size=16, patch_norm=True, depth=2),
    "article 1d": ViTConfig(
        input_size=13, patch_size=1, in_channels=1024, num_classes=125, patch_norm=True, depth=2
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_comes_back(tmp_path, name):
    model = VisionTransformer(CONFIGS[name]).eval()
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    again = load_model(path)
    assert again.config == model.config
    assert not again.training
    x = torch.randn(2, model.config.in_channels, *model.config.input_size)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
        assert again(x).shape == (2, model.config.num_classes)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    "preprocess",
    [
        SignalPreprocess(size=(16,), mean=(0.1, -2.0), std=(1.5, 3.0), sample_rate=8000.0, resize="resample"),
        ImagePreprocess(size=(8, 12), mean=(0.5, 0.25, 0.125), std=(0.1, 0.2, 0.3)),
        None,
    ],
)
def test_labels_travel(tmp_path, preprocess):
    model = VisionTransformer(CONFIGS["1d"])
    model.classes = ("a", "ß, ü", "3", "naïve", "🙂")
    model.preprocess = preprocess
    model.provenance = {"source": "gunpoint", "seed": 3, "test_accuracy": 0.1 + 0.2}
    save_model(model, tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    assert again.classes == model.classes
    assert again.preprocess == preprocess
    assert again.provenance == model.provenance
    if preprocess is not None:
        raw = np.random.default_rng(0).uniform(0, 255, (8, 12, 3)).astype(np.uint8)
        raw = raw if preprocess.kind == "image" else np.random.default_rng(0).normal(size=(2, 20)).astype(np.float32)
        assert torch.equal(again.preprocess(raw), preprocess(raw))


def test_other_readers_can_read_it(tmp_path):
    model = create_model("vit_pico", input_size=16)
    save_model(model, tmp_path / "m.safetensors")
    assert load_file(tmp_path / "m.safetensors").keys() == model.state_dict().keys()


def test_a_model_in_training_stays_in_training(tmp_path):
    model = VisionTransformer(CONFIGS["1d"]).train()
    save_model(model, tmp_path / "m.safetensors")
    assert model.training


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save_model(VisionTransformer(CONFIGS["1d"]), path)
    before = path.read_bytes()

    def full(*args):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(OSError, match="no space left"):
            save_model(VisionTransformer(CONFIGS["1d"]), path)
    assert path.read_bytes() == before
    load_model(path)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", full)
        with pytest.raises(OSError, match="no space left"):
            save_model(VisionTransformer(CONFIGS["1d"]), tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


@pytest.fixture
def path(tmp_path):
    model = VisionTransformer(CONFIGS["1d"])
    model.classes = tuple("abcde")
    save_model(model, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def rewrite(path, tensors=None, **header):
    """Save the file again with other tensors or other entries of the header; an entry of None is left out."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    old = json.loads(data[8 : 8 + length])["__metadata__"]
    new = {name: value for name, value in (old | header).items() if value is not None}
    save_file(load_file(path) if tensors is None else tensors, path, metadata=new)


def config(**changes):
    return json.dumps(CONFIGS["1d"].to_dict() | changes)


DAMAGES = {
    "empty": (lambda data: b"", r"m\.safetensors is empty: fetch it again$"),
    "cut in the header": (
        lambda data: data[:50],
        r"a header of [\d,]+ bytes in a file of 50: it is cut short or damaged",
    ),
    "cut in the tensors": (lambda data: data[: len(data) // 2], "is a safetensors file cut short or damaged: .*again$"),
    "a byte too many": (lambda data: data + b"x", "is a safetensors file cut short or damaged"),
    "huge header": (lambda data: struct.pack("<Q", 2**62) + data[8:], r"a header of 4,611,686,018,427,387,904 bytes"),
    "no JSON": (lambda data: data[:8] + b"x" * (len(data) - 8), r"m\.safetensors is no weights file"),
    "text": (lambda data: b"this is no model" * 9, r"is no weights file \(144 bytes, the first are b'this is '\)"),
    "pickle": (lambda data: b"\x80\x02}q\x00.", r"\(6 bytes\) is a checkpoint of torch\.save cut short or damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files(path, name):
    damage, message = DAMAGES[name]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        load_model(path)


def test_checkpoints_of_other_things(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "m.pt")
    with pytest.raises(
        ValueError, match=r"m\.pt is no Vision Transformer that ndvit can read: with 1 tensors such as a"
    ):
        load_model(tmp_path / "m.pt")


def test_without_its_header_it_is_a_file_of_timms_layout(path):
    with_header = load_model(path)
    rewrite(path, ndvit=None)
    with pytest.raises(
        ValueError, match="do not tell the number of heads, and a width of 32 has no usual one: say num"
    ):
        load_model(path)
    without = load_model(path, num_heads=4)
    assert without.config == replace(with_header.config, stem_numerics="timm")  # of no stem
    assert (without.load_report.kind, without.classes) == ("timm", ())
    x = torch.randn(2, 2, 16)
    with torch.no_grad():
        assert torch.equal(without(x), with_header(x))


def test_what_is_untrained_travels(tmp_path, path):
    model = load_model(path)
    assert model.untrained == ()
    model.reset_head(3)
    save_model(model, path)
    again = load_model(path)
    assert again.untrained == model.untrained == ("head.weight", "head.bias")
    rewrite(path, untrained=None)  # files of before
    assert load_model(path).untrained == ()
    rewrite(path, untrained="7")
    with pytest.raises(ValueError, match=r"m\.safetensors: the header does not describe a model"):
        load_model(path)


HEADERS = {
    "newer": ({"ndvit": "3"}, r"m\.safetensors has file format 3, this ndvit reads 1 and 2: update ndvit"),
    "no config": ({"config": None}, r"m\.safetensors: the header does not describe a model: .*config"),
    "no classes": ({"classes": None}, "the header does not describe a model: .*classes"),
    "no JSON": ({"config": "{"}, "the header does not describe a model"),
    "config of another kind": ({"config": "[1]"}, "the header does not describe a model"),
    "classes of another kind": ({"classes": "7"}, "the header does not describe a model"),
    "too few classes": ({"classes": '["a", "b"]'}, "the header does not describe a model: 2 classes for 5 outputs"),
    "unknown field": ({"config": config(droprate=0.1)}, "ViTConfig has no field 'droprate': did you mean 'drop_rate'"),
    "value": ({"config": config(num_heads=5)}, "embed_dim 32 is not divisible by num_heads 5"),
    "preprocessing": ({"preprocess": '{"kind": "sound"}'}, "preprocessing of kind 'sound' is unknown"),
    "preprocessing of another kind": ({"preprocess": "[1]"}, "the header does not describe a model"),
    "depth": ({"config": config(depth=3)}, r"tensors do not fit the config: 12 missing \(blocks\.2\..*, \.\.\.\)"),
    "fewer blocks": ({"config": config(depth=1)}, r"12 unexpected \(blocks\.1\."),
    "patch": ({"config": config(patch_size=[8])}, r"pos_embed is \(1, 5, 32\), the config needs \(1, 3, 32\)"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_bad_headers(path, name):
    header, message = HEADERS[name]
    rewrite(path, **header)
    with pytest.raises(ValueError, match=message):
        load_model(path)


def test_bad_tensors(path):
    tensors = load_file(path)
    rewrite(path, {name: t for name, t in tensors.items() if name != "norm.weight"})
    with pytest.raises(ValueError, match=r"tensors do not fit the config: 1 missing \(norm\.weight\)$"):
        load_model(path)
    rewrite(path, tensors | {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"1 unexpected \(extra\)$"):
        load_model(path)
    rewrite(path, tensors | {"head.bias": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"head\.bias is \(4,\), the config needs \(5,\)$"):
        load_model(path)
    rewrite(path, tensors)
    load_model(path)


def test_paths(path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model at .*nowhere: give a run folder or a \.safetensors file"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"empty is a folder without weights; expected model\.safetensors or one"
    ):
        load_model(tmp_path / "empty")
    (tmp_path / "broken" / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"; the run has not finished: ndvit train --resume /.*/broken$"):
        load_model(tmp_path / "broken")
    path.rename(tmp_path / "empty" / "model.safetensors")
    assert load_model(str(tmp_path / "empty")).classes == tuple("abcde")
