"""The report of one or several runs: a self-contained HTML page with a section for each task and set of images."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from markupsafe import Markup

from cleft.files import Output, as_path, as_paths
from cleft.grammar import count, verb
from cleft.privacy import MIN_PATIENTS, redact
from cleft.report.charts import BLACK, COLOURS, GREY, legend_line, legend_marker, roc_chart
from cleft.report.html import (
    PNG,
    TOO_FEW,
    Cell,
    Footnotes,
    Row,
    Table,
    format_axis_end,
    format_percent,
    format_value,
    is_suppressed,
    render_page,
)
from cleft.report.run_charts import (
    comparison_table,
    corrected_comparisons,
    embedding_chart,
    interval_cell,
    norms_chart,
    reliability_chart,
    subgroup_table,
    training_charts,
)
from cleft.report.runs import Run, describe_run, read_runs
from cleft.report.tables import (
    CLASSIFICATION_TASKS,
    HEADLINE_METRICS,
    TASK_NAMES,
    Entry,
    RetrievalExamples,
    RetrievalTable,
    all_results_table,
    class_table,
    enclosing_tenths,
    find_result,
    group_results,
    headline_table,
    more_metrics_table,
    retrieval_examples,
    retrieval_tables,
)
from cleft.results import ContextVector, Evaluation, PromptSensitivity, Result

KEYS = {"model": COLOURS[0], "mean": BLACK, "baseline": GREY, "paper": BLACK, "level": GREY}
SCORING_NAMES = {
    "multi-class": "one class per image",
    "present-absent": "each finding present or absent",
    "nearest": "nearest neighbours",
}


def write_report(
    runs: Path | str | Iterable[Path | str], out: Path | str, *, images: bool | None = None, overwrite: bool = False
) -> Path:
    """Write a report of one or several runs.

    Args:
        runs: Run folder or folders; results of the same task on the same images share a table.
        out: HTML file to write.
        images: True shows all example images, False none, None synthetic ones only.
        overwrite: Replace a file that is not an earlier output.

    Returns:
        The HTML file.

    Raises:
        ConfigError: If `out` is a file that cleft did not write.
        DataError: If a folder is not a run.
        ResourceError: If the page cannot be written.
    """
    folders = as_paths(runs, "runs")
    output = Output(as_path(out, "out"), "--out", overwrite=overwrite, inputs=tuple(folders)).check()
    return output.write(render(read_runs(folders), images=images))


def render(runs: Sequence[Run], *, images: bool | None = None) -> str:
    """Return the report as HTML."""
    sections = build_sections(group_results(runs), images=images)
    evaluations = [stored.evaluation for run in runs for stored in run.results]
    comparisons = [each for run in runs for each in run.comparisons]
    corrected, family = corrected_comparisons(comparisons)
    return render_page(
        "run_page.html",
        runs=runs,
        title=_title([run.name for run in runs]),
        sentences={run.anchor: describe_run(run) for run in runs},
        charts={run.anchor: training_charts(run) for run in runs},
        sections=sections,
        numbers={stored.anchor: all_results_table(stored) for run in runs for stored in run.results},
        settings=settings_table(runs),
        embedded=_embedded_json(runs),
        published=any(row.kind == "paper" for each in sections if each.headline for row in each.headline.rows),
        comparisons=[(each, comparison_table(each, p)) for each, p in zip(comparisons, corrected, strict=True)],
        family=family,
        phantoms=any(evaluation.synthetic for evaluation in evaluations),
        fewest=MIN_PATIENTS,
        scorings=SCORING_NAMES,
        tasks=TASK_NAMES,
        redact=redact,
        swatch=legend_line,
        keys={kind: legend_marker(kind, colour) for kind, colour in KEYS.items()},
    )


def _title(names: Sequence[str]) -> str:
    """Join names.

    Example:
        >>> _title(["first", "second", "third"])
        'first, second and third'
    """
    if len(names) > 4:
        return f"{len(names)} runs"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


class Setting(NamedTuple):
    """One row of the settings table."""

    key: str
    values: list[str]
    """One per run."""
    differs: bool


def section_title(group: Sequence[Entry]) -> str:
    """Return the heading of a section: its tasks and classes, which are named if they are few."""
    evaluation = group[0].evaluation
    tasks = [TASK_NAMES.get(task, task) for task in dict.fromkeys(entry.evaluation.task for entry in group)]
    named = " and ".join(filter(None, [", ".join(tasks[:-1]), tasks[-1]]))
    named = f"{named[0].upper()}{named[1:]}" if named else ""
    classes = evaluation.classes
    if evaluation.task not in CLASSIFICATION_TASKS:
        return named
    described = " vs. ".join(classes) if len(classes) == 2 and evaluation.scoring == "multi-class" else None
    described = described or (
        ", ".join(classes)
        if len(classes) <= 3
        else f"{len(classes)} {'findings' if evaluation.scoring == 'present-absent' else 'classes'}"
    )
    scoring = ", present or absent" if evaluation.scoring == "present-absent" else ""
    return f"{named}{scoring}: {described}"


def settings_table(runs: Sequence[Run]) -> list[Setting]:
    """Return every setting of every run, and whether the runs differ in it."""
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    rows: list[Setting] = []
    for key in keys:
        values = [redact(key, run.config[key]) if key in run.config else "–" for run in runs]
        rows.append(Setting(key, values, len(set(values)) > 1))
    return rows


class Panel(NamedTuple):
    """A small chart."""

    title: str
    figure: Markup
    caption: str = ""


class ConfusionMatrix(NamedTuple):
    """Confusion matrix of one evaluation."""

    label: str
    classes: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[int, float]]]]
    """Label, and for each predicted class the count and its share of the row."""
    hidden: Sequence[str]
    """Labels with too few images to be printed."""


class Example(NamedTuple):
    """One image with the predictions of each model."""

    image: str
    truth: str
    predictions: Sequence[tuple[Entry, bool, Sequence[tuple[str, float]]]]
    """Model, whether its top prediction is correct, and the first predictions with their probabilities."""


class Section(NamedTuple):
    """All results of one task on one set of images."""

    anchor: str
    title: str
    entries: Sequence[Entry]
    evaluation: Evaluation
    headline: Table | None
    """Accuracy and AUC; None for tasks without them."""
    by_class: Table | None
    more_metrics: Table | None
    """Other metrics of the same predictions."""
    retrieval: Sequence[RetrievalTable]
    warnings: Sequence[str]
    notes: Sequence[str]
    roc_panels: Sequence[Panel]
    """ROC curves, one per class."""
    reliability_panels: Sequence[Panel]
    embedding_maps: Sequence[Panel]
    subgroups: Sequence[tuple[str, Table]]
    """Attribute that defines the groups, and their results."""
    prompt_sensitivity: Sequence[PromptSection]
    retrieval_examples: Sequence[RetrievalExamples]
    confusion_matrices: Sequence[ConfusionMatrix]
    examples: Sequence[Example]
    examples_hidden: int

    @property
    def classified(self) -> bool:
        """Whether this is a classification task, which has curves and confusion matrices."""
        return self.evaluation.task in CLASSIFICATION_TASKS


def build_sections(groups: Sequence[list[Entry]], *, images: bool | None) -> list[Section]:
    """Return one section per task and set of images.

    Args:
        groups: Entries that share a table, one list per section.
        images: True shows all images, False none, None synthetic ones only.
    """
    return [
        build_section(f"task-{index}", section_title(group), group, warnings=_warnings(group, groups), images=images)
        for index, group in enumerate(groups, start=1)
    ]


def build_section(
    anchor: str, title: str, group: Sequence[Entry], *, warnings: Sequence[str] = (), images: bool | None
) -> Section:
    """Return the section of one group of results on the same images."""
    evaluation = group[0].evaluation
    examples, searches = _examples(group), retrieval_examples(group)
    visible = images is True or (images is None and evaluation.synthetic)
    classified = evaluation.task in CLASSIFICATION_TASKS
    return Section(
        anchor=anchor,
        title=title,
        entries=group,
        evaluation=evaluation,
        headline=headline_table(group) if classified else None,
        by_class=class_table(group) if classified and _several(evaluation) else None,
        more_metrics=more_metrics_table(group) if classified else None,
        retrieval=retrieval_tables(group),
        warnings=warnings,
        notes=list(dict.fromkeys(note for entry in group for note in entry.evaluation.notes)),
        roc_panels=_roc_panels(group),
        reliability_panels=_reliability_panels(group),
        embedding_maps=_embedding_maps(group),
        subgroups=[
            (by, table) for by in _subgroup_attributes(group) if (table := subgroup_table(group, by)) is not None
        ],
        prompt_sensitivity=prompt_sensitivities(group),
        retrieval_examples=searches if visible else [],
        confusion_matrices=[confusion for entry in group if (confusion := _confusion(entry)) is not None],
        examples=examples if visible else [],
        examples_hidden=0 if visible else len(examples) + sum(len(each.examples) for each in searches),
    )


def _several(evaluation: Evaluation) -> bool:
    return len(evaluation.classes) > 2 or evaluation.scoring != "multi-class"


def _subgroup_attributes(group: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(each.by for entry in group for each in entry.evaluation.subgroups))


def _reliability_panels(group: Sequence[Entry]) -> list[Panel]:
    panels: list[Panel] = []
    for entry in group:
        fit = entry.evaluation.calibration
        if fit is None or is_suppressed(fit.ece, entry.evaluation):
            continue
        figure = reliability_chart(
            f"Reliability diagram of {entry.label}", fit, entry.series, synthetic=entry.evaluation.synthetic
        )
        if fit.temperature is None:
            fitted = f"No temperature scaling: {fit.reason or 'not fitted'}."
        else:
            fitted = f"Temperature {fit.temperature:.2f}, fitted on {count(fit.validation_images, 'validation image')}."
        after = "" if fit.ece_after is None else f", after temperature scaling {_value(fit.ece_after)}"
        panels.append(Panel(entry.label, figure, f"ECE {_value(fit.ece)}{after}. {fitted}"))
    return panels


def _value(result: Result) -> str:
    return "–" if result.value is None else f"{result.value:.3f}"


def _embedding_maps(group: Sequence[Entry]) -> list[Panel]:
    panels: list[Panel] = []
    for entry in group:
        embedding_map, classes = entry.evaluation.embedding_map, entry.evaluation.classes
        if embedding_map is None or len(embedding_map.prompts) != len(classes):
            continue
        few = sorted(suppressed_classes(entry.evaluation))
        figure = embedding_chart(f"Embedding map of {entry.label}", embedding_map, classes, hidden=few)
        across, up = (format_percent(share) for share in embedding_map.explained_variance)
        left = (
            f" {count(embedding_map.omitted, 'more image')} {verb(embedding_map.omitted, 'is', 'are')} not drawn."
            if embedding_map.omitted
            else ""
        )
        gap = f"Modality gap {embedding_map.modality_gap:.2f} (distance of the mean embeddings), removed here."
        hidden = (
            f" Not shown, because fewer than {MIN_PATIENTS} images have this label: {', '.join(few)}." if few else ""
        )
        caption = f"Image variance explained: {across} (horizontal), {up} (vertical). {gap}{left}{hidden}"
        panels.append(Panel(entry.label, figure, caption))
    return panels


def _warnings(group: Sequence[Entry], groups: Sequence[Sequence[Entry]]) -> list[str]:
    """Return what to know before comparing rows, here and with other sections."""
    warnings: list[str] = []
    digests = {entry.evaluation.split_digest: entry.run.name for entry in group}
    if len(digests) > 1:
        named = ", ".join(f"{name} {digest}" for digest, name in digests.items())
        warnings.append(
            f"These runs have different training and validation splits ({named}). Their test images are the same, "
            f"their training images are not."
        )
    mine = group[0].evaluation
    for number, other in enumerate(groups, start=1):
        theirs = other[0].evaluation
        if other[0] is group[0] or (theirs.task, theirs.scoring) != (mine.task, mine.scoring):
            continue
        if set(theirs.classes) == set(mine.classes):
            warnings.append(
                f"Section {number} has the same classes on other images or labels (ids {theirs.ids_digest} there, "
                f"{mine.ids_digest} here): do not compare its results with these."
            )
    return warnings


def _roc_panels(group: Sequence[Entry]) -> list[Panel]:
    """Return one ROC chart per class that has a curve."""
    classes = dict.fromkeys(name for entry in group for name in entry.evaluation.roc)
    panels: list[Panel] = []
    for name in classes:
        curves = [
            (entry.series, points)
            for entry in group
            if (points := entry.evaluation.roc.get(name)) and name not in suppressed_classes(entry.evaluation)
        ]
        if curves:
            panels.append(Panel(name, roc_chart(f"ROC curves for {name}", curves)))
    return panels


def suppressed_classes(evaluation: Evaluation) -> set[str]:
    """Return the classes with too few images to print their confusions and curves; none if images are synthetic."""
    if evaluation.synthetic or evaluation.confusion is None:
        return set()
    sums = [sum(row) for row in evaluation.confusion]
    return {name for name, count in zip(evaluation.classes, sums, strict=False) if 0 < count < MIN_PATIENTS}


def _confusion(entry: Entry) -> ConfusionMatrix | None:
    evaluation = entry.evaluation
    if evaluation.confusion is None or len(evaluation.confusion) != len(evaluation.classes):
        return None
    few = suppressed_classes(evaluation)
    rows = [
        (name, [(count, count / max(1, sum(row))) for count in row])
        for name, row in zip(evaluation.classes, evaluation.confusion, strict=True)
        if name not in few
    ]
    return ConfusionMatrix(entry.label, evaluation.classes, rows, sorted(few))


def _examples(group: Sequence[Entry]) -> list[Example]:
    """Return each example image once, with the predictions of every entry."""
    examples: dict[str, Example] = {}
    for entry in group:
        for example in entry.evaluation.examples:
            image, truth = str(example.get("image", "")), str(example.get("truth", ""))
            predictions = _predictions(example.get("answers"))
            if not PNG.fullmatch(image) or not predictions:
                continue
            earlier = examples.setdefault(image, Example(image, truth, []))
            examples[image] = earlier._replace(
                predictions=[*earlier.predictions, (entry, predictions[0][0] == truth, predictions)]
            )
    return list(examples.values())


def _predictions(raw: Any) -> list[tuple[str, float]]:
    """Return classes and probabilities, the likeliest first; empty if the file holds something else.

    All but the first are left out if they would be printed as 0 %.
    """
    pairs: list[tuple[str, float]] = []
    for pair in raw if isinstance(raw, Sequence) else ():
        if isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[1], int | float):
            pairs.append((str(pair[0]), min(1.0, max(0.0, float(pair[1])))))
    return [pair for place, pair in enumerate(pairs) if place == 0 or pair[1] >= 0.005]


class PromptSection(NamedTuple):
    """Prompt sensitivity of one model."""

    title: str
    templates: Table
    spread: Sequence[str]
    """Sentences on the spread of each metric over templates."""
    negations: Table | None
    norms: Markup | None
    context: Sequence[ContextVector]


def prompt_sensitivities(group: Sequence[Entry]) -> list[PromptSection]:
    """Return the prompt sensitivity of each model that was evaluated for it."""
    return [
        _prompt_sensitivity(entry, entry.evaluation.prompt_sensitivity)
        for entry in group
        if entry.evaluation.prompt_sensitivity is not None
    ]


def _prompt_sensitivity(entry: Entry, sensitivity: PromptSensitivity) -> PromptSection:
    norms = norms_chart(
        f"Norms of the learned context of {entry.run.name}", sensitivity.context, sensitivity.token_norm
    )
    return PromptSection(
        title=entry.run.name,
        templates=_templates(entry, sensitivity),
        spread=[
            f"{HEADLINE_METRICS.get(each.metric, each.metric)} over {len(sensitivity.templates)} prompt templates: "
            f"{format_value(each.metric, each.lowest)} to {format_value(each.metric, each.highest)}, mean "
            f"{format_value(each.metric, each.mean)}, standard deviation {format_value(each.metric, each.std)}."
            for each in sensitivity.spread
        ],
        negations=_negations(entry, sensitivity) if sensitivity.negation else None,
        norms=norms if sensitivity.context else None,
        context=sensitivity.context,
    )


def _templates(entry: Entry, sensitivity: PromptSensitivity) -> Table:
    notes = Footnotes()
    spans = {metric: _span(sensitivity, metric) for metric in HEADLINE_METRICS}
    rows = [
        Row(
            kind="mean" if template.default else "model",
            label=f"{template.template} …",
            sublabel="default template" if template.default else "",
            cells=[
                interval_cell(entry, find_result(template.results, metric), notes, spans[metric])
                for metric in HEADLINE_METRICS
            ],
        )
        for template in sensitivity.templates
    ]
    ends = [(format_axis_end(metric, low), format_axis_end(metric, high)) for metric, (low, high) in spans.items()]
    return Table(columns=list(HEADLINE_METRICS.values()), axis_ends=ends, rows=rows, footnotes=notes.items())


def _span(sensitivity: PromptSensitivity, metric: str) -> tuple[float, float]:
    seen = [
        end
        for template in sensitivity.templates
        for result in template.results
        if result.metric == metric and result.value is not None
        for end in (result.value, *(result.interval or ()))
    ]
    return enclosing_tenths(seen or [0.5])


def _negations(entry: Entry, sensitivity: PromptSensitivity) -> Table:
    notes = Footnotes()
    rows = [
        Row(
            kind="model",
            label=test.finding,
            sublabel=f"“{test.present_prompt}” vs. “{test.absent_prompt}”",
            cells=[
                Cell(text=f"{test.cosine:.3f}"),
                Cell(text=format_value("accuracy", test.predicted_present)),
                Cell(text="–" if test.prevalence is None else format_value("accuracy", test.prevalence)),
                *(
                    interval_cell(entry, find_result(test.results, f"auc/{side}"), notes)
                    for side in ("present", "absent", "pair")
                ),
            ],
        )
        for test in sensitivity.negation
    ]
    columns = ["Cosine similarity", "Predicted present", "Labelled present", "AUC, present", "AUC, absent", "AUC, both"]
    return Table(columns=columns, rows=rows, footnotes=notes.items())


def _embedded_json(runs: Sequence[Run]) -> Markup:
    """Return all results as JSON, escaped so that nothing can end the script element."""
    tree = {
        run.name: [{"file": stored.file, **_printable(stored.evaluation)} for stored in run.results] for run in runs
    }
    text = json.dumps(tree, ensure_ascii=True, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _printable(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation without what the page leaves out: images, and results of too few patients."""
    few = suppressed_classes(evaluation)
    kept = dataclasses.replace(
        evaluation,
        examples=(),
        retrieval=tuple(dataclasses.replace(each, examples=()) for each in evaluation.retrieval),
        command=redact("command", evaluation.command),
        confusion=None if few else evaluation.confusion,
        roc={name: points for name, points in evaluation.roc.items() if name not in few},
        embedding_map=None if few else evaluation.embedding_map,
    )
    tree = dataclasses.asdict(kept)
    del tree["examples"]
    return tree if evaluation.synthetic else _suppressed(tree)


def _suppressed(value: Any) -> Any:
    """Return a tree without values of too few patients: a result keeps its name and a reason."""
    if isinstance(value, list | tuple):
        items = cast("Sequence[Any]", value)
        return [_suppressed(item) for item in items if not _has_few_patients(item) or "metric" in item]
    if not isinstance(value, dict):
        return value
    tree = cast("dict[str, Any]", value)
    if _has_few_patients(tree):
        return dataclasses.asdict(Result(metric=str(tree.get("metric", "")), value=None, reason=TOO_FEW))
    return {key: _suppressed(item) for key, item in tree.items()}


def _has_few_patients(value: Any) -> bool:
    patients = cast("dict[str, Any]", value).get("patients") if isinstance(value, dict) else None
    return isinstance(patients, int) and 0 < patients < MIN_PATIENTS
