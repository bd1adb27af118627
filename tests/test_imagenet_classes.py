"""The classes of ImageNet-1k by id, name and index; toy networks of 1,000 outputs against timm's."""

import ndvit._torchvision  # noqa: F401

# isort: split
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import ViT_B_16_Weights

from ndvit import ViTConfig, create_model, load_model, save_model
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.model import Model
from ndvit.tasks.imagenet import are_imagenet, imagenet_classes, like_imagenet, match_classes
from smallnetworks import spread
from tinyruns import command

NAMES = imagenet_classes()
INFO = Path(timm.__file__).parent / "data/_info"
IDS = tuple((INFO / "imagenet_synsets.txt").read_text().split())
LEMMAS = dict(
    line.split("\t") for line in (INFO / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
)


def outputs(*names):
    return list(match_classes(names, NAMES).outputs.values())


# the table


def test_names_are_torchvisions_and_differ():
    assert tuple(ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"]) == NAMES
    assert len(set(NAMES)) == 1000


def test_every_class_goes_by_its_id_its_name_and_all_its_names():
    assert outputs(*IDS) == list(range(1000))
    assert outputs(*NAMES) == list(range(1000))
    together = [LEMMAS[i] for i in IDS]
    assert together.count("crane") == 2  # a bird and a machine: the only two that WordNet calls the same
    for i, name in enumerate(together):
        if name != "crane":
            assert outputs(name) == [i]


# matching


@pytest.mark.parametrize(
    "name",
    ["tench", "Tench", "TINCA_TINCA", "tench, Tinca tinca", "tench__tinca-tinca", "n01440764", "N01440764"]
    + ["n01440764-tench", "0001_n01440764", "Tinca  tinca"],
)
def test_a_class_by_any_of_its_names(name):
    assert outputs(name, "n03944341") == [0, 723]


def test_jack_o_lantern_and_other_signs():
    assert outputs("jack_o_lantern", "St._Bernard", "St Bernard") == [607, 247, 247]
    assert (NAMES[607], NAMES[247]) == ("jack-o'-lantern", "Saint Bernard")


def test_indices_mean_outputs_whatever_their_order():
    assert outputs("10", "9", "999", "0") == [10, 9, 999, 0]
    assert outputs("0010", "0009", "000") == [10, 9, 0]


@pytest.mark.parametrize("names", [("1000",), ("0", "tench"), ("-1",), ("00010",), ("1.0",)])
def test_other_numbers_are_no_indices(names):
    with pytest.raises(ValueError, match=r"does not know: .*A class of ImageNet goes by a name, a WordNet id such as"):
        match_classes(names, NAMES)


def test_notes_list_what_was_assumed():
    found = match_classes(["n01440764", "goldfish", "Great_white-shark"], NAMES)
    assert found.outputs == {"n01440764": 0, "goldfish": 1, "Great_white-shark": 2}
    assert found.notes == ("2 classes taken as ImageNet's: n01440764 = tench, Great_white-shark = great white shark",)
    many = match_classes(["417", "722", "723", "3"], NAMES).notes
    assert many == ("4 classes taken as ImageNet's by index: 417 = balloon, 722 = ping-pong ball, 723 = pinwheel, ...",)
    assert match_classes(["tench", "goldfish"], NAMES).notes == ()


def test_an_ambiguous_name_is_what_is_called_so_first_with_a_note():
    crane, missile = match_classes(["crane"], NAMES), match_classes(["Missile"], NAMES)
    assert crane.outputs == {"crane": 517}
    assert crane.notes == ("crane is taken as n03126707 (crane), not as n02012849 (crane bird)",)
    assert missile.outputs == {"Missile": 657}
    assert "Missile is taken as n03773504 (missile), not as n04008634 (projectile)" in missile.notes
    assert outputs("Cardigan", "cardigan") == [264, 474]  # a dog and a garment
    assert match_classes(["crane", "crane bird"], NAMES).notes == ()  # the data tells them apart itself


@pytest.mark.parametrize("name", ["panda", "wagon", "CARDIGAN", "n01440764 n01443537"])
def test_an_ambiguous_name_that_none_is_called_first_is_refused(name):
    with pytest.raises(ValueError, match=rf"class '{name}' may be n\d+ \(.*\) or n\d+ .*name its folder by the Word"):
        match_classes([name], NAMES)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"does not know: cat, n00000000\. It knows tench, goldfish, .*, \.\.\."):
        match_classes(["cat", "tench", "n00000000"], NAMES)
    with pytest.raises(ValueError, match="x9 and 2 more"):
        match_classes([f"x{i}" for i in range(12)], NAMES)


def test_other_models_know_their_own_names_only():
    assert match_classes(["b", "a"], ("a", "b")) == ({"b": 1, "a": 0}, ())
    for name in ("n01440764", "0", "A"):
        with pytest.raises(ValueError, match=rf"does not know: {name}\. It knows a, b$"):
            match_classes([name], ("a", "b"))


def test_the_classes_are_recognised_under_all_their_names():
    assert are_imagenet(NAMES)
    assert are_imagenet(IDS)
    assert are_imagenet(tuple(LEMMAS[i] for i in IDS))  # as transformers has them, with two cranes
    assert not are_imagenet(NAMES[1:] + NAMES[:1])
    assert not are_imagenet(NAMES[:999])
    assert match_classes(["tench", "n01443537"], IDS).outputs == {"tench": 0, "n01443537": 1}


# models


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A network of timm's with 1,000 outputs, its file, and the pictures of a folder of WordNet ids as it sees them."""
    root = tmp_path_factory.mktemp("imagenet")
    torch.manual_seed(0)
    network = spread(timm.create_model("deit_tiny_patch16_224", depth=1, img_size=32)).eval()
    save_file(network.state_dict(), root / "toy.safetensors")
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (5, 4, 3), dtype=np.uint8)).resize((50, 40)) for _ in range(6)]
    make = timm.data.create_transform((3, 32, 32), interpolation="bicubic", crop_pct=1.0)
    with torch.inference_mode():
        logits = network(torch.stack([make(picture) for picture in pictures]))
    for i, (picture, label) in enumerate(zip(pictures, logits.argmax(1).tolist())):
        for kind, name in {"ids": IDS[label], "indices": f"{label:04}", "names": LEMMAS[IDS[label]]}.items():
            folder = root / kind / name.replace("/", " ")
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{i}.png")
    return root, logits


def quiet(model, source):
    lines = []
    return model.evaluate(source, progress=False, log=lines.append), lines


@pytest.mark.filterwarnings("ignore::ndvit.WeightsWarning")
@pytest.mark.parametrize("kind", ["ids", "indices", "names"])
def test_a_folder_of_some_classes_is_evaluated_as_timm_answers(toy, kind):
    root, logits = toy
    model = load_model(root / "toy.safetensors", preprocess={"crop_fraction": 1.0})
    result, lines = quiet(model, root / kind)
    assert result.accuracy == 1.0  # labels are timm's answers
    assert len(set(result.labels.tolist())) > 1
    order = [int(Path(name).stem) for name in result.names]
    np.testing.assert_allclose(result.probabilities, logits.softmax(1)[order], atol=1e-4)
    taken = [line for line in lines if "taken as ImageNet's" in line]
    assert kind == "names" or (len(taken) == 1 and taken[0].startswith(f"{kind}: "))


@pytest.mark.filterwarnings("ignore::ndvit.WeightsWarning")
def test_pictures_are_named_by_words(toy):
    root, logits = toy
    model = load_model(root / "toy.safetensors", preprocess={"crop_fraction": 1.0})
    label = int(logits[0].argmax())
    (found,) = model.predict(root / "ids" / IDS[label] / "0.png", progress=False, log=lambda line: None)
    assert found.label == NAMES[label]


def test_the_command_shows_the_classes_that_are_there(toy, capsys):
    root, _ = toy
    assert command("evaluate", root / "toy.safetensors", root / "ids") == 0
    out = capsys.readouterr()
    there = len(list((root / "ids").iterdir()))
    assert f"and {1000 - there} classes without examples here" in out.out
    assert len(out.out.splitlines()) < 20 + there
    assert "taken as ImageNet's" in out.err


def test_names_beside_weights_that_are_imagenets_become_the_tables(tmp_path):
    network = timm.create_model("deit_tiny_patch16_224", depth=1, img_size=32)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    labels = {str(i): LEMMAS[wordnet] for i, wordnet in enumerate(IDS)}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "id2label": labels}))
    assert load_model(tmp_path).classes == NAMES
    labels["0"] = "a fish"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "id2label": labels}))
    assert load_model(tmp_path).classes[:2] == ("a fish", "goldfish, Carassius auratus")


def test_a_network_without_names_is_taken_for_one_of_imagenet(tmp_path, toy):
    root, _ = toy
    network = create_model("vit_pico", input_size=(16, 16), patch_size=8, embed_dim=16, depth=1, num_heads=2)
    model = Model(network, preprocess=ImagePreprocess((16, 16), (0.5,) * 3, (0.2,) * 3))
    result, lines = quiet(model, root / "ids")
    assert result.classes == NAMES
    assert "assumed: the classes are those of ImageNet-1k, as there are 1000 outputs" in lines
    assert model.classes == ()  # the model itself stays without
    save_model(model, tmp_path / "m.safetensors")
    again, _ = quiet(load_model(tmp_path / "m.safetensors"), root / "ids")
    assert np.array_equal(again.labels, result.labels)


@pytest.mark.parametrize("shape", [{"in_channels": 1}, {"num_classes": 999}, {"input_size": (64,)}])
def test_networks_of_another_shape_are_not_of_imagenet(shape):
    assert like_imagenet(ViTConfig(patch_size=8))
    assert not like_imagenet(ViTConfig(patch_size=8, **shape))


def test_other_networks_without_names_are_refused(toy):
    network = create_model("vit_pico", input_size=(16, 16), patch_size=8, embed_dim=16, num_heads=2, num_classes=999)
    with pytest.raises(ValueError, match="the model does not know its classes"):
        quiet(Model(network, preprocess=ImagePreprocess((16, 16), (0.5,) * 3, (0.2,) * 3)), toy[0] / "ids")
