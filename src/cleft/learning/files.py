"""Small files that are whole at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cleft.errors import DataError


def write_whole(path: Path, text: str) -> None:
    """Writes a small text file so that a reader sees the old or the new one, never half of it."""
    draft = path.with_name(f".{path.name}.tmp")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """Writes a JSON object as `write_whole` does.

    Raises:
        ValueError: If a number in it is NaN or infinite.
    """
    write_whole(path, json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Reads a JSON object, or None where there is no file.

    Raises:
        DataError: If the file holds something else.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); remove the run and train again", reason="json") from error
    if not isinstance(tree, dict):
        raise DataError(f"{path} holds {type(tree).__name__}, not an object", reason="json")
    return tree
