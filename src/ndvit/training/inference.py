"""A trained network over many examples."""

import numpy as np
import torch

from ndvit.data.loading import Inputs
from ndvit.network import VisionTransformer


def predict_probabilities(
    model: VisionTransformer, inputs: Inputs, batch_size: int = 64, device: str = "auto", progress: bool = False
) -> np.ndarray:
    """Class probabilities (n, classes), float32, of every example in order. The model is put into eval mode."""
    from tqdm import tqdm

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
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
