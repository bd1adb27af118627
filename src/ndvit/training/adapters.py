"""Which part of a network is trained: all of it, what follows frozen blocks, or low-rank adapters of its blocks."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ndvit.config.recipe import Recipe
from ndvit.network import VisionTransformer
from ndvit.network.vit import HEADS


def check_adapters(recipe: Recipe, depth: int, taught: bool = False) -> None:
    """Raise a ValueError if the recipe's `freeze`, `lora` or `head` does not fit.

    Args:
        recipe: the recipe.
        depth: number of blocks of the network.
        taught: whether there is a teacher, which a solved head cannot learn from.
    """
    if recipe.freeze is not None and recipe.freeze > depth:
        raise ValueError(f"freeze is {recipe.freeze}, and the network has {depth} blocks: use at most {depth}")
    if recipe.freeze is not None and recipe.lora is not None:
        raise ValueError("freeze and lora both choose what is trained: use one of them")
    if recipe.head == "solved" and taught:
        raise ValueError(
            "a solved head (head='solved', as in preset linear_probe) takes no steps and cannot learn from a teacher: "
            "leave the teacher out, or train by steps with --head trained (head='trained')"
        )
    if recipe.lora is not None and importlib.util.find_spec("peft") is None:
        raise ValueError("lora needs a package that is not installed: pip install 'ndvit[lora]'")


def describe_trainable(network: VisionTransformer, recipe: Recipe) -> str | None:
    """How many parameters are trained under the recipe, and which; None if all are."""
    sizes = {name: p.numel() for name, p in network.named_parameters() if p.requires_grad}
    heads = sum(size for name, size in sizes.items() if name.partition(".")[0] in HEADS)
    if recipe.head == "solved":  # an auxiliary head over the stem is not solved
        trained = sum(size for name, size in sizes.items() if name.partition(".")[0] in ("head", "head_dist"))
        which = "the head"
    elif recipe.lora is not None:
        layers = [layer for _, layer in _linear_layers(network)]
        trained = heads + sum(recipe.lora * (layer.in_features + layer.out_features) for layer in layers)
        which = f"the head, and adapters of rank {recipe.lora} in all {network.config.depth} blocks"
    elif recipe.freeze is not None:
        trained = sum(size for name, size in sizes.items() if network.depth_of(name) > recipe.freeze)
        which = f"all but patches, tokens, positions and the first {recipe.freeze} of {network.config.depth} blocks"
    else:
        return None
    return f"{trained:,} of {sum(sizes.values()):,} parameters ({which})"


@contextmanager
def only_trainable(network: VisionTransformer, recipe: Recipe) -> Iterator[list[nn.Module]]:
    """Inside the context, only the part of a network that the recipe trains has gradients.

    At the end everything has gradients again and adapters are merged, so the network has the same modules as before.

    Yields:
        The frozen modules. They should be in eval mode, so that their BatchNorm does not learn either.
    """
    if recipe.lora is None and recipe.freeze is None:
        yield []
        return
    before_blocks: list[nn.Module] = [network.patch_embed, network.norm_pre]
    if recipe.lora is not None:
        with _adapters(network, recipe.lora):
            yield before_blocks
        return
    blocks = recipe.freeze or 0  # depth 0 is patches, tokens and positions
    frozen = [p for name, p in network.named_parameters() if network.depth_of(name) <= blocks and p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield [*before_blocks, *network.blocks[:blocks]]
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


@contextmanager
def _adapters(network: VisionTransformer, rank: int) -> Iterator[None]:
    """Low-rank adapters in place of the linear layers of the blocks ("LoRA", Hu et al., 2021), beside trained heads."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    trainable = [name for name, p in network.named_parameters() if p.requires_grad]
    # With alpha at twice the rank, one learning rate suits every rank.
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=[name for name, _ in _linear_layers(network)])
    tuner = LoraModel(network, config, "default")  # changes the network in place, and freezes everything else
    for name, parameter in network.named_parameters():
        if name in trainable and name.partition(".")[0] in HEADS:
            parameter.requires_grad_(True)
    try:
        yield
    finally:
        tuner.merge_and_unload()
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in trainable)


def _linear_layers(network: VisionTransformer) -> list[tuple[str, nn.Linear]]:
    """The layers that adapters replace, by name."""
    return [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear) and n.startswith("blocks.")]
