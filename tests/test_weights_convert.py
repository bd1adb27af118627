"""Networks written for timm, transformers and torchvision, and loaded by the real libraries."""

import json
from functools import partial

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

from ndvit import VisionTransformer, ViTConfig, export_state_dict
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.network.committee import Committee
from ndvit.weights.layouts.libraries import library_arguments
from weightfiles import as_model, load_model

SMALL = {"input_size": (32, 32), "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 7}
REGISTERS = {"layer_scale": 0.1, "num_registers": 4, "pos_embed_prefix": False}
DINO_HEAD = {"layer_scale": 0.1, "pooling": "token_avg"}
HYBRID = {"stem": "resnet", "stem_numerics": "timm", "input_size": (64, 64)}

# name: (fields, the libraries that have such a network)
CASES = {
    "plain": ({}, "timm transformers torchvision"),
    "not square": ({"input_size": (32, 16)}, "timm transformers"),
    "patch not square": ({"patch_size": (8, 4)}, "timm transformers"),
    "one channel": ({"in_channels": 1}, "timm transformers"),
    "no qkv bias": ({"qkv_bias": False}, "timm transformers"),
    "fixed positions": ({"pos_embed": "sincos"}, "timm transformers torchvision"),
    "no head": ({"num_classes": 0}, "timm transformers"),
    "distilled": ({"distilled": True}, "timm transformers"),
    "tanh": ({"activation": "gelu_tanh"}, "timm transformers"),
    "quick": ({"activation": "quick_gelu"}, "timm transformers"),
    "swiglu": ({"activation": "swiglu", "layer_scale": 0.1}, "timm"),
    "wide eps": ({"norm_eps": 1e-5}, "timm transformers torchvision"),
    "narrow eps": ({"norm_eps": 1e-12}, "transformers torchvision"),
    "mlp ratio": ({"mlp_ratio": 2.5}, "timm transformers torchvision"),
    "qk norm": ({"qk_norm": True}, "timm"),
    "average": ({"pooling": "avg"}, "timm"),
    "average of normed": ({"pooling": "norm_avg", "class_token": False, "pos_embed_prefix": False}, "timm"),
    "attention pooling": ({"pooling": "map", "class_token": False}, "timm"),
    "layer scale": ({"layer_scale": 0.1}, "timm"),
    "registers": (REGISTERS, "timm"),
    "dinov2": ({"layer_scale": 0.1, "num_classes": 0}, "timm transformers"),
    "dinov2 with registers": (REGISTERS | {"num_classes": 0}, "timm transformers"),
    "dinov2 classifier": (DINO_HEAD, "transformers"),
    "dinov2 classifier with registers": (DINO_HEAD | REGISTERS, "transformers"),
    "clip": ({"pre_norm": True, "norm_eps": 1e-5, "activation": "quick_gelu"}, "timm"),
    "representation": ({"representation_size": 32}, "torchvision"),
    "pooler": ({"representation_size": 64, "num_classes": 0}, "transformers"),
    "hybrid": (HYBRID | {"stem_depths": (2, 2, 2, 2), "patch_size": 1}, "timm"),
    "hybrid root": (HYBRID | {"stem_depths": (), "patch_size": 8}, "timm"),
    "another scale": ({"qk_scale": 0.5}, ""),
    "merged tokens": ({"merge_tokens": 2}, ""),
    "patch norm": ({"patch_norm": True}, ""),
    "signal": ({"input_size": (32,)}, ""),
    "rope": ({"pos_embed": "rope"}, ""),
    "google's stem": (HYBRID | {"stem_depths": (), "patch_size": 8, "stem_numerics": "google"}, ""),
}
LIBRARIES = ("timm", "transformers", "torchvision")
PAIRS = [(name, library) for name, (_, there) in CASES.items() for library in LIBRARIES if library in there.split()]
REFUSED = [(name, library) for name in CASES for library in LIBRARIES if (name, library) not in PAIRS]


def network(name):
    torch.manual_seed(3)
    model = VisionTransformer(ViTConfig(**{**SMALL, **CASES[name][0]})).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.3 if parameter.ndim == 1 else 0.0, 0.1)
    if model.config.pre_norm:
        nn.init.zeros_(model.patch_embed.proj.bias)
    preprocess = None
    if model.config.in_channels == 3 and len(model.config.input_size) == 2:
        size = model.config.input_size
        resize = "cover" if size[0] == size[1] else "stretch"
        preprocess = ImagePreprocess(size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), crop_fraction=0.8, resize=resize)
    return as_model(model, "abcdefg"[: model.config.num_classes], preprocess=preprocess)


def theirs(arguments, library):
    """The other library's network, new."""
    if library == "timm":
        return timm.create_model(**arguments).eval()
    if library == "torchvision":
        eps = arguments.pop("norm_eps")
        return torchvision.models.VisionTransformer(**arguments, norm_layer=partial(nn.LayerNorm, eps=eps)).eval()
    name = arguments.pop("architectures")[0]
    config = transformers.AutoConfig.for_model(**arguments)
    return getattr(transformers, name)(config).eval()


def answer(model, x):
    with torch.no_grad():
        out = model(x)
    if torch.is_tensor(out):
        return out
    if hasattr(out, "logits"):
        return out.logits
    return out.last_hidden_state[:, 0] if out.pooler_output is None else out.pooler_output


@pytest.mark.parametrize(("name", "library"), PAIRS)
def test_the_real_library_loads_it_strictly_and_answers_alike(name, library):
    ours = network(name)
    tensors = export_state_dict(ours, library)
    arguments = library_arguments(ours.network, library)
    if library == "transformers":
        arguments |= {"num_labels": ours.config.num_classes}
    other = theirs(arguments, library)
    if library == "transformers" and name == "no head":
        tensors |= {n: t for n, t in other.state_dict().items() if n.startswith("pooler.")}  # a ViTModel's option
    other.load_state_dict(tensors, strict=True)
    x = torch.randn(2, ours.config.in_channels, *ours.config.input_size)
    expected = answer(ours, x)
    got = other(x).last_hidden_state[:, 0] if (library, name) == ("transformers", "no head") else answer(other, x)
    assert expected.std() > 0.05  # the comparison would be empty if every output were the same
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("name", "library"), REFUSED)
def test_what_a_library_lacks_is_refused(name, library):
    with pytest.raises(ValueError, match=f"{library} has no such Vision Transformer: it lacks "):
        export_state_dict(network(name), library)


@pytest.mark.parametrize(("name", "library"), [pair for pair in PAIRS if pair[1] != "torchvision"])
def test_a_folder_is_all_that_the_library_needs(name, library, tmp_path):
    ours = network(name)
    export_state_dict(ours, library, tmp_path / "out")
    x = torch.randn(2, ours.config.in_channels, *ours.config.input_size)
    if library == "timm":
        other = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
        if ours.preprocess is not None:
            settings = timm.data.resolve_model_data_config(other)
            assert tuple(settings["mean"]) == ours.preprocess.mean
            assert settings["crop_pct"] == 0.8
        if ours.config.num_classes:  # and it can be fine-tuned there
            fresh = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=7)
            assert torch.equal(fresh.state_dict()["blocks.0.mlp.fc1.weight"], ours.blocks[0].mlp.fc1.weight)
    else:
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        kind = getattr(transformers, config["architectures"][0])
        options = {"add_pooling_layer": False} if name == "no head" else {}
        other, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True, **options)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        if ours.preprocess is not None:
            processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
            assert tuple(processor.image_std) == ours.preprocess.std
        if ours.classes:
            assert other.config.id2label[2] == "c"
    torch.testing.assert_close(answer(other.eval(), x), answer(ours, x), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("name", "library"), PAIRS)
def test_and_back(name, library, tmp_path):
    ours = network(name)
    path = tmp_path / ("w.pth" if library == "torchvision" else "folder")
    export_state_dict(ours, library, path)
    stated = {f: getattr(ours.config, f) for f in ("num_heads", "norm_eps")}
    hints = stated | {"activation": ours.config.activation, "input_size": ours.config.input_size}
    again = load_model(path, **(hints if library == "torchvision" else {}))
    x = torch.randn(2, ours.config.in_channels, *ours.config.input_size)
    torch.testing.assert_close(answer(again, x), answer(ours, x), atol=2e-5, rtol=0)
    if ours.classes and library != "torchvision":
        assert again.classes == ours.classes
    if ours.preprocess is not None and library != "torchvision":
        assert again.preprocess == ours.preprocess


def test_files(tmp_path):
    ours = network("plain")
    export_state_dict(ours, "torchvision", tmp_path / "w.pth")
    loaded = torch.load(tmp_path / "w.pth", weights_only=True)
    assert loaded.keys() == theirs(library_arguments(ours.network, "torchvision"), "torchvision").state_dict().keys()
    with pytest.raises(ValueError, match=r"torchvision reads files, not folders: use a \.pth or \.safetensors path"):
        export_state_dict(ours, "torchvision", tmp_path / "folder")
    with pytest.raises(ValueError, match="library must be one of timm, transformers, torchvision; got 'keras'"):
        export_state_dict(ours, "keras")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.pth"]  # nothing half-written stays


def test_a_preprocessing_that_transformers_lacks(tmp_path):
    ours = network("not square")
    ours.preprocess = ImagePreprocess((32, 16), (0.5,) * 3, (0.2,) * 3)
    with pytest.raises(ValueError, match=r"no preprocessing that covers 32 x 16 pixels and crops: write a \.safe"):
        export_state_dict(ours, "transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_state_dict(ours, "transformers", tmp_path / "out.safetensors")


def test_a_bias_of_patches_cannot_be_dropped():
    ours = network("clip")
    nn.init.ones_(ours.patch_embed.proj.bias)
    with pytest.raises(ValueError, match="it lacks a bias of patches before pre_norm"):
        export_state_dict(ours, "timm")


def test_the_export_is_a_copy():
    ours = network("plain")
    tensors = export_state_dict(ours, "transformers")
    before = ours.blocks[0].attn.qkv.weight.clone()
    tensors["vit.layers.0.attention.q_proj.weight"].zero_()
    assert torch.equal(ours.blocks[0].attn.qkv.weight, before)


def test_other_libraries_have_no_committees():
    ours = Committee([network("plain").network] * 2, combine="probabilities")
    for model in (ours, as_model(ours)):
        with pytest.raises(
            ValueError, match=r"timm has no Committee: export one Vision .*model\.network\.members\[0\]"
        ):
            export_state_dict(model, "timm")


def test_a_bare_network_can_be_exported(tmp_path):
    ours = network("plain")
    export_state_dict(ours.network, "timm", tmp_path / "out")
    assert "label_names" not in json.loads((tmp_path / "out" / "config.json").read_text())
    with pytest.raises(FileExistsError, match="out exists: choose another output, or replace it with --force"):
        export_state_dict(ours.network, "timm", tmp_path / "out")
    export_state_dict(ours.network, "timm", tmp_path / "out", force=True)
