"""Decode once, read for ever: prepared images in a memory-mapped cache.

The cache has one folder per way of preparing, named by a digest of everything that decides a pixel. Inside,
rows are keyed by the content of their source, so that moved, copied and shared files are found again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import stat
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from cleft.config import DataConfig, ImagesConfig
from cleft.data.decoders import DEFAULT_LIMITS, decoder_versions
from cleft.data.decoding import Outcome, preparing
from cleft.data.images import read_bytes
from cleft.data.parts import PART_ROWS, SCHEMA, clear, lock
from cleft.data.pixel_rows import PixelRows
from cleft.data.progress import progress_bar
from cleft.data.rejects import check_rejects
from cleft.data.shelf import Shelf, check_room, no_room
from cleft.errors import DataError, ResourceError
from cleft.types import Record

Rejects: TypeAlias = dict[Path, tuple[str, str]]
"""Image to the reason and the sentence it was rejected with."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedImages:
    """The prepared images of a dataset, and what became of those that have none."""

    folder: Path
    digest: str
    """First 16 hex digits of a SHA-256 over the way of preparing and every image's id and content."""
    rows: PixelRows
    numbers: Mapping[str, int]
    """Record id to its number in `rows`."""
    rejected: Mapping[str, str]
    """Record id to the reason it has no pixels."""
    rebuilt: int = 0
    """Damaged parts of the cache that were thrown away and made anew."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __contains__(self, record_id: str) -> bool:
        return record_id in self.numbers

    def pixels(self, record_id: str) -> NDArray[np.uint8]:
        """Returns a prepared image, `[S, S]` uint8 with `S` the stored size, read-only.

        Raises:
            KeyError: If the record was rejected or is not of this dataset.
        """
        return self.rows[self.numbers[record_id]]

    def usable(self, records: Iterable[Record]) -> list[Record]:
        """Returns the records that were not rejected, in their order."""
        return [record for record in records if record.id not in self.rejected]


def prepare_images(
    records: Sequence[Record],
    config: ImagesConfig,
    folder: Path,
    *,
    jobs: int = 1,
    max_bad: float = 0.01,
    progress: bool = True,
    part_rows: int = PART_ROWS,
) -> PreparedImages:
    """Brings every image to its stored form, once; what the cache holds already is only looked up and checked.

    May be killed at any moment and started again: finished parts are not done twice. Of several processes on one
    cache one works; the others wait and find its work. A complete cache is only read.

    Args:
        records: Images of one dataset; ids are unique.
        config: Decides the pixels.
        folder: The cache.
        jobs: Processes that decode.
        max_bad: Share of images that may be rejected.
        progress: Whether to show a bar where the error stream is a terminal.
        part_rows: Images of a part: what a killed run loses at most.

    Raises:
        DataError: If more than `max_bad` of the images are missing or refused, with a table by reason.
        ResourceError: If the cache cannot be written, or a decoding process dies.
    """
    home = folder / preparation_digest(config)
    files, bad = _look_at({record.image for record in records})
    images = len(files) + len(bad)
    check_rejects(bad, images, max_bad)
    shelf = Shelf(home, config.stored_size)
    contents = shelf.known(files)
    rebuilt = 0
    if len(contents) < len(files):
        with _open_for_writing(home):
            shelf = Shelf(home, config.stored_size)
            rebuilt = len(shelf.damaged)
            clear(home, shelf.damaged)
            contents = shelf.known(files)
            todo = list(dict.fromkeys(r.image for r in records if r.image in files and r.image not in contents))
            for outcomes in _fill(shelf, todo, config, jobs, part_rows, progress=progress):
                contents |= {outcome.path: outcome.source.content for outcome in outcomes if outcome.source}
                bad |= {outcome.path: (outcome.reason, outcome.message) for outcome in outcomes if outcome.reason}
                check_rejects(bad, images, max_bad)
    if rebuilt:
        log.warning("%s: %d damaged parts were thrown away and made anew; have the disk checked", home, rebuilt)
    bad |= {path: shelf.refused[content] for path, content in contents.items() if content in shelf.refused}
    check_rejects(bad, images, max_bad)
    return _gather(records, shelf, contents, bad, config, rebuilt)


def cache_folder(config: DataConfig) -> Path:
    """Returns where prepared images are kept: `data.cache`, or `~/.cache/cleft`."""
    return config.cache or Path.home() / ".cache" / "cleft"


def preparation_digest(config: ImagesConfig) -> str:
    """Names a way of preparing: equal digests mean equal pixels from equal files.

    What comes after the cache (size, mean, spread, augmentation) is not part of it.
    """
    decides = {
        "schema": SCHEMA,
        "recipe": config.recipe,
        "intensity": config.intensity,
        "stored_size": config.stored_size,
        "limits": asdict(DEFAULT_LIMITS),
        "decoders": {**decoder_versions(), "opencv": cv2.__version__},
    }
    return _digest([json.dumps(decides, sort_keys=True)])


def _look_at(paths: Iterable[Path]) -> tuple[dict[Path, os.stat_result], Rejects]:
    """Tells files that may be read from those that are missing or no files, without opening one."""
    files: dict[Path, os.stat_result] = {}
    bad: Rejects = {}
    for path in paths:
        try:
            status = path.stat()
            if stat.S_ISREG(status.st_mode) and status.st_size <= DEFAULT_LIMITS.file_bytes:
                files[path] = status
                continue
        except OSError:
            pass  # Reading it says why.
        try:
            files[path] = read_bytes(path)[1]
        except DataError as error:
            bad[path] = (error.reason, str(error))
    return files, bad


@contextmanager
def _open_for_writing(home: Path) -> Generator[None]:
    with ExitStack() as stack:
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            stack.enter_context(lock(home))
        except OSError as error:
            existing = next(folder for folder in (home, *home.parents) if folder.is_dir())
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise no_room(existing, 0, error.strerror or str(error)) from error
            raise ResourceError(
                f"{home}: the cache cannot be written ({error.strerror or error}); set data.cache to another folder"
            ) from error
        yield


def _fill(
    shelf: Shelf, todo: Sequence[Path], config: ImagesConfig, jobs: int, part_rows: int, *, progress: bool
) -> Iterator[list[Outcome]]:
    """Prepares files part by part; yields what became of them, each part after it is safe on disk."""
    row_bytes = config.stored_size**2
    check_room(shelf.folder, len(todo) * row_bytes)
    with (
        preparing(config, shelf.all_contents(), jobs) as prepare,
        progress_bar("prepare images", len(todo), enabled=progress) as advance,
    ):

        def advancing(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
            for outcome in outcomes:
                yield outcome
                advance()

        for start in range(0, len(todo), part_rows):
            batch = todo[start : start + part_rows]
            yield shelf.store(advancing(prepare(batch)), (len(todo) - start) * row_bytes)


def _gather(
    records: Sequence[Record],
    shelf: Shelf,
    contents: Mapping[Path, str],
    bad: Rejects,
    config: ImagesConfig,
    rebuilt: int,
) -> PreparedImages:
    good = [record for record in records if record.image not in bad]
    places = [shelf.places[contents[record.image]] for record in good]
    rows = PixelRows(
        files=tuple(part.pixels for part in shelf.parts),
        lengths=tuple(len(part.rows) for part in shelf.parts),
        side=config.stored_size,
        places=np.array(places, dtype=np.int64).reshape(-1, 2),
        checks=np.array([shelf.parts[part].rows[row][1] for part, row in places], dtype=np.uint32),
    )
    named = sorted(f"{record.id}\0{contents[record.image]}" for record in good)
    return PreparedImages(
        folder=shelf.folder,
        digest=_digest([preparation_digest(config), *named]),
        rows=rows,
        numbers={record.id: number for number, record in enumerate(good)},
        rejected={record.id: bad[record.image][0] for record in records if record.image in bad},
        rebuilt=rebuilt,
    )


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
