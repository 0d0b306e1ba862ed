"""One self-contained HTML page about one or several runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from cleft.report.cells import FEWEST_PATIENTS, TOO_FEW, Table, small
from cleft.report.curves import training_charts
from cleft.report.figures import COLOURS, INK, SOFT, key, roc_chart, swatch
from cleft.report.frame import PNG, render_page, write_page
from cleft.report.runs import Run, read_runs, shown
from cleft.report.sentences import SCORINGS, question, settings_table, what_was_run
from cleft.report.tables import Entry, by_class, every_number, groups, headline
from cleft.types import Evaluation, Result

_KEYS = {"model": COLOURS[0], "mean": INK, "floor": SOFT, "paper": INK, "level": SOFT}


class Panel(NamedTuple):
    """The ROC curves of one class."""

    title: str
    figure: Markup


class Confusion(NamedTuple):
    """Answers of one evaluation by what the images show."""

    label: str
    classes: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[int, float]]]]
    """Class, and per answer the count and its share of the row."""
    hidden: Sequence[str]
    """Classes with too few images to be printed."""


class Example(NamedTuple):
    """One image and what each model answered."""

    image: str
    truth: str
    answers: Sequence[tuple[Entry, bool, Sequence[tuple[str, float]]]]
    """Who answered, whether the first answer is right, and the first answers with their probabilities."""


class Section(NamedTuple):
    """All that was asked of one set of images."""

    anchor: str
    title: str
    entries: Sequence[Entry]
    evaluation: Evaluation
    headline: Table
    by_class: Table
    warnings: Sequence[str]
    notes: Sequence[str]
    panels: Sequence[Panel]
    confusions: Sequence[Confusion]
    examples: Sequence[Example]
    examples_hidden: int


def write_report(runs: Sequence[Path], out: Path, *, images: bool | None = None) -> Path:
    """Writes a page about run folders.

    Args:
        runs: Run folders; the page compares them where they answered the same question on the same images.
        out: The HTML file.
        images: Whether to show images: True shows them all, False none, None those of phantoms alone.

    Returns:
        The file.

    Raises:
        DataError: If a folder is not a run.
        ResourceError: If the page cannot be written.
    """
    return write_page(render(read_runs(runs), images=images), out, option="--out")


def render(runs: Sequence[Run], *, images: bool | None = None) -> str:
    """The page as text."""
    found = groups(runs)
    sections = [_section(index, group, found, images=images) for index, group in enumerate(found, start=1)]
    evaluations = [stored.evaluation for run in runs for stored in run.results]
    return render_page(
        "page.html",
        runs=runs,
        title=_title([run.name for run in runs]),
        sentences={run.anchor: what_was_run(run) for run in runs},
        charts={run.anchor: training_charts(run) for run in runs},
        sections=sections,
        numbers={stored.anchor: every_number(stored) for run in runs for stored in run.results},
        settings=settings_table(runs),
        embedded=_embedded(runs),
        published=any(row.kind == "paper" for section in sections for row in section.headline.rows),
        phantoms=any(evaluation.synthetic for evaluation in evaluations),
        fewest=FEWEST_PATIENTS,
        scorings=SCORINGS,
        shown=shown,
        swatch=swatch,
        keys={kind: key(kind, colour) for kind, colour in _KEYS.items()},
    )


def _title(names: Sequence[str]) -> str:
    """Names in a row.

    Example:
        >>> _title(["first", "second", "third"])
        'first, second and third'
    """
    if len(names) > 4:
        return f"{len(names)} runs"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _section(index: int, group: list[Entry], found: Sequence[list[Entry]], *, images: bool | None) -> Section:
    evaluation = group[0].evaluation
    examples = _examples(group)
    visible = images is True or (images is None and evaluation.synthetic)
    return Section(
        anchor=f"question-{index}",
        title=question(evaluation),
        entries=group,
        evaluation=evaluation,
        headline=headline(group),
        by_class=by_class(group),
        warnings=_warnings(group, found),
        notes=list(dict.fromkeys(note for entry in group for note in entry.evaluation.notes)),
        panels=_panels(group),
        confusions=[confusion for entry in group if (confusion := _confusion(entry)) is not None],
        examples=examples if visible else [],
        examples_hidden=0 if visible else len(examples),
    )


def _warnings(group: Sequence[Entry], found: Sequence[Sequence[Entry]]) -> list[str]:
    """What a reader must know before comparing lines."""
    warnings: list[str] = []
    digests = {entry.evaluation.split_digest: entry.run.name for entry in group}
    if len(digests) > 1:
        told = ", ".join(f"{name} {digest}" for digest, name in digests.items())
        warnings.append(
            f"These runs were trained and chosen on different splits ({told}). They answered the same images, "
            f"but did not learn from the same ones."
        )
    mine = group[0].evaluation
    for number, other in enumerate(found, start=1):
        theirs = other[0].evaluation
        if other[0] is group[0] or (theirs.task, theirs.scoring) != (mine.task, mine.scoring):
            continue
        if set(theirs.classes) == set(mine.classes):
            warnings.append(
                f"Question {number} asks for the same classes on other images or labels "
                f"({theirs.ids_digest} there, {mine.ids_digest} here): numbers of the two must not be compared."
            )
    return warnings


def _panels(group: Sequence[Entry]) -> list[Panel]:
    """One chart per class that any entry has a curve for."""
    classes = dict.fromkeys(name for entry in group for name in entry.evaluation.roc)
    panels: list[Panel] = []
    for name in classes:
        curves = [
            (entry.series, points)
            for entry in group
            if (points := entry.evaluation.roc.get(name)) and name not in _few(entry.evaluation)
        ]
        if curves:
            panels.append(Panel(name, roc_chart(f"ROC curves for {name}", curves)))
    return panels


def _few(evaluation: Evaluation) -> set[str]:
    """Classes with so few images that neither their row nor their curve is printed; phantoms are always printed."""
    if evaluation.synthetic or evaluation.confusion is None:
        return set()
    sums = [sum(row) for row in evaluation.confusion]
    return {name for name, count in zip(evaluation.classes, sums, strict=False) if 0 < count < FEWEST_PATIENTS}


def _confusion(entry: Entry) -> Confusion | None:
    evaluation = entry.evaluation
    if evaluation.confusion is None or len(evaluation.confusion) != len(evaluation.classes):
        return None
    few = _few(evaluation)
    rows = [
        (name, [(count, count / max(1, sum(row))) for count in row])
        for name, row in zip(evaluation.classes, evaluation.confusion, strict=True)
        if name not in few
    ]
    return Confusion(entry.label, evaluation.classes, rows, sorted(few))


def _examples(group: Sequence[Entry]) -> list[Example]:
    """Each image once, with the answers of every entry that was asked about it."""
    found: dict[str, Example] = {}
    for entry in group:
        for example in entry.evaluation.examples:
            image, truth = str(example.get("image", "")), str(example.get("truth", ""))
            answers = _answers(example.get("answers"))
            if not PNG.fullmatch(image) or not answers:
                continue
            known = found.setdefault(image, Example(image, truth, []))
            found[image] = known._replace(answers=[*known.answers, (entry, answers[0][0] == truth, answers)])
    return list(found.values())


def _answers(raw: Any) -> list[tuple[str, float]]:
    """Class and probability pairs, the likeliest first; nothing where the file holds something else.

    Answers that would be printed as 0 % are left out behind the first.
    """
    pairs: list[tuple[str, float]] = []
    for pair in raw if isinstance(raw, Sequence) else ():
        if isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[1], int | float):
            pairs.append((str(pair[0]), min(1.0, max(0.0, float(pair[1])))))
    return [pair for place, pair in enumerate(pairs) if place == 0 or pair[1] >= 0.005]


def _embedded(runs: Sequence[Run]) -> Markup:
    """All numbers once more, for machines; nothing in it can end the element that holds it."""
    tree = {
        run.name: [{"file": stored.file, **_printable(stored.evaluation)} for stored in run.results] for run in runs
    }
    text = json.dumps(tree, ensure_ascii=True, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _printable(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation with what the page leaves out left out here too: images, and numbers of a few patients."""
    few = _few(evaluation)
    kept = dataclasses.replace(
        evaluation,
        examples=(),
        retrieval=tuple(dataclasses.replace(each, examples=()) for each in evaluation.retrieval),
        command=shown("command", evaluation.command),
        results=tuple(_unless_small(result, evaluation) for result in evaluation.results),
        floors=tuple(_unless_small(result, evaluation) for result in evaluation.floors),
        confusion=None if few else evaluation.confusion,
        roc={name: points for name, points in evaluation.roc.items() if name not in few},
    )
    tree = dataclasses.asdict(kept)
    del tree["examples"]
    return tree


def _unless_small(result: Result, evaluation: Evaluation) -> Result:
    if not small(result, evaluation):
        return result
    return Result(metric=result.metric, value=None, reason=TOO_FEW)
