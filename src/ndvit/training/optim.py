"""Optimizers and schedules: parameter groups by depth, layer-wise decay, warm-up and cosine."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ndvit.config.recipe import Recipe
from ndvit.network import VisionTransformer


def pick_precision(recipe: Recipe) -> str:
    """The recipe's precision; for "auto", bfloat16 where it makes a GPU faster."""
    if recipe.precision != "auto":
        return recipe.precision
    on_gpu = recipe.device in ("auto", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"


def build_optimizer(
    network: VisionTransformer, recipe: Recipe, pretrained: bool = False, objective: nn.Module | None = None
) -> Optimizer:
    """The recipe's optimizer over the parameter groups of a network.

    Weight decay is left out where `VisionTransformer.parameter_groups` does so. With layer decay d, the learning rate
    of a group at depth i is multiplied by d ** (depth + 1 - i) (BEiT; MAE's fine-tuning).

    Args:
        network: the network.
        recipe: optimizer, learning rate and decay.
        pretrained: whether the network starts with trained weights, for the default learning rate.
        objective: a module that is trained beside the network, at the learning rate of a head.
    """
    peak = recipe.peak_learning_rate(network.config.embed_dim, pretrained=pretrained)
    groups: dict[tuple[float, float], list[Tensor]] = {}  # few large groups: a fused optimizer is called once for each
    for group in network.parameter_groups():
        distance = network.config.depth + 1 - group["depth"]
        rate = peak * (recipe.layer_decay or 1.0) ** distance
        decay = recipe.weight_decay if group["decay"] else 0.0
        groups.setdefault((rate, decay), []).extend(group["params"])
    for parameter in () if objective is None else objective.parameters():
        decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((peak, decay), []).append(parameter)
    parts = [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
    if recipe.optimizer == "sgd":
        return SGD(parts, momentum=0.9, nesterov=True)
    if recipe.optimizer == "lamb":
        return Lamb(parts, betas=recipe.betas)
    # In fp16, a fused kernel would unscale the gradients itself, after they were clipped.
    return AdamW(parts, betas=recipe.betas, fused=recipe.precision != "16-mixed")


class Lamb(Optimizer):
    """Adam whose step length is a share of the norm of the tensor that it changes ("LAMB", You et al., 2020).

    Tensors without weight decay (norms, biases, tokens) take Adam's own step, as in the authors' code.

    Args:
        params: tensors, or groups of them with "lr" and "weight_decay".
        lr: the learning rate, which is that share.
        betas: Adam's two decay rates.
        eps: added to Adam's denominator.
        weight_decay: added to the step in proportion to the weights.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "steps": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step; an optional `closure` computes the gradients first, and its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["steps"] += 1
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    self.state[p] |= {"mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
            if params:
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        (first, second), count = group["betas"], group["steps"]
        grads = [p.grad for p in params if p.grad is not None]
        means = [self.state[p]["mean"] for p in params]
        squares = [self.state[p]["square"] for p in params]
        torch._foreach_lerp_(means, grads, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, grads, grads, 1 - second)
        scale = torch._foreach_sqrt(torch._foreach_div(squares, 1 - second**count))
        torch._foreach_add_(scale, group["eps"])
        updates = torch._foreach_div(torch._foreach_div(means, 1 - first**count), scale)
        if group["weight_decay"]:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
            for update, length, own in zip(updates, torch._foreach_norm(params), torch._foreach_norm(updates)):
                # `where` instead of `if`, which would wait for a GPU.
                update.mul_(torch.where((length > 0) & (own > 0), length / own, 1.0))
        torch._foreach_add_(params, updates, alpha=-group["lr"])


def build_schedule(optimizer: Optimizer, recipe: Recipe, steps: int) -> LambdaLR:
    """Linear warm-up from 0, then a cosine down to `min_learning_rate`, one value for each optimizer step."""
    warmup = round(recipe.warmup * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1, steps - warmup)
        low = recipe.min_learning_rate
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)
