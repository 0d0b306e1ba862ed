"""Batches for training and evaluation, in an order that is a function of the seed and the step.

The training sampler yields (epoch, row) pairs, and a view depends on its pair only. So the number and speed of workers
change no batch, and resuming at a step needs no earlier data. Shapes: `N` images of a split, `B` images of a batch, `C`
findings, `S` side of a view.
"""

from __future__ import annotations

import re
import shutil
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter  # pyright: ignore[reportPrivateUsage]

from cleft.config import ImagesConfig, Settings
from cleft.data.images.cache import PreparedImages
from cleft.data.images.cache_files import PixelRows
from cleft.data.images.decode_pool import prepare_pool
from cleft.data.images.preprocess import augment, centre_crop
from cleft.data.sampling import distinct_order, epoch_order, group_rows
from cleft.data.text.texts import Texts
from cleft.errors import CleftError, ConfigError, DataError, ResourceError
from cleft.files import as_path
from cleft.grammar import count, share, verb
from cleft.types import Batch, Record


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Yields a list of (epoch, row) per step: the share of this rank of a global batch.

    Every epoch visits each row at most once in a new order and drops its last incomplete batch; `dropped` is the number
    of these rows. A batch never spans two epochs. The global batch is drawn first and then divided, so it does not
    depend on the number of ranks.

    Args:
        n: Rows of the split.
        batch_size: Rows of a step over all ranks.
        steps: Steps of the complete run.
        seed: Seed of the run.
        first_step: Steps that were done before; skipping them costs nothing.
        rank: Share of each batch, from 0.
        world_size: Number of shares, all of one size.
        groups: Group of each row, `[n]`, if a batch should contain as few rows of one group as possible.

    Raises:
        ConfigError: If there are fewer rows than a batch needs, or a batch cannot be divided evenly.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        *,
        steps: int,
        seed: int,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        groups: NDArray[np.int64] | None = None,
    ) -> None:
        if n < batch_size and n < 2:
            left = "there is only one training image" if n else "there are no training images"
            raise ConfigError(f"a batch of {batch_size} cannot be filled: {left}; add images, or exclude fewer")
        if n < batch_size:
            raise ConfigError(
                f"{n} training images do not fill one batch of {batch_size}; "
                f"lower train.batch_size (in stage two context.batch_size) to {n} or fewer, or add images"
            )
        if batch_size % world_size:
            raise ConfigError(
                f"a batch of {batch_size} cannot be divided evenly by {world_size} devices; "
                f"the nearest size is {max(1, batch_size // world_size) * world_size}"
            )
        self.n = n
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.first_step = first_step
        self.share = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self.dropped = n % batch_size
        """Rows that each epoch drops, different ones each time."""
        self._groups = groups

    def __len__(self) -> int:
        return max(0, self.steps - self.first_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = self.n // self.batch_size
        current, order = -1, np.empty(0, np.int64)
        for step in range(self.first_step, self.steps):
            epoch, index = divmod(step, per_epoch)
            if epoch != current:
                current, order = epoch, self._order(epoch)
            rows = order[index * self.batch_size : (index + 1) * self.batch_size][self.share]
            yield [(epoch, row) for row in rows.tolist()]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self._groups is None:
            return epoch_order(self.n, self.seed, epoch)
        return distinct_order(self._groups, self.batch_size, self.seed, epoch)


class Views(Dataset[Batch]):
    """Complete batches of augmented views, or of centre crops if there is no seed.

    Contains arrays and distinct strings, no records, so that it is sent to a worker quickly.
    """

    def __init__(
        self,
        records: Sequence[Record],
        prepared: PreparedImages,
        findings: Sequence[str],
        config: ImagesConfig,
        seed: int | None,
        texts: Texts | None = None,
    ) -> None:
        self._pixels: PixelRows = prepared.rows
        self._numbers = _numbers(records, prepared)
        self._captions = _captions(records) if texts is None else []
        self._texts = texts
        self._labels = label_table(records, findings)
        self._config = config
        self._seed = seed

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, position: tuple[int, int]) -> Batch:
        """Return a batch of one."""
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[tuple[int, int]]) -> Batch:
        """Return the batch of these (epoch, row) pairs; a loader calls it once per batch."""
        rows = [row for _, row in positions]
        images = np.stack([self._view(epoch, row) for epoch, row in positions])
        batch = Batch(
            images=torch.from_numpy(images[:, None]),
            captions=[self._captions[row] for row in rows] if self._texts is None else [],
            labels=torch.from_numpy(self._labels[rows]),
            rows=torch.tensor(rows, dtype=torch.int64),
        )
        return batch if self._texts is None else _with_texts(batch, self._texts, positions)

    def _view(self, epoch: int, row: int) -> NDArray[np.uint8]:
        try:
            pixels = self._pixels[int(self._numbers[row])]
        except DataError as error:
            # No substitute and no shorter batch: both would silently change the run.
            raise DataError(f"image {row} of the split: {error}", reason=error.reason) from error
        if self._seed is None:
            return centre_crop(pixels, self._config.size)
        return augment(pixels, self._config.augment, self._config.size, seed=(self._seed, epoch, row))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The batches that `train_loader` returns."""

    batch_size: int | None = None
    """Images of a step over all ranks; by default `train.batch_size`."""
    steps: int | None = None
    """Steps of the complete run; by default `optim.steps`."""
    first_step: int = 0
    """Steps that were done before."""
    rank: int = 0
    """Share of each batch to return, from 0."""
    world_size: int = 1
    """Number of shares. Nothing else may shard the loader again."""


_COMPLETE = Schedule()


def train_loader(
    records: Sequence[Record],
    prepared: PreparedImages,
    findings: Sequence[str],
    settings: Settings,
    schedule: Schedule = _COMPLETE,
    *,
    augmented: bool = True,
    texts: Texts | None = None,
) -> Batches:
    """Return all remaining batches of a run, one per step.

    Args:
        records: Training split, each with a caption; without those that `prepared` rejected.
        prepared: Their pixels.
        findings: Columns of the labels.
        settings: Seed, images and workers.
        schedule: Batch size, steps and share of this rank.
        augmented: Whether views are random; otherwise images are cropped at the centre, as for evaluation.
        texts: Texts paired with the images, instead of captions.

    Raises:
        ConfigError: If there are fewer images than a batch needs, or a batch cannot be divided evenly.
        DataError: If a record has no caption or no pixels.
    """
    size = schedule.batch_size or settings.train.batch_size
    sampler = StepSampler(
        len(records),
        size,
        steps=schedule.steps or settings.optim.steps,
        seed=settings.seed,
        first_step=schedule.first_step,
        rank=schedule.rank,
        world_size=schedule.world_size,
        groups=group_rows(records, settings.train.unique_in_batch),
    )
    views = Views(records, prepared, findings, settings.images, settings.seed if augmented else None, texts)
    return Batches(
        views,
        sampler,
        [record.id for record in records],
        settings,
        rows=len(range(size)[sampler.share]),
        persistent=False,
    )


def eval_loader(
    records: Sequence[Record],
    prepared: PreparedImages,
    findings: Sequence[str],
    settings: Settings,
    *,
    batch_size: int,
    texts: Texts | None = None,
) -> Batches:
    """Return every image once, in the order of the records, cropped at the centre; the last batch may be smaller.

    Args:
        records: The images, each with a caption.
        prepared: Their pixels.
        findings: Columns of the labels.
        settings: Images and workers.
        batch_size: Images of a batch.
        texts: Texts paired with the images, instead of captions.

    Raises:
        DataError: If a record has no caption or no pixels.
    """
    views = Views(records, prepared, findings, settings.images, None, texts)
    positions = [(0, row) for row in range(len(records))]
    batches = [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
    return Batches(
        views, batches, [record.id for record in records], settings, rows=min(batch_size, len(records)), persistent=True
    )


def label_table(records: Sequence[Record], findings: Sequence[str]) -> NDArray[np.float32]:
    """Return labels as an array, `[N, C]`: 1, 0, -1, or NaN if the finding is not mentioned."""
    table = [[record.labels.get(finding, np.nan) for finding in findings] for record in records]
    return np.array(table, dtype=np.float32).reshape(len(records), len(findings))


def _numbers(records: Sequence[Record], prepared: PreparedImages) -> NDArray[np.int64]:
    absent = [record.id for record in records if record.id not in prepared]
    if absent:
        raise DataError(
            f"{share(len(absent), len(records), 'record')} {verb(len(absent), 'has', 'have')} no prepared "
            f"pixels, the first is {absent[0]}; prepare these records, and drop those that were rejected"
        )
    return np.array([prepared.numbers[record.id] for record in records], dtype=np.int64)


def _captions(records: Sequence[Record]) -> list[str]:
    known: dict[str, str] = {}
    captions: list[str] = []
    for record in records:
        if record.caption is None:
            raise DataError(f"{record.id} has no caption; call add_captions first")
        captions.append(known.setdefault(record.caption, record.caption))
    return captions


class Batches:
    """Batches of a loader; its errors name the images that were being read.

    Args:
        views: Makes a batch from positions.
        batches: Positions of each batch, (epoch, row).
        names: Id of each row.
        settings: Number and timeout of workers, and the size of an image.
        rows: Images of the largest batch.
        persistent: Whether workers are kept for the next pass.
    """

    def __init__(
        self, views: Views, batches: Any, names: Sequence[str], settings: Settings, *, rows: int, persistent: bool
    ) -> None:
        config = settings.data
        self._bytes = rows * settings.images.size**2
        self._handed_out = _InFlight(batches)
        self._names = names
        self.loader = DataLoader(
            views,
            batch_sampler=self._handed_out,
            num_workers=config.workers,
            collate_fn=_unchanged,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_one_thread if config.workers else None,
            persistent_workers=persistent and config.workers > 0,
            timeout=config.timeout if config.workers else 0,
        )
        _loaders.add(self)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        self._handed_out.waiting.clear()
        if self.loader.num_workers:
            _check_shared_memory(self._bytes, self.loader.num_workers)
            _let_torch_notice_ended_workers()
        batches = iter(self.loader)
        try:
            for batch in batches:
                self._handed_out.waiting.popleft()
                yield batch
        except (RuntimeError, CleftError, EOFError, OSError) as error:
            explained = explain_worker_error(error) or _explain_lost_batch(error, batches)
            if isinstance(batches, _MultiProcessingDataLoaderIter):
                batches._shutdown_workers()  # pyright: ignore  otherwise they delay garbage collection
            if explained is None:
                raise
            raise explained from error
        self._handed_out.waiting.clear()

    def in_flight(self) -> list[str]:
        """Ids of the images that were sent to workers and not returned."""
        return [self._names[row] for batch in self._handed_out.waiting for _, row in batch]


class _InFlight:
    """Iterates over the positions of batches and keeps those whose batch has not arrived."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches
        self.waiting: deque[list[tuple[int, int]]] = deque()

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self._batches:
            self.waiting.append(batch)
            yield batch


_loaders: WeakSet[Batches] = WeakSet()
"""Every loader: torch reports the end of a worker in any code of the main thread."""


def _let_torch_notice_ended_workers() -> None:
    """Lets torch install its SIGCHLD handler again if it was removed, as Lightning does at the end of `fit`.

    Without it, the end of a worker is only noticed after `data.timeout`.
    """
    if hasattr(signal, "SIGCHLD") and not callable(signal.getsignal(signal.SIGCHLD)):
        signal_handling._SIGCHLD_handler_set = False  # pyright: ignore[reportPrivateUsage]


def _check_shared_memory(size: int, workers: int) -> None:
    """Raise an error if there is too little shared memory for the workers: torch would wait until `data.timeout`.

    Args:
        size: Bytes of the images of a batch.
        workers: Number of workers, which prefetch two batches each.

    Raises:
        ResourceError: If there is too little.
    """
    if not _SHARED_MEMORY.is_dir():
        return
    needed, free = 2 * workers * size, shutil.disk_usage(_SHARED_MEMORY).free
    if free < needed:
        raise ResourceError(
            f"{_SHARED_MEMORY}: batches of {count(workers, 'loader worker')} need {needed / 2**20:.1f} MiB of shared "
            f"memory, {free / 2**20:.1f} MiB are free; set fewer data.workers (0 needs none), or raise it (docker run "
            f"--shm-size)"
        )


_SHARED_MEMORY = Path("/dev/shm")


def explain_worker_error(error: BaseException) -> CleftError | None:
    """Return an error of torch's loader as one with a clear message, or None if it has another cause."""
    text = str(error)
    if "DataLoader" not in text:
        return None
    waited = re.search(r"timed out after ([\d.]+)", text)
    if waited:
        return DataError(
            f"no image came from a loader worker for {float(waited[1]):g} s (data.timeout); being read: "
            f"{_in_flight()}. Check the disk, or raise data.timeout",
            reason="timeout",
        )
    ended = re.search(r"killed by signal: ([^.]+)|exited unexpectedly", text)
    if not ended:
        return None
    how = f"was killed by a signal ({ended[1].strip()})" if ended[1] else "ended unexpectedly"
    return _worker_error(how, text)


def _explain_lost_batch(error: BaseException, batches: Any) -> CleftError | None:
    """Return the error behind a connection that broke while a batch was received, or None.

    torch fetches the memory of a batch from its worker; the end of a worker at that moment appears as an error of the
    connection, before torch reports the worker.
    """
    if not isinstance(error, EOFError | OSError) or not isinstance(batches, _MultiProcessingDataLoaderIter):
        return None
    workers: list[Any] = batches._workers  # pyright: ignore
    try:
        for worker in workers:
            worker.join(_SECONDS_TO_END)
    except RuntimeError as reported:  # torch reports ended workers in any code of the main thread
        return explain_worker_error(reported)
    for code in (worker.exitcode for worker in workers):
        if code:
            how = f"was killed by a signal ({signal.Signals(-code).name})" if code < 0 else "ended unexpectedly"
            return _worker_error(how, "")
    return None


def _worker_error(how: str, text: str) -> ResourceError:
    memory = ", more shared memory (/dev/shm)" if "Bus error" in text or "shared memory" in text else ""
    return ResourceError(
        f"a loader worker {how}; being read: {_in_flight()}. Often memory ran out: set fewer data.workers or smaller "
        f"images.size{memory}; the same command resumes"
    )


def _in_flight() -> str:
    named = list(dict.fromkeys(name for loader in _loaders for name in loader.in_flight()))
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return f"{', '.join(named[:_NAMED])}{more}" or "unknown"


_NAMED = 8
_SECONDS_TO_END = 1.0
"""A worker whose connection broke has ended or is about to."""


def _with_texts(batch: Batch, texts: Texts, positions: Sequence[tuple[int, int]]) -> Batch:
    samples = [texts.sample(epoch, row) for epoch, row in positions]
    labels = [each.labels for each in samples if each.labels is not None]
    reworded = [each.reworded for each in samples if each.reworded is not None]
    return batch._replace(
        captions=[each.text for each in samples],
        text_labels=torch.from_numpy(np.stack(labels)) if labels else None,
        reworded=reworded or None,
    )


def _unchanged(batch: Any) -> Batch:
    return batch  # `Views` returns complete batches.


def _one_thread(worker: int) -> None:
    # Workers are parallel already; threads of OpenCV would only compete.
    cv2.setNumThreads(0)


def load_image(path: str | Path, config: ImagesConfig) -> Tensor:
    """Read one image as in evaluation: decoded, prepared, cropped at the centre.

    A child process decodes it, so that a damaged file cannot crash this process; it is kept for the next call.

    Args:
        path: A PNG, JPEG or DICOM file; the format is detected from its content.
        config: The `images` settings of the run whose model is used.

    Returns:
        A batch of one gray image, `[1, 1, H, W]` uint8, for `encode_image`.

    Raises:
        DataError: If the file is not a readable image, or crashes the decoder; see `reason`.
        ResourceError: If the child process cannot start.
    """
    import torch

    with prepare_pool(config, frozenset(), 1) as prepare:
        (outcome,) = prepare([as_path(path, "path")])
    if outcome.pixels is None:
        raise DataError(outcome.message, reason=outcome.reason)
    return torch.from_numpy(centre_crop(outcome.pixels, config.size).copy())[None, None]
