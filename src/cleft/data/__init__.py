"""From files to batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cleft.config import DataConfig
from cleft.data.captions import add_captions
from cleft.data.chexpert import read_chexpert
from cleft.data.labels import apply_uncertain
from cleft.data.manifest import read_manifest
from cleft.types import Reading

READERS: dict[str, Callable[[DataConfig], Reading]] = {"chexpert": read_chexpert, "manifest": read_manifest}
"""From the value of `data.dataset` to the function that reads it."""


def read_dataset(config: DataConfig) -> Reading:
    """Reads a dataset, decides what its uncertain labels count as, and gives every image its caption.

    Raises:
        ConfigError: If `data.root` is not set.
        DataError: If the table or its images are not what the reader expects.
    """
    reading = READERS[config.dataset](config)
    decided = replace(reading, records=apply_uncertain(reading.records, config.uncertain))
    return add_captions(decided, config)
