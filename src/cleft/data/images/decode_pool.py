"""A pool of disposable child processes that decode and prepare images: a crash costs one image, not the run.

A child processes one item at a time, with a limit on memory and on its own processor time, so that a stalled disk or a
busy machine does not count as a hang. Short items are sent in batches, because a message costs as much as a tenth of a
small image; arrays are returned through anonymous shared memory where the system has it (Linux). A child that ends is
replaced and its items are retried one by one, each twice. One idle child is kept for the next caller, because starting
one takes about 0.3 s; it ends with this process.

Where there is no fork (Windows), children are spawned by `multiprocessing`, which imports the main program and needs
`if __name__ == "__main__":` there; memory is not limited, and the deadline is elapsed time.
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
    """Resources of a child process."""

    seconds: float = 30.0
    """Processor time for one item."""
    memory: int = 2 * 2**30
    """Bytes in addition to what the child uses before the first item."""
    elapsed: float = 600.0
    """Seconds after which an item counts as hanging even if it uses no processor time."""


class Failure(NamedTuple):
    """Why an item has no result."""

    reason: str
    """`crashed`, `timeout` or `memory`."""
    message: str


class _Process:
    """A started child process: our end of its pipe, and its exit code once it has ended."""

    def __init__(self) -> None:
        spawned = multiprocessing.get_context("spawn")
        here, there = cast("tuple[Pipe, Pipe]", spawned.Pipe())
        self.pipe = here
        self.memory: mmap.mmap | None = None
        """Shared memory in which the child returns arrays."""
        self._running: subprocess.Popen[bytes] | SpawnProcess
        # Ctrl-C reaches the process group, but the parent ends its children; a blocked signal stays blocked in a child.
        with _blocked_interrupt():
            if hasattr(os, "fork"):
                # Not multiprocessing, which imports the main program and does not start children in its own workers.
                paths = [path for path in sys.path if type(path) is str]
                handles = [there.fileno(), *_shared_file()]
                program = f"import sys; sys.path[:] = {paths!r}; import {__name__} as c; c.serve_on(*{handles})"
                self._running = subprocess.Popen(
                    [os.fsdecode(spawn.get_executable()), "-P", "-c", program],
                    stdin=subprocess.DEVNULL,
                    pass_fds=handles,
                )
                for handle in handles[1:]:
                    self.memory = mmap.mmap(handle, 2 * _BUFFER)
                    os.close(handle)
            else:
                self._running = spawned.Process(target=_serve, args=(there,), daemon=True)
                self._running.start()
        there.close()

    def end(self) -> int:
        """Kill the child if it still runs; return its exit code, negative for a signal."""
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
        """In a fork of the parent: close the copied end of the pipe."""
        self.pipe.close()
        if isinstance(self._running, subprocess.Popen):
            self._running.returncode = 0


class _Assignment(NamedTuple):
    """The function for the items that follow, sent to a child before them."""

    work: Callable[[Any], Any]
    limits: Limits
    folder: str
    """Working directory, which may have changed since the child started; empty if it was deleted."""


@dataclass(eq=False)
class _Child(Generic[Item]):
    process: _Process
    batches: deque[list[tuple[int, Item]]] = field(default_factory=deque[list[tuple[int, Item]]])
    """Batches sent and not returned; the child works on the first."""
    ready: bool = False
    """Whether it has received its assignment."""
    reused: bool = False
    """Whether it worked for an earlier caller."""
    since: float = field(default_factory=time.monotonic)
    """When it began its first batch."""
    stalled: bool = False

    @property
    def pipe(self) -> Pipe:
        return self.process.pipe


class ChildPool(Generic[Item, Result]):
    """Child processes that apply one function to many items; use it as a context manager.

    Args:
        work: Function of one item; must be picklable.
        jobs: Number of processes, at least 1.
        limits: Resources of each process.
    """

    _AHEAD = 2
    """Batches sent to a child at once, so that it does not wait for the next one."""
    _BATCH = 32
    """Maximum number of items in a batch."""
    _BATCH_SECONDS = 0.1
    """Target duration of a batch."""
    _WINDOW = 96
    """Results per child that may wait for an earlier one."""

    def __init__(self, work: Callable[[Item], Result], jobs: int, limits: Limits | None = None) -> None:
        self._work = work
        self._limits = limits or Limits()
        self._jobs = jobs
        self._children: list[_Child[Item]] = []
        self._pace = self._BATCH_SECONDS
        """Seconds per item in the last batch."""

    def __enter__(self) -> ChildPool[Item, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            if child.batches or not child.ready or not _keep_idle(child.process):
                _stop_process(child.process)
        self._children.clear()

    def map(self, items: Iterable[Item]) -> Iterator[Result | Failure]:
        """Yield the result of each item, in the order of the items.

        Raises:
            ResourceError: If a child cannot start, or two in a row are killed from outside at the same item.
        """
        numbered = enumerate(items)
        retry: deque[tuple[int, Item]] = deque()
        tried: set[int] = set()
        results: dict[int, Result | Failure] = {}
        expected, sent = 0, -1

        def next_batch() -> list[tuple[int, Item]]:
            if retry:
                return [retry.popleft()]
            if sent >= expected + self._WINDOW * self._jobs:
                return []
            return list(islice(numbered, max(1, min(self._BATCH, int(self._BATCH_SECONDS / self._pace)))))

        while True:
            while expected in results:
                yield results.pop(expected)
                expected += 1
            for number in range(self._jobs):
                while number >= len(self._children) or len(self._children[number].batches) < self._AHEAD:
                    batch = next_batch()
                    if not batch:
                        break
                    child = self._children[number] if number < len(self._children) else self._start()
                    sent = max(sent, batch[-1][0])
                    if not child.batches:
                        child.since = time.monotonic()
                    child.batches.append(batch)
                    with suppress(OSError):  # It has ended; `_receive` notices below.
                        child.pipe.send([item for _, item in batch])
            if not any(child.batches for child in self._children):
                return
            for child in self._wait():
                if child.stalled or not self._receive(child, results):
                    retry.extend(self._remove(child, tried, results))

    def _start(self) -> _Child[Item]:
        process = _take_idle()
        child = _Child[Item](process or _start_process(), reused=process is not None)
        self._children.append(child)
        with suppress(OSError):  # As above.
            child.pipe.send(_Assignment(self._work, self._limits, _folder()))
        return child

    def _receive(self, child: _Child[Item], results: dict[int, Result | Failure]) -> bool:
        """Receive a reply of a child; return whether there was one."""
        _receiving.memory = child.process.memory
        try:
            reply = child.pipe.recv()
        except (EOFError, OSError):
            return False
        if child.ready:
            seconds, values = cast("tuple[float, list[Result | Failure]]", reply)
            batch = child.batches.popleft()
            results.update({number: value for (number, _), value in zip(batch, values, strict=True)})
            self._pace = max(seconds / len(batch), 1e-6)
        child.ready = True
        child.since = time.monotonic()
        return True

    def _wait(self) -> list[_Child[Item]]:
        """Wait for children that replied, ended, or exceeded their deadline (marked as stalled here)."""
        busy = [child for child in self._children if child.batches]
        deadline = min(map(self._deadline, busy))
        readable = connection.wait([child.pipe for child in self._children], max(0.0, deadline - time.monotonic()))
        if readable:
            return [child for child in self._children if child.pipe in readable]
        hung = [child for child in busy if time.monotonic() >= self._deadline(child)]
        for child in hung:
            child.stalled = True
        return hung

    def _deadline(self, child: _Child[Item]) -> float:
        """Return when a child counts as hanging."""
        if not child.ready:
            return child.since + _STARTING
        return child.since + (self._limits.elapsed if hasattr(signal, "setitimer") else 4 * self._limits.seconds)

    def _remove(
        self, child: _Child[Item], tried: set[int], results: dict[int, Result | Failure]
    ) -> list[tuple[int, Item]]:
        """Remove a child that has ended; return its unfinished items, except one that ended two children by itself."""
        code = _stop_process(child.process, own=not child.stalled)
        self._children.remove(child)
        if not child.ready and not child.reused:
            raise ResourceError(
                f"a decoding process could not start ({_cause(code)}); use fewer jobs, and in your own script call "
                "this below `if __name__ == '__main__':`"
            )
        left = [task for batch in child.batches for task in batch]
        if child.ready and child.batches and len(child.batches[0]) == 1:
            number = left[0][0]
            if number in tried:
                if -code in _FROM_OUTSIDE and not child.stalled and not (self._jobs == 1 and code == _KILLED):
                    raise ResourceError(
                        f"a decoding process was killed twice in a row ({_cause(code)}), perhaps because memory ran "
                        "out; finished images are kept: run the command again with fewer jobs"
                    )
                results[number] = Failure(*_reason(code, self._limits, stalled=child.stalled))
                del left[0]
            tried.add(number)
        return left


def serve_on(handle: int, shared: int | None = None) -> None:
    """Serve a parent, in a child that was started with one end of a pipe and perhaps a file of shared memory."""
    if shared is not None:
        reduction.register(np.ndarray, _ArraySender(mmap.mmap(shared, 2 * _BUFFER)))
        os.close(shared)
    _serve(connection.Connection(handle))


class _ArraySender:
    """Pickles an array as its position in shared memory, where it copies the values.

    The two halves are used in turn: a batch is sent only after the reply to the last but one was read.
    """

    batches = 0

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._batch, self._used = 0, 0

    def __call__(self, array: NDArray[Any]) -> tuple[Any, ...]:
        if self._batch != _ArraySender.batches:
            self._batch, self._used = _ArraySender.batches, 0
        if array.dtype.hasobject or array.nbytes > _BUFFER - self._used or not array.flags.c_contiguous:
            return cast("tuple[Any, ...]", array.__reduce_ex__(2))
        start = self._batch % 2 * _BUFFER + self._used
        np.frombuffer(self._memory, np.uint8, array.nbytes, start)[:] = array.reshape(-1).view(np.uint8)
        self._used += array.nbytes
        return _receive_array, (start, array.shape, array.dtype.str)


def _receive_array(start: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    count = math.prod(shape)
    return np.frombuffer(_receiving.memory, dtype, count, start).reshape(shape).copy()


def _shared_file() -> list[int]:
    """Return a handle of new shared memory; none where it would have a name, by which others could open it."""
    if not hasattr(os, "memfd_create"):
        return []
    handle = os.memfd_create("cleft")
    os.truncate(handle, 2 * _BUFFER)
    return [handle]


_receiving = threading.local()
_BUFFER = 2**24
"""Bytes of one half; the system allocates only what is used."""


_GRACE = 5.0
"""Seconds to wait for a process that has closed its pipe."""
_STARTING = 600.0
"""Seconds that a child may take to start on a busy machine."""
_KILLED = -int(getattr(signal, "SIGKILL", 9))
_OUT_OF_TIME = -int(getattr(signal, "SIGPROF", 27))
_FROM_OUTSIDE = {int(getattr(signal, n)) for n in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, n)}

_lock = threading.Lock()
_alive: set[_Process] = set()
_idle: list[_Process] = []


def _start_process() -> _Process:
    try:
        process = _Process()
    except OSError as error:
        raise ResourceError(
            f"a decoding process cannot be started ({error.strerror or error}); free memory, end other processes, or "
            "raise the limits on processes and open files"
        ) from error
    with _lock:
        _alive.add(process)
    return process


def _stop_process(process: _Process, *, own: bool = False) -> int:
    """Kill a child, or wait if it ends by itself (`own`); return its exit code."""
    with _lock:
        _alive.discard(process)
    return process.wait() if own else process.end()


def _take_idle() -> _Process | None:
    with _lock:
        return _idle.pop() if _idle else None


def _keep_idle(process: _Process) -> bool:
    with _lock:
        if _idle:
            return False
        _idle.append(process)
        return True


def _stop_all() -> None:
    for process in list(_alive):
        _stop_process(process)
    _idle.clear()


def _disown_all() -> None:
    """In a fork: forget the children, which belong to the process that started them."""
    global _lock
    _lock = threading.Lock()
    for process in _alive:
        process.disown()
    _alive.clear()
    _idle.clear()


atexit.register(_stop_all)
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
        return "timeout", "not decoded in time, without using the processor; tried twice"
    if code == _OUT_OF_TIME:
        return "timeout", f"not decoded after {limits.seconds:g} s of processor time; tried twice"
    if code == _KILLED:
        return "memory", "the process that decoded it was killed, perhaps because memory ran out; tried twice"
    return "crashed", f"it crashes the decoder ({_cause(code)}); tried twice"


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _serve(pipe: Pipe) -> None:
    """Process items in a child until the parent closes the pipe; an assignment comes before its items."""
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
                _ArraySender.batches += 1
                begun = time.perf_counter()
                results = [_attempt(task, item) for item in message]
                _set_timer(0)
                pipe.send((time.perf_counter() - begun, results))


def _attempt(task: _Assignment, item: Any) -> Any:
    _set_timer(task.limits.seconds)
    try:
        return task.work(item)
    except MemoryError:
        return Failure("memory", "memory ran out while decoding it")
    except BaseException as error:  # noqa: BLE001 - a decoder may raise what is not an `Exception`.
        return Failure("crashed", f"the decoder raised {type(error).__name__}")


def _set_timer(seconds: float) -> None:
    """Limit the processor time of what follows; 0 for no limit."""
    if hasattr(signal, "setitimer"):  # Elsewhere the parent measures elapsed time.
        # The default action of the signal ends a process even inside native code.
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _silence() -> None:
    """Discard what decoders write to the standard streams; it may quote a header."""
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
    if status.is_file():  # Elsewhere the memory in use is unknown.
        used = int(status.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        soft = used + limits.memory
        resource.setrlimit(resource.RLIMIT_AS, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


TRANSIENT = frozenset({"crashed", "timeout", "memory"})
"""Reasons that may not apply with another decoder or more memory."""


class DecodeResult(NamedTuple):
    """Pixels of one file, or the reason it was rejected."""

    path: Path
    source: Source | None
    """None if the file could not be read."""
    pixels: NDArray[np.uint8] | None
    """Prepared image, `[S, S]`; None if the file was rejected, or its content was to be skipped."""
    reason: str = ""
    """Reason code of the rejection; empty if the file was accepted."""
    message: str = ""
    notes: tuple[str, ...] = ()
    """Keys of `cleft.data.images.dicom_headers.ODDITIES`: what was inferred or ignored."""


Prepare: TypeAlias = Callable[[Iterable[Path]], Iterator[DecodeResult]]


def prepare_file(path: Path, config: ImagesConfig, skip: frozenset[str]) -> DecodeResult:
    """Read, decode and preprocess one file; return any problem as a reason.

    Args:
        path: The file.
        config: Image settings.
        skip: SHA-256 of contents that are not to be decoded.
    """
    source = None
    try:
        data, source = read_source(path)
        if source.sha256 in skip:
            return DecodeResult(path, source, None)
        notes: list[str] = []
        pixels = prepare_image(decode_gray(data, path, images=config, notes=notes), config)
        return DecodeResult(path, source, pixels, notes=tuple(notes))
    except MemoryError:
        return DecodeResult(
            path, source, None, "memory", str(refusal("memory", path, "memory ran out while preparing it"))
        )
    except DataError as error:
        return DecodeResult(path, source, None, error.reason, str(error))


@contextmanager
def prepare_pool(
    config: ImagesConfig, skip: frozenset[str], jobs: int, limits: Limits | None = None
) -> Generator[Prepare]:
    """Yield a function that prepares files in child processes and yields their results in the order of the files.

    Args:
        config: Image settings.
        skip: SHA-256 of contents that are not to be decoded.
        jobs: Number of child processes; 0 means one. Nothing is decoded in this process.
        limits: Resources of a child process for one image.

    Raises:
        ResourceError: If processes cannot start, or are killed, for example because memory ran out.
    """
    work = partial(_prepare_file_in_child, config=config, skip=skip)
    with ChildPool[str, Sequence[Any]](work, max(1, jobs), limits) as children:

        def prepare(paths: Iterable[Path]) -> Iterator[DecodeResult]:
            paths = list(paths)
            for path, result in zip(paths, children.map(map(str, paths)), strict=True):
                yield _reject(path, result) if isinstance(result, Failure) else DecodeResult(path, *result)

        yield prepare


def usable_cores() -> int:
    """Return the number of processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Linux alone knows the difference.
        return os.cpu_count() or 1


def _prepare_file_in_child(path: str, config: ImagesConfig, skip: frozenset[str]) -> Sequence[Any]:
    """Return the fields of a result after its path, which the parent has: a path is slow to send."""
    cv2.setNumThreads(0)  # The pool is parallel already; more threads would only compete.
    return prepare_file(Path(path), config, skip)[1:]


def _reject(path: Path, failure: Failure) -> DecodeResult:
    try:
        source = read_source(path)[1]
    except DataError as error:
        return DecodeResult(path, None, None, error.reason, str(error))
    return DecodeResult(path, source, None, failure.reason, str(refusal(failure.reason, path, failure.message)))
