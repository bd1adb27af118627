"""ndvit: Vision Transformers for signals and images, in any number of dimensions.

The public names are imported on first use, so that `import ndvit` and `ndvit --help` stay fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ndvit.checking.check import check
    from ndvit.config import ViTConfig, list_models
    from ndvit.config.recipe import Recipe
    from ndvit.data.messages import DataWarning
    from ndvit.data.sharding import shard
    from ndvit.data.sources.load import load_source
    from ndvit.estimator import ViTClassifier, ViTRegressor
    from ndvit.load_report import WeightsWarning
    from ndvit.model import Model, compile, embed, evaluate, export, load_model, predict, save_model
    from ndvit.network import VisionTransformer, create_model
    from ndvit.tasks.base import Task
    from ndvit.tasks.classification import Classification
    from ndvit.tasks.multilabel import Multilabel
    from ndvit.tasks.regression import Regression
    from ndvit.training.crossvalidation import cross_validate, resume_cross_validation
    from ndvit.training.run import pretrain, resume, train
    from ndvit.weights.convert import export_state_dict
    from ndvit.weights.publish import push_to_hub
    from ndvit.weights.reading.zoo import find_weights, list_weights

_HOMES = {
    "Classification": "ndvit.tasks.classification",
    "DataWarning": "ndvit.data.messages",
    "Model": "ndvit.model",
    "Multilabel": "ndvit.tasks.multilabel",
    "Recipe": "ndvit.config.recipe",
    "Regression": "ndvit.tasks.regression",
    "Task": "ndvit.tasks.base",
    "ViTClassifier": "ndvit.estimator",
    "ViTRegressor": "ndvit.estimator",
    "ViTConfig": "ndvit.config",
    "VisionTransformer": "ndvit.network",
    "WeightsWarning": "ndvit.load_report",
    "check": "ndvit.checking.check",
    "compile": "ndvit.model",
    "create_model": "ndvit.network",
    "cross_validate": "ndvit.training.crossvalidation",
    "embed": "ndvit.model",
    "evaluate": "ndvit.model",
    "export": "ndvit.model",
    "export_state_dict": "ndvit.weights.convert",
    "find_weights": "ndvit.weights.reading.zoo",
    "list_models": "ndvit.config",
    "list_weights": "ndvit.weights.reading.zoo",
    "load_model": "ndvit.model",
    "load_source": "ndvit.data.sources.load",
    "predict": "ndvit.model",
    "pretrain": "ndvit.training.run",
    "push_to_hub": "ndvit.weights.publish",
    "resume": "ndvit.training.run",
    "resume_cross_validation": "ndvit.training.crossvalidation",
    "save_model": "ndvit.model",
    "shard": "ndvit.data.sharding",
    "train": "ndvit.training.run",
}

__all__ = [
    "Classification",
    "DataWarning",
    "Model",
    "Multilabel",
    "Recipe",
    "Regression",
    "Task",
    "ViTClassifier",
    "ViTConfig",
    "ViTRegressor",
    "VisionTransformer",
    "WeightsWarning",
    "check",
    "compile",
    "create_model",
    "cross_validate",
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
    "pretrain",
    "push_to_hub",
    "resume",
    "resume_cross_validation",
    "save_model",
    "shard",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ndvit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
