"""TensorBoard's event files, without the name of the machine: a run folder may be mailed.

The usual writers put the host's name into the name of every file. These are a few lines: one record per logged step,
in TensorBoard's own format and with its own checksums.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

# Generated code, whose names no type checker knows.
_Event: Any = event_pb2.__dict__["Event"]
_SessionLog: Any = event_pb2.__dict__["SessionLog"]
_Summary: Any = summary_pb2.__dict__["Summary"]


class BoardLog(Logger):
    """Writes one file per process that logs; TensorBoard reads all files of a folder as one run.

    Args:
        folder: Made when the first quantity is logged.
        first_step: What older files hold of later steps is not shown: the run goes on from there.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        super().__init__()
        self._folder = folder
        self._first_step = first_step
        self._file: BinaryIO | None = None

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self._folder.name

    @property
    def version(self) -> str:
        """There is one folder in a run."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds the settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds one record with every quantity."""
        values = [_Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self._write(_Event(wall_time=time.time(), step=step or 0, summary=_Summary(value=values)))

    @rank_zero_only
    def save(self) -> None:
        """Makes every record so far survive a power cut."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Closes the file; whatever is logged later begins a new one."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, event: Any) -> None:
        if self._file is None:
            self._file = _new_file(self._folder)
            self._add(_Event(wall_time=time.time(), file_version="brain.Event:2"))
            # Records of this step and later ones, in whatever file, were made by a process that was stopped.
            self._add(
                _Event(
                    wall_time=time.time(),
                    step=self._first_step + 1,
                    session_log=_SessionLog(status=_SessionLog.START),
                )
            )
        self._add(event)

    def _add(self, event: Any) -> None:
        assert self._file is not None
        try:
            RecordWriter(self._file).write(event.SerializeToString())
            self._file.flush()
        except OSError:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None  # what follows half a record cannot be read: begin a new file, which replaces no step
            self._first_step = max(self._first_step, event.step)
            raise


def _new_file(folder: Path) -> BinaryIO:
    """A file that TensorBoard knows by its name, and sorts behind the older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        try:
            return (folder / f"events.out.tfevents.{int(time.time()):010d}.{number:04d}").open("xb")
        except FileExistsError:
            number += 1
