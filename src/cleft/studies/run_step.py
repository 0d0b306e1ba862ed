"""Run the steps of a study, in this process or in several, and train caption language models.

Adapters need a pretrained language model: on random weights they cannot be compared. So at the tiny scale one model of
the preset's configuration is trained on the training captions once per study, and every row starts from it: a causal
model by next-token prediction, a masked one by masked-token prediction (docs/decisions/0111).
"""

from __future__ import annotations

import csv
import io
import json
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
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, DataCollatorForLanguageModeling

from cleft.config import TextTowerConfig
from cleft.data import data_config, read_dataset
from cleft.data.splits.recipes import split_records
from cleft.data.text.prompts import choose_classes
from cleft.data.text.texts import Texts
from cleft.errors import CleftError, ConfigError, Interrupted, NumericsError, Terminated
from cleft.evaluation import ClassifierOptions, ZeroShotOptions
from cleft.evaluation.classifier import evaluate_classifier
from cleft.evaluation.zero_shot import evaluate_zero_shot
from cleft.files import draft_folder, write_whole
from cleft.models.hub import quiet_transformers
from cleft.models.language_model import is_causal, read_text_config
from cleft.models.tokenizer import TextTokenizer, eos_token_of, train_tokenizer
from cleft.strict_json import find_json, write_json
from cleft.studies.grids import import_model
from cleft.studies.plans import BENCHMARKS
from cleft.studies.steps import Step
from cleft.training.classify import classify
from cleft.training.pretrain import pretrain
from cleft.training.prompt_context import learn_context
from cleft.training.provenance import texts_digest

log = logging.getLogger(__name__)


def run_step(step: Step) -> Path:
    """Run or resume a step.

    Returns:
        Its folder; of an evaluation, the result file.

    Raises:
        CleftError: As the command it runs.
    """
    if step.kind == "exclusion-list":
        return _write_exclusion_list(step)
    if step.kind == "caption-lm":
        return _train_caption_lm(step)
    if step.kind == "import":
        return import_model(step)
    if step.kind == "pretrain":
        return pretrain(step.settings, step.folder, progress=False)
    if step.kind == "context":
        assert step.source is not None
        return learn_context(step.source, step.settings, step.folder, progress=False)
    if step.kind == "classify":
        assert step.source is not None
        return classify(step.source, step.settings, step.folder, data=step.data, progress=False)
    assert step.benchmark is not None
    benchmark = BENCHMARKS[step.benchmark]
    per_class = benchmark.per_class if step.balanced else None
    # Rows trained here exclude test patients; results of imported models note the overlap.
    overlap = step.model is not None
    if step.kind == "evaluate-classifier":
        scored = ClassifierOptions(per_class=per_class, allow_overlap=overlap)
        return evaluate_classifier(step.folder, scored, progress=False)
    options = ZeroShotOptions(data=step.data, classes=benchmark.classes, per_class=per_class, allow_overlap=overlap)
    return evaluate_zero_shot(step.folder, options, progress=False)


def _train_caption_lm(step: Step) -> Path:
    """Train a caption language model; a masked one also on the other kinds of sentences, which its rows read."""
    config, text, seed = step.settings.data, step.settings.text, step.settings.seed
    reading = read_dataset(config)
    records = split_records(reading, config).train
    kinds: tuple[TextKind, ...] = ("captions",) if is_causal(read_text_config(text)) else get_args(TextKind)
    texts = [Texts(records, reading.findings, replace(config, texts=kind), seed) for kind in kinds]
    return train_caption_lm(
        [sentence for each in texts for sentence in each.all_texts()],
        text,
        step.folder,
        tokenizer_texts=[part for each in texts for part in each.tokenizer_corpus().parts],
        seed=seed,
    )


TextKind = Literal["captions", "findings", "bank"]
"""Values of `data.texts` for sentences generated from labels."""


def _write_exclusion_list(step: Step) -> Path:
    """Write the test patients of other datasets with common patients, to be excluded from training.

    The file contains patient ids and is readable by its owner only.
    """
    population = read_dataset(step.settings.data).patient_dataset or step.settings.data.dataset
    excluded: dict[str, None] = {}
    for other in step.others:
        config = data_config(step.settings, other)
        reading = read_dataset(config)
        if (reading.patient_dataset or reading.dataset) == population:
            excluded |= {record.patient: None for record in split_records(reading, config).test}
    if not excluded:
        log.info("%s: no patient of %s is in the test set of another dataset", step.folder.name, population)
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([["patient"], *([patient] for patient in sorted(excluded))])
    step.folder.parent.mkdir(parents=True, exist_ok=True)
    write_whole(step.folder, table.getvalue().encode())
    return step.folder


def check_evaluation_data(step: Step) -> None:
    """Check the data of an evaluation before anything is trained for it.

    Raises:
        ConfigError: If a class is not a finding of the table.
        DataError: If the table cannot be read.
    """
    assert step.benchmark is not None
    settings = replace(step.settings, data=replace(step.settings.data, exclude_patients=None))
    reading = read_dataset(data_config(settings, step.data))
    named = BENCHMARKS[step.benchmark].classes
    choose_classes(None if named is None else [named], settings, reading.dataset, reading.findings)


RunStep = Callable[[Step], Path]


class Outcome(NamedTuple):
    """Outcome of a step."""

    step: Step
    path: Path | None
    """Its output; None if it failed."""
    seconds: float = 0.0
    failure: str | None = None
    code: int = 0
    """Exit code of the failure."""


def run_steps(steps: Sequence[Step], step_runner: RunStep, *, jobs: int = 1) -> Iterator[Outcome]:
    """Run steps in order of their needs, and continue with the others if one fails.

    Args:
        steps: Remaining steps, each after what it needs; needs that are not among them are done.
        step_runner: Runs one step; picklable if there are several processes.
        jobs: Number of processes; 1 runs everything in this process.

    Yields:
        The outcome of each step. A step whose need failed is not run and fails for the same reason.

    Raises:
        Interrupted, Terminated, KeyboardInterrupt: On a signal, after running steps have saved their state.
    """
    if jobs > 1:
        yield from _in_processes(steps, step_runner, jobs)
        return
    failed: dict[str, Outcome] = {}
    for step in steps:
        outcome = _failed_need(step, failed) or _attempt(step, step_runner)
        if outcome.failure is not None:
            failed[step.name] = outcome
        yield outcome


def _in_processes(steps: Sequence[Step], step_runner: RunStep, jobs: int) -> Iterator[Outcome]:
    waiting = list(steps)
    failed: dict[str, Outcome] = {}
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(),)
    ) as pool:
        running: dict[Future[Outcome], Step] = {}
        try:
            while waiting or running:
                for outcome in _skip_dependents(waiting, failed):
                    yield outcome
                pending = {step.name for step in [*waiting, *running.values()]}
                ready = [step for step in waiting if not pending.intersection(step.needs)]
                for step in ready[: jobs - len(running)]:
                    waiting.remove(step)
                    running[pool.submit(_attempt, step, step_runner)] = step
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    step = running.pop(future)
                    outcome = _result(future, step)
                    if outcome.failure is not None:
                        failed[step.name] = outcome
                    yield outcome
        except BaseException:
            # Busy workers save their state on SIGTERM; idle ones exit.
            for process in list((pool._processes or {}).values()):  # pyright: ignore[reportPrivateUsage]
                if process.is_alive() and process.pid is not None:
                    os.kill(process.pid, signal.SIGTERM)
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _skip_dependents(waiting: list[Step], failed: dict[str, Outcome]) -> Iterator[Outcome]:
    """Remove steps whose needs failed, in order, so that a failure reaches all dependent steps."""
    for step in list(waiting):
        failure = _failed_need(step, failed)
        if failure is not None:
            waiting.remove(step)
            failed[step.name] = failure
            yield failure


def _failed_need(step: Step, failed: Mapping[str, Outcome]) -> Outcome | None:
    need = next((failed[name] for name in step.needs if name in failed), None)
    return None if need is None else Outcome(step, None, 0.0, need.failure, need.code)


def _attempt(step: Step, step_runner: RunStep) -> Outcome:
    start = time.monotonic()
    log.info("%s", step.name)
    try:
        return Outcome(step, step_runner(step), time.monotonic() - start)
    except (Interrupted, Terminated):
        raise
    except CleftError as error:
        return Outcome(step, None, time.monotonic() - start, f"{step.name}: {error}", error.exit_code)
    except MemoryError:
        message = f"{step.name}: out of memory; lower train.batch_size or images.size"
        return Outcome(step, None, time.monotonic() - start, message, 6)
    except Exception as error:  # a failed cell must not stop the others; --debug shows the traceback
        log.debug("%s", step.name, exc_info=True)
        message = f"{step.name}: {type(error).__name__}: {error}"
        return Outcome(step, None, time.monotonic() - start, message, 1)


def _result(future: Future[Outcome], step: Step) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool:
        raise Terminated(f"a process died in {step.name}; run the same command again to resume") from None


def _start_worker(parent: int) -> None:
    """Set up a worker process: logging, Ctrl-C only through the parent, exit with the parent."""
    if hasattr(os, "setpgrp"):  # Windows has none.
        os.setpgrp()  # a terminal sends Ctrl-C to the whole group, and a second signal would stop training at once
    logger = logging.getLogger("cleft")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("[%(process)d] %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


CAPTION_LM_STEPS = 400
_BATCH = 8
"""Windows per step of a causal model."""
_TEXTS = 48
"""Texts per step of a masked model: about as many tokens."""
_LR = 1e-3


def train_caption_lm(
    captions: Sequence[str],
    config: TextTowerConfig,
    folder: Path,
    *,
    tokenizer_texts: Sequence[str] | None = None,
    seed: int = 0,
    steps: int = CAPTION_LM_STEPS,
) -> Path:
    """Train a language model on captions, unless the folder has it already.

    Args:
        captions: Captions of the training split, with repetitions.
        config: `scratch` is the model configuration.
        folder: Output folder in Hugging Face layout: configuration, weights, tokenizer. Written atomically.
        tokenizer_texts: Texts to train the tokenizer on; by default the captions.
        seed: Seed of initial weights and order.
        steps: AdamW steps of 8 windows, or of 48 captions for a masked model.

    Returns:
        The folder.

    Raises:
        ConfigError: If `scratch` is missing, or the folder was trained on other captions.
        NumericsError: If the loss is not finite.
    """
    facts = {
        "shape": dict(config.scratch or {}),
        "captions": texts_digest(sorted(captions)),
        "seed": seed,
        "steps": steps,
    }
    stored = find_json(folder / "learned.json", remedy="remove the folder, so that it is trained again")
    if stored is not None:
        if {key: stored.get(key) for key in facts} != json.loads(json.dumps(facts)):
            raise ConfigError(
                f"{folder} was trained on other captions or with another configuration; choose another folder for the "
                f"study"
            )
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} has no caption language model; move it away, or give another --out")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model, tokens = _build(captions if tokenizer_texts is None else tokenizer_texts, config)
        loss = _train(model, tokens, captions, seed, steps)
    with draft_folder(folder) as draft:
        with quiet_transformers():
            cast("Any", model).base_model.save_pretrained(draft)
        tokens.save(draft)
        write_json(draft / "learned.json", {**facts, "loss": loss})
    return folder


def _build(tokenizer_texts: Sequence[str], config: TextTowerConfig) -> tuple[torch.nn.Module, TextTokenizer]:
    if config.scratch is None:
        raise ConfigError("a caption language model needs text.scratch: give its model configuration")
    causal = is_causal(read_text_config(config))
    tokenizer = train_tokenizer(tokenizer_texts, causal=causal, vocab_size=int(config.scratch.get("vocab_size", 4096)))
    shape = read_text_config(config)
    end = eos_token_of(tokenizer, shape) if causal else None
    tokens = TextTokenizer(tokenizer, max_tokens=config.max_tokens, eos=end)
    shape = read_text_config(config, vocabulary=len(tokenizer), pad=tokens.pad, eos=end)
    return (AutoModelForCausalLM if causal else AutoModelForMaskedLM).from_config(shape), tokens


def _train(model: torch.nn.Module, tokens: TextTokenizer, captions: Sequence[str], seed: int, steps: int) -> float:
    """Train on next or masked tokens; returns the cross-entropy of the last step, in nats per token."""
    encoded = tokens.encode(list(captions))
    generator = torch.Generator().manual_seed(seed)
    window = int(getattr(cast("Any", model).config, "max_position_embeddings", tokens.max_tokens))
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LR, weight_decay=0.01)
    masking = None if tokens.hf_tokenizer.mask_token is None else DataCollatorForLanguageModeling(tokens.hf_tokenizer)
    last = float("nan")
    model.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = _LR * (1 - step / steps)
        if masking is None:
            ids = draw_windows(encoded, _BATCH, window, generator)
            logits = model(input_ids=ids).logits[:, :-1]  # [windows, tokens - 1, vocabulary]
            loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        else:
            rows = torch.randint(len(encoded), (_TEXTS,), generator=generator).tolist()
            loss = model(**masking([{"input_ids": encoded[row]} for row in rows])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        last = loss.item()
        if not torch.isfinite(loss):
            raise NumericsError(f"step {step + 1} of the caption language model: the loss is {last}")
        if (step + 1) % 100 == 0:
            log.info("caption language model, step %d of %d: %.3f nats per token", step + 1, steps, last)
    model.eval()
    return last


def draw_windows(captions: Sequence[Sequence[int]], batch: int, window: int, generator: torch.Generator) -> Tensor:
    """Draw captions and concatenate them into a batch of full windows, `[batch, window]`.

    Full windows train every position embedding: a prefix or a prompt context moves captions to positions that no
    caption alone would reach.

    Args:
        captions: Token ids, with the end-of-text token.
        batch: Number of windows.
        window: Tokens per window.
        generator: Draws the captions.
    """
    stream: list[int] = []
    while len(stream) < batch * window:
        stream += captions[int(torch.randint(len(captions), (1,), generator=generator))]
    return torch.tensor(stream[: batch * window]).reshape(batch, window)
