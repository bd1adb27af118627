"""ndvit: Vision Transformers for signals and images, in any number of dimensions.

The public names are imported only when they are asked for, so that `import ndvit` and `ndvit --help` stay light.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ndvit.config import ViTConfig, list_models
    from ndvit.config.recipe import Recipe
    from ndvit.data.sources.load import load_source
    from ndvit.estimator import ViTClassifier
    from ndvit.exporting.compiling import compile
    from ndvit.exporting.export import export
    from ndvit.inference.answers import evaluate, predict
    from ndvit.inference.embed import embed
    from ndvit.network import VisionTransformer, create_model
    from ndvit.training.run import resume, train
    from ndvit.weights.convert import export_state_dict
    from ndvit.weights.file import save_model
    from ndvit.weights.loading import load_model
    from ndvit.weights.publish import push_to_hub
    from ndvit.weights.reading.zoo import find_weights, list_weights

_HOMES = {
    "ViTConfig": "ndvit.config",
    "list_models": "ndvit.config",
    "VisionTransformer": "ndvit.network",
    "create_model": "ndvit.network",
    "load_source": "ndvit.data.sources.load",
    "Recipe": "ndvit.config.recipe",
    "load_model": "ndvit.weights.loading",
    "save_model": "ndvit.weights.file",
    "export_state_dict": "ndvit.weights.convert",
    "push_to_hub": "ndvit.weights.publish",
    "list_weights": "ndvit.weights.reading.zoo",
    "find_weights": "ndvit.weights.reading.zoo",
    "train": "ndvit.training.run",
    "resume": "ndvit.training.run",
    "evaluate": "ndvit.inference.answers",
    "predict": "ndvit.inference.answers",
    "embed": "ndvit.inference.embed",
    "compile": "ndvit.exporting.compiling",
    "export": "ndvit.exporting.export",
    "ViTClassifier": "ndvit.estimator",
}

__all__ = [
    "Recipe",
    "ViTClassifier",
    "ViTConfig",
    "VisionTransformer",
    "compile",
    "create_model",
    "embed",
    "evaluate",
    "export",
    "export_state_dict",
    "find_weights",
    "list_models",
    "list_weights",
    "load_model",
    "load_source",
    "predict",
    "push_to_hub",
    "resume",
    "save_model",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ndvit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
