"""Everything that one question's results hold, ready to be printed: for a page of runs and for a page of a study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from cleft.grammar import count, verb
from cleft.report.audits import Audit, audits
from cleft.report.cells import FEWEST_PATIENTS, Table, percent, small
from cleft.report.figures import roc_chart
from cleft.report.forests import subgroup_table
from cleft.report.frame import PNG
from cleft.report.panels import reliability_chart, space_chart
from cleft.report.searches import Search, Shown, searches, shown_searches
from cleft.report.sentences import question
from cleft.report.tables import CLASSIFIED, Entry, by_class, further, headline
from cleft.types import Evaluation, Result


class Panel(NamedTuple):
    """A small figure."""

    title: str
    figure: Markup
    caption: str = ""


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
    headline: Table | None
    """Accuracy and AUC; None where the question has none."""
    by_class: Table | None
    more: Table | None
    """What else was measured of the same answers."""
    searches: Sequence[Search]
    warnings: Sequence[str]
    notes: Sequence[str]
    panels: Sequence[Panel]
    """ROC curves, one per class."""
    reliabilities: Sequence[Panel]
    maps: Sequence[Panel]
    forests: Sequence[tuple[str, Table]]
    """What the groups are told apart by, and their numbers."""
    audits: Sequence[Audit]
    shown_searches: Sequence[Shown]
    confusions: Sequence[Confusion]
    examples: Sequence[Example]
    examples_hidden: int

    @property
    def classified(self) -> bool:
        """Whether images were sorted into classes, so that there may be curves and confusions."""
        return self.evaluation.task in CLASSIFIED


def build_sections(found: Sequence[list[Entry]], *, images: bool | None) -> list[Section]:
    """One section per question.

    Args:
        found: Entries that may share a table, question by question.
        images: Whether to show images: True shows them all, False none, None those of phantoms alone.
    """
    return [
        build_section(f"question-{index}", question(group), group, warnings=_warnings(group, found), images=images)
        for index, group in enumerate(found, start=1)
    ]


def build_section(
    anchor: str, title: str, group: Sequence[Entry], *, warnings: Sequence[str] = (), images: bool | None
) -> Section:
    """Everything that the results of one question hold."""
    evaluation = group[0].evaluation
    examples, found = _examples(group), shown_searches(group)
    visible = images is True or (images is None and evaluation.synthetic)
    classified = evaluation.task in CLASSIFIED
    return Section(
        anchor=anchor,
        title=title,
        entries=group,
        evaluation=evaluation,
        headline=headline(group) if classified else None,
        by_class=by_class(group) if classified and _several(evaluation) else None,
        more=further(group) if classified else None,
        searches=searches(group),
        warnings=warnings,
        notes=list(dict.fromkeys(note for entry in group for note in entry.evaluation.notes)),
        panels=_panels(group),
        reliabilities=_reliabilities(group),
        maps=_maps(group),
        forests=[(by, table) for by in _groupings(group) if (table := subgroup_table(group, by)) is not None],
        audits=audits(group),
        shown_searches=found if visible else [],
        confusions=[confusion for entry in group if (confusion := _confusion(entry)) is not None],
        examples=examples if visible else [],
        examples_hidden=0 if visible else len(examples) + sum(len(each.examples) for each in found),
    )


def _several(evaluation: Evaluation) -> bool:
    return len(evaluation.classes) > 2 or evaluation.scoring != "multi-class"


def _groupings(group: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(found.by for entry in group for found in entry.evaluation.subgroups))


def _reliabilities(group: Sequence[Entry]) -> list[Panel]:
    panels: list[Panel] = []
    for entry in group:
        fit = entry.evaluation.calibration
        if fit is None or small(fit.ece, entry.evaluation):
            continue
        figure = reliability_chart(
            f"Reliability of {entry.label}", fit, entry.series, synthetic=entry.evaluation.synthetic
        )
        if fit.temperature is None:
            fitted = f"No temperature: {fit.reason or 'none was fitted'}."
        else:
            fitted = f"Temperature {fit.temperature:.2f}, fitted on {count(fit.fitted_on, 'validation image')}."
        after = "" if fit.ece_after is None else f", with the temperature {_value(fit.ece_after)}"
        panels.append(Panel(entry.label, figure, f"ECE {_value(fit.ece)}{after}. {fitted}"))
    return panels


def _value(result: Result) -> str:
    return "–" if result.value is None else f"{result.value:.3f}"


def _maps(group: Sequence[Entry]) -> list[Panel]:
    panels: list[Panel] = []
    for entry in group:
        space, classes = entry.evaluation.space, entry.evaluation.classes
        if space is None or len(space.prompts) != len(classes):
            continue
        few = sorted(few_classes(entry.evaluation))
        figure = space_chart(f"Joint space of {entry.label}", space, classes, hidden=few)
        across, up = (percent(share) for share in space.shares)
        left = (
            f" {count(space.left_out, 'more image')} {verb(space.left_out, 'is', 'are')} not drawn."
            if space.left_out
            else ""
        )
        gap = f"Images and prompts lie {space.gap:.2f} apart; the gap is taken out here."
        hidden = f" Left out, because fewer than {FEWEST_PATIENTS} images show it: {', '.join(few)}." if few else ""
        caption = f"Of the images’ variance {across} across and {up} up. {gap}{left}{hidden}"
        panels.append(Panel(entry.label, figure, caption))
    return panels


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
            if (points := entry.evaluation.roc.get(name)) and name not in few_classes(entry.evaluation)
        ]
        if curves:
            panels.append(Panel(name, roc_chart(f"ROC curves for {name}", curves)))
    return panels


def few_classes(evaluation: Evaluation) -> set[str]:
    """Classes with so few images that neither their row nor their curve is printed; phantoms are always printed."""
    if evaluation.synthetic or evaluation.confusion is None:
        return set()
    sums = [sum(row) for row in evaluation.confusion]
    return {name for name, count in zip(evaluation.classes, sums, strict=False) if 0 < count < FEWEST_PATIENTS}


def _confusion(entry: Entry) -> Confusion | None:
    evaluation = entry.evaluation
    if evaluation.confusion is None or len(evaluation.confusion) != len(evaluation.classes):
        return None
    few = few_classes(evaluation)
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
