"""Where the images of a table lie: inside the root, and present or missing.

Nothing is opened. Folders in which a table names many images are listed once; single images are asked for one by
one, because a folder per study makes listing the slower way.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_LEAVES = re.compile(r"^[/~]|^[A-Za-z]:|\\|^[A-Za-z][A-Za-z0-9+.-]*://|(?:^|/)\.\.(?:/|$)|\x00")
_UNTIDY = re.compile(r"(?:^|/)\.(?:/|$)|//|/$")
_MANY = 8
_JUNK = re.compile(
    r"(?:^|/)(?:\.DS_Store|\._[^/]*|Thumbs\.db|desktop\.ini|\.~lock\.[^/]*|__MACOSX(?:/.*)?"
    r"|[^/]*\.(?:part|partial|crdownload|download|tmp))$",
    re.IGNORECASE,
)


def leaves_root(path: str) -> bool:
    """Whether the text of a path alone leads out of its root.

    True for absolute paths, `..`, `~`, drive letters, backslashes, NUL, and addresses such as `http://`.

    Example:
        >>> [leaves_root(path) for path in ("a/b.png", "../b.png", "C:/b.png", "s3://a/b.png", "a/..b.png")]
        [False, True, True, True, False]
    """
    return _LEAVES.search(path) is not None


def tidy(path: str) -> str:
    """Returns the one spelling of a relative path, so that the same image has the same id.

    Example:
        >>> tidy("./images//p1.png")
        'images/p1.png'
    """
    if not _UNTIDY.search(path):
        return path
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def is_junk(path: str) -> bool:
    """Whether a file is what file managers, editors and broken downloads leave beside the files one wants.

    Example:
        >>> [is_junk(path) for path in ("a/.DS_Store", "a/._p1.jpg", "__MACOSX/p1.jpg", "b.zip.part", "a/p1.jpg")]
        [True, True, True, True, False]
    """
    return _JUNK.search(path) is not None


def are_files(paths: Sequence[str]) -> NDArray[np.bool_]:
    """Returns which of the paths are files, `[N]`; links are followed."""
    present = np.zeros(len(paths), dtype=bool)
    for folder, rows in _by_folder(paths).items():
        kinds = _kinds(folder, [os.path.basename(paths[row]) for row in rows])
        for row, kind in zip(rows, kinds, strict=True):
            present[row] = kind == "file" or (kind == "link" and os.path.isfile(paths[row]))
    return present


def find_inside(root: Path, paths: Sequence[str]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Looks for files below `root` without following a link out of it.

    Args:
        root: Folder that no image may leave.
        paths: Relative paths for which `leaves_root` is False.

    Returns:
        Which are files, and which lead out of the root by a link (never both), `[N]` each.
    """
    home = os.path.realpath(root)
    real: dict[str, str] = {"": home}
    present = np.zeros(len(paths), dtype=bool)
    outside = np.zeros(len(paths), dtype=bool)
    for folder, rows in _by_folder(paths).items():
        place = _real_folder(folder, real)
        if not _is_below(place, home):
            outside[rows] = True
            continue
        names = [os.path.basename(paths[row]) for row in rows]
        for row, name, kind in zip(rows, names, _kinds(place, names), strict=True):
            target = os.path.realpath(os.path.join(place, name)) if kind == "link" else ""
            outside[row] = kind == "link" and not _is_below(target, home)
            present[row] = kind == "file" or (kind == "link" and not outside[row] and os.path.isfile(target))
    return present, outside


def _by_folder(paths: Sequence[str]) -> dict[str, list[int]]:
    folders: dict[str, list[int]] = {}
    for row, path in enumerate(paths):
        folders.setdefault(path.rpartition("/")[0], []).append(row)
    return folders


def _kinds(folder: str, names: Sequence[str]) -> list[str]:
    """Returns `file`, `link` or nothing for each name in a folder."""
    if len(names) < _MANY:
        return [_kind(f"{folder}/{name}") for name in names]
    try:
        with os.scandir(folder) as entries:
            kinds = {
                entry.name: "link" if entry.is_symlink() else "file" if entry.is_file(follow_symlinks=False) else ""
                for entry in entries
            }
    except OSError:
        return [""] * len(names)
    return [kinds.get(name, "") for name in names]


def _kind(path: str) -> str:
    try:
        mode = os.lstat(path).st_mode
    except (OSError, ValueError):
        return ""
    return "link" if stat.S_ISLNK(mode) else "file" if stat.S_ISREG(mode) else ""


def _real_folder(folder: str, real: dict[str, str]) -> str:
    """Resolves a relative folder, asking for each folder above it once."""
    if folder not in real:
        above, _, name = folder.rpartition("/")
        path = os.path.join(_real_folder(above, real), name)
        real[folder] = os.path.realpath(path) if os.path.islink(path) else path
    return real[folder]


def _is_below(path: str, home: str) -> bool:
    return path == home or path.startswith(home.rstrip("/") + "/")
