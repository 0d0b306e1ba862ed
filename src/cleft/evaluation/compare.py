"""Two models on the same images: is one better, or does it only look so on these patients?

Each resample of patients is given to both models. What makes a patient hard or easy for both falls out of the
difference, so that its interval is narrower than two intervals side by side would let one think.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cleft.correction import holm, resamples_for
from cleft.errors import DataError, ResourceError
from cleft.evaluation.metrics import mean_of, paired_intervals, value_of
from cleft.evaluation.result_files import predictions_path, read_evaluation, read_predictions
from cleft.evaluation.scoring import (
    USUAL_DRAWS,
    Bootstrap,
    Measure,
    Predictions,
    classification_measures,
    difference,
    group_by_images,
)
from cleft.files import file_key, write_whole
from cleft.grammar import count
from cleft.results import Comparison, Difference, Evaluation, to_json


def compare(first: Path, second: Path, *, draws: Bootstrap | None = None, command: str = "") -> Comparison:
    """Holds two results on the same images against each other.

    Args:
        first: Result file of a run, `<run>/results/<name>.json`, with its answers beside it.
        second: Another.
        draws: How intervals are drawn; by default with as many resamples as the number of differences needs.
        command: What was typed, without folders.

    Returns:
        The differences in accuracy and AUC, first minus second, all classes together and one by one.

    Raises:
        DataError: If a file is missing or damaged, or the two were measured on other images, labels or classes.
    """
    mine, theirs = _read_alike([first, second])
    one, other = mine.evaluation, theirs.evaluation
    pairs = list(zip(_measures(mine), _measures(theirs), strict=True))
    draws = Bootstrap(resamples=resamples_for(len(pairs))) if draws is None else draws
    return Comparison(
        first=_run(first),
        second=_run(second),
        first_result=first.name,
        second_result=second.name,
        first_task=one.task,
        second_task=other.task,
        first_checkpoint=one.checkpoint,
        second_checkpoint=other.checkpoint,
        dataset=one.dataset,
        split=one.split,
        ids_digest=one.ids_digest,
        scoring=one.scoring,
        classes=one.classes,
        differences=_differences(pairs, mine.scored.patients, draws),
        synthetic=one.synthetic and other.synthetic,
        command=command,
        seed=draws.seed,
        resamples=draws.resamples,
        notes=tuple(dict.fromkeys(note for each in (one, other) for note in each.notes if note.startswith("Beware"))),
    )


def compare_seeds(
    firsts: Sequence[Path], seconds: Sequence[Path], *, draws: Bootstrap = USUAL_DRAWS
) -> tuple[Difference, ...]:
    """Holds two models against each other that were trained with the same seeds, seed by seed.

    A resample of patients is given to every seed of both. What is told is the mean over seeds of the differences; the
    interval is one over patients, for these trained weights.

    Args:
        firsts: Result files of a model, one per seed.
        seconds: Of another, as many, in the order of the same seeds.
        draws: How intervals are drawn.

    Returns:
        The differences in accuracy and AUC, first minus second.

    Raises:
        DataError: If a file is missing or damaged, or any two were measured on other images, labels or classes.
        ValueError: If there are not as many of both.
    """
    if len(firsts) != len(seconds):
        raise ValueError(f"{len(firsts)} and {len(seconds)} result files; give one of each model for every seed")
    answered = _read_alike([*firsts, *seconds])
    seeds = len(firsts)
    pairs = zip(_over_seeds(answered[:seeds]), _over_seeds(answered[seeds:]), strict=True)
    return _differences([pair for pair in pairs if "/" not in pair[0].metric], answered[0].scored.patients, draws)


def write_comparison(comparison: Comparison, run: Path) -> Path:
    """Writes a comparison into the `comparisons` of a run, in place of an earlier one of the same two results.

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
    """The differences in a few lines; p-values also corrected for all differences that were tested, classes included.

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
        _line(each, comparison, p, corrected.family)
        for each, p in zip(comparison.differences, corrected.p_values, strict=True)
        if "/" not in each.metric
    ]
    if corrected.family > 1:
        lines.append(f"corrected: by Holm for the {corrected.family} differences that were tested")
    return lines


def _line(found: Difference, comparison: Comparison, corrected: float | None, family: int) -> str:
    values = [
        f"{name} {'not measured' if value is None else f'{value:.3f}'}"
        for name, value in ((comparison.first, found.first), (comparison.second, found.second))
    ]
    told = "not measured" if found.difference is None else f"{found.difference:+.3f}"
    bounds = "" if found.interval is None else f" [{found.interval[0]:+.3f} {found.interval[1]:+.3f}]"
    sure = "" if found.p_value is None else f", p {found.p_value:.3f}"
    if corrected is not None and family > 1:
        sure += f", corrected {corrected:.3f}"
    reason = f" ({found.reason})" if found.reason else ""
    rests = f"{count(found.images, 'image')} of {count(found.patients, 'patient')}"
    return f"{found.metric} {', '.join(values)}: difference {told}{bounds}{sure}{reason}, {rests}"


class _Answered(NamedTuple):
    """A result and what was answered image by image."""

    evaluation: Evaluation
    scored: Predictions


def _read_alike(results: Sequence[Path]) -> list[_Answered]:
    """Reads results of the same question about the same images with the same labels; anything else is refused."""
    evaluations = [_evaluation(result, _written(result)) for result in results]
    for result, evaluation in zip(results, evaluations, strict=True):
        _refuse_strangers(results[0], evaluations[0], result, evaluation)
    found = [_answered(result, _written(result), _written(predictions_path(result))) for result in results]
    for result, each in zip(results, found, strict=True):
        if not np.array_equal(found[0].scored.truth, each.scored.truth, equal_nan=True):
            raise DataError(
                f"{_named(results[0])} and {_named(result)} were measured on the same images with other labels; "
                f"evaluate both with the same data.label_source, data.uncertain and --blank",
                reason="other-labels",
            )
    return found


@functools.lru_cache(maxsize=64)
def _evaluation(result: Path, written: str) -> Evaluation:
    """A reference is held against every row of a table, and opened once as long as it is not written anew."""
    return read_evaluation(result)


@functools.lru_cache(maxsize=64)
def _answered(result: Path, written: str, kept: str) -> _Answered:
    evaluation = _evaluation(result, written)
    return _Answered(evaluation, read_predictions(result, evaluation).scored())


def _written(path: Path) -> str:
    """Identity of a file in its present state; empty where there is none."""
    return file_key(path) if path.is_file() else ""


def _measures(answered: _Answered) -> list[Measure]:
    return classification_measures(answered.scored, answered.evaluation.classes, rankings=("auc",))


def _over_seeds(seeds: Sequence[_Answered]) -> list[Measure]:
    """The mean of each number over seeds that rest on the same images."""
    means: list[Measure] = []
    for same in zip(*map(_measures, seeds), strict=True):
        statistics = [each.statistic for each in same if each.statistic is not None]
        means.append(same[0]._replace(statistic=mean_of(statistics) if len(statistics) == len(same) else None))
    return means


def _differences(
    pairs: Sequence[tuple[Measure, Measure]], patients: Sequence[str], draws: Bootstrap
) -> tuple[Difference, ...]:
    apart = [difference(one.metric, one, other) for one, other in pairs]
    found: dict[int, Difference] = {}
    for places in group_by_images(apart):
        rows = apart[places[0]].rows
        whose = [patient for patient, asked in zip(patients, rows, strict=True) if asked]
        defined = {place: each for place in places if (each := apart[place].statistic) is not None}
        drawn = paired_intervals(list(defined.values()), whose, resamples=draws.resamples, seed=draws.seed)
        tested = dict(zip(defined, drawn, strict=True))
        for place in places:
            values = [_value(measure) for measure in pairs[place]]
            interval, p_value = tested.get(place, (None, None))
            reasons = [apart[place].reason, interval.reason if interval else None]
            found[place] = Difference(
                metric=apart[place].metric,
                first=values[0],
                second=values[1],
                difference=None if values[0] is None or values[1] is None else values[0] - values[1],
                interval=interval.bounds if interval else None,
                p_value=p_value,
                images=len(whose),
                patients=len(set(whose)),
                reason="; ".join(reason for reason in reasons if reason) or None,
            )
    return tuple(found[place] for place in range(len(pairs)))


def _value(measure: Measure) -> float | None:
    return None if measure.statistic is None else value_of(measure.statistic, int(measure.rows.sum()))


def _refuse_strangers(first: Path, one: Evaluation, second: Path, other: Evaluation) -> None:
    if one.ids_digest != other.ids_digest:
        raise DataError(
            f"results of another split: {_named(first)} was measured on the images {one.ids_digest}, {_named(second)} "
            f"on {other.ids_digest}; evaluate both with the same --data, --split and split file",
            reason="other-images",
        )
    for what, mine, theirs in (
        ("scoring", one.scoring, other.scoring),
        ("classes", ", ".join(one.classes), ", ".join(other.classes)),
    ):
        if mine != theirs:
            raise DataError(
                f"{_named(first)} and {_named(second)} answer different questions: {what} {mine} there, {theirs} here; "
                f"evaluate both with the same --{what}",
                reason="other-question",
            )


def _named(result: Path) -> str:
    return f"{_run(result)}/{result.name}"


def _run(result: Path) -> str:
    """Name of the run's folder that a result lies in."""
    return result.resolve().parent.parent.name
