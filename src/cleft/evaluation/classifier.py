"""Evaluation of image classifiers trained on labels: linear probes and fine-tuned image towers.

Images, baselines and result files are those of zero-shot classification.

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
from cleft.errors import CheckpointError, ConfigError, DataError
from cleft.evaluation import ClassifierOptions, Scoring
from cleft.evaluation.metrics import Floats, finite
from cleft.evaluation.predictions import classification_predictions, classification_results
from cleft.evaluation.result_files import add_classification, anonymise, base_evaluation, write_evaluation
from cleft.evaluation.task import (
    BATCH_SIZE,
    NO_VALIDATION_LABELS,
    Selection,
    check_image_spec,
    command_of,
    evaluation_settings,
    select_images,
    validation_images,
)
from cleft.files import as_path
from cleft.grammar import count
from cleft.models.checkpoint import weights_digest
from cleft.models.image_classifier import HeadInfo, ImageClassifier, find_tower_folder, load_image_classifier
from cleft.models.model_folder import read_head_info
from cleft.results import Evaluation
from cleft.training.dataset import training_data_config
from cleft.training.features import EMBEDDINGS, encode_features, features_key, inference_device, label_images
from cleft.training.linear_probe import uses_solver
from cleft.training.provenance import read_summary, stage_of

log = logging.getLogger(__name__)


def evaluate_classifier(
    run: Path | str, options: ClassifierOptions = ClassifierOptions(), *, progress: bool = True
) -> Path:
    """Evaluates a trained classifier and writes the result into the run's `results` folder.

    Args:
        run: Run folder of `classify`.
        options: Images to evaluate on; other data need the same classes.
        progress: Whether to show progress bars.

    Returns:
        The result file.

    Raises:
        ConfigError: If the folder is not a run, the data lack a class, or mode or scoring are not those of training.
        DataError: If no image can be evaluated, or the classifier was trained on their patients.
        CheckpointError: If the run has no classifier, is not finished or is damaged, or its image tower is missing.
        NumericsError: If a feature or a score is not finite.
    """
    run = as_path(run, "run")
    trained = load_run_settings(run).classify
    facts = _head(run)
    if options.mode not in (None, trained.mode):
        raise ConfigError(f"--task {options.mode}: {run} was trained with --mode {trained.mode}; leave it out")
    if options.scoring not in (None, facts.scoring):
        raise ConfigError(f"--scoring {options.scoring}: {run} was trained for {facts.scoring}; leave it out")
    scoring: Scoring = "multi-class" if facts.scoring == "multi-class" else "present-absent"
    blank = options.blank or trained.blank
    settings = evaluation_settings(run, options)
    images = select_images(run, settings, options, classes=facts.classes, progress=progress)
    _check_classes(run, facts, images)
    model = load_image_classifier(run)
    check_image_spec(run, model, settings)
    labelled = label_images(images.records, images.findings)
    logits = _logits(run, model, images, settings, progress=progress)
    classified = classification_results(
        logits, labelled, facts.classes, scoring, blank=blank, bootstrap=options.bootstrap
    )
    validation = validation_images(run, settings, options, progress=progress)
    if not isinstance(validation, str):
        others = label_images(validation.records, validation.findings)
        other_logits = _logits(run, model, validation, settings, progress=progress)
        try:
            validation = classification_predictions(other_logits, others, facts.classes, scoring, blank=blank)[1]
        except DataError:
            validation = NO_VALIDATION_LABELS
    task = settings.classify.mode
    base = base_evaluation(task, command_of(run, task, options), images, classified.rows, options, weights_digest(run))
    evaluation = add_classification(
        base, classified, images, facts.classes, validation, options.bootstrap, examples=options.examples
    )
    summary = read_summary(run) or {}
    trained_on, patients = (int((summary.get(what) or {}).get("train", 0)) for what in ("images", "patients"))
    evaluation = replace(
        evaluation,
        scoring=scoring,
        notes=(
            *evaluation.notes,
            _training_note(settings, trained_on, patients, str(summary.get("description", summary.get("told")))),
        ),
        protocol=settings.classify.protocol,
        training_fraction=settings.classify.fraction,
        training_seed=settings.seed,
        training_images=trained_on,
        training_patients=patients,
    )
    stored = anonymise(classified.predictions, [labelled.ids[row] for row in classified.rows])
    return write_evaluation(evaluation, run / "results", stored)


def train_classifiers(
    source: Path,
    settings: Settings,
    folder: Path,
    options: ClassifierOptions = ClassifierOptions(),
    *,
    seeds: int | None = None,
    data: str | None = None,
    classes: Sequence[str] | None = None,
    progress: bool = True,
) -> list[Path]:
    """Trains a classifier for each seed and evaluates it.

    Overlap of the test patients with those of the source is checked before training.

    Args:
        source: Run folder whose image tower is used.
        settings: Settings, as for `classify`.
        folder: New run folder; with several seeds a folder of run folders `seed-0`, `seed-1`, ….
        options: Options of the evaluation.
        seeds: Number of classifiers, with the seeds 0, 1, …; None for one with the seed of the settings. Reduced to one
            if the seed has no effect: a linear probe fitted in closed form on all training images.
        data: Dataset and folder, as for `classify`.
        classes: Classes, as for `classify`.
        progress: Whether to show progress bars.

    Returns:
        The result files, one for each seed.

    Raises:
        ConfigError: If `seeds` is below 1, and as `classify` and `evaluate_classifier`.
        CleftError: As `classify` and `evaluate_classifier`.
    """
    from cleft.training.classify import classify  # the trainer, which an evaluation does not need

    if seeds is not None and seeds < 1:
        raise ConfigError(f"--seeds {seeds}: at least one classifier is trained; give 1 or more")
    if seeds is not None and seeds > 1 and uses_solver(settings.classify) and settings.classify.fraction == 1:
        log.warning(
            "--seeds %d: a linear probe fitted in closed form on all training images does not depend on the seed; one "
            "is fitted. With --fraction below 1 each seed draws other patients",
            seeds,
        )
        seeds = 1
    folders = {settings.seed: folder} if seeds is None else {seed: folder / f"seed-{seed}" for seed in range(seeds)}
    if seeds == 1:
        folders = {0: folder}
    settings = replace(settings, data=training_data_config(source, settings, data))
    overlap = ClassifierOptions(allow_overlap=options.allow_overlap, drop_overlap=options.drop_overlap)
    select_images(source, settings, overlap, progress=progress)
    results: list[Path] = []
    for seed, place in folders.items():
        run = classify(source, replace(settings, seed=seed), place, classes=classes, progress=progress)
        results.append(evaluate_classifier(run, options, progress=progress))
    return results


def seed_spread(evaluations: Sequence[Evaluation]) -> list[str]:
    """Returns mean and sample standard deviation (n - 1) of the main metrics over training seeds, one line each.

    Empty for one seed. Equal weights for all seeds have no spread.

    Example:
        >>> from cleft.results import Result
        >>> def seed(seed: int, value: float) -> Evaluation:
        ...     return Evaluation(
        ...         task="fine-tune", dataset="", split="test", split_recipe="", split_digest="", ids_digest="",
        ...         checkpoint=f"{seed}", scoring="multi-class", prompts="none", classes=(), class_prompts=(),
        ...         results=(Result(metric="auc", value=value),), baselines=(), training_seed=seed)
        >>> seed_spread([seed(0, 0.7), seed(1, 0.8), seed(2, 0.9)])
        ['auc: mean 0.800, from 0.700 to 0.900, standard deviation 0.100, over seeds 0, 1, 2']
    """
    if len(evaluations) < 2:
        return []
    seeds = ", ".join(str(evaluation.training_seed) for evaluation in evaluations)
    if len({evaluation.checkpoint for evaluation in evaluations}) == 1:
        return [f"seeds {seeds} ended in the same weights: there is no spread"]
    lines: list[str] = []
    for metric in dict.fromkeys(result.metric for result in evaluations[0].results if "/" not in result.metric):
        every = [result.value for each in evaluations for result in each.results if result.metric == metric]
        values = [value for value in every if value is not None]
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
    if stage_of(run) == "classify":
        raise CheckpointError(f"{run}: training is not finished; run the same cleft classify again to resume it")
    raise CheckpointError(f"{run} has no classifier; cleft classify {run} trains one")


def _check_classes(run: Path, facts: HeadInfo, images: Selection) -> None:
    missing = [name for name in facts.classes if name not in images.findings]
    if missing:
        raise ConfigError(
            f"the classifier of {run} has the classes {', '.join(facts.classes)}, but {images.dataset} has no column "
            f"{' or '.join(missing)} (it has {', '.join(images.findings)}); evaluate on other data, or train a "
            f"classifier on these with cleft classify --data"
        )


def _logits(run: Path, model: ImageClassifier, images: Selection, settings: Settings, *, progress: bool) -> Floats:
    """Logits as `classification_results` expects them; features of a shared image tower are stored in its folder."""
    assert model.head_info is not None
    place = find_tower_folder(run)
    features = encode_features(
        model.to(inference_device(settings)),
        eval_loader(images.records, images.prepared, images.findings, settings, batch_size=BATCH_SIZE),
        images.records,
        folder=place / EMBEDDINGS,
        key=features_key(weights_digest(place), images.prepared.digest, settings),
        progress=progress,
    )
    with torch.no_grad():
        logits = finite(model.cpu().logits_of(features).numpy())
    if model.head_info.scoring == "multi-class":
        return logits
    # The classifier returns log-odds of presence; there is no second logit for absence.
    return np.concatenate([logits, np.zeros_like(logits)], axis=1)


def _training_note(settings: Settings, images: int, patients: int, details: str) -> str:
    config = settings.classify
    share = "" if config.fraction == 1 else f", {100 * config.fraction:g} % of the training patients"
    kind = "Linear probe" if config.mode == "linear-probe" else "Fine-tuned image tower"
    return (
        f"{kind}, {config.protocol} protocol, trained on {count(images, 'image')} of {count(patients, 'patient')} of "
        f"{settings.data.dataset}{share}; seed {settings.seed}; {details}."
    )
