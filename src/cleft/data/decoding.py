"""From files to prepared squares, in this process or in several.

Each file is opened once: its digest, its size and time, and its pixels come from the same bytes.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cleft.config import ImagesConfig
from cleft.data.decoders import decode_gray
from cleft.data.images import prepare_image, read_bytes
from cleft.errors import DataError, ResourceError


class Source(NamedTuple):
    """A file as it was when it was read."""

    path: str
    size: int
    mtime_ns: int
    content: str
    """SHA-256 of its bytes."""


class Outcome(NamedTuple):
    """What became of one file."""

    path: Path
    source: Source | None
    """None if the file could not be read at all."""
    pixels: NDArray[np.uint8] | None
    """None if the file was refused, or its content is known already."""
    reason: str = ""
    """Why it was refused; empty if it was not."""
    message: str = ""


Prepare: TypeAlias = Callable[[Iterable[Path]], Iterator[Outcome]]


def prepare_file(path: Path, config: ImagesConfig, known: frozenset[str]) -> Outcome:
    """Reads and prepares one file; whatever is wrong with it becomes a reason.

    Args:
        path: The file.
        config: Decides the pixels.
        known: Contents whose pixels need not be made again.
    """
    source = None
    try:
        data, status = read_bytes(path)
        source = Source(str(path), status.st_size, status.st_mtime_ns, hashlib.sha256(data).hexdigest())
        if source.content in known:
            return Outcome(path, source, None)
        return Outcome(path, source, prepare_image(decode_gray(data, path), config))
    except DataError as error:
        return Outcome(path, source, None, error.reason, str(error))


@contextmanager
def preparing(config: ImagesConfig, known: frozenset[str], jobs: int) -> Generator[Prepare]:
    """Gives a function that prepares files and yields their outcomes in the order given.

    Args:
        config: Decides the pixels.
        known: Contents whose pixels need not be made again.
        jobs: Processes to share the work; 1 works here.

    Raises:
        ResourceError: If a process dies, as it does when memory runs out.
    """
    if jobs <= 1:
        yield partial(map, partial(prepare_file, config=config, known=known))
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_begin, initargs=(config, known))
    try:
        yield partial(pool.map, _prepare_file_in_child, chunksize=8)
    except BrokenProcessPool as error:
        raise ResourceError(
            f"one of {jobs} processes that decode images died, perhaps for want of memory; "
            "what was finished is kept: start again, with fewer jobs"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_in_child: list[tuple[ImagesConfig, frozenset[str]]] = []
"""What a decoding process was started with: the known contents are too many to travel with every file."""


def _begin(config: ImagesConfig, known: frozenset[str]) -> None:
    _in_child.append((config, known))


def _prepare_file_in_child(path: Path) -> Outcome:
    return prepare_file(path, *_in_child[0])
