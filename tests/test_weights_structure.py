"""Networks of several members: in files, adapted, in files of earlier formats, and in hostile ones."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ndvit import VisionTransformer, ViTConfig
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.network.committee import Committee
from ndvit.network.random_convolutions import RandomConvolutions
from ndvit.weights.building import build
from ndvit.weights.card import model_card
from ndvit.weights.file import Checkpoint, checkpoint_from_metadata, model_metadata
from ndvit.weights.opening import open_weights
from ndvit.weights.structure import structure_of, summary
from smallnetworks import spread
from weightfiles import as_model, header_of, load_model, rewrite, save_model

DATA = Path(__file__).parent / "data"


def vit(**fields):
    small = dict(input_size=(40,), patch_size=8, in_channels=1, embed_dim=8, depth=1, num_heads=2, num_classes=3)
    return spread(VisionTransformer(ViTConfig(**small | fields))).eval()


def random_convolutions(features=400):
    network = RandomConvolutions(1, 40, features, 3)
    network.draw(torch.randn(9, 1, 40), None, torch.Generator().manual_seed(0))
    torch.nn.init.normal_(network.head.weight)
    return network


def pair(share=0.3):
    return Committee([vit(), random_convolutions()], [1 - share, share], "outputs")


NETWORKS = {
    "random convolutions": random_convolutions,
    "pair": pair,
    "ensemble": lambda: Committee([vit(), vit()], combine="probabilities"),
    "ensemble of pairs": lambda: Committee([pair(), pair(0.5)], combine="probabilities"),
    "members of all kinds": lambda: Committee(
        [vit(depth=2), Committee([vit(), vit()], combine="probabilities"), random_convolutions(168)], [0.5, 0.3, 0.2]
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_gives_back_the_network(tmp_path, name):
    network = NETWORKS[name]()
    model = as_model(network, "abc", provenance={"test_accuracy": 0.5}, temperature=1.5)
    save_model(model, tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    x = torch.randn(4, 1, 40)
    with torch.no_grad():
        assert torch.equal(again(x), network(x))
    assert structure_of(again.network) == structure_of(network)
    assert (again.classes, again.temperature, again.provenance) == (tuple("abc"), 1.5, {"test_accuracy": 0.5})
    assert set(again.load_report.loaded) == set(network.state_dict())
    assert again.load_report.network == summary(structure_of(network))
    assert f"of {sum(p.numel() for p in network.parameters()):,} parameters" in model_card(again, "me/it")
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in network.parameters()]


def test_summaries():
    one = "8 wide, 1 blocks, 2 heads, input 1 x 40, patch 8, 3 outputs"
    expected = {
        "random convolutions": "336 random convolution features",
        "pair": f"{one}, with 336 random convolution features",
        "ensemble": f"2 members, each {one}",
        "ensemble of pairs": f"2 members, each {one}, with 336 random convolution features",
    }
    assert {name: summary(structure_of(NETWORKS[name]())) for name in expected} == expected


def test_metadata_without_tensors_describe_a_model():
    """Exported graphs store them as one JSON."""
    preprocess = SignalPreprocess(size=(40,), mean=(0.5,), std=(2.0,))
    model = as_model(pair(), "abc", preprocess=preprocess, untrained=("members.0.head.bias",), temperature=0.5)
    checkpoint = checkpoint_from_metadata(json.loads(json.dumps(model_metadata(model))), "graph.onnx")
    assert (checkpoint.task, checkpoint.preprocess, checkpoint.temperature) == (model.task, preprocess, 0.5)
    assert (checkpoint.structure, checkpoint.untrained) == (structure_of(model.network), ("members.0.head.bias",))
    assert (checkpoint.config.input_size, checkpoint.tensors) == ((40,), {})


@pytest.mark.parametrize("temperature", [0, -1, 1e-4, 1e4, float("nan"), float("inf"), True, "1", None])
def test_temperatures_that_cannot_divide(tmp_path, temperature):
    with pytest.raises(ValueError, match=r"temperature must be a finite number above 0, from 0\.001 to 1000, got"):
        save_model(as_model(vit(), temperature=temperature), tmp_path / "m.safetensors")
    save_model(vit(), tmp_path / "m.safetensors")
    rewrite(tmp_path / "m.safetensors", temperature=json.dumps(temperature))
    with pytest.raises(ValueError, match="the header does not describe a model: temperature must be"):
        load_model(tmp_path / "m.safetensors")


# adapted


@pytest.fixture
def adapted(tmp_path):
    """Save a network and load it adapted."""

    def of(network, **options):
        save_model(as_model(network, "abc", temperature=1.5), tmp_path / "m.safetensors")
        return load_model(tmp_path / "m.safetensors", **options)

    return of


def test_every_member_is_adapted(adapted):
    ensemble = Committee([vit(), vit()], combine="probabilities")
    loaded = adapted(ensemble, input_size=80, classes=("x", "y"))
    for i, member in enumerate(ensemble.members):
        alone = adapted(member, input_size=80, classes=("x", "y"))
        assert torch.equal(loaded.members[i].pos_embed, alone.pos_embed)
        assert loaded.members[i].config == alone.config
    heads = tuple(f"members.{i}.head.{leaf}" for i in range(2) for leaf in ("weight", "bias"))
    assert loaded.untrained == loaded.load_report.new == heads
    assert set(loaded.load_report.ignored) == set(heads)
    assert [c.name for c in loaded.load_report.adapted] == [f"members.{i}.pos_embed" for i in range(2)]
    assert loaded.temperature == 1.0
    with pytest.raises(ValueError, match=r"networks with num_classes=0 have none"):
        adapted(ensemble, num_classes=0)


@pytest.mark.parametrize("options", [{"input_size": 80}, {"in_channels": 2}, {"classes": "xy"}, {"classes": "xyz"}])
def test_random_convolutions_of_another_input_or_other_outputs_are_new(adapted, options):
    options = {name: list(v) if name == "classes" else v for name, v in options.items()}
    network = pair()
    loaded = adapted(network, **options)
    convolutions = loaded.members[1]
    assert {"members.1.head.weight", "members.1.head.bias"} <= set(loaded.untrained)
    assert {name for name in network.state_dict() if name.startswith("members.1.")} <= set(loaded.load_report.ignored)
    assert convolutions.head.weight.eq(0).all()
    assert convolutions.biases.eq(0).all()
    assert convolutions.kernels.eq(network.members[1].kernels).all()
    assert not convolutions.head.weight.requires_grad
    assert loaded.network.weights == (0.7, 0.3)
    config = loaded.members[0].config
    assert loaded(torch.randn(2, config.in_channels, *config.input_size)).isfinite().all()


def test_random_convolutions_are_left_out_where_they_cannot_read(adapted):
    for options in ({"input_size": (16, 16)}, {"num_classes": 0}):
        loaded = adapted(pair(), **options)
        assert isinstance(loaded.network, VisionTransformer)
        assert not any(name.startswith("members.") for name in loaded.load_report.loaded)
        assert {n for n in loaded.load_report.ignored if n.startswith("members.1.")}
        assert loaded.temperature == 1.0
    mixed = adapted(NETWORKS["members of all kinds"](), input_size=(16, 16))
    assert len(mixed.members) == 2
    assert mixed.network.weights == pytest.approx((0.625, 0.375))
    with pytest.raises(ValueError, match="random convolutions read signals of at least 3 samples"):
        adapted(random_convolutions(), num_classes=0)


def test_no_options_change_nothing(adapted):
    network, x = pair(), torch.randn(3, 1, 40)
    loaded = adapted(network, input_size=(40,), classes=["a", "b", "c"])
    assert torch.equal(loaded(x), network(x))
    assert (loaded.untrained, loaded.load_report.adapted, loaded.load_report.ignored) == ((), (), {})
    assert loaded.temperature == 1.5


def test_fine_tuning_takes_a_transformer_without_its_random_convolutions(adapted):
    model = as_model(pair(), "abc", untrained=("members.0.head.bias", "members.1.head.bias"))
    (checkpoint,) = Checkpoint.from_model(model).transformers()
    assert (checkpoint.random_features, checkpoint.untrained, checkpoint.temperature) == (336, ("head.bias",), 1.0)
    built = build(checkpoint, task=["a", "b", "c"], new_head=True)
    assert isinstance(built.network, VisionTransformer)
    assert torch.equal(built.network.head.weight, model.members[0].head.weight)
    other = build(checkpoint, task=["x", "y", "z"], new_head=True)
    assert {"head.weight", "head.bias"} == set(other.untrained)
    unnamed = Checkpoint.from_model(as_model(vit()))
    assert build(unnamed, task=["x", "y", "z"]).untrained == ()  # they are the names of its outputs
    assert build(unnamed, task=["x", "y", "z"], new_head=True).untrained == ("head.weight", "head.bias")
    ensemble = Checkpoint.from_model(as_model(NETWORKS["ensemble of pairs"]()))
    assert [one.random_features for one in ensemble.transformers()] == [336, 336]


# files of earlier formats


OLD = {
    "network.safetensors": ("vit", ("calm", "storm"), 1.7, (8, 8)),
    "ensemble.safetensors": ({"probabilities": ["vit", "vit"]}, ("0", "1"), 0.8, (16,)),
    "signal.safetensors": ({"outputs": ["vit", 336]}, ("0", "1", "2"), 1.0, (24,)),
    "signal_ensemble.safetensors": (
        {"probabilities": [{"outputs": ["vit", 168]}, {"outputs": ["vit", 168]}]},
        ("0", "1", "2"),
        1.0,
        (24,),
    ),
    "estimator.safetensors": ("vit", ("3", "7"), 1.0, (16,)),
    "run": ({"outputs": ["vit", 336]}, ("0", "1", "2"), 1.0, (24,)),
    "unfinished-signal-whole.safetensors": ({"outputs": ["vit", 168]}, ("0", "1", "2"), 1.0, (24,)),
}


def outline(structure):
    if structure["kind"] == "committee":
        return {structure["combine"]: [outline(member) for member in structure["members"]]}
    return structure.get("features", structure["kind"])


@pytest.mark.parametrize("name", OLD)
def test_files_of_earlier_formats(name):
    path = DATA / name / "model.safetensors" if name == "run" else DATA / name
    expected, classes, temperature, size = OLD[name]
    checkpoint, header = open_weights(DATA / name), header_of(path)
    assert header["ndvit"] == ("2" if "ensemble" in name else "1")
    assert outline(checkpoint.structure) == expected
    assert (checkpoint.task.classes, checkpoint.temperature, checkpoint.untrained) == (classes, temperature, ())
    assert checkpoint.provenance == json.loads(header["provenance"])
    assert checkpoint.preprocess.to_dict() == json.loads(header["preprocess"])
    assert checkpoint.preprocess.size == checkpoint.config.input_size == size
    stored = load_file(path)
    pairs = "signal" in name or name == "run"
    renamed = {}
    for key, tensor in stored.items():
        head, rest = key.split(".", 2)[1:] if key.startswith("members.") else ("", key)
        inner = f"members.{int(rest.startswith('rocket.'))}.{rest.removeprefix('rocket.')}" if pairs else rest
        renamed[f"members.{head}.{inner}" if head else inner] = tensor
    assert checkpoint.tensors.keys() == renamed.keys()
    assert all(torch.equal(checkpoint.tensors[key], tensor) for key, tensor in renamed.items())
    if pairs:
        weight = json.loads(header["config"])["rocket_weight"]
        structure = checkpoint.structure
        structure = structure["members"][0] if name == "signal_ensemble.safetensors" else structure
        assert structure["weights"] == [1 - weight, weight]


# hostile files


@pytest.fixture
def file(tmp_path):
    """A file of format 2 with two members."""
    path = tmp_path / "e.safetensors"
    path.write_bytes((DATA / "ensemble.safetensors").read_bytes())
    return path


def rename(old, new):
    def change(parts):
        for name in [n for n in parts if n.startswith(old)]:
            parts[new + name.removeprefix(old)] = parts.pop(name)

    return change


HOSTILE = {
    "too few": (lambda p: None, {"members": "4"}, r"members\.2 claims 2 blocks and has 0 tensors"),
    "a billion": (lambda p: None, {"members": "1" + "0" * 30}, "it has 10000000000000000000 members and 64 tensors"),
    "no number": (lambda p: None, {"members": "three"}, "the header does not describe a model"),
    "no members": (lambda p: None, {"members": "0"}, "it has 0 members and 64 tensors"),
    "a gap": (rename("members.1.", "members.7."), {}, r"members\.1 claims 2 blocks and has 0 tensors"),
    "a stranger": (lambda p: p.update(x=torch.zeros(1)), {}, r"1 tensors belong to no member of the committee \(x\)"),
    "a huge number": (
        lambda p: p.update({"members.99999999999999999.x": torch.zeros(1)}),
        {},
        "1 tensors belong to no member",
    ),
    "two numbers": (lambda p: p.update({"members.01.x": torch.zeros(1)}), {}, r"to no member .*\(members\.01\.x\)"),
    "something missing": (
        lambda p: p.pop("members.1.head.bias"),
        {},
        r"e\.safetensors/members\.1: tensors do not fit the config: 1 missing \(head\.bias\)",
    ),
    "another shape": (
        lambda p: p.update({"members.1.head.bias": torch.zeros(4)}),
        {},
        r"members\.1: tensors do not fit the config: head\.bias is \(4,\), the config needs \(2,\)",
    ),
    "one in another": (
        lambda p: p.update({"members.1.members.0.head.bias": torch.zeros(3)}),
        {},
        "do not fit the config",
    ),
    "as a network alone": (lambda p: None, {"ndvit": "1"}, "claims 2 blocks|tensors do not fit the config"),
    "random convolutions of pictures": (
        lambda p: None,
        {"config": {"rocket_features": 400, "input_size": [4, 4]}},
        "tensors|does not describe a model",
    ),
    "no random convolutions": (lambda p: None, {"config": {"rocket_features": 400}}, "tensors do not fit the config"),
    "a billion random convolutions": (
        lambda p: None,
        {"config": {"rocket_features": 10**12}},
        "whole number from 1 to",
    ),
    "an odd weight": (
        lambda p: None,
        {"config": {"rocket_features": 400, "rocket_weight": "half"}},
        "does not describe",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(file, name):
    change, header, message = HOSTILE[name]
    if "config" in header:
        header = {"config": json.dumps(json.loads(header_of(file)["config"]) | header["config"])}
    parts = load_file(file)
    change(parts)
    rewrite(file, parts, **header)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": [0.9, 0.9]}, r"m\.safetensors"),
        ({"weights": [0.5]}, r"m\.safetensors"),
        ({"weights": ["a", "b"]}, r"m\.safetensors"),
        ({"combine": "votes"}, r"m\.safetensors"),
        ({"members": []}, "a committee needs at least one member"),
    ],
)
def test_committees_that_cannot_be_built(tmp_path, changes, message):
    save_model(pair(), tmp_path / "m.safetensors")
    structure = json.loads(header_of(tmp_path / "m.safetensors")["network"]) | changes
    rewrite(tmp_path / "m.safetensors", network=json.dumps(structure))
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "m.safetensors")
