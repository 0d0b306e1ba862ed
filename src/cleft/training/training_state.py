"""Training states on disk. At least one is intact at any time, whatever is killed, full or damaged.

A state is one file, `step-00000400.<digest>.ckpt`. It is written under a temporary name, synced, read back and compared
with its digest, and only then renamed; older states are removed after that.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from cleft.errors import CheckpointError, ResourceError
from cleft.files import sync_folder
from cleft.grammar import count
from cleft.version import __version__

log = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8,})\.([0-9a-f]{16})\.ckpt")
SCHEMA = 2
"""Version of the format. Version 1 lacks `since_best`, the number of validations since the best."""
_PASSING = {errno.EIO, errno.ESTALE}
"""Errors of disks and network file systems that may be temporary."""
_PAUSES = (0.5, 2.0)
"""Seconds between tries to write."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class State(NamedTuple):
    """An intact training state."""

    step: int
    """Optimiser steps done."""
    path: Path


class StateStore:
    """The training states of a run: the last two, and for each of them the best state it names.

    Args:
        folder: Folder of the states; created at the first save.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best_step: int | None = None
        """Step with the best weights so far, whose state is not removed. Set it before saving."""
        self.failure: str | None = None
        """Why the last save failed; None if it succeeded."""
        self._previous: tuple[int, int | None] | None = None  # the previous state, and the best it names

    def save(self, checkpoint: dict[str, Any], step: int) -> None:
        """Saves a state. A full or failing disk sets `failure` and does not raise: other ranks wait for this one.

        Args:
            checkpoint: Tensors, numbers and texts in dictionaries and lists.
            step: Optimiser steps done.
        """
        self.failure = None
        checkpoint["cleft"] = {"schema": SCHEMA, "version": __version__}
        try:
            self._write_patiently(checkpoint, f"step-{step:08d}")
            self._prune(step)
        except OSError as error:
            self.failure = self._explain(error, checkpoint)
        except (RuntimeError, ValueError, TypeError, MemoryError) as error:
            if "DataLoader worker" in str(error):  # torch raises it wherever the main thread is
                raise
            self.failure = f"{self.folder}: the training state of step {step} cannot be written: {error!r}"

    def load(self, path: str | Path) -> dict[str, Any]:
        """Loads a state into CPU memory, as data only: no object in it can run code.

        Raises:
            CheckpointError: If it is damaged.
        """
        file = Path(path)
        reason = _fault(file)
        if reason is not None:
            raise CheckpointError(f"{file}: {reason}; remove it to resume from the state before")
        return _current(torch.load(file, map_location="cpu", weights_only=True), file)

    def latest(self, *, repair: bool = True) -> State | None:
        """Returns the newest intact state, or None if there are no states.

        Args:
            repair: Whether to remove temporary files of a killed save and to rename damaged states to `.bad`.

        Raises:
            CheckpointError: If all states are damaged: training never starts over by itself.
        """
        if repair:
            self._sweep()
        faults: list[str] = []
        for step, path in sorted(self._files(), reverse=True):
            reason = _fault(path)
            if reason is None:
                if faults:
                    log.warning("%s; resuming from step %d", "; ".join(faults), step)
                return State(step, path)
            faults.append(f"{path.name} is damaged ({reason})")
            if repair:
                path.rename(path.with_suffix(".bad"))
        if faults:
            raise CheckpointError(
                f"{self.folder}: all training states are damaged: {'; '.join(faults)}; "
                f"copy one back, or remove the folder to train from the beginning"
            )
        return None

    def find(self, step: int) -> Path | None:
        """Returns the file of the intact state of a step, or None."""
        return next((path for number, path in self._files() if number == step and _fault(path) is None), None)

    def resumed(self, step: int, best_step: int | None) -> None:
        """Sets the state that training was resumed from, which is kept until there are two newer ones."""
        self._previous = (step, best_step)
        self.best_step = best_step

    def check_space(self, needed: int) -> None:
        """Checks that the disk can hold three states: two that are kept and one being written.

        Args:
            needed: Bytes of one state.

        Raises:
            ResourceError: If the disk of the run folder has less free space.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        present = sum(path.stat().st_size for _, path in self._files())
        free = shutil.disk_usage(self.folder).free
        if free + present < 3.2 * needed:
            raise ResourceError(
                f"{self.folder}: training states need {_size(3.2 * needed)}, {_size(free)} are free; "
                f"free some space, or choose another run folder"
            )

    def _write_patiently(self, checkpoint: dict[str, Any], stem: str) -> None:
        """Writes a state; retries after temporary errors."""
        for pause in (*_PAUSES, None):
            try:
                return self._write(checkpoint, stem)
            except OSError as error:
                if pause is None or error.errno not in _PASSING:
                    raise
                log.warning("%s: %s; retrying in %g s", self.folder, error.strerror or error, pause)
                time.sleep(pause)

    def _write(self, checkpoint: dict[str, Any], stem: str) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self.folder / f".{stem}.tmp"
        try:
            with open(draft, "wb", opener=_for_owner) as file:
                hashing = _Hashing(file)
                _dump(checkpoint, hashing)
                file.flush()
                os.fsync(file.fileno())
            digest = hashing.digest.hexdigest()
            if _digest(draft) != digest:
                raise OSError(errno.EIO, "the disk returned other bytes than were written", str(draft))
            os.replace(draft, self.folder / f"{stem}.{digest[:16]}.ckpt")
            sync_folder(self.folder)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    def _prune(self, step: int) -> None:
        kept = {step, self.best_step}
        if self._previous is not None:
            kept |= set(self._previous)
        self._previous = (step, self.best_step)
        for number, path in self._files():
            if number not in kept:
                path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        leftovers = list(self.folder.glob(".step-*.tmp"))
        for path in leftovers:
            path.unlink(missing_ok=True)
        if leftovers:
            states = count(len(leftovers), "incomplete training state")
            log.info("%s: removed %s of a killed run", self.folder, states)

    def _files(self) -> list[tuple[int, Path]]:
        if not self.folder.is_dir():
            return []
        found = [(_NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return [(int(match[1]), path) for match, path in found if match]

    def _explain(self, error: OSError, checkpoint: dict[str, Any]) -> str:
        needed, free = tensor_bytes(checkpoint), shutil.disk_usage(self.folder).free
        reason = "the disk is full" if error.errno in _FULL else f"cannot be written ({error.strerror or error})"
        return (
            f"{self.folder}: {reason}: a training state needs {_size(needed)}, {_size(free)} are free; "
            f"earlier states are unchanged"
        )


def _for_owner(path: str, flags: int) -> int:
    """Opens a file that only its owner may read."""
    return os.open(path, flags, 0o600)


def tensor_bytes(tree: Any) -> int:
    """Returns the bytes of all tensors in nested dictionaries, lists and tuples."""
    if isinstance(tree, Tensor):
        return tree.numel() * tree.element_size()
    if isinstance(tree, Mapping):
        return sum(tensor_bytes(value) for value in tree.values())
    if isinstance(tree, list | tuple):
        return sum(tensor_bytes(value) for value in tree)
    return 0


def _current(checkpoint: dict[str, Any], file: Path) -> dict[str, Any]:
    """Converts a loaded state to the current format.

    Raises:
        CheckpointError: If a newer version wrote it.
    """
    written = checkpoint.get("cleft", {"schema": 1, "version": "0.1.0"})
    if written["schema"] > SCHEMA:
        raise CheckpointError(
            f"{file}: written by cleft {written['version']} (schema {written['schema']}), this is cleft {__version__}, "
            f"which reads schemas up to {SCHEMA}; install the newer version to resume"
        )
    if written["schema"] < 2 and "Keeper" in checkpoint.get("callbacks", {}):
        checkpoint["callbacks"]["Keeper"].setdefault("since_best", 0)
    return checkpoint


class _Hashing:
    """A file for writing that computes the digest of its content and keeps the error that stopped it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.digest = hashlib.sha256()
        self.error: OSError | None = None
        self._file = file

    def write(self, data: bytes) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        return written

    def flush(self) -> None:
        self._file.flush()


def _dump(checkpoint: dict[str, Any], file: _Hashing) -> None:
    try:
        torch.save(checkpoint, file)  # pyright: ignore[reportArgumentType]
    except RuntimeError:
        # The archive writer replaces the error of the file by its own.
        if file.error is None:
            raise
        raise file.error from None


def _fault(path: Path) -> str | None:
    """Returns why a state cannot be used, or None."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return "its name is not step-<number>.<digest>.ckpt"
    if not path.is_file():
        return "missing"
    if path.stat().st_size == 0:
        return "empty"
    return None if _digest(path)[:16] == match[2] else "digest differs"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(count: float) -> str:
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
