"""The hybrid stem, rotary positions and the newer options, against timm, formulas and naive references."""

import math

import pytest
import torch
import torch.nn.functional as F

from ndvit.config import ViTConfig, named_config
from ndvit.network import VisionTransformer, count_cost
from ndvit.network.layers import Attention, QuickGELU, rotate
from ndvit.network.positions import rope_periods, rotary_table
from ndvit.network.stems.resnet import Bottleneck, MaxPoolSame, StdConv
from smallnetworks import batch, patches_to_mask, spread

SMALL = dict(in_channels=2, embed_dim=24, depth=2, num_heads=2, num_classes=5)
STEM = dict(stem="resnet", stem_depths=(1, 2), stem_width=32, patch_size=1)
HYBRIDS = {
    "1d": dict(input_size=(32,), **STEM),
    "2d": dict(input_size=(16, 24), **STEM),
    "3d": dict(input_size=(8, 16, 8), **STEM),
}
ROPES = {
    "1d": dict(input_size=(24,), patch_size=4, pos_embed="rope"),
    "2d": dict(input_size=(8, 12), patch_size=(4, 3), pos_embed="rope"),
    "3d": dict(input_size=(4, 6, 8), patch_size=(2, 3, 4), pos_embed="rope"),
}
hybrids = pytest.mark.parametrize("size", HYBRIDS.values(), ids=HYBRIDS)
ropes = pytest.mark.parametrize("size", ROPES.values(), ids=ROPES)


def build(size, **values):
    return VisionTransformer(ViTConfig(**(SMALL | size | values)))


def same_padded(x, kernel, stride, value=0.0):
    """TensorFlow's rule, written out: ceil(size / stride) windows, padded at both ends, the odd one last."""
    for axis in range(2, x.ndim):
        size = x.shape[axis]
        missing = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        left = x.new_full((*before, missing // 2, *after), value)
        right = x.new_full((*before, missing - missing // 2, *after), value)
        x = torch.cat([left, x, right], axis)
    return x


def windows(x, kernel, stride):
    """(B, C, *size) -> (B, C, *places, *kernel)."""
    dims = x.ndim - 2
    for axis in range(2, 2 + dims):
        x = x.unfold(axis, kernel, stride)
    return x


# the stem against timm's


TIMM = {
    "r50": ("vit_base_r50_s16_224", dict(stem_depths=(3, 4, 9), patch_size=1), 64),
    "r26": ("vit_small_r26_s32_224", dict(stem_depths=(2, 2, 2, 2), patch_size=1), 64),
    "r26 odd grids": ("vit_small_r26_s32_224", dict(stem_depths=(2, 2, 2, 2), patch_size=1), 96),  # 48 24 12 6 3
    "root alone": ("vit_tiny_r_s16_p8_224", dict(stem_depths=(), patch_size=8), 64),
}


@pytest.mark.parametrize("name", TIMM)
def test_hybrids_equal_timm_with_copied_tensors(name):
    import timm

    model, stem, side = TIMM[name]
    theirs = timm.create_model(model, embed_dim=64, depth=2, num_heads=2, img_size=side, num_classes=7).eval()
    config = dict(input_size=(side, side), embed_dim=64, depth=2, num_heads=2, num_classes=7, stem="resnet")
    ours = VisionTransformer(ViTConfig(**config, **stem, stem_numerics="timm")).eval()
    assert ours.config.stem_stride * ours.config.patch_size[0] == (16 if name == "r50" else 32)
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.1 if p.ndim > 1 else 0.5)
    tensors = {k.replace("backbone.conv.", "backbone.stem.conv."): v for k, v in theirs.state_dict().items()}
    tensors = {k.replace("backbone.norm.", "backbone.stem.norm."): v for k, v in tensors.items()}
    ours.load_state_dict(tensors)
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = theirs(x)
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(x), expected, atol=2e-5, rtol=2e-5)
        stem = ours.patch_embed.backbone(x), theirs.patch_embed.backbone(x)
    torch.testing.assert_close(*[s[-1] if isinstance(s, list) else s for s in stem], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("size", [(64, 41), (33, 7), (5, 5), (1, 2)])
def test_any_size_passes_the_stem_as_through_timms(size):
    from timm.models.resnetv2 import ResNetV2

    options = dict(layers=(2, 1), preact=False, stem_type="same", num_classes=0, global_pool="")
    theirs = ResNetV2(**options, conv_layer=_timm_conv()).eval()
    ours = build(dict(input_size=(64, 64)), **(STEM | dict(stem_depths=(2, 1), stem_width=64)), in_channels=3)
    ours = VisionTransformer(ViTConfig(**{**ours.config.to_dict(), "stem_numerics": "timm"})).patch_embed.backbone
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3)
    wanted = ours.state_dict().keys()
    tensors = {k: v for k, v in theirs.state_dict().items() if k in wanted}
    assert tensors.keys() == wanted
    features = 4 * 64
    assert features in {len(v) for v in tensors.values()}
    ours.load_state_dict(tensors)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = theirs.stages(theirs.stem(x))
        assert expected.shape[2:] == tuple(math.ceil(math.ceil(math.ceil(s / 2) / 2) / 2) for s in size)
        torch.testing.assert_close(ours(x), expected, atol=2e-5, rtol=2e-5)


def _timm_conv():
    from functools import partial

    from timm.layers import StdConv2dSame

    return partial(StdConv2dSame, eps=1e-8)


# the stem against formulas, in any number of dimensions


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    ("kernel", "stride", "side"), [(7, 2, 8), (7, 2, 9), (3, 1, 5), (3, 2, 6), (3, 2, 7), (1, 2, 5)]
)
@pytest.mark.parametrize("numerics", ["google", "timm"])
def test_standardised_convolutions_are_the_formula(dims, kernel, stride, side, numerics):
    conv = StdConv(dims, 3, 4, kernel=kernel, stride=stride, numerics=numerics)
    torch.nn.init.normal_(conv.weight, mean=3e-4, std=1e-4)  # so small that the epsilons show
    x = torch.randn(2, 3, *[side - 1] * (dims - 1), side)
    w = conv.weight.detach().double()
    each = tuple(range(1, w.ndim))
    mean, variance = w.mean(each, keepdim=True), w.var(each, keepdim=True, unbiased=False)
    w = (w - mean) / ((variance.sqrt() + 1e-5) if numerics == "google" else (variance + 1e-8).sqrt())
    seen = windows(same_padded(x.double(), kernel, stride), kernel, stride).flatten(2 + dims)  # (B, C, *places, K)
    expected = torch.einsum("bc...k,ock->bo...", seen, w.flatten(2))
    out = conv(x)
    assert out.shape[2:] == tuple(math.ceil(s / stride) for s in x.shape[2:])
    torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=1e-5)


def test_the_two_numerics_differ_where_kernels_are_small():
    google, timm = (StdConv(1, 3, 4, kernel=7, stride=2, numerics=n) for n in ("google", "timm"))
    torch.nn.init.normal_(google.weight, std=1e-4)
    timm.load_state_dict(google.state_dict())
    rows = google.standardised().flatten(1).std(1, correction=0)
    deviation = google.weight.detach().flatten(1).std(1, correction=0)
    torch.testing.assert_close(rows, deviation / (deviation + 1e-5))
    rows = timm.standardised().flatten(1).std(1, correction=0)
    torch.testing.assert_close(rows, deviation / (deviation**2 + 1e-8).sqrt())


@pytest.mark.parametrize("shape", [(8,), (9,), (6, 5), (4, 7, 2)])
def test_pooling_takes_the_largest_of_each_window(shape):
    x = torch.randn(2, 3, *shape).relu()
    padded = same_padded(x, 3, 2, value=-torch.inf)
    expected = windows(padded, 3, 2).flatten(2 + len(shape)).amax(-1)
    assert torch.equal(MaxPoolSame()(x), expected)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("numerics", "epsilon"), [("google", 1e-6), ("timm", 1e-5)])
def test_a_unit_by_hand(dims, stride, numerics, epsilon):
    unit = spread(Bottleneck(dims, 64, 32, stride, numerics))
    x = torch.randn(2, 64, *[6] * dims) / 1000  # so faint that the epsilons show

    def norm(y, module):
        parts = y.reshape(2, 32, -1)
        y = (
            (parts - parts.mean(2, keepdim=True)) / (parts.var(2, keepdim=True, unbiased=False) + epsilon).sqrt()
        ).reshape(y.shape)
        shape = (1, -1, *[1] * dims)
        return y * module.weight.view(shape) + module.bias.view(shape)

    def conv(y, module, kernel, step):
        seen = windows(same_padded(y, kernel, step), kernel, step).flatten(2 + dims)
        return torch.einsum("bc...k,ock->bo...", seen, module.standardised().flatten(2))

    y = norm(conv(x, unit.conv1, 1, 1), unit.norm1).relu()
    y = norm(conv(y, unit.conv2, 3, stride), unit.norm2).relu()
    y = norm(conv(y, unit.conv3, 1, 1), unit.norm3)
    short = norm(conv(x, unit.downsample.conv, 1, stride), unit.downsample.norm)
    torch.testing.assert_close(unit(x), (y + short).relu(), atol=2e-5, rtol=1e-4)
    assert Bottleneck(dims, 128, 32, 1, "google").downsample(x) is x  # as wide as it comes out: nothing to do


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("length", [32, 27])
def test_a_stem_sees_a_signal_as_an_array_of_height_one(dims, length):
    """Kernels that are zero but for their middle line are the signal's, scaled alike, and GroupNorm takes that back."""
    line = spread(build(HYBRIDS["1d"])).patch_embed.backbone
    array = build(HYBRIDS[f"{dims}d"]).patch_embed.backbone
    convs = {f"{n}.weight": m for n, m in line.named_modules() if isinstance(m, StdConv)}
    tensors = {}
    for name, like in array.state_dict().items():
        value = line.state_dict()[name]
        if name in convs:  # of mean 0, as zeros around change a mean
            value = torch.zeros_like(like)
            middle = value
            while middle.ndim > 3:
                middle = middle.select(2, middle.shape[2] // 2)
            middle.copy_(convs[name].standardised())
        tensors[name] = value
    array.load_state_dict(tensors)
    x = torch.randn(2, 2, length)
    expected = line(x)
    out = array(x.view(2, 2, *[1] * (dims - 1), length))
    assert expected.shape == (2, 256, math.ceil(length / 8))
    assert expected.std() > 0.1
    torch.testing.assert_close(out.view_as(expected), expected, atol=1e-4, rtol=1e-4)


# networks with a stem


@hybrids
def test_hybrid_shapes_gradients_and_a_step_of_training(size):
    model = spread(build(size))
    config, x = model.config, batch(model, 4)
    assert config.stem_stride == 8
    assert config.grid == tuple(s // 8 for s in config.input_size)
    assert model.patch_embed.backbone(x).shape == (4, 4 * 64, *config.grid)
    assert model.stages(x).encoded.shape == (4, 1 + config.num_patches, 24)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = F.cross_entropy(model(x), torch.tensor([0, 1, 4, 2]))
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.abs().sum() > 0, name
    optimizer.step()
    assert F.cross_entropy(model(x), torch.tensor([0, 1, 4, 2])) < loss


HYBRID_COUNTS = {  # facts/checkpoints.md 3.1
    "R+Ti/16": ("vit_tiny_patch8_224", dict(stem_depths=()), 6_337_704),
    "R26+S/32": ("vit_small_patch1_224", dict(stem_depths=(2, 2, 2, 2)), 36_431_912),
    "R50+L/32": ("vit_large_patch1_224", dict(stem_depths=(3, 4, 6, 3)), 328_994_856),
    "R50+B/16": ("vit_base_patch1_224", dict(stem_depths=(3, 4, 9)), 98_659_112),
    "R50+B/16@384": ("vit_base_patch1_384", dict(stem_depths=(3, 4, 9)), 98_950_952),
}


@pytest.mark.parametrize("name", HYBRID_COUNTS)
def test_hybrid_parameter_counts(name):
    base, values, count = HYBRID_COUNTS[name]
    config = named_config(base, stem="resnet", **values)
    with torch.device("meta"):
        model = VisionTransformer(config)
        assert model(torch.empty(2, 3, *config.input_size)).shape == (2, 1000)
    assert sum(p.numel() for p in model.parameters()) == count
    assert count_cost(config)[0] == count


@hybrids
def test_hybrid_initial_statistics(size):
    model = build(size)
    for name, p in model.patch_embed.backbone.named_parameters():
        if p.ndim == 1:
            assert (p == (1 if name.endswith("weight") else 0)).all(), name
        else:
            assert p.std().item() == pytest.approx((2 / (len(p) * p[0, 0].numel())) ** 0.5, rel=0.1), name
    with torch.no_grad():
        assert 0.1 < model.patch_embed.backbone(batch(model)).std() < 10


@hybrids
def test_masks_behind_a_stem(size):
    model = spread(build(size, pooling="avg")).eval()
    x, config = batch(model), model.config
    assert config.num_patches > 1
    hidden = torch.zeros(3, config.num_patches, dtype=torch.bool)
    hidden[:, -1] = True
    mask = torch.ones(3, *config.input_size, dtype=torch.bool)
    corner = tuple(slice(-t, None) for t in config.token_size)
    mask[(slice(None), *corner)] = False  # one token's share of the input
    # the reference: the hidden token is cut out of the sequence before the blocks
    with torch.no_grad():
        tokens = model.stages(x).tokens[:, :-1]
        for block in model.blocks:
            tokens = block(tokens)
        expected = model.head(model.fc_norm(tokens[:, 1:].mean(1)))
        torch.testing.assert_close(model(x, mask), expected, atol=1e-5, rtol=1e-5)
        assert (model(x, mask) - model(x)).abs().max() > 1e-3
        part = mask.clone()
        part.view(3, -1)[:, -1] = True  # one value of the token's share is seen
        torch.testing.assert_close(model(x, part), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(input_size=(36,)), r"behind a stem of stride 8 .*\(36 = 4 x 8 \+ 4\): use an input of 32 or 40$"),
        (dict(input_size=(4, 32)), r"along axis 0 \(4 = 0 x 8 \+ 4\): use an input of 8$"),
        (dict(input_size=(64,), patch_size=3), r"of stride 8 .*\(64 = 2 x 24 \+ 16\): use an input of 48 or 72$"),
        (dict(input_size=(32,), stem_width=48), "stem_width 48 is not a multiple of 32: GroupNorm has 32 groups"),
        (dict(input_size=(32,), stem="convnet"), "stem must be one of none, .*, difference, mantis; got 'conv"),
        (dict(input_size=(32,), stem_depths=(1, 1, 1, 1, 1)), "has 5 stages: a resnet stem has at most four"),
        (dict(input_size=(32,), stem_depths=(1, 0)), "stem_depths must be a whole number of at least 1, got 0"),
        (dict(input_size=(32,), stem_numerics="jax"), "stem_numerics must be one of google, timm; got 'jax'"),
    ],
)  # fmt: skip
def test_stems_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        ViTConfig(**(SMALL | STEM | values))


@pytest.mark.parametrize("values", [*HYBRIDS.values(), *ROPES.values()])
def test_bfloat16_is_near(values):
    model = build(values).eval()
    x = batch(model)
    with torch.no_grad():
        exact = model.stages(x).encoded
        with torch.autocast("cpu", torch.bfloat16):
            coarse = model.stages(x).encoded
    assert torch.isfinite(coarse).all()
    assert ((coarse.float() - exact).norm() / exact.norm()).item() < 0.05


def test_parameter_groups_of_a_hybrid():
    model = build(HYBRIDS["2d"])
    at = {n: (g["depth"], g["decay"]) for g in model.parameter_groups() for n in g["names"]}
    assert at.keys() == dict(model.named_parameters()).keys()
    stem = {n: v for n, v in at.items() if n.startswith("patch_embed.backbone.")}
    assert len(stem) == 3 + 3 * 9 + 2 * 3  # root; units; the two shortcuts that change the width
    for name, (depth, decay) in stem.items():
        assert depth == 0
        assert decay == ("conv" in name)


def test_compiles_and_exports():
    for values in (HYBRIDS["1d"], ROPES["2d"]):
        model = spread(build(values)).eval()
        x = batch(model)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), model(x), atol=1e-5, rtol=1e-5)


# rotary positions


def naive_rotation(place, grid, periods, x):
    """One token's query or key: pair i with i + d/2; axes one after the other, each with all periods."""
    angles = [
        2 * math.pi * ((i + 0.5) / n * 2 - 1) / period for i, n in zip(place, grid) for period in periods.tolist()
    ]
    half = len(angles)
    out = x.clone()
    for i, angle in enumerate(angles):
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return out


@pytest.mark.parametrize("grid", [(6,), (2, 3), (2, 2, 3)])
def test_rotations_by_hand(grid):
    periods = rope_periods(12, len(grid), 100.0)
    assert periods.tolist() == pytest.approx([100 ** (2 * len(grid) * i / 12) for i in range(6 // len(grid))])
    x = torch.randn(1, 1, 2 + math.prod(grid), 12)
    turned = rotate(x, rotary_table(grid, periods, prefix=2))
    assert torch.equal(turned[:, :, :2], x[:, :, :2])  # prefix tokens have no position
    for n, place in enumerate(torch.cartesian_prod(*map(torch.arange, grid)).reshape(-1, len(grid)).tolist()):
        expected = naive_rotation(place, grid, periods, x[0, 0, 2 + n])
        torch.testing.assert_close(turned[0, 0, 2 + n], expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))  # rotations change no length


def test_rotations_equal_timms():
    from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3, apply_rot_embed_cat

    for grid in ((4, 4), (3, 7)):
        theirs = RotaryEmbeddingDinoV3(16, temperature=100.0).eval()
        torch.testing.assert_close(rope_periods(16, 2, 100.0), theirs.periods)
        embed = theirs.get_embed(list(grid))
        cos, sin = rotary_table(grid, rope_periods(16, 2, 100.0), prefix=0)
        torch.testing.assert_close(torch.cat([sin, cos], dim=-1), embed, atol=1e-6, rtol=1e-6)
        x = torch.randn(2, 3, math.prod(grid), 16)
        expected = apply_rot_embed_cat(x, embed, half=True)
        torch.testing.assert_close(rotate(x, (cos, sin)), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("grid", [(8,), (4, 5)])
def test_logits_depend_on_the_distance_alone(grid):
    table = rotary_table(grid, rope_periods(24, len(grid), 100.0), prefix=0)
    q, k = (torch.randn(24).expand(1, 1, math.prod(grid), 24) for _ in range(2))  # the same content everywhere
    logits = (rotate(q, table) @ rotate(k, table).mT).view(*grid, *grid)
    if len(grid) == 1:
        for shift in (-3, 0, 2):
            diagonal = logits.diagonal(shift)
            torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)
    else:
        torch.testing.assert_close(logits[0, 1, 2, 4], logits[1, 0, 3, 3], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logits[3, 4, 0, 2], logits[3, 3, 0, 1], atol=1e-4, rtol=1e-4)
    assert logits.std() > 0.1


def test_an_axis_runs_from_minus_one_to_one_whatever_the_grid():
    """Twice as many patches: every second pair of neighbours straddles an old place."""
    periods = rope_periods(8, 1, 100.0)
    angle = [torch.atan2(s, c)[:, 3] for c, s in (rotary_table((n,), periods, 0) for n in (4, 8))]
    assert angle[0].tolist() == pytest.approx(
        [2 * math.pi * p / 100**0.75 for p in (-0.75, -0.25, 0.25, 0.75)], abs=1e-6
    )
    torch.testing.assert_close(angle[1].view(4, 2).mean(1), angle[0])


@ropes
def test_rope_networks(size):
    model = spread(build(size, num_registers=2))
    assert "pos_embed" not in model.state_dict()
    assert model.rope_periods.shape == (12 // (2 * len(model.config.input_size)),)
    x, y = batch(model, 4), torch.tensor([0, 1, 4, 2])
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert F.cross_entropy(model(x), y) < loss
    # places matter: patches in another order are another input
    model.eval()
    tokens = x.flip(-1)
    assert (model(tokens) - model(x)).abs().max() > 1e-3


def test_attention_with_rotation_equals_the_naive_one():
    attention = spread(Attention(ViTConfig(embed_dim=24, num_heads=2, qk_norm=True)))
    x, key_mask = torch.randn(2, 8, 24), torch.rand(2, 1, 1, 8) > 0.3
    periods = rope_periods(12, 2, 100.0)
    q, k, v = attention.qkv(x).reshape(2, 8, 3, 2, 12).permute(2, 0, 3, 1, 4)
    q, k = attention.q_norm(q).clone(), attention.k_norm(k).clone()
    for b in range(2):
        for h in range(2):
            for n in range(6):
                for z in (q, k):
                    z[b, h, 2 + n] = naive_rotation((n // 3, n % 3), (2, 3), periods, z[b, h, 2 + n])
    weights = (q @ k.mT / 12**0.5).masked_fill(~key_mask, -torch.inf).softmax(-1)
    naive = attention.proj((weights @ v).transpose(1, 2).reshape(2, 8, 24))
    out = attention(x, key_mask, rotary_table((2, 3), periods, prefix=2))
    torch.testing.assert_close(out, naive, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(input_size=(8,), patch_size=2, num_heads=8), "a head width divisible by 2, got embed_dim 24 / 8 heads"),
        (dict(input_size=(8, 8), patch_size=2, num_heads=4), "rope in 2 dimensions needs a head width divisible by 4"),
        (dict(input_size=(8, 8, 8), patch_size=2, num_heads=3), "in 3 dimensions needs a head width divisible by 6"),
        (dict(input_size=(8,), patch_size=2, rope_base=0), "rope_base must be a positive number, got 0"),
    ],
)  # fmt: skip
def test_ropes_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        ViTConfig(**(SMALL | values | dict(pos_embed="rope")))


def test_the_cost_of_rope_and_of_a_stem():
    for values in (ROPES["2d"], HYBRIDS["2d"]):
        config = ViTConfig(**(SMALL | values))
        parameters, macs = count_cost(config)
        assert parameters == sum(p.numel() for p in VisionTransformer(config).parameters())
        tokens, width = 1 + config.num_patches, 24
        blocks = 2 * tokens * (4 * width**2 + 8 * width**2) + 2 * 2 * tokens**2 * width
        blocks -= config.num_patches * (
            9 * width**2 + 2 * tokens * width
        )  # tokens that the last block does not compute
        rest = macs - blocks - width * 5
        if config.stem == "none":
            assert rest == 2 * math.prod(config.input_size) * width  # every value once for every channel
        else:
            stem = (2 * 49 * 32) * 8 * 12 + 24 * (
                32 * 32 + 9 * 32 * 32 + 32 * 128 + 32 * 128
            )  # root, the unit at 4 x 6
            stem += 24 * 128 * 64 + 6 * (9 * 64 * 64 + 64 * 256 + 128 * 256)  # a unit that halves 4 x 6
            stem += 6 * (256 * 64 + 9 * 64 * 64 + 64 * 256) + 6 * 256 * width  # the second; the patches
            assert rest == stem


# activations and pooling


def test_quick_gelu():
    x = torch.linspace(-5, 5, 101)
    torch.testing.assert_close(QuickGELU()(x), x / (1 + torch.exp(-1.702 * x)))
    model = build(dict(input_size=(24,), patch_size=4), activation="quick_gelu")
    assert isinstance(model.blocks[1].mlp.act, QuickGELU)
    exact = build(dict(input_size=(24,), patch_size=4))
    spread(model)
    exact.load_state_dict(model.state_dict())
    x = batch(model)
    assert 1e-4 < (model(x) - exact(x)).abs().max() < 0.2


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pooling", ["avg", "norm_avg", "token_avg"])
@pytest.mark.parametrize("size", [dict(input_size=(24,), patch_size=4), HYBRIDS["2d"]], ids=["1d", "hybrid"])
def test_means_by_hand(size, pooling, masked):
    model = spread(build(size, pooling=pooling, num_registers=2)).eval()
    config, x, mask, seen = model.config, batch(model), None, torch.ones(3, model.config.num_patches, dtype=torch.bool)
    if masked:
        seen = torch.rand(3, config.num_patches) > 0.5
        seen[:, 0] = True
        mask = patches_to_mask(model, seen)
    with torch.no_grad():
        key_mask = torch.cat([torch.ones(3, 3, dtype=torch.bool), seen], dim=1)[:, None, None]
        tokens = model.stages(x).tokens
        for block in model.blocks:
            tokens = block(tokens, key_mask)
        norm = model.fc_norm if pooling == "avg" else model.norm
        expected = []
        for row, keep in zip(tokens, seen):
            patches = row[3:][keep]
            if pooling == "avg":
                pooled = F.layer_norm(patches.mean(0), (24,), norm.weight, norm.bias, 1e-6)
            else:
                row, patches = (F.layer_norm(z, (24,), norm.weight, norm.bias, 1e-6) for z in (row, patches))
                pooled = patches.mean(0) if pooling == "norm_avg" else torch.cat([row[0], patches.mean(0)])
            expected.append(model.head(pooled))
        torch.testing.assert_close(model(x, mask), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_norm_avg_needs_no_token_and_token_avg_does():
    model = build(dict(input_size=(24,), patch_size=4), pooling="norm_avg", class_token=False)
    assert model.num_prefix_tokens == 0
    assert {n for n in model.state_dict() if "norm" in n and "blocks" not in n} == {"norm.weight", "norm.bias"}
    assert model(batch(model)).shape == (3, 5)
    with pytest.raises(ValueError, match="pooling='token_avg' reads the class token: set class_token=True"):
        build(dict(input_size=(24,), patch_size=4), pooling="token_avg", class_token=False)


def test_heads_of_two_widths():
    model = build(dict(input_size=(24,), patch_size=4), pooling="token_avg")
    assert model.config.pooled_dim == 48
    assert model.head.weight.shape == (5, 48)
    model.reset_head(7)
    assert model.head.weight.shape == (7, 48)
    assert model(batch(model)).shape == (3, 7)
    model.reset_head(0)
    assert model(batch(model)).shape == (3, 48)
    with_logits = build(dict(input_size=(24,), patch_size=4), pooling="token_avg", representation_size=10)
    assert with_logits.pre_logits.fc.weight.shape == (10, 48)
    with_logits.reset_head(3)
    assert with_logits(batch(with_logits)).shape == (3, 3)
