"""Prepared images on disk: parts of many rows, each whole or absent.

A part is `part-<digest>.u8`, the bare pixels, and `part-<digest>.json`, which says whose they are. The second is
written last and named by the digest of its own bytes, so its presence is the promise that the first is whole.
Rows are found by the content of their source, never by its name. Shapes: `n` rows of a part, `S` stored side.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cleft.data.images.decoding import Outcome, Source
from cleft.errors import DataError
from cleft.files import lock_file, open_lock, read_limited, write_whole
from cleft.strict_json import parse_json

SCHEMA = 3
"""Version of this layout and of how files are decoded; part of the name of every cache."""
PART_ROWS = 2048
"""Images of a part: what a killed run loses at most."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """What one index file promises."""

    pixels: Path
    rows: tuple[tuple[str, int], ...]
    """Content and CRC-32 of each row of pixels."""
    sources: tuple[Source, ...]
    """Files as they were read; their pixels are in this part or in another."""
    refused: Mapping[str, tuple[str, str]]
    """Content to the reason and the sentence it was refused with, without the path."""
    notes: Mapping[str, tuple[str, ...]]
    """Content to keys of `cleft.data.images.headers.ODDITIES`, where there are any."""

    @property
    def index(self) -> Path:
        """The index file."""
        return self.pixels.with_suffix(".json")


def open_pixels(path: Path, rows: int, side: int) -> NDArray[np.uint8]:
    """Maps a part's pixels, `[n, S, S]`, read-only."""
    return np.asarray(np.memmap(path, np.uint8, "r", shape=(rows, side, side)))


def read_part(index: Path, side: int) -> Part | None:
    """Returns what an index promises, or None if it or one of its rows is not as it was written.

    Nothing is believed that is a link, has another size, or differs from its digest.
    """
    pixels = index.with_suffix(".u8")
    try:
        if index.is_symlink() or pixels.is_symlink():
            return None
        data = read_limited(index)
        if index.stem != _name(data):
            return None
        part = _parse(pixels, parse_json(data, index.name))
        return part if not part.rows or _is_whole(part, side) else None
    except (DataError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _parse(pixels: Path, promise: Mapping[str, Any]) -> Part:
    return Part(
        pixels,
        tuple((str(content), int(crc)) for content, crc in promise["rows"]),
        tuple(Source(*source) for source in promise["sources"]),
        {content: (str(reason), str(message)) for content, (reason, message) in promise["refused"].items()},
        {content: tuple(map(str, keys)) for content, keys in promise["notes"].items()},
    )


def _is_whole(part: Part, side: int) -> bool:
    if part.pixels.stat().st_size != len(part.rows) * side * side:
        return False
    rows = open_pixels(part.pixels, len(part.rows), side)
    return all(zlib.crc32(row.data) == crc for row, (_, crc) in zip(rows, part.rows, strict=True))


class PartWriter:
    """Collects outcomes into one part; nothing counts before `finish`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: dict[str, int] = {}
        self._sources: list[Source] = []
        self._refused: dict[str, tuple[str, str]] = {}
        self._notes: dict[str, tuple[str, ...]] = {}
        handle, name = tempfile.mkstemp(".tmp", "part-", folder)
        self._file, self._path = os.fdopen(handle, "wb"), Path(name)

    def add(self, outcome: Outcome) -> None:
        """Notes a source, and writes its row if it brought one; a file nobody could read leaves no trace."""
        if outcome.source is None:
            return
        self._sources.append(outcome.source)
        content = outcome.source.content
        if outcome.reason:
            # Without the path in front: it may name a patient, and a file may be moved.
            self._refused[content] = (outcome.reason, outcome.message.removeprefix(str(outcome.path)))
        elif outcome.pixels is not None and content not in self._rows:
            self._rows[content] = zlib.crc32(outcome.pixels.data)
            self._file.write(outcome.pixels.data)
            if outcome.notes:
                self._notes[content] = outcome.notes

    def finish(self) -> Part:
        """Makes the part visible: pixels first, then the index that vouches for them, each on disk before its name."""
        promise = {
            "rows": list(self._rows.items()),
            "sources": self._sources,
            "refused": self._refused,
            "notes": self._notes,
        }
        data = json.dumps(promise).encode()
        index = self._folder / f"{_name(data)}.json"
        _sync(self._file)
        os.replace(self._path, index.with_suffix(".u8"))
        write_whole(index, data)
        return _parse(index.with_suffix(".u8"), parse_json(data, index.name))

    def discard(self) -> None:
        """Removes what is not finished."""
        with suppress(OSError):
            self._file.close()
        self._path.unlink(missing_ok=True)


@contextmanager
def lock(folder: Path) -> Generator[bool]:
    """Keeps other writers out of a folder; dies with its holder.

    Where the file system knows no locks, two writers do the same work twice, but never harm each other: what is given
    says whether this one is alone.
    """
    alone = True
    with open_lock(folder / "lock") as file:
        try:
            lock_file(file)
        except BlockingIOError:
            log.info("another process prepares images in %s; waiting for it", folder)
            lock_file(file, wait=True)
        except OSError:
            alone = False
            log.info("%s knows no file locks; if others prepare images now, work may be done twice", folder)
        yield alone


def clear(folder: Path, damaged: list[Path], *, alone: bool) -> None:
    """Removes damaged parts, and whatever no index vouches for: what killed writers left, or others write just now.

    Args:
        folder: Of the parts.
        damaged: Index files of parts that are not whole.
        alone: Whether nobody else can be writing; otherwise only what is damaged goes.
    """
    for index in damaged:
        index.unlink(missing_ok=True)
    if not alone:
        return
    vouched = {index.stem for index in folder.glob("part-*.json")}
    for path in [*folder.glob("part-*.tmp"), *folder.glob("part-*.u8")]:
        if path.suffix == ".tmp" or path.stem not in vouched:
            path.unlink(missing_ok=True)


def _name(index: bytes) -> str:
    return f"part-{hashlib.sha256(index).hexdigest()[:16]}"


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
