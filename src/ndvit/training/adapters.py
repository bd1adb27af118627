"""Which part of a network learns: all of it, what comes after frozen blocks, or low-rank adapters of its blocks."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ndvit.network import VisionTransformer
from ndvit.network.vit import HEADS
from ndvit.training.recipe import Recipe


def check_adapters(recipe: Recipe, depth: int, taught: bool = False) -> None:
    """Raise a ValueError where a network of this depth cannot learn as the recipe's `freeze`, `lora` and `head` say.

    `taught` tells whether there is a teacher, whom a head that is solved cannot follow.
    """
    if recipe.freeze is not None and recipe.freeze > depth:
        raise ValueError(f"freeze is {recipe.freeze}, and the network has {depth} blocks: give at most {depth}")
    said = [name for name in ("freeze", "lora") if getattr(recipe, name) is not None]
    said += ["head='solved'"] if recipe.head == "solved" else []
    if len(said) > 1:
        raise ValueError(f"{' and '.join(said)} say different things of what shall learn: give one of them")
    descended = {"a teacher": taught, "early_stop": recipe.early_stop, "ema_decay": recipe.ema_decay}
    if recipe.head == "solved" and any(descended.values()):
        wrong = " and ".join(name for name, given in descended.items() if given)
        raise ValueError(f"{wrong} cannot be had with head='solved' (linear_probe), which takes no steps")
    if recipe.lora is not None and importlib.util.find_spec("peft") is None:
        raise ValueError("lora needs a package that is not installed: pip install 'ndvit[lora]'")


@contextmanager
def learning_part(model: VisionTransformer, recipe: Recipe) -> Iterator[list[nn.Module]]:
    """While this lasts, only that part of a network has gradients which the recipe lets learn.

    At the end everything has gradients again, and adapters are merged: the network is of the same kind as before.

    Yields:
        The modules that stay as they are, and so should be in eval mode: their BatchNorm must not learn either.
    """
    if recipe.lora is not None:
        with _adapters(model, recipe.lora):
            yield []
        return
    if recipe.freeze is None:
        yield []
        return
    blocks = recipe.freeze  # depth 0 is patches, tokens and positions
    frozen = [p for name, p in model.named_parameters() if model.depth_of(name) <= blocks and p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield [model.patch_embed, model.norm_pre, *model.blocks[:blocks]]
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
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith("blocks.")]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear)
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
