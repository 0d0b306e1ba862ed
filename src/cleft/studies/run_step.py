"""Runs one step of a study, in this process or in one of its own."""

from __future__ import annotations

import csv
import io
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Literal, NamedTuple, get_args

from cleft.data import data_config, read_dataset
from cleft.data.splits.recipes import split_records
from cleft.data.text.prompts import choose_classes
from cleft.data.text.texts import Texts
from cleft.errors import CleftError, Interrupted, Terminated
from cleft.evaluation.classifier import evaluate_classifier
from cleft.evaluation.zero_shot import evaluate_zero_shot
from cleft.files import write_whole
from cleft.models.language_model import is_causal, read_text_config
from cleft.studies.caption_lm import learn_language_model
from cleft.studies.grids import adopt
from cleft.studies.plans import SUBJECTS
from cleft.studies.steps import Step
from cleft.training.classify import classify
from cleft.training.pretrain import pretrain
from cleft.training.prompt_context import learn_context

log = logging.getLogger(__name__)


def do(step: Step) -> Path:
    """Runs a step, or goes on with it, or finds it finished.

    Returns:
        Its folder; of a question, the result file.

    Raises:
        CleftError: As what it runs does.
    """
    if step.kind == "apart":
        return _list_apart(step)
    if step.kind == "language-model":
        return _learn_language_model(step)
    if step.kind == "adopt":
        return adopt(step)
    if step.kind == "pretrain":
        return pretrain(step.settings, step.folder, progress=False)
    if step.kind == "context":
        assert step.source is not None
        return learn_context(step.source, step.settings, step.folder, progress=False)
    if step.kind == "classify":
        assert step.source is not None
        return classify(step.source, step.settings, step.folder, data=step.data, progress=False)
    assert step.subject is not None
    subject = SUBJECTS[step.subject]
    per_class = subject.per_class if step.balanced else None
    overlap = step.model is not None  # our own rows keep test patients apart; of a given model the result says
    if step.kind == "score":
        return evaluate_classifier(step.folder, per_class=per_class, allow_overlap=overlap, progress=False)
    return evaluate_zero_shot(
        step.folder,
        data=step.data,
        classes=subject.classes,
        per_class=per_class,
        allow_overlap=overlap,
        progress=False,
    )


def _learn_language_model(step: Step) -> Path:
    """A study's own language model learns captions, and a masked one whatever else is said of findings.

    Rows of masked models read sentences of several kinds, and all begin from the same one.
    """
    config, text, seed = step.settings.data, step.settings.text, step.settings.seed
    reading = read_dataset(config)
    records = split_records(reading, config).train
    kinds: tuple[Kind, ...] = ("captions",) if is_causal(read_text_config(text)) else get_args(Kind)
    texts = [Texts(records, reading.findings, replace(config, texts=kind), seed) for kind in kinds]
    return learn_language_model(
        [sentence for each in texts for sentence in each.all_texts()],
        text,
        step.folder,
        learnable=[part for each in texts for part in each.learnable().parts],
        seed=seed,
    )


Kind = Literal["captions", "findings", "bank"]
"""Sentences that are made of labels, as `data.texts` names them."""


def _list_apart(step: Step) -> Path:
    """Writes the patients of the other data sets' tests whom the data to learn from may show too.

    The file names patients, as tables do, and is for its owner alone.
    """
    people = read_dataset(step.settings.data).people or step.settings.data.dataset
    found: dict[str, None] = {}
    for other in step.others:
        config = data_config(step.settings, other)
        reading = read_dataset(config)
        if (reading.people or reading.dataset) == people:
            found |= {record.patient: None for record in split_records(reading, config).test}
    if not found:
        log.info("%s: nobody of %s stands in another data set's test", step.folder.name, people)
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([["patient"], *([patient] for patient in sorted(found))])
    step.folder.parent.mkdir(parents=True, exist_ok=True)
    write_whole(step.folder, table.getvalue().encode())
    return step.folder


def check_question(step: Step) -> None:
    """Refuses data that cannot be asked, before anything is trained for it.

    Raises:
        ConfigError: If a class is not a finding of the table.
        DataError: If the table cannot be read.
    """
    assert step.subject is not None
    settings = replace(step.settings, data=replace(step.settings.data, exclude_patients=None))
    reading = read_dataset(data_config(settings, step.data))
    named = SUBJECTS[step.subject].classes
    choose_classes(None if named is None else [named], settings, reading.dataset, reading.findings)


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
