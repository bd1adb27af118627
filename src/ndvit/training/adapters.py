"""Which part of a network learns: all of it, what comes after frozen blocks, or low-rank adapters of its blocks."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ndvit.config.recipe import Recipe
from ndvit.network import VisionTransformer
from ndvit.network.vit import HEADS


def check_adapters(recipe: Recipe, depth: int, taught: bool = False) -> None:
    """Raise a ValueError where a network of this depth cannot learn as the recipe's `freeze` and `lora` say.

    `taught` tells whether there is a teacher, whom a head that is solved cannot follow.
    """
    if recipe.freeze is not None and recipe.freeze > depth:
        raise ValueError(f"freeze is {recipe.freeze}, and the network has {depth} blocks: give at most {depth}")
    if recipe.freeze is not None and recipe.lora is not None:
        raise ValueError("freeze and lora say different things of what shall learn: give one of them")
    if recipe.head == "solved" and taught:
        raise ValueError(
            "a solved head (head='solved', as in preset linear_probe) takes no steps, and cannot follow a teacher: "
            "leave the teacher out, or learn by steps with --head trained (head='trained')"
        )
    if recipe.lora is not None and importlib.util.find_spec("peft") is None:
        raise ValueError("lora needs a package that is not installed: pip install 'ndvit[lora]'")


def learning_in_words(model: VisionTransformer, recipe: Recipe) -> str | None:
    """How many parameters learn under the recipe, and which; None where all of the network does."""
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    heads = sum(size for name, size in sizes.items() if name.partition(".")[0] in HEADS)
    if recipe.head == "solved":  # which an auxiliary head over the stem is not
        learning = sum(size for name, size in sizes.items() if name.partition(".")[0] in ("head", "head_dist"))
        which = "the head"
    elif recipe.lora is not None:
        layers = [layer for _, layer in _linear_layers(model)]
        learning = heads + sum(recipe.lora * (layer.in_features + layer.out_features) for layer in layers)
        which = f"the head, and adapters of rank {recipe.lora} in all {model.config.depth} blocks"
    elif recipe.freeze is not None:
        learning = sum(size for name, size in sizes.items() if model.depth_of(name) > recipe.freeze)
        which = f"all but patches, tokens, positions and the first {recipe.freeze} of {model.config.depth} blocks"
    else:
        return None
    return f"{learning:,} of {sum(sizes.values()):,} parameters ({which})"


@contextmanager
def learning_part(model: VisionTransformer, recipe: Recipe) -> Iterator[list[nn.Module]]:
    """While this lasts, only that part of a network has gradients which the recipe lets learn.

    At the end everything has gradients again, and adapters are merged: the network is of the same kind as before.

    Yields:
        The modules that stay as they are, and so should be in eval mode: their BatchNorm must not learn either.
    """
    if recipe.lora is None and recipe.freeze is None:
        yield []
        return
    before_blocks: list[nn.Module] = [model.patch_embed, model.norm_pre]
    if recipe.lora is not None:
        with _adapters(model, recipe.lora):
            yield before_blocks
        return
    blocks = recipe.freeze or 0  # depth 0 is patches, tokens and positions
    frozen = [p for name, p in model.named_parameters() if model.depth_of(name) <= blocks and p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield [*before_blocks, *model.blocks[:blocks]]
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


@contextmanager
def _adapters(model: VisionTransformer, rank: int) -> Iterator[None]:
    """Low-rank adapters in place of the blocks' linear layers ("LoRA", Hu et al., 2021); heads learn beside them."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    # alpha is twice the rank, so that the learning rate that suits one rank suits the others
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=[name for name, _ in _linear_layers(model)])
    tuner = LoraModel(model, config, "default")  # changes the network in place, and freezes all else
    for name, parameter in model.named_parameters():
        if name in learning and name.partition(".")[0] in HEADS:  # a head that is solved learns in its own way
            parameter.requires_grad_(True)
    try:
        yield
    finally:
        tuner.merge_and_unload()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in learning)


def _linear_layers(model: VisionTransformer) -> list[tuple[str, nn.Linear]]:
    """The layers that adapters stand in for, by name."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith("blocks.")]
