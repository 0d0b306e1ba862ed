"""Tables of results: one table holds results on the same images; a dash stands for what was not measured.

Every cell links to the result it came from, and every dash has a footnote with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from markupsafe import Markup

from cleft.grammar import count, verb
from cleft.privacy import MIN_PATIENTS
from cleft.report.charts import BLACK, GREY, legend_line, series_style, whisker
from cleft.report.html import (
    PERCENT,
    PNG,
    TOO_FEW,
    Cell,
    Footnotes,
    Row,
    Table,
    format_axis_end,
    format_interval,
    format_value,
    is_suppressed,
)
from cleft.report.paper import Published, published
from cleft.report.runs import Run, StoredResult
from cleft.results import Evaluation, Result, Retrieval, RetrievalExample

CLASSIFICATION_BASELINES = {"majority-class": "Majority class", "ap-view": "AP-view rule"}
"""Baselines without a model, for classification."""
BASELINES = {**CLASSIFICATION_BASELINES, "chance": "Chance level"}
DIRECTION_NAMES = {
    "image-to-text": "Image-to-text",
    "text-to-image": "Text-to-image",
    "image-to-image": "Image-to-image",
}
HEADLINE_METRICS = {"accuracy": "Accuracy", "auc": "AUC"}
METRIC_NAMES = {
    "auprc": "AUPRC",
    "ece": "ECE",
    "ece-after-temperature": "ECE after temperature scaling",
    "mean-rank": "Mean rank",
    "median-rank": "Median rank",
}
"""Names of further metrics; others, such as `recall@5`, are printed as they are."""
PROMPT_NAMES = {
    "context": "learned context",
    "handwritten": "handwritten prompts",
    "captions": "captions",
    "none": "no text",
}
SIMILARITY_NAMES = {
    "local": "local similarity (words and image regions)",
    "both": "global and local similarity",
    "released": "global and local similarity as in the released code",
}
"""Zero-shot similarities other than the global one."""
TASK_NAMES = {
    "zero-shot": "zero-shot",
    "linear-probe": "linear probe",
    "fine-tune": "fine-tuning",
    "retrieval": "retrieval",
    "prompts": "prompt sensitivity",
}
CLASSIFICATION_TASKS = ("zero-shot", "linear-probe", "fine-tune")
"""Tasks whose results on the same images share a table."""


class Entry(NamedTuple):
    """One evaluation in a table."""

    run: Run
    stored: StoredResult
    series: int
    """Index that determines colour and dash pattern in charts."""
    name: str = ""
    """Label in place of run and setup, where the heading names the task."""

    @property
    def evaluation(self) -> Evaluation:
        """Return the stored evaluation."""
        return self.stored.evaluation

    @property
    def label(self) -> str:
        """Return its label in rows and legends."""
        return self.name or f"{self.run.name}, {describe_setup(self.evaluation)}"


def describe_setup(evaluation: Evaluation) -> str:
    """Describe the prompts and similarity of a zero-shot evaluation, or how a classifier was trained."""
    if evaluation.protocol:
        share = (
            ""
            if evaluation.training_fraction == 1
            else f", {100 * evaluation.training_fraction:g}{PERCENT} of the training patients"
        )
        task = TASK_NAMES.get(evaluation.task, evaluation.task)
        return f"{task}, {evaluation.protocol} protocol{share}, seed {evaluation.training_seed}"
    parts = [PROMPT_NAMES.get(evaluation.prompts, evaluation.prompts)]
    if evaluation.class_names != "default":
        parts.append(f"class names “{evaluation.class_names}”")
    if evaluation.similarity != "global":
        parts.append(SIMILARITY_NAMES.get(evaluation.similarity, evaluation.similarity))
    if evaluation.standardised:
        parts.append("standardised over the images")
    return ", ".join(parts)


def group_results(runs: Sequence[Run]) -> list[list[Entry]]:
    """Group the evaluations that may share a table: same task, images and labels.

    Labels are taken as equal if the baselines are, which depend on nothing else.
    """
    groups: dict[Any, list[Entry]] = {}
    for run in runs:
        for stored in run.results:
            members = groups.setdefault(_comparison_key(stored.evaluation), [])
            members.append(Entry(run, stored, len(members)))
    return list(groups.values())


def _comparison_key(evaluation: Evaluation) -> Any:
    task = "classification" if evaluation.task in CLASSIFICATION_TASKS else evaluation.task
    same = (task, evaluation.scoring, evaluation.dataset, evaluation.split, evaluation.ids_digest)
    baselines = tuple(
        (each.metric, each.images, each.value) for each in evaluation.baselines if "/auc/" not in each.metric
    )
    return (*same, frozenset(evaluation.classes), baselines)


def headline_table(group: Sequence[Entry]) -> Table:
    """Return accuracy and AUC of every entry, means over seeds, baselines and the paper's results."""
    notes = Footnotes()
    spans = {metric: _span(group, metric) for metric in HEADLINE_METRICS}
    levels = {"accuracy": _chance(group[0].evaluation), "auc": 0.5}

    def chart(metric: str, value: float, interval: tuple[float, float] | None, kind: str, series: int = 0) -> Markup:
        colour = {"model": series_style(series)[0], "baseline": GREY}.get(kind, BLACK)
        return whisker(value, interval, spans[metric], kind=kind, colour=colour, level=levels[metric])

    rows = [
        Row(
            kind="model",
            label=entry.run.name,
            sublabel=describe_setup(entry.evaluation),
            swatch=legend_line(entry.series),
            href=entry.stored.link(),
            cells=[result_cell(entry, metric, notes, chart) for metric in HEADLINE_METRICS],
        )
        for entry in group
    ]
    rows += [_mean_row(members, notes, chart) for members in seed_groups(group)]
    rows += [
        Row(
            kind="baseline",
            label=name,
            cells=[result_cell(group[0], f"{rule}/{metric}", notes, chart) for metric in HEADLINE_METRICS],
        )
        for rule, name in CLASSIFICATION_BASELINES.items()
    ]
    rows += [
        Row(
            kind="paper",
            label=row.model,
            href="#paper",
            cells=[
                Cell(
                    text=format_value("accuracy", row.accuracy),
                    href="#paper",
                    chart=chart("accuracy", row.accuracy, None, "paper"),
                ),
                Cell(text="–", note=notes.letter("the paper reports no zero-shot AUC"), href="#paper"),
            ],
        )
        for row in _published(group)
    ]
    ends = [(format_axis_end(metric, low), format_axis_end(metric, high)) for metric, (low, high) in spans.items()]
    return Table(columns=list(HEADLINE_METRICS.values()), axis_ends=ends, rows=rows, footnotes=notes.items())


def class_table(group: Sequence[Entry]) -> Table:
    """Return the AUC of each class, one column per entry, and that of the AP-view rule."""
    notes = Footnotes()
    rows = [
        Row(
            kind="model",
            label=name,
            cells=[
                *(result_cell(entry, f"auc/{name}", notes) for entry in group),
                result_cell(group[0], f"ap-view/auc/{name}", notes),
            ],
        )
        for name in sorted(group[0].evaluation.classes)
    ]
    return Table(columns=[*(entry.label for entry in group), "AP-view rule"], rows=rows, footnotes=notes.items())


def more_metrics_table(group: Sequence[Entry]) -> Table | None:
    """Return the other metrics of the same predictions, one column each; None if there are none."""
    metrics = list(
        dict.fromkeys(
            result.metric
            for entry in group
            for result in entry.evaluation.results
            if "/" not in result.metric and result.metric not in HEADLINE_METRICS
        )
    )
    calibrated = any(entry.evaluation.calibration is not None for entry in group)
    if not metrics and not calibrated:
        return None
    notes = Footnotes()
    rows = [
        Row(
            kind="model",
            label=entry.label,
            swatch=legend_line(entry.series),
            cells=[
                *(result_cell(entry, metric, notes) for metric in metrics),
                *(_calibration_cell(entry, place, notes) for place in range(2) if calibrated),
            ],
        )
        for entry in group
    ]
    rows += [
        Row(kind="baseline", label=name, cells=[*cells, *[Cell(text="–")] * (2 * calibrated)])
        for rule, name in CLASSIFICATION_BASELINES.items()
        if any(_value(group[0].evaluation.baselines, f"{rule}/{metric}") is not None for metric in metrics)
        for cells in [[result_cell(group[0], f"{rule}/{metric}", notes) for metric in metrics]]
    ]
    names = [*metrics, *["ece", "ece-after-temperature"] * calibrated]
    return Table(columns=[metric_name(name) for name in names], rows=rows, footnotes=notes.items())


def _calibration_cell(entry: Entry, place: int, notes: Footnotes) -> Cell:
    calibration = entry.evaluation.calibration
    result = None if calibration is None else (calibration.ece, calibration.ece_after)[place]
    if result is None:
        reason = (calibration.reason if calibration else None) or "not measured"
        return Cell(text="–", note=notes.letter(reason), title=reason)
    return _cell(result, entry, "", notes, None)


def all_results_table(stored: StoredResult) -> Table:
    """Return all results and baselines of one file: the rows that the other tables link to."""
    notes = Footnotes()
    rows = [
        Row(
            kind="baseline" if place == "f" else "model",
            label=metric_name(result.metric),
            href=f"{stored.anchor}-{place}{index}",
            cells=_plain_cells(result, stored.evaluation, notes),
        )
        for place, results in (("m", stored.evaluation.results), ("f", stored.evaluation.baselines))
        for index, result in enumerate(results)
    ]
    return Table(columns=["Value", "95 % CI", "Images", "Patients"], rows=rows, footnotes=notes.items())


def seed_groups(group: Sequence[Entry]) -> list[list[Entry]]:
    """Return the groups of two or more entries that differ in nothing but the seed."""
    groups: dict[Any, list[Entry]] = {}
    for entry in group:
        recipe = {key: str(value) for key, value in entry.run.config.items() if key not in _NOT_RECIPE}
        zero_shot = (entry.evaluation.task, entry.evaluation.prompts, entry.evaluation.class_names)
        similarity = (entry.evaluation.similarity, entry.evaluation.standardised)
        classifier = (entry.evaluation.protocol, entry.evaluation.training_fraction)
        key = (*zero_shot, *similarity, *classifier, entry.run.stage, tuple(sorted(recipe.items())))
        groups.setdefault(key, []).append(entry)
    return [members for members in groups.values() if len({_seed(entry) for entry in members}) == len(members) > 1]


_NOT_RECIPE = ("seed", "data.root", "data.cache", "data.workers")


class DrawChart(Protocol):
    """Draws one value of a column."""

    def __call__(
        self, metric: str, value: float, interval: tuple[float, float] | None, kind: str, series: int = 0
    ) -> Markup:
        """Return the value with its interval as SVG."""
        ...


def result_cell(entry: Entry, metric: str, notes: Footnotes, chart: DrawChart | None = None) -> Cell:
    """Return the cell of a metric, looked up in the results and baselines of an evaluation."""
    for place, results in (("m", entry.evaluation.results), ("f", entry.evaluation.baselines)):
        for index, result in enumerate(results):
            if result.metric == metric:
                return _cell(result, entry, entry.stored.link(f"{place}{index}"), notes, chart)
    missing = "not in the result file"
    return Cell(text="–", note=notes.letter(missing), title=missing, href=entry.stored.link())


def _cell(result: Result, entry: Entry, href: str, notes: Footnotes, chart: DrawChart | None) -> Cell:
    reason = TOO_FEW if is_suppressed(result, entry.evaluation) else result.reason
    if result.value is None or is_suppressed(result, entry.evaluation):
        reason = reason or "not measured; the result file gives no reason"
        return Cell(text="–", note=notes.letter(reason), title=reason, href=href)
    name = result.metric.split("/")[-1]
    kind = "baseline" if result.metric.split("/")[0] in BASELINES else "model"
    return Cell(
        text=format_value(result.metric, result.value),
        detail=format_interval(result.metric, result.interval) if result.interval else "no interval",
        href=href,
        note=notes.letter(reason),
        title=f"{entry.stored.file}: {count(result.images, 'image')} of {count(result.patients, 'patient')}",
        chart=chart(name, result.value, result.interval, kind, entry.series) if chart else "",
    )


def _plain_cells(result: Result, evaluation: Evaluation, notes: Footnotes) -> list[Cell]:
    hidden = is_suppressed(result, evaluation)
    value = None if hidden else result.value
    interval = None if hidden else result.interval
    reason = TOO_FEW if hidden else result.reason
    note = notes.letter(reason)
    return [
        Cell(text="–" if value is None else format_value(result.metric, value), note=note if value is None else ""),
        Cell(
            text="–" if interval is None else format_interval(result.metric, interval),
            note=note if value is not None else "",
        ),
        Cell(text=f"{result.images:,}"),
        Cell(text=f"<{MIN_PATIENTS}" if hidden else f"{result.patients:,}"),
    ]


def _mean_row(members: Sequence[Entry], notes: Footnotes, chart: DrawChart) -> Row:
    seeds = ", ".join(str(seed) for seed in sorted(_seed(entry) for entry in members))
    cells: list[Cell] = []
    for metric in HEADLINE_METRICS:
        values = [value for entry in members if (value := _value(entry.evaluation.results, metric)) is not None]
        if len(values) < len(members):
            cells.append(Cell(text="–", note=notes.letter("not measured for every seed")))
            continue
        mean, limits = sum(values) / len(values), (min(values), max(values))
        note = notes.letter("range over seeds, not a 95 % confidence interval")
        detail = format_interval(metric, limits)
        cells.append(
            Cell(text=format_value(metric, mean), detail=detail, note=note, chart=chart(metric, mean, limits, "mean"))
        )
    sublabel = f"{describe_setup(members[0].evaluation)}, seeds {seeds}"
    return Row(kind="mean", label=f"Mean of {len(members)} seeds", sublabel=sublabel, cells=cells)


def _seed(entry: Entry) -> int:
    if entry.evaluation.protocol:
        return entry.evaluation.training_seed
    seed = entry.run.config.get("seed", 0)
    return seed if isinstance(seed, int) else 0


def find_result(results: Sequence[Result], metric: str) -> Result | None:
    """Return the result of a metric, or None."""
    return next((result for result in results if result.metric == metric), None)


def _value(results: Sequence[Result], metric: str) -> float | None:
    result = find_result(results, metric)
    return None if result is None else result.value


def _chance(evaluation: Evaluation) -> float:
    return 1 / max(1, len(evaluation.classes)) if evaluation.scoring == "multi-class" else 0.5


def _span(group: Sequence[Entry], metric: str) -> tuple[float, float]:
    """Return the axis limits of a column, in tenths."""
    seen = [0.5] if metric == "auc" else [_chance(group[0].evaluation)]
    for entry in group:
        for result in (*entry.evaluation.results, *entry.evaluation.baselines):
            if result.metric.endswith(metric) and "/auc/" not in result.metric and result.value is not None:
                seen += [result.value, *(result.interval or ())]
    seen += [row.accuracy for row in _published(group) if metric == "accuracy"]
    return enclosing_tenths(seen)


def _published(group: Sequence[Entry]) -> tuple[Published, ...]:
    """Return the paper's rows for the first entry that the paper evaluates too."""
    return next((rows for entry in group if (rows := published(entry.evaluation))), ())


def enclosing_tenths(values: Sequence[float]) -> tuple[float, float]:
    """Return the smallest range of tenths that encloses all values.

    Example:
        >>> enclosing_tenths([0.57, 0.64]), enclosing_tenths([0.5])
        ((0.5, 0.7), (0.5, 0.6))
    """
    low, high = math.floor(min(values) * 10) / 10, math.ceil(max(values) * 10) / 10
    return (low, high if high > low else low + 0.1)


def metric_name(metric: str) -> str:
    """Return the name of a metric as printed.

    Example:
        >>> metric_name("ap-view/auc/Edema"), metric_name("accuracy"), metric_name("sensitivity@0.90")
        ('AP-view rule: AUC, Edema', 'Accuracy', 'Sensitivity at specificity 0.90')
        >>> metric_name("chance/image-to-text/recall@5")
        'Chance level: Image-to-text: Recall@5'
    """
    rule, _, rest = metric.partition("/")
    if rule in BASELINES and rest:
        return f"{BASELINES[rule]}: {metric_name(rest)}"
    if rule in DIRECTION_NAMES and rest:
        return f"{DIRECTION_NAMES[rule]}: {metric_name(rest)}"
    name, at, place = rule.partition("@")
    if name == "sensitivity" and at:
        name, at, place = "Sensitivity", " at specificity ", place
    name = {**HEADLINE_METRICS, **METRIC_NAMES}.get(name, name.capitalize())
    return f"{name}{at}{place}, {rest}" if rest else f"{name}{at}{place}"


class RetrievalTable(NamedTuple):
    """Retrieval in one direction, for every model."""

    title: str
    caption: str
    table: Table


class RetrievalExamples(NamedTuple):
    """Queries of one model with their first results."""

    title: str
    examples: Sequence[RetrievalExample]


def retrieval_tables(group: Sequence[Entry]) -> list[RetrievalTable]:
    """Return one table per direction: models, then chance level."""
    return [
        _retrieval_table(members, direction)
        for direction in DIRECTION_NAMES
        if (members := [entry for entry in group if _retrievals(entry, direction)])
    ]


def _retrieval_table(members: Sequence[Entry], direction: str) -> RetrievalTable:
    notes = Footnotes()
    metrics = list(
        dict.fromkeys(
            result.metric.partition("/")[2]
            for entry in members
            for result in entry.evaluation.results
            if result.metric.startswith(f"{direction}/")
        )
    )
    rows = [
        Row(
            kind="model",
            label=entry.run.name,
            swatch=legend_line(entry.series),
            href=entry.stored.link(),
            cells=[result_cell(entry, f"{direction}/{metric}", notes) for metric in metrics],
        )
        for entry in members
    ]
    chance = [result_cell(members[0], f"chance/{direction}/{metric}", notes) for metric in metrics]
    rows.append(Row(kind="baseline", label=BASELINES["chance"], cells=chance))
    retrieval = _retrievals(members[0], direction)[0]
    skipped = retrieval.without_match
    remark = f"; {skipped:,} without a relevant item {verb(skipped, 'was', 'were')} not scored" if skipped else ""
    caption = (
        f"{count(retrieval.queries, 'query', 'queries')}{remark}. {count(retrieval.candidates, 'candidate')}, "
        f"{retrieval.relevant_per_query:.1f} relevant per query on average."
    )
    table = Table(columns=[metric_name(metric) for metric in metrics], rows=rows, footnotes=notes.items())
    return RetrievalTable(DIRECTION_NAMES[direction], caption, table)


def _retrievals(entry: Entry, direction: str) -> list[Retrieval]:
    return [each for each in entry.evaluation.retrieval if each.direction == direction]


def retrieval_examples(group: Sequence[Entry]) -> list[RetrievalExamples]:
    """Return example queries with their first results; those with invalid images are left out."""
    results: list[RetrievalExamples] = []
    for entry in group:
        for each in entry.evaluation.retrieval:
            examples = [example for example in each.examples if _is_valid(example)]
            if examples:
                results.append(
                    RetrievalExamples(
                        f"{entry.run.name}: {DIRECTION_NAMES.get(each.direction, each.direction)}", examples
                    )
                )
    return results


def _is_valid(example: RetrievalExample) -> bool:
    return all(not each.image or PNG.fullmatch(each.image) for each in (example.query, *example.retrieved))
