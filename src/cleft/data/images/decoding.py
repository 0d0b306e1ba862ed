"""From files to prepared squares, always in child processes: foreign bytes may end the process that decodes them.

Each file is opened once: its digest, its size and time, and its pixels come from the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from cleft.config import ImagesConfig
from cleft.data.images.children import Children, Death, Limits
from cleft.data.images.decoders import decode_gray, refusal
from cleft.data.images.images import prepare_image, read_bytes
from cleft.errors import DataError
from cleft.files import file_key

PASSING = frozenset({"crashed", "timeout", "memory"})
"""Reasons that another decoder or a larger machine may do away with."""


class Source(NamedTuple):
    """A file as it was when it was read."""

    key: str
    """Identity of the file, by `cleft.files.file_key`."""
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
    notes: tuple[str, ...] = ()
    """Keys of `cleft.data.images.headers.ODDITIES`: what was inferred or ignored in decoding it."""


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
        data, source = read_source(path)
        if source.content in known:
            return Outcome(path, source, None)
        notes: list[str] = []
        pixels = prepare_image(decode_gray(data, path, images=config, notes=notes), config)
        return Outcome(path, source, pixels, notes=tuple(notes))
    except MemoryError:
        return Outcome(path, source, None, "memory", str(refusal("memory", path, "memory ran out while preparing it")))
    except DataError as error:
        return Outcome(path, source, None, error.reason, str(error))


def read_source(path: Path) -> tuple[bytes, Source]:
    """Read a file; return its bytes, and its identity and digest.

    Raises:
        DataError: With the reasons of `read_bytes`.
    """
    data, status = read_bytes(path)
    return data, Source(file_key(path, status), hashlib.sha256(data).hexdigest())


@contextmanager
def preparing(
    config: ImagesConfig, known: frozenset[str], jobs: int, limits: Limits | None = None
) -> Generator[Prepare]:
    """Gives a function that prepares files and yields their outcomes in the order given.

    Args:
        config: Decides the pixels.
        known: Contents whose pixels need not be made again.
        jobs: Child processes that share the work; 0 means one. None of them is this process.
        limits: What one of these processes may use for an image.

    Raises:
        ResourceError: If processes cannot start or are killed, as happens when memory runs out.
    """
    work = partial(_prepare_file_in_child, config=config, known=known)
    with Children[str, Sequence[Any]](work, max(1, jobs), limits) as children:

        def prepare(paths: Iterable[Path]) -> Iterator[Outcome]:
            paths = list(paths)
            for path, result in zip(paths, children.map(map(str, paths)), strict=True):
                yield _refuse(path, result) if isinstance(result, Death) else Outcome(path, *result)

        yield prepare


def usable_cores() -> int:
    """Returns how many processors this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Linux alone knows the difference.
        return os.cpu_count() or 1


def _prepare_file_in_child(path: str, config: ImagesConfig, known: frozenset[str]) -> Sequence[Any]:
    """Return the fields of an outcome behind its path, which the parent has: a path is slow to send."""
    cv2.setNumThreads(0)  # Processes are the parallelism; threads below them would only contend.
    return prepare_file(Path(path), config, known)[1:]


def _refuse(path: Path, death: Death) -> Outcome:
    try:
        source = read_source(path)[1]
    except DataError as error:
        return Outcome(path, None, None, error.reason, str(error))
    return Outcome(path, source, None, death.reason, str(refusal(death.reason, path, death.sentence)))
