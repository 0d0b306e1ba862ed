"""Asked to stop: a signal sets a flag, and whoever loops looks at it where stopping is safe."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Self

import lightning as L
import torch
import torch.distributed as dist

from cleft.errors import CleftError, Interrupted, Terminated

_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


class StopFlag:
    """Remembers that SIGINT, SIGTERM or SIGHUP (the terminal was closed) arrived.

    As a context manager, it gives the handlers back at the end. The handler does nothing but remember; no file is
    written and no rank is called from inside a signal. A second signal ends the process at once: training states are
    whole at any moment.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that arrived, or None."""
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def install(self) -> None:
        """Takes over these signals; again, where a library has put itself in front. Other threads cannot: no effect."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._remember)

    def error(self, doing: str) -> CleftError:
        """The error that says what was stopped, with the exit code a scheduler expects (never 0)."""
        if self.number is not None and self.number != signal.SIGINT:
            return Terminated(f"stopped by {signal.Signals(self.number).name} {doing}")
        return Interrupted(f"stopped by Ctrl-C {doing}")

    def check(self, doing: str) -> None:
        """Raises that error if a signal has arrived."""
        if self.number is not None:
            raise self.error(doing)

    def agree(self, trainer: L.Trainer) -> bool:
        """Returns whether a signal has arrived at any rank, the same on all, so that they stop at the same step."""
        if trainer.world_size == 1:
            return self.number is not None
        share = torch.tensor(self.number or 0, device=trainer.strategy.root_device)
        dist.all_reduce(share, op=dist.ReduceOp.MAX)
        agreed = int(share)
        if agreed:
            self.number = agreed  # otherwise a signal of this very moment, of which the others do not know yet, stays
        return bool(agreed)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            os._exit(128 + number)
        self.number = number
