"""What learns of a network: frozen blocks stand still, adapters are merged, and nothing is left changed behind."""

import numpy as np
import pytest
import torch

from ndvit.config import ViTConfig
from ndvit.network import VisionTransformer
from ndvit.training.adapters import check_adapters, learning_part
from ndvit.training.optim import Lamb, build_optimizer
from ndvit.training.recipe import Recipe
from tinyruns import resume_quietly, run_tiny, same_result, tensors, toy

DEPTH = 2
STEM = {"stem": "inception", "stem_depths": (1,), "stem_width": 4, "stem_dilations": (1, 2)}


def network(**options) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"input_size": (16,), "patch_size": 4, "in_channels": 2, "embed_dim": 8, "num_heads": 2}
    return VisionTransformer(ViTConfig(**sizes, depth=DEPTH, num_classes=3, **options))


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
    options = {"learning_rate": 0.05, "warmup": 0.0, "pooling": "stem_tokens", **STEM}
    run_tiny(data, tmp_path / "short", steps=1, freeze=1, **options)
    run_tiny(data, tmp_path / "long", steps=4, freeze=1, **options)
    one, four = tensors(tmp_path / "short"), tensors(tmp_path / "long")
    same = {name for name in one if torch.equal(one[name], four[name])}
    first = {n for n in one if n.startswith(("patch_embed", "blocks.0", "cls_token", "pos_embed"))}
    assert same == first  # with the statistics of the stem's BatchNorm


def test_what_cannot_be_frozen_is_refused():
    with pytest.raises(ValueError, match="freeze is 3, and the network has 2 blocks"):
        check_adapters(Recipe(freeze=3), DEPTH)
    with pytest.raises(ValueError, match="freeze and lora say different things"):
        check_adapters(Recipe(freeze=1, lora=2), DEPTH)
    with pytest.raises(ValueError, match="a teacher and ema_decay cannot be had with head='solved'"):
        check_adapters(Recipe(head="solved", ema_decay=0.9), DEPTH, taught=True)
    with pytest.raises(ValueError, match="lora must be a whole number, at least 1; got 0"):
        Recipe(lora=0)


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

    options = {"lora": 2, "steps": 6, "val_every": 2, "learning_rate": 0.01}
    run_tiny(toy(), tmp_path / "whole", **options)
    end_step = Checkpoints._end_step

    def stop_at_four(self, trainer):
        self.requested = trainer.global_step == 4
        end_step(self, trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_end_step", stop_at_four)
        assert run_tiny(toy(), tmp_path / "broken", **options).interrupted
    resume_quietly(tmp_path / "broken", toy())
    assert same_result(tmp_path / "broken", tmp_path / "whole")
    assert not any("lora" in name for name in tensors(tmp_path / "whole"))


def test_random_convolutions_are_solved_beside_adapters(tmp_path):
    pytest.importorskip("peft")
    sizes = {"model": "signal_tiny", "embed_dim": 16, "num_heads": 2, "stem_width": 4, "rocket_features": 168}
    run = run_tiny(toy(shape=(1, 24)), tmp_path / "run", lora=2, steps=2, **sizes)
    assert run.model.rocket.head.weight.abs().sum() > 0
    assert not run.model.rocket.head.weight.requires_grad


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
