"""Optimisers and schedules: parameter groups by depth, layer-wise decay, warm-up and cosine."""

import math

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ndvit.network import VisionTransformer
from ndvit.training.recipe import Recipe


def build_optimizer(model: VisionTransformer, recipe: Recipe) -> Optimizer:
    """The recipe's optimiser over the model's groups.

    Weight decay is left off where `VisionTransformer.parameter_groups` says so. With layer decay d, the learning rate
    of a group at depth i is multiplied by d ** (depth + 1 - i) (BEiT; MAE's fine-tuning).
    """
    peak = recipe.peak_learning_rate(model.config.embed_dim, pretrained=model.load_report is not None)
    groups: dict[tuple[float, float], list[Tensor]] = {}  # few large groups: a fused optimiser is called once for each
    for group in model.parameter_groups():
        distance = model.config.depth + 1 - group["depth"]
        rate = peak * (recipe.layer_decay or 1.0) ** distance
        decay = recipe.weight_decay if group["decay"] else 0.0
        groups.setdefault((rate, decay), []).extend(group["params"])
    parts = [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
    if recipe.optimizer == "sgd":
        return SGD(parts, momentum=0.9, nesterov=True)
    # in fp16 the fused kernel would unscale gradients itself, after they were clipped
    fused = recipe.precision != "16-mixed" and _fused(model)
    return AdamW(parts, betas=recipe.betas, fused=fused)


def build_schedule(optimizer: Optimizer, recipe: Recipe, steps: int) -> LambdaLR:
    """Linear warm-up from 0, then a cosine down to `min_learning_rate`, one value for each optimiser step."""
    warmup = round(recipe.warmup * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1, steps - warmup)
        low = recipe.min_learning_rate
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)


def _fused(model: VisionTransformer) -> bool:
    """Whether one kernel can update all parameters: floating point, on a device that has it."""
    devices = {p.device.type for p in model.parameters()}
    return devices <= {"cpu", "cuda", "mps", "xpu"} and all(torch.is_floating_point(p) for p in model.parameters())
