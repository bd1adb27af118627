"""A trained network over many examples."""

import numpy as np
import torch
from torch import Tensor

from ndvit.data.loading import Inputs
from ndvit.network.committee import Ensemble, Model, get_member


def pick_device(device: str) -> str:
    """The device of this name, or for "auto" the best there is.

    Raises:
        ValueError: if there is no such device here.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = [name for name, is_there in there.items() if is_there]
    if device != "auto" and device not in found:
        raise ValueError(f"there is no device {device} here: use auto or {' or '.join(found)}")
    return found[0] if device == "auto" else device


def predict_probabilities(
    model: Model, inputs: Inputs, batch_size: int = 64, device: str = "auto", progress: bool = False
) -> np.ndarray:
    """Class probabilities (n, classes), float32, of every example in order. The model is put into eval mode.

    They are the softmax of the logits divided by the model's temperature.
    """
    logits = predict_logits(model, inputs, batch_size, device, progress)
    return (logits / model.temperature).softmax(1).numpy()


def predict_logits(
    model: Model, inputs: Inputs, batch_size: int = 64, device: str = "auto", progress: bool = False
) -> Tensor:
    """Raw logits (n, classes), float32 on the CPU, of every example in order. The model is put into eval mode."""
    from tqdm import tqdm

    device = pick_device(device)
    model = model.to(device).eval()
    rows = []
    with torch.inference_mode():
        loader = inputs.loader(batch_size)
        for batch in tqdm(loader, desc="predicting", leave=False, disable=not progress or len(loader) < 10):
            mask = None if batch.mask is None else batch.mask.to(device)
            rows.append(model(batch.x.to(device), mask).float().cpu())
    return torch.cat(rows) if rows else torch.empty(0, model.config.num_classes)


def predict_features(
    model: Model, inputs: Inputs, batch_size: int = 64, device: str = "auto", progress: bool = False
) -> np.ndarray:
    """What the head reads of every example in order, (n, width) float32. The model is put into eval mode.

    Of a distilled network, what its two heads read stands side by side, and of an ensemble, what its members' heads
    read. Random convolution features are no part of it.
    """
    from tqdm import tqdm

    if isinstance(model, Ensemble):
        members = [get_member(model, i) for i in range(len(model.members))]
        return np.concatenate([predict_features(m, inputs, batch_size, device, progress) for m in members], axis=1)
    device = pick_device(device)
    model = model.to(device).eval()
    read: list[Tensor] = []
    heads = [model.head, *([model.head_dist] if model.config.distilled else [])]
    hooks = [head.register_forward_pre_hook(lambda _, args: read.append(args[0].float().cpu())) for head in heads]
    rows = []
    try:
        with torch.inference_mode():
            loader = inputs.loader(batch_size)
            for batch in tqdm(loader, desc="features", leave=False, disable=not progress or len(loader) < 10):
                mask = None if batch.mask is None else batch.mask.to(device)
                model(batch.x.to(device), mask)
                rows.append(torch.cat(read, dim=1))
                read.clear()
    finally:
        for hook in hooks:
            hook.remove()
    if not rows:
        width = model.config.representation_size or model.config.pooled_dim
        return np.empty((0, width * len(heads)), dtype=np.float32)
    return torch.cat(rows).numpy()
