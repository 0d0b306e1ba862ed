"""Prepared images on disk: parts of many rows, each whole or absent.

A part is `part-<digest>.u8`, the bare pixels, and `part-<digest>.json`, which says whose they are. The second is
written last and named by the digest of its own bytes, so its presence is the promise that the first is whole.
Rows are found by the content of their source, never by its name. Shapes: `n` rows of a part, `S` stored side.
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
    """Content to keys of `cleft.data.images.dicom_headers.ODDITIES`, where there are any."""

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

    def add(self, outcome: DecodeResult) -> None:
        """Notes a source, and writes its row if it brought one; a file nobody could read leaves no trace."""
        if outcome.source is None:
            return
        self._sources.append(outcome.source)
        content = outcome.source.sha256
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
def lock_folder(folder: Path) -> Generator[bool]:
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


def remove_leftovers(folder: Path, damaged: list[Path], *, alone: bool) -> None:
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


_MOST_IDENTITIES = 8
"""Identities of files kept per prepared image, beyond those in the parts that hold its pixels."""


class CacheIndex:
    """The whole parts of a folder; what is not whole is a miss."""

    def __init__(self, folder: Path, side: int) -> None:
        self.folder = folder
        self.parts: list[Part] = []
        self.damaged: list[Path] = []
        """Index files whose part is not whole."""
        self.positions: dict[str, tuple[int, int]] = {}
        """Content to its part and the row in it."""
        self.refused: dict[str, tuple[str, str]] = {}
        """Content to the reason and the sentence it was refused with, without the path."""
        self.notes: dict[str, tuple[str, ...]] = {}
        """Content to keys of `cleft.data.images.dicom_headers.ODDITIES`, where there are any."""
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
        """Takes in one more part."""
        for row, (content, _) in enumerate(part.rows):
            self.positions[content] = (len(self.parts), row)
            self.refused.pop(content, None)  # Refused once, prepared since.
        self.refused.update({content: why for content, why in part.refused.items() if content not in self.positions})
        self.notes.update(part.notes)
        self.parts.append(part)
        self._contents.update(part.sources)

    def drop_refusals(self, reasons: Collection[str]) -> None:
        """Takes back refusals for these reasons, so that their files are tried again."""
        self.refused = {content: why for content, why in self.refused.items() if why[0] not in reasons}

    def store(self, outcomes: Iterable[DecodeResult], needed: int) -> list[DecodeResult]:
        """Writes outcomes as one part and takes it in; or leaves nothing behind.

        Args:
            outcomes: What became of some files.
            needed: Bytes of pixels that are still to be written, for the message.

        Returns:
            The outcomes without their pixels.

        Raises:
            ResourceError: If the disk is full or the folder cannot be written.
        """
        stored: list[DecodeResult] = []
        try:
            writer = PartWriter(self.folder)
            try:
                for outcome in outcomes:
                    bare = outcome._replace(pixels=None)
                    twin = outcome.source is not None and outcome.source.sha256 in self
                    writer.add(bare if twin else outcome)
                    stored.append(bare)
                self.add(writer.finish())
            finally:
                writer.discard()
        except OSError as error:
            raise disk_error(self.folder, needed, error.strerror or str(error)) from error
        return stored

    def known_files(self, files: Mapping[Path, os.stat_result]) -> dict[Path, str]:
        """Returns the content of each file that is as it was when it was read, and whose outcome is here."""
        folders: dict[str, str] = {}
        contents = {path: self._contents.get(file_key(path, status, folders)) for path, status in files.items()}
        return {path: content for path, content in contents.items() if content is not None and content in self}

    def prune(self) -> None:
        """Remove the oldest parts that hold only identities of files whose pixels are in other parts.

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
        """Returns every content whose outcome is here."""
        return frozenset((*self.positions, *self.refused))


def check_free_space(folder: Path, needed: int) -> None:
    """Refuses to start what cannot end.

    Raises:
        ResourceError: If fewer than `needed` bytes are free.
    """
    if shutil.disk_usage(folder).free < needed:
        raise disk_error(folder, needed, "the disk is too full")


def disk_error(folder: Path, needed: int, why: str) -> ResourceError:
    """Returns the error for a cache that cannot be written."""
    free = shutil.disk_usage(folder).free
    return ResourceError(
        f"{folder}: {why}; the prepared images still to write take {needed:,} bytes, {free:,} are free; "
        "free some space, or set data.cache to another folder"
    )


@dataclass(eq=False)
class PixelRows:
    """Prepared images by number, `[S, S]` uint8 each.

    A copy sent to another process carries names and numbers alone; the pixels are mapped anew there.
    """

    files: tuple[Path, ...]
    lengths: tuple[int, ...]
    """Rows of each file."""
    side: int
    positions: NDArray[np.int64]
    """File and row in it of each image, `[N, 2]`."""
    checksums: NDArray[np.uint32]
    """CRC-32 of each image, `[N]`."""
    _maps: dict[int, NDArray[np.uint8]] = field(default_factory=dict[int, NDArray[np.uint8]], repr=False)

    def __len__(self) -> int:
        return len(self.checksums)

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        """Returns an image, read-only.

        Raises:
            DataError: With reason `cache`, if its bytes are not those that were written.
        """
        file, row = self.positions[number].tolist()
        if file not in self._maps:
            self._maps[file] = open_pixels(self.files[file], self.lengths[file], self.side)
        pixels = self._maps[file][row]
        if zlib.crc32(pixels.data) != self.checksums[number]:
            raise DataError(
                f"{self.files[file]}: row {row} is not as it was written; start again, which makes it anew, "
                "and have the disk checked",
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
