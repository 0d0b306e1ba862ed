"""Disposable processes: one that dies takes the item it was busy with, not the run.

Each child works on one item at a time, under a limit of memory and of its own processor time, so that neither a
stalled disk nor a busy machine counts as a hang. What dies is replaced, and its item gets one more try.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

from cleft.errors import ResourceError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Limits(NamedTuple):
    """What a child may use."""

    seconds: float = 30.0
    """Processor time for one item."""
    memory: int = 2 * 2**30
    """Bytes, beside what it holds before the first item."""


class Death(NamedTuple):
    """What became of an item that two children died of."""

    reason: str
    """`crashed` or `timeout`."""
    sentence: str


@dataclass(eq=False)
class _Child(Generic[Item]):
    process: SpawnProcess
    pipe: connection.Connection[Any, Any]
    tasks: deque[tuple[int, Item]] = field(default_factory=deque[tuple[int, Item]])
    """What it was given, first the one it works on."""
    ready: bool = False


class Children(Generic[Item, Result]):
    """Some processes that all do the same work; to be used as a context.

    Args:
        work: What is done with an item; may be pickled.
        jobs: Number of processes, at least 1.
        limits: What each may use.
    """

    _AHEAD = 2
    """Items a child is given at once, so that it need not wait for the next."""
    _WINDOW = 16
    """Results per child that may wait for the one before them."""

    def __init__(self, work: Callable[[Item], Result], jobs: int, limits: Limits | None = None) -> None:
        self._work = work
        self._limits = limits or Limits()
        self._jobs = jobs
        self._children: list[_Child[Item]] = []

    def __enter__(self) -> Children[Item, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.process.kill()
            child.pipe.close()
        for child in self._children:
            child.process.join()
        self._children.clear()

    def map(self, items: Iterable[Item]) -> Iterator[Result | Death]:
        """Yields what became of each item, in their order.

        Raises:
            ResourceError: If a child cannot start, or two in a row are killed from outside at the same item.
        """
        source = enumerate(items)
        once: deque[tuple[int, Item]] = deque()
        tried: set[int] = set()
        results: dict[int, Result | Death] = {}
        wanted = 0

        def next_task() -> tuple[int, Item] | None:
            return once.popleft() if once else next(source, None)

        given = -1
        while True:
            while wanted in results:
                yield results.pop(wanted)
                wanted += 1
            for child in self._staff():
                while len(child.tasks) < self._AHEAD and (once or given < wanted + self._WINDOW * self._jobs):
                    task = next_task()
                    if task is None:
                        break
                    given = max(given, task[0])
                    child.tasks.append(task)
                    with suppress(OSError):  # It has died; its silence says so below.
                        child.pipe.send(task[1])
            if not any(child.tasks for child in self._children):
                return
            for child in self._speaking():
                try:
                    answer = child.pipe.recv()
                except (EOFError, OSError):
                    once.extend(self._bury(child, tried, results))
                    continue
                if child.ready:
                    results[child.tasks.popleft()[0]] = answer
                child.ready = True

    def _staff(self) -> list[_Child[Item]]:
        while len(self._children) < self._jobs:
            self._children.append(self._born())
        return self._children

    def _born(self) -> _Child[Item]:
        spawn = multiprocessing.get_context("spawn")
        here, there = cast("tuple[connection.Connection[Any, Any], ...]", spawn.Pipe())
        process = spawn.Process(target=_serve, args=(there, self._work, self._limits), daemon=True)
        resource_tracker.ensure_running()  # It would undo the mask.
        # Ctrl-C reaches the whole group, but who started a child ends it; a blocked signal stays blocked in the child.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        there.close()
        return _Child(process, here)

    def _speaking(self) -> list[_Child[Item]]:
        heard = connection.wait([child.pipe for child in self._children])
        return [child for child in self._children if child.pipe in heard]

    def _bury(self, child: _Child[Item], tried: set[int], results: dict[int, Result | Death]) -> list[tuple[int, Item]]:
        """Takes a dead child out; returns the tasks it leaves, without one that has killed two."""
        child.pipe.close()
        child.process.join()
        self._children.remove(child)
        code = child.process.exitcode or 0
        if not child.ready:
            raise ResourceError(
                f"a process that decodes images could not begin ({_cause(code)}); try fewer jobs, and in a program of "
                "your own call this below `if __name__ == '__main__':`"
            )
        if child.tasks:
            number = child.tasks[0][0]
            if number in tried:
                if -code in _FROM_OUTSIDE:
                    raise ResourceError(
                        f"a process that decodes images was killed twice in a row ({_cause(code)}), perhaps for want "
                        "of memory; what was finished is kept: start again, with fewer jobs"
                    )
                results[number] = Death(*_reason(code, self._limits))
                child.tasks.popleft()
            tried.add(number)
        return list(child.tasks)


_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def _reason(code: int, limits: Limits) -> tuple[str, str]:
    if code == -signal.SIGPROF:
        return "timeout", f"not decoded after {limits.seconds:g} s of processor time, tried twice"
    return "crashed", f"the decoder died of it ({_cause(code)}), tried twice"


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _serve(pipe: connection.Connection[Any, Any], work: Callable[[Any], Any], limits: Limits) -> None:
    """What a child does until nobody is left to ask."""
    _limit(limits)
    with suppress(EOFError, OSError):
        pipe.send(None)
        while True:
            item = pipe.recv()
            # The default action of the signal ends a process even in the middle of native code.
            signal.setitimer(signal.ITIMER_PROF, limits.seconds)
            result = work(item)
            signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.send(result)


def _limit(limits: Limits) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    status = Path("/proc/self/statm")
    if status.is_file():  # Elsewhere nobody says what is in use already.
        used = int(status.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + limits.memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
