"""What describes a network: one frozen config, the tables of sizes, and the names built from them.

Nothing here imports torch, so the command line can list, check and explain models at once.
"""

from ndvit.config.bounds import check_field_names, unwrap_numbers
from ndvit.config.names import (
    COMPACT_SIZES,
    SIGNAL_SIZES,
    SIZES,
    list_models,
    named_config,
    plan_grid,
    plan_strides,
    rocket_reads,
)
from ndvit.config.network import StemNumerics, ViTConfig, stem_stride

__all__ = [
    "COMPACT_SIZES",
    "SIGNAL_SIZES",
    "SIZES",
    "StemNumerics",
    "ViTConfig",
    "check_field_names",
    "list_models",
    "named_config",
    "plan_grid",
    "plan_strides",
    "rocket_reads",
    "stem_stride",
    "unwrap_numbers",
]
