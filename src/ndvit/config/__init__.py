"""Descriptions of networks and of training runs: options with their bounds, tables of sizes and presets, names.

Nothing here imports torch, so that the command line can list, check and explain models at once.
"""

from ndvit.config.bounds import check_field_names
from ndvit.config.names import COMPACT_SIZES, SIGNAL_SIZES, SIZES, list_models, named_config, plan_grid, plan_strides
from ndvit.config.network import StemNumerics, ViTConfig, stem_stride
from ndvit.config.options import split_options
from ndvit.config.random_convolutions import RandomConvolutionOptions, default_features, rocket_reads, split_legacy
from ndvit.config.recipe import Recipe

__all__ = [
    "COMPACT_SIZES",
    "SIGNAL_SIZES",
    "SIZES",
    "RandomConvolutionOptions",
    "Recipe",
    "StemNumerics",
    "ViTConfig",
    "check_field_names",
    "default_features",
    "list_models",
    "named_config",
    "plan_grid",
    "plan_strides",
    "rocket_reads",
    "split_legacy",
    "split_options",
    "stem_stride",
]
