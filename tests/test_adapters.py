"""What is trained of a network: frozen blocks stay unchanged, adapters are merged, and everything is restored."""

import numpy as np
import pytest
import torch
from torch import nn

from ndvit.config import ViTConfig
from ndvit.config.recipe import Recipe
from ndvit.network import VisionTransformer
from ndvit.network.committee import solved_networks
from ndvit.training.adapters import check_adapters, describe_trainable, only_trainable
from ndvit.training.callbacks.checkpoints import Checkpoints
from ndvit.training.optim import build_optimizer
from smallnetworks import batch, spread
from tinyruns import different, fit_tiny, tensors, toy

DEPTH = 2
STEM = {"stem": "inception", "stem_depths": (1,), "stem_width": 4, "stem_dilations": (1, 2), "pooling": "stem_tokens"}


def network(**options) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"input_size": (16,), "patch_size": 4, "in_channels": 2, "embed_dim": 8, "num_heads": 2}
    return VisionTransformer(ViTConfig(**sizes, depth=DEPTH, num_classes=3, **options))


@pytest.mark.parametrize(
    ("freeze", "trained"),
    [
        (None, {"patch_embed", "cls_token", "pos_embed", "blocks.0", "blocks.1", "norm", "head"}),
        (0, {"blocks.0", "blocks.1", "norm", "head"}),
        (1, {"blocks.1", "norm", "head"}),
        (2, {"norm", "head"}),
    ],
)
def test_blocks_from_the_input_on_are_frozen(freeze, trained):
    model = network()
    with only_trainable(model, Recipe(freeze=freeze)) as frozen:
        names = {n for n, p in model.named_parameters() if p.requires_grad}
        assert {".".join(n.split(".")[: 2 if n.startswith("blocks") else 1]) for n in names} == trained
        assert len(frozen) == (0 if freeze is None else 2 + freeze)
        groups = build_optimizer(model, Recipe(freeze=freeze)).param_groups
        assert sum(len(group["params"]) for group in groups) == len(names)
    assert all(p.requires_grad for p in model.parameters())


@pytest.fixture(scope="module")
def first():
    """A trained model with a convolutional stem."""
    return fit_tiny(toy(classes=3), steps=2, **STEM)


def tune(weights, **options):
    return fit_tiny(toy(classes=3), weights=weights.model, preset="basic", learning_rate=0.05, warmup=0.0, **options)


@pytest.mark.parametrize("options", [{"freeze": 1}, {"lora": 2}], ids=["freeze", "lora"])
def test_frozen_parts_stay_unchanged_and_the_rest_learns(first, options):
    if "lora" in options:
        pytest.importorskip("peft")
    before = {name: tensor.clone() for name, tensor in tensors(first).items()}
    changed = different(first, tune(first, steps=3, **options))
    front = ("patch_embed", "cls_token", "pos_embed")  # with the statistics of the stem's BatchNorm
    if "freeze" in options:
        assert changed == {n for n in before if not n.startswith((*front, "blocks.0"))}
    else:
        assert {n for n in changed if n.startswith("blocks.0")}
        assert not {n for n in changed if n.startswith(front)}
    assert any(name.endswith("running_mean") for name in before.keys() - changed)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(first).items())  # the weights themselves


def test_adapters_change_the_keys_that_tokens_are_merged_by():
    model = spread(network(merge_tokens=1))
    x = batch(model)
    with only_trainable(model, Recipe(lora=2)):
        before = model(x).detach()
        for name, p in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p)
        keys = model.blocks[0].attn.mean_keys(torch.ones(1, 1, 8))
        tuned = model(x).detach()
    assert (tuned - before).abs().max() > 0.1
    torch.testing.assert_close(model.blocks[0].attn.mean_keys(torch.ones(1, 1, 8)), keys)
    torch.testing.assert_close(model(x).detach(), tuned, atol=1e-4, rtol=1e-4)  # merged as it was tuned


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": 3}, "freeze is 3, and the network has 2 blocks: use at most 2"),
        ({"freeze": 1, "lora": 2}, "freeze and lora both choose what is trained: use one of them"),
        ({"head": "solved"}, r"a solved head .* cannot learn from a teacher: leave the teacher out"),
        ({"lora": 0}, "lora must be a whole number of at least 1, got 0"),
    ],
)
def test_what_cannot_be_adapted_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check_adapters(Recipe(**options), DEPTH, taught=True)


@pytest.mark.parametrize("part", [{"freeze": 0}, {"freeze": 1}, {"freeze": 2}, {"lora": 3}])
@pytest.mark.parametrize("options", [{}, {"activation": "swiglu"}, {"distilled": True}])
def test_trained_parameters_are_counted_and_described(part, options):
    if "lora" in part:
        pytest.importorskip("peft")
    model, recipe = network(**options), Recipe(**part)
    state = torch.get_rng_state()
    text = describe_trainable(model, recipe)
    assert torch.equal(torch.get_rng_state(), state)  # adapters are drawn from it later
    total = sum(p.numel() for p in model.parameters())
    with only_trainable(model, recipe):
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert text.startswith(f"{trained:,} of {total:,} parameters (")
    which = "adapters of rank 3 in all 2" if recipe.lora else f"the first {recipe.freeze} of 2 blocks"
    assert which in text


def test_all_parameters_or_the_head_alone():
    assert describe_trainable(network(), Recipe()) is None
    assert describe_trainable(network(), Recipe(head="solved")).startswith("27 of ")  # 3 classes of 8 numbers and 1


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_adapters_learn_in_place_of_the_blocks_and_are_merged(activation):
    pytest.importorskip("peft")
    model = network(activation=activation)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(4, 2, 16)
    with only_trainable(model, Recipe(lora=2)):
        trained = [n for n, p in model.named_parameters() if p.requires_grad]
        adapted = {n.partition(".lora_")[0] for n in trained if ".lora_" in n}
        linear = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
        assert adapted == {f"blocks.{i}.{name}" for i in range(DEPTH) for name in linear}
        assert {n for n in trained if ".lora_" not in n} == {"head.weight", "head.bias"}
        optimizer = build_optimizer(model, Recipe(learning_rate=0.1, warmup=0.0))
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        outputs = model.eval()(x)
    after = model.state_dict()
    assert after.keys() == before.keys()
    changed = {name.rpartition(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {*adapted, "head"}
    moved = [(after[f"{n}.weight"] - before[f"{n}.weight"]).numpy() for n in adapted]
    assert {np.linalg.matrix_rank(change, 1e-4) for change in moved} == {2}
    assert torch.allclose(model(x), outputs, atol=1e-5)
    assert all(p.requires_grad for p in model.parameters())


def test_a_training_with_adapters_resumes_to_the_same_result(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    options = {"preset": "basic", "lora": 2, "steps": 6, "val_every": 2, "learning_rate": 0.01}
    options["weights"] = fit_tiny(toy(), steps=1).model
    whole, end_step = fit_tiny(toy(), **options), Checkpoints._end_step

    def stop_at_four(self, trainer):
        self.requested = trainer.global_step == 4
        end_step(self, trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_end_step", stop_at_four)
        assert fit_tiny(toy(), tmp_path, **options).interrupted
    resumed = fit_tiny(toy(), tmp_path, resume=True, **options)
    assert not different(resumed, whole)
    assert resumed.fit.history == whole.fit.history
    assert not any("lora" in name for name in tensors(whole))


def test_random_convolutions_are_solved_beside_adapters():
    pytest.importorskip("peft")
    sizes = {
        "model": "signal_tiny",
        "embed_dim": 16,
        "num_heads": 2,
        "stem_width": 4,
        "rocket_features": 168,
        "solved_weight": 0.5,
    }
    source = toy(shape=(1, 24))
    before = fit_tiny(source, steps=1, **sizes)
    trained = fit_tiny(source, weights=before.model, preset="basic", lora=2, steps=2)
    head = solved_networks(trained.model.network)[0].head
    assert head.weight.abs().sum() > 0
    assert not head.weight.requires_grad
