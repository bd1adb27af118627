"""Presets: which one is chosen by itself, what it sets, and what the user's own options take the place of."""

import numpy as np
import pytest

from ndvit.config import list_models, plan_strides
from ndvit.data.source import load_source
from ndvit.training.plan import plan_model, split_options
from ndvit.training.presets import PRESETS, choose


def source(*shape: int):
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return load_source((values, np.arange(len(values)) % 2), progress=False)


SIGNALS, CUBES = source(20, 3, 100), source(20, 1, 6, 6, 6)
PICTURES = load_source("digits", progress=False)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_model_and_a_recipe(name):
    assert PRESETS[name].model in list_models()
    recipe, overrides = split_options(PRESETS[name].recipe)
    assert overrides == {}  # what the network is, its name says
    assert recipe.seed == 0


@pytest.mark.parametrize(
    ("data", "model", "trained", "expected"),
    [
        (SIGNALS, None, False, ("signal", "signal_small")),
        (CUBES, None, False, ("plain", "vit_pico")),
        (PICTURES, None, False, ("plain", "vit_pico")),
        (SIGNALS, "vit_tiny", False, ("plain", "vit_tiny")),
        (SIGNALS, "signal_base", False, ("signal", "signal_base")),
        (SIGNALS, None, True, ("plain", None)),
    ],
)
def test_auto_goes_by_the_model_or_by_the_data(data, model, trained, expected):
    choice = choose("auto", data, model, {}, trained)
    assert (choice.preset, choice.model) == expected


def test_what_is_given_takes_the_place_of_the_presets():
    options = choose("signal", SIGNALS, None, {"mixup": 0.0, "steps": 7}).options
    assert options["mixup"] == 0.0
    assert options["steps"] == 7
    assert options["warp"] == PRESETS["signal"].recipe["warp"]


def test_epochs_take_the_place_of_steps():
    recipe, _ = split_options(choose("signal", SIGNALS, None, {"epochs": 2, "batch_size": 8}).options)
    assert recipe.total_steps(16) == 4


@pytest.mark.parametrize(("examples", "size"), [(12, 8), (100, 10), (1000, 32)])
def test_little_data_comes_in_small_batches(examples, size):
    data = source(examples, 1, 4)
    assert choose("signal", data, None, {}).options["batch_size"] == size
    assert choose("signal", data, None, {"batch_size": 5}).options["batch_size"] == 5
    assert "batch_size" not in choose("plain", data, None, {}).options


def test_large_data_is_seen_ten_times():
    few = choose("signal", SIGNALS, None, {}).options["steps"]
    assert few == PRESETS["signal"].recipe["steps"]
    many = source(8000, 1, 4)
    assert choose("signal", many, None, {}).options["steps"] == 10 * len(many.train) / 32
    assert choose("signal", many, None, {"batch_size": 16}).options["steps"] == 10 * len(many.train) / 16
    assert choose("signal", many, None, {"steps": 5}).options["steps"] == 5


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [("fest", SIGNALS, "Did you mean 'fast'"), ("signal", PICTURES, "one axis"), ("fast", CUBES, "have 3")],
)
def test_what_is_refused(name, data, message):
    with pytest.raises(ValueError, match=message):
        choose(name, data, None, {})


@pytest.mark.parametrize(
    ("length", "stages", "strides"),
    [
        (63, 2, (1, 1)),
        (64, 2, (1, 2)),
        (149, 2, (1, 2)),
        (150, 2, (2, 1)),
        (511, 2, (2, 1)),
        (511, 1, (2,)),
        (512, 2, (2, 2)),
        (513, 2, (2, 4)),
        (1460, 2, (4, 4)),
        (65_536, 2, (16, 32)),
        (1460, 1, (16,)),
        (1460, 3, (4, 4, 1)),
    ],
)
def test_strides_halve_once_below_512_and_leave_at_most_128_places_beyond(length, stages, strides):
    assert plan_strides(length, stages) == strides


@pytest.mark.parametrize(
    ("length", "strides", "patch", "size"),
    [
        (24, (1, 1), (1,), (24,)),
        (100, (1, 2), (2,), (100,)),
        (427, (2, 1), (7,), (434,)),
        (65_536, (16, 32), (4,), None),
    ],
)
def test_the_network_fits_the_length(length, strides, patch, size):
    data = source(6, 1, length)
    recipe, overrides = split_options({})
    preprocess, config = plan_model(data, "signal_small", recipe, overrides)
    assert config.stem_strides == strides
    assert config.patch_size == patch
    assert config.input_size == preprocess.size == (size or (length,))
    assert config.num_patches <= 32


def test_a_stem_can_be_changed_or_left_out():
    def config(data, **options):
        recipe, overrides = split_options(options)
        return plan_model(data, "signal_small", recipe, overrides)[1]

    bare = config(SIGNALS, stem="none", pooling="token_avg", stem_head=False)
    assert (bare.stem, bare.stem_strides) == ("none", ())
    assert config(PICTURES, stem_depths=(3,), stem_strides=(2,)).stem_strides == (2,)
    assert config(PICTURES, stem_depths=(3,)).stem_strides == (1,)


def test_trained_weights_keep_the_recipes_rate_for_them():
    options = choose("fast", SIGNALS, None, {}, trained=True).options
    assert "learning_rate" not in options
    assert options["warp"] == PRESETS["fast"].recipe["warp"]
    assert choose("fast", SIGNALS, None, {"learning_rate": 0.5}, trained=True).options["learning_rate"] == 0.5


def test_strides_and_patch_are_the_users_where_given():
    recipe, overrides = split_options({"stem_strides": (4, 2), "patch_size": 1})
    _, config = plan_model(SIGNALS, "signal_small", recipe, overrides)
    assert config.stem_strides == (4, 2)
    assert config.input_size == (104,)
    assert config.grid == (13,)
