"""Small models to export, and exported files that the tests of a module share."""

from typing import NamedTuple

import torch

from ndvit.config import ViTConfig
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.exporting.export import export
from ndvit.exporting.formats import ENDINGS
from ndvit.model import Model
from ndvit.network import VisionTransformer
from ndvit.network.committee import Committee
from ndvit.network.encoder_features import EncoderFeatures
from ndvit.network.level_features import LevelFeatures
from ndvit.network.random_convolutions import RandomConvolutions
from ndvit.tasks import Classification
from smallnetworks import spread

TINY = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
SIGNAL = {**TINY, "input_size": (24,), "patch_size": 6, "in_channels": 2}
IMAGE = {**TINY, "input_size": (16, 16), "patch_size": 8, "in_channels": 3}
LARGE = {**IMAGE, "input_size": (32, 32)}
NETWORKS = {
    "signal": SIGNAL,
    "image": IMAGE,
    "wide": {**SIGNAL, "embed_dim": 64, "depth": 2},
    "volume": {
        **TINY,
        "embed_dim": 12,
        "input_size": (4, 8, 8),
        "patch_size": (2, 4, 4),
        "in_channels": 1,
        "pos_embed": "sincos",
        "pooling": "avg",
        "class_token": False,
    },
    "distilled": {**IMAGE, "distilled": True, "num_registers": 2, "pos_embed": "rope"},
    "merged": {
        **LARGE,
        "merge_tokens": 3,
        "num_registers": 2,
        "pooling": "token_avg",
        "qk_norm": True,
        "layer_scale": 0.1,
    },
    "map": {**IMAGE, "pooling": "map", "class_token": False},
    "resnet": {**LARGE, "patch_size": 2, "stem": "resnet", "stem_depths": (1,), "stem_width": 32},
    "inception": {
        **SIGNAL,
        "patch_size": 3,
        "stem": "inception",
        "stem_depths": (1, 1),
        "stem_width": 8,
        "pooling": "stem_tokens",
        "stem_head": True,
        "relative_bias": True,
    },
}


def vit(name):
    return spread(VisionTransformer(ViTConfig(**NETWORKS[name]))).eval()


def random_convolutions():
    """Random convolutions for the small signals, fitted to noise."""
    made = RandomConvolutions(2, 24, 2 * 168, 3)
    x = torch.randn(40, 2, 24)
    made.draw(x, None, torch.Generator().manual_seed(0))
    features = made.features(x)
    made.mean.copy_(features.mean(0))
    made.scale.copy_(1 / features.std(0).clamp(min=0.1))
    torch.nn.init.normal_(made.head.weight, std=0.02)
    return made.eval()


def committee():
    return Committee([vit("signal"), random_convolutions()], weights=[0.25, 0.75], combine="outputs")


def encoder_features():
    """Features of an untrained encoder for the small signals, which it also reads in local windows; a random head."""
    config = ViTConfig(
        input_size=16, in_channels=1, embed_dim=8, depth=2, num_heads=2, stem="difference", stem_strides=(2, 2),
        stem_width=8, patch_size=2, patch_overlap=True, patch_norm=True, weight_init="balanced", num_classes=0,
    )  # fmt: skip
    made = EncoderFeatures(config, 2, 24, 3)
    features = made.features(torch.randn(40, 2, 24))
    made.mean.copy_(features.mean(0))
    made.scale.copy_(1 / features.std(0).clamp(min=0.1))
    torch.nn.init.normal_(made.head.weight, std=0.05)
    return made.eval()


def level_features():
    made = LevelFeatures(2, 24, 3)
    x = torch.randn(40, 2, 24)
    made.draw(x, None, torch.Generator())
    made.mean.copy_(made.features(x).mean(0))
    torch.nn.init.normal_(made.head.weight, std=0.5)
    return made.eval()


def small_network(name):
    """A network of the table; "committee" adds random convolutions, "ensemble" a network beside the "closed_form"."""
    if name == "closed_form":
        members = [random_convolutions(), encoder_features(), level_features()]
        return Committee(members, weights=[0.5, 0.3, 0.2], combine="outputs")
    if name == "ensemble":
        return Committee([small_network("closed_form"), vit("signal")], combine="probabilities")
    return committee() if name == "committee" else vit(name)


def small_model(name, classes=("ash", "beech", "cedar"), **changes):
    network = small_network(name)
    config = NETWORKS.get(name, SIGNAL)
    size, channels = config["input_size"], config["in_channels"]
    if len(size) == 2:
        preprocess = ImagePreprocess(size, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    else:
        preprocess = SignalPreprocess(size, (3.0, -1.0)[:channels], (2.0, 0.5)[:channels])
    options = {"task": Classification(classes), "preprocess": preprocess, "temperature": 1.7} | changes
    return Model(network, provenance={"source": "nothing"}, **options)


class Exported(NamedTuple):
    """A model, its file and the report."""

    model: Model
    path: object
    report: object


def exporter(tmp_path_factory):
    """A function that exports the small model of this name, once for each choice of options."""
    made = {}

    def make(name, format="onnx", **options):
        key = name, format, *sorted(options.items())
        if key not in made:
            torch.manual_seed(0)
            path = tmp_path_factory.mktemp("exported") / f"model{ENDINGS[format]}"
            model = small_model(name)
            made[key] = Exported(model, path, export(model, path, format=format, **options))
        return made[key]

    return make
