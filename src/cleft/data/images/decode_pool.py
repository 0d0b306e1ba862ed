"""Disposable child processes: one that ends in the middle of an item costs that item, not the run.

A child works on one item at a time, under a limit of memory and of its own processor time, so that neither a stalled
disk nor a busy machine counts as a hang. Short items travel in batches, because a message costs as much as a tenth of
a small image, and arrays of results through shared memory, where the system has it without a name (Linux). A child that
ends is replaced, and the items it had are tried again one by one, each twice. One idle child is kept for the next
caller, because starting one takes some 0.3 s; it ends with this process.

Where there is no fork (Windows), children are spawned by `multiprocessing`, which imports the program that started them
and needs `if __name__ == "__main__":` there; memory is not limited, and the deadline is one of elapsed time.
"""

from __future__ import annotations

import atexit
import math
import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from multiprocessing import connection, reduction, spawn
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from cleft.config import ImagesConfig
from cleft.data.images.decode import decode_gray
from cleft.data.images.preprocess import prepare_image
from cleft.data.images.source import Source, read_source, refusal
from cleft.errors import DataError, ResourceError

Item = TypeVar("Item")
Result = TypeVar("Result")
Pipe: TypeAlias = "connection.Connection[Any, Any]"


class Limits(NamedTuple):
    """What a child may use."""

    seconds: float = 30.0
    """Processor time for one item."""
    memory: int = 2 * 2**30
    """Bytes, beside what it holds before the first item."""
    elapsed: float = 600.0
    """Seconds after which an item counts as hanging although it uses no processor time."""


class Death(NamedTuple):
    """Why an item has no result."""

    reason: str
    """`crashed`, `timeout` or `memory`."""
    sentence: str


class _Process:
    """A started child: its end of the pipe, and its exit code once it has ended."""

    def __init__(self) -> None:
        spawned = multiprocessing.get_context("spawn")
        here, there = cast("tuple[Pipe, Pipe]", spawned.Pipe())
        self.pipe = here
        self.memory: mmap.mmap | None = None
        """Where the child puts the arrays of its results."""
        self._running: subprocess.Popen[bytes] | SpawnProcess
        # Ctrl-C reaches the whole group, but who started a child ends it; a blocked signal stays blocked in the child.
        with _blocked_interrupt():
            if hasattr(os, "fork"):
                # Not by multiprocessing: it would import the caller's program, and refuse to start in its own workers.
                paths = [path for path in sys.path if type(path) is str]
                handles = [there.fileno(), *_shared_file()]
                program = f"import sys; sys.path[:] = {paths!r}; import {__name__} as c; c.serve_on(*{handles})"
                self._running = subprocess.Popen(
                    [os.fsdecode(spawn.get_executable()), "-P", "-c", program],
                    stdin=subprocess.DEVNULL,
                    pass_fds=handles,
                )
                for handle in handles[1:]:
                    self.memory = mmap.mmap(handle, 2 * _HALF)
                    os.close(handle)
            else:
                self._running = spawned.Process(target=_serve, args=(there,), daemon=True)
                self._running.start()
        there.close()

    def end(self) -> int:
        """Kill the child if it runs still; return its exit code, negative for a signal."""
        running = self._running
        self.pipe.close()
        running.kill()
        if isinstance(running, subprocess.Popen):
            return running.wait()
        running.join()
        return running.exitcode or 0

    def wait(self) -> int:
        """Return the exit code of a child that has closed its pipe."""
        running = self._running
        with suppress(subprocess.TimeoutExpired):
            if isinstance(running, subprocess.Popen):
                running.wait(_GRACE)
            else:
                running.join(_GRACE)
        return self.end()

    def disown(self) -> None:
        """In a fork of the process that started the child: close the copy of its pipe."""
        self.pipe.close()
        if isinstance(self._running, subprocess.Popen):
            self._running.returncode = 0


class _Assignment(NamedTuple):
    """What a child is to do with the items that follow."""

    work: Callable[[Any], Any]
    limits: Limits
    folder: str
    """Working folder, which may have changed since the child started; empty if it is gone."""


@dataclass(eq=False)
class _Child(Generic[Item]):
    process: _Process
    batches: deque[list[tuple[int, Item]]] = field(default_factory=deque[list[tuple[int, Item]]])
    """What it was given, first the items it works on."""
    ready: bool = False
    """Whether it has taken in what is done with an item."""
    served: bool = False
    """Whether it has worked for another caller before."""
    since: float = field(default_factory=time.monotonic)
    """When it began its first batch."""
    stalled: bool = False

    @property
    def pipe(self) -> Pipe:
        return self.process.pipe


class Children(Generic[Item, Result]):
    """Some processes that all do the same work; to be used as a context.

    Args:
        work: What is done with an item; may be pickled.
        jobs: Number of processes, at least 1.
        limits: What each may use.
    """

    _AHEAD = 2
    """Batches a child is given at once, so that it need not wait for the next."""
    _BATCH = 32
    """Most items of a batch."""
    _BATCH_SECONDS = 0.1
    """Time a batch should take."""
    _WINDOW = 96
    """Results per child that may wait for the one before them."""

    def __init__(self, work: Callable[[Item], Result], jobs: int, limits: Limits | None = None) -> None:
        self._work = work
        self._limits = limits or Limits()
        self._jobs = jobs
        self._children: list[_Child[Item]] = []
        self._pace = self._BATCH_SECONDS
        """Seconds that the last items took, each."""

    def __enter__(self) -> Children[Item, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            if child.batches or not child.ready or not _keep(child.process):
                _end(child.process)
        self._children.clear()

    def map(self, items: Iterable[Item]) -> Iterator[Result | Death]:
        """Yields what became of each item, in their order.

        Raises:
            ResourceError: If a child cannot start, or two in a row are killed from outside at the same item.
        """
        source = enumerate(items)
        again: deque[tuple[int, Item]] = deque()
        tried: set[int] = set()
        results: dict[int, Result | Death] = {}
        wanted, given = 0, -1

        def next_batch() -> list[tuple[int, Item]]:
            if again:
                return [again.popleft()]
            if given >= wanted + self._WINDOW * self._jobs:
                return []
            return list(islice(source, max(1, min(self._BATCH, int(self._BATCH_SECONDS / self._pace)))))

        while True:
            while wanted in results:
                yield results.pop(wanted)
                wanted += 1
            for number in range(self._jobs):
                while number >= len(self._children) or len(self._children[number].batches) < self._AHEAD:
                    batch = next_batch()
                    if not batch:
                        break
                    child = self._children[number] if number < len(self._children) else self._start()
                    given = max(given, batch[-1][0])
                    if not child.batches:
                        child.since = time.monotonic()
                    child.batches.append(batch)
                    with suppress(OSError):  # It has ended; reading from it says so below.
                        child.pipe.send([item for _, item in batch])
            if not any(child.batches for child in self._children):
                return
            for child in self._answering():
                if child.stalled or not self._receive(child, results):
                    again.extend(self._bury(child, tried, results))

    def _start(self) -> _Child[Item]:
        process = _take()
        child = _Child[Item](process or _begin(), served=process is not None)
        self._children.append(child)
        with suppress(OSError):  # As above.
            child.pipe.send(_Assignment(self._work, self._limits, _folder()))
        return child

    def _receive(self, child: _Child[Item], results: dict[int, Result | Death]) -> bool:
        """Take the answer of a child; return whether there was one."""
        _receiving.memory = child.process.memory
        try:
            answer = child.pipe.recv()
        except (EOFError, OSError):
            return False
        if child.ready:
            seconds, found = cast("tuple[float, list[Result | Death]]", answer)
            batch = child.batches.popleft()
            results.update({number: result for (number, _), result in zip(batch, found, strict=True)})
            self._pace = max(seconds / len(batch), 1e-6)
        child.ready = True
        child.since = time.monotonic()
        return True

    def _answering(self) -> list[_Child[Item]]:
        """Wait for children that have answered, have ended, or have hung and are ended here."""
        busy = [child for child in self._children if child.batches]
        latest = min(map(self._latest, busy))
        heard = connection.wait([child.pipe for child in self._children], max(0.0, latest - time.monotonic()))
        if heard:
            return [child for child in self._children if child.pipe in heard]
        hung = [child for child in busy if time.monotonic() >= self._latest(child)]
        for child in hung:
            child.stalled = True
        return hung

    def _latest(self, child: _Child[Item]) -> float:
        """Return when a child counts as hanging."""
        if not child.ready:
            return child.since + _STARTING
        return child.since + (self._limits.elapsed if hasattr(signal, "setitimer") else 4 * self._limits.seconds)

    def _bury(self, child: _Child[Item], tried: set[int], results: dict[int, Result | Death]) -> list[tuple[int, Item]]:
        """Remove a child that has ended; return the items it leaves, without one that has ended two by itself."""
        code = _end(child.process, own=not child.stalled)
        self._children.remove(child)
        if not child.ready and not child.served:
            raise ResourceError(
                f"a process that decodes images could not begin ({_cause(code)}); try fewer jobs, and in a program of "
                "your own call this below `if __name__ == '__main__':`"
            )
        left = [task for batch in child.batches for task in batch]
        if child.ready and child.batches and len(child.batches[0]) == 1:
            number = left[0][0]
            if number in tried:
                if -code in _FROM_OUTSIDE and not child.stalled and not (self._jobs == 1 and code == _KILLED):
                    raise ResourceError(
                        f"a process that decodes images was killed twice in a row ({_cause(code)}), perhaps for want "
                        "of memory; what was finished is kept: start again, with fewer jobs"
                    )
                results[number] = Death(*_reason(code, self._limits, stalled=child.stalled))
                del left[0]
            tried.add(number)
        return left


def serve_on(handle: int, shared: int | None = None) -> None:
    """Work for a parent, in a child that was started with one end of a pipe and perhaps a file of shared memory."""
    if shared is not None:
        reduction.register(np.ndarray, _Sender(mmap.mmap(shared, 2 * _HALF)))
        os.close(shared)
    _serve(connection.Connection(handle))


class _Sender:
    """Puts arrays into shared memory, and a note of their place into the message.

    The memory has two halves that batches use in turn: the third batch arrives after the answer to the first was read.
    """

    batches = 0

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._batch, self._used = 0, 0

    def __call__(self, array: NDArray[Any]) -> tuple[Any, ...]:
        if self._batch != _Sender.batches:
            self._batch, self._used = _Sender.batches, 0
        if array.dtype.hasobject or array.nbytes > _HALF - self._used or not array.flags.c_contiguous:
            return cast("tuple[Any, ...]", array.__reduce_ex__(2))
        start = self._batch % 2 * _HALF + self._used
        np.frombuffer(self._memory, np.uint8, array.nbytes, start)[:] = array.reshape(-1).view(np.uint8)
        self._used += array.nbytes
        return _received, (start, array.shape, array.dtype.str)


def _received(start: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    count = math.prod(shape)
    return np.frombuffer(_receiving.memory, dtype, count, start).reshape(shape).copy()


def _shared_file() -> list[int]:
    """Return a handle of new shared memory; none where it would need a name, by which others could open it."""
    if not hasattr(os, "memfd_create"):
        return []
    handle = os.memfd_create("cleft")
    os.truncate(handle, 2 * _HALF)
    return [handle]


_receiving = threading.local()
_HALF = 2**24
"""Bytes; the system provides those that are used."""


_GRACE = 5.0
"""Seconds to wait for the end of a process that has closed its pipe."""
_STARTING = 600.0
"""Seconds that a child may take to begin, on a busy machine."""
_KILLED = -int(getattr(signal, "SIGKILL", 9))
_OUT_OF_TIME = -int(getattr(signal, "SIGPROF", 27))
_FROM_OUTSIDE = {int(getattr(signal, n)) for n in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, n)}

_lock = threading.Lock()
_alive: set[_Process] = set()
_idle: list[_Process] = []


def _begin() -> _Process:
    try:
        process = _Process()
    except OSError as error:
        raise ResourceError(
            f"a process that decodes images cannot be started ({error.strerror or error}); free memory, end other "
            "processes, or raise the limits of processes and open files"
        ) from error
    with _lock:
        _alive.add(process)
    return process


def _end(process: _Process, *, own: bool = False) -> int:
    """End a child, or wait for the end it came to by its `own`; return its exit code."""
    with _lock:
        _alive.discard(process)
    return process.wait() if own else process.end()


def _take() -> _Process | None:
    with _lock:
        return _idle.pop() if _idle else None


def _keep(process: _Process) -> bool:
    with _lock:
        if _idle:
            return False
        _idle.append(process)
        return True


def _end_all() -> None:
    for process in list(_alive):
        _end(process)
    _idle.clear()


def _disown_all() -> None:
    """In a fork: the children belong to the process that started them."""
    global _lock
    _lock = threading.Lock()
    for process in _alive:
        process.disown()
    _alive.clear()
    _idle.clear()


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)


def _folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


@contextmanager
def _blocked_interrupt() -> Generator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _reason(code: int, limits: Limits, *, stalled: bool) -> tuple[str, str]:
    if stalled:
        return "timeout", "not decoded in time, and without using the processor, tried twice"
    if code == _OUT_OF_TIME:
        return "timeout", f"not decoded after {limits.seconds:g} s of processor time, tried twice"
    if code == _KILLED:
        return "memory", "the process that decoded it was killed, perhaps because memory ran out, tried twice"
    return "crashed", f"the decoder died of it ({_cause(code)}), tried twice"


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _serve(pipe: Pipe) -> None:
    """Work in a child until the parent closes the pipe: first what is done with an item, then items."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    task: _Assignment | None = None
    with suppress(EOFError, OSError):
        while True:
            message: Any = pipe.recv()
            if isinstance(message, _Assignment):
                task = message
                with suppress(OSError):
                    os.chdir(task.folder)
                _limit(task.limits)
                _silence()
                pipe.send(None)
            elif task is not None:
                _Sender.batches += 1
                begun = time.perf_counter()
                results = [_attempt(task, item) for item in message]
                _arm(0)
                pipe.send((time.perf_counter() - begun, results))


def _attempt(task: _Assignment, item: Any) -> Any:
    _arm(task.limits.seconds)
    try:
        return task.work(item)
    except MemoryError:
        return Death("memory", "memory ran out while decoding it")
    except BaseException as error:  # noqa: BLE001 - what a decoder raises may be no `Exception`.
        return Death("crashed", f"the decoder ended in {type(error).__name__}")


def _arm(seconds: float) -> None:
    """Set the deadline of what follows in processor time, 0 for none."""
    if hasattr(signal, "setitimer"):  # Elsewhere the parent looks at the clock.
        # The default action of the signal ends a process even in the middle of native code.
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _silence() -> None:
    """Drop what decoders write to the standard streams; it may quote a header."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(null, stream)
    os.close(null)


def _limit(limits: Limits) -> None:
    try:
        import resource
    except ImportError:  # Windows.
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    status = Path("/proc/self/statm")
    if status.is_file():  # Elsewhere what is in use already is unknown.
        used = int(status.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = used + limits.memory
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


PASSING = frozenset({"crashed", "timeout", "memory"})
"""Reasons that another decoder or a larger machine may do away with."""


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
    """Keys of `cleft.data.images.dicom_headers.ODDITIES`: what was inferred or ignored in decoding it."""


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
