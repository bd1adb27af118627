"""The parties of the speed benchmark: the same network in each library, and ways to run it."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ndvit._torchvision  # noqa: F401

# isort: split
import torch
from torch import Tensor, nn

from ndvit.config import ViTConfig
from ndvit.exporting.formats import ENDINGS, WRITERS, Format, Precision, open_graph
from ndvit.network import VisionTransformer
from ndvit.network.cost import count_cost
from ndvit.network.fast import Linear
from ndvit.weights.convert import export_state_dict
from ndvit.weights.layouts.libraries import library_arguments

Call = Callable[[Tensor], Tensor]
OTHER_WEIGHTS = ("vit-pytorch",)
"""Libraries whose network differs slightly and has its own random weights."""


FLOAT32 = "float32"
"""The way of a party that stays in float32 in a case in bfloat16."""


def timm_network(model: VisionTransformer) -> nn.Module:
    """Make timm's network with the same weights and drop rates."""
    import timm

    rates = {name: getattr(model.config, name) for name in ("drop_path_rate", "patch_drop_rate")}
    network: nn.Module = timm.create_model(**library_arguments(model, "timm"), **rates)
    network.load_state_dict(export_state_dict(model, "timm"))
    return network


def transformers_network(model: VisionTransformer) -> nn.Module:
    """Make transformers' network with the same weights; its attention is torch's (sdpa)."""
    import transformers

    arguments = library_arguments(model, "transformers")
    (name,) = arguments.pop("architectures")
    kind = arguments.pop("model_type")
    config = transformers.AutoConfig.for_model(kind, **arguments, num_labels=model.config.num_classes)
    network: nn.Module = getattr(transformers, name)(config)
    network.load_state_dict(export_state_dict(model, "transformers"))
    return network


def torchvision_network(model: VisionTransformer) -> nn.Module:
    """Make torchvision's network with the same weights."""
    from torchvision.models.vision_transformer import VisionTransformer as Theirs

    arguments = library_arguments(model, "torchvision")
    norm = partial(nn.LayerNorm, eps=arguments.pop("norm_eps"))
    network: nn.Module = Theirs(**arguments, dropout=0.0, attention_dropout=0.0, norm_layer=norm)
    network.load_state_dict(export_state_dict(model, "torchvision"))
    return network


def vit_pytorch_network(model: VisionTransformer) -> nn.Module:
    """Make vit-pytorch's network of the same size, with its own weights.

    Its queries, keys and values have no bias, and its patches are normalised.
    """
    from vit_pytorch.vit import ViT
    from vit_pytorch.vit_1d import ViT as ViT1D

    config = model.config
    shared = {
        "patch_size": config.patch_size[0],
        "num_classes": config.num_classes,
        "dim": config.embed_dim,
        "depth": config.depth,
        "heads": config.num_heads,
        "dim_head": config.embed_dim // config.num_heads,
        "mlp_dim": int(config.embed_dim * config.mlp_ratio),
        "channels": config.in_channels,
    }
    if len(config.input_size) == 1:
        one: nn.Module = ViT1D(seq_len=config.input_size[0], **shared)
        return one
    two: nn.Module = ViT(image_size=config.input_size[0], **shared)
    return two


NETWORKS: dict[str, Callable[[VisionTransformer], nn.Module]] = {
    "ours": lambda model: model,
    "timm": timm_network,
    "transformers": transformers_network,
    "torchvision": torchvision_network,
    "vit-pytorch": vit_pytorch_network,
}


def logits_of(network: nn.Module, x: Tensor) -> Tensor:
    """The logits of a network as a tensor; transformers returns an object."""
    answer: Any = network(x)
    logits: Tensor = getattr(answer, "logits", answer)
    return logits


class Graph(nn.Module):
    """Wraps a network of any library for ndvit's graph writers: logits, no preprocessing."""

    softmax = False

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return logits_of(self.network, x)


def in_eager(network: nn.Module, x: Tensor, precision: Precision) -> Call:
    """Run in eager mode."""
    return partial(logits_of, network)


def in_mkl(network: nn.Module, x: Tensor, precision: Precision) -> Call:
    """Run in eager mode with MKL, as on CPUs where `fast` does not choose oneDNN."""
    layers = [module for module in network.modules() if type(module) is Linear]

    def call(x: Tensor) -> Tensor:
        for layer in layers:
            layer.__class__ = nn.Linear
        try:
            return logits_of(network, x)
        finally:
            for layer in layers:
                layer.__class__ = Linear

    return call


def in_compile(network: nn.Module, x: Tensor, precision: Precision) -> Call:
    """Run with torch.compile; on a CPU with frozen weights, so that matrices are packed."""
    import torch._inductor.config as inductor

    if x.device.type == "cpu":
        inductor.freezing = True
    compiled: Any = torch.compile(network)
    return partial(logits_of, compiled)


def in_graph(format: Format, network: nn.Module, x: Tensor, precision: Precision) -> Call:
    """Run in a graph runtime, after export with ndvit's exporter for any batch size."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{ENDINGS[format]}"
        WRITERS[format](Graph(network), (x[:1].repeat(2, *[1] * (x.ndim - 1)),), True, path, "{}")  # type: ignore[arg-type]
        run = open_graph(format, path, precision)
    return lambda x: run(x, None)


WAYS: dict[str, Callable[[nn.Module, Tensor, Precision], Call]] = {
    "": in_eager,
    FLOAT32: in_eager,
    "by MKL": in_mkl,
    "torch.compile": in_compile,
    "ONNX Runtime": partial(in_graph, "onnx"),
    "OpenVINO": partial(in_graph, "openvino"),
}


def named(party: str) -> tuple[str, str]:
    """Library and way of a party."""
    library, _, way = party.partition(", ")
    return library, way


def whole_cost(config: ViTConfig) -> int:
    """Multiply-adds per example if the last block computes all tokens, as in the other libraries."""
    return count_cost(replace(config, pooling="avg", merge_tokens=0))[1]
