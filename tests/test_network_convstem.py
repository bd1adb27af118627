"""Light stems, overlapping patches, relative positions, the head over stem and tokens: against formulas and loops."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ndvit.config import ViTConfig, named_config
from ndvit.network import VisionTransformer, count_cost, create_model
from ndvit.network.layers import Attention
from ndvit.network.positions import relative_offsets
from ndvit.network.stems.convolutional import Inception, InceptionGroup, ResidualUnit
from smallnetworks import batch, spread

SMALL = dict(in_channels=2, embed_dim=24, depth=2, num_heads=2, num_classes=5)
ENDS = dict(pooling="stem_tokens", head_norm="batch", stem_head=True, relative_bias=True, patch_overlap=True)
STEMS = {
    "inception": dict(stem="inception", stem_depths=(2, 1), stem_width=4, stem_strides=(2,), stem_dilations=(1, 3)),
    "residual": dict(stem="residual", stem_depths=(1, 2), stem_width=4, stem_strides=(1, 2)),
}
INPUTS = {
    "1d": dict(input_size=(32,), patch_size=4),
    "2d": dict(input_size=(8, 12), patch_size=(2, 3)),
    "3d": dict(input_size=(4, 4, 8), patch_size=(1, 2, 2)),
}
NETWORKS = {f"{stem} {size}": STEMS[stem] | INPUTS[size] | ENDS for stem in STEMS for size in INPUTS}
networks = pytest.mark.parametrize("values", NETWORKS.values(), ids=NETWORKS)
stems = pytest.mark.parametrize("stem", STEMS)


def build(*parts, **values):
    merged = dict(SMALL)
    for part in parts:
        merged |= part
    return VisionTransformer(ViTConfig(**(merged | values)))


def trained(*parts, **values):
    """A network in eval mode none of whose parameters and statistics is what a new one has."""
    model = spread(build(*parts, **values))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.3)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
        elif name.endswith("num_batches_tracked"):
            buffer.fill_(17)
    return model.eval()


def convolved(x, conv):
    """A convolution of a signal tap by tap, with zeros outside: (B, C, L) -> (B, O, ceil(L / stride))."""
    weight, (stride,), (dilation,) = conv.weight, conv.stride, conv.dilation
    length, taps = x.shape[2], weight.shape[2]
    reach = taps // 2 * dilation
    padded = torch.cat([x.new_zeros(*x.shape[:2], reach), x, x.new_zeros(*x.shape[:2], reach)], dim=2)
    places = torch.arange(0, length, stride)
    return sum(
        torch.einsum("bcl,oc->bol", padded[:, :, places + tap * dilation], weight[:, :, tap]) for tap in range(taps)
    )


def batch_normed(x, norm):
    mean, variance = x.mean((0, 2), keepdim=True), x.var((0, 2), unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None] + norm.bias[:, None]


# the units by hand


@pytest.mark.parametrize(("channels", "stride", "taps"), [(3, 1, 5), (7, 1, 5), (3, 3, 5), (7, 4, 7), (1, 16, 31)])
def test_an_inception_module_by_hand(channels, stride, taps):
    module = spread(Inception(1, channels, 4, stride, 5, (1, 2)))
    x = torch.randn(3, channels, 48)
    mixed = x if channels <= 4 else torch.einsum("bcl,oc->bol", x, module.reduce.weight[:, :, 0])
    assert [tuple(b.weight.shape) for b in module.branches] == [(4, min(channels, 4), taps)] * 2
    expected = batch_normed(torch.cat([convolved(mixed, b) for b in module.branches], dim=1), module.norm)
    assert expected.shape == (3, 8, 48 // stride)
    torch.testing.assert_close(module(x), expected, atol=1e-4, rtol=1e-4)


def test_a_group_by_hand():
    group = spread(InceptionGroup(1, 3, 4, units=3, stride=2, kernel=9, dilations=(1, 2, 4)))
    x = torch.randn(2, 3, 20)
    one, two, three = group.blocks
    y = three(F.gelu(two(F.gelu(one(x)))))
    short = batch_normed(
        torch.einsum("bcl,oc->bol", x[:, :, ::2], group.shortcut.conv.weight[:, :, 0]), group.shortcut.norm
    )
    torch.testing.assert_close(group(x), F.gelu(y + short), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("before", "stride"), [(4, 1), (3, 1), (4, 2), (4, 8)])
def test_a_residual_unit_by_hand(before, stride):
    unit = spread(ResidualUnit(1, before, 4, stride))
    x = torch.randn(3, before, 16)
    assert [unit.conv1.weight.shape[2], unit.conv2.weight.shape[2], unit.conv3.weight.shape[2]] == [
        max(9, 2 * stride - 1),
        5,
        3,
    ]
    y = batch_normed(convolved(x, unit.conv1), unit.norm1).relu()
    y = batch_normed(convolved(y, unit.conv2), unit.norm2).relu()
    y = batch_normed(convolved(y, unit.conv3), unit.norm3)
    if (before, stride) == (4, 1):
        short = batch_normed(x, unit.shortcut)
    else:
        short = batch_normed(convolved(x, unit.shortcut.conv), unit.shortcut.norm)
    torch.testing.assert_close(unit(x), (y + short).relu(), atol=1e-4, rtol=1e-4)


@stems
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("length", [32, 27])
def test_a_stem_sees_a_signal_as_an_array_of_height_one(stem, dims, length):
    """Kernels of the array are zero but for their middle line."""
    line = trained(STEMS[stem], INPUTS["1d"]).patch_embed.backbone
    array = build(STEMS[stem], INPUTS[f"{dims}d"]).eval().patch_embed.backbone
    tensors = {}
    for name, like in array.state_dict().items():
        value = tensors[name] = line.state_dict()[name].clone()
        if like.ndim > value.ndim:
            whole = tensors[name] = torch.zeros_like(like)
            while whole.ndim > 3:
                whole = whole.select(2, whole.shape[2] // 2)
            whole.copy_(value)
    array.load_state_dict(tensors)
    x = torch.randn(2, 2, length)
    expected, out = line(x), array(x.view(2, 2, *[1] * (dims - 1), length))
    assert expected.shape == (2, 8, math.ceil(length / 2))
    assert expected.std() > 0.1
    torch.testing.assert_close(out.view_as(expected), expected, atol=1e-5, rtol=1e-5)


@stems
@pytest.mark.parametrize("strides", [(1, 1), (2,), (8, 2), (16, 1), (1, 32)])
def test_strides_shorten_exactly_and_skip_nothing(stem, strides):
    model = trained(STEMS[stem], input_size=(64,), patch_size=1, stem_strides=strides)
    config, x = model.config, batch(model).requires_grad_()
    stride = math.prod(strides)
    assert config.stem_strides == (*strides, 1)[:2]
    assert (config.stem_stride, config.token_size, config.grid) == (stride, (stride,), (64 // stride,))
    out = model.patch_embed.backbone(x)
    assert out.shape == (3, config.stem_channels, 64 // stride)
    out.square().sum().backward()
    assert (x.grad.abs().amax((0, 1)) > 0).all()  # every sample is seen


def test_channels_and_defaults_of_the_stems():
    def of(stem, **values):
        config = ViTConfig(input_size=(64,), patch_size=1, stem=stem, **values)
        return config.stem_depths, config.stem_width, config.stem_strides, config.stem_channels

    assert of("inception") == ((3, 3), 32, (1, 1), 96)
    assert of("inception", stem_depths=(2,), stem_width=16, stem_dilations=(1, 8)) == ((2,), 16, (1,), 32)
    assert of("residual") == ((1, 1, 1), 64, (1, 1, 1), 128)
    assert of("residual", stem_depths=(2,), stem_strides=4) == ((2,), 64, (4,), 64)
    assert of("resnet") == ((3, 4, 9), 64, (), 1024)
    assert of("resnet", stem_depths=()) == ((), 64, (), 64)
    assert of("none") == ((3, 4, 9), 64, (), 3)  # as in files of old
    for values in NETWORKS.values():
        config = ViTConfig(**(SMALL | values))
        assert ViTConfig.from_dict(config.to_dict()) == config


# networks


@networks
def test_shapes_gradients_and_a_step_of_training(values):
    model = spread(build(values))
    config, x, y = model.config, batch(model, 4), torch.tensor([0, 1, 4, 2])
    assert config.stem_channels == 8
    assert config.pooled_dim == 2 * 8 + 2 * 24
    assert model.patch_embed.stem(x).shape == (4, 8, *(s // 2 for s in config.input_size))
    assert model.stages(x).encoded.shape == (4, 1 + config.num_patches, 24)
    pair = model(x)
    assert [tuple(o.shape) for o in pair] == [(4, 5), (4, 5)]
    loss = sum(F.cross_entropy(o, y) for o in pair)
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().sum() > 0, name
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert sum(F.cross_entropy(o, y) for o in model(x)) < loss


@networks
def test_what_the_heads_read(values):
    model = trained(values, class_token=True)
    x = batch(model)
    stages = model.stages(x)
    stem, tokens = stages.stem.flatten(2), stages.encoded
    ends = torch.cat([stem.mean(2), stem.amax(2)], dim=1)
    pooled = torch.cat([ends, tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)
    norm = model.head_norm
    normed = (pooled - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias
    logits = model(x)
    torch.testing.assert_close(stages.features["head"], normed, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits, model.head(normed), atol=1e-5, rtol=1e-4)
    # in training both heads answer; dropout apart, the tokens' one as before
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    one, two = model(x)
    torch.testing.assert_close(one, logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(two, model.stem_head(ends), atol=1e-5, rtol=1e-4)
    bare = build(values, class_token=False, stem_head=False)
    assert bare.config.pooled_dim == 2 * 8 + 24
    assert bare(batch(bare)).shape == (3, 5)


def test_a_resnet_stem_can_be_read_by_the_head_too():
    model = build(dict(input_size=(64,), patch_size=1, stem="resnet", stem_depths=(1,), stem_width=32), ENDS)
    assert model.config.pooled_dim == 2 * 128 + 2 * 24
    one, two = model(batch(model))
    assert one.shape == two.shape == (3, 5)


def test_dropout_stands_before_the_head():
    model = build(INPUTS["1d"], head_drop=0.5, num_classes=0)
    x = batch(model, 50)
    dropped = model(x)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.5, abs=0.06)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * model.eval()(x)[kept])


@pytest.mark.parametrize("size", INPUTS)
def test_overlapping_patches(size):
    plain, model = build(INPUTS[size]), trained(INPUTS[size], patch_overlap=True)
    config = model.config
    assert config.grid == plain.config.grid
    assert model.patch_embed.proj.weight.shape[2:] == tuple(2 * p - 1 for p in config.patch_size)
    x = batch(model)
    tokens = model.patch_embed(x)
    assert tokens.shape == (3, config.num_patches, 24)
    # the kernel of token i is centred on the first sample of its patch, and reaches p - 1 to either side
    weight, place = model.patch_embed.proj.weight, tuple(g - 1 for g in config.grid)
    expected = model.patch_embed.proj.bias.expand(3, -1).clone()
    for taps in torch.cartesian_prod(*(torch.arange(k) for k in weight.shape[2:])).reshape(-1, len(place)).tolist():
        at = [i * p + t - (p - 1) for i, p, t in zip(place, config.patch_size, taps)]
        if all(0 <= a < s for a, s in zip(at, config.input_size)):
            expected += x[(slice(None), slice(None), *at)] @ weight[(slice(None), slice(None), *taps)].T
    torch.testing.assert_close(tokens[:, -1], expected, atol=1e-4, rtol=1e-4)


@networks
def test_masks(values):
    """Outputs of stem and encoder for a masked stretch are left out of pooling."""
    model = trained(values, relative_bias=True)
    config, x = model.config, batch(model)
    mask = torch.ones(3, *config.input_size, dtype=torch.bool)
    mask[..., -config.token_size[-1] :] = False
    with torch.no_grad():
        stem, tokens = (stages := model.stages(x, mask)).stem, stages.encoded
        seen = stem[..., : -config.patch_size[-1]].flatten(2)
        patches = tokens[:, 1:].unflatten(1, config.grid)[..., :-1, :].flatten(1, -2)
        pooled = torch.cat([seen.mean(2), seen.amax(2), tokens[:, 0], patches.mean(1)], dim=1)
        torch.testing.assert_close(model(x, mask), model.head(model.head_norm(pooled)), atol=1e-5, rtol=1e-4)
        assert (model(x, mask) - model(x)).abs().max() > 1e-3
        torch.testing.assert_close(model(x, torch.ones_like(mask)), model(x), atol=1e-5, rtol=1e-4)
        assert model(x, torch.zeros_like(mask)).isfinite().all()  # nothing was observed at all


def test_masked_values_beyond_the_reach_of_the_kernels_have_no_effect():
    stem = dict(
        stem="inception", stem_depths=(1,), stem_width=4, stem_dilations=(1, 2), stem_kernel=3, stem_strides=(2,)
    )
    model = trained(stem, ENDS, input_size=(64,), patch_size=2)
    x, mask = batch(model), torch.ones(3, 64, dtype=torch.bool)
    mask[:, 32:] = False
    far, near = x.clone(), x.clone()
    far[:, :, 36:] = 99.0  # the last seen position of the stem stands at 30, and reaches to 32
    near[:, :, 32] = 99.0
    torch.testing.assert_close(model(far, mask), model(x, mask), atol=1e-5, rtol=1e-5)
    assert (model(near, mask) - model(x, mask)).abs().max() > 1e-2


# relative positions


@pytest.mark.parametrize("grid", [(5,), (2, 3), (2, 1, 3)])
def test_offsets_by_hand(grid):
    index = relative_offsets(grid)
    places = torch.cartesian_prod(*map(torch.arange, grid)).reshape(-1, len(grid)).tolist()
    for i, here in enumerate(places):
        for j, there in enumerate(places):
            expected = 0
            for n, a, b in zip(grid, here, there):
                expected = expected * (2 * n - 1) + (b - a) + (n - 1)
            assert index[i, j] == expected
    assert index.max() == math.prod(2 * n - 1 for n in grid) - 1


@pytest.mark.parametrize("grid", [(5,), (2, 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_relative_positions_equal_the_naive_ones(grid, masked):
    patches, prefix, heads, dim = math.prod(grid), 2, 3, 12
    config = ViTConfig(input_size=grid, patch_size=1, embed_dim=dim, num_heads=heads, relative_bias=True)
    attention = spread(Attention(config))
    x = torch.randn(2, prefix + patches, dim)
    key_mask = torch.ones(2, prefix + patches, dtype=torch.bool)
    if masked:
        key_mask[:, prefix:] = torch.rand(2, patches) > 0.4
    q, k, v = attention.qkv(x).reshape(2, -1, 3, heads, 4).permute(2, 0, 3, 1, 4)
    places = torch.cartesian_prod(*map(torch.arange, grid)).reshape(-1, len(grid)).tolist()
    out = torch.zeros_like(q)
    for b in range(2):
        for h in range(heads):
            for i in range(prefix + patches):
                keys = [j for j in range(prefix + patches) if key_mask[b, j]]
                weights = torch.stack([q[b, h, i] @ k[b, h, j] / 4**0.5 for j in keys]).softmax(0)
                for j, weight in zip(keys, weights):
                    if min(i, j) >= prefix:
                        here, there = places[i - prefix], places[j - prefix]
                        offset = 0
                        for n, a, c in zip(grid, here, there):
                            offset = offset * (2 * n - 1) + c - a + n - 1
                        weight = weight + attention.relative_bias[h, offset]
                    out[b, h, i] += weight * v[b, h, j]
    naive = attention.proj(out.transpose(1, 2).flatten(2))
    mask = key_mask[:, None, None] if masked else None
    torch.testing.assert_close(attention(x, mask, None, relative_offsets(grid)), naive, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("positions", ["learned", "sincos", "rope"])
def test_relative_positions_start_as_nothing_and_go_with_all_others(positions):
    model = build(INPUTS["1d"], pos_embed=positions, pooling="avg", relative_bias=True)
    plain = build(INPUTS["1d"], pos_embed=positions, pooling="avg")
    tables = {n: p for n, p in model.named_parameters() if "relative" in n}
    assert {n: tuple(p.shape) for n, p in tables.items()} == {f"blocks.{i}.attn.relative_bias": (2, 15) for i in (0, 1)}
    assert not any(p.any() for p in tables.values())
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if n not in tables})
    x = batch(model)
    torch.testing.assert_close(model(x), plain(x))
    spread(model)
    spread(plain).load_state_dict({n: t for n, t in model.state_dict().items() if n not in tables})
    assert (model(x) - plain(x)).abs().max() > 1e-2


# training


@networks
def test_recomputing_changes_neither_gradients_nor_statistics(values):
    model = spread(build(values, drop_rate=0.1))
    x, results = batch(model), []
    before = {n: t.clone() for n, t in model.state_dict().items()}
    for switch in (False, True):
        model.load_state_dict(before)
        model.grad_checkpointing = switch
        torch.manual_seed(3)
        model.zero_grad()
        sum(o.square().sum() for o in model(x)).backward()
        results.append({n: p.grad.clone() for n, p in model.named_parameters()} | dict(model.named_buffers()))
        results[-1] = {n: t.clone() for n, t in results[-1].items()}
    assert results[0]["patch_embed.backbone.stages.1.blocks.0.norm1.num_batches_tracked" if values["stem"] == "residual"
                      else "patch_embed.backbone.stages.1.blocks.0.norm.num_batches_tracked"] == 1  # fmt: skip
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, msg=name)
    assert {m.momentum for m in model.modules() if hasattr(m, "momentum")} == {0.1}


@stems
def test_recomputing_keeps_nothing_inside_of_stages(stem):
    model = build(STEMS[stem], ENDS, input_size=(256,), patch_size=16)
    x, kept = batch(model, 8), []
    for model.grad_checkpointing in (False, True):
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            model.patch_embed.stem(x, recompute=model.grad_checkpointing)
        kept.append(total)
    assert kept[1] < kept[0] / 3


@stems
@pytest.mark.parametrize(("init", "mode"), [("balanced", "in"), ("article", "out")])
def test_initial_statistics(stem, init, mode):
    model = build(STEMS[stem], INPUTS["2d"], ENDS, stem_width=48, weight_init=init)
    for name, p in model.named_parameters():
        if name.startswith("patch_embed.backbone.") and p.ndim > 1:
            fan = p[0].numel() if mode == "in" else len(p) * p[0, 0].numel()
            assert p.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.12), name
        elif "norm" in name:
            assert (p == (1 if name.endswith("weight") else 0)).all(), name
    reads = model.stem_head.weight
    expected = reads.shape[1] ** -0.5 if init == "balanced" else 0.01
    assert reads.std().item() == pytest.approx(expected, rel=0.15)
    assert (model.head_norm.running_var == 1).all()
    assert model.head_norm.num_batches_tracked == 0


@networks
def test_parameter_groups(values):
    model = build(values)
    at = {n: (g["depth"], g["decay"]) for g in model.parameter_groups() for n in g["names"]}
    assert at.keys() == dict(model.named_parameters()).keys()
    for name, group in at.items():
        if name.startswith("patch_embed.backbone."):
            assert group == (0, model.get_parameter(name).ndim > 1), name
    assert at["blocks.1.attn.relative_bias"] == (2, False)
    assert at["head_norm.weight"] == at["head_norm.bias"] == at["stem_head.bias"] == (3, False)
    assert at["head.weight"] == at["stem_head.weight"] == (3, True)


def test_new_heads():
    model = build(NETWORKS["inception 1d"])
    norm = model.head_norm.weight
    model.reset_head(9)
    assert [tuple(o.shape) for o in model(batch(model))] == [(3, 9)] * 2
    assert model.head.weight.shape == (9, 64)
    assert model.stem_head.weight.shape == (9, 16)
    assert model.head_norm.weight is norm  # the features are what they were
    model.reset_head(0)
    assert [o.shape[1] for o in model(batch(model))] == [64, 16]
    assert model.eval()(batch(model)).shape == (3, 64)


# names


COUNTS = {  # parameters for ten classes, and multiply-adds of one example, without random features
    "signal_tiny": (508_532, 46_379_136),
    "signal_small": (685_460, 100_925_760),
    "signal_base": (3_601_364, 431_908_608),
}


@pytest.mark.parametrize("name", COUNTS)
def test_named_sizes_for_signals(name):
    config = named_config(name, num_classes=10)
    assert (config.input_size, config.in_channels, config.grid) == ((512,), 1, (32,))
    with torch.device("meta"):
        model = VisionTransformer(config)
        assert [tuple(o.shape) for o in model(torch.empty(2, 1, 512))] == [(2, 10)] * 2
    parameters, macs = count_cost(config)
    assert parameters == sum(p.numel() for p in model.parameters())
    assert (parameters, macs) == COUNTS[name]


def test_named_sizes_take_their_dimensions_from_the_input():
    assert named_config("signal_small", input_size=150).grid == (30,)
    strided = named_config("signal_small", input_size=(1024,), stem_strides=(4, 2))
    assert (strided.patch_size, strided.grid, strided.token_size) == ((4,), (32,), (32,))
    assert named_config("signal_tiny", input_size=(28, 28), in_channels=3).grid == (14, 14)
    assert named_config("signal_tiny", input_size=(13,)).grid == (13,)  # a prime length goes by single samples
    assert named_config("signal_base", stem="residual", stem_depths=(1, 1)).stem_channels == 128
    model = create_model("signal_tiny", input_size=(8, 8, 8), num_classes=3).eval()
    assert model(batch(model)).shape == (3, 3)
    with pytest.raises(ValueError, match=r"unknown model 'signal_smal'. Did you mean 'signal_small'\? .*signal_SIZE"):
        named_config("signal_smal")


def test_cost_grows_linearly_with_the_length():
    costs = []
    for length in (16_384, 32_768, 65_536):
        config = named_config("signal_small", input_size=length, stem_strides=(8, 2))
        assert config.num_patches <= 64
        costs.append(count_cost(config)[1])
    assert costs[2] - costs[1] == 2 * (costs[1] - costs[0])
    assert costs[2] < 2.1 * costs[1]  # what does not grow is little


def test_half_precision_and_export():
    for name in ("inception 2d", "residual 1d"):
        model = trained(NETWORKS[name])
        x = batch(model, 4)
        exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
        with torch.no_grad():
            torch.testing.assert_close(exported.module()(x[:3]), model(x[:3]), atol=1e-5, rtol=1e-4)
            with torch.autocast("cpu", torch.bfloat16):
                coarse = model.stages(x).encoded
            exact = model.stages(x).encoded
        assert ((coarse.float() - exact).norm() / exact.norm()).item() < 0.05


@pytest.mark.parametrize("recomputed", [False, True])
def test_compiles_without_graph_breaks(recomputed):
    model = spread(build(NETWORKS["inception 1d"], stem_depths=(2,), depth=1))
    model.grad_checkpointing = recomputed
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = batch(model)
    sum(o.sum() for o in compiled(x)).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.head_norm.num_batches_tracked == 1
    stem_norm = model.patch_embed.backbone.stages[0].blocks[1].norm
    assert stem_norm.num_batches_tracked == 1
    assert stem_norm.running_mean.abs().sum() > 0


def test_a_config_replaced_keeps_what_it_was():
    config = ViTConfig(**(SMALL | NETWORKS["residual 1d"]))
    assert replace(config, depth=4).stem_depths == config.stem_depths
