"""The networks, in pure PyTorch: nothing here knows of files, data or training."""

from ndvit.network.cost import count_cost
from ndvit.network.vit import VisionTransformer, create_model

__all__ = ["VisionTransformer", "count_cost", "create_model"]
