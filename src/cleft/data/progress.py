"""Progress bar with rate and remaining time on the error stream, if it is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


@contextmanager
def progress_bar(what: str, total: int, *, enabled: bool) -> Generator[Callable[[], None]]:
    """Yield a function to call once per item; it does nothing if disabled or the error stream is not a terminal."""
    if not (enabled and sys.stderr.isatty()):
        yield lambda: None
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


class _Rate(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        """Show the current rate, or nothing before there is one."""
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")
