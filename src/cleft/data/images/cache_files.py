"""Files of the cache of prepared images: parts of many rows, each complete or absent, and an index over them.

A part consists of `part-<digest>.u8`, the bare pixels, and `part-<digest>.json`, the index of its rows. The index is
written last and named by the digest of its bytes, so its presence guarantees that the pixels are complete. Rows are
found by the content of their source file, never by its name. Shapes: `N` images, `n` rows of a part, `S` stored side.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from cleft.data.images.decode import CHECKS, DICOM_PACKAGES
from cleft.data.images.decode_pool import DecodeResult
from cleft.data.images.source import Source
from cleft.errors import DataError, ResourceError
from cleft.files import file_key, lock_file, open_lock, read_limited, write_whole
from cleft.strict_json import parse_json

SCHEMA = 3
"""Version of this layout and of decoding; part of the name of every cache."""
PART_ROWS = 2048
"""Images of a part, which a killed run loses at most."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Content of an index file."""

    pixels: Path
    rows: tuple[tuple[str, int], ...]
    """Content (SHA-256) and CRC-32 of each row of pixels."""
    sources: tuple[Source, ...]
    """Files as they were read; their pixels may be in another part."""
    refused: Mapping[str, tuple[str, str]]
    """Content to reason and message of its rejection, without the path."""
    notes: Mapping[str, tuple[str, ...]]
    """Content to keys of `cleft.data.images.dicom_headers.ODDITIES`, if there are any."""

    @property
    def index(self) -> Path:
        """Path of the index file."""
        return self.pixels.with_suffix(".json")


def open_pixels(path: Path, rows: int, side: int) -> NDArray[np.uint8]:
    """Map the pixels of a part, `[n, S, S]`, read-only."""
    return np.asarray(np.memmap(path, np.uint8, "r", shape=(rows, side, side)))


def read_part(index: Path, side: int) -> Part | None:
    """Read an index; return None if it or one of its rows is not as it was written.

    Links, files of another size and rows with another checksum are rejected.
    """
    pixels = index.with_suffix(".u8")
    try:
        if index.is_symlink() or pixels.is_symlink():
            return None
        data = read_limited(index)
        if index.stem != _name(data):
            return None
        part = _parse(pixels, parse_json(data, index.name))
        return part if not part.rows or _is_complete(part, side) else None
    except (DataError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _parse(pixels: Path, index: Mapping[str, Any]) -> Part:
    return Part(
        pixels,
        tuple((str(content), int(crc)) for content, crc in index["rows"]),
        tuple(Source(*source) for source in index["sources"]),
        {content: (str(reason), str(message)) for content, (reason, message) in index["refused"].items()},
        {content: tuple(map(str, keys)) for content, keys in index["notes"].items()},
    )


def _is_complete(part: Part, side: int) -> bool:
    if part.pixels.stat().st_size != len(part.rows) * side * side:
        return False
    rows = open_pixels(part.pixels, len(part.rows), side)
    return all(zlib.crc32(row.data) == crc for row, (_, crc) in zip(rows, part.rows, strict=True))


class PartWriter:
    """Collects results into one part, which becomes visible with `finish`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: dict[str, int] = {}
        self._sources: list[Source] = []
        self._refused: dict[str, tuple[str, str]] = {}
        self._notes: dict[str, tuple[str, ...]] = {}
        handle, name = tempfile.mkstemp(".tmp", "part-", folder)
        self._file, self._path = os.fdopen(handle, "wb"), Path(name)

    def add(self, result: DecodeResult) -> None:
        """Add a source, and its row if it has pixels; a file that could not be read is skipped."""
        if result.source is None:
            return
        self._sources.append(result.source)
        content = result.source.sha256
        if result.reason:
            # Without the path: it may name a patient, and the file may move.
            self._refused[content] = (result.reason, result.message.removeprefix(str(result.path)))
        elif result.pixels is not None and content not in self._rows:
            self._rows[content] = zlib.crc32(result.pixels.data)
            self._file.write(result.pixels.data)
            if result.notes:
                self._notes[content] = result.notes

    def finish(self) -> Part:
        """Make the part visible: first the pixels, then the index, each synced to disk before it gets its name."""
        entry = {
            "rows": list(self._rows.items()),
            "sources": self._sources,
            "refused": self._refused,
            "notes": self._notes,
        }
        data = json.dumps(entry).encode()
        index = self._folder / f"{_name(data)}.json"
        _sync(self._file)
        os.replace(self._path, index.with_suffix(".u8"))
        write_whole(index, data)
        return _parse(index.with_suffix(".u8"), parse_json(data, index.name))

    def discard(self) -> None:
        """Delete what is not finished."""
        with suppress(OSError):
            self._file.close()
        self._path.unlink(missing_ok=True)


@contextmanager
def lock_folder(folder: Path) -> Generator[bool]:
    """Lock a folder against other writers until the context, or this process, ends.

    On a file system without locks, two writers repeat work but never damage each other: the value yielded says whether
    this one is alone.
    """
    alone = True
    with open_lock(folder / "lock") as file:
        try:
            lock_file(file)
        except BlockingIOError:
            log.info("another process is preparing images in %s; waiting", folder)
            lock_file(file, wait=True)
        except OSError:
            alone = False
            log.info("%s does not support file locks; if another process prepares images now, work is repeated", folder)
        yield alone


def remove_leftovers(folder: Path, damaged: list[Path], *, alone: bool) -> None:
    """Delete damaged parts, and files without an index: what killed writers left, or other writers are writing.

    Args:
        folder: Folder of the parts.
        damaged: Index files of damaged parts.
        alone: Whether no other process can be writing; otherwise only damaged parts are deleted.
    """
    for index in damaged:
        index.unlink(missing_ok=True)
    if not alone:
        return
    indexed = {index.stem for index in folder.glob("part-*.json")}
    for path in [*folder.glob("part-*.tmp"), *folder.glob("part-*.u8")]:
        if path.suffix == ".tmp" or path.stem not in indexed:
            path.unlink(missing_ok=True)


def _name(index: bytes) -> str:
    return f"part-{hashlib.sha256(index).hexdigest()[:16]}"


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


_MOST_IDENTITIES = 8
"""File identities kept per prepared image, besides those in the parts that hold its pixels."""


class CacheIndex:
    """Index over the complete parts of a folder; damaged parts count as missing."""

    def __init__(self, folder: Path, side: int) -> None:
        self.folder = folder
        self.parts: list[Part] = []
        self.damaged: list[Path] = []
        """Index files of damaged parts."""
        self.positions: dict[str, tuple[int, int]] = {}
        """Content to its part and the row in it."""
        self.refused: dict[str, tuple[str, str]] = {}
        """Content to reason and message of its rejection, without the path."""
        self.notes: dict[str, tuple[str, ...]] = {}
        """Content to keys of `cleft.data.images.dicom_headers.ODDITIES`, if there are any."""
        self._contents: dict[str, str] = {}
        for index in sorted(folder.glob("part-*.json")):
            part = read_part(index, side)
            if part is None:
                self.damaged.append(index)
            else:
                self.add(part)

    def __contains__(self, content: str) -> bool:
        return content in self.positions or content in self.refused

    def add(self, part: Part) -> None:
        """Add a part."""
        for row, (content, _) in enumerate(part.rows):
            self.positions[content] = (len(self.parts), row)
            self.refused.pop(content, None)  # Rejected first, accepted later.
        self.refused.update({content: why for content, why in part.refused.items() if content not in self.positions})
        self.notes.update(part.notes)
        self.parts.append(part)
        self._contents.update(part.sources)

    def drop_refusals(self, reasons: Collection[str]) -> None:
        """Forget rejections with these reasons, so that their files are tried again."""
        self.refused = {content: why for content, why in self.refused.items() if why[0] not in reasons}

    def store(self, results: Iterable[DecodeResult], needed: int) -> list[DecodeResult]:
        """Write results as one part and add it; on an error nothing is left on disk.

        Args:
            results: Results of some files.
            needed: Bytes of pixels still to be written, for the message.

        Returns:
            The results without their pixels.

        Raises:
            ResourceError: If the disk is full or the folder cannot be written.
        """
        stored: list[DecodeResult] = []
        try:
            writer = PartWriter(self.folder)
            try:
                for result in results:
                    bare = result._replace(pixels=None)
                    duplicate = result.source is not None and result.source.sha256 in self
                    writer.add(bare if duplicate else result)
                    stored.append(bare)
                self.add(writer.finish())
            finally:
                writer.discard()
        except OSError as error:
            raise disk_error(self.folder, needed, error.strerror or str(error)) from error
        return stored

    def known_files(self, files: Mapping[Path, os.stat_result]) -> dict[Path, str]:
        """Return the content of each file that is unchanged since it was read, and whose result is in the cache."""
        folders: dict[str, str] = {}
        contents = {path: self._contents.get(file_key(path, status, folders)) for path, status in files.items()}
        return {path: content for path, content in contents.items() if content is not None and content in self}

    def prune(self) -> None:
        """Delete the oldest parts that contain only file identities, whose pixels are in other parts.

        Every copy, move and remount of a dataset adds such parts; without them a file is read and hashed once more.
        """
        bare = [part.index for part in self.parts if not part.rows and not part.refused]
        sizes = {part.index: len(part.sources) for part in self.parts}
        kept = 0
        for index in sorted(bare, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            kept += sizes[index]
            if kept > _MOST_IDENTITIES * len(self.all_contents()):
                index.unlink(missing_ok=True)
                index.with_suffix(".u8").unlink(missing_ok=True)

    def all_contents(self) -> frozenset[str]:
        """Return every content whose result is in the cache."""
        return frozenset((*self.positions, *self.refused))


def check_free_space(folder: Path, needed: int) -> None:
    """Raise an error if the disk is too full.

    Raises:
        ResourceError: If fewer than `needed` bytes are free.
    """
    if shutil.disk_usage(folder).free < needed:
        raise disk_error(folder, needed, "the disk is too full")


def disk_error(folder: Path, needed: int, why: str) -> ResourceError:
    """Return the error for a cache that cannot be written."""
    free = shutil.disk_usage(folder).free
    return ResourceError(
        f"{folder}: {why}; the prepared images still to write take {needed:,} bytes, {free:,} are free; "
        "free some space, or set data.cache to another folder"
    )


@dataclass(eq=False)
class PixelRows:
    """Prepared images by index, `[S, S]` uint8 each.

    A pickled copy contains names and numbers only; the pixels are mapped again in the other process.
    """

    files: tuple[Path, ...]
    lengths: tuple[int, ...]
    """Number of rows of each file."""
    side: int
    positions: NDArray[np.int64]
    """File and row of each image, `[N, 2]`."""
    checksums: NDArray[np.uint32]
    """CRC-32 of each image, `[N]`."""
    _maps: dict[int, NDArray[np.uint8]] = field(default_factory=dict[int, NDArray[np.uint8]], repr=False)

    def __len__(self) -> int:
        return len(self.checksums)

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        """Return an image, read-only.

        Raises:
            DataError: With reason `cache`, if its bytes are not those that were written.
        """
        file, row = self.positions[number].tolist()
        if file not in self._maps:
            self._maps[file] = open_pixels(self.files[file], self.lengths[file], self.side)
        pixels = self._maps[file][row]
        if zlib.crc32(pixels.data) != self.checksums[number]:
            raise DataError(
                f"{self.files[file]}: row {row} differs from its checksum; run the command again to rebuild it, "
                "and check the disk",
                reason="cache",
            )
        return pixels

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}


def decoder_versions() -> dict[str, str]:
    """Return versions of everything that decides the pixels of a file, or its rejection; part of every cache key."""
    turbo = features.version("libjpeg_turbo")
    versions = {"pillow": Image.__version__, "jpeg": str(features.version("jpg")), "libjpeg_turbo": str(turbo)}
    versions["checks"] = CHECKS
    for package in ("simplejpeg", *DICOM_PACKAGES):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions
