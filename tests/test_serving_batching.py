"""Micro-batching: batches of several requests, bounded waiting, errors; and the choice of the fastest way."""

import asyncio
import threading

import pytest
import torch

from ndvit.config.serving import ServingOptions
from ndvit.serving import ways
from ndvit.serving.batching import Batcher, Way
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
    made = Batcher(Way("w", network), most=4, wait=0.0, limit=8, name="m")
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
    batcher = Batcher(Way("w", network), most=4, wait=5.0, limit=8, name="m")

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


def test_streams_share_what_waits_and_compute_it_at_one_time(network):
    both = threading.Barrier(2, timeout=5)

    def compute(x, mask):
        if len(x) > 1:
            both.wait()  # passes only if another batch is computed now
        return network(x, mask)

    batcher = Batcher(Way("w", compute, streams=2), most=8, wait=5.0, limit=20, name="m")
    network.free.set()

    async def ask():
        with batcher.expected():  # so that nothing is computed before all have come
            sent = [batcher.submit(numbers(*range(start, start + n)), None) for start, n in ((0, 1), (1, 4), (5, 1))]
        return await asyncio.gather(*sent)

    found = asyncio.run(ask())
    batcher.close()
    assert [one.flatten().tolist() for one in found] == [[0], [2, 4, 6, 8], [10]]
    assert network.sizes == [3, 3]


def test_batches_are_not_larger_than_is_worth_it(network):
    batcher = Batcher(Way("w", network, rows=2), most=8, wait=0.0, limit=20, name="m")

    async def ask():
        first = batcher.submit(numbers(1), None)
        await asyncio.to_thread(network.begun.wait, 5)
        other = batcher.submit(numbers(*range(5)), None)
        network.free.set()
        return await asyncio.gather(first, other)

    found = asyncio.run(ask())
    batcher.close()
    assert found[1].flatten().tolist() == [0, 2, 4, 6, 8]
    assert network.sizes == [1, 2, 2, 1]


def test_few_examples_are_computed_in_all_threads_while_nothing_else_is(network):
    """Also after an error, whose batch is not computed any more."""
    alone, both = Network(), threading.Barrier(2, timeout=5)
    alone.free.set()
    network.free.set()

    def compute(x, mask):
        both.wait()
        return network(x, mask)

    batcher = Batcher(Way("w", compute, streams=2, alone=alone), most=8, wait=0.0, limit=20, name="m")

    async def ask():
        await batcher.submit(numbers(1), None)
        await batcher.submit(numbers(1, 2), None)  # each stream computes one of them
        for _ in range(2):
            with pytest.raises(ValueError, match="negative"):
                await batcher.submit(numbers(-1), None)
        await batcher.submit(numbers(3), None)

    asyncio.run(ask())
    batcher.close()
    assert (alone.sizes, network.sizes) == ([1, 1, 1, 1], [1, 1])


def test_nobody_waits_longer_for_others_because_there_are_several_streams(network):
    network.free.set()
    batcher = Batcher(Way("w", network, streams=4), most=8, wait=0.2, limit=20, name="m")
    waited = []
    real = batcher._gather
    batcher._gather = lambda: (waited.append(batcher._waiting), real())

    async def ask():
        with batcher.expected():  # somebody whose examples are not read before the end
            await batcher.submit(numbers(1, 2, 3, 4), None)

    asyncio.run(ask())
    batcher.close()
    assert waited == [4]  # once, although four streams took a part each
    assert network.sizes == [1, 1, 1, 1]


def test_a_job_has_examples(batcher):
    async def ask():
        batcher.submit(numbers(), None)

    with pytest.raises(ValueError, match="no example"):
        asyncio.run(ask())


def test_a_faster_way_takes_over_and_examples_keep_their_order(network):
    """A request in several batches that end in any order, and an error in one of them."""
    network.free.set()
    batcher = Batcher(Way("slow", network), most=1, wait=0.0, limit=100, name="m")

    async def ask():
        first = batcher.submit(numbers(*range(20)), None)
        batcher.use(Way("fast", network, streams=3))
        second = batcher.submit(numbers(*range(20, 50)), None)
        bad = batcher.submit(numbers(1, -1, 1), None)
        with pytest.raises(ValueError, match="negative"):
            await bad
        return await asyncio.gather(first, second)

    found = asyncio.run(ask())
    batcher.close()
    assert torch.cat(found).flatten().tolist() == [2.0 * i for i in range(50)]
    assert batcher.way.name == "fast"


@pytest.mark.parametrize(("error", "chosen"), [(0.0, "onnxruntime"), (1e-3, None)])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_fastest_way_with_equal_answers_is_chosen(tmp_path, monkeypatch, error, chosen, threads):
    model = load_model(save_served("signals", tmp_path / "run"))
    plain = ways.plain_way(model)
    (tmp_path / "model.onnx").touch()
    opened = []

    def opening(format, path, streams):
        opened.append(streams)
        return lambda x, mask: model.network(x, mask) * (1 + error)

    quick = {("onnxruntime", 4), ("onnxruntime", 1)}
    monkeypatch.setattr(ways, "open_graph", opening)
    monkeypatch.setattr(ways, "_costs", lambda runs, _: {k: len(run()) * (k not in quick) for k, run in runs.items()})
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    way = ways.choose(model, plain, tmp_path, False, 5)
    assert (way and way.name) == chosen
    if way is None:
        return
    assert (way.streams, way.rows) == (threads, 4)
    assert opened == ([3, 1] if threads == 3 else [1])
    assert (way.alone is None) == (threads == 1)
    x, mask = torch.randn(3, 2, 16), torch.ones(3, 16, dtype=torch.bool)
    mask[0, 9:] = False
    torch.testing.assert_close(way.compute(x, mask), plain.compute(x, mask), atol=1e-5, rtol=0)


def test_costs_are_those_of_an_example():
    now = 0.0

    def costs(seconds, rows):
        def run():
            nonlocal now
            now += seconds
            return torch.zeros(rows, 1)

        return run

    runs = {"many": costs(0.5, 4), "few": costs(0.0625, 1)}
    assert ways._costs(runs, lambda: now) == {"many": 0.125, "few": 0.0625}


def test_options_are_checked():
    with pytest.raises(ValueError, match="port"):
        ServingOptions(port=70_000)
