"""Runs the steps that are left, in one process or several, and says of each what became of it."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import NamedTuple

from cleft.errors import CleftError, Interrupted, Terminated
from cleft.studies.steps import Step

log = logging.getLogger(__name__)

Do = Callable[[Step], Path]


class Outcome(NamedTuple):
    """What became of a step."""

    step: Step
    path: Path | None
    """What it made; None where it failed."""
    seconds: float = 0.0
    failure: str | None = None
    code: int = 0
    """Exit code of the failure's kind."""


def run_steps(steps: Sequence[Step], do: Do, *, jobs: int = 1) -> Iterator[Outcome]:
    """Runs steps, each behind those it needs, and goes on where one fails.

    Args:
        steps: Those left to do, each behind what it needs; what is needed and not among them is done.
        do: Runs one step; where there are several processes, a function that can be found by name.
        jobs: Processes. With one, everything happens in this one.

    Yields:
        Each step as it ends. One whose need failed is not run and fails for the same reason.

    Raises:
        Interrupted, Terminated, KeyboardInterrupt: If a signal arrived. What was under way has saved its state.
    """
    if jobs > 1:
        yield from _in_processes(steps, do, jobs)
        return
    failed: dict[str, Outcome] = {}
    for step in steps:
        outcome = _spoiled(step, failed) or _attempt(step, do)
        if outcome.failure is not None:
            failed[step.name] = outcome
        yield outcome


def _in_processes(steps: Sequence[Step], do: Do, jobs: int) -> Iterator[Outcome]:
    waiting = list(steps)
    failed: dict[str, Outcome] = {}
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)
    ) as pool:
        running: dict[Future[Outcome], Step] = {}
        try:
            while waiting or running:
                for outcome in _give_up(waiting, failed):
                    yield outcome
                pending = {step.name for step in [*waiting, *running.values()]}
                ready = [step for step in waiting if not pending.intersection(step.needs)]
                for step in ready[: jobs - len(running)]:
                    waiting.remove(step)
                    running[pool.submit(_attempt, step, do)] = step
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    step = running.pop(future)
                    outcome = _result(future, step)
                    if outcome.failure is not None:
                        failed[step.name] = outcome
                    yield outcome
        except BaseException:
            # Children save their state when asked; whoever is idle just leaves.
            for process in list((pool._processes or {}).values()):  # pyright: ignore[reportPrivateUsage]
                if process.is_alive() and process.pid is not None:
                    os.kill(process.pid, signal.SIGTERM)
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _give_up(waiting: list[Step], failed: dict[str, Outcome]) -> Iterator[Outcome]:
    """Takes out what can no longer be run, in the order of the steps, so that one failure reaches all behind it."""
    for step in list(waiting):
        spoiled = _spoiled(step, failed)
        if spoiled is not None:
            waiting.remove(step)
            failed[step.name] = spoiled
            yield spoiled


def _spoiled(step: Step, failed: Mapping[str, Outcome]) -> Outcome | None:
    before = next((failed[name] for name in step.needs if name in failed), None)
    return None if before is None else Outcome(step, None, 0.0, before.failure, before.code)


def _attempt(step: Step, do: Do) -> Outcome:
    began = time.monotonic()
    log.info("%s", step.name)
    try:
        return Outcome(step, do(step), time.monotonic() - began)
    except (Interrupted, Terminated):
        raise
    except CleftError as error:
        return Outcome(step, None, time.monotonic() - began, f"{step.name}: {error}", error.exit_code)
    except MemoryError:
        why = f"{step.name}: out of memory; lower train.batch_size or images.size"
        return Outcome(step, None, time.monotonic() - began, why, 6)
    except Exception as error:  # one cell must not take the others with it; --debug shows where it came from
        log.debug("%s", step.name, exc_info=True)
        why = f"{step.name}: {type(error).__name__}: {error}"
        return Outcome(step, None, time.monotonic() - began, why, 1)


def _result(future: Future[Outcome], step: Step) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool:
        raise Terminated(f"a process died at {step.name}; the same command goes on from there") from None


def _begin(parent: int) -> None:
    """In a new process: its talk; who began it tells it of Ctrl-C; and it does not outlive that process."""
    if hasattr(os, "setpgrp"):  # Windows has none.
        os.setpgrp()  # a terminal sends Ctrl-C to all of a group, and a second signal would end training at once
    talk = logging.getLogger("cleft")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("[%(process)d] %(message)s"))
    talk.addHandler(handler)
    talk.setLevel(logging.INFO)
    talk.propagate = False
    Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
