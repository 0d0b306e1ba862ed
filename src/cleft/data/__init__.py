"""From files to batches."""

from cleft.data.datasets import (
    DATASETS,
    Dataset,
    data_config,
    finish_reading,
    opening_of,
    read_dataset,
    recipe_of,
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
    "terms_of",
]
