"""Files that people make themselves: the network under any prefix, beside other modules, students and settings."""

import argparse
import json
import re

import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from checkpoints import randomise, state
from ndvit.load_report import WeightsWarning
from ndvit.model import evaluate, load_features
from ndvit.weights.layouts.finding import find_networks
from ndvit.weights.reading.files import read_tensors
from tinyruns import QUIET, command, fit_tiny, toy
from weightfiles import load_model


def network(seed=0, classes=0, **arguments):
    small = dict(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, num_classes=classes)
    return randomise(TimmViT(**small | arguments), seed)


NET, OTHER = network(0), network(1)
VIT, STUDENT = state(NET), state(OTHER)
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LINEAR = {"weight": torch.ones(5, 64), "bias": torch.ones(5)}


def under(prefix, tensors=VIT):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def chunked(tensors, size=1):
    """Names of DINOv2's training, whose blocks keep their numbers."""
    return {
        re.sub(r"blocks\.(\d+)\.", lambda m: f"blocks.{int(m[1]) // size}.{m[1]}.", n): t for n, t in tensors.items()
    }


def saved(folder, content, name="w.pth"):
    torch.save(content, folder / name)
    return folder / name


def loaded(folder, content, **options):
    return load_model(saved(folder, content), num_heads=1, **options)


def answers(net, x=X):
    with torch.no_grad():
        return net(x)


def same(model, net, x=X):
    return torch.allclose(answers(model, x), answers(net, x), atol=1e-5)


PREFIXES = ["teacher.backbone.", "backbone.", "encoder.", "net.", "0.model.", "model.", "module.", "_orig_mod."]
PREFIXES += ["module.backbone.", "module._orig_mod.model.", "model.encoder.vit.model."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix(tmp_path, prefix):
    beside = {"criterion.weight": torch.ones(5), "projector.0.weight": torch.ones(3, 64)}
    model = loaded(tmp_path, {"state_dict": under(prefix) | beside, "epoch": 1})
    assert same(model, NET)
    assert model.load_report.ignored.keys() == {f"state_dict.{name}" for name in beside}
    assert all(why.startswith("beside the Vision Transformer") for why in model.load_report.ignored.values())
    known = prefix.replace("_orig_mod.", "")
    assert f"the Vision Transformer under 'state_dict.{known}' was read; beside it: epoch" in model.load_report.notes


def test_a_prefix_in_safetensors_and_in_shards(tmp_path):
    tensors = under("model.backbone.") | {"loss.scale": torch.ones(1)}
    save_file(tensors, tmp_path / "w.safetensors")
    assert same(load_model(tmp_path / "w.safetensors", num_heads=1), NET)
    halves = dict(list(tensors.items())[:9]), dict(list(tensors.items())[9:])
    places = {name: f"x-{i}.bin" for i, half in enumerate(halves) for name in half}
    (tmp_path / "shards").mkdir()
    for i, half in enumerate(halves):
        torch.save(half, tmp_path / "shards" / f"x-{i}.bin")
    (tmp_path / "shards" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert same(load_model(tmp_path / "shards", num_heads=1), NET)


def test_other_libraries_under_a_prefix(tmp_path):
    vision = randomise(torchvision.models.VisionTransformer(32, 8, 2, 1, 64, 128, num_classes=3), 0)
    assert same(loaded(tmp_path, under("net.", state(vision))), vision)
    config = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=96, image_size=32)
    config = transformers.ViTConfig(**config, patch_size=8, num_labels=3)
    hf = randomise(transformers.ViTForImageClassification(config), 0)
    model = loaded(tmp_path, under("model.", state(hf)) | {"metric.total": torch.ones(1)})
    assert same(model, lambda x: hf(x).logits)
    assert list(model.load_report.ignored) == ["metric.total"]


def test_a_loss_and_a_second_head_at_the_level_of_the_network(tmp_path):
    net = network(classes=5)
    beside = {"criterion.weight": torch.ones(5), "head2.weight": torch.ones(3, 64), "aux_head.0.bias": torch.ones(3)}
    model = loaded(tmp_path, state(net) | beside)
    assert same(model, net)
    assert model.load_report.ignored.keys() == beside.keys()


@pytest.mark.parametrize("size", [1, 2])
def test_blocks_in_chunks(tmp_path, size):
    assert same(loaded(tmp_path, {"teacher": under("backbone.", chunked(VIT, size))}), NET)


def test_blocks_in_chunks_that_count_anew(tmp_path):
    names = {re.sub(r"blocks\.(\d)\.", r"blocks.\1.0.", name): tensor for name, tensor in VIT.items()}
    assert same(loaded(tmp_path, names), NET)


# several networks

PAIRS = {  # content, whether the averaged weights (of NET) are the default
    "DINO": ({"student": under("module.backbone.", STUDENT), "teacher": under("backbone."), "epoch": 1}, True),
    "DINOv2": (
        {"model": under("student.backbone.", chunked(STUDENT)) | under("teacher.backbone.", chunked(VIT))},
        True,
    ),
    "timm": ({"state_dict": STUDENT, "state_dict_ema": VIT, "metric": 91.0}, True),
    "torchvision": ({"model": STUDENT, "model_ema": under("module."), "args": argparse.Namespace(model="x")}, True),
    "DeiT": ({"model": STUDENT, "model_ema": VIT, "args": argparse.Namespace(model_ema_force_cpu=False)}, False),
    "ema_pytorch": (under("online_model.", STUDENT) | under("ema_model."), False),
    "I-JEPA": ({"encoder": STUDENT, "target_encoder": VIT}, True),
    "MoCo v3": ({"state_dict": under("base_encoder.", STUDENT) | under("momentum_encoder.")}, False),
    "MoCo": (under("encoder_q.", STUDENT) | under("encoder_k."), False),
    "Lightning's averaging": ({"current_model_state": under("net.", STUDENT), "state_dict": under("net.")}, True),
}


@pytest.mark.parametrize("name", PAIRS)
def test_averages(tmp_path, name):
    content, averaged = PAIRS[name]
    model = loaded(tmp_path, content)
    assert same(model, NET if averaged else OTHER)
    assert f"ema={not averaged}" in str(model.load_report)
    assert len(model.load_report.ignored) == len(VIT)
    assert same(loaded(tmp_path, content, ema=True), NET)
    assert same(loaded(tmp_path, content, ema=False), OTHER)


def test_a_choice_that_the_file_does_not_offer(tmp_path):
    with pytest.raises(ValueError, match=r"has no averaged weights .* it has a Vision Transformer, under 'model\.'"):
        loaded(tmp_path, {"model": VIT}, ema=True)
    assert same(loaded(tmp_path, {"model": VIT}, ema=False), NET)
    with pytest.raises(ValueError, match="has no weights that are not averaged"):
        loaded(tmp_path, {"teacher": VIT}, ema=False)


def test_two_networks_of_which_any_may_be_meant(tmp_path):
    path = saved(tmp_path, {"G": VIT, "D": STUDENT})
    with pytest.raises(ValueError, match=r"2 Vision Transformers, under 'G\.', 'D\.', and any .*: use \S+#G or \S+#D$"):
        load_model(path, num_heads=1)
    assert same(load_model(f"{path}#G", num_heads=1), NET)
    assert same(load_model(f"{path}#D.", num_heads=1), OTHER)
    with pytest.raises(ValueError, match=r"has no Vision Transformer under 'E\.': it has 2 Vision Transformers"):
        load_model(f"{path}#E", num_heads=1)


def test_a_teacher_of_another_size_is_no_average(tmp_path):
    content = {"student": VIT, "teacher": state(network(2, depth=3))}
    with pytest.raises(ValueError, match=r"use \S+#student or \S+#teacher"):
        loaded(tmp_path, content)
    assert same(loaded(tmp_path, content, ema=False), NET)


def test_a_module_under_two_names_is_one_network(tmp_path):
    assert same(loaded(tmp_path, under("model.") | under("backbone.")), NET)


def test_a_file_whose_name_has_a_hash(tmp_path):
    torch.save(VIT, tmp_path / "run#3.pth")
    assert same(load_model(tmp_path / "run#3.pth", num_heads=1), NET)


def test_many_patch_embeddings(tmp_path):
    names = {f"{i}.patch_embed.proj.weight": torch.ones(1) for i in range(60)}
    with pytest.raises(ValueError, match="60 patch embeddings, and at most 20"):
        loaded(tmp_path, names)


@pytest.mark.parametrize("prefix", ["", "model.", "state_dict.model.module."])
@pytest.mark.parametrize(
    "name",
    ["swin_tiny_patch4_window7_224", "beit_base_patch16_224", "eva02_tiny_patch14_224", "vit_pe_core_tiny_patch16_384"],
)
def test_other_networks_stay_foreign_under_a_prefix(prefix, name):
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=3)
    assert find_networks(under(prefix, theirs.state_dict())) == []


# heads


def with_head(head, kind="timm"):
    torch.manual_seed(0)
    if kind == "torchvision":
        net = torchvision.models.VisionTransformer(32, 8, 2, 1, 64, 128, num_classes=3)
        net.heads = head
    else:
        net = network(classes=3)
        net.head = head
    return net.eval()


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
@pytest.mark.parametrize("before", [[nn.Dropout(0.2)], [], [nn.Dropout(0.1), nn.Identity(), nn.Dropout(0.1)]])
def test_a_sequential_with_one_linear_layer_is_the_head(tmp_path, kind, before):
    net = with_head(nn.Sequential(*before, nn.Linear(64, 5)), kind)
    model = loaded(tmp_path, state(net))
    assert same(model, net)
    doubtful = [line for line in model.load_report.assumed if line.startswith("head is the linear layer head.")]
    assert len(doubtful) == bool(before)  # what stands before it has no tensors, and may be anything
    assert loaded(tmp_path, state(net), classes=("x", "y")).untrained == ("head.weight", "head.bias")


@pytest.mark.parametrize("name", ["fc.", "fc.1.", "classifier.1."])
def test_a_head_under_another_name(tmp_path, name):
    net = with_head(nn.Linear(64, 5))
    tensors = {n.replace("head.", name): t for n, t in state(net).items()}
    model = loaded(tmp_path, tensors)
    assert same(model, net)
    assert any(name.partition(".")[0] in line or "head.1" in line for line in model.load_report.assumed)


def test_a_sequential_classifier_of_transformers(tmp_path):
    config = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=96, image_size=32)
    hf = transformers.ViTForImageClassification(transformers.ViTConfig(**config, patch_size=8, num_labels=3))
    hf.classifier = nn.Sequential(nn.Dropout(), nn.Linear(64, 5))
    randomise(hf, 0)
    assert same(loaded(tmp_path, state(hf), norm_eps=1e-12), lambda x: hf(x).logits)


ODD = {
    "BatchNorm": nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 5)),
    "LayerNorm": nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 5)),
    "two layers": nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 5)),
    "no bias": nn.Linear(64, 5, bias=False),
    "more features": nn.Linear(256, 5),
    "weight norm": nn.utils.parametrizations.weight_norm(nn.Linear(64, 5)),
}


@pytest.mark.parametrize("name", ODD)
def test_a_head_of_another_kind_is_an_error_only_where_it_is_needed(tmp_path, name):
    path = saved(tmp_path, state(with_head(ODD[name])))
    with pytest.raises(ValueError, match=r"w\.pth: head .*Load the network without it \(num_classes=0"):
        load_model(path, num_heads=1)
    for options in ({"classes": ("x", "y")}, {"num_classes": 2}, {"num_classes": 5}):
        model = load_model(path, num_heads=1, **options)
        assert model.untrained == ("head.weight", "head.bias")
    assert same(load_model(path, num_heads=1, num_classes=0), NET)
    assert same(load_features(path, num_heads=1), NET)
    assert {n for n in model.load_report.ignored if n.startswith("head")} == {
        n for n in read_tensors(path).tensors if "head" in n
    }


def test_fine_tuning_needs_no_old_head(tmp_path):
    path = saved(tmp_path, {"student": STUDENT, "teacher": state(with_head(ODD["two layers"]))})
    trained = fit_tiny(toy(shape=(2, 16)), weights=path, steps=1, num_heads=1, ema=True)
    assert trained.model.config.num_classes == 2
    assert trained.model.load_report.assumed == ()  # the training has settled them


# what the file says of itself


def test_settings_of_timm(tmp_path):
    args = argparse.Namespace(
        model="vit_tiny_patch16_224",
        mean=[0.5] * 3,
        std=[0.25] * 3,
        interpolation="bilinear",
        crop_pct=1.0,
        img_size=32,
    )
    model = loaded(tmp_path, {"state_dict": VIT, "args": args})
    p = model.preprocess
    assert (p.mean, p.std, p.interpolation, p.crop_fraction) == ((0.5,) * 3, (0.25,) * 3, "bilinear", 1.0)
    assert not any(line.startswith(("mean", "grid", "norm_eps")) for line in model.load_report.assumed)
    used = next(note for note in model.load_report.notes if note.startswith("taken from the file: "))
    assert used == (
        "taken from the file: args.img_size, args.model, args.mean, args.std, args.interpolation, args.crop_pct"
    )


def test_empty_settings_of_timm(tmp_path):
    args = argparse.Namespace(mean=None, std=None, interpolation="", crop_pct=None, img_size=None, gp=None)
    assert any(
        line.startswith("mean (0.485") for line in loaded(tmp_path, {"model": VIT, "args": args}).load_report.assumed
    )


CLASSES = {
    "class_to_idx": {"class_to_idx": {"dog": 1, "cat": 0, "owl": 2}},
    "digits": {"class_to_idx": {"7": 0, "3": 1, "5": 2}},
    "idx_to_class": {"idx_to_class": {0: "cat", 1: "dog", 2: "owl"}},
    "list": {"classes": ["cat", "dog", "owl"]},
    "Lightning": {"hyper_parameters": {"data": {"class_names": ["cat", "dog", "owl"]}}},
    "id2label": {"config": {"id2label": {"0": "cat", "1": "dog", "2": "owl"}}},
}


@pytest.mark.parametrize("name", CLASSES)
def test_class_names(tmp_path, name):
    model = loaded(tmp_path, {"state_dict": state(network(classes=3)), **CLASSES[name]})
    assert model.classes == (("7", "3", "5") if name == "digits" else ("cat", "dog", "owl"))


def test_class_names_in_the_header_of_safetensors(tmp_path):
    save_file(
        state(network(classes=3)), tmp_path / "w.safetensors", metadata={"classes": '["a", "b", "c"]', "format": "pt"}
    )
    assert load_model(tmp_path / "w.safetensors", num_heads=1).classes == ("a", "b", "c")


LEFT = {
    "other number": ({"classes": ["a", "b"]}, r"left out: classes \(2 class names for 3 outputs\)"),
    "NaN": (
        {"args": {"mean": [float("nan")] * 3, "std": [1.0] * 3}},
        r"left out: args\.mean and args\.std \(expected 3",
    ),
    "zero": ({"args": {"mean": [0.5] * 3, "std": [0.0] * 3}}, r"standard deviations must be above 0"),
    "crop": ({"args": {"crop_pct": 7}}, r"args\.crop_pct \(expected a share of at most 1, got 7\)"),
}


@pytest.mark.parametrize("name", LEFT)
def test_values_that_cannot_be_used_are_named(tmp_path, name):
    values, words = LEFT[name]
    model = loaded(tmp_path, {"model": state(network(classes=3)), **values})
    assert any(re.search(words, note) for note in model.load_report.notes)


def test_moments_of_pixels_from_0_to_255(tmp_path):
    args = {"mean": [127.5, 127.5, 127.5], "std": [51.0, 51.0, 51.0]}
    p = loaded(tmp_path, {"model": VIT, "hyper_parameters": args}).preprocess
    assert (p.mean, p.std) == ((0.5,) * 3, (0.2,) * 3)


def test_heads_from_hyper_parameters(tmp_path):
    net = network(num_heads=4)
    content = {"state_dict": under("model.", state(net)), "hyper_parameters": {"num_heads": 4, "embed_dim": 64}}
    assert same(load_model(saved(tmp_path, content)), net)
    content["hyper_parameters"] = {"num_heads": 5, "depth": 9}  # of something else
    assert load_model(saved(tmp_path, content)).config.num_heads == 1


def test_a_network_that_only_the_args_tell_apart(tmp_path):
    with pytest.raises(ValueError, match="is of vit_small_patch16_rope_224, whose blocks are not those of a plain ViT"):
        loaded(tmp_path, {"model": VIT, "args": argparse.Namespace(model="vit_small_patch16_rope_224")})


def with_problem(folder, problem):
    """A network of transformers with three outputs and this problem_type."""
    config = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=96, image_size=32)
    config = transformers.ViTConfig(
        **config, patch_size=8, num_labels=3, problem_type=problem, id2label=dict(enumerate("abc"))
    )
    hf = randomise(transformers.ViTForImageClassification(config), 0)
    hf.save_pretrained(folder)
    return hf


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
@pytest.mark.filterwarnings("ignore::ndvit.WeightsWarning")  # mean and std are assumed
def test_the_problem_type_of_transformers_is_the_task(tmp_path, problem):
    from ndvit.model import load_model

    hf, model = with_problem(tmp_path, problem), load_model(tmp_path)
    logits = hf(X).logits.detach()
    expected = logits if problem == "regression" else logits.sigmoid()
    assert torch.allclose(model.predict_proba(X), expected, atol=1e-5)
    assert model.task.output_names() == ["a", "b", "c"]
    assert load_model(tmp_path, classes=("x", "y", "z")).untrained == ("head.weight", "head.bias")


def test_an_unknown_problem_type_has_no_task(tmp_path):
    from ndvit.model import load_model, predict

    hf = with_problem(tmp_path, "regression")
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"regression"', '"ranking"'))
    model = load_model(tmp_path)
    assert model.task is None
    assert torch.allclose(model(X), hf(X).logits, atol=1e-5)
    for answer in (
        lambda: model.predict(X.numpy()),
        lambda: predict(tmp_path, X.numpy()),
        lambda: evaluate(model, "digits"),
    ):
        with pytest.raises(ValueError, match="problem_type 'ranking', which is none of multi_label_classification"):
            answer()
    assert f"task     {tmp_path}" not in str(model.load_report)
    assert load_model(tmp_path, classes=("x", "y")).load_report.no_task == ""


def test_one_output_is_no_classification(tmp_path):
    from ndvit.model import load_model

    model = load_model(saved(tmp_path, state(network(classes=1))), num_heads=1)
    with pytest.raises(ValueError, match="has one output, of a regression or of two classes with a sigmoid"):
        model.predict(X.numpy())


# positions


def grid_of(folder, net, **options):
    model = loaded(folder, state(net), **options)
    return model, next((line for line in model.load_report.assumed if line.startswith("a grid of ")), "")


def test_a_size_that_fits_exactly_wins(tmp_path):
    net = network(img_size=(32, 48))  # 4 x 6 patches and a class token: 25 positions
    model, doubt = grid_of(tmp_path, net, input_size=(32, 48))
    assert same(model, net, torch.randn(1, 3, 32, 48))
    assert model.load_report.adapted == ()
    assert "4 x 6 with a position for the class token for 25 positions (5 x 5 without a position" in doubt
    model, doubt = grid_of(tmp_path, net)
    assert model.config.grid == (5, 5)
    assert "a grid of 5 x 5 without a position for the class token for 25 positions" in doubt
    assert "set input_size= to the size of the training" in doubt


def test_a_size_that_fits_without_a_position_for_the_class_token(tmp_path):
    net = network(img_size=(40, 40), no_embed_class=True)
    assert same(grid_of(tmp_path, net, input_size=(40, 40))[0], net, torch.randn(1, 3, 40, 40))
    net = network(img_size=(32, 48), no_embed_class=True)
    assert same(grid_of(tmp_path, net, input_size=(32, 48))[0], net, torch.randn(1, 3, 32, 48))


def test_a_wanted_size_does_not_make_a_square_rectangular_by_chance(tmp_path):
    net = network(img_size=56)  # 7 x 7 and a class token: 50 positions, as 5 x 10 without one
    model, doubt = grid_of(tmp_path, net, input_size=(40, 80))
    assert [change.name for change in model.load_report.adapted] == ["pos_embed"]
    assert "a grid of 7 x 7 with a position" in doubt
    assert "5 x 10 without" in doubt


def test_layouts_that_always_have_a_position_for_the_class_token(tmp_path):
    config = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=96)
    config = transformers.ViTConfig(**config, image_size=(32, 48), patch_size=8, num_labels=3)
    hf = randomise(transformers.ViTForImageClassification(config), 0)
    path = saved(tmp_path, state(hf))
    with pytest.raises(ValueError, match="has 25 positions for 1 prefix tokens and a grid that is not square"):
        load_model(path, num_heads=1)
    model = load_model(path, num_heads=1, input_size=(32, 48), norm_eps=1e-12)
    assert same(model, lambda x: hf(x).logits, torch.randn(1, 3, 32, 48))
    assert not any(line.startswith("a grid of") for line in model.load_report.assumed)


def test_registers_with_and_without_positions(tmp_path):
    for options in ({"no_embed_class": True}, {}):
        net = network(img_size=(16, 64), reg_tokens=4, **options)
        model, _ = grid_of(tmp_path, net, input_size=(16, 64))
        assert same(model, net, torch.randn(1, 3, 16, 64))


def test_a_position_for_the_class_token_alone_before_registers(tmp_path):
    """The release of DINOv2 with registers, without its mask token."""
    net = network(reg_tokens=4, no_embed_class=True)
    place, tensors = torch.randn(1, 1, 64), state(net)
    tensors["cls_token"] = tensors["cls_token"] - place
    tensors["pos_embed"] = torch.cat([place, tensors["pos_embed"]], dim=1)
    assert same(loaded(tmp_path, tensors), net)


@pytest.mark.parametrize(("size", "grid"), [((32, 32), (2, 4)), ((64, 64), (4, 8))])
def test_patches_that_are_not_square(tmp_path, size, grid):
    net = network(img_size=size, patch_size=(16, 8))
    model, doubt = grid_of(tmp_path, net)
    assert model.config.grid == grid
    assert f"a grid of {grid[0]} x {grid[1]}" in doubt
    assert same(model, net, torch.randn(1, 3, *size))


def test_one_axis(tmp_path):
    from ndvit import VisionTransformer, ViTConfig

    config = dict(patch_size=4, in_channels=1, embed_dim=64, depth=1, num_heads=1, num_classes=3)
    net = randomise(VisionTransformer(ViTConfig(input_size=(96,), **config)), 0)
    model, doubt = grid_of(tmp_path, net)
    assert model.config.input_size == (96,)
    assert "a grid of 24 with a position for the class token for 25 positions (25 without" in doubt
    net = randomise(VisionTransformer(ViTConfig(input_size=(100,), pos_embed_prefix=False, **config)), 0)
    model, _ = grid_of(tmp_path, net, input_size=(100,))
    assert same(model, net, torch.randn(1, 1, 100))


# files that are no plain weights


def test_adapters(tmp_path):
    adapters = {
        f"base_model.model.blocks.{i}.attn.qkv.lora_{side}.weight": torch.ones(2, 2) for i in "01" for side in "AB"
    }
    with pytest.raises(ValueError, match="a LoRA adapter: merge it into its model and save that"):
        loaded(tmp_path, adapters)
    whole = {f"base_model.model.{n.replace('mlp.fc1.', 'mlp.fc1.base_layer.')}": t for n, t in VIT.items()}
    with pytest.raises(ValueError, match=r"LoRA adapters that are not merged .*merge_and_unload\(\)"):
        loaded(tmp_path, whole | adapters)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(tmp_path, dtype):
    content = {"model": {name: tensor.to(dtype) for name, tensor in VIT.items()}}
    rounded = network()
    rounded.load_state_dict({name: tensor.to(dtype).float() for name, tensor in VIT.items()})
    assert same(loaded(tmp_path, content), rounded)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantised_weights(tmp_path):
    name = "blocks.0.mlp.fc1.weight"
    small = VIT[name].clamp(-1, 1).mul(127).to(torch.int8)
    for content in (VIT | {name: small}, VIT | {"blocks.0.mlp.fc1.SCB": torch.ones(256)}):
        with pytest.raises(ValueError, match=r"is quantised .*: save the weights before their quantisation"):
            loaded(tmp_path, {"model": content})
    quantised = torch.quantize_per_tensor(VIT[name], 0.1, 0, torch.qint8)
    with pytest.raises(ValueError, match="is quantised"):
        loaded(tmp_path, VIT | {name: quantised})


def test_whole_modules(tmp_path):
    with pytest.raises(
        ValueError, match=r"class timm\S+VisionTransformer, not just tensors.*Save model\.state_dict\(\)"
    ):
        loaded(tmp_path, NET)


def test_a_folder_of_a_trainer(tmp_path):
    for step in (500, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
        save_file(VIT, tmp_path / f"checkpoint-{step}" / "model.safetensors")
        torch.save({}, tmp_path / f"checkpoint-{step}" / "optimizer.pt")
    state = {"best_model_checkpoint": "out/checkpoint-500"}
    (tmp_path / "checkpoint-1000" / "trainer_state.json").write_text(json.dumps(state))
    words = r"without weights; but with 2 checkpoints: .* newest is \S+checkpoint-1000, the best .* is checkpoint-500$"
    with pytest.raises(FileNotFoundError, match=words):
        load_model(tmp_path)
    assert same(load_model(tmp_path / "checkpoint-1000", num_heads=1), NET)


def test_a_folder_of_lightning(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    saved(tmp_path / "checkpoints", {"state_dict": VIT}, "epoch=3-step=40.ckpt")
    with pytest.raises(FileNotFoundError, match=r"the newest is \S+epoch=3-step=40\.ckpt"):
        load_model(tmp_path)


def test_states_of_optimizers_beside_the_only_weights(tmp_path):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin"):
        saved(tmp_path, {}, name)
    saved(tmp_path, VIT, "best.pth")
    assert same(load_model(tmp_path, num_heads=1), NET)


# checkpoints of our own


def test_a_checkpoint_of_a_run_is_a_model(tmp_path):
    x, y = toy(shape=(1, 24))
    trained = fit_tiny((x, y), tmp_path, steps=4, val_every=2, ema_decay=0.9, test_fraction=0.25)
    from ndvit.model import load_model

    model = load_model(tmp_path / "checkpoints" / "step=4.ckpt")
    assert (model.task, model.preprocess) == (trained.model.task, trained.model.preprocess)
    assert model.provenance["steps"] == 4
    inputs = torch.stack([model.preprocess(row) for row in x[:4]])
    assert torch.equal(model(inputs), trained.model(inputs))
    newest = load_model(tmp_path / "checkpoints" / "step=4.ckpt", ema=False)
    assert not torch.equal(newest(inputs), model(inputs))
    assert any("ema=False reads the others" in note for note in model.load_report.notes)
    assert len(model.predict(x[:2], **QUIET)) == 2


@pytest.mark.parametrize("name", ["unfinished-network", "unfinished-signal"])
def test_checkpoints_of_earlier_versions(name, request):
    path = next((request.path.parent / "data" / name / "checkpoints").glob("*.ckpt"))
    model = load_model(path)
    assert model.task is None
    assert answers(model, torch.randn(2, model.config.in_channels, *model.config.input_size)).shape[0] == 2
    assert any("holds neither classes nor preprocessing" in note for note in model.load_report.notes)


# the command line


def test_commands_take_the_choice(tmp_path, capsys):
    path = saved(tmp_path, {"model": under("student.", STUDENT) | under("teacher.")})
    for words in (("--no-ema",), ()):
        assert command("info", path, "--num-heads", 1, *words) == 0
        kind = "weights" if words else "averaged weights"
        assert f"the {kind} under 'model.{'student' if words else 'teacher'}.'" in " ".join(
            capsys.readouterr().out.split()
        )
    assert command("convert", f"{path}#model.student", tmp_path / "out.pth", "--to", "timm", "--num-heads", 1) == 0
    assert torch.equal(torch.load(tmp_path / "out.pth")["cls_token"], STUDENT["cls_token"])
    assert command("info", saved(tmp_path, VIT), "--ema") == 2
    assert "has no averaged weights" in capsys.readouterr().err


def test_a_warning_of_what_was_assumed_once_for_each_model(tmp_path):
    from ndvit.model import load_model

    model = load_model(saved(tmp_path, state(network(classes=3))), num_heads=1, classes=("a", "b", "c"))
    picture = Image.new("RGB", (40, 40))
    with pytest.warns(WeightsWarning, match="norm_eps 1e-06, usual in the timm layout; set norm_eps=") as caught:
        model.predict([picture], **QUIET)
    assert caught[0].filename == __file__
    model.predict([picture], **QUIET)
    model.embed([picture], **QUIET)
