"""Files to networks and back."""

from ndvit.weights.file import load_model, save_model

__all__ = ["load_model", "save_model"]
