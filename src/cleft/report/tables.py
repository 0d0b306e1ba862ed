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
from cleft.results import Evaluation, Exhibit, Result, Retrieval, RetrievalExample

CLASSIFICATION_BASELINES = {"majority-class": "Majority class", "ap-view": "AP-view rule"}
"""Floors of classification."""
BASELINES = {**CLASSIFICATION_BASELINES, "chance": "Guessing"}
DIRECTION_NAMES = {
    "image-to-text": "Image to text",
    "text-to-image": "Text to image",
    "image-to-image": "Image to image",
}
HEADLINE_METRICS = {"accuracy": "Accuracy", "auc": "AUC"}
METRIC_NAMES = {
    "auprc": "AUPRC",
    "ece": "Calibration error (ECE)",
    "ece-after-temperature": "ECE after temperature",
    "mean-rank": "Mean rank",
    "median-rank": "Median rank",
}
"""Further metrics; `recall@5` and `sensitivity@0.90` speak for themselves."""
PROMPT_NAMES = {
    "context": "learned context",
    "handwritten": "handwritten prompts",
    "captions": "captions",
    "none": "no text",
}
SIMILARITY_NAMES = {
    "local": "words with regions",
    "both": "wholes, and words with regions",
    "released": "wholes, and words with regions as released",
}
"""What was compared, where it was not wholes alone."""
TASK_NAMES = {
    "zero-shot": "zero-shot",
    "linear-probe": "linear probe",
    "fine-tune": "fine-tuning",
    "retrieval": "retrieval",
    "prompts": "prompt audit",
}
CLASSIFICATION_TASKS = ("zero-shot", "linear-probe", "fine-tune")
"""Tasks whose numbers may stand in one table, where they answer the same images."""


class Entry(NamedTuple):
    """One evaluation of a table."""

    run: Run
    stored: StoredResult
    series: int
    """Which colour and dash it has in the figures."""
    name: str = ""
    """How it is called, where the heading says already how it was asked."""

    @property
    def evaluation(self) -> Evaluation:
        """What was measured."""
        return self.stored.evaluation

    @property
    def label(self) -> str:
        """How a row or a legend calls it."""
        return self.name or f"{self.run.name}, {describe_setup(self.evaluation)}"


def describe_setup(evaluation: Evaluation) -> str:
    """How an answer came about: behind which prompts and in which words, or how a head was trained."""
    if evaluation.protocol:
        learned = "" if evaluation.fraction == 1 else f", {100 * evaluation.fraction:g}{PERCENT} of the patients"
        task = TASK_NAMES.get(evaluation.task, evaluation.task)
        return f"{task}, {evaluation.protocol} protocol{learned}, seed {evaluation.training_seed}"
    told = [PROMPT_NAMES.get(evaluation.prompts, evaluation.prompts)]
    if evaluation.wording != "default":
        told.append(f"wording “{evaluation.wording}”")
    if evaluation.similarity != "global":
        told.append(SIMILARITY_NAMES.get(evaluation.similarity, evaluation.similarity))
    if evaluation.standardised:
        told.append("standardised over the images")
    return ", ".join(told)


def group_results(runs: Sequence[Run]) -> list[list[Entry]]:
    """Evaluations that may share a table: one question, the same images, the same labels.

    Equal labels are recognised by equal floors, which depend on nothing else.
    """
    found: dict[Any, list[Entry]] = {}
    for run in runs:
        for stored in run.results:
            members = found.setdefault(_comparison_key(stored.evaluation), [])
            members.append(Entry(run, stored, len(members)))
    return list(found.values())


def _comparison_key(evaluation: Evaluation) -> Any:
    task = "classification" if evaluation.task in CLASSIFICATION_TASKS else evaluation.task
    same = (task, evaluation.scoring, evaluation.dataset, evaluation.split, evaluation.ids_digest)
    floors = tuple(
        (floor.metric, floor.images, floor.value) for floor in evaluation.floors if "/auc/" not in floor.metric
    )
    return (*same, frozenset(evaluation.classes), floors)


def headline_table(group: Sequence[Entry]) -> Table:
    """Accuracy and AUC of every entry, the mean over seeds, the floors, and the paper's numbers."""
    notes = Footnotes()
    spans = {metric: _span(group, metric) for metric in HEADLINE_METRICS}
    levels = {"accuracy": _chance(group[0].evaluation), "auc": 0.5}

    def picture(metric: str, value: float, interval: tuple[float, float] | None, kind: str, series: int = 0) -> Markup:
        colour = {"model": series_style(series)[0], "floor": GREY}.get(kind, BLACK)
        return whisker(value, interval, spans[metric], kind=kind, colour=colour, level=levels[metric])

    rows = [
        Row(
            kind="model",
            label=entry.run.name,
            sublabel=describe_setup(entry.evaluation),
            swatch=legend_line(entry.series),
            href=entry.stored.link(),
            cells=[result_cell(entry, metric, notes, picture) for metric in HEADLINE_METRICS],
        )
        for entry in group
    ]
    rows += [_mean_row(members, notes, picture) for members in seed_groups(group)]
    rows += [
        Row(
            kind="floor",
            label=name,
            sublabel="a rule without a model",
            cells=[result_cell(group[0], f"{rule}/{metric}", notes, picture) for metric in HEADLINE_METRICS],
        )
        for rule, name in CLASSIFICATION_BASELINES.items()
    ]
    rows += [
        Row(
            kind="paper",
            label=row.model,
            sublabel="the paper’s number",
            href="#paper",
            cells=[
                Cell(
                    text=format_value("accuracy", row.accuracy),
                    href="#paper",
                    chart=picture("accuracy", row.accuracy, None, "paper"),
                ),
                Cell(text="–", note=notes.letter("the paper gives no AUC for zero-shot"), href="#paper"),
            ],
        )
        for row in _published(group)
    ]
    ends = [(format_axis_end(metric, low), format_axis_end(metric, high)) for metric, (low, high) in spans.items()]
    return Table(columns=list(HEADLINE_METRICS.values()), axis_ends=ends, rows=rows, footnotes=notes.items())


def class_table(group: Sequence[Entry]) -> Table:
    """AUC of each class, one column per entry, and the AP-view rule beside them."""
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
    """What else was measured of the same answers, one column per metric; None where nothing was."""
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
        Row(kind="floor", label=name, cells=[*cells, *[Cell(text="–")] * (2 * calibrated)])
        for rule, name in CLASSIFICATION_BASELINES.items()
        if any(_value(group[0].evaluation.floors, f"{rule}/{metric}") is not None for metric in metrics)
        for cells in [[result_cell(group[0], f"{rule}/{metric}", notes) for metric in metrics]]
    ]
    names = [*metrics, *["ece", "ece-after-temperature"] * calibrated]
    return Table(columns=[metric_name(name) for name in names], rows=rows, footnotes=notes.items())


def _calibration_cell(entry: Entry, place: int, notes: Footnotes) -> Cell:
    told = entry.evaluation.calibration
    result = None if told is None else (told.ece, told.ece_after)[place]
    if result is None:
        reason = (told.reason if told else None) or "not measured"
        return Cell(text="–", note=notes.letter(reason), title=reason)
    return _cell(result, entry, "", notes, None)


def all_results_table(stored: StoredResult) -> Table:
    """All results and floors of one file, the lines that the other tables link to."""
    notes = Footnotes()
    rows = [
        Row(
            kind="floor" if place == "f" else "model",
            label=metric_name(result.metric),
            href=f"{stored.anchor}-{place}{index}",
            cells=_plain_cells(result, stored.evaluation, notes),
        )
        for place, results in (("m", stored.evaluation.results), ("f", stored.evaluation.floors))
        for index, result in enumerate(results)
    ]
    return Table(columns=["Value", "95 % interval", "Images", "Patients"], rows=rows, footnotes=notes.items())


def seed_groups(group: Sequence[Entry]) -> list[list[Entry]]:
    """Entries that differ in nothing but the seed, two or more at a time."""
    found: dict[Any, list[Entry]] = {}
    for entry in group:
        recipe = {key: str(value) for key, value in entry.run.config.items() if key not in _NOT_RECIPE}
        asked = (entry.evaluation.task, entry.evaluation.prompts, entry.evaluation.wording)
        compared = (entry.evaluation.similarity, entry.evaluation.standardised)
        learned = (entry.evaluation.protocol, entry.evaluation.fraction)
        key = (*asked, *compared, *learned, entry.run.stage, tuple(sorted(recipe.items())))
        found.setdefault(key, []).append(entry)
    return [members for members in found.values() if len({_seed(entry) for entry in members}) == len(members) > 1]


_NOT_RECIPE = ("seed", "data.root", "data.cache", "data.workers")


class DrawChart(Protocol):
    """Draws a number of a column."""

    def __call__(
        self, metric: str, value: float, interval: tuple[float, float] | None, kind: str, series: int = 0
    ) -> Markup:
        """Returns a whisker."""
        ...


def result_cell(entry: Entry, metric: str, notes: Footnotes, picture: DrawChart | None = None) -> Cell:
    """The cell of one metric of one evaluation, looked up among its results and floors."""
    for place, results in (("m", entry.evaluation.results), ("f", entry.evaluation.floors)):
        for index, result in enumerate(results):
            if result.metric == metric:
                return _cell(result, entry, entry.stored.link(f"{place}{index}"), notes, picture)
    missing = "the result file does not hold this number"
    return Cell(text="–", note=notes.letter(missing), title=missing, href=entry.stored.link())


def _cell(result: Result, entry: Entry, href: str, notes: Footnotes, picture: DrawChart | None) -> Cell:
    reason = TOO_FEW if is_suppressed(result, entry.evaluation) else result.reason
    if result.value is None or is_suppressed(result, entry.evaluation):
        reason = reason or "not measured, and the result file does not say why"
        return Cell(text="–", note=notes.letter(reason), title=reason, href=href)
    name = result.metric.split("/")[-1]
    kind = "floor" if result.metric.split("/")[0] in BASELINES else "model"
    return Cell(
        text=format_value(result.metric, result.value),
        detail=format_interval(result.metric, result.interval) if result.interval else "no interval",
        href=href,
        note=notes.letter(reason),
        title=f"{entry.stored.file}: {count(result.images, 'image')} of {count(result.patients, 'patient')}",
        chart=picture(name, result.value, result.interval, kind, entry.series) if picture else "",
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
        Cell(text=f"under {MIN_PATIENTS}" if hidden else f"{result.patients:,}"),
    ]


def _mean_row(members: Sequence[Entry], notes: Footnotes, picture: DrawChart) -> Row:
    seeds = ", ".join(str(seed) for seed in sorted(_seed(entry) for entry in members))
    cells: list[Cell] = []
    for metric in HEADLINE_METRICS:
        values = [value for entry in members if (value := _value(entry.evaluation.results, metric)) is not None]
        if len(values) < len(members):
            cells.append(Cell(text="–", note=notes.letter("not measured for every seed")))
            continue
        mean, reach = sum(values) / len(values), (min(values), max(values))
        note = notes.letter("the range is from the lowest to the highest seed, not a 95 % interval")
        detail = f"{format_interval(metric, reach)}"
        cells.append(
            Cell(text=format_value(metric, mean), detail=detail, note=note, chart=picture(metric, mean, reach, "mean"))
        )
    sublabel = f"{describe_setup(members[0].evaluation)}, seeds {seeds}"
    return Row(kind="mean", label=f"Mean of {len(members)} seeds", sublabel=sublabel, cells=cells)


def _seed(entry: Entry) -> int:
    if entry.evaluation.protocol:
        return entry.evaluation.training_seed
    seed = entry.run.config.get("seed", 0)
    return seed if isinstance(seed, int) else 0


def _value(results: Sequence[Result], metric: str) -> float | None:
    return next((result.value for result in results if result.metric == metric), None)


def _chance(evaluation: Evaluation) -> float:
    return 1 / max(1, len(evaluation.classes)) if evaluation.scoring == "multi-class" else 0.5


def _span(group: Sequence[Entry], metric: str) -> tuple[float, float]:
    """Tenths that hold every value and interval of a column."""
    seen = [0.5] if metric == "auc" else [_chance(group[0].evaluation)]
    for entry in group:
        for result in (*entry.evaluation.results, *entry.evaluation.floors):
            if result.metric.endswith(metric) and "/auc/" not in result.metric and result.value is not None:
                seen += [result.value, *(result.interval or ())]
    seen += [row.accuracy for row in _published(group) if metric == "accuracy"]
    return enclosing_tenths(seen)


def _published(group: Sequence[Entry]) -> tuple[Published, ...]:
    """The paper's rows for the first entry that asks the paper's question."""
    return next((rows for entry in group if (rows := published(entry.evaluation))), ())


def enclosing_tenths(values: Sequence[float]) -> tuple[float, float]:
    """Tenths between which all values lie.

    Example:
        >>> enclosed([0.57, 0.64]), enclosed([0.5])
        ((0.5, 0.7), (0.5, 0.6))
    """
    low, high = math.floor(min(values) * 10) / 10, math.ceil(max(values) * 10) / 10
    return (low, high if high > low else low + 0.1)


def metric_name(metric: str) -> str:
    """A metric in words.

    Example:
        >>> metric_name("ap-view/auc/Edema"), metric_name("accuracy"), metric_name("sensitivity@0.90")
        ('AP-view rule: AUC, Edema', 'Accuracy', 'Sensitivity at specificity 0.90')
        >>> metric_name("chance/image-to-text/recall@5")
        'Guessing: Image to text: Recall@5'
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
    """One direction of searching, by every model."""

    title: str
    caption: str
    table: Table


class RetrievalExamples(NamedTuple):
    """One query and what a model found first."""

    title: str
    examples: Sequence[RetrievalExample]


def retrieval_tables(group: Sequence[Entry]) -> list[RetrievalTable]:
    """A table per direction: the models, then guessing."""
    return [
        _search(members, direction)
        for direction in DIRECTION_NAMES
        if (members := [entry for entry in group if _found(entry, direction)])
    ]


def _search(members: Sequence[Entry], direction: str) -> RetrievalTable:
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
    guessed = [result_cell(members[0], f"chance/{direction}/{metric}", notes) for metric in metrics]
    rows.append(Row(kind="floor", label="Guessing", cells=guessed))
    search = _found(members[0], direction)[0]
    unscored = verb(search.unanswerable, "was", "were")
    remark = f"; {search.unanswerable:,} without a right answer {unscored} not scored" if search.unanswerable else ""
    caption = (
        f"{count(search.queries, 'query', 'queries')}{remark}. {count(search.candidates, 'candidate')} "
        f"{verb(search.candidates, 'is', 'are')} searched, "
        f"{search.right:.1f} of them right on average."
    )
    table = Table(columns=[metric_name(metric) for metric in metrics], rows=rows, footnotes=notes.items())
    return RetrievalTable(DIRECTION_NAMES[direction], caption, table)


def _found(entry: Entry, direction: str) -> list[Retrieval]:
    return [each for each in entry.evaluation.retrieval if each.direction == direction]


def retrieval_examples(group: Sequence[Entry]) -> list[RetrievalExamples]:
    """Queries with what was found first; pictures that are none are left out."""
    found: list[RetrievalExamples] = []
    for entry in group:
        for each in entry.evaluation.retrieval:
            examples = [example for example in each.examples if _sound(example)]
            if examples:
                found.append(
                    RetrievalExamples(
                        f"{entry.run.name}: {DIRECTION_NAMES.get(each.direction, each.direction)}", examples
                    )
                )
    return found


def _sound(example: RetrievalExample) -> bool:
    return all(_is_picture_or_words(each) for each in (example.query, *example.answers))


def _is_picture_or_words(exhibit: Exhibit) -> bool:
    return not exhibit.image or PNG.fullmatch(exhibit.image) is not None
