"""Micro-batching: batches of several requests, bounded waiting, errors; and the choice of the fastest way."""

import asyncio
import threading

import pytest
import torch

from ndvit.config.serving import ServingOptions
from ndvit.serving import ways
from ndvit.serving.batching import Batcher
from ndvit.serving.errors import Busy
from ndvit.serving.models import load_model
from servedmodels import save_served


class Network:
    """Doubles its inputs, once it is free to do so, and records the sizes of batches."""

    def __init__(self):
        self.sizes, self.free, self.begun = [], threading.Event(), threading.Event()

    def __call__(self, x, mask):
        self.begun.set()
        self.free.wait(5)
        self.sizes.append(len(x))
        if (x < 0).any():
            raise ValueError("negative")
        return 2 * x + (0 if mask is None else mask.float()[:, None])


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def batcher(network):
    made = Batcher(network, most=4, wait=0.0, limit=8, name="m")
    yield made
    network.free.set()
    made.close()


def numbers(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None]


def test_waiting_examples_make_up_batches_of_at_most_the_limit(network, batcher):
    async def ask():
        first = batcher.submit(numbers(1), None)
        await asyncio.to_thread(network.begun.wait, 5)
        others = [batcher.submit(numbers(*range(n)), None) for n in (2, 5)]
        network.free.set()
        return await asyncio.gather(first, *others)

    found = asyncio.run(ask())
    assert [one.flatten().tolist() for one in found] == [[2], [0, 2], [0, 2, 4, 6, 8]]
    assert network.sizes == [1, 4, 3]


def test_a_batch_has_a_mask_if_one_of_its_examples_has(network, batcher):
    async def ask():
        first = batcher.submit(numbers(0), None)
        await asyncio.to_thread(network.begun.wait, 5)
        hidden = torch.zeros(1, dtype=torch.bool)
        others = [batcher.submit(numbers(1), None), batcher.submit(numbers(1), hidden)]
        network.free.set()
        return await asyncio.gather(first, *others)

    found = asyncio.run(ask())
    assert [one.flatten().tolist() for one in found] == [[0], [3], [2]]  # the network adds 1 where it was observed


def test_too_many_examples_are_refused_and_errors_reach_their_requests_only(network, batcher):
    async def ask():
        first = batcher.submit(numbers(-1), None)
        await asyncio.to_thread(network.begun.wait, 5)
        second = batcher.submit(numbers(*range(8)), None)
        with pytest.raises(Busy):
            batcher.submit(numbers(1), None)
        network.free.set()
        with pytest.raises(ValueError, match="negative"):
            await first
        return await second

    assert len(asyncio.run(ask())) == 8


def test_requests_that_ended_are_not_computed(network, batcher):
    async def ask():
        first = batcher.submit(numbers(1), None)
        await asyncio.to_thread(network.begun.wait, 5)
        batcher.submit(numbers(1, 2, 3), None).cancel()
        last = batcher.submit(numbers(4), None)
        network.free.set()
        await asyncio.gather(first, last)

    asyncio.run(ask())
    assert network.sizes == [1, 1]


def test_an_idle_network_waits_for_requests_that_are_being_read(network):
    network.free.set()
    batcher = Batcher(network, most=4, wait=5.0, limit=8, name="m")

    async def ask():
        with batcher.expected() as arrive, batcher.expected() as other:
            one = batcher.submit(numbers(1), None)
            arrive()
            await asyncio.sleep(0.05)
            assert not one.done()
            two = batcher.submit(numbers(2), None)
            other()
            return await asyncio.gather(one, two)

    asyncio.run(ask())
    batcher.close()
    assert network.sizes == [2]


@pytest.mark.parametrize(("error", "chosen"), [(0.0, "onnxruntime"), (1e-3, None)])
def test_the_fastest_way_with_equal_answers_is_chosen(tmp_path, monkeypatch, error, chosen):
    model = load_model(save_served("signals", tmp_path / "run"))
    plain, _ = ways.plain_way(model)
    (tmp_path / "model.onnx").touch()
    monkeypatch.setattr(ways, "open_graph", lambda *_: lambda x, mask: model.network(x, mask) * (1 + error))
    monkeypatch.setattr(ways, "measure", lambda found, *_: {name: float(name == "pytorch") for name in found})
    found = ways.choose(model, plain, tmp_path, False, 2)
    assert (found and found[1]) == chosen
    if found:
        x, mask = torch.randn(3, 2, 16), torch.ones(3, 16, dtype=torch.bool)
        mask[0, 9:] = False
        torch.testing.assert_close(found[0](x, mask), plain(x, mask), atol=1e-5, rtol=0)


def test_options_are_checked():
    with pytest.raises(ValueError, match="port"):
        ServingOptions(port=70_000)
