"""Files that mean harm or make no sense: they are refused at once, in a line, and never fill the memory."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ndvit import VisionTransformer, ViTConfig, export_state_dict
from weightfiles import load_model, save_model

SMALL = {"input_size": (32, 32), "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 1, "num_classes": 5}


@pytest.fixture
def state():
    torch.manual_seed(0)
    return VisionTransformer(ViTConfig(**SMALL)).state_dict()


def refused(path, match):
    with pytest.raises(ValueError, match=match) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "name",
    [
        "blocks.1000000000.norm1.weight",
        "blocks.x.norm1.weight",
        "patch_embed.backbone.stages.0.blocks.1000000000.conv1.weight",
        "patch_embed.backbone.stages.1000000000.blocks.0.conv1.weight",
    ],
)
def test_a_name_does_not_make_a_billion_parts(state, tmp_path, name):
    save_file(state | {name: torch.ones(64)}, tmp_path / "w.safetensors")
    refused(tmp_path / "w.safetensors", "missing|unexpected")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 900}, "claims 900 blocks and has 20 tensors"),
        ({"depth": 10**9}, "depth must be at most 1,000, got 1000000000"),
        ({"stem": "resnet", "stem_depths": [999], "patch_size": [1, 1]}, "claims 1,000 blocks"),
        ({"stem": "resnet", "stem_depths": [10**9], "patch_size": [1, 1]}, "have 1,000,000,000 units in all"),
        ({"embed_dim": 10**15 + 37, "num_heads": 3}, "embed_dim must be at most 65,536"),
        ({"input_size": [10**18 + 9, 32], "patch_size": [7, 8]}, "input_size must be at most 1,000,000,000"),
        ({"input_size": [2**20, 2**20]}, "has 3,298,534,883,328 values"),
        ({"input_size": [2**15, 2**15]}, "has 16,777,216 patches"),
        ({"qk_scale": 1e300}, "qk_scale must be at most 1,000, got 1e[+]300"),
        ({"norm_eps": float("nan")}, "norm_eps must be a positive number, got nan"),
        ({"layer_scale": "1"}, "layer_scale must be a positive number, got '1'"),
        ({"drop_rate": 2}, "drop_rate must be a number of at least 0 and below 1, got 2"),
    ],
)
def test_a_header_does_not_either(state, tmp_path, fields, message):
    model = VisionTransformer(ViTConfig(**SMALL))
    config = json.dumps(model.config.to_dict() | fields)
    header = {"ndvit": "1", "config": config, "classes": "[]", "preprocess": "null", "provenance": "{}"}
    save_file(state, tmp_path / "w.safetensors", metadata=header)
    refused(tmp_path / "w.safetensors", message)


def test_a_deep_header(state, tmp_path):
    header = {"ndvit": "1", "config": "[" * 100_000, "classes": "[]", "preprocess": "null", "provenance": "{}"}
    save_file(state, tmp_path / "w.safetensors", metadata=header)
    refused(tmp_path / "w.safetensors", "the header does not describe a model")


def test_an_array_of_many_empty_layers(tmp_path):
    names = {"Transformer/encoderblock/LayerNorm_0/scale": np.zeros((10**9, 0), np.float32)}
    names |= {"embedding/kernel": np.zeros((8, 8, 3, 64)), "Transformer/encoder_norm/scale": np.ones(64)}
    np.savez(tmp_path / "w.npz", **names)
    refused(tmp_path / "w.npz", "lacks blocks.0.norm1.weight")


ODD = {
    "class token": ("cls_token", ()),
    "positions": ("pos_embed", (17,)),
    "head": ("head.weight", ()),
    "first layer": ("blocks.0.mlp.fc1.weight", ()),
    "last layer": ("blocks.0.mlp.fc2.weight", (64,)),
    "patches": ("patch_embed.proj.weight", (0, 3, 8, 8)),
    "patches flat": ("patch_embed.proj.weight", (64, 192)),
    "registers": ("reg_token", ()),
    "representation": ("pre_logits.fc.weight", ()),
}


@pytest.mark.parametrize(("name", "shape"), ODD.values(), ids=ODD)
def test_odd_shapes_are_one_line(state, tmp_path, name, shape):
    save_file(state | {name: torch.zeros(shape)}, tmp_path / "w.safetensors")
    refused(tmp_path / "w.safetensors", "w.safetensors")


def test_missing_biases_are_not_made_up(state, tmp_path):
    for name, message in (
        ("head.bias", "it has weight"),
        ("patch_embed.proj.bias", r"1 missing \(patch_embed.proj.bias"),
    ):
        save_file({n: t for n, t in state.items() if n != name}, tmp_path / "w.safetensors")
        refused(tmp_path / "w.safetensors", message)


def test_long_names(state, tmp_path):
    save_file(state | {"[0]" * 30_000 + "\n": torch.ones(1)}, tmp_path / "w.safetensors")
    refused(tmp_path / "w.safetensors", "names of tensors of over 500 characters")


def test_escapes_in_names_are_not_printed(state, tmp_path):
    save_file(state | {"\x1b[31mred": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="1 unexpected") as caught:
        load_model(tmp_path / "w.safetensors")
    assert "\x1b" not in str(caught.value)


def test_expanded_tensors(state, tmp_path):
    torch.save(state | {"norm.weight": torch.ones(1).expand(10**9)}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", r"'norm.weight' is an expanded tensor of shape \(1000000000,\)")


def test_values_that_are_no_numbers(state, tmp_path):
    state["blocks.0.norm1.weight"][3] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    refused(tmp_path / "w.safetensors", r"blocks\.0\.norm1\.weight hold NaN or infinity: the weights are damaged")


def test_a_file_under_another_ending(state, tmp_path):
    torch.save(state, tmp_path / "w.safetensors")  # a checkpoint of torch's under the name of the other format
    assert load_model(tmp_path / "w.safetensors").load_report.new == ()
    save_file(state, tmp_path / "w.pth")
    assert load_model(tmp_path / "w.pth").load_report.new == ()


def test_a_source_is_a_name_or_a_path():
    with pytest.raises(ValueError, match="weights are a path, a name or hf:owner/name, got NoneType"):
        load_model(None)


STRAY = {
    "a training script's": {"architecture": "vit_base", "input_size": 224},
    "a size in words": {"architecture": "vit_base_patch16_224", "model_args": {"patch_size": "8"}},
    "another activation": {"model_type": "vit", "hidden_act": "relu"},
    "an impossible crop": {"architecture": "vit_x", "pretrained_cfg": {"crop_pct": 1.2, "mean": [0.5], "std": [0.5]}},
    "global pooling": {"architecture": "vit_x", "global_pool": "avgmax"},
}


@pytest.mark.parametrize("config", STRAY.values(), ids=STRAY)
def test_a_stray_config_says_what_to_do(state, tmp_path, config):
    save_file(state, tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path / "w.safetensors", "Correct it, or move config.json away from the weights")


def test_a_stale_pooling_does_not_overrule_the_tensors(tmp_path):
    model = VisionTransformer(ViTConfig(**SMALL, pooling="avg"))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "vit_base_patch16_224", "global_pool": "token"}')
    assert load_model(tmp_path / "w.safetensors").config.pooling == "avg"


def test_a_network_that_only_its_name_tells_apart(state, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "vit_base_patch16_rpn_224"}')
    refused(tmp_path / "w.safetensors", "is of vit_base_patch16_rpn_224, whose blocks are not those of a plain ViT")


def test_devices_are_tried_first(tmp_path):
    save_model(VisionTransformer(ViTConfig(**SMALL)), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="device 'bogus' is not available"):
        load_model(tmp_path / "w.safetensors", "bogus")


def test_another_default_type_does_not_leak_in(tmp_path):
    save_model(VisionTransformer(ViTConfig(**SMALL)), tmp_path / "w.safetensors")
    torch.set_default_dtype(torch.float64)
    try:
        model = load_model(tmp_path / "w.safetensors", num_classes=3, input_size=64)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


def test_naming_the_outputs_of_a_file_without_names_keeps_its_head(state, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    model = load_model(tmp_path / "w.safetensors", classes=list("abcde"))
    assert (model.classes, model.untrained) == (tuple("abcde"), ())
    assert torch.equal(model.head.weight, state["head.weight"])
    assert load_model(tmp_path / "w.safetensors", classes=list("abc")).untrained == ("head.weight", "head.bias")


def test_exported_files_are_as_readable_as_any(state, tmp_path):
    model = VisionTransformer(ViTConfig(**SMALL))
    export_state_dict(model, "timm", tmp_path / "w.safetensors")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert load_file(tmp_path / "w.safetensors").keys() == state.keys()
    for path, message in (("w.bin", "are written to .safetensors, .pth, .pt or a folder"), ("no/w.pth", "there is no")):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            export_state_dict(model, "timm", tmp_path / path)
    assert sorted(os.listdir(tmp_path)) == ["plain", "w.safetensors"]


def test_divisors_of_large_numbers():
    with pytest.raises(ValueError, match="use 2, 3, 4 or 6 heads"):
        ViTConfig(embed_dim=24, num_heads=5)
