"""One model, one file: what is saved comes back, and every bad file has its message."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ndvit
from ndvit import VisionTransformer, ViTConfig, create_model
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.preprocess.signals import SignalPreprocess
from weightfiles import as_model, header_of, load_model, rewrite, save_model

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
    provenance = {"source": "gunpoint", "seed": 3, "test_accuracy": 0.1 + 0.2}
    classes = ("a", "ß, ü", "3", "naïve", "🙂")
    config = CONFIGS["1d"]
    if isinstance(preprocess, ImagePreprocess):
        config = replace(config, input_size=(8, 12), patch_size=4, in_channels=3)
    model = as_model(VisionTransformer(config), classes, preprocess=preprocess, provenance=provenance)
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
    ndvit.save_model(model, tmp_path / "m.safetensors")
    assert model.training


def test_what_was_set_on_a_bare_network_is_kept(tmp_path):
    """Earlier versions kept classes and preprocessing on the network."""
    network = VisionTransformer(CONFIGS["1d"])
    network.classes, network.preprocess = tuple("abcde"), SignalPreprocess((16,), (0.0, 0.0), (1.0, 2.0))
    ndvit.save_model(network, tmp_path / "m.safetensors")
    model = ndvit.load_model(tmp_path / "m.safetensors")
    assert model.classes == tuple("abcde")
    assert model.preprocess == network.preprocess


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
    save_model(as_model(VisionTransformer(CONFIGS["1d"]), "abcde"), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def network(**changes):
    return json.dumps({"kind": "vit", "config": CONFIGS["1d"].to_dict() | changes})


DAMAGES = {
    "empty": (lambda data: b"", r"m\.safetensors is empty: download it again$"),
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
        ValueError,
        match="number of heads cannot be inferred from the tensors, and a width of 32 has no usual one: set num",
    ):
        load_model(path)
    without = load_model(path, num_heads=4)
    assert without.config == replace(with_header.config, stem_numerics="timm")  # of no stem
    assert (without.load_report.kind, without.classes) == ("timm", ())
    x = torch.randn(2, 2, 16)
    with torch.no_grad():
        assert torch.equal(without(x), with_header(x))


def test_what_is_untrained_travels(tmp_path, path):
    new = ("head.weight", "head.bias")
    model = load_model(path, num_classes=3)
    save_model(model, path)
    assert load_model(path).untrained == model.untrained == new
    rewrite(path, untrained="7")
    with pytest.raises(ValueError, match=r"m\.safetensors: the header does not describe a model"):
        load_model(path)


def test_a_preprocessing_has_its_size_from_the_network(tmp_path):
    preprocess = SignalPreprocess(size=(16,), mean=(0.1, -2.0), std=(1.5, 3.0))
    save_model(as_model(VisionTransformer(CONFIGS["1d"]), preprocess=preprocess), tmp_path / "m.safetensors")
    assert "size" not in json.loads(header_of(tmp_path / "m.safetensors")["preprocess"])
    assert load_model(tmp_path / "m.safetensors").preprocess == preprocess
    with pytest.raises(ValueError, match=r"yields inputs of \(2, 20\), the network takes \(2, 16\)"):
        as_model(VisionTransformer(CONFIGS["1d"]), preprocess=replace(preprocess, size=(20,)))


def committee(*members, **more):
    equal = {"combine": "outputs", "weights": [1 / len(members)] * len(members)} if members else {}
    return {"kind": "committee", **equal, "members": list(members), **more}


VIT = {"kind": "vit", "config": CONFIGS["1d"].to_dict()}
RANDOM = {"kind": "random_convolutions", "channels": 2, "length": 16, "features": 168, "outputs": 5}


def nested(depth):
    return committee(nested(depth - 1)) if depth else VIT


HEADERS = {
    "newer": ({"ndvit": "4"}, r"m\.safetensors has file format 4, this ndvit reads 1 to 3: update ndvit"),
    "no network": ({"network": None}, "the header does not describe a model: it lacks 'network'"),
    "no task": ({"task": None}, "the header does not describe a model: it lacks 'task'"),
    "no JSON": ({"network": "{"}, "the header does not describe a model"),
    "network of another kind": ({"network": "[1]"}, "the header does not describe a model"),
    "an unknown kind": (
        {"network": '{"kind": "cnn"}'},
        "a network is a vit, random_convolutions, encoder_features, level_features, committee; got 'cnn",
    ),
    "config of another kind": ({"network": '{"kind": "vit", "config": [1]}'}, "the header does not describe a model"),
    "an unknown task": ({"task": '{"name": "poetry"}'}, "unknown task 'poetry': there are classification"),
    "classes of another kind": ({"task": '{"name": "classification", "classes": 7}'}, "does not describe a model"),
    "too few classes": (
        {"task": '{"name": "classification", "classes": ["a", "b"]}'},
        "the header does not describe a model: the task has 2 outputs, the network 5",
    ),
    "unknown field": (
        {"network": network(droprate=0.1)},
        "ViTConfig has no field 'droprate': did you mean 'drop_rate'",
    ),
    "value": ({"network": network(num_heads=5)}, "embed_dim 32 is not divisible by num_heads 5"),
    "preprocessing": ({"preprocess": '{"kind": "sound"}'}, "preprocessing of kind 'sound' is unknown"),
    "preprocessing of another kind": ({"preprocess": "[1]"}, "the header does not describe a model"),
    "depth": ({"network": network(depth=3)}, r"tensors do not fit the config: 12 missing \(blocks\.2\..*, \.\.\.\)"),
    "fewer blocks": ({"network": network(depth=1)}, r"12 unexpected \(blocks\.1\."),
    "patch": ({"network": network(patch_size=[8])}, r"pos_embed is \(1, 5, 32\), the config needs \(1, 3, 32\)"),
    "no members": ({"network": json.dumps(committee())}, "a committee needs at least one member"),
    "too deep": ({"network": json.dumps(nested(5))}, "committees nest at most 4 deep"),
    "too many": ({"network": json.dumps(committee(*[RANDOM] * 1001))}, "at most 1,000 networks"),
    "a huge signal": ({"network": json.dumps(RANDOM | {"length": 10**12})}, "length must be a whole number from 1 to"),
    "half a feature": ({"network": json.dumps(RANDOM | {"features": 168.5})}, "features must be a whole number"),
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
    with pytest.raises(FileNotFoundError, match=r"no model at .*nowhere: use a run folder or a \.safetensors file"):
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
