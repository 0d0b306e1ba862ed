"""Datasets, images and texts: from files to batches."""

from cleft.data.datasets import (
    DATASETS,
    Dataset,
    data_config,
    finish_reading,
    license_terms,
    prompt_prefix,
    read_dataset,
    report_not_inherited,
    settings_for,
    split_recipe,
)

__all__ = [
    "DATASETS",
    "Dataset",
    "data_config",
    "finish_reading",
    "license_terms",
    "prompt_prefix",
    "read_dataset",
    "report_not_inherited",
    "settings_for",
    "split_recipe",
]
