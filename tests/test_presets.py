"""Presets: which one is chosen by itself, what it sets, and what the user's own options take the place of."""

from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from ndvit.config import list_models, named_config, plan_strides
from ndvit.config.recipe import Recipe
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.sources.load import load_source
from ndvit.network import VisionTransformer
from ndvit.training.plan import plan_model, split_options
from ndvit.training.presets import PRESETS, choose
from ndvit.training.run import read_config, train
from ndvit.weights.file import save_model
from tinyruns import QUIET, command


def source(*shape: int):
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return load_source((values, np.arange(len(values)) % 2), progress=False)


DEIT = named_config("vit_tiny_patch16_224")
SIGNALS, CUBES = source(20, 3, 100), source(20, 1, 6, 6, 6)
PICTURES = load_source("digits", progress=False)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_model_and_a_recipe(name):
    preset = PRESETS[name]
    assert preset.model in (*list_models(), None)
    recipe, overrides = split_options(preset.recipe)
    assert overrides == {}  # what the network is, its name says, or `network`
    assert recipe.seed == 0
    for more in ({}, *preset.by_width.values()):
        recipe, overrides = split_options({**preset.network, **preset.recipe, **more})
        named_config(preset.model or "vit_small", input_size=(32, 32), **{"embed_dim": 384, **overrides})


@pytest.mark.parametrize(
    ("data", "model", "trained", "expected"),
    [
        (SIGNALS, None, False, ("signal", "signal_small")),
        (CUBES, None, False, ("basic", "vit_pico")),
        (PICTURES, None, False, ("small_data", PRESETS["small_data"].model)),
        (PICTURES, "vit_tiny", False, ("small_data", "vit_tiny")),
        (PICTURES, None, True, ("finetune", None)),
        (SIGNALS, "vit_tiny", False, ("basic", "vit_tiny")),
        (SIGNALS, "signal_base", False, ("signal", "signal_base")),
        (SIGNALS, None, True, ("basic", None)),
    ],
)
def test_auto_goes_by_the_model_or_by_the_data(data, model, trained, expected):
    choice = choose("auto", data, model, {}, DEIT if trained else None)
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
    assert "batch_size" not in choose("basic", data, None, {}).options


def test_large_data_is_seen_ten_times():
    few = choose("signal", SIGNALS, None, {}).options["steps"]
    assert few == PRESETS["signal"].recipe["steps"]
    many = source(8000, 1, 4)
    assert choose("signal", many, None, {}).options["steps"] == 10 * len(many.train) / 32
    assert choose("signal", many, None, {"batch_size": 16}).options["steps"] == 10 * len(many.train) / 16
    assert choose("signal", many, None, {"steps": 5}).options["steps"] == 5


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("fest", SIGNALS, "Did you mean 'fast'"),
        ("signal", PICTURES, "one axis"),
        ("fast", CUBES, "have 3"),
        ("deit", SIGNALS, "'deit' is for pictures, but arrays holds signals: use preset 'signal'"),
        ("finetune", PICTURES, "begins with trained weights"),
        ("linear_probe", SIGNALS, "begins with trained weights"),
    ],
)
def test_what_is_refused(name, data, message):
    with pytest.raises(ValueError, match=message):
        choose(name, data, None, {})


@pytest.mark.parametrize("option", [{"steps": 9}, {"mixup": 0.0}, {"learning_rate": 0.1}, {"precision": "32-true"}])
def test_a_head_that_is_solved_refuses_what_would_do_nothing(option):
    choice = choose("linear_probe", PICTURES, None, {"mixup": 0.5, **option}, DEIT)
    names = ", ".join(name for name in asdict(Recipe()) if name in {"mixup", *option})
    with pytest.raises(ValueError, match=rf"takes no steps, and {names} would do nothing: leave (it|them) out, or"):
        split_options(choice.options)
    recipe, _ = split_options(choose("linear_probe", PICTURES, None, {"head": "trained", **option}, DEIT).options)
    assert {name: getattr(recipe, name) for name in option} == option


@pytest.mark.parametrize("name", ["linear_probe", "finetune", "deit", "deit3", "plain"])
def test_a_head_is_solved_without_what_a_preset_says_of_steps(name):
    kept = {"seed": 3, "batch_size": 16, "class_weight": "balanced", "val_fraction": 0.2, "device": "cpu", "workers": 1}
    choice = choose(name, PICTURES, None, {"head": "solved", "input_size": 112, **kept}, DEIT)
    recipe, _ = split_options(choice.options)
    assert recipe == Recipe(head="solved", **kept)
    assert choice.notes == ()
    assert Recipe.from_dict(recipe.to_dict()) == recipe  # as config.yaml gives it back


@pytest.mark.parametrize(
    ("given", "trained", "message"),
    [
        ({"lora": 4}, None, r"lora=4: what stays as it is should have learned .* give trained weights \(--weights\)"),
        ({"freeze": 0}, None, "freeze=0: what stays"),
        ({"head": "solved"}, None, "head='solved': what stays"),
        ({"lora": 193}, DEIT, "lora=193: a rank above the 192 numbers of a token"),
    ],
)
def test_what_stays_as_it_is_needs_trained_weights(given, trained, message):
    with pytest.raises(ValueError, match=message):
        choose("auto", PICTURES, None, given, trained)
    assert choose("auto", PICTURES, None, {"lora": 192}, DEIT).options["lora"] == 192


def test_no_learning_rate_is_one_that_follows_from_the_width():
    choice = choose("deit", PICTURES, None, {"learning_rate": None, "batch_size": 64})
    assert (choice.options["learning_rate"], choice.notes) == (None, ())


def test_presets_are_listed(capsys):
    assert command("presets") == 0
    names = [line.partition(" ")[0] for line in capsys.readouterr().out.partition("\n\n")[0].splitlines()]
    assert names == ["auto", *PRESETS]
    assert command("presets", "auto") == 0
    assert "signal for signals of one axis" in capsys.readouterr().out


@pytest.mark.parametrize("name", PRESETS)
def test_all_that_a_preset_decides_is_shown(name, capsys):
    assert command("presets", name) == 0
    out, preset = capsys.readouterr().out, PRESETS[name]
    values = dict(line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  "))
    assert list(values) == [*preset.network, *preset.recipe]
    for field, text in values.items():
        value = {**preset.network, **preset.recipe}[field]
        shown, _, meaning = text.partition(" ")
        assert shown == (f"{value:.6g}" if isinstance(value, float) else str(value))
        assert len(meaning.strip()) > 10
    rules = "\n".join(line for line in out.splitlines() if line.startswith("rule "))
    assert (f"as many as {preset.passes} passes over the training set" in rules) == bool(preset.passes)
    assert (f"for {preset.batch:,} examples in a step" in rules) == bool(preset.batch)
    assert ("an eighth of the training set" in rules) == preset.small_batches
    assert ("seen at their own size" in rules) == preset.small_pictures
    assert ("begins with trained weights" in rules) == (preset.model is None)
    assert rules.count("from embed_dim") == len(preset.by_width)
    assert ("pictures only" in rules) == (preset.kind == "image")
    assert ("signals of one axis" in rules) == (preset.kind == "signal")


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
    assert plan_strides((length,), stages) == strides


@pytest.mark.parametrize(
    ("size", "strides"),
    [
        ((8, 8), (1, 1)),
        ((31, 20), (1, 1)),
        ((32, 32), (2, 1)),
        ((64, 48), (2, 2)),
        ((100, 100), (2, 2)),
        ((224, 224), (4, 2)),
        ((16, 64, 64), (2, 2)),
    ],
)
def test_strides_leave_16_to_31_places_of_pictures_and_volumes(size, strides):
    assert plan_strides(size, 2) == strides


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
    assert config(PICTURES, stem_depths=(3,)).stem_strides == (1,)  # of 8 x 8 pixels


def test_trained_weights_keep_the_recipes_rate_for_them():
    options = choose("fast", SIGNALS, None, {}, DEIT).options
    assert "learning_rate" not in options
    assert options["warp"] == PRESETS["fast"].recipe["warp"]
    assert choose("fast", SIGNALS, None, {"learning_rate": 0.5}, DEIT).options["learning_rate"] == 0.5


def test_strides_and_patch_are_the_users_where_given():
    recipe, overrides = split_options({"stem_strides": (4, 2), "patch_size": 1})
    _, config = plan_model(SIGNALS, "signal_small", recipe, overrides)
    assert config.stem_strides == (4, 2)
    assert config.input_size == (104,)
    assert config.grid == (13,)


# As published: what each paper and its code say, by the field of Recipe or ViTConfig that means it.
PUBLISHED = {
    "deit": {
        "optimizer": "adamw",
        "learning_rate": 1e-3,  # 5e-4 * batch / 512
        "weight_decay": 0.05,
        "epochs": 300,
        "warmup": 5 / 300,
        "min_learning_rate": 0.01,  # 1e-5
        "loss": "softmax",
        "policy": "randaugment",
        "operations": 2,
        "magnitude": 9,
        "mixup": 0.8,
        "cutmix": 1.0,
        "mix_prob": 1.0,
        "erase": 0.25,
        "repeats": 3,
        "drop_path_rate": 0.1,
        "ema_decay": None,
        "label_smoothing": 0.1,
        "layer_decay": None,
    },
    "augreg": {
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "grad_clip": 1.0,
        "epochs": 300,
        "loss": "sigmoid",
        "policy": "randaugment",
        "operations": 2,
        "magnitude": 10,
        "mixup": 0.2,
        "drop_path_rate": 0.0,
        "ema_decay": None,
        "label_smoothing": 0.0,
    },
    "plain": {
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "grad_clip": 1.0,
        "epochs": 90,
        "loss": "softmax",
        "policy": "randaugment",
        "operations": 2,
        "magnitude": 10,
        "mixup": 0.2,
        "drop_path_rate": 0.0,
        "ema_decay": None,
        "label_smoothing": 0.0,
        "pooling": "norm_avg",
        "pos_embed": "sincos",
        "representation_size": 384,
    },
    "deit3": {
        "optimizer": "lamb",
        "learning_rate": 4e-3,
        "weight_decay": 0.05,
        "epochs": 800,
        "warmup": 5 / 800,
        "loss": "sigmoid",
        "policy": "3-augment",
        "jitter": 0.3,
        "mixup": 0.8,
        "cutmix": 1.0,
        "repeats": 3,
        "drop_path_rate": 0.05,
        "label_smoothing": 0.0,
        "layer_scale": 1e-4,
    },
}
BATCHES = {"deit": 1024, "augreg": 4096, "plain": 1024, "deit3": 2048}
WARMUP_STEPS = {"augreg": 10_000, "plain": 10_000}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_presets_have_the_published_values(name):
    choice = choose(name, PICTURES, None, {})
    recipe, overrides = split_options(choice.options)
    found = {**asdict(recipe), **overrides}
    assert {field: found[field] for field in PUBLISHED[name]} == pytest.approx(PUBLISHED[name])
    assert recipe.batch_size * recipe.accumulate == PRESETS[name].batch == BATCHES[name]
    assert choice.notes == ()
    if name in WARMUP_STEPS:
        assert round(recipe.warmup * recipe.total_steps(1_281_167), -1) == WARMUP_STEPS[name]


@pytest.mark.parametrize(
    ("model", "rate", "drop"), [("vit_base", 3e-3, 0.2), ("vit_large", 3e-3, 0.45), ("vit_huge", 3e-3, 0.6)]
)
def test_larger_networks_have_other_values(model, rate, drop):
    options = choose("deit3", PICTURES, model, {}).options
    assert (options["learning_rate"], options["drop_path_rate"]) == (rate, drop)
    assert choose("plain", PICTURES, model, {}).options["representation_size"] == named_config(model).embed_dim


@pytest.mark.parametrize(
    ("name", "given", "rate"),
    [
        ("deit", {"batch_size": 64}, 1e-3 / 16),  # in proportion, as its code does
        ("deit", {"batch_size": 64, "accumulate": 32}, 2e-3),
        ("deit3", {"batch_size": 128}, 1e-3),  # a sixteenth of the batch, by the root
        ("plain", {"batch_size": 256}, 5e-4),
        ("plain", {"batch_size": 256, "learning_rate": 0.2}, 0.2),
    ],
)
def test_the_learning_rate_follows_the_effective_batch_and_this_is_said(name, given, rate):
    choice = choose(name, PICTURES, None, given)
    assert choice.options["learning_rate"] == pytest.approx(rate)
    assert [f"learning rate {rate:.2g}:" in note for note in choice.notes] == [True] * ("learning_rate" not in given)


@pytest.mark.parametrize(
    ("side", "weights", "expected"),
    [
        (100, "vit_tiny_patch16_224", (112, 112)),
        (8, "vit_tiny_patch16_224", (112, 112)),
        (150, "vit_tiny_patch16_224", (160, 160)),
        (209, "vit_tiny_patch16_224", None),
        (400, "vit_small_patch14_518", (406, 406)),
    ],
)
def test_small_pictures_are_not_enlarged_to_the_weights_input(side, weights, expected):
    pictures = [Image.new("RGB", (side, side // 2)) for _ in range(4)]
    data = load_source((pictures, [0, 1, 0, 1]), test_fraction=0, progress=False)
    choice = choose("finetune", data, None, {}, named_config(weights))
    assert choice.options.get("input_size") == expected
    assert len(choice.notes) == (expected is not None)
    assert choose("finetune", data, None, {"input_size": 64}, named_config(weights)).options["input_size"] == 64
    assert "input_size" not in choose("linear_probe", data, None, {}, named_config(weights)).options


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_two_steps(name, tmp_path):
    pictures = [Image.fromarray(p) for p in np.random.default_rng(0).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)]
    recordings = np.random.default_rng(0).standard_normal((12, 2, 24))
    labels = np.arange(12) % 3
    preset = PRESETS[name]
    tiny = {"embed_dim": 16, "depth": 1, "num_heads": 2, "representation_size": 16}
    if preset.model is None:
        network = VisionTransformer(named_config("vit_pico", input_size=(16, 16), patch_size=4, num_classes=5, **tiny))
        network.untrained = ()
        network.preprocess = ImagePreprocess((16, 16), (0.5,) * 3, (0.2,) * 3)
        save_model(network, tmp_path / "w.safetensors")
        options = {"weights": tmp_path / "w.safetensors"}
    else:
        options = {**tiny, **({"rocket_features": 168} if preset.dims == 1 else {})}
        if not preset.by_width:
            del options["representation_size"]
    data = (recordings if preset.kind == "signal" else pictures, labels)
    steps = {} if preset.recipe.get("head") == "solved" else {"steps": 2}
    run = train(data, preset=name, batch_size=4, output=tmp_path / "run", **QUIET, **options, **steps)
    assert run.fit.steps == steps.get("steps", 0)
    assert 0 <= run.evaluation.accuracy <= 1
    config = read_config(tmp_path / "run" / "config.yaml")
    recipe = {field: config[field] for field in asdict(Recipe())}
    kept = {f: list(v) if isinstance(v, tuple) else v for f, v in preset.recipe.items()}
    for field in ("batch_size", "accumulate", "steps", "epochs", "learning_rate"):
        kept.pop(field, None)
    assert {field: recipe[field] for field in kept} == pytest.approx(kept)
