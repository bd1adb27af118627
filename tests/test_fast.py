"""Hardware paths: the same numbers and gradients as the plain layers, and taken only where they help."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from ndvit.config import ViTConfig
from ndvit.network import fast, layers
from ndvit.network.fast import Linear, only_read_tokens
from smallnetworks import batch, spread
from test_network import SIZES, build, dims


def in_double(size, **values):
    return spread(build(size, **values)).double()


def double_batch(model, n=3):
    return batch(model, n).double()


def assert_equal(a, b):
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@dims
def test_installed_classes_have_the_same_tensors_and_can_be_copied(size, monkeypatch):
    monkeypatch.setenv(fast.LINEAR, "convolution")
    model = spread(build(size, pooling="map"))
    assert type(model.blocks[0]) is fast.Block
    assert type(model.blocks[0].attn) is fast.Attention
    found = {name for name, module in model.named_modules() if isinstance(module, Linear)}
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    pool = {f"attn_pool.{name}" for name in ("q", "kv", "proj", "mlp.fc1", "mlp.fc2")}
    assert found == {f"blocks.{i}.{part}" for i in range(3) for part in parts} | pool
    assert type(model.head) is nn.Linear
    x = batch(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert list(other.state_dict()) == list(model.state_dict())
        assert torch.equal(other(x), model(x))
    monkeypatch.setenv(fast.LINEAR, "matmul")
    plain = build(size, pooling="map")
    assert not any(isinstance(module, Linear) for module in plain.modules())
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(x), model(x), atol=1e-5, rtol=1e-5)


def test_only_read_tokens_are_computed_inside_and_all_outside():
    model = build(SIZES["1d"])
    both, shapes = nn.Sequential(model, nn.Identity()), []
    model.blocks[2].register_forward_hook(lambda _, inputs, output: shapes.append(output.shape[1]))
    x = batch(model)
    with only_read_tokens(both):
        both(x)
    with pytest.raises(ValueError, match="expected a floating-point input"), only_read_tokens(both):
        both(x[0])
    both(x)
    assert shapes == [1, 7]
    model.skip_unread_tokens = True
    with only_read_tokens(both):
        pass
    assert model.skip_unread_tokens


# linear layers


@pytest.mark.parametrize(
    ("capability", "threads", "speedup", "expected"),
    [
        ("AVX512", 2, 1.3, True),
        ("AVX512_BF16", 2, 1.25, True),
        ("AVX512", 2, 1.2, False),
        ("AVX512", 1, 9.0, False),
        ("AVX2", 2, 9.0, False),
        ("DEFAULT", 2, 9.0, False),
    ],
)
def test_the_convolution_is_selected_by_its_measured_speedup(capability, threads, speedup, expected, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(fast, "convolution_speedup", lambda: speedup)
    monkeypatch.delenv(fast.LINEAR, raising=False)
    assert fast.linear_by_convolution() is expected
    for choice, pinned in (("auto", expected), ("matmul", False), ("convolution", True)):
        monkeypatch.setenv(fast.LINEAR, choice)
        assert fast.linear_by_convolution() is pinned
    monkeypatch.setenv(fast.LINEAR, "onednn")
    with pytest.raises(ValueError, match="NDVIT_LINEAR must be auto, matmul or convolution, got 'onednn'"):
        build(SIZES["1d"])


@pytest.mark.parametrize(
    ("matmul", "convolution", "speedup"),
    [
        ([2.0] * 7, [1.0] * 7, 2.0),
        ([9.0, 9.0, 2.0, 2.0, 2.0, 2.0, 2.0], [9.0, 9.0, 1.6, 1.6, 1.6, 1.6, 1.6], 1.25),
        ([1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 1.0], [1.0] * 7, 1.0),  # a busy machine disturbed most products
        ([1.0] * 7, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5], 1.0),  # one fast convolution
    ],
)
def test_noise_does_not_select_the_convolution(matmul, convolution, speedup, monkeypatch):
    times = [0.0]
    for one, two in zip(matmul, convolution):
        times += [times[-1] + one, times[-1] + one + two]
    ticks = iter([t for i in range(7) for t in times[2 * i : 2 * i + 3]])
    monkeypatch.setattr(fast.time, "perf_counter", lambda: next(ticks))
    state = torch.get_rng_state()
    assert fast.convolution_speedup.__wrapped__() == pytest.approx(speedup)
    assert torch.equal(torch.get_rng_state(), state)  # initial weights do not depend on whether it was measured


@pytest.fixture
def convolved(monkeypatch):
    """Convolutions for products of any size, as with two threads; the names of the functions that were called."""
    called = []
    monkeypatch.setenv(fast.LINEAR, "convolution")
    monkeypatch.setattr(fast, "_LEAST_ROWS", 1)
    monkeypatch.setattr(fast, "_LEAST_WORK", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    convolve, multiply = F.conv2d, F.linear
    monkeypatch.setattr(F, "conv2d", lambda *args: called.append("conv2d") or convolve(*args))
    monkeypatch.setattr(F, "linear", lambda *args: called.append("linear") or multiply(*args))
    return called


@pytest.mark.parametrize("shape", [(7, 5), (2, 7, 5), (2, 3, 7, 5), (1, 1, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_numbers_and_gradients_are_those_of_a_product(shape, bias, convolved):
    layer, x = Linear(5, 11, bias=bias).double().float(), torch.randn(shape, requires_grad=True)
    weights = list(layer.parameters())
    expected = F.linear(x, *weights)
    found = layer(x)
    assert convolved == ["linear", "conv2d"]
    assert found.shape == (*shape[:-1], 11)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    mine, theirs = (torch.autograd.grad(y.sin().sum(), (x, *weights)) for y in (found, expected))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_inputs_in_any_order_of_memory(convolved):
    layer, x = Linear(6, 4), torch.randn(6, 9, 2).transpose(0, 2)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-6, rtol=1e-6)


@dims
def test_networks_answer_and_learn_the_same(size, convolved, monkeypatch):
    model = spread(build(size))
    x = batch(model)
    found = model(x)
    gradients = torch.autograd.grad(found.sin().sum(), list(model.parameters()))
    assert convolved.count("conv2d") >= 4 * model.config.depth
    with monkeypatch.context() as patch:
        patch.setattr(Linear, "forward", nn.Linear.forward)
        expected = model(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    right = torch.autograd.grad(expected.sin().sum(), list(model.parameters()))
    for a, b in zip(gradients, right, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_products_that_do_not_suit_are_matrix_products(convolved, monkeypatch):
    layer, x = Linear(16, 8), torch.randn(40, 16)
    layer(x)
    layer.double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        layer.float()(x)
    torch.backends.mkldnn.enabled = False
    layer(x)
    torch.backends.mkldnn.enabled = True
    monkeypatch.setattr(fast, "_LEAST_ROWS", 41)
    layer(x)
    monkeypatch.setattr(fast, "_LEAST_ROWS", 40)
    monkeypatch.setattr(fast, "_LEAST_WORK", 40 * 16 * 8 + 1)
    layer(x)
    monkeypatch.setattr(fast, "_LEAST_WORK", 40 * 16 * 8)
    layer(x)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    layer(x)
    assert convolved == ["conv2d", *["linear"] * 5, "conv2d", "linear"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_graphs_have_products(convolved):
    layer, x = Linear(16, 8), torch.randn(3, 40, 16)
    program = torch.export.export(layer, (x,))
    assert not any("conv" in str(node.target) for node in program.graph.nodes)
    assert "conv" not in str(torch.jit.trace(layer, (x,)).inlined_graph)


def test_torch_compile_takes_the_convolution_in_one_graph(monkeypatch):
    monkeypatch.setattr(fast, "_LEAST_ROWS", 120)
    monkeypatch.setattr(fast, "_LEAST_WORK", 0)
    layer, seen = Linear(16, 8), []

    def backend(graph, inputs):
        seen.append(graph.code)
        return graph

    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=False)
    for rows, way in ((3, "linear"), (40, "conv2d")):
        x = torch.randn(3, rows, 16)
        torch.testing.assert_close(compiled(x), F.linear(x, layer.weight, layer.bias), atol=1e-6, rtol=1e-6)
        assert way in seen.pop()
        assert not seen


# attention in bfloat16


@pytest.mark.parametrize("kind", ["plain", "masked", "sizes"])
def test_attention_in_bfloat16_is_that_of_the_fused_kernel(kind, monkeypatch):
    q, k, v = (torch.randn(2, 3, 50, 16, dtype=torch.bfloat16).requires_grad_() for _ in range(3))
    sizes = torch.randint(0, 3, (2, 1, 1, 50))
    sizes[1] = 0  # no observed value
    masks = {"plain": None, "masked": sizes > 0, "sizes": layers.attention_mask(sizes.float(), q.dtype)}
    mask = masks[kind]
    attention = fast.Attention(ViTConfig(embed_dim=48, num_heads=3, qk_scale=0.3))
    whole = mask.float() if kind == "sizes" else mask
    exact = F.scaled_dot_product_attention(*(x.float() for x in (q, k, v)), whole, scale=0.3)
    gradients = torch.autograd.grad(exact.sin().sum(), (q, k, v))
    monkeypatch.setattr(fast, "_MOST_TOKENS", 49)
    assert torch.equal(attention.attend(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, mask, scale=0.3))
    monkeypatch.setattr(fast, "_MOST_TOKENS", 50)
    found = attention.attend(q, k, v, mask)
    assert found.dtype == torch.bfloat16
    for mine, right in zip(
        (found, *torch.autograd.grad(found.float().sin().sum(), (q, k, v))), (exact, *gradients), strict=True
    ):
        assert (mine - right).abs().max() < 0.1 * right.float().std()
        assert (mine - right).float().std() < 0.01 * right.float().std()


def test_attention_in_float32_is_the_fused_kernel():
    q, k, v = (torch.randn(2, 3, 50, 16) for _ in range(3))
    attention = fast.Attention(ViTConfig(embed_dim=48, num_heads=3))
    assert torch.equal(attention.attend(q, k, v, None), F.scaled_dot_product_attention(q, k, v))


# recomputed norms


@dims
def test_norms_are_recomputed_in_the_backward_pass_and_change_no_gradient(size, monkeypatch):
    network, calls = in_double(size, layer_scale=0.1).train(), []
    x = double_batch(network)
    for block in network.blocks:
        for norm in (block.norm1, block.norm2):
            norm.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))

    def gradients():
        network.zero_grad()
        loss = network(x).square().sum()
        calls.clear()
        loss.backward()
        return [p.grad.clone() for p in network.parameters()]

    found = gradients()
    assert len(calls) == 2 * len(network.blocks)  # each norm once more
    monkeypatch.setattr(fast._RecomputedNorms, "apply_normed", layers.Block.apply_normed)
    for a, b in zip(found, gradients(), strict=True):
        assert torch.equal(a, b)
    assert calls == []


def test_recomputed_norms_beside_checkpoints_and_drop_path():
    network = in_double(SIZES["1d"], drop_path_rate=0.5, drop_rate=0.1).train()
    x, grads = double_batch(network, 6), []
    for checkpointing in (False, True):
        network.grad_checkpointing = checkpointing
        torch.manual_seed(3)
        network.zero_grad()
        network(x).square().sum().backward()
        grads.append([p.grad.clone() for p in network.parameters()])
    for a, b in zip(*grads, strict=True):
        assert_equal(a, b)


def left_in_memory(call):
    """Bytes that tensors made in a call still take after it, and what the call returns."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        made = call()
    return sum(e.nbytes() for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"), made


def test_a_graph_without_a_backward_pass_is_freed():
    network = in_double(SIZES["2d"]).train()
    x = double_batch(network)
    network(x)  # what is made once
    assert left_in_memory(lambda: network(x))[0] > 20_000
    assert left_in_memory(lambda: network(x).shape)[0] == 0


def test_checkpoints_keep_nothing_inside_of_blocks():
    network, taken = in_double(SIZES["2d"], depth=6).train(), []
    x = double_batch(network)
    for network.grad_checkpointing in (False, True):
        network(x)
        taken.append(left_in_memory(lambda: network(x))[0])
    assert taken[1] < taken[0] / 4


def test_recomputed_norms_under_other_hooks_and_torch_func():
    network = in_double(SIZES["2d"]).train()
    x, weights = double_batch(network), dict(network.named_parameters())

    def loss(values):
        return torch.func.functional_call(network, values, (x,)).sin().sum()

    expected = torch.autograd.grad(loss(weights), list(weights.values()))
    with torch.autograd.graph.save_on_cpu():
        saved = torch.autograd.grad(loss(weights), list(weights.values()))
    layer_by_layer = torch.autograd.grad(checkpoint(loss, weights, use_reentrant=False), list(weights.values()))
    for found in (saved, layer_by_layer, torch.func.grad(loss)(weights).values()):
        for a, b in zip(found, expected, strict=True):
            assert_equal(a, b)


def test_second_derivatives_through_recomputed_norms(monkeypatch):
    network, found = in_double(SIZES["2d"], depth=1).train(), []
    x = double_batch(network)
    monkeypatch.setattr(fast.Attention, "attend", naive_attention)  # the fused kernel has no second derivatives
    for way in (fast._RecomputedNorms.apply_normed, layers.Block.apply_normed):
        monkeypatch.setattr(fast._RecomputedNorms, "apply_normed", way)
        weights = list(network.parameters())
        first = torch.autograd.grad(network(x).sin().sum(), weights, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), weights))
    for a, b in zip(*found, strict=True):
        assert_equal(a, b)
    assert all(g.abs().max() > 0 for g in found[0])


def naive_attention(self, q, k, v, mask):
    return (q * self.scale @ k.mT).softmax(3) @ v
