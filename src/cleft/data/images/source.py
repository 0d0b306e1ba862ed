"""Image files as sources: safe opening, size limits, identity, and the error that rejects a file."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cleft.errors import DataError
from cleft.files import file_key


@dataclass(frozen=True, kw_only=True)
class ReadLimits:
    """Limits that are checked before any pixel is decoded."""

    file_bytes: int = 256 * 2**20
    pixels: int = 64_000_000
    """Rows times columns, as the header declares them."""
    side: int = 32
    """Shortest side in pixels."""
    aspect: float = 20.0
    """Longest side over shortest."""


DEFAULT_LIMITS = ReadLimits()


def check_size(height: int, width: int, name: Path | str, limits: ReadLimits) -> None:
    """Reject an image by the size that its header declares.

    Raises:
        DataError: With reason `too-large` or `geometry`.
    """
    short, long = sorted((height, width))
    if width * height > limits.pixels:
        raise refusal("too-large", name, f"{height} x {width} pixels; the limit is {limits.pixels} pixels in total")
    if short < limits.side or long > limits.aspect * short:
        allowed = f"both sides must be at least {limits.side} and their ratio at most {limits.aspect:g}"
        raise refusal("geometry", name, f"{height} x {width} pixels; {allowed}")


def may_be_dicom(data: bytes) -> bool:
    """Whether the bytes begin like a DICOM data set (group 0002 or 0008); some exports omit preamble and prefix."""
    return data[:2] in (b"\x02\0", b"\x08\0") or data[:4] in (b"\0\x08\0\x05", b"\0\x08\0\x08", b"\0\x08\0\x16")


def refusal(reason: str, name: Path | str, message: str) -> DataError:
    """Return the error that rejects a file, with a reason code for counting and a message."""
    return DataError(f"{name}: {reason} ({message})", reason=reason)


@contextmanager
def open_file(path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> Generator[tuple[BinaryIO, os.stat_result]]:
    """Open a regular file for reading; yield it with its status (size, time) at the time of opening.

    Raises:
        DataError: With reason `missing`, `not-a-file`, `unreadable` or `too-large`; `unreadable` also if reading fails
            later.
    """
    try:
        # Without O_NONBLOCK, opening a pipe without a writer blocks forever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise refusal("missing", path, "there is no such file; copy it again, or remove its row") from error
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


def read_bytes(path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> tuple[bytes, os.stat_result]:
    """Return the bytes of a regular file and its status (size, time) at the time of opening.

    Raises:
        DataError: With reason `missing`, `not-a-file`, `unreadable` or `too-large`.
    """
    with open_file(path, limits) as (file, status):
        return file.read(), status


class Source(NamedTuple):
    """Identity and content of a file at the time it was read."""

    key: str
    """Identity of the file, from `cleft.files.file_key`."""
    sha256: str
    """SHA-256 of its bytes, in hexadecimal."""


def read_source(path: Path) -> tuple[bytes, Source]:
    """Read a file; return its bytes with its identity and digest.

    Raises:
        DataError: With the reasons of `read_bytes`.
    """
    data, status = read_bytes(path)
    return data, Source(file_key(path, status), hashlib.sha256(data).hexdigest())
