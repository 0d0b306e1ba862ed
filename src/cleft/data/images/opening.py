"""Opens regular files, and nothing that only looks like one."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cleft.data.images.decoders import DEFAULT_LIMITS, ReadLimits, refusal


@contextmanager
def open_file(path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> Generator[tuple[BinaryIO, os.stat_result]]:
    """Opens a regular file for reading; gives it with its size and time from when it was opened.

    Raises:
        DataError: With reason `missing`, `not-a-file`, `unreadable` or `too-large`; the third also where reading
            fails later.
    """
    try:
        # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise refusal("missing", path, "there is no such file; copy it again, or take out its row") from error
    except OSError as error:
        raise refusal("unreadable", path, f"{error.strerror}; check its permissions") from error
    try:
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise refusal("not-a-file", path, "a pipe or device; a regular file is needed")
            if status.st_size > limits.file_bytes:
                raise refusal("too-large", path, f"{status.st_size} bytes; the limit is {limits.file_bytes}")
            yield file, status
    except IsADirectoryError as error:
        os.close(handle)
        raise refusal("not-a-file", path, "a folder; a regular file is needed") from error
    except OSError as error:
        raise refusal("unreadable", path, f"{error.strerror}; check the disk") from error
