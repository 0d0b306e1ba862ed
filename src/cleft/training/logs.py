"""What a run says while it learns: a table on disk, TensorBoard's files, a bar on the terminal. Nothing is sent.

A resumed run cuts its table back to the step it goes on from, so that no step stands in it twice.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from cleft.files import write_whole
from cleft.training.board import BoardLog


class CsvLog(Logger):
    """One line per logged step, one column per quantity; what was not measured is empty.

    Numbers are written so that reading them back gives the same bits.

    Args:
        path: The table.
        columns: Names of the quantities, in order.
        first_step: Lines of later steps are cut off: the run goes on from there.
    """

    def __init__(self, path: Path, columns: Sequence[str], first_step: int = 0) -> None:
        super().__init__()
        self._path = path
        self._columns = ["step", *columns]
        self._first_step = first_step
        self._ready = False

    @property
    def name(self) -> str:
        """Name of the table."""
        return self._path.stem

    @property
    def version(self) -> str:
        """There is one table in a run."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds the settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds one line, or none where that fails.

        Raises:
            OSError: If the file cannot be written.
            ValueError: If a quantity has no column.
        """
        self._prepare()
        line = io.StringIO()
        csv.DictWriter(line, self._columns, lineterminator="\n").writerow({"step": step, **metrics})
        rest = line.getvalue().encode()
        with self._path.open("ab", buffering=0) as file:  # a buffer would be written after all when it is closed
            before = os.fstat(file.fileno()).st_size
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(before)
                raise

    @rank_zero_only
    def save(self) -> None:
        """Makes every line so far survive a power cut."""
        self._prepare()
        with self._path.open("a", encoding="utf-8") as file:
            os.fsync(file.fileno())

    def _prepare(self) -> None:
        """Writes the head, and behind it the lines of the steps that are done."""
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
    """Builds the table and TensorBoard's writer, both in `folder`.

    Args:
        folder: `logs` of the run.
        columns: Quantities that will be logged.
        first_step: Steps that are done; what was logged of later ones is dropped.
    """
    return [CsvLog(folder / "log.csv", columns, first_step), BoardLog(folder / "tensorboard", first_step)]


class ProgressBar(Callback):
    """Steps, rate, time left and the last loss on the terminal; silent where nobody watches.

    Args:
        title: Word in front of the bar.
        steps: Steps of the whole run.
        console: Where to draw; by default the terminal's error channel.
    """

    def __init__(self, title: str, steps: int, console: Console | None = None) -> None:
        self._title = title
        self._steps = steps
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws the bar where the run goes on."""
        if not (trainer.is_global_zero and self._console.is_terminal):
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
        )
        self._bar = Progress(*columns, console=self._console)
        self._bar.add_task(self._title, total=self._steps, completed=trainer.global_step, loss="")
        self._bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves it on; reading the loss waits for the device, so only where it was logged anyway."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step)

    def show_loss(self, text: str) -> None:
        """Shows the last loss behind the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], loss=text)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the finished bar standing."""
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Gives the terminal back before the error is printed."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Rate(ProgressColumn):
    """Steps per second, or seconds per step where that reads better."""

    def render(self, task: Task) -> Text:
        if not task.speed:
            return Text("")
        return Text(f"{task.speed:.1f}/s" if task.speed >= 1 else f"{1 / task.speed:.1f} s each")


def _is_done(row: Mapping[str, str | None], first_step: int) -> bool:
    step = row.get("step") or ""
    # A line without its last column was cut by a kill.
    return step.isdigit() and int(step) <= first_step and None not in row.values()
