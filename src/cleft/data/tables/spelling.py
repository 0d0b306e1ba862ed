"""Finds images whose name on disk differs from the table's in letter case, or in how accents are composed.

Tables travel between systems that hold `P1.PNG` and `p1.png` for one name and systems that do not; archives change `é`
from one character to two. Such a file is taken only where there is no doubt which one is meant.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

_MOST = 16
"""Places at which one path is looked for at most."""


def respell(root: Path, paths: Sequence[str], taken: Collection[str]) -> dict[str, str]:
    """Looks for files under any spelling of their paths; links are not followed.

    Args:
        root: Folder the paths start from.
        paths: Relative paths that are no files as they are written.
        taken: Relative paths of files that are named as they are written; they are nobody else's.

    Returns:
        Path as written to path on disk, for each that one file fits, and for which no other path was written.
    """
    folders: dict[str, dict[str, list[tuple[str, bool]]]] = {}
    found: dict[str, str] = {}
    for path in paths:
        fitting = [name for name in _fitting(str(root), path, folders) if name not in taken]
        if len(fitting) == 1:
            found[path] = fitting[0]
    wanted = Counter(found.values())
    return {path: name for path, name in found.items() if wanted[name] == 1}


def plain(text: str) -> str:
    """Returns what all spellings of a name have in common.

    Example:
        >>> plain("E\u0301tude/P1.PNG") == plain("\u00e9tude/p1.png")
        True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _fitting(root: str, path: str, folders: dict[str, dict[str, list[tuple[str, bool]]]]) -> list[str]:
    *above, last = path.split("/")
    places = [""]
    for part in above:
        places = [
            f"{place}{name}/"
            for place in places[:_MOST]
            for name, is_folder in _list(root, place, folders).get(plain(part), [])
            if is_folder
        ]
    return [
        f"{place}{name}"
        for place in places
        for name, is_folder in _list(root, place, folders).get(plain(last), [])
        if not is_folder
    ]


def _list(
    root: str, place: str, folders: dict[str, dict[str, list[tuple[str, bool]]]]
) -> dict[str, list[tuple[str, bool]]]:
    """Folders and files of a place by the common spelling of their names; each place is listed once."""
    if place not in folders:
        names: dict[str, list[tuple[str, bool]]] = {}
        try:
            with os.scandir(f"{root}/{place}") as entries:
                for entry in entries:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    if is_folder or entry.is_file(follow_symlinks=False):
                        names.setdefault(plain(entry.name), []).append((entry.name, is_folder))
        except OSError:
            pass  # A folder that cannot be listed holds nothing that could be meant.
        folders[place] = names
    return folders[place]
