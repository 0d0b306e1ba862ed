"""Files on disk that may be the images that a table names and that are missing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cleft.data.tables.spelling import plain

_ENDINGS = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".nii", ".gz")
_MOST_WANTED = 50
"""Missing images that are looked for."""
_SEEN = 200_000
"""Files that are listed at most."""


def hint_nearby(root: Path, missing: Sequence[str]) -> str:
    """Returns a clause that names a file which is there in place of a missing one; empty where there is none.

    A file fits if it has another ending or none, or is in a folder that the table omits or names differently.

    Args:
        root: Folder of the data.
        missing: Paths of images that are not there, from the root.
    """
    wanted = missing[:_MOST_WANTED]
    by_stem = _list(root)
    found = {path: near for path in wanted if (near := _nearest(path, by_stem.get(_stem(path.rpartition("/")[2]), [])))}
    if not found:
        return ""
    path, near = next(iter(found.items()))
    others = f"; the same holds for {len(found):,} of {len(wanted):,} that were looked for" if len(found) > 1 else ""
    return f"{path} is not there, but {near} is{others}: write names as they are on disk"


def _stem(name: str) -> str:
    """A file's name without case and without the endings of images."""
    name = plain(name)
    while (parts := os.path.splitext(name))[1] in _ENDINGS:
        name = parts[0]
    return name


def _list(root: Path) -> dict[str, list[str]]:
    """Files below a folder by their stem, each with its path from the root; links to folders are not followed."""
    files: dict[str, list[str]] = {}
    seen = 0
    for folder, folders, names in os.walk(root):
        folders.sort()
        place = os.path.relpath(folder, root)
        for name in sorted(names):
            files.setdefault(_stem(name), []).append(name if place == "." else f"{place}/{name}".replace(os.sep, "/"))
        seen += len(names)
        if seen > _SEEN:
            break
    return files


def _nearest(path: str, candidates: Sequence[str]) -> str | None:
    """The one candidate that has the most of the end of a path in common; None where several have."""
    ranked = sorted(((_common(path, other), other) for other in candidates), reverse=True)
    if not ranked or (len(ranked) > 1 and ranked[0][0] == ranked[1][0]):
        return None
    return ranked[0][1]


def _common(one: str, other: str) -> int:
    """How many folders in front of their names two paths share, from the end."""
    count = 0
    for a, b in zip(reversed(one.split("/")[:-1]), reversed(other.split("/")[:-1]), strict=False):
        if plain(a) != plain(b):
            break
        count += 1
    return count
