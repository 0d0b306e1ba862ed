"""Synthetic images and tables in the layout of real datasets, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cleft.data.tables.paths import PHANTOMS_FILE
from cleft.errors import DataError
from cleft.files import draft_folder
from cleft.strict_json import read_json, write_json


def write_once(folder: Path, mark: Mapping[str, object], draw: Callable[[Path], None]) -> Path:
    """Write a folder atomically: into a draft, which is renamed when complete.

    A folder that already holds the same synthetic data is left unchanged.

    Args:
        folder: A new or an empty folder.
        mark: Everything that the data depend on; stored in the folder.
        draw: Writes the data into the draft folder.

    Returns:
        The folder.

    Raises:
        DataError: If the folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; choose a folder for the synthetic images")
    if (folder / PHANTOMS_FILE).is_file():
        if read_json(folder / PHANTOMS_FILE, remedy="choose another folder") == mark:
            return folder
        raise DataError(
            f"{folder} holds other synthetic images ({PHANTOMS_FILE} differs); choose another folder or remove it"
        )
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty; choose another folder for the synthetic images")
    with draft_folder(folder) as draft:
        draw(draft)
        write_json(draft / PHANTOMS_FILE, mark)
    return folder
