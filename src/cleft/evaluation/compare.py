"""Paired comparison of two models on the same images.

Each bootstrap resample of patients is applied to both models. What makes a patient difficult for both cancels in the
difference, so that its interval is narrower than two separate intervals suggest.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cleft.errors import DataError, ResourceError
from cleft.evaluation import Bootstrap
from cleft.evaluation.metrics import mean_of, paired_intervals, value_of
from cleft.evaluation.result_files import predictions_path, read_evaluation, read_predictions
from cleft.evaluation.scoring import Measure, Predictions, classification_measures, difference, group_by_images
from cleft.files import as_path, file_key, write_whole
from cleft.grammar import count
from cleft.results import Comparison, Difference, Evaluation, holm, resamples_for, to_json


def compare(
    first: Path | str, second: Path | str, *, bootstrap: Bootstrap | None = None, command: str = ""
) -> Comparison:
    """Compares two results on the same images.

    Args:
        first: Result file of a run, `<run>/results/<name>.json`, with its predictions next to it.
        second: Another.
        bootstrap: How intervals are estimated; by default with as many resamples as the number of differences needs.
        command: Command of the comparison, without folders.

    Returns:
        The differences in accuracy and AUC, first minus second, over all classes and by class.

    Raises:
        DataError: If a file is missing or damaged, or images, labels or classes differ.
    """
    first, second = as_path(first, "first"), as_path(second, "second")
    one, other = _read_comparable([first, second])
    pairs = list(zip(_measures(one), _measures(other), strict=True))
    bootstrap = Bootstrap(resamples=resamples_for(len(pairs))) if bootstrap is None else bootstrap
    both = (one.evaluation, other.evaluation)
    return Comparison(
        first=_run_name(first),
        second=_run_name(second),
        first_result=first.name,
        second_result=second.name,
        first_task=one.evaluation.task,
        second_task=other.evaluation.task,
        first_checkpoint=one.evaluation.checkpoint,
        second_checkpoint=other.evaluation.checkpoint,
        dataset=one.evaluation.dataset,
        split=one.evaluation.split,
        ids_digest=one.evaluation.ids_digest,
        scoring=one.evaluation.scoring,
        classes=one.evaluation.classes,
        differences=_differences(pairs, one.predictions.patients, bootstrap),
        synthetic=all(each.synthetic for each in both),
        command=command,
        seed=bootstrap.seed,
        resamples=bootstrap.resamples,
        notes=tuple(dict.fromkeys(note for each in both for note in each.notes if note.startswith("Beware"))),
    )


def compare_seeds(
    firsts: Sequence[Path], seconds: Sequence[Path], *, bootstrap: Bootstrap = Bootstrap()
) -> tuple[Difference, ...]:
    """Compares two models that were trained with the same seeds, seed by seed.

    A resample of patients is applied to every seed of both models. The result is the mean difference over seeds; its
    interval is over patients, for these trained weights.

    Args:
        firsts: Result files of a model, one per seed.
        seconds: Result files of another, in the order of the same seeds.
        bootstrap: How intervals are estimated.

    Returns:
        The differences in accuracy and AUC, first minus second.

    Raises:
        DataError: If a file is missing or damaged, or images, labels or classes differ.
        ValueError: If the numbers of files differ.
    """
    if len(firsts) != len(seconds):
        raise ValueError(f"{len(firsts)} and {len(seconds)} result files; give one of each model for every seed")
    stored = _read_comparable([*firsts, *seconds])
    seeds = len(firsts)
    pairs = zip(_seed_means(stored[:seeds]), _seed_means(stored[seeds:]), strict=True)
    main = [pair for pair in pairs if "/" not in pair[0].metric]
    return _differences(main, stored[0].predictions.patients, bootstrap)


def write_comparison(comparison: Comparison, run: Path) -> Path:
    """Writes a comparison into the `comparisons` folder of a run, replacing an earlier one of the same two results.

    Raises:
        ResourceError: If it cannot be written.
    """
    pair = "|".join((comparison.first_result, comparison.second, comparison.second_result))
    digest = hashlib.sha256(pair.encode()).hexdigest()[:8]
    path = run / "comparisons" / f"{Path(comparison.first_result).stem}-against-{comparison.second}-{digest}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, to_json(comparison).encode(), mode=0o644)
    except OSError as error:
        raise ResourceError(f"cannot write {path} ({error.strerror}); make room or choose another folder") from error
    return path


def comparison_lines(comparison: Comparison) -> list[str]:
    """Returns the main differences as lines of text, with p-values corrected for all differences, those of classes too.

    Example:
        >>> comparison_lines(Comparison(
        ...     first="lora", second="ia3", first_result="", second_result="", first_task="", second_task="",
        ...     first_checkpoint="", second_checkpoint="", dataset="", split="", ids_digest="", scoring="", classes=(),
        ...     differences=(Difference(metric="auc", first=0.9, second=0.8, difference=0.1, interval=(0.04, 0.15),
        ...         p_value=0.002, images=60, patients=40),)))
        ['auc lora 0.900, ia3 0.800: difference +0.100 [+0.040 +0.150], p 0.002, 60 images of 40 patients']
    """
    corrected = holm([each.p_value for each in comparison.differences])
    lines = [
        _difference_line(each, comparison, p_value, corrected.family)
        for each, p_value in zip(comparison.differences, corrected.p_values, strict=True)
        if "/" not in each.metric
    ]
    if corrected.family > 1:
        lines.append(f"corrected: Holm's correction for {corrected.family} tested differences")
    return lines


def _difference_line(change: Difference, comparison: Comparison, corrected: float | None, family: int) -> str:
    values = [
        f"{name} {'not measured' if value is None else f'{value:.3f}'}"
        for name, value in ((comparison.first, change.first), (comparison.second, change.second))
    ]
    value = "not measured" if change.difference is None else f"{change.difference:+.3f}"
    bounds = "" if change.interval is None else f" [{change.interval[0]:+.3f} {change.interval[1]:+.3f}]"
    p_value = "" if change.p_value is None else f", p {change.p_value:.3f}"
    if corrected is not None and family > 1:
        p_value += f", corrected {corrected:.3f}"
    reason = f" ({change.reason})" if change.reason else ""
    images = f"{count(change.images, 'image')} of {count(change.patients, 'patient')}"
    return f"{change.metric} {', '.join(values)}: difference {value}{bounds}{p_value}{reason}, {images}"


class _Stored(NamedTuple):
    """A result and its predictions."""

    evaluation: Evaluation
    predictions: Predictions


def _read_comparable(results: Sequence[Path]) -> list[_Stored]:
    """Reads results that have images, labels, scoring and classes in common; raises if they have not."""
    evaluations = [_read_result(result, _content_key(result)) for result in results]
    for result, evaluation in zip(results, evaluations, strict=True):
        _check_comparable(results[0], evaluations[0], result, evaluation)
    stored = [_read_stored(result, _content_key(result), _content_key(predictions_path(result))) for result in results]
    for result, each in zip(results, stored, strict=True):
        if not np.array_equal(stored[0].predictions.truth, each.predictions.truth, equal_nan=True):
            raise DataError(
                f"{_full_name(results[0])} and {_full_name(result)} were measured on the same images with other "
                f"labels; evaluate both with the same data.label_source, data.uncertain and --blank",
                reason="other-labels",
            )
    return stored


@functools.lru_cache(maxsize=64)
def _read_result(result: Path, key: str) -> Evaluation:
    """Reads a result once per content: the reference of a study is compared with every row."""
    return read_evaluation(result)


@functools.lru_cache(maxsize=64)
def _read_stored(result: Path, key: str, predictions_key: str) -> _Stored:
    evaluation = _read_result(result, key)
    return _Stored(evaluation, read_predictions(result, evaluation).predictions())


def _content_key(path: Path) -> str:
    """Identity of a file's content; empty without a file."""
    return file_key(path) if path.is_file() else ""


def _measures(stored: _Stored) -> list[Measure]:
    return classification_measures(stored.predictions, stored.evaluation.classes, rankings=("auc",))


def _seed_means(seeds: Sequence[_Stored]) -> list[Measure]:
    """Mean of each metric over seeds on the same images."""
    means: list[Measure] = []
    for same in zip(*map(_measures, seeds), strict=True):
        statistics = [each.statistic for each in same if each.statistic is not None]
        means.append(same[0]._replace(statistic=mean_of(statistics) if len(statistics) == len(same) else None))
    return means


def _differences(
    pairs: Sequence[tuple[Measure, Measure]], patients: Sequence[str], bootstrap: Bootstrap
) -> tuple[Difference, ...]:
    measures = [difference(one.metric, one, other) for one, other in pairs]
    differences: dict[int, Difference] = {}
    for places in group_by_images(measures):
        rows = measures[places[0]].rows
        owners = [patient for patient, scored in zip(patients, rows, strict=True) if scored]
        defined = {place: each for place in places if (each := measures[place].statistic) is not None}
        drawn = paired_intervals(list(defined.values()), owners, resamples=bootstrap.resamples, seed=bootstrap.seed)
        tested = dict(zip(defined, drawn, strict=True))
        for place in places:
            first, second = (_value(measure) for measure in pairs[place])
            interval, p_value = tested.get(place, (None, None))
            reasons = [measures[place].reason, interval.reason if interval else None]
            differences[place] = Difference(
                metric=measures[place].metric,
                first=first,
                second=second,
                difference=None if first is None or second is None else first - second,
                interval=interval.bounds if interval else None,
                p_value=p_value,
                images=len(owners),
                patients=len(set(owners)),
                reason="; ".join(reason for reason in reasons if reason) or None,
            )
    return tuple(differences[place] for place in range(len(pairs)))


def _value(measure: Measure) -> float | None:
    return None if measure.statistic is None else value_of(measure.statistic, int(measure.rows.sum()))


def _check_comparable(first: Path, one: Evaluation, second: Path, other: Evaluation) -> None:
    if one.ids_digest != other.ids_digest:
        raise DataError(
            f"results of another split: {_full_name(first)} was measured on the images {one.ids_digest}, "
            f"{_full_name(second)} on {other.ids_digest}; evaluate both with the same --data, --split and split file",
            reason="other-images",
        )
    for option, mine, theirs in (
        ("scoring", one.scoring, other.scoring),
        ("classes", ", ".join(one.classes), ", ".join(other.classes)),
    ):
        if mine != theirs:
            raise DataError(
                f"{_full_name(first)} has {option} {mine}, {_full_name(second)} has {theirs}; evaluate both with the "
                f"same --{option}",
                reason="other-question",
            )


def _full_name(result: Path) -> str:
    return f"{_run_name(result)}/{result.name}"


def _run_name(result: Path) -> str:
    """Name of the run folder of a result file."""
    return result.resolve().parent.parent.name
