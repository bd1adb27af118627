"""Committees: weighted means of outputs or probabilities of networks of any kind."""

import copy

import pytest
import torch
from torch import nn

from ndvit.network import create_model
from ndvit.network.committee import Committee, first_transformer, transformers
from ndvit.network.random_convolutions import RandomConvolutions


def network(seed=0, size=(8,), **options):
    torch.manual_seed(seed)
    values = {"input_size": size, "patch_size": 4, "embed_dim": 8, "num_heads": 2, "depth": 1, "num_classes": 3}
    return create_model("vit_pico", in_channels=2, weight_init="balanced", **values | options).eval()


def convolutions():
    made = RandomConvolutions(2, 8, 168, 3)
    made.draw(torch.randn(4, 2, 8), None, torch.Generator())
    nn.init.normal_(made.head.weight, std=0.1)
    return made


def trio(**options):
    return Committee([network(seed, **options) for seed in range(3)], combine="probabilities")


@pytest.mark.parametrize("size", [(8,), (8, 12), (4, 4, 8)])
@pytest.mark.parametrize("weights", [None, (0.5, 0.2, 0.3), (0.5, 0, 0.5)])
def test_the_softmax_of_its_outputs_is_the_mean_probability(size, weights):
    committee, x = trio(size=size), torch.randn(5, 2, *size)
    committee = Committee(list(committee.members), weights, "probabilities")
    observed = torch.rand(5, *size) < 0.4
    with torch.no_grad():
        for mask in (None, observed):
            each = torch.stack([member(x, mask).softmax(1) for member in committee.members])
            assert each.std(0).max() > 0.02  # they do differ
            expected = (each * torch.tensor(committee.weights)[:, None, None]).sum(0)
            torch.testing.assert_close(committee(x, mask).softmax(1), expected, atol=1e-6, rtol=1e-5)


def test_confident_members_do_not_overflow():
    committee = trio()
    for i, member in enumerate(committee.members):
        nn.init.zeros_(member.head.weight)
        member.head.bias.data = torch.tensor([0.0, 0.0, 0.0]).index_fill(0, torch.tensor([i]), 200.0)
    with torch.no_grad():
        assert torch.allclose(committee(torch.randn(2, 2, 8)).softmax(1), torch.full((2, 3), 1 / 3), atol=1e-6)


@pytest.mark.parametrize("weight", [0.5, 0.75, 0.9])
def test_the_mean_of_outputs_of_a_network_and_random_convolutions(weight):
    one, two, x = network(), convolutions(), torch.randn(4, 2, 8)
    committee = Committee([one, two], [1 - weight, weight])
    for mask in (None, torch.rand(4, 8) > 0.3):
        assert torch.equal(committee(x, mask), (1 - weight) * one(x, mask) + weight * two(x, mask))
    assert {name.split(".")[1] for name in committee.state_dict()} == {"0", "1"}
    committee(x).sum().backward()
    assert all(p.grad is None for p in two.parameters())


def test_committees_nest_and_copy():
    pairs = [Committee([network(seed), convolutions()]) for seed in range(2)]
    committee, x = Committee(pairs, combine="probabilities"), torch.randn(4, 2, 8)
    assert transformers(committee) == [pair.members[0] for pair in pairs]
    assert first_transformer(committee) is pairs[0].members[0]
    assert first_transformer(pairs[1].members[0]) is pairs[1].members[0]
    with pytest.raises(ValueError, match="there is no VisionTransformer in this RandomConvolutions"):
        first_transformer(convolutions())
    assert "members.1.members.1.head.weight" in committee.state_dict()
    assert torch.equal(copy.deepcopy(committee)(x), committee(x))
    each = torch.stack([pair(x).softmax(1) for pair in pairs]).mean(0)
    torch.testing.assert_close(committee(x).softmax(1), each, atol=1e-6, rtol=1e-5)


def test_it_evaluates_only():
    committee = trio(distilled=True)
    assert not committee.training
    assert committee(torch.randn(2, 2, 8)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"trained one by one: call eval\(\)"):
        committee.train()(torch.randn(2, 2, 8))


@pytest.mark.parametrize("combine", ["outputs", "probabilities"])
def test_exports(combine):
    pair = Committee([network(0), network(1)], [0.25, 0.75], combine)
    x = torch.randn(4, 2, 8)
    exported = torch.export.export(pair, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    torch.testing.assert_close(exported.module()(x[:3]), pair(x[:3]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        (lambda: [], {}, "a committee needs at least one member"),
        (
            lambda: [network(), network(size=(12,))],
            {},
            r"same input .* got .*size\) \(2, 8\) .* and .* \(2, 12\) with 3",
        ),
        (
            lambda: [network(), network(num_classes=2)],
            {},
            "same input and number of outputs, got .* with 2 outputs and",
        ),
        (lambda: [network(num_classes=2), convolutions()], {}, "same input and number of outputs"),
        (lambda: [network(num_classes=0)], {"combine": "probabilities"}, "networks with num_classes=0 have none"),
        (lambda: [network()], {"combine": "median"}, "combine must be outputs or probabilities, got 'median'"),
        (lambda: [network()] * 2, {"weights": [1.0]}, "2 members needs as many weights, at least 0, that sum to 1"),
        (lambda: [network()] * 2, {"weights": [0.5, 0.6]}, r"that sum to 1; got \[0.5, 0.6\]"),
        (lambda: [network()] * 2, {"weights": [-0.5, 1.5]}, "at least 0"),
    ],
)
def test_members_and_weights_that_do_not_fit(members, options, message):
    with pytest.raises(ValueError, match=message):
        Committee(members(), **options)
