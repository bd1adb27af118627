"""Parts that networks of other libraries brought along: xPos, RMSNorm, wide heads, steps of patches, Mantis's stem."""

import pytest
import torch
import torch.nn.functional as F

from ndvit.config import ViTConfig
from ndvit.network import VisionTransformer
from ndvit.network.grid import observed_patches, patchify
from ndvit.network.layers import rotate
from ndvit.network.positions import rope_periods, xpos_decay, xpos_table
from smallnetworks import batch, spread

SMALL = dict(embed_dim=24, depth=2, num_heads=4, num_classes=5, in_channels=2)
SIZES = {
    "1d": dict(input_size=(24,), patch_size=4),
    "2d": dict(input_size=(8, 12), patch_size=(4, 3)),
    "3d": dict(input_size=(4, 6, 8), patch_size=(2, 3, 4)),
}
dims = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
MANTIS = dict(stem="mantis", patch_size=1, stem_strides=4, stem_width=16, stem_kernel=5, in_channels=1, patch_norm=True)


def build(size, **values):
    return spread(VisionTransformer(ViTConfig(**(SMALL | size | values))))


def logits_of(grid, dim=12):
    """Products of one query and one key at every two tokens of a grid behind one prefix token."""
    table = xpos_table(grid, 6.28 * rope_periods(dim, len(grid), 100.0), xpos_decay(dim, len(grid)), prefix=1)
    q, k = (torch.randn(dim, generator=torch.Generator().manual_seed(i)).expand(len(table[0]), -1) for i in (0, 1))
    return rotate(q, table[:2]) @ rotate(k, table[2:]).T


def test_xpos_depends_on_differences_of_places():
    logits = logits_of((9,))[1:, 1:]
    for offset in range(-8, 9):
        same = logits.diagonal(offset)
        torch.testing.assert_close(same, same[:1].expand_as(same), atol=1e-4, rtol=1e-4)
    logits = logits_of((3, 4))[1:, 1:].unflatten(0, (3, 4)).unflatten(2, (3, 4))
    torch.testing.assert_close(logits[0, 1, 1, 3], logits[1, 0, 2, 2], atol=1e-4, rtol=1e-4)
    assert abs(logits[0, 1, 1, 3] - logits[1, 1, 0, 3]) > 1e-3


def test_the_prefix_of_xpos_stands_behind_the_last_patch():
    longer = logits_of((10,))
    torch.testing.assert_close(logits_of((9,))[0, 1:], longer[-1, 1:-1], atol=1e-4, rtol=1e-4)


@dims
def test_xpos_in_any_number_of_dimensions(size):
    model = build(size, pos_embed="xpos", head_dim=12)
    x = batch(model)
    shuffled = model(x.flip(2))
    assert model(x).shape == (3, 5)
    assert not torch.allclose(model(x), shuffled, atol=1e-3)
    assert "pos_embed" not in model.state_dict()
    assert build(size, pos_embed="xpos", head_dim=12, patch_drop_rate=0.5).train()(x).shape == (3, 5)


def test_width_of_a_head():
    model = build(SIZES["1d"], head_dim=10)
    attention = model.blocks[0].attn
    assert (attention.qkv.out_features, attention.proj.in_features, attention.scale) == (120, 40, 10**-0.5)
    assert model(batch(model)).shape == (3, 5)
    usual = build(SIZES["1d"], head_dim=6)
    assert {n: t.shape for n, t in usual.state_dict().items()} == {
        n: t.shape for n, t in build(SIZES["1d"]).state_dict().items()
    }


def test_rms_norms():
    model = build(SIZES["2d"], norm="rms", norm_eps=0.1, pre_norm=True, patch_norm=True, qk_norm=True)
    without_bias = {name for name, module in model.named_modules() if isinstance(module, torch.nn.RMSNorm)}
    assert without_bias == {"norm_pre", "norm", *(f"blocks.{i}.norm{j}" for i in (0, 1) for j in (1, 2))}
    x = torch.randn(3, 24)
    expected = x / (x.square().mean(1, keepdim=True) + 0.1).sqrt() * model.norm.weight
    torch.testing.assert_close(model.norm(x), expected)
    model.init_weights()
    assert bool((model.norm.weight == 1).all())


@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_without_a_final_norm(pooling):
    model = build(SIZES["1d"], final_norm=False, pooling=pooling)
    stages = model.stages(batch(model), blocks=(1,))
    assert torch.equal(stages.encoded, stages.blocks[1])
    assert not {name for name in model.state_dict() if name.startswith(("norm.", "fc_norm."))}


def test_epsilon_of_the_patch_norm():
    assert build(SIZES["1d"], patch_norm=True, patch_norm_eps=1e-15).patch_embed.norm.eps == 1e-15
    assert build(SIZES["1d"], patch_norm=True, norm_eps=1e-3).patch_embed.norm.eps == 1e-3


def test_the_mean_of_the_prefix_tokens():
    model = build(SIZES["1d"], pooling="prefix_avg", num_registers=1, head_norm="layer")
    x = batch(model)
    pooled = model.stages(x).encoded[:, :2].mean(1)
    normed = F.layer_norm(pooled, (24,), model.head_norm.weight, model.head_norm.bias, model.config.norm_eps)
    torch.testing.assert_close(model.features(x), normed)


def test_patches_at_steps():
    model = build(dict(input_size=(10, 17), patch_size=(4, 6)), patch_stride=(3, 5))
    assert model.config.grid == (3, 3)
    assert (model.config.token_size, model.config.token_step) == ((4, 6), (3, 5))
    x = batch(model)
    assert model(x).shape == (3, 5)
    changed = x.clone()
    changed[:, :, :, 16] = 9  # the last sample along this axis is in no patch
    assert torch.equal(model(x), model(changed))
    usual = build(SIZES["2d"])
    usual_again = VisionTransformer(ViTConfig(**(SMALL | SIZES["2d"]), patch_stride=(4, 3)))
    usual_again.load_state_dict(usual.state_dict())
    x = batch(usual)
    assert torch.equal(usual(x), usual_again(x))


def test_observed_patches_at_steps():
    mask = torch.rand(4, 10, 17) > 0.9
    found = observed_patches(mask, (4, 6), (3, 5)).view(4, 3, 3)
    for row in range(3):
        for column in range(3):
            window = mask[:, 3 * row : 3 * row + 4, 5 * column : 5 * column + 6]
            assert torch.equal(found[:, row, column], window.flatten(1).any(1))
    assert torch.equal(observed_patches(mask[:, :8, :12], (4, 6), (4, 6)), patchify(mask[:, :8, :12], (4, 6)).any(2))


def test_masked_patches_at_steps_have_no_effect():
    model = build(dict(input_size=(10, 17), patch_size=(4, 6)), patch_stride=(3, 5)).eval()
    x, mask = batch(model), torch.ones(3, 10, 17, dtype=torch.bool)
    mask[:, :4] = False  # the first row of patches
    changed = x.clone()
    changed[:, :, :3] = 9  # in no other patch
    torch.testing.assert_close(model(x, mask), model(changed, mask))


@pytest.mark.parametrize("size", [(32,), (12, 16), (4, 8, 8)], ids=["1d", "2d", "3d"])
def test_mantis_in_any_number_of_dimensions(size):
    model = build(dict(input_size=size), **MANTIS)
    stem = model.stages(batch(model)).stem
    assert stem.shape == (3, model.config.stem_channels, *(n // 4 for n in size))
    assert model.config.stem_channels == 16 * (1 + len(size)) + 2 * 2
    model(batch(model)).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_mantis_sees_shape_and_level_apart():
    model = build(dict(input_size=(32,)), **MANTIS)
    x = batch(model)
    before, after = model.stages(x).stem, model.stages(5 * x + 100).stem
    torch.testing.assert_close(before[:, :32], after[:, :32], atol=1e-3, rtol=1e-3)
    assert (before[:, 32:] - after[:, 32:]).abs().min(1).values.max() > 1e-3


def test_a_constant_signal_has_finite_outputs_and_gradients():
    model = build(dict(input_size=(32,)), **MANTIS)
    x = torch.full((2, 1, 32), 3.0, requires_grad=True)
    model(x).sum().backward()
    assert bool(x.grad.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_checkpointing_the_stem_of_mantis_changes_nothing():
    model = build(dict(input_size=(32,)), **MANTIS).train()
    x = batch(model)
    model(x).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.grad_checkpointing = True
    model(x).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])


def test_new_networks_have_the_initial_weights_of_mantis():
    model = VisionTransformer(ViTConfig(**(SMALL | MANTIS | dict(input_size=(32,)))))
    encoder = model.patch_embed.backbone.scalars[0]
    assert 0 <= encoder.slope.min() < encoder.slope.max() <= 1
    assert bool((encoder.norm_weight == 1).all())
    assert "patch_embed.backbone.scalars.0.norm_weight" in {
        name for group in model.parameter_groups() if not group["decay"] for name in group["names"]
    }


@pytest.mark.parametrize("values", [dict(pos_embed="xpos", norm="rms", final_norm=False), dict(pooling="token_avg")])
def test_exports_of_mantis(values):
    model = build(dict(input_size=(32,)), **MANTIS, **values).eval()
    x = batch(model)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.testing.assert_close(program.module()(x[:2]), model(x[:2]))
