"""What learns of a network: frozen blocks stand still, adapters are merged, and nothing is left changed behind."""

import numpy as np
import pytest
import torch

from ndvit.config import ViTConfig
from ndvit.config.recipe import Recipe
from ndvit.network import VisionTransformer
from ndvit.training.adapters import check_adapters, learning_in_words, learning_part
from ndvit.training.optim import Lamb, build_optimizer
from ndvit.training.run import train
from smallnetworks import batch, spread
from tinyruns import QUIET, resume_quietly, run_tiny, same_result, tensors, toy

DEPTH = 2
STEM = {"stem": "inception", "stem_depths": (1,), "stem_width": 4, "stem_dilations": (1, 2)}


def network(**options) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"input_size": (16,), "patch_size": 4, "in_channels": 2, "embed_dim": 8, "num_heads": 2}
    return VisionTransformer(ViTConfig(**sizes, depth=DEPTH, num_classes=3, **options))


def tune(data, folder, weights, **options):
    """A run that begins with the weights of another."""
    return train(data, output=folder, weights=weights, preset="basic", **QUIET, **options)


@pytest.mark.parametrize(
    ("freeze", "learning"),
    [
        (None, {"patch_embed", "cls_token", "pos_embed", "blocks.0", "blocks.1", "norm", "head"}),
        (0, {"blocks.0", "blocks.1", "norm", "head"}),
        (1, {"blocks.1", "norm", "head"}),
        (2, {"norm", "head"}),
    ],
)
def test_blocks_from_the_input_on_are_frozen(freeze, learning):
    model = network()
    with learning_part(model, Recipe(freeze=freeze)) as still:
        names = {n for n, p in model.named_parameters() if p.requires_grad}
        assert {".".join(n.split(".")[: 2 if n.startswith("blocks") else 1]) for n in names} == learning
        assert len(still) == (0 if freeze is None else 2 + freeze)
        groups = build_optimizer(model, Recipe(freeze=freeze)).param_groups
        assert sum(len(group["params"]) for group in groups) == len(names)
    assert all(p.requires_grad for p in model.parameters())


def test_frozen_parts_of_a_run_stand_still_and_the_rest_learns(tmp_path):
    data = toy(classes=3)
    first, options = tmp_path / "first", {"learning_rate": 0.05, "warmup": 0.0, "freeze": 1}
    run_tiny(data, first, steps=1, pooling="stem_tokens", **STEM)
    tune(data, tmp_path / "short", first, steps=1, **options)
    tune(data, tmp_path / "long", first, steps=4, **options)
    one, four = tensors(tmp_path / "short"), tensors(tmp_path / "long")
    same = {name for name in one if torch.equal(one[name], four[name])}
    first = {n for n in one if n.startswith(("patch_embed", "blocks.0", "cls_token", "pos_embed"))}
    assert same == first  # with the statistics of the stem's BatchNorm


def test_adapters_change_what_tokens_are_merged_by():
    model = spread(network(merge_tokens=1))
    x = batch(model)
    with learning_part(model, Recipe(lora=2)):
        before = model(x).detach()
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p)
        keys = model.blocks[0].attn.mean_keys(torch.ones(1, 1, 8))
        tuned = model(x).detach()
    assert (tuned - before).abs().max() > 0.1
    torch.testing.assert_close(model.blocks[0].attn.mean_keys(torch.ones(1, 1, 8)), keys)
    torch.testing.assert_close(model(x).detach(), tuned, atol=1e-4, rtol=1e-4)  # as merged as it was tuned


def test_what_cannot_be_frozen_is_refused():
    with pytest.raises(ValueError, match="freeze is 3, and the network has 2 blocks"):
        check_adapters(Recipe(freeze=3), DEPTH)
    with pytest.raises(ValueError, match="freeze and lora say different things"):
        check_adapters(Recipe(freeze=1, lora=2), DEPTH)
    with pytest.raises(ValueError, match=r"a solved head .* cannot follow a teacher: leave the teacher out"):
        check_adapters(Recipe(head="solved"), DEPTH, taught=True)
    with pytest.raises(ValueError, match="lora must be a whole number, at least 1; got 0"):
        Recipe(lora=0)


@pytest.mark.parametrize("part", [{"freeze": 0}, {"freeze": 1}, {"freeze": 2}, {"lora": 3}])
@pytest.mark.parametrize("options", [{}, {"activation": "swiglu"}, {"distilled": True}, {"rocket_features": 168}])
def test_what_learns_is_counted_and_said(part, options):
    if "lora" in part:
        pytest.importorskip("peft")
    model, recipe = network(**options), Recipe(**part)
    state = torch.get_rng_state()
    said = learning_in_words(model, recipe)
    assert torch.equal(torch.get_rng_state(), state)  # adapters are drawn from it later
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with learning_part(model, recipe):
        learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert said.startswith(f"{learning:,} of {total:,} parameters (")
    which = "adapters of rank 3 in all 2" if recipe.lora else f"the first {recipe.freeze} of 2 blocks"
    assert which in said


def test_all_of_a_network_learns_or_the_head_alone():
    assert learning_in_words(network(), Recipe()) is None
    assert learning_in_words(network(), Recipe(head="solved")).startswith("27 of ")  # 3 classes of 8 numbers and 1


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_adapters_learn_in_place_of_the_blocks_and_are_merged(activation):
    pytest.importorskip("peft")
    model = network(activation=activation)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(4, 2, 16)
    with learning_part(model, Recipe(lora=2)):
        learning = [n for n, p in model.named_parameters() if p.requires_grad]
        adapted = {n.partition(".lora_")[0] for n in learning if ".lora_" in n}
        linear = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
        assert adapted == {f"blocks.{i}.{name}" for i in range(DEPTH) for name in linear}
        assert {n for n in learning if ".lora_" not in n} == {"head.weight", "head.bias"}
        optimizer = build_optimizer(model, Recipe(learning_rate=0.1, warmup=0.0))
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        learned = model.eval()(x)
    after = model.state_dict()
    assert after.keys() == before.keys()
    changed = {name.rpartition(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {*adapted, "head"}
    assert all(
        np.linalg.matrix_rank((after[f"{n}.weight"] - before[f"{n}.weight"]).numpy(), 1e-4) == 2 for n in adapted
    )
    assert torch.allclose(model(x), learned, atol=1e-5)
    assert all(p.requires_grad for p in model.parameters())


def test_a_run_with_adapters_resumes_to_the_same_result(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    from ndvit.training.callbacks import Checkpoints

    first, options = tmp_path / "first", {"lora": 2, "steps": 6, "val_every": 2, "learning_rate": 0.01}
    run_tiny(toy(), first, steps=1)
    tune(toy(), tmp_path / "whole", first, **options)
    end_step = Checkpoints._end_step

    def stop_at_four(self, trainer):
        self.requested = trainer.global_step == 4
        end_step(self, trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_end_step", stop_at_four)
        assert tune(toy(), tmp_path / "broken", first, **options).interrupted
    resume_quietly(tmp_path / "broken", toy())
    assert same_result(tmp_path / "broken", tmp_path / "whole")
    assert not any("lora" in name for name in tensors(tmp_path / "whole"))


def test_random_convolutions_are_solved_beside_adapters(tmp_path):
    pytest.importorskip("peft")
    sizes = {"model": "signal_tiny", "embed_dim": 16, "num_heads": 2, "stem_width": 4, "rocket_features": 168}
    run_tiny(toy(shape=(1, 24)), tmp_path / "first", steps=1, **sizes)
    run = tune(toy(shape=(1, 24)), tmp_path / "run", tmp_path / "first", lora=2, steps=2)
    assert run.model.rocket.head.weight.abs().sum() > 0
    assert not run.model.rocket.head.weight.requires_grad


def test_batch_norm_in_front_of_adapters_stands_still(tmp_path):
    pytest.importorskip("peft")
    run_tiny(toy(), tmp_path / "first", steps=2, pooling="stem_tokens", **STEM)
    tune(toy(), tmp_path / "run", tmp_path / "first", lora=2, steps=3)
    before, after = tensors(tmp_path / "first"), tensors(tmp_path / "run")
    stem = [name for name in before if name.startswith("patch_embed")]
    assert any(name.endswith("running_mean") for name in stem)
    assert all(torch.equal(before[name], after[name]) for name in stem)
    assert not torch.equal(before["blocks.0.attn.qkv.weight"], after["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lamb_is_timms(decay):
    timm = pytest.importorskip("timm.optim")
    torch.manual_seed(0)
    start = [torch.randn(5, 4), torch.randn(7)]
    results = []
    for make in (Lamb, lambda p, **kw: timm.Lamb(p, max_grad_norm=None, **kw)):
        params = [torch.nn.Parameter(t.clone()) for t in start]
        optimizer = make(params, lr=0.1, betas=(0.8, 0.9), eps=1e-8, weight_decay=decay)
        for i in range(4):
            for p in params:
                p.grad = torch.sin(p.detach() + i)
            optimizer.step()
        results.append(params)
    for ours, theirs in zip(*results):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_new_heads_under_the_sigmoid_loss_begin_rare(tmp_path):
    run = run_tiny(toy(classes=4), tmp_path / "run", steps=1, loss="sigmoid", learning_rate=1e-9)
    assert run.model.head.bias.tolist() == pytest.approx([-np.log(4)] * 4, abs=1e-5)
