"""The table of published weights agrees with the libraries that publish them."""

import re
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
import torch

import ndvit._torchvision  # noqa: F401

# isort: split
import timm
import torchvision
from timm.models import get_pretrained_cfg

from ndvit.config import ViTConfig
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.weights.reading.zoo import Weights, find_weights, list_weights, near_weights

ROWS = [find_weights(name) for name in list_weights()]
TIMM = [row for row in ROWS if row.repo and row.repo.startswith("timm/")]
SIGNALS = [row for row in ROWS if len(row.mean) == 1]
ORIGINAL = [row for row in ROWS if row.name.startswith(("facebook/", "google/"))]
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "swiglu"}
CLASSES = {1000: "imagenet-1k", 21843: "imagenet-21k"}
# one of each kind of row; building every network, even of no weight, would take minutes
BUILT = [
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit_giant_patch14_reg4_dinov2.lvd142m",
    "vit_small_r26_s32_224.augreg_in21k",
    "deit_small_distilled_patch16_224.fb_in1k",
    "deit3_medium_patch16_224.fb_in1k",
    "vit_base_patch32_clip_224.openai",
    "vit_base_patch32_clip_quickgelu_224.openai",
    "vit_base_patch16_siglip_224.webli",
    "vit_base_patch32_siglip_256.v2_webli",
    "vit_base_patch16_siglip_gap_224.webli",
    "eva_large_patch14_196.in22k_ft_in1k",
    "vit_small_patch16_dinov3.lvd1689m",
    "vit_small_plus_patch16_dinov3.lvd1689m",
]


def test_the_table_is_whole():
    assert len(ROWS) == 412
    assert len({row.name for row in ROWS}) == len(ROWS)
    kinds = Counter(row.name.partition("/")[0] if "/" in row.name else "timm" for row in ROWS)
    assert kinds == {"timm": 317, "facebook": 42, "google": 37, "torchvision": 10, "mantis": 4, "ast": 2}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_is_well_formed(row):
    network, _, tag = row.name.rpartition(".")
    assert network
    assert tag, "a name needs a tag"
    assert (row.url is None) == (row.repo is not None) == (row.file is not None)
    assert row.url is None or re.fullmatch(r"https://[\w./-]+\.(pth|npz)", row.url)
    assert row.sha256 is None or re.fullmatch("[0-9a-f]{8,64}", row.sha256)
    assert row.licence
    assert (row.top1 is None) == (not row.top1_source)
    assert row.top1 is None or (70 < row.top1 < 90 and row.classes == "imagenet-1k")
    for name in ("interpolation", "resize", "classes"):
        assert getattr(row, name) in get_args(get_type_hints(Weights)[name])
    known = {f.name for f in fields(ViTConfig)}
    assert set(row.config) <= known
    assert {"num_heads", "norm_eps", "activation", "pooling"} <= set(row.config)
    # the preprocessing is one that can be built, and cuts what the picture was resized for
    if row in SIGNALS:
        assert SignalPreprocess(size=row.input_size, mean=row.mean, std=row.std).channels == 1
        return
    made = ImagePreprocess(
        size=row.input_size,
        mean=row.mean,
        std=row.std,
        interpolation=row.interpolation,
        crop_fraction=row.crop_fraction,
    )
    assert made.channels == 3


@pytest.mark.parametrize("row", TIMM, ids=lambda row: row.name)
def test_timm_agrees(row):
    cfg = get_pretrained_cfg(row.name)
    assert cfg.hf_hub_id == row.repo
    assert (cfg.hf_hub_filename or "model.safetensors") == row.file
    assert (cfg.license or "unknown") == row.licence
    assert (3, *row.input_size) == cfg.input_size
    assert (row.mean, row.std) == (cfg.mean, cfg.std)
    assert (row.interpolation, row.crop_fraction) == (cfg.interpolation, cfg.crop_pct)
    assert {"cover": "center", "stretch": "squash"}[row.resize] == cfg.crop_mode
    assert row.classes == CLASSES.get(cfg.num_classes, "")


@pytest.mark.parametrize("row", ORIGINAL, ids=lambda row: row.name)
def test_original_releases_are_those_that_timm_was_made_from(row):
    maker, _, name = row.name.partition("/")
    if name.endswith("mae_ft_in1k"):  # which timm does not have
        assert row.config["pooling"] == "avg"
        return
    cfg, ported = get_pretrained_cfg(name), find_weights(name)
    assert cfg.url == row.url
    assert (row.licence, row.classes) == (ported.licence, ported.classes)
    assert (row.input_size, row.mean, row.std) == (ported.input_size, ported.mean, ported.std)
    if maker == "google":  # vit_jax: flax's gelu, and the picture stretched to the square
        assert (row.config["activation"], row.resize, row.crop_fraction) == ("gelu_tanh", "stretch", 1)
    else:
        assert row.config == ported.config
    assert row.config.get("stem_numerics") == ("google" if maker == "google" and re.search(r"_r\d*_s", name) else None)


@pytest.mark.parametrize("name", BUILT)
def test_timm_builds_the_network_of_the_row(name):
    row = find_weights(name)
    with torch.device("meta"):
        model = timm.create_model(name.partition(".")[0])
    block, config = model.blocks[0], row.config
    assert block.attn.num_heads == config["num_heads"]
    assert block.norm1.eps == config["norm_eps"]
    assert ACTIVATIONS[type(block.mlp.act).__name__] == config["activation"]
    after = isinstance(model.fc_norm, torch.nn.LayerNorm)
    assert model.global_pool == {"norm_avg": "avg"}.get(config["pooling"], config["pooling"])
    assert after == (config["pooling"] == "avg")
    assert ("pos_embed" in config) == (model.pos_embed is None)
    assert ("stem_numerics" in config) == (type(model.patch_embed).__name__ == "HybridEmbed")


def test_torchvision_agrees():
    builders = [
        torchvision.models.get_model_weights(f"vit_{size}") for size in ("b_16", "b_32", "l_16", "l_32", "h_14")
    ]
    theirs = {f"torchvision/{w.url.split('/')[-1][:8]}.{w.name.lower()}": w for kind in builders for w in kind}
    assert set(theirs) == {row.name for row in ROWS if row.name.startswith("torchvision/")}
    for name, weights in theirs.items():
        row, transform = find_weights(name), weights.transforms()
        assert row.url == weights.url
        assert row.sha256 == weights.url.rpartition("-")[2].removesuffix(".pth")
        assert len(row.sha256) == 8
        assert row.top1 == weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert row.input_size == (transform.crop_size[0],) * 2
        assert int(row.input_size[0] / row.crop_fraction + 1e-6) == transform.resize_size[0]
        assert row.interpolation == transform.interpolation.value
        assert (list(row.mean), list(row.std)) == (transform.mean, transform.std)
        assert row.licence == ("cc-by-nc-4.0" if "swag" in name else "bsd-3-clause")


def test_numbers_that_were_published():
    """A few by hand, against slips of a row when the table was written."""
    published = {
        "vit_tiny_patch16_224.augreg_in21k_ft_in1k": 75.452,
        "vit_large_patch16_384.augreg_in21k_ft_in1k": 87.096,
        "vit_small_r26_s32_384.augreg_in21k_ft_in1k": 84.066,
        "vit_base_patch32_384.augreg_in1k": 78.750,
        "facebook/deit_base_distilled_patch16_384.fb_in1k": 85.224,
        "deit3_huge_patch14_224.fb_in22k_ft_in1k": 87.2,
        "facebook/vit_huge_patch14_224.mae_ft_in1k": 86.928,
        "torchvision/vit_h_14.imagenet1k_swag_e2e_v1": 88.552,
        "vit_base_patch16_224.mae": None,
    }
    assert {name: find_weights(name).top1 for name in published} == published


def test_digests_come_from_file_names_that_carry_them():
    assert find_weights("facebook/deit_tiny_patch16_224.fb_in1k").sha256 == "a1311bcf"
    assert all(row.sha256 is None for row in ROWS if row.name.startswith("google/"))  # ...-res_224.npz is no digest


def test_a_row_may_name_file_and_revision():
    utica = find_weights("mantis/mantis_8m.utica")
    assert (utica.repo, utica.file) == ("fegounna/Utica", "pytorch_model.bin")
    assert utica.revision == "3cff4f954191b5bf9839b7a41117e2b24e7693ab"
    mantis = find_weights("mantis/mantis_8m.real")
    assert (mantis.repo, mantis.file, mantis.revision) == ("paris-noah/Mantis-8M", "model.safetensors", None)


def test_signals_have_one_axis_and_spectrograms_two():
    assert {row.name.partition("/")[0]: len(row.input_size) for row in SIGNALS} == {"mantis": 1, "ast": 2}
    assert find_weights("mantis/mantis_v2.cauker_2m").input_size == (512,)


def test_names_without_a_tag_are_none():
    assert find_weights("vit_base_patch16_224") is None
    assert find_weights("") is None
    near = near_weights("vit_base_patch16_384")
    assert near == [f"vit_base_patch16_384.{t}" for t in ("augreg_in21k_ft_in1k", "orig_in21k_ft_in1k", "augreg_in1k")]
    assert near_weights("torchvision/vit_b_16.imagenet_v1")[0] == "torchvision/vit_b_16.imagenet1k_v1"
    assert near_weights("nonsense") == []


def test_rows_cannot_be_changed():
    with pytest.raises(TypeError):
        find_weights(BUILT[0]).config["num_heads"] = 1


def test_the_table_itself_needs_no_torch():
    code = "import sys, runpy; runpy.run_path(sys.argv[1]); print(*sys.modules)"
    path = sys.modules["ndvit.weights.reading.zoo"].__file__
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "huggingface_hub", "jinja2"} & set(done.stdout.split())
