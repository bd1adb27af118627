"""A linear layer by a convolution: the same numbers and gradients, and a matrix product wherever that is better."""

import pytest
import torch
import torch.nn.functional as F

from ndvit.network import fast as linear
from ndvit.network.fast import Linear
from smallnetworks import batch, spread
from test_network import SIZES, build


@pytest.fixture
def convolved(monkeypatch):
    """As on a CPU of AMD with AVX-512 and two threads, however small the product; the names of what was called."""
    called = []
    monkeypatch.setattr(linear, "MKL_LAGS", True)
    monkeypatch.setattr(linear, "_LEAST_ROWS", 1)
    monkeypatch.setattr(linear, "_LEAST_WORK", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    convolve, multiply = F.conv2d, F.linear
    monkeypatch.setattr(F, "conv2d", lambda *given: called.append("conv2d") or convolve(*given))
    monkeypatch.setattr(F, "linear", lambda *given: called.append("linear") or multiply(*given))
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


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_networks_answer_and_learn_the_same(size, convolved, monkeypatch):
    model = spread(build(size))
    x = batch(model)
    found = model(x)
    gradients = torch.autograd.grad(found.sin().sum(), list(model.parameters()))
    assert convolved.count("conv2d") >= 4 * model.config.depth
    monkeypatch.setattr(linear, "MKL_LAGS", False)
    expected = model(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    right = torch.autograd.grad(expected.sin().sum(), list(model.parameters()))
    for a, b in zip(gradients, right, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_where_a_product_is_better_it_is_one(convolved, monkeypatch):
    layer, x = Linear(16, 8), torch.randn(40, 16)
    layer(x)
    layer.double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        layer.float()(x)
    torch.backends.mkldnn.enabled = False
    layer(x)
    torch.backends.mkldnn.enabled = True
    monkeypatch.setattr(linear, "_LEAST_ROWS", 41)
    layer(x)
    monkeypatch.setattr(linear, "_LEAST_ROWS", 40)
    monkeypatch.setattr(linear, "_LEAST_WORK", 40 * 16 * 8 + 1)
    layer(x)
    monkeypatch.setattr(linear, "_LEAST_WORK", 40 * 16 * 8)
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
    monkeypatch.setattr(linear, "MKL_LAGS", True)
    monkeypatch.setattr(linear, "_LEAST_ROWS", 120)
    monkeypatch.setattr(linear, "_LEAST_WORK", 0)
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
