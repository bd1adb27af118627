"""Configs, recipes and names: defaults, derived values, and a message with the remedy for every invalid value."""

from dataclasses import fields

import numpy as np
import pytest
import yaml

from ndvit.config import (
    COMPACT_SIZES,
    SIGNAL_SIZES,
    SIZES,
    Recipe,
    SolvedOptions,
    ViTConfig,
    default_features,
    list_models,
    named_config,
    plan_grid,
    split_legacy,
    split_options,
)
from ndvit.config.bounds import Options
from ndvit.config.names import ENCODER_SIZES

INVALID = {
    "heads do not divide": (dict(embed_dim=100, num_heads=12), r"not divisible by num_heads 12: use .*10"),
    "patch does not divide": (dict(input_size=(225, 224)), r"along axis 0 \(225 = 14 x 16 \+ 1\): use an input of 224"),
    "patch axes": (dict(input_size=(8, 8), patch_size=(2, 2, 2)), r"has 3 axes but input_size \(8, 8\) has 2"),
    "four dimensions": (dict(input_size=(4, 4, 4, 4), patch_size=2), "one, two or three dimensions"),
    "no dimensions": (dict(input_size=()), "input_size is empty"),
    "size of text": (dict(input_size="224"), "input_size must be a whole number of at least 1, got '224'"),
    "size zero": (dict(input_size=(0,)), "at least 1, got 0"),
    "size true": (dict(input_size=True), "got True"),
    "patch fraction": (dict(patch_size=1.5), "patch_size must be a whole number"),
    "depth zero": (dict(depth=0), "depth must be a whole number of at least 1, got 0"),
    "depth text": (dict(depth="12"), "got '12'"),
    "channels": (dict(in_channels=-1), "in_channels must be"),
    "classes": (dict(num_classes=-1), "num_classes must be a whole number of at least 0"),
    "registers": (dict(num_registers=-2), "num_registers must be"),
    "representation": (dict(representation_size=0), "representation_size must be"),
    "ratio": (dict(mlp_ratio=0), "mlp_ratio must be a positive number, got 0"),
    "scale": (dict(qk_scale=-1.0), "qk_scale must be a positive number"),
    "epsilon": (dict(norm_eps=float("inf")), "norm_eps must be a positive number"),
    "layer scale": (dict(layer_scale=0.0), "layer_scale must be a positive number"),
    "dropout": (dict(drop_rate=1.0), "^drop_rate must be a number of at least 0 and below 1, got 1.0"),
    "drop path": (dict(drop_path_rate=-0.1), "drop_path_rate must be a number of at least 0 and below 1, got -0.1"),
    "attention dropout": (dict(attn_drop_rate="a"), "attn_drop_rate must be a number"),
    "flag": (dict(qkv_bias="yes"), "qkv_bias must be true or false, got 'yes'"),
    "positions": (dict(pos_embed="alibi"), "pos_embed must be one of learned, sincos, rope, xpos; got 'alibi'"),
    "pooling": (dict(pooling="max"), "one of token, avg, norm_avg, token_avg, prefix_avg, map, stem_tokens; got"),
    "initial weights": (dict(weight_init="xavier"), "weight_init must be one of article, balanced"),
    "activation": (dict(activation="relu"), "activation must be one of gelu, gelu_tanh, quick_gelu, swiglu"),
    "sincos width": (dict(pos_embed="sincos", embed_dim=6, num_heads=1), "divisible by 4, got 6"),
    "distilled representation": (
        dict(distilled=True, representation_size=8),
        "representation_size=8 and distilled=True exclude each other: .* representation_size=None or distilled=False",
    ),
    "distilled pooling": (dict(distilled=True, pooling="avg"), "distilled needs class_token=True and pooling='token'"),
    "no token to pool": (dict(class_token=False), "set class_token=True, or pooling='avg' or 'map'"),
    "half a token to pool": (dict(class_token=False, pooling="token_avg"), "pooling='token_avg' reads the class token"),
    "stem": (
        dict(stem="convnet"),
        "stem must be one of none, resnet, .*, difference, mantis; got 'convnet'",
    ),
    "light stem without groups": (dict(stem="residual", stem_depths=()), r"at least one group, for example \(3,\)"),
    "strides of no stem": (dict(stem_strides=2), r"stem_strides \(2,\) .* stem='none' is no stem: leave them out"),
    "strides of a resnet": (
        dict(stem="resnet", patch_size=1, stem_strides=(2,)),
        "stem='resnet' halves its grid by itself: leave them out, or set stem='inception'",
    ),
    "more strides than groups": (
        dict(stem="inception", stem_depths=(3,), stem_strides=(2, 2)),
        r"stem_strides \(2, 2\) has 2 strides for 1 groups \(stem_depths \(3,\)\)",
    ),
    "stride zero": (dict(stem="inception", stem_strides=(0,)), "stem_strides must be a whole number of at least 1"),
    "stride of a light stem": (
        dict(stem="inception", input_size=(50,), patch_size=2, stem_strides=(2, 2)),
        r"behind a stem of stride 4 along axis 0 \(50 = 6 x 8 \+ 2\): use an input of 48 or 56$",
    ),
    "even kernel": (dict(stem="inception", stem_kernel=8), "stem_kernel 8 must be odd: use 7 or 9"),
    "no dilations": (dict(stem="inception", stem_dilations=()), "stem_dilations is empty"),
    "many dilations": (dict(stem="inception", stem_dilations=(1,) * 9), "has 9 branches: a module has at most eight"),
    "overlap flag": (dict(patch_overlap=1), "patch_overlap must be true or false, got 1"),
    "relative flag": (dict(relative_bias="yes"), "relative_bias must be true or false, got 'yes'"),
    "pooled stem": (dict(pooling="stem_tokens"), "pooling='stem_tokens' reads the output of a stem, and there is none"),
    "head of no stem": (dict(stem_head=True), "stem_head=True reads the output of a stem, .* set stem='inception'"),
    "head norm": (dict(head_norm="group"), "head_norm must be one of none, batch, layer; got 'group'"),
    "kind of norm": (dict(norm="batch"), "norm must be one of layer, rms; got 'batch'"),
    "no prefix to pool": (dict(class_token=False, pooling="prefix_avg"), "set class_token=True or num_registers"),
    "width of a head": (dict(pos_embed="xpos", head_dim=6), "head width divisible by 4, got head_dim 6"),
    "channels of mantis": (
        dict(stem="mantis", input_size=64, patch_size=1, stem_strides=16),
        "in_channels is 3, but the mantis stem reads one channel: train on one channel",
    ),
    "units of mantis": (
        dict(stem="mantis", input_size=64, patch_size=1, in_channels=1, stem_depths=(1, 1)),
        r"stem_depths is \(1, 1\), but the mantis stem has one unit",
    ),
    "windows of mantis": (
        dict(stem="mantis", input_size=64, patch_size=1, in_channels=1),
        "standard deviation from 2 samples on: set stem_strides=16",
    ),
    "width of mantis": (
        dict(stem="mantis", input_size=64, patch_size=1, in_channels=1, stem_strides=16, stem_width=12),
        "stem_width 12 is not a multiple of 8",
    ),
    "axes of a step": (dict(patch_stride=(4, 4, 4)), r"patch_stride \(4, 4, 4\) has 3 axes but input_size"),
    "step beyond the patch": (dict(patch_stride=17), r"patch_stride \(17, 17\) is larger than patch_size \(16, 16\)"),
    "input below a patch": (dict(input_size=(8, 224), patch_stride=4), "is smaller than a patch of"),
    "two overlaps": (dict(patch_overlap=True, patch_stride=8), "exclude each other: both let patches overlap"),
    "merged xpos": (dict(merge_tokens=2, pos_embed="xpos"), "exclude each other: merged tokens have no position"),
    "head dropout": (dict(head_drop=1), "head_drop must be a number"),
    "distilled stem head": (
        dict(stem="residual", distilled=True, stem_head=True),
        "distilled=True and stem_head=True exclude each other: training returns one pair",
    ),
    "distilled norm": (
        dict(distilled=True, head_norm="batch"),
        "distilled=True and head_norm='batch' exclude each other",
    ),
    "stem numerics": (dict(stem_numerics="jax"), "stem_numerics must be one of google, timm; got 'jax'"),
    "stem depths": (dict(stem_depths=(2, 0)), "stem_depths must be a whole number of at least 1, got 0"),
    "stem stages": (dict(stem_depths=(1,) * 5), "has 5 stages: a resnet stem has at most four"),
    "stem width": (dict(stem="resnet", patch_size=1, stem_width=40), "stem_width 40 is not a multiple of 32"),
    "stem width zero": (dict(stem_width=0), "stem_width must be a whole number of at least 1, got 0"),
    "stem stride": (
        dict(stem="resnet", input_size=(40, 32), patch_size=1),
        r"of stride 16 along axis 0 .*of 32 or 48$",
    ),
    "rope width": (
        dict(pos_embed="rope", embed_dim=72, num_heads=12),
        "needs a head width divisible by 4, got embed_dim 7",
    ),
    "patch dropout": (dict(patch_drop_rate=1), "patch_drop_rate must be a number .* got 1"),
    "merged tokens": (dict(merge_tokens=-1), "merge_tokens must be a whole number of at least 0, got -1"),
    "half a grid": (
        dict(relative_bias=True, patch_drop_rate=0.25),
        "relative_bias=True and patch_drop_rate=0.25 exclude each other: .* Set relative_bias=False or patch",
    ),
    "merged places": (
        dict(pos_embed="rope", merge_tokens=8),
        "pos_embed='rope' and merge_tokens=8 exclude each other: .* Set pos_embed='learned' or merge_tokens=0",
    ),
    "merged offsets": (dict(relative_bias=True, merge_tokens=8), "relative_bias=True and merge_tokens=8 exclude"),
    "rope base": (dict(rope_base=-1), "rope_base must be a positive number, got -1"),
}


@pytest.mark.parametrize(("values", "message"), INVALID.values(), ids=INVALID)
def test_invalid_configs(values, message):
    with pytest.raises(ValueError, match=message):
        ViTConfig(**values)


RECIPES = {
    "steps and epochs": (dict(steps=1, epochs=1), "steps or epochs, not both"),
    "steps": (dict(steps=0), "steps must be a whole number of at least 1, got 0"),
    "batch": (dict(batch_size=None), "batch_size must be a whole number of at least 1, got None"),
    "learning rate": (dict(learning_rate=0), "learning_rate must be a positive number, got 0"),
    "nan": (dict(weight_decay=float("nan")), "weight_decay must be a number of at least 0, got nan"),
    "betas": (dict(betas=(0.9, 1.0)), "betas must be two numbers of at least 0 and below 1, got"),
    "smoothing": (dict(label_smoothing=1.0), "label_smoothing must be a number of at least 0 and below 1, got 1.0"),
    "crop": (dict(crop=0), "crop must be a number above 0 and at most 1, got 0"),
    "precision": (dict(precision="fp8"), "precision must be one of auto, 32-true"),
    "optimizer": (dict(optimizer="lion"), "optimizer must be one of adamw, sgd, lamb; got 'lion'"),
    "flag": (dict(compile="yes"), "compile must be true or false"),
    "seed": (dict(seed=-1), "seed must be a whole number of at least 0, got -1"),
    "magnitude": (dict(magnitude=11), "magnitude must be a whole number of at least 0 and at most 10, got 11"),
    "no weights": (dict(class_weight=(0, 0)), "class_weight must be balanced, or one number of at least 0 for each"),
    "solved": (dict(head="solved", mixup=0.3), "takes no steps, and mixup would do nothing: leave it out"),
}


@pytest.mark.parametrize(("values", "message"), RECIPES.values(), ids=RECIPES)
def test_invalid_recipes(values, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**values)


@pytest.mark.parametrize(
    ("cls", "name", "nearest"),
    [(ViTConfig, "depht", "depth"), (Recipe, "learningrate", "learning_rate"), (Recipe, "drop_path_rate", None)],
)
def test_unknown_fields(cls, name, nearest):
    hint = rf"did you mean '{nearest}'\?" if nearest else "(did you mean|it has)"
    with pytest.raises(ValueError, match=f"{cls.__name__} has no field '{name}': {hint}"):
        cls.from_dict({name: 3})


@pytest.mark.parametrize(
    "options",
    [
        ViTConfig(input_size=(12, 8), patch_size=(3, 4), layer_scale=1e-4, pooling="map"),
        ViTConfig(input_size=(384, 384), patch_size=1, stem="resnet"),
        Recipe(epochs=3, betas=(0.8, 0.9), class_weight=(1, 2.5)),
        SolvedOptions(rocket_features=400),
    ],
    ids=lambda options: type(options).__name__,
)
def test_options_survive_yaml(options):
    assert type(options).from_dict(yaml.safe_load(yaml.safe_dump(options.to_dict()))) == options


@pytest.mark.parametrize("cls", [ViTConfig, Recipe])
def test_every_field_has_one_group(cls):
    groups = [base for base in cls.__bases__ if issubclass(base, Options)]
    names = [f.name for group in groups for f in fields(group)]
    assert sorted(names) == sorted(f.name for f in fields(cls))
    assert all(group.__doc__.count(".") == 1 for group in groups)  # the titles of the panels of `--help`


def test_options_are_split():
    recipe, network, rocket = split_options({"steps": 3, "depth": 2, "drop_path_rate": 0.1, "rocket_features": 400})
    assert recipe == Recipe(steps=3)
    assert network == {"depth": 2, "drop_path_rate": 0.1}
    assert rocket == SolvedOptions(rocket_features=400)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixupp": 1}, r"unknown option 'mixupp': did you mean 'mixup'\?"),
        ({"xyzzy": 1}, "unknown option 'xyzzy'; options are the fields of Recipe and ViTConfig"),
        ({"num_classes": 3}, "num_classes follows from the data and cannot be set"),
        ({"head": "solved", "drop_path_rate": 0.1}, "takes no steps, and drop_path_rate would do nothing"),
        ({"rocket_features": 100}, "rocket_features must be 0 or at least 168"),
        ({"rocket_features": -1}, "rocket_features must be a whole number of at least 0, got -1"),
        ({"solved_weight": 1.1}, "solved_weight must be a number of at least 0 and at most 1, got 1.1"),
        ({"solved_weight": "half"}, "solved_weight must be a number .*, got 'half'"),
    ],
)
def test_options_that_cannot_be_split(options, message):
    with pytest.raises(ValueError, match=message):
        split_options(options)


def test_random_convolutions_need_signals_of_one_axis():
    assert default_features("signal_small", (64,)) == 10_000
    for name, size in (("signal_small", (16, 16)), ("signal_small", (2,)), ("vit_tiny", (64,)), (None, (64,))):
        assert default_features(name, size) == 0
    assert SolvedOptions().features(300, (64,)) == 300
    assert SolvedOptions(rocket_features=500).features(300, (64,)) == 500
    for size in ((16, 16), (2,)):
        assert SolvedOptions().features(300, size) == 0
        with pytest.raises(ValueError, match="needs signals of one axis and at least 3 samples, but input_size is"):
            SolvedOptions(rocket_features=500).features(300, size)
        assert not SolvedOptions().encodes(True, size)
        with pytest.raises(ValueError, match="encoder needs signals of one axis"):
            SolvedOptions(encoder=True).encodes(False, size)


def test_configs_of_older_files_are_split():
    network = {"input_size": [64], "depth": 2}
    assert split_legacy({**network, "rocket_features": 0, "rocket_weight": 0.5}) == (
        network,
        {"rocket_features": 0, "rocket_weight": 0.5},
    )
    assert split_legacy(network) == (network, {})


def test_tokens_behind_a_stem():
    config = ViTConfig(input_size=(384, 384), patch_size=1, stem="resnet")  # R50+ViT-B/16
    assert (config.stem_stride, config.token_size, config.grid, config.num_patches) == (16, (16, 16), (24, 24), 576)
    assert ViTConfig.from_dict(config.to_dict()) == config
    for depths, stride in (((), 4), ((2,), 4), ((3, 4), 8), ([2, 2, 2, 2], 32)):
        config = ViTConfig(input_size=(64, 128), patch_size=(2, 1), stem="resnet", stem_depths=depths)
        assert config.stem_depths == tuple(depths)
        assert (config.stem_stride, config.token_size) == (stride, (2 * stride, stride))
        assert config.grid == (64 // stride // 2, 128 // stride)
    plain = ViTConfig()  # without a stem its other fields mean nothing
    assert (plain.stem_stride, plain.token_size, plain.grid) == (1, (16, 16), (14, 14))


def test_width_of_pooled_features():
    assert {ViTConfig(pooling=p).pooled_dim for p in ("token", "avg", "norm_avg", "map")} == {768}
    assert ViTConfig(pooling="token_avg").pooled_dim == 2 * 768


def test_input_sizes_of_one_number():
    assert ViTConfig(input_size=32).input_size == (32,)  # a config has no other dimensions than its size
    assert named_config("vit_tiny_patch16_224", input_size=384).input_size == (384, 384)  # a 2-D name: a square
    assert named_config("vit_tiny_patch16_224", input_size=(32,)).input_size == (32,)  # a tuple has its own dimensions
    assert named_config("vit_tiny", input_size=32).input_size == (32,)  # a size alone has no dimensions: a length
    assert ViTConfig(input_size=(8, 8, 8), patch_size=2).patch_size == (2, 2, 2)


def test_names():
    assert {*(f"vit_{s}" for s in SIZES), *(f"signal_{s}" for s in SIGNAL_SIZES)} <= set(list_models())
    for size in ("tiny", "small", "base", "large", "huge"):
        for patch in (8, 14, 16, 32):
            assert f"vit_{size}_patch{patch}_224" in list_models()
    for name in list_models():
        config = named_config(name)
        family, _, size = name.partition("_")
        if family != "vit":
            rows = {"signal": SIGNAL_SIZES, "encoder": ENCODER_SIZES, "compact": COMPACT_SIZES}[family]
            assert config.embed_dim == rows[size]["embed_dim"]
            continue
        assert f"vit_{name.split('_')[1]}" in list_models()
        assert config.embed_dim == SIZES[name.split("_")[1]]["embed_dim"]
        if "_patch" in name:
            patch, side = map(int, name.partition("_patch")[2].split("_"))
            assert (config.patch_size, config.input_size) == ((patch, patch), (side, side))
    assert named_config("vit_base_patch16_240", num_classes=7).grid == (15, 15)  # sizes beyond the list


@pytest.mark.parametrize(
    "name", ["vit_bse_patch16_224", "resnet50", "vit_base_patch0_224", "vit_base_patch16", "signal_tiny_patch4_64"]
)
def test_unknown_names_list_the_known(name):
    with pytest.raises(ValueError, match=r"unknown model .*vit_SIZE with SIZE one of pico, nano, tiny"):
        named_config(name)


@pytest.mark.parametrize(
    ("size", "patch", "whole"),
    [
        ((150,), (3,), (150,)),  # 50 tokens, no padding
        ((24,), (2,), (24,)),
        ((6,), (1,), (6,)),
        ((251,), (4,), (252,)),  # a prime: padded by one
        ((100,), (2,), (100,)),
        ((65536,), (1024,), (65536,)),
        ((8, 8), (2, 2), (8, 8)),
        ((28, 28), (2, 2), (28, 28)),
        ((224, 224), (16, 16), (224, 224)),
        ((1, 1000), (1, 100), (1, 1000)),  # divides, and is no more than half as large again
        ((32, 32, 32), (4, 4, 4), (32, 32, 32)),
    ],
)
def test_plan_grid(size, patch, whole):
    assert plan_grid(size) == (patch, whole)


def test_plan_grid_keeps_a_fixed_patch():
    assert plan_grid((150,), 4) == ((4,), (152,))
    with pytest.raises(ValueError, match="has 2 axes but the data has 1"):
        plan_grid((150,), (4, 4))


def test_steps_follow_from_epochs():
    assert Recipe(epochs=3, batch_size=32).total_steps(100) == 10  # 300 examples in batches of 32
    assert Recipe(epochs=1, batch_size=8, accumulate=2).total_steps(100) == 7
    assert Recipe(steps=17).total_steps(100) == 17


def test_a_named_model_needs_no_padding():
    assert named_config("vit_pico", input_size=(13,)).patch_size == (1,)  # prime: single samples
    assert named_config("vit_pico", input_size=(150,)).patch_size == (3,)
    assert named_config("vit_pico", input_size=(9, 27)).patch_size == (3, 3)
    with pytest.raises(ValueError, match="one, two or three dimensions"):
        named_config("vit_pico", input_size=(8, 8, 8, 8))


def test_numbers_of_numpy_are_plain_numbers():
    config, recipe = ViTConfig(depth=np.int64(3), mlp_ratio=np.float32(2)), Recipe(learning_rate=np.float64(1e-3))
    assert (type(config.depth), type(config.mlp_ratio), type(recipe.learning_rate)) == (int, float, float)
    assert SolvedOptions(rocket_features=np.int64(400)).to_dict()["rocket_features"] == 400
    assert ViTConfig(input_size=np.int64(32), patch_size=(np.int32(4),)).grid == (8,)
