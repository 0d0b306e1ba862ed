"""Replaces a file the way `cp -p` and `rsync -t` do: size and modification time stay as they were."""

import os


def replace_keeping_size_and_time(path, data, how="renamed over"):
    """Put other bytes in place of a file: of its length, or shorter and then filled up with spaces.

    Args:
        path: The file.
        data: What it holds afterwards.
        how: `in place`, which keeps its inode, or `renamed over`.
    """
    before = path.stat()
    padded = data + b" " * (before.st_size - len(data))
    if how == "in place":
        with path.open("r+b") as file:
            file.write(padded)
    else:
        beside = path.with_name(f".{path.name}.new")
        beside.write_bytes(padded)
        os.replace(beside, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
