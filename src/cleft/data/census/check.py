"""Says in one pass everything that is wrong with a dataset, and takes its census."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from cleft.config import DataConfig, ImagesConfig
from cleft.data.census.taking import Effort, take_census
from cleft.data.census.text import census_lines
from cleft.data.datasets import DATASETS
from cleft.errors import DataError
from cleft.types import Census


class Check(NamedTuple):
    """What there is to say about a dataset."""

    census: Census

    @property
    def lines(self) -> list[str]:
        """To be printed one below the other."""
        return census_lines(self.census)

    @property
    def faults(self) -> int:
        """Kinds of fault. 0 means that training can begin."""
        return len(self.census.faults)


def check_dataset(config: DataConfig, images: ImagesConfig | None = None, effort: Effort | None = None) -> Check:
    """Reads a table as far as it can be read and reports on all of it.

    Args:
        config: What to read, and how it would be split.
        images: How images would be prepared, where some are decoded.
        effort: How many files to look at and to decode; by default none is decoded.

    Returns:
        First one line per kind of fault, with the lines it occurs on and the remedy; then, of the rows without
        fault, how many images, patients, findings, views and sexes there are, what was left out and why, and
        how large the splits would be.

    Raises:
        ConfigError: If `data.root` is not set or `data.table` leads out of it.
    """
    reader, images = DATASETS[config.dataset].reader, images or ImagesConfig()
    try:
        return Check(take_census(reader(config), config, images, effort or Effort()))
    except DataError as error:
        if error.reason != "missing":
            return Check(Census(dataset=config.dataset, table=config.table or "", faults=(str(error),)))
        missing = str(error)
    # No image is where it should be: the table is reported all the same.
    census = take_census(reader(config, check_files=False), config, images, Effort(look=0))
    return Check(replace(census, faults=(missing, *census.faults), unlisted=()))
