"""`Model`, the one object that users and all doors hold; how it is loaded and saved; and its methods as functions."""

from ndvit.model.loading import as_model, load_exported, load_features, load_model, save_model
from ndvit.model.model import Model
from ndvit.model.shorthands import compile, embed, evaluate, export, export_bundle, predict, predict_to

__all__ = [
    "Model",
    "as_model",
    "compile",
    "embed",
    "evaluate",
    "export",
    "export_bundle",
    "load_exported",
    "load_features",
    "load_model",
    "predict",
    "predict_to",
    "save_model",
]
