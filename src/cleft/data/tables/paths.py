"""Where the images of a table lie: inside the root, and present or missing.

Nothing is opened. Folders in which a table names many images are listed once; single images are asked for one by
one, because a folder per study makes listing the slower way.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
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
_MOST = 16
"""Places at which one path is looked for at most."""

_ENDINGS = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".nii", ".gz")
_MOST_WANTED = 50
"""Missing images that are looked for."""

_SEEN = 200_000
"""Files that are listed at most."""

PHANTOMS_FILE = "PHANTOMS.json"
"""File that says a folder holds phantoms and nothing else."""


def leaves_root(path: str) -> bool:
    """Whether the text of a path alone leads out of its root.

    True for absolute paths, `..`, `~`, drive letters, backslashes, NUL, and addresses such as `http://`.

    Example:
        >>> [leaves_root(path) for path in ("a/b.png", "../b.png", "C:/b.png", "s3://a/b.png", "a/..b.png")]
        [False, True, True, True, False]
    """
    return _LEAVES.search(path) is not None


def normalise_path(path: str) -> str:
    """Returns the one spelling of a relative path, so that the same image has the same id.

    Example:
        >>> normalise_path("./images//p1.png")
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


def find_respelled(root: Path, paths: Sequence[str], taken: Collection[str]) -> dict[str, str]:
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


def fold_name(text: str) -> str:
    """Returns what all spellings of a name have in common.

    Example:
        >>> fold_name("E\u0301tude/P1.PNG") == fold_name("\u00e9tude/p1.png")
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
            for name, is_folder in _list(root, place, folders).get(fold_name(part), [])
            if is_folder
        ]
    return [
        f"{place}{name}"
        for place in places
        for name, is_folder in _list(root, place, folders).get(fold_name(last), [])
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
                        names.setdefault(fold_name(entry.name), []).append((entry.name, is_folder))
        except OSError:
            pass  # A folder that cannot be listed holds nothing that could be meant.
        folders[place] = names
    return folders[place]


def nearby_hint(root: Path, missing: Sequence[str]) -> str:
    """Returns a clause that names a file which is there in place of a missing one; empty where there is none.

    A file fits if it has another ending or none, or is in a folder that the table omits or names differently.

    Args:
        root: Folder of the data.
        missing: Paths of images that are not there, from the root.
    """
    wanted = missing[:_MOST_WANTED]
    by_stem = _files_by_stem(root)
    found = {path: near for path in wanted if (near := _nearest(path, by_stem.get(_stem(path.rpartition("/")[2]), [])))}
    if not found:
        return ""
    path, near = next(iter(found.items()))
    others = f"; the same holds for {len(found):,} of {len(wanted):,} that were looked for" if len(found) > 1 else ""
    return f"{path} is not there, but {near} is{others}: write names as they are on disk"


def _stem(name: str) -> str:
    """A file's name without case and without the endings of images."""
    name = fold_name(name)
    while (parts := os.path.splitext(name))[1] in _ENDINGS:
        name = parts[0]
    return name


def _files_by_stem(root: Path) -> dict[str, list[str]]:
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
        if fold_name(a) != fold_name(b):
            break
        count += 1
    return count


def is_synthetic(root: Path | None) -> bool:
    """Whether a folder holds phantoms, to which no published count applies."""
    return root is not None and (root / PHANTOMS_FILE).is_file()
