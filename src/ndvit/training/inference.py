"""A trained network over many examples."""

import numpy as np
import torch

from ndvit.data.loading import Inputs
from ndvit.network.ensemble import Model


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
    """Class probabilities (n, classes), float32, of every example in order. The model is put into eval mode."""
    from tqdm import tqdm

    device = pick_device(device)
    model = model.to(device).eval()
    rows = []
    with torch.inference_mode():
        loader = inputs.loader(batch_size)
        for batch in tqdm(loader, desc="predicting", leave=False, disable=not progress or len(loader) < 10):
            mask = None if batch.mask is None else batch.mask.to(device)
            rows.append(model(batch.x.to(device), mask).float().softmax(1).cpu())
    if not rows:
        return np.empty((0, model.config.num_classes), dtype=np.float32)
    return torch.cat(rows).numpy()
