"""Less work: dropped paths and patches, merged tokens, and tokens that no head reads."""

import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from ndvit.config import ViTConfig
from ndvit.network import VisionTransformer, count_cost
from ndvit.network.fast import only_read_tokens
from ndvit.network.layers import Attention, AttentionPool, Block, DropPath, MergingBlock, masked_mean
from ndvit.network.positions import relative_offsets, rope_periods, rotary_table
from ndvit.network.token_reduction import draw_tokens, keep_tokens, merge_tokens
from smallnetworks import batch, patches_to_mask, spread

SIZES = {
    "1d": dict(input_size=(24,), patch_size=2),
    "2d": dict(input_size=(8, 12), patch_size=(2, 4)),
    "3d": dict(input_size=(4, 6, 6), patch_size=(2, 2, 3)),
}
SMALL = dict(in_channels=2, embed_dim=24, depth=3, num_heads=2, num_classes=5)
STEM = dict(stem="inception", stem_depths=(1,), stem_width=8, stem_dilations=(1,), stem_kernel=3)
dims = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


def build(size, **values):
    return spread(VisionTransformer(ViTConfig(**(SMALL | size | values)))).double()


def inputs(model, n=3):
    return batch(model, n).double()


def assert_equal(a, b):
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


# drop path


def a_block(kind, rate):
    """A block under drop path, and what it reads of eight samples."""
    values = SMALL | SIZES["2d"] | {"relative": dict(relative_bias=True), "rope": dict(pos_embed="rope")}.get(kind, {})
    values |= {"merging": dict(merge_tokens=3)}.get(kind, {})
    block = (MergingBlock if kind == "merging" else Block)(ViTConfig(**values, layer_scale=0.1), rate)
    block = spread(block).double()
    x, key_mask = torch.randn(8, 13, 24, dtype=torch.float64), torch.rand(8, 1, 1, 13) > 0.3
    key_mask[..., 0] = True
    cos, sin = rotary_table((4, 3), rope_periods(12, 2, 100.0), prefix=1)
    kept = draw_tokens(x, None, 1, 0.0)  # the tables of a grid of which each sample has other patches
    rotation = keep_tokens(kept, x, None, (cos.double(), sin.double()))[2] if kind == "rope" else None
    return block, x, (key_mask, rotation, relative_offsets((4, 3)) if kind == "relative" else None)


def tokens_of(output):
    return output[0] if isinstance(output, tuple) else output


def ordinary_drop_path(self, x, branch, *inputs):
    """Every sample computed, then some made zero."""
    drawn = torch.empty(len(x)).bernoulli_(1 - self.rate).to(x)
    return x + branch(*inputs) * drawn[:, None, None] / (1 - self.rate)


@pytest.mark.parametrize("first", [None, 1])
@pytest.mark.parametrize("kind", ["plain", "relative", "rope", "merging"])
def test_drop_path_equals_computing_all_and_dropping_some(kind, first, monkeypatch):
    block, x, context = a_block(kind, 0.5)
    results = []
    for way in (DropPath.forward, ordinary_drop_path):
        monkeypatch.setattr(DropPath, "forward", way)
        torch.manual_seed(1)
        leaf = x.clone().requires_grad_()
        out = tokens_of(block(leaf, *context, first))
        block.zero_grad()
        out.sin().sum().backward()
        results.append([out, leaf.grad, *(p.grad for p in block.parameters())])
    for ours, expected in zip(*results):
        assert_equal(ours, expected)
    assert all(t.abs().sum() > 0 for t in results[0] if t.shape != (2, 35))  # offsets do not concern a prefix token


def test_dropped_samples_are_not_computed():
    block, x, context = a_block("plain", 0.5)
    computed = {"attn": [], "mlp": []}
    for name, calls in computed.items():
        getattr(block, name).register_forward_hook(lambda _, inputs, out, calls=calls: calls.append(len(out)))
    drawn = []
    for seed in range(6):
        torch.manual_seed(seed)
        drawn.append([int(torch.empty(8).bernoulli_(0.5).sum()) for _ in computed])
        torch.manual_seed(seed)
        block(x, *context)
    assert [list(calls) for calls in zip(*computed.values())] == drawn
    assert len({n for pair in drawn for n in pair}) > 2
    block.eval()(x, *context)
    assert computed["mlp"][-1] == 8


def test_when_all_samples_are_dropped_gradients_are_zeros():
    block, x, context = a_block("plain", 0.999)
    out = block(x, *context)
    assert torch.equal(out, x)
    out.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in block.parameters())


@pytest.mark.parametrize("kind", ["plain", "relative", "rope", "merging"])
def test_when_all_samples_are_dropped_in_mixed_precision(kind):
    block, x, context = a_block(kind, 0.999)
    with torch.autocast("cpu", torch.bfloat16):
        out = tokens_of(block.float()(x.float().requires_grad_(), *context))
    out.sum().backward()
    assert all(not p.grad.any() for p in block.parameters() if p.grad is not None)


def test_drop_path_has_the_expectation_of_the_branch():
    drop, x = DropPath(0.3), torch.randn(20_000, 1, 4)
    weight = torch.randn(4)
    mean = (drop(x, torch.mul, x.cos(), weight) - x).mean(0)
    expected = (drop.eval()(x, torch.mul, x.cos(), weight) - x).mean(0)
    torch.testing.assert_close(mean, expected, atol=0.03, rtol=0)
    assert expected.abs().max() > 0.2


def test_drop_path_in_lower_precision_keeps_the_residual_stream():
    drop, x = DropPath(0.5), torch.full((16, 2, 4), 1 + 2**-12)
    y = drop(x, lambda y: (y * 0).bfloat16(), x)
    assert torch.equal(y, x)


# tokens that no head reads

UNREAD = {
    "plain": {},
    "distilled": dict(distilled=True),
    "registers": dict(num_registers=2),
    "rope": dict(pos_embed="rope", embed_dim=48),
    "relative": dict(relative_bias=True),
    "norms": dict(qk_norm=True, pre_norm=True, layer_scale=0.1),
}


@dims
@pytest.mark.parametrize("variant", UNREAD.values(), ids=UNREAD)
def test_the_last_block_can_compute_only_the_tokens_that_heads_read(size, variant):
    model = build(size, **variant)
    x, mask = inputs(model), patches_to_mask(model, torch.rand(3, 12) > 0.3)
    computed = []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda _, inputs, out: computed.append(out.shape[1]))
    results = []
    for way in ("less", "all"):
        model.zero_grad()
        with only_read_tokens(model) if way == "less" else nullcontext():
            out = model(x, mask)
        out = torch.stack(out) if isinstance(out, tuple) else out
        out.sin().sum().backward()
        results.append([out, *(p.grad for p in model.parameters())])
    for less, everything in zip(*results):
        torch.testing.assert_close(less, everything, atol=1e-10, rtol=1e-10)
    tokens = model.num_prefix_tokens + 12
    assert not model.skip_unread_tokens
    assert computed == [tokens, tokens, 1 + model.config.distilled, tokens, tokens, tokens]


# patch dropout


@dims
def test_patch_dropout_keeps_as_many_of_each_sample(size):
    model = build(size, patch_drop_rate=0.25, pooling="avg", num_registers=2)
    seen = []
    model.blocks[0].register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    x = inputs(model)
    model(x)
    assert seen[0].shape == (3, 3 + 9, 24)
    whole = model._add_positions(model.patch_embed(x))
    assert torch.equal(seen[0][:, :3], whole[:, :3])  # prefix
    places = [[(row == token).all(1).nonzero().item() for token in kept] for row, kept in zip(whole, seen[0])]
    assert all(sorted(set(p)) == p for p in places)  # each once, in their order
    assert len({tuple(p) for p in places}) == 3
    model.eval()(x)
    assert seen[1].shape == (3, 15, 24)


def test_patches_are_dropped_alike():
    x = torch.zeros(4000, 1 + 8, 1)
    kept = draw_tokens(x, None, 1, 0.75)
    assert kept.shape == (4000, 3)
    assert torch.bincount(kept[:, 1:].flatten(), minlength=9)[1:].div(1000).tolist() == pytest.approx([1] * 8, abs=0.12)
    assert draw_tokens(x, None, 1, 0.999).shape == (4000, 2)  # one is always left
    assert draw_tokens(x, None, 0, 0.3).shape == (4000, 6)


@dims
@pytest.mark.parametrize("variant", [dict(pooling="avg"), dict(pos_embed="rope", embed_dim=48), dict(pooling="map")])
def test_dropped_patches_are_as_masked_patches(size, variant):
    model = build(size, patch_drop_rate=0.5, **variant)
    x, key_mask = inputs(model), torch.rand(3, 12) > 0.2
    torch.manual_seed(4)
    seen = torch.cat([torch.ones(3, 1, dtype=torch.bool), key_mask], dim=1)[:, None, None]
    kept = draw_tokens(torch.empty(3, 13, 1), seen, 1, 0.5)[:, 1:] - 1
    torch.manual_seed(4)
    out = model(x, patches_to_mask(model, key_mask))
    alone = key_mask & torch.zeros(3, 12).scatter(1, kept, 1).bool()
    torch.testing.assert_close(out, model.eval()(x, patches_to_mask(model, alone)), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("pooling", ["stem_tokens", "token"])
def test_patch_dropout_behind_a_stem(pooling):
    model = build(SIZES["2d"], patch_drop_rate=0.5, merge_tokens=1, pooling=pooling, stem_head=True, **STEM)
    x = inputs(model)
    tokens, stem = model(x)
    assert tokens.shape == stem.shape == (3, 5)
    (tokens.sin().sum() + stem.sin().sum()).backward()
    assert all(p.grad is not None for p in model.parameters())


# merging


def naive_merge(x, sizes, keys, count, prefix):
    """One sample, in words: every second patch to the likest of the others, the likest pairs first."""
    tokens, sizes = [t.clone() for t in x], sizes.tolist()
    seekers, takers = range(prefix + 1, len(x), 2), range(prefix, len(x), 2)
    pairs = []
    for i in seekers:
        likeness = {j: F.cosine_similarity(keys[i], keys[j], dim=0).item() for j in takers}
        pairs.append((max(likeness.values()), i, max(likeness, key=likeness.get)))
    gone = sorted(pairs, reverse=True)[:count]
    sums = {j: tokens[j] * sizes[j] for j in takers}
    for _, i, j in gone:
        sums[j], sizes[j] = sums[j] + tokens[i] * sizes[i], sizes[j] + sizes[i]
    left = [*range(prefix), *(i for i in seekers if i not in [g for _, g, _ in gone]), *takers]
    merged = [sums[j] / sizes[j] if j in sums else tokens[j] for j in left]
    return torch.stack(merged), torch.tensor([sizes[j] for j in left])


@pytest.mark.parametrize("tokens", [12, 13])
@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("count", [1, 3, 99])
def test_merging_equals_the_naive_one(tokens, prefix, count):
    x, keys = torch.randn(4, tokens, 5, dtype=torch.float64), torch.randn(4, tokens, 3, dtype=torch.float64)
    sizes = torch.randint(1, 5, (4, 1, 1, tokens)).double()
    out, new = merge_tokens(x, sizes, keys, count, prefix)
    left = tokens - min(count, (tokens - prefix) // 2)
    assert (out.shape, new.shape) == ((4, left, 5), (4, 1, 1, left))
    for i in range(4):
        expected, size = naive_merge(x[i], sizes[i, 0, 0], keys[i], count, prefix)
        torch.testing.assert_close(out[i], expected, atol=1e-12, rtol=1e-12)
        assert torch.equal(new[i, 0, 0], size.double())
    assert_equal(new.sum((1, 2, 3)), sizes.sum((1, 2, 3)))
    assert_equal((out * new.mT[:, 0]).sum(1), (x * sizes.mT[:, 0]).sum(1))  # so the mean stays, too


def test_tokens_without_size_count_as_one_patch():
    x, keys = torch.randn(2, 9, 5), torch.randn(2, 9, 3)
    for key_mask in (torch.ones(2, 1, 1, 9), torch.ones(2, 1, 1, 9, dtype=torch.bool)):
        for ours, expected in zip(merge_tokens(x, None, keys, 3, 1), merge_tokens(x, key_mask, keys, 3, 1)):
            assert torch.equal(ours, expected)
    assert merge_tokens(x[:, :2], None, keys[:, :2], 3, 1)[1] is None  # a single patch has no target


def test_masked_tokens_are_merged_first_and_leave_no_trace():
    x, keys = torch.randn(6, 13, 5, dtype=torch.float64), torch.randn(6, 13, 3, dtype=torch.float64)
    key_mask = torch.rand(6, 1, 1, 13) > 0.4
    key_mask[..., 0] = True
    key_mask[0] = (torch.arange(13) % 2 == 0) & (torch.arange(13) != 2)  # no target
    key_mask[1, ..., 1:] = False  # no observed value
    seen = key_mask[:, 0, 0]
    out, sizes = merge_tokens(x, key_mask, keys, 4, 1)
    other = torch.where(seen[:, :, None], x, 9.0), torch.where(seen[:, :, None], keys, torch.randn(6, 13, 3))
    again, same = merge_tokens(other[0], key_mask, other[1], 4, 1)
    assert torch.equal(sizes, same)
    left = sizes[:, 0, 0] > 0
    assert torch.equal(out[left], again[left])
    assert out.isfinite().all()
    assert torch.equal(sizes.sum((1, 2, 3)), seen.sum(1).double())
    hidden = (~seen[:, 2::2]).sum(1)  # sources
    assert torch.equal((~left).sum(1)[1:], ((~seen).sum(1) - hidden.clamp(max=4))[1:])
    assert hidden[1] > 4
    assert sizes[0, 0, 0, -6:].tolist() == [3, 0, 0, 0, 0, 0]


def test_a_large_token_counts_as_its_patches():
    sizes = torch.tensor([1, 3, 0, 2])
    x = torch.randn(2, 4, 24, dtype=torch.float64)
    many = x.repeat_interleave(sizes, 1)
    key_mask = sizes.double().expand(2, 1, 1, 4)
    attention = spread(Attention(ViTConfig(**(SMALL | SIZES["1d"])))).double()
    expected = attention(many)[:, [0, 1, 4]]
    assert_equal(attention(x, key_mask)[:, [0, 1, 3]], expected)
    pool = spread(AttentionPool(ViTConfig(**(SMALL | SIZES["1d"])))).double()
    assert_equal(pool(x, key_mask), pool(many))
    assert_equal(masked_mean(x, key_mask[:, 0, 0]), many.mean(1))


POOLINGS = [
    dict(pooling="token"),
    dict(pooling="avg", class_token=False),
    dict(pooling="norm_avg", num_registers=1),
    dict(pooling="token_avg"),
    dict(pooling="map"),
    dict(distilled=True),
]


@dims
@pytest.mark.parametrize("variant", POOLINGS, ids=lambda v: v.get("pooling", "distilled"))
def test_merging_equal_patches_changes_nothing(size, variant):
    merging = build(size, merge_tokens=4, **variant).eval()
    plain = VisionTransformer(ViTConfig(**(SMALL | size | variant))).double().eval()
    with torch.no_grad():  # places are all alike
        merging.pos_embed[:] = 0
    plain.load_state_dict(merging.state_dict())
    x = inputs(merging)
    x = x[(..., *[slice(0, p) for p in merging.config.patch_size])].repeat(1, 1, *merging.config.grid)
    torch.testing.assert_close(merging(x), plain(x), atol=1e-10, rtol=1e-10)
    assert merging.stages(x).encoded.shape == (3, merging.num_prefix_tokens + 12 - 4 - 4 - 2, 24)
    x = inputs(merging)
    assert (merging(x) - plain(x)).abs().max() > 1e-3


@dims
@pytest.mark.parametrize(("count", "left"), [(0, [12, 12, 12]), (2, [10, 8, 6]), (5, [7, 4, 2]), (99, [6, 3, 2])])
def test_tokens_left_after_each_block(size, count, left):
    model = build(size, merge_tokens=count, pooling="avg", num_registers=1, patch_drop_rate=0.5)
    shapes, sizes = [], []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda _, inputs, out: shapes.append(out.shape[1] - 2))
        if count:
            block.register_forward_hook(lambda _, inputs, out: sizes.append(out[1]))
    model.eval()(inputs(model))
    assert shapes == left
    assert all((s.sum((1, 2, 3)) == 14).all() for s in sizes)
    shapes.clear()
    model.train()(inputs(model))
    assert shapes[0] == 6 - min(count, 3)


@dims
@pytest.mark.parametrize("variant", POOLINGS, ids=lambda v: v.get("pooling", "distilled"))
def test_merging_ignores_masked_values(size, variant):
    model = build(size, merge_tokens=4, **variant).eval()
    x, patches = inputs(model), torch.rand(3, 12) > 0.4
    patches[2] = False  # no observed value
    if not model.config.class_token:
        patches[2, 0] = True
    mask = patches_to_mask(model, patches)
    noise = torch.where(mask[:, None], x, torch.randn_like(x) * 9)
    assert_equal(model(x, mask), model(noise, mask))
    assert model(x, mask).isfinite().all()


@dims
def test_merging_only_masked_tokens_is_exact(size):
    model = build(size, merge_tokens=5, depth=2)  # the last block has no need to merge
    plain = VisionTransformer(ViTConfig(**(SMALL | size | dict(depth=2)))).double()
    plain.load_state_dict(model.state_dict())
    patches = torch.rand(3, 12) > 0.4
    patches[:, 1::2] = False
    patches[:, 3] = True  # five that are hidden may go
    x, mask = inputs(model), patches_to_mask(model, patches)
    assert_equal(model(x, mask), plain(x, mask))


@dims
@pytest.mark.parametrize("variant", [dict(), dict(pooling="avg", qkv_bias=False, qk_norm=True), dict(pooling="map")])
def test_gradients_flow_through_merging(size, variant):
    model = build(size, merge_tokens=3, drop_path_rate=0.2, **variant)
    x, gradients = inputs(model, 6), []
    for model.grad_checkpointing in (False, True):
        torch.manual_seed(2)
        model.zero_grad()
        F.cross_entropy(model(x), torch.arange(6) % 5).backward()
        gradients.append([p.grad for p in model.parameters()])
    for (name, _), grad, again in zip(model.named_parameters(), *gradients):
        assert grad.abs().sum() > 0, name
        assert_equal(grad, again)


def test_merging_costs_less():
    from dataclasses import replace

    config = ViTConfig(embed_dim=192, num_heads=3, pooling="avg")
    whole, less = (count_cost(replace(config, merge_tokens=r))[1] for r in (0, 16))
    tokens, expected = 197, 0
    for _ in range(12):
        left = tokens - min(16, (tokens - 1) // 2)
        expected += tokens * (4 * 192**2 + 64 * 192) + 2 * tokens**2 * 192 + left * 8 * 192**2
        expected += math.ceil((tokens - 1) / 2) * ((tokens - 1) // 2) * 64  # who is like whom
        tokens = left
    assert less == expected + 196 * 768 * 192 + 192 * 1000
    assert whole / less > 1.8


def test_merging_exports():
    model = build(SIZES["2d"], depth=2, merge_tokens=3).float()
    x = batch(model, 4)
    expected = model.eval()(x)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    for n in (1, 3):
        torch.testing.assert_close(exported.module()(x[:n]), expected[:n], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_merging_compiles():
    model = build(SIZES["2d"], depth=2, merge_tokens=3, drop_path_rate=0.2).float()
    x = batch(model, 4)
    expected = model.eval()(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, atol=1e-5, rtol=1e-5)
    compiled.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_masked_patches_are_dropped_first():
    key_mask = torch.ones(500, 1, 1, 17, dtype=torch.bool)
    key_mask[:, :, :, 3:] = False
    kept = draw_tokens(torch.empty(500, 17, 1), key_mask, 1, 0.5)
    assert kept.shape == (500, 9)
    assert (kept[:, :3] == torch.arange(3)).all()
    assert len(kept.unique(dim=0)) > 400
