"""Asking a head that was trained on labels: a linear probe, or a whole tower that was fine-tuned.

The questions, their images, their floors and their files are those of zero-shot classification; only the answers come
from a head. Training draws at random, so one run is one run: several seeds have a mean and a spread.

Shapes: `N` images, `C` classes.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cleft.config import Settings, load_run_settings
from cleft.data.batches import eval_loader
from cleft.errors import CheckpointError, ConfigError
from cleft.evaluation.metrics import Floats, finite
from cleft.evaluation.predictions import Blank
from cleft.evaluation.result_files import anonymise, write_down, write_evaluation
from cleft.evaluation.scoring import USUAL_DRAWS, Bootstrap
from cleft.evaluation.task import BATCH, CANNOT_BE_ASKED, Question, Scoring, Selection, Split, check_image_spec
from cleft.files import as_path
from cleft.grammar import count
from cleft.models.checkpoint import weights_digest
from cleft.models.image_classifier import (
    HeadInfo,
    ImageClassifier,
    find_tower_folder,
    load_image_classifier,
    read_head_info,
)
from cleft.results import Evaluation
from cleft.training.dataset import learned_data
from cleft.training.features import EMBEDDINGS, device_of, encode_features, features_key, label_images
from cleft.training.linear_probe import is_exact
from cleft.training.provenance import read_summary, stage_of

log = logging.getLogger(__name__)


def evaluate_classifier(
    run: Path | str,
    *,
    task: str | None = None,
    data: str | None = None,
    split: Split = "test",
    scoring: Scoring | None = None,
    blank: Blank | None = None,
    per_class: int | None = None,
    per_patient: int | None = None,
    allow_overlap: bool = False,
    drop_overlap: bool = False,
    overrides: Sequence[str] = (),
    examples: int = 10,
    draws: Bootstrap = USUAL_DRAWS,
    progress: bool = True,
) -> Path:
    """Asks a head about images and writes the answer into the run's `results`.

    Args:
        run: Run folder of `classify`.
        task: For those who want to be sure: `linear-probe` or `fine-tune`, as the head was trained.
        data: `dataset:folder` to ask about other images than those it was trained beside; they need the same classes.
        split: Which part of the data; `all` does not split it.
        scoring: For those who want to be sure: it must be what the head was trained for.
        blank: For `present-absent`: whether a finding nobody mentioned is not known, or absent; by default as in
            training.
        per_class: Ask about as many images of each class, drawn by the hash of their ids, in place of all.
        per_patient: Most images of a patient in a class, where `per_class` is given; by default 4.
        allow_overlap: Whether to score patients the head or its tower was trained on. The result then says so.
        drop_overlap: Whether to score only patients neither has seen. The result counts the images left out.
        overrides: Data settings in place of the run's, such as `["--data.root", "/data/moved"]`.
        examples: Images with their answers to keep for the page; 0 keeps none.
        draws: How intervals are drawn.
        progress: Whether to show bars.

    Returns:
        The result file.

    Raises:
        ConfigError: If the folder is no run, or the data lack a class of the head.
        DataError: If nothing can be asked of the images, or patients were trained on.
        CheckpointError: If the run has no head, is not finished or is damaged, or its tower has gone.
        NumericsError: If a feature or a score is not finite.
    """
    run = as_path(run, "run")
    usual = load_run_settings(run)
    facts = _head(run)
    if task not in (None, usual.classify.mode):
        raise ConfigError(f"--task {task}: {run} was made with --mode {usual.classify.mode}; leave it out")
    if scoring not in (None, facts.scoring):
        raise ConfigError(f"--scoring {scoring}: the head of {run} was trained for {facts.scoring}; leave it out")
    question = Question(
        data=data,
        split=split,
        classes=facts.classes,
        scoring="multi-class" if facts.scoring == "multi-class" else "present-absent",
        blank=blank or usual.classify.blank,
        per_class=per_class,
        per_patient=per_patient,
        allow_overlap=allow_overlap,
        drop_overlap=drop_overlap,
        overrides=tuple(overrides),
    )
    settings = question.run_settings(run)
    images = question.images(run, settings, progress=progress)
    _check_classes(run, facts, images)
    model = load_image_classifier(run)
    check_image_spec(run, model, settings)
    labelled = label_images(images.records, images.findings)
    answers = question.answer(_logits(run, model, images, settings, progress=progress), labelled, facts.classes, draws)
    held, unvalidated = question.validation(run, settings, progress=progress)
    validation = None
    if held is not None:
        known = _logits(run, model, held, settings, progress=progress)
        validation = question.score(known, label_images(held.records, held.findings), facts.classes)
        unvalidated = None if validation else CANNOT_BE_ASKED
    summary = read_summary(run) or {}
    trained_on, patients = (int((summary.get(what) or {}).get("train", 0)) for what in ("images", "patients"))
    evaluation = write_down(
        question,
        run,
        images,
        answers,
        task=settings.classify.mode,
        checkpoint=weights_digest(run),
        classes=facts.classes,
        draws=draws,
        examples=examples,
        options={
            "--classes": None,  # the head has no others
            "--scoring": None,
            "--blank": question.blank if question.scoring == "present-absent" else None,
        },
        notes=[_history(settings, trained_on, patients, str(summary.get("told")))],
        validation=validation,
        unvalidated=unvalidated,
    )
    evaluation = replace(
        evaluation,
        protocol=settings.classify.protocol,
        fraction=settings.classify.fraction,
        training_seed=settings.seed,
        training_images=trained_on,
        training_patients=patients,
    )
    kept = anonymise(answers.scored, [labelled.ids[row] for row in answers.rows])
    return write_evaluation(evaluation, run / "results", kept)


def train_classifiers(
    source: Path,
    settings: Settings,
    folder: Path,
    *,
    seeds: int | None = None,
    data: str | None = None,
    classes: Sequence[str] | None = None,
    allow_overlap: bool = False,
    drop_overlap: bool = False,
    examples: int = 10,
    draws: Bootstrap = USUAL_DRAWS,
    progress: bool = True,
) -> list[Path]:
    """Trains a head for each seed and asks each about the test part at once.

    That the test patients are unknown to the source is checked before anything is trained.

    Args:
        source: Run folder whose image tower the heads stand on.
        settings: As for `classify`.
        folder: The new run folder; with several seeds a folder of run folders, `seed-0` and so on.
        seeds: How many heads, with the seeds 0, 1, …; None for one with the settings' seed. One where no seed makes a
            difference: a probe fitted in closed form on all training images.
        data: As for `classify`.
        classes: As for `classify`.
        allow_overlap: As for `evaluate_classifier`.
        drop_overlap: As for `evaluate_classifier`.
        examples: As for `evaluate_classifier`.
        draws: How intervals are drawn.
        progress: Whether to show bars.

    Returns:
        The result files, one for each seed.

    Raises:
        ConfigError: If `seeds` is below 1, and as `classify` and `evaluate_classifier`.
        CleftError: As `classify` and `evaluate_classifier`.
    """
    from cleft.training.classify import classify  # loads the trainer, which evaluation alone does not need

    if seeds is not None and seeds < 1:
        raise ConfigError(f"--seeds {seeds}: at least one head is trained; give 1 or more")
    if seeds is not None and seeds > 1 and is_exact(settings.classify) and settings.classify.fraction == 1:
        log.warning(
            "--seeds %d: a linear probe fitted in closed form on all training images does not depend on the seed; one "
            "head is fitted. With --fraction below 1 each seed draws other patients",
            seeds,
        )
        seeds = 1
    places = {settings.seed: folder} if seeds is None else {seed: folder / f"seed-{seed}" for seed in range(seeds)}
    if seeds == 1:
        places = {0: folder}
    settings = replace(settings, data=learned_data(source, settings, data))
    question = Question(allow_overlap=allow_overlap, drop_overlap=drop_overlap)
    question.images(source, settings, progress=progress)
    results: list[Path] = []
    for seed, place in places.items():
        run = classify(source, replace(settings, seed=seed), place, classes=classes, progress=progress)
        results.append(
            evaluate_classifier(
                run,
                allow_overlap=allow_overlap,
                drop_overlap=drop_overlap,
                examples=examples,
                draws=draws,
                progress=progress,
            )
        )
    return results


def seed_spread(evaluations: Sequence[Evaluation]) -> list[str]:
    """Mean and spread of the main numbers over training seeds, a line for each; nothing where there is one seed.

    The standard deviation is that of a sample: over n - 1. Equal weights under several seeds are one head without a
    spread, whatever the seeds.

    Example:
        >>> from cleft.results import Result
        >>> def of(seed: int, value: float) -> Evaluation:
        ...     return Evaluation(
        ...         task="fine-tune", dataset="", split="test", split_recipe="", split_digest="", ids_digest="",
        ...         checkpoint=f"{seed}", scoring="multi-class", prompts="none", classes=(), class_prompts=(),
        ...         results=(Result(metric="auc", value=value),), floors=(), training_seed=seed)
        >>> seed_spread([of(0, 0.7), of(1, 0.8), of(2, 0.9)])
        ['auc: mean 0.800, from 0.700 to 0.900, standard deviation 0.100, over seeds 0, 1, 2']
    """
    if len(evaluations) < 2:
        return []
    seeds = ", ".join(str(evaluation.training_seed) for evaluation in evaluations)
    if len({evaluation.checkpoint for evaluation in evaluations}) == 1:
        return [f"seeds {seeds} ended in the same weights: there is no spread"]
    lines: list[str] = []
    for metric in dict.fromkeys(result.metric for result in evaluations[0].results if "/" not in result.metric):
        found = [result.value for each in evaluations for result in each.results if result.metric == metric]
        values = [value for value in found if value is not None]
        if len(values) < len(evaluations):
            lines.append(f"{metric}: not measured for every seed")
            continue
        lines.append(
            f"{metric}: mean {statistics.mean(values):.3f}, from {min(values):.3f} to {max(values):.3f}, "
            f"standard deviation {statistics.stdev(values):.3f}, over seeds {seeds}"
        )
    return lines


def _head(run: Path) -> HeadInfo:
    facts = read_head_info(run)
    if facts is not None:
        return facts
    stage = stage_of(run)
    if stage == "classify":
        raise CheckpointError(
            f"{run}: classification is not finished; run the same cleft classify again, it goes on where it was stopped"
        )
    raise CheckpointError(f"{run} has no head that tells classes apart; cleft classify {run} trains one")


def _check_classes(run: Path, facts: HeadInfo, images: Selection) -> None:
    missing = [name for name in facts.classes if name not in images.findings]
    if missing:
        raise ConfigError(
            f"the head of {run} tells apart {', '.join(facts.classes)}, but {images.dataset} has no column "
            f"{' or '.join(missing)} (it has {', '.join(images.findings)}); ask about other data, or train a head on "
            f"these with cleft classify --data"
        )


def _logits(run: Path, model: ImageClassifier, images: Selection, settings: Settings, *, progress: bool) -> Floats:
    """As `Question.answer` wants them; features of a tower that heads share lie in its folder."""
    assert model.head_info is not None
    place = find_tower_folder(run)
    features = encode_features(
        model.to(device_of(settings)),
        eval_loader(images.records, images.prepared, images.findings, settings, batch_size=BATCH),
        images.records,
        folder=place / EMBEDDINGS,
        key=features_key(weights_digest(place), images.prepared.digest, settings),
        progress=progress,
    )
    with torch.no_grad():
        logits = finite(model.cpu().logits_of(features).numpy())
    if model.head_info.scoring == "multi-class":
        return logits
    # A head says the log-odds of a finding at once: there is no prompt of its absence to hold it against.
    return np.concatenate([logits, np.zeros_like(logits)], axis=1)


def _history(settings: Settings, images: int, patients: int, told: str) -> str:
    """How the head came about, in a sentence."""
    config = settings.classify
    share = "" if config.fraction == 1 else f", {100 * config.fraction:g} % of those of training"
    how = "linear probe" if config.mode == "linear-probe" else "fine-tuned tower"
    return (
        f"A {how}, {config.protocol} protocol, trained on {count(images, 'image')} of {count(patients, 'patient')} of "
        f"{settings.data.dataset}{share}; seed {settings.seed}; {told}."
    )
