"""Replaces a file as `cp -p` and `rsync -t` do: size and modification time do not change."""

import os


def replace_keeping_size_and_time(path, data, how="renamed over"):
    """Replaces the content of a file by other bytes, padded with spaces to its length.

    Args:
        path: The file.
        data: The new content.
        how: `in place`, which keeps its inode, or `renamed over`.
    """
    before = path.stat()
    padded = data + b" " * (before.st_size - len(data))
    if how == "in place":
        with path.open("r+b") as file:
            file.write(padded)
    else:
        draft = path.with_name(f".{path.name}.new")
        draft.write_bytes(padded)
        os.replace(draft, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
