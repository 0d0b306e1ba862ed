"""Settings: one tree of frozen dataclasses, presets that fill it, overrides that have the last word."""

from cleft.config.loading import (
    build_settings,
    dump_settings,
    load_settings,
    merge_overrides,
    plain_settings,
    preset_names,
    preset_summaries,
    settings_help,
)
from cleft.config.tree import (
    AugmentConfig,
    ClassifyConfig,
    ContextConfig,
    DataConfig,
    ImagesConfig,
    ImageTowerConfig,
    LossConfig,
    OptimConfig,
    Settings,
    TextTowerConfig,
    TrainConfig,
)

__all__ = [
    "AugmentConfig",
    "ClassifyConfig",
    "ContextConfig",
    "DataConfig",
    "ImageTowerConfig",
    "ImagesConfig",
    "LossConfig",
    "OptimConfig",
    "Settings",
    "TextTowerConfig",
    "TrainConfig",
    "build_settings",
    "dump_settings",
    "load_settings",
    "merge_overrides",
    "plain_settings",
    "preset_names",
    "preset_summaries",
    "settings_help",
]
