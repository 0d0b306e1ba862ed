"""From a seed to drawn images in the layout of a real download."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cleft.data.tables.paths import PHANTOMS_FILE
from cleft.errors import DataError
from cleft.files import draft_folder
from cleft.strict_json import read_json, write_json


def write_once(folder: Path, mark: Mapping[str, object], draw: Callable[[Path], None]) -> Path:
    """Draws into a folder beside the wanted one, which takes its name when everything stands.

    A folder that already holds the same phantoms is left as it is.

    Args:
        folder: A new or an empty folder.
        mark: All that the pixels depend on; kept in the folder.
        draw: Gets the folder to draw into.

    Returns:
        The folder.

    Raises:
        DataError: If the folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; choose a folder for the phantoms")
    if (folder / PHANTOMS_FILE).is_file():
        if read_json(folder / PHANTOMS_FILE, remedy="choose another folder") == mark:
            return folder
        raise DataError(f"{folder} holds other phantoms ({PHANTOMS_FILE} differs); choose another folder or remove it")
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty; choose another folder for the phantoms")
    with draft_folder(folder) as draft:
        draw(draft)
        write_json(draft / PHANTOMS_FILE, mark)
    return folder
