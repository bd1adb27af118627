"""Descriptions of networks and of training runs: options with their bounds, tables of sizes and presets, names.

Nothing here imports torch, so that the command line can list, check and explain models at once.
"""

from ndvit.config.bounds import check_field_names
from ndvit.config.names import COMPACT_SIZES, SIGNAL_SIZES, SIZES, list_models, named_config, plan_grid, plan_strides
from ndvit.config.network import StemNumerics, ViTConfig, stem_stride
from ndvit.config.options import split_options
from ndvit.config.recipe import Recipe
from ndvit.config.solved import SOLVED, SolvedOptions, default_features, reads_signals, split_legacy

__all__ = [
    "COMPACT_SIZES",
    "SIGNAL_SIZES",
    "SIZES",
    "SOLVED",
    "Recipe",
    "SolvedOptions",
    "StemNumerics",
    "ViTConfig",
    "check_field_names",
    "default_features",
    "list_models",
    "named_config",
    "plan_grid",
    "plan_strides",
    "reads_signals",
    "split_legacy",
    "split_options",
    "stem_stride",
]
