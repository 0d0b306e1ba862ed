"""Image paths of a table: whether the files exist below the root, and which similar files exist otherwise.

No file is opened. A folder with many images of a table is listed once; single images are looked up one by one, because
with one folder per study listing is slower.

Names on disk may differ from the table in letter case, or in how accents are composed: some systems treat `P1.PNG` and
`p1.png` as one name, and some archives change `é` from one character to two. Such a file is used only if it is the only
candidate.
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
_MAX_FOLDERS = 16
"""Folders in which one path is looked for."""

_ENDINGS = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".nii", ".gz")
_MAX_MISSING = 50
"""Missing images for which similar files are looked for."""

_MAX_FILES = 200_000
"""Files listed while looking for similar names."""

PHANTOMS_FILE = "PHANTOMS.json"
"""File that marks a folder of synthetic images."""


def leaves_root(path: str) -> bool:
    """Whether a relative path leads out of its root by its text alone; links are not checked.

    True for absolute paths, `..`, `~`, drive letters, backslashes, NUL, and addresses such as `http://`.

    Example:
        >>> [leaves_root(path) for path in ("a/b.png", "../b.png", "C:/b.png", "s3://a/b.png", "a/..b.png")]
        [False, True, True, True, False]
    """
    return _LEAVES.search(path) is not None


def normalise_path(path: str) -> str:
    """Returns a relative path without `.` and repeated slashes, so that an image has one id.

    Example:
        >>> normalise_path("./images//p1.png")
        'images/p1.png'
    """
    if not _UNTIDY.search(path):
        return path
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def is_junk(path: str) -> bool:
    """Whether a file is left behind by a file manager, an editor or an incomplete download.

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
    """Checks which files exist below `root`, without following links out of it.

    Args:
        root: Folder that must contain the images.
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
    """Resolves a relative folder; every parent is resolved once."""
    if folder not in real:
        above, _, name = folder.rpartition("/")
        path = os.path.join(_real_folder(above, real), name)
        real[folder] = os.path.realpath(path) if os.path.islink(path) else path
    return real[folder]


def _is_below(path: str, home: str) -> bool:
    return path == home or path.startswith(home.rstrip("/") + "/")


def find_respelled(root: Path, paths: Sequence[str], taken: Collection[str]) -> dict[str, str]:
    """Finds files whose paths differ from the given ones in letter case or Unicode composition only.

    Links are not followed.

    Args:
        root: Folder of the paths.
        paths: Relative paths that do not exist as written.
        taken: Relative paths that do exist as written; these files are no candidates.

    Returns:
        Path on disk by given path, where exactly one file matches and it matches no other given path.
    """
    folders: dict[str, dict[str, list[tuple[str, bool]]]] = {}
    found: dict[str, str] = {}
    for path in paths:
        matches = [name for name in _matches(str(root), path, folders) if name not in taken]
        if len(matches) == 1:
            found[path] = matches[0]
    wanted = Counter(found.values())
    return {path: name for path, name in found.items() if wanted[name] == 1}


def fold_name(text: str) -> str:
    """Returns a name without letter case and in one Unicode composition.

    Example:
        >>> fold_name("E\u0301tude/P1.PNG") == fold_name("\u00e9tude/p1.png")
        True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _matches(root: str, path: str, folders: dict[str, dict[str, list[tuple[str, bool]]]]) -> list[str]:
    *above, last = path.split("/")
    places = [""]
    for part in above:
        places = [
            f"{place}{name}/"
            for place in places[:_MAX_FOLDERS]
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
    """Entries of a folder by folded name; every folder is listed once."""
    if place not in folders:
        names: dict[str, list[tuple[str, bool]]] = {}
        try:
            with os.scandir(f"{root}/{place}") as entries:
                for entry in entries:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    if is_folder or entry.is_file(follow_symlinks=False):
                        names.setdefault(fold_name(entry.name), []).append((entry.name, is_folder))
        except OSError:
            pass  # A folder that cannot be listed has no candidates.
        folders[place] = names
    return folders[place]


def nearby_hint(root: Path, missing: Sequence[str]) -> str:
    """Returns a hint that names an existing file similar to a missing one, or an empty string.

    A similar file has another extension or none, or is in a folder that the table omits or names differently.

    Args:
        root: Folder of the data.
        missing: Paths of missing images relative to the root.
    """
    wanted = missing[:_MAX_MISSING]
    by_stem = _files_by_stem(root)
    found = {path: near for path in wanted if (near := _nearest(path, by_stem.get(_stem(path.rpartition("/")[2]), [])))}
    if not found:
        return ""
    path, near = next(iter(found.items()))
    others = f"; likewise for {len(found):,} of {len(wanted):,} missing images checked" if len(found) > 1 else ""
    return f"{path} does not exist, but {near} does{others}: write names as they are on disk"


def _stem(name: str) -> str:
    """A file name without letter case and image extensions."""
    name = fold_name(name)
    while (parts := os.path.splitext(name))[1] in _ENDINGS:
        name = parts[0]
    return name


def _files_by_stem(root: Path) -> dict[str, list[str]]:
    """Relative paths of the files below a folder, by stem; links to folders are not followed."""
    files: dict[str, list[str]] = {}
    seen = 0
    for folder, folders, names in os.walk(root):
        folders.sort()
        place = os.path.relpath(folder, root)
        for name in sorted(names):
            files.setdefault(_stem(name), []).append(name if place == "." else f"{place}/{name}".replace(os.sep, "/"))
        seen += len(names)
        if seen > _MAX_FILES:
            break
    return files


def _nearest(path: str, candidates: Sequence[str]) -> str | None:
    """The candidate with the longest common end of the path; None if several have it."""
    ranked = sorted(((_common(path, other), other) for other in candidates), reverse=True)
    if not ranked or (len(ranked) > 1 and ranked[0][0] == ranked[1][0]):
        return None
    return ranked[0][1]


def _common(one: str, other: str) -> int:
    """Number of parent folders that two paths have in common, counted from the end."""
    count = 0
    for a, b in zip(reversed(one.split("/")[:-1]), reversed(other.split("/")[:-1]), strict=False):
        if fold_name(a) != fold_name(b):
            break
        count += 1
    return count


def is_synthetic(root: Path | None) -> bool:
    """Whether a folder contains synthetic images, to which published counts do not apply."""
    return root is not None and (root / PHANTOMS_FILE).is_file()
