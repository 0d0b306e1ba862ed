"""Snapshot of a folder, to show that nothing in it changed."""

import os
from pathlib import Path


def snapshot(folder: Path) -> dict[str, tuple[int, int, int, bytes | str | None]]:
    """Returns every entry below a folder: type, inode, change time, and content or target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        inside = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[path.relative_to(folder).as_posix()] = (state.st_mode, state.st_ino, state.st_ctime_ns, inside)
    return found
