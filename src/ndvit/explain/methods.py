"""Relevance of each sample of the input of a network for one of its outputs, by every method, for every network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ndvit.explain.attention import (
    attention,
    gradient_rollout,
    midpoint_gradient_rollout,
    midpoint_rollout,
    rollout,
)
from ndvit.explain.coordinates import blurred, normalised, tokens_to_samples
from ndvit.network.committee import Committee
from ndvit.network.encoder_features import EncoderFeatures
from ndvit.network.random_convolutions import RandomConvolutions
from ndvit.network.vit import VisionTransformer

Method = Literal[
    "attention",
    "rollout",
    "gradient_rollout",
    "midpoint_rollout",
    "midpoint_gradient_rollout",
    "gradient",
    "gradient_x_input",
    "integrated_gradients",
    "occlusion",
    "contributions",
]
METHODS: tuple[Method, ...] = get_args(Method)
SIGNED = frozenset(
    {
        "midpoint_rollout",
        "midpoint_gradient_rollout",
        "gradient_x_input",
        "integrated_gradients",
        "occlusion",
        "contributions",
    }
)
"""Methods whose relevance is negative where the input speaks against the output."""
_OF_ATTENTION = ("attention", "rollout", "gradient_rollout", "midpoint_rollout", "midpoint_gradient_rollout")
_MIDPOINT = {"midpoint_rollout": midpoint_rollout, "midpoint_gradient_rollout": midpoint_gradient_rollout}
_MOST_BYTES = 2**30  # of the attention weights of one batch; longer sequences are explained by gradients
_DEEP = 8
"""Blocks of networks of pictures from which on gradients at the input may be noise, as in published networks of twelve.

With eight blocks that were trained from scratch, both defaults measure alike; with three, `midpoint_rollout` is better.
"""
_WINDOWS = 32  # that occlusion divides an input into, by default


@dataclass(frozen=True)
class Options:
    """Settings of the methods.

    Attributes:
        layers: blocks whose attention counts, from 0; None is the last one for `attention`, all for the rollouts.
        heads: attention heads that count, from 0; None is all.
        steps: of integrated gradients.
        window: samples along each axis that occlusion replaces at a time; None divides the input into 32 windows.
        batch_size: inputs in one forward pass of integrated gradients and occlusion.
        exclusive: outputs are classes of which one is true, so that the defaults compare one with the others.
    """

    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    steps: int = 50
    window: tuple[int, ...] | None = None
    batch_size: int = 64
    exclusive: bool = True


def relevance(
    network: nn.Module, x: Tensor, mask: Tensor | None, targets: Tensor, method: Method | None, options: Options
) -> Tensor:
    """Relevance of inputs for one output of each: (B, C, *size), or (B, 1, *size) if channels are not distinguished.

    That of a committee is the sum over its members, weighted as they are. With the default method, members may be
    explained in different ways, and each one's relevance is divided by the sum of its absolute values before.

    Args:
        network: in eval mode.
        x: (B, C, *size), inputs of the network.
        mask: (B, *size), True where a value was observed; None if all were.
        targets: (B,) indices of outputs.
        method: None is the default for the network, see `default_method`.
        options: settings of the methods.

    Raises:
        ValueError: if the method does not exist for the network, or needs a package that is not installed.
    """
    if isinstance(network, Committee):
        parts = [
            (weight, relevance(member, x, mask, targets, method, options))
            for member, weight in zip(network.members, network.weights)
            if weight
        ]
        if method is None:
            parts = [(weight, normalised(part.sum(1, keepdim=True))) for weight, part in parts]
        return torch.stack([weight * part for weight, part in parts]).sum(0)
    name = default_method(network) if method is None else method
    if name in _OF_ATTENTION:
        return _of_attention(network, x, mask, targets, name, options)
    if name == "contributions":
        if not isinstance(network, RandomConvolutions):
            raise ValueError(_lacking(name, network, "only random convolutions are sums over places"))
        return network.contributions(x, mask, targets)[:, None]
    if name == "occlusion":
        return _occlusion(network, x, mask, targets, options)
    if isinstance(network, RandomConvolutions) or not any(True for _ in network.parameters()):
        what = "comparisons with biases" if isinstance(network, RandomConvolutions) else "an exported graph"
        raise ValueError(_lacking(name, network, f"{what} have no gradient" if what[0] == "c" else f"{what} has none"))
    if name == "integrated_gradients":
        return _integrated_gradients(network, x, mask, targets, options)
    if method is None and isinstance(network, EncoderFeatures):  # single samples of its gradient are noise
        gradient = _gradient(network, x, mask, (_contrasts if options.exclusive else _scores)(targets))
        return blurred((gradient * x).sum(1, keepdim=True), network.token_length)
    gradient = _gradient(network, x, mask, _scores(targets))
    return gradient.abs() if name == "gradient" else gradient * x


def default_method(network: nn.Module) -> Method:
    """What measures best within the time of four forward passes (`benchmarks/explain.py`).

    That is on planted patterns, and for deep networks of pictures, such as published ones, on photographs as well.
    """
    if isinstance(network, RandomConvolutions):
        return "contributions"
    if isinstance(network, VisionTransformer) and _attention_bytes(network) <= _MOST_BYTES:
        deep = len(network.config.input_size) > 1 and network.config.depth >= _DEEP
        return "midpoint_gradient_rollout" if deep else "midpoint_rollout"
    return "gradient_x_input" if any(True for _ in network.parameters()) else "occlusion"


def _attention_bytes(network: VisionTransformer) -> int:
    """Bytes of the attention weights of all blocks, and their gradients, for one example."""
    config = network.config
    return 8 * config.depth * config.num_heads * (config.num_patches + config.num_prefix_tokens) ** 2


def _lacking(method: str, network: nn.Module, reason: str) -> str:
    return (
        f"{method} does not exist for {type(network).__name__}: {reason}; use occlusion, which every network has, or "
        "leave the method out"
    )


def _of_attention(
    network: nn.Module, x: Tensor, mask: Tensor | None, targets: Tensor, method: str, options: Options
) -> Tensor:
    if not isinstance(network, VisionTransformer):
        raise ValueError(_lacking(method, network, "its outputs are not those of a transformer's head"))
    config = network.config
    depth, layers = config.depth, options.layers
    if layers is not None:
        layers = tuple(i + depth if i < 0 else i for i in layers)
    for what, chosen, most in (("layers", layers, depth), ("heads", options.heads, config.num_heads)):
        if chosen is not None and (not chosen or not set(chosen) <= set(range(most))):
            raise ValueError(f"{what} must be some of 0 to {most - 1}, got {getattr(options, what)}")
    if (needed := _attention_bytes(network)) > _MOST_BYTES:
        raise ValueError(
            f"the attention of all blocks to {config.num_patches:,} patches takes {needed / 2**30:.0f} GiB for each "
            "example: use gradient_x_input or integrated_gradients, which need none"
        )
    rows = _MOST_BYTES // needed
    if len(x) > rows:
        parts = zip(x.split(rows), [None] * len(x) if mask is None else mask.split(rows), targets.split(rows))
        return torch.cat([_of_attention(network, *part, method, options) for part in parts])
    if method == "gradient_rollout":
        values = gradient_rollout(network, x, mask, _scores(targets), layers, options.heads)
    elif method in _MIDPOINT:
        score = (_contrasts if options.exclusive else _scores)(targets)
        values = _MIDPOINT[method](network, x, mask, score, layers, options.heads)
    else:
        values = (attention if method == "attention" else rollout)(network, x, mask, layers, options.heads)
    return tokens_to_samples(values, config)


def _scores(targets: Tensor) -> Callable[[Any], Tensor]:
    """The function from outputs (B, outputs) to those that are explained, (B,)."""
    return lambda outputs: outputs.gather(1, targets[:, None])[:, 0]


def _contrasts(targets: Tensor) -> Callable[[Any], Tensor]:
    """The function from outputs (B, outputs) to the explained ones minus the mean of all others, (B,)."""

    def contrasts(outputs: Tensor) -> Tensor:
        chosen, others = _scores(targets)(outputs), outputs.shape[1] - 1
        return chosen - (outputs.sum(1) - chosen) / others if others else chosen

    return contrasts


def _gradient(network: nn.Module, x: Tensor, mask: Tensor | None, score: Callable[[Any], Tensor]) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(score(network(x, mask)).sum(), x)
    return gradient


def _integrated_gradients(
    network: nn.Module, x: Tensor, mask: Tensor | None, targets: Tensor, options: Options
) -> Tensor:
    """Gradients averaged along the way from 0, which is the training mean, times the input (Sundararajan, 2017)."""
    attribution = _captum("integrated_gradients").IntegratedGradients(network)
    with torch.enable_grad():
        found: Tensor = attribution.attribute(
            x,
            target=targets,
            additional_forward_args=mask,
            n_steps=options.steps,
            internal_batch_size=max(options.batch_size, len(x)),
        )
    return found.detach().to(x.dtype)


def _occlusion(network: nn.Module, x: Tensor, mask: Tensor | None, targets: Tensor, options: Options) -> Tensor:
    """By how much the output falls where a window is replaced by 0, the training mean (Zeiler & Fergus, 2014)."""
    size = tuple(x.shape[2:])
    window = options.window or tuple(max(1, round(n / _WINDOWS ** (1 / len(size)))) for n in size)
    window = window * len(size) if len(window) == 1 else window
    if len(window) != len(size) or any(not 0 < w <= n for w, n in zip(window, size)):
        raise ValueError(f"occlude must be one number for each axis of {size}, from 1 to its length; got {window}")
    attribution = _captum("occlusion").Occlusion(network)
    with torch.no_grad():
        found: Tensor = attribution.attribute(
            x,
            sliding_window_shapes=(x.shape[1], *window),
            strides=(x.shape[1], *(max(1, w // 2) for w in window)),
            target=targets,
            additional_forward_args=mask,
            perturbations_per_eval=max(1, options.batch_size // len(x)),
        )
    return found[:, :1].to(x.dtype)  # a window has all channels, and each gets the same value


def _captum(method: str) -> Any:
    if find_spec("captum") is None:
        raise ValueError(f"{method} needs a package that is not installed: pip install 'ndvit[explain]'")
    import captum.attr

    return captum.attr
