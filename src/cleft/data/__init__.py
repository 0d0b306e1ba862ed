"""From files to batches."""

from cleft.data.datasets import (
    DATASETS,
    Dataset,
    data_config,
    finish_reading,
    opening_of,
    read_dataset,
    recipe_of,
    report_not_inherited,
    settings_for,
    terms_of,
)

__all__ = [
    "DATASETS",
    "Dataset",
    "data_config",
    "finish_reading",
    "opening_of",
    "read_dataset",
    "recipe_of",
    "report_not_inherited",
    "settings_for",
    "terms_of",
]
