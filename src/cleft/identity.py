"""Identity of a file on disk: the key under which anything derived from a file may be cached.

A path, a size and a modification time do not identify a file: `cp -p`, `rsync -t` and `os.utime` keep the last two,
and a relative path names another file in another folder. The key therefore also holds the real path, the device, the
inode and the change time, which no program can set. Where a file system has no stable inodes, the key changes without
need, and whatever is cached under it is computed again.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def file_key(path: Path | str, status: os.stat_result | None = None, folders: dict[str, str] | None = None) -> str:
    """Return the key of a file in its present state: 32 hex digits that do not reveal its path.

    Args:
        path: The file.
        status: Its status, from the descriptor it was read through where it was read; by default that of the path.
        folders: Memo of resolved folders, to share between calls for many files of few folders.

    Raises:
        OSError: If `status` is not given and the file has none.
    """
    found = os.stat(path) if status is None else status
    facts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    real = os.path.realpath(path) if folders is None else _real_path(os.fspath(path), folders)
    named = "\0".join((real, *map(str, facts)))
    return hashlib.sha256(named.encode(errors="surrogateescape")).hexdigest()[:32]


def _real_path(path: str, folders: dict[str, str]) -> str:
    """Resolve as `os.path.realpath`, looking at each folder once: 200,000 images are in far fewer folders."""
    head, tail = os.path.split(path)
    if not tail or not head or tail in (os.curdir, os.pardir) or os.path.islink(path):
        return os.path.realpath(path)
    if head not in folders:
        folders[head] = _real_path(head, folders)
    return os.path.join(folders[head], tail)
