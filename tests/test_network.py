"""What the network computes, in one, two and three dimensions: shapes, counts, equalities, gradients, statistics."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from ndvit.config import ViTConfig, list_models, named_config
from ndvit.network import VisionTransformer, count_cost, create_model
from ndvit.network.fast import only_read_tokens
from ndvit.network.grid import patchify
from ndvit.network.layers import Attention, DropPath
from ndvit.network.positions import sincos_positions
from smallnetworks import batch, patches_to_mask, spread

SIZES = {
    "1d": dict(input_size=(24,), patch_size=4),
    "2d": dict(input_size=(8, 12), patch_size=(4, 3)),
    "3d": dict(input_size=(4, 6, 8), patch_size=(2, 3, 4)),
}
SMALL = dict(in_channels=2, embed_dim=24, depth=3, num_heads=4, num_classes=5)
VARIANTS = {
    "plain": {},
    "norms": dict(patch_norm=True, pre_norm=True, qk_norm=True),
    "sincos": dict(pos_embed="sincos"),
    "average": dict(pooling="avg"),
    "average without token": dict(pooling="avg", class_token=False),
    "map": dict(pooling="map", class_token=False),
    "registers": dict(num_registers=3, pos_embed_prefix=False),
    "distilled": dict(distilled=True),
    "representation": dict(representation_size=10),
    "swiglu": dict(activation="swiglu", mlp_ratio=8 / 3, layer_scale=0.1),
    "tanh": dict(activation="gelu_tanh", qkv_bias=False, qk_scale=0.3),
    "overlap": dict(patch_overlap=True),
    "relative": dict(relative_bias=True, pooling="norm_avg"),
    "head": dict(head_norm="batch", head_drop=0.1),
}
dims = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def build(size, **values):
    return VisionTransformer(ViTConfig(**(SMALL | size | values)))


@dims
@variants
def test_shapes_gradients_and_tokens(size, variant):
    model = spread(build(size, **variant))
    x = batch(model)
    assert model.stages(x).encoded.shape == (3, model.num_prefix_tokens + model.config.num_patches, 24)
    out = model(x)
    pair = out if model.config.distilled else (out,)
    assert [o.shape for o in pair] == [(3, 5)] * (1 + model.config.distilled)
    sum(F.cross_entropy(o, torch.tensor([0, 1, 4])) for o in pair).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


COUNTS = {  # SPEC.md and facts/checkpoints.md 3.1
    ("vit_tiny_patch16_224", ()): (5_717_416, 1.254),
    ("vit_small_patch32_224", ()): (22_878_952, 1.143),
    ("vit_small_patch16_224", ()): (22_050_664, 4.599),
    ("vit_small_patch8_224", ()): (22_055_272, 22.406),
    ("vit_base_patch32_224", ()): (88_224_232, 4.409),
    ("vit_base_patch16_224", ()): (86_567_656, 17.564),
    ("vit_base_patch8_224", ()): (86_576_872, 78.148),
    ("vit_large_patch32_224", ()): (306_535_400, 15.378),
    ("vit_large_patch16_224", ()): (304_326_632, 61.555),
    ("vit_large_patch14_224", ()): (304_203_752, 81.013),
    ("vit_huge_patch14_224", ()): (632_045_800, 167.295),
    ("vit_tiny_patch16_384", ()): (5_790_376, 4.682),
    ("vit_small_patch16_384", ()): (22_196_584, 15.490),
    ("vit_base_patch32_384", ()): (88_297_192, 13.044),
    ("vit_base_patch16_384", ()): (86_859_496, 55.484),
    ("vit_large_patch16_384", ()): (304_715_752, 191.066),
    ("vit_tiny_patch16_224", (("distilled", True),)): (5_910_800, None),
    ("vit_small_patch16_224", (("distilled", True),)): (22_436_432, None),
    ("vit_base_patch16_224", (("distilled", True),)): (87_338_192, None),
    ("vit_base_patch16_384", (("distilled", True),)): (87_630_032, None),
    ("vit_base_patch16_224", (("patch_norm", True),)): (86_569_192, None),
    ("vit_small_patch16_224", (("layer_scale", 1e-4), ("pos_embed_prefix", False))): (22_059_496, None),  # DeiT-III
    ("vit_huge_patch14_224", (("layer_scale", 1e-4), ("pos_embed_prefix", False))): (632_126_440, None),
    (
        "vit_base_patch14_518",
        (("layer_scale", 1e-5), ("num_classes", 0), ("num_registers", 4), ("pos_embed_prefix", False)),
    ): (86_583_552 - 2 * 768, None),  # DINOv2 with registers, less its mask token and the class token's position
    (
        "vit_base",
        (("input_size", (13,)), ("patch_size", 1), ("in_channels", 1024), ("num_classes", 125), ("patch_norm", True)),
    ): (85_952_381, None),
}


@pytest.mark.parametrize(("name", "overrides", "expected"), [(*k, v) for k, v in COUNTS.items()])
def test_parameter_counts_and_macs(name, overrides, expected):
    with torch.device("meta"):
        model = create_model(name, **dict(overrides))
    assert sum(p.numel() for p in model.parameters()) == expected[0]
    parameters, macs = count_cost(model.config)
    assert parameters == expected[0]
    if expected[1] is not None:  # published for all tokens; the last block computes the class token alone
        width, patches = model.config.embed_dim, model.config.num_patches
        unread = patches * (9 * width**2 + 2 * (patches + 1) * width)  # projection and MLP; attention
        assert round((macs + unread) / 1e9, 3) == expected[1]


def test_cost_by_extrapolation_is_the_cost_of_the_whole_network():
    for values in VARIANTS.values():
        config = ViTConfig(**(SMALL | SIZES["2d"] | values | {"depth": 5}))
        with torch.device("meta"):  # the counter does not know the CPU's fused attention
            model = VisionTransformer(config).eval()
            with FlopCounterMode(display=False) as counter, torch.no_grad(), only_read_tokens(model):
                model(torch.empty(1, 2, 8, 12))
        assert count_cost(config) == (sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def test_every_named_model_is_built():
    for name in list_models():
        with torch.device("meta"):
            model = create_model(name, num_classes=3, depth=2)
            x = torch.empty(2, model.config.in_channels, *model.config.input_size)
            assert model.eval()(x).shape == (2, 3)


def test_the_two_networks_of_the_article():
    with torch.device("meta"):
        image = create_model("vit_base_patch16_224", distilled=True)
        assert image.stages(torch.empty(2, 3, 224, 224)).encoded.shape == (2, 198, 768)
        assert [o.shape for o in image(torch.empty(2, 3, 224, 224))] == [(2, 1000)] * 2
        assert image.eval()(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
        signal = create_model("vit_base", input_size=(13,), patch_size=1, in_channels=1024, num_classes=125)
        assert signal(torch.empty(400, 1024, 13)).shape == (400, 125)
    keys = set(
        create_model("vit_pico", input_size=(8,), patch_size=2, patch_norm=True, representation_size=4).state_dict()
    )
    assert {
        "patch_embed.norm.weight",
        "patch_embed.norm.bias",
        "pre_logits.fc.weight",
        "pos_embed",
        "cls_token",
    } <= keys
    keys = set(create_model("vit_pico", input_size=(8,), patch_size=2, distilled=True).state_dict())
    assert {"dist_token", "head_dist.weight", "head_dist.bias"} <= keys


@pytest.mark.parametrize("variant", ["plain", "norms", "average", "map", "registers", "distilled", "swiglu", "tanh"])
def test_equals_timm_with_copied_tensors(variant):
    from functools import partial

    from timm.layers import SwiGLUPacked
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer as Timm

    values = dict(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, num_classes=7)
    theirs_of = {
        "plain": {},
        "norms": dict(qk_norm=True, pre_norm=True),
        "average": dict(global_pool="avg"),
        "map": dict(global_pool="map", class_token=False),
        "registers": dict(reg_tokens=2, no_embed_class=True, init_values=0.1),
        "distilled": {},
        "swiglu": dict(mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU, mlp_ratio=4.0),
        "tanh": dict(act_layer=partial(torch.nn.GELU, approximate="tanh"), qkv_bias=False),
    }
    ours_of = {
        "registers": dict(num_registers=2, pos_embed_prefix=False, layer_scale=0.1),
        "norms": dict(qk_norm=True, pre_norm=True),
        "swiglu": dict(activation="swiglu", mlp_ratio=2.0),
        "tanh": dict(activation="gelu_tanh", qkv_bias=False),
    }
    kind = VisionTransformerDistilled if variant == "distilled" else Timm
    theirs = spread(kind(**values, **theirs_of[variant])).eval()
    common = dict(input_size=(32, 32), patch_size=8, embed_dim=48, depth=3, num_heads=4, num_classes=7)
    ours = VisionTransformer(ViTConfig(**(common | ours_of.get(variant, VARIANTS[variant])))).eval()
    no_bias = {"patch_embed.proj.bias": torch.zeros(48)}  # timm leaves it out under pre_norm, as CLIP does
    ours.load_state_dict(no_bias | theirs.state_dict())
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(x)
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)


def test_attention_equals_the_naive_one():
    attention = spread(Attention(ViTConfig(embed_dim=24, num_heads=4, qk_scale=0.3)))
    x, key_mask = torch.randn(2, 7, 24), torch.rand(2, 1, 1, 7) > 0.3
    q, k, v = attention.qkv(x).reshape(2, 7, 3, 4, 6).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) * 0.3).masked_fill(~key_mask, -torch.inf).softmax(-1)
    naive = attention.proj((weights @ v).transpose(1, 2).reshape(2, 7, 24))
    torch.testing.assert_close(attention(x, key_mask), naive, atol=1e-5, rtol=1e-5)


@variants
def test_one_dimension_equals_two_of_height_one(variant):
    if variant.get("pos_embed") == "sincos":
        pytest.skip("sin-cos positions share the width between the axes")
    line = spread(build(SIZES["1d"], **variant)).eval()
    image = build(dict(input_size=(1, 24), patch_size=(1, 4)), **variant).eval()
    tensors = {k: v[:, :, None] if k == "patch_embed.proj.weight" else v for k, v in line.state_dict().items()}
    image.load_state_dict(tensors)
    x = batch(line)
    torch.testing.assert_close(line(x), image(x[:, :, None]), atol=1e-6, rtol=1e-5)


@dims
@pytest.mark.parametrize("pooling", ["token", "avg", "map"])
def test_masked_values_have_no_effect(size, pooling):
    model = spread(build(size, pooling=pooling)).eval()
    x = batch(model)
    patches = torch.rand(3, model.config.num_patches) > 0.4
    patches[:, 0] = True
    patches[0, -1] = False
    mask = patches_to_mask(model, patches)
    noise = torch.where(mask[:, None], x, torch.randn_like(x) * 9)
    torch.testing.assert_close(model(x, mask), model(noise, mask), atol=1e-5, rtol=1e-5)
    assert (model(x, mask) - model(x)).abs().max() > 1e-3
    everything = torch.ones_like(mask)
    torch.testing.assert_close(model(x, everything), model(x), atol=1e-5, rtol=1e-5)
    # one observed value makes its patch seen
    part = mask.clone()
    part[0].view(-1)[-1] = True
    changed = (model(x, part) - model(x, mask)).abs().amax(1)
    assert changed[0] > 1e-4
    assert changed[1:].max() < 1e-5


def test_patchify_is_what_the_convolution_sees():
    for size in SIZES.values():
        model = build(size)
        x = batch(model)
        conv = model.patch_embed.proj
        patches = torch.stack([patchify(x[:, c], model.config.patch_size) for c in range(2)], dim=2)  # (B, N, C, P)
        expected = patches.flatten(2) @ conv.weight.flatten(1).T + conv.bias
        torch.testing.assert_close(model.patch_embed(x), expected, atol=1e-5, rtol=1e-5)


def test_sincos_positions_by_hand():
    one = sincos_positions((5,), 8)
    assert one.shape == (5, 8)
    assert one[3, 1].item() == pytest.approx(math.sin(3 / 10000**0.25))
    assert one[3, 5].item() == pytest.approx(math.cos(3 / 10000**0.25))
    two = sincos_positions((2, 3), 8)  # MAE: the width's share first
    y, x = 1, 2
    expected = [f(v / 10000 ** (i / 2)) for v in (x, y) for f in (math.sin, math.cos) for i in (0, 1)]
    assert two[y * 3 + x].tolist() == pytest.approx(expected)
    assert len(torch.unique(sincos_positions((3, 4, 5), 12).round(decimals=4), dim=0)) == 60  # every place its own


@dims
def test_initial_statistics(size):
    config = ViTConfig(**(SMALL | size | dict(embed_dim=192, distilled=True, num_classes=500, patch_norm=True)))
    model = VisionTransformer(config)
    fan_out = 192 * math.prod(config.patch_size)
    for name, p in model.named_parameters():
        if name in ("cls_token", "dist_token", "pos_embed"):
            assert p.std().item() == pytest.approx(0.02, rel=0.3), name
        elif name == "patch_embed.proj.weight":
            assert p.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)
        elif "norm" in name and name.endswith("weight"):
            assert (p == 1).all(), name
        elif name.endswith("bias"):
            assert (p == 0).all(), name
        else:
            assert p.std().item() == pytest.approx(0.01, rel=0.1), name
            assert abs(p.mean().item()) < 1e-3, name


def test_drop_path_keeps_the_expectation_and_drops_whole_samples():
    drop, x = DropPath(0.25), torch.ones(4000, 3, 2)
    y = drop(torch.zeros_like(x), torch.clone, x)
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (y == y[:, :1, :1]).all()  # a sample is dropped whole or kept whole
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert y.mean().item() == pytest.approx(1, abs=0.04)
    assert torch.equal(drop.eval()(torch.zeros_like(x), torch.clone, x), x)
    rates = [b.drop_path.rate for b in build(SIZES["1d"], drop_path_rate=0.2).blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])


def test_distilled_returns_a_pair_in_training_and_its_mean_in_evaluation():
    model = spread(build(SIZES["2d"], distilled=True))
    x = batch(model)
    one, two = model(x)
    assert (one - two).abs().max() > 1e-2
    torch.testing.assert_close(model.eval()(x), (one + two) / 2)


FEATURES = VARIANTS | {"merging": dict(merge_tokens=2), "no classes": dict(num_classes=0)}


@dims
@pytest.mark.parametrize("variant", FEATURES.values(), ids=FEATURES)
def test_features_are_what_the_heads_read(size, variant):
    model = spread(build(size, **variant)).eval()
    x, hooked = batch(model), []
    for head in [model.head, *([model.head_dist] if model.config.distilled else [])]:
        head.register_forward_pre_hook(lambda _, inputs: hooked.append(inputs[0]))
    for mask in (None, patches_to_mask(model, torch.rand(3, model.config.num_patches) > 0.4)):
        for model.skip_unread_tokens in (False, True):
            hooked.clear()
            with torch.no_grad():
                model(x, mask)
                features = model.features(x, mask)
            assert torch.equal(features, torch.cat(hooked, dim=1))


@pytest.mark.parametrize("variant", [{}, dict(merge_tokens=2), dict(pooling="avg")])
@dims
def test_stages_are_what_hooks_see(size, variant):
    model = spread(build(size, **variant))
    x, hooked = batch(model), {}
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, inputs, output, i=i: hooked.update({i: (inputs[0], output)}))
    stages = model.stages(x, blocks=range(3))
    assert stages.stem is x
    assert torch.equal(stages.tokens, hooked[0][0])
    assert list(stages.blocks) == [0, 1, 2]
    outputs = [out[0] if variant.get("merge_tokens") else out for _, out in hooked.values()]
    if not variant.get("merge_tokens"):
        assert all(out.shape == (3, 1 + model.config.num_patches, 24) for out in outputs)
    assert all(torch.equal(a, b) for a, b in zip(stages.blocks.values(), outputs, strict=True))
    assert torch.equal(stages.encoded, model.norm(stages.blocks[2]))
    assert torch.equal(model.head(stages.features["head"]), model(x))
    assert list(model.stages(x, blocks=[1]).blocks) == [1]
    with pytest.raises(ValueError, match=r"the network has blocks 0 to 2, got \[-1, 3\]"):
        model.stages(x, blocks=(3, -1))


@dims
def test_loss_falls_on_a_fixed_batch(size):
    model = build(size)
    x, y = batch(model, 8), torch.arange(8) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(5), abs=0.1)
    assert losses[-1] < 0.1


def test_reset_head():
    model = build(SIZES["1d"], distilled=True)
    before = model.blocks[0].attn.qkv.weight.clone()
    model.reset_head(9)
    assert [o.shape for o in model(batch(model))] == [(3, 9)] * 2
    assert model.config.num_classes == 9
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert torch.equal(model.blocks[0].attn.qkv.weight, before)
    model.reset_head(0)
    assert model.eval()(batch(model)).shape == (3, 24)
    assert not [n for n, _ in model.named_parameters() if n.startswith("head")]


def test_parameter_groups_cover_everything_once():
    model = build(SIZES["2d"], pooling="map", num_registers=1, layer_scale=0.1)
    groups = model.parameter_groups()
    names = [n for g in groups for n in g["names"]]
    assert sorted(names) == sorted(n for n, _ in model.named_parameters())
    at = {n: (g["depth"], g["decay"]) for g in groups for n in g["names"]}
    assert at["pos_embed"] == at["cls_token"] == at["reg_token"] == at["patch_embed.proj.bias"] == (0, False)
    assert at["patch_embed.proj.weight"] == (0, True)
    assert at["blocks.2.attn.qkv.weight"] == (3, True)
    assert at["blocks.2.norm1.weight"] == at["blocks.2.ls1.gamma"] == at["blocks.2.mlp.fc1.bias"] == (3, False)
    assert at["norm.weight"] == at["attn_pool.latent"] == (4, False)
    assert at["head.weight"] == at["attn_pool.q.weight"] == (4, True)
    model.head.requires_grad_(False)
    assert "head.weight" not in [n for g in model.parameter_groups() for n in g["names"]]


@dims
def test_gradient_checkpointing_changes_nothing(size):
    model = spread(build(size, drop_path_rate=0.3, drop_rate=0.1))
    x = batch(model)
    gradients = []
    for switch in (False, True):
        model.grad_checkpointing = switch
        torch.manual_seed(3)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("dimension", "variant"),
    [("1d", dict()), ("2d", dict(distilled=True)), ("3d", dict(pooling="map", activation="swiglu"))],
)
def test_exports(dimension, variant):
    size = SIZES[dimension]
    model = spread(build(size, depth=1, **variant)).eval()
    x, mask = batch(model, 4), patches_to_mask(model, torch.rand(4, model.config.num_patches) > 0.4)
    any_batch = {0: torch.export.Dim("batch", min=1, max=64)}
    exported = torch.export.export(model, (x, mask), dynamic_shapes=(any_batch, any_batch)).module()
    for n in (1, 3):
        torch.testing.assert_close(exported(x[:n], mask[:n]), model(x[:n], mask[:n]), atol=1e-5, rtol=1e-5)


def toy_configs():
    """A toy config of each named model, once for all names of which it is the same."""
    configs = {}
    for name in list_models():
        picture = name.startswith("vit_")
        size = dict(input_size=(32, 32), patch_size=16) if picture else dict(input_size=(32,), patch_size=4)
        configs.setdefault(named_config(name, depth=1, num_classes=3, embed_dim=32, num_heads=2, **size), name)
    return [pytest.param(config, id=name) for config, name in configs.items()]


@pytest.mark.parametrize("config", toy_configs())
def test_every_named_model_exports_at_toy_depth(config):
    model = VisionTransformer(config).eval()
    x = batch(model)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dimension", ["1d", "2d"])
def test_compiles_without_graph_breaks(dimension):
    model = spread(build(SIZES[dimension], depth=2, drop_path_rate=0.1))
    x = batch(model)
    expected = model.eval()(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, atol=1e-5, rtol=1e-5)
    compiled.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


WRONG = {
    "channels": (
        (3, 5, 24),
        "expected a floating-point input of shape (batch, 2, 24), got torch.float32 of (3, 5, 24). "
        "The network has in_channels=2, the input 5 channels.",
    ),
    "length": ((3, 2, 25), "Resize or pad the input, or build the network with this input_size."),
    "no batch": ((2, 24), "A single example still needs the batch axis"),
    "dimensions": ((3, 2, 24, 24), "got torch.float32 of (3, 2, 24, 24)."),
}


@pytest.mark.parametrize(("shape", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_shape_names_both(shape, message):
    import re

    with pytest.raises(ValueError, match=re.escape(message)):
        build(SIZES["1d"])(torch.zeros(shape))


def test_wrong_types_and_masks():
    model = build(SIZES["1d"])
    with pytest.raises(ValueError, match=r"got torch.int64 of \(3, 2, 24\)"):
        model(torch.zeros(3, 2, 24, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"boolean mask of shape \(3, 24\), got torch.bool \(3, 2, 24\)"):
        model(torch.zeros(3, 2, 24), torch.ones(3, 2, 24, dtype=torch.bool))
    with pytest.raises(ValueError, match="boolean mask"):
        model(torch.zeros(3, 2, 24), torch.ones(3, 24))


@pytest.mark.parametrize("channels", [1, 3, 64])
def test_balanced_weights_give_positions_the_strength_of_patches(channels):
    config = ViTConfig(
        input_size=(512,),
        patch_size=4,
        in_channels=channels,
        embed_dim=64,
        num_heads=4,
        depth=1,
        weight_init="balanced",
    )
    model = VisionTransformer(config)
    patches = model.patch_embed(torch.randn(8, channels, 512))
    assert model.pos_embed.std().item() == pytest.approx(patches.std().item(), rel=0.15)
    assert model.blocks[0].mlp.fc2.weight.std().item() == pytest.approx(256**-0.5, rel=0.1)
