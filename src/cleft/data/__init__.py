"""From files to batches."""

from cleft.data.datasets import DATASETS, Dataset, finish_reading, opening_of, read_dataset

__all__ = ["DATASETS", "Dataset", "finish_reading", "opening_of", "read_dataset"]
