"""Loggers of a run: a CSV table and TensorBoard event files, both local.

A resumed run removes the rows of later steps from its table, so that no step occurs twice.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from cleft.files import write_whole

# Generated code without types.
_Event: Any = event_pb2.__dict__["Event"]
_SessionLog: Any = event_pb2.__dict__["SessionLog"]
_Summary: Any = summary_pb2.__dict__["Summary"]


class _FileLogger(Logger):
    """A logger without the name, version and hyperparameters that Lightning expects."""

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the run folder holds the settings."""


class TensorBoardLog(_FileLogger):
    """TensorBoard event files, one per process that trained; TensorBoard shows all files of a folder as one run.

    Written with the record writer of TensorBoard. Its `SummaryWriter` puts the name of the machine into file names, and
    run folders may be shared; it also writes in a thread, so a killed process loses rows.

    Args:
        folder: Created when the first metrics are logged.
        first_step: Step the run is resumed from; TensorBoard hides what older files hold of later steps.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        super().__init__()
        self._folder = folder
        self._first_step = first_step
        self._file: BinaryIO | None = None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds one record with all metrics."""
        values = [_Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self._write(_Event(wall_time=time.time(), step=step or 0, summary=_Summary(value=values)))

    @rank_zero_only
    def save(self) -> None:
        """Flushes all records to disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Closes the file; later metrics start a new one."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, event: Any) -> None:
        if self._file is None:
            self._file = _new_file(self._folder)
            self._add(_Event(wall_time=time.time(), file_version="brain.Event:2"))
            # Hides records of this and later steps in older files, whose process was stopped.
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
            self._file = None  # nothing after half a record can be read: start a new file, which hides no step
            self._first_step = max(self._first_step, event.step)
            raise


def _new_file(folder: Path) -> BinaryIO:
    """Opens a new file whose name TensorBoard recognises and sorts after the older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        try:
            return (folder / f"events.out.tfevents.{int(time.time()):010d}.{number:04d}").open("xb")
        except FileExistsError:
            number += 1


class CsvLog(_FileLogger):
    """CSV table with a row per logged step and a column per metric; missing values are empty.

    Numbers are written with all digits.

    Args:
        path: The table.
        columns: Names of the metrics, in order.
        first_step: Step the run is resumed from; rows of later steps are removed.
    """

    def __init__(self, path: Path, columns: Sequence[str], first_step: int = 0) -> None:
        super().__init__()
        self._path = path
        self._columns = ["step", *columns]
        self._first_step = first_step
        self._ready = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds one row, or nothing if that fails.

        Raises:
            OSError: If the file cannot be written.
            ValueError: If a metric has no column.
        """
        self._prepare()
        line = io.StringIO()
        csv.DictWriter(line, self._columns, lineterminator="\n").writerow({"step": step, **metrics})
        rest = line.getvalue().encode()
        with self._path.open(
            "ab", buffering=0
        ) as file:  # a buffer would be written when the file is closed, after the error
            before = os.fstat(file.fileno()).st_size
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(before)
                raise

    @rank_zero_only
    def save(self) -> None:
        """Flushes all rows to disk."""
        self._prepare()
        with self._path.open("a", encoding="utf-8") as file:
            os.fsync(file.fileno())

    def _prepare(self) -> None:
        """Writes the header and the rows of earlier steps, once."""
        if self._ready:
            return
        rows: list[dict[str, str]] = []
        if self._path.is_file():
            with self._path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if _is_done(row, self._first_step)]
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._path, text.getvalue(), mode=None)
        self._ready = True


def build_loggers(folder: Path, columns: Sequence[str], first_step: int) -> list[Logger]:
    """Builds the CSV and TensorBoard loggers.

    Args:
        folder: `logs` of the run.
        columns: Names of the metrics.
        first_step: Steps that are done; rows of later steps are removed.
    """
    return [CsvLog(folder / "log.csv", columns, first_step), TensorBoardLog(folder / "tensorboard", first_step)]


def _is_done(row: Mapping[str, str | None], first_step: int) -> bool:
    step = row.get("step") or ""
    # A row without its last column was truncated when the process was killed.
    return step.isdigit() and int(step) <= first_step and None not in row.values()
