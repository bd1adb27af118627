"""Presets: the choice of `auto`, the values of each preset, and the options of the user that replace them."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ndvit import VisionTransformer
from ndvit.config import Recipe, list_models, named_config, plan_strides, split_options
from ndvit.config.presets import PRESETS
from ndvit.config.solved import SOLVED
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.sources.load import load_source
from ndvit.model import Model
from ndvit.tasks import Classification
from ndvit.training.plan import Request, plan
from ndvit.training.presets import choose
from ndvit.training.run import train
from ndvit.training.settings import read_config
from tinyruns import QUIET, command

TWO_CLASSES = Classification("ab")


class Some:
    """So many examples."""

    streamed = False

    def __init__(self, count):
        self.count, self.items = count, [np.zeros((1, 20))]

    def __len__(self):
        return self.count


def source(kind, dims, examples=20):
    """The properties of a source that a preset depends on."""
    parts = {"train": Some(examples), "val": None}
    return SimpleNamespace(
        kind=kind, dims=dims, input_dims=dims, spectrogram=None, name="arrays", task=TWO_CLASSES, **parts
    )


DEIT = named_config("vit_tiny_patch16_224")
SIGNALS, CUBES, PICTURES = source("signal", 1), source("signal", 3), source("image", 2, 1437)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_model_and_a_recipe(name):
    preset = PRESETS[name]
    assert preset.model in (*list_models(), SOLVED, None)
    assert split_options(preset.recipe)[1] == {}  # values of the network are in its name or in `network`
    for width in (0, *preset.by_width):
        recipe, overrides, _ = split_options(preset.options(width))
        assert recipe.seed == 0
        model = "vit_small" if preset.model in (None, SOLVED) else preset.model
        named_config(model, input_size=(32, 32), **{"embed_dim": 384, **overrides})


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
def test_auto_depends_on_the_model_or_the_data(data, model, trained, expected):
    choice = choose("auto", data, model, {"input_size": 224}, DEIT if trained else None)
    assert (choice.preset, choice.model) == expected


def test_options_of_the_user_replace_the_presets():
    options = choose("signal", SIGNALS, None, {"mixup": 0.0, "steps": 7}).options
    assert options["mixup"] == 0.0
    assert options["steps"] == 7
    assert options["warp"] == PRESETS["signal"].recipe["warp"]


def test_epochs_replace_steps():
    recipe, *_ = split_options(choose("signal", SIGNALS, None, {"epochs": 2, "batch_size": 8}).options)
    assert recipe.total_steps(16) == 4


@pytest.mark.parametrize(("examples", "size"), [(12, 8), (80, 10), (1000, 32)])
def test_little_data_has_small_batches(examples, size):
    data = source("signal", 1, examples)
    assert choose("signal", data, None, {}).options["batch_size"] == size
    assert choose("signal", data, None, {"batch_size": 5}).options["batch_size"] == 5
    assert "batch_size" not in choose("basic", data, None, {}).options


def test_large_data_has_ten_passes():
    few = choose("signal", SIGNALS, None, {}).options["steps"]
    assert few == PRESETS["signal"].recipe["steps"]
    many = source("signal", 1, 6400)
    assert choose("signal", many, None, {}).options["steps"] == 10 * len(many.train) / 32
    assert choose("signal", many, None, {"batch_size": 16}).options["steps"] == 10 * len(many.train) / 16
    assert choose("signal", many, None, {"steps": 5}).options["steps"] == 5


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("fest", SIGNALS, "Did you mean 'fast'"),
        ("signal", PICTURES, "one axis"),
        ("fast", CUBES, "'fast' is for signals of one axis, but arrays holds arrays of 3 axes: use preset 'basic'"),
        ("deit", SIGNALS, "'deit' is for images, but arrays holds signals: use preset 'signal'"),
        ("finetune", PICTURES, "starts from trained weights: set --weights, or use 'small_data'"),
        ("linear_probe", SIGNALS, "starts from trained weights"),
    ],
)
def test_presets_for_other_data(name, data, message):
    with pytest.raises(ValueError, match=message):
        choose(name, data, None, {})


@pytest.mark.parametrize("option", [{"steps": 9}, {"mixup": 0.0}, {"learning_rate": 0.1}, {"precision": "32-true"}])
def test_a_solved_head_refuses_options_without_effect(option):
    choice = choose("linear_probe", PICTURES, None, {"mixup": 0.5, **option}, DEIT)
    names = ", ".join(name for name in asdict(Recipe()) if name in {"mixup", *option})
    with pytest.raises(ValueError, match=rf"takes no steps, and {names} would do nothing: leave (it|them) out, or"):
        split_options(choice.options)
    recipe, *_ = split_options(choose("linear_probe", PICTURES, None, {"head": "trained", **option}, DEIT).options)
    assert {name: getattr(recipe, name) for name in option} == option


@pytest.mark.parametrize("name", ["linear_probe", "finetune", "deit", "deit3", "plain"])
def test_a_solved_head_drops_the_values_for_steps(name):
    kept = {"seed": 3, "batch_size": 16, "class_weight": "balanced", "val_fraction": 0.2, "device": "cpu", "workers": 1}
    choice = choose(name, PICTURES, None, {"head": "solved", "input_size": 112, **kept}, DEIT)
    recipe, network, _ = split_options(choice.options)
    assert (recipe, network) == (Recipe(head="solved", **kept), {"input_size": 112})
    assert choice.notes == ()
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("options", "trained", "message"),
    [
        ({"lora": 4}, None, r"lora=4 needs trained weights, .* set --weights \(weights=\), or leave"),
        ({"freeze": 0}, None, "freeze=0 needs trained weights"),
        ({"head": "solved"}, None, "head='solved' needs trained weights"),
        ({"lora": 193}, DEIT, "lora=193: a rank above the 192 numbers of a token"),
    ],
)
def test_frozen_layers_need_trained_weights(options, trained, message):
    with pytest.raises(ValueError, match=message):
        choose("auto", PICTURES, None, options, trained)
    assert choose("auto", PICTURES, None, {"lora": 192, "input_size": 224}, DEIT).options["lora"] == 192


def test_a_learning_rate_of_none_replaces_the_presets():
    choice = choose("deit", PICTURES, None, {"learning_rate": None, "batch_size": 64})
    assert (choice.options["learning_rate"], choice.notes) == (None, ())


def test_presets_are_listed(capsys):
    assert command("presets") == 0
    names = [line.partition(" ")[0] for line in capsys.readouterr().out.partition("\n\n")[0].splitlines()]
    assert names == ["auto", *PRESETS]
    assert command("presets", "auto") == 0
    assert "signal for signals of one axis" in capsys.readouterr().out


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_of_a_preset_is_printed(name, capsys):
    assert command("presets", name) == 0
    out, preset = capsys.readouterr().out, PRESETS[name]
    values = dict(line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  "))
    assert list(values) == [*preset.network, *preset.recipe]
    for field, text in values.items():
        value = {**preset.network, **preset.recipe}[field]
        printed, _, meaning = text.partition(" ")
        assert printed == (f"{value:.6g}" if isinstance(value, float) else str(value))
        assert len(meaning.strip()) > 10
    rules = "\n".join(line for line in out.splitlines() if line.startswith("rule "))
    assert (f"those of {preset.passes} passes over the training set" in rules) == bool(preset.passes)
    assert (f"for {preset.batch:,} examples in a step" in rules) == bool(preset.batch)
    assert ("an eighth of the training set" in rules) == preset.small_batches
    assert ("keep their size" in rules) == preset.small_images
    assert ("starts from trained weights" in rules) == (preset.model is None)
    assert rules.count("from embed_dim") == len(preset.by_width)
    assert ("images only" in rules) == (preset.kind == "image")
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
def test_strides_of_signals(length, stages, strides):
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
def test_strides_of_images_and_volumes(size, strides):
    assert plan_strides(size, 2) == strides


def planned(*shape, **options):
    """The first network planned for random arrays of this shape."""
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    source = (values, np.arange(len(values)) % 2)
    options = {"model": "signal_small", "rocket_features": 0} | options
    return plan(Request(source=source, model=options.pop("model"), options=options, progress=False)).first


@pytest.mark.parametrize(
    ("length", "strides", "patch", "size"),
    [
        (24, (1, 1), (1,), 24),
        (100, (1, 2), (2,), 100),
        (427, (2, 1), (7,), 434),
        (65_536, (16, 32), (4,), 65_536),
    ],
)
def test_the_network_fits_the_length(length, strides, patch, size):
    model = planned(10, 1, length)
    config = model.config
    assert (config.stem_strides, config.patch_size) == (strides, patch)
    assert config.input_size == model.preprocess.size == (size,)
    assert config.num_patches <= 32


def test_a_stem_can_be_changed_or_left_out():
    bare = planned(20, 3, 100, stem="none", pooling="token_avg", stem_head=False).config
    assert (bare.stem, bare.stem_strides) == ("none", ())
    assert planned(10, 1, 8, 8, stem_depths=(3,), stem_strides=(2,)).config.stem_strides == (2,)
    assert planned(10, 1, 8, 8, stem_depths=(3,)).config.stem_strides == (1,)


def test_strides_and_patch_of_the_user_are_kept():
    config = planned(20, 3, 100, stem_strides=(4, 2), patch_size=1).config
    assert (config.stem_strides, config.input_size, config.grid) == ((4, 2), (104,), (13,))


def test_trained_weights_keep_the_recipes_learning_rate():
    options = choose("signal", SIGNALS, None, {}, DEIT).options
    assert "learning_rate" not in options
    assert options["warp"] == PRESETS["signal"].recipe["warp"]
    assert choose("signal", SIGNALS, None, {"learning_rate": 0.5}, DEIT).options["learning_rate"] == 0.5


def test_the_closed_form_refuses_options_of_a_network():
    with pytest.raises(ValueError, match="depth would do nothing: preset fast solves closed_form"):
        choose("fast", SIGNALS, None, {"depth": 2})


def test_auto_trains_no_network_on_few_examples():
    few, enough = (choose("auto", source("signal", 1, n), None, {}) for n in (19, 20))
    assert (few.preset, few.model, few.options["head"]) == ("fast", "closed_form", "solved")
    assert "fewer than 10 training examples a class" in few.notes[0]
    assert (enough.preset, enough.options["val_fraction"]) == ("signal", 0.2)
    assert choose("auto", source("signal", 1, 19), None, {"steps": 5}).preset == "signal"  # somebody wants steps


# Values of each paper and its code, by field of Recipe or ViTConfig.
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
    recipe, overrides, _ = split_options(choice.options)
    found = {"drop_path_rate": 0.0, **asdict(recipe), **overrides, "loss": recipe.loss or "softmax"}
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


@pytest.mark.parametrize(("name", "rate"), [("deit", 0.1), ("deit3", 0.05), ("plain", None)])
def test_drop_path_also_applies_to_trained_weights(name, rate):
    _, network, _ = split_options(choose(name, PICTURES, None, {}, DEIT).options)
    assert network == ({} if rate is None else {"drop_path_rate": rate})
    assert choose(name, PICTURES, None, {"drop_path_rate": 0.2}, DEIT).options["drop_path_rate"] == 0.2


@pytest.mark.parametrize(
    ("name", "options", "rate"),
    [
        ("deit", {"batch_size": 64}, 1e-3 / 16),  # in proportion, as its code does
        ("deit", {"batch_size": 64, "accumulate": 32}, 2e-3),
        ("deit3", {"batch_size": 128}, 1e-3),  # a sixteenth of the batch, by the root
        ("plain", {"batch_size": 256}, 5e-4),
        ("plain", {"batch_size": 256, "learning_rate": 0.2}, 0.2),
    ],
)
def test_the_learning_rate_follows_the_effective_batch_with_a_note(name, options, rate):
    choice = choose(name, PICTURES, None, options)
    assert choice.options["learning_rate"] == pytest.approx(rate)
    assert [f"learning rate {rate:.2g}:" in note for note in choice.notes] == [True] * ("learning_rate" not in options)


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
@pytest.mark.filterwarnings("ignore:.* are blank:ndvit.DataWarning")
def test_small_images_are_not_enlarged_to_the_weights_input(side, weights, expected):
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
        Model(network, Classification("abcde"), ImagePreprocess((16, 16), (0.5,) * 3, (0.2,) * 3)).save(
            tmp_path / "w.safetensors"
        )
        options = {"weights": tmp_path / "w.safetensors"}
    else:
        options = {**({} if name == "fast" else tiny), **({"rocket_features": 168} if preset.dims == 1 else {})}
        if not preset.by_width:
            options.pop("representation_size", None)
    data = (recordings if preset.kind in ("signal", "spectrogram") else pictures, labels)
    steps = {} if preset.recipe.get("head") == "solved" else {"steps": 2}
    run = train(data, preset=name, batch_size=4, output=tmp_path / "run", **QUIET, **options, **steps)
    assert run.fit.steps == steps.get("steps", 0)
    assert 0 <= run.evaluation.accuracy <= 1
    config = read_config(tmp_path / "run" / "config.yaml")
    recipe = {field: config[field] for field in asdict(Recipe())}
    kept = {f: list(v) if isinstance(v, tuple) else v for f, v in preset.recipe.items()}
    for field in ("batch_size", "accumulate", "steps", "epochs", "learning_rate", "val_fraction", "final_share"):
        kept.pop(field, None)
    assert {field: recipe[field] for field in kept} == pytest.approx(kept)
