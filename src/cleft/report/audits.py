"""What answers owe to the wording of prompts: templates, denials, and the learned context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from cleft.report.cells import Cell, Footnotes, Row, Table, printed, printed_end, printed_range, small
from cleft.report.figures import style, whisker
from cleft.report.panels import norms_chart
from cleft.report.tables import HEADINGS, Entry, enclosed
from cleft.types import ContextVector, PromptAudit, Result


class Audit(NamedTuple):
    """The audit of one model's prompts."""

    title: str
    templates: Table
    spread: Sequence[str]
    """Sentences about how far a number depends on the wording."""
    denials: Table | None
    norms: Markup | None
    context: Sequence[ContextVector]


def audits(group: Sequence[Entry]) -> list[Audit]:
    """One audit for each model that has one."""
    return [_audit(entry, entry.evaluation.audit) for entry in group if entry.evaluation.audit is not None]


def _audit(entry: Entry, audit: PromptAudit) -> Audit:
    norms = norms_chart(f"Norms of the learned context of {entry.run.name}", audit.context, audit.token_norm)
    return Audit(
        title=entry.run.name,
        templates=_templates(entry, audit),
        spread=[
            f"{HEADINGS.get(each.metric, each.metric)} goes from {printed(each.metric, each.lowest)} to "
            f"{printed(each.metric, each.highest)} over {len(audit.templates)} wordings "
            f"(mean {printed(each.metric, each.mean)}, standard deviation {printed(each.metric, each.deviation)})."
            for each in audit.spread
        ],
        denials=_denials(entry, audit) if audit.denials else None,
        norms=norms if audit.context else None,
        context=audit.context,
    )


def _templates(entry: Entry, audit: PromptAudit) -> Table:
    notes = Footnotes()
    spans = {metric: _span(audit, metric) for metric in HEADINGS}
    rows = [
        Row(
            kind="mean" if template.usual else "model",
            label=f"{template.opening} …",
            sublabel="the usual opening" if template.usual else "",
            cells=[_cell(entry, template.results, metric, notes, spans[metric]) for metric in HEADINGS],
        )
        for template in audit.templates
    ]
    ends = [(printed_end(metric, low), printed_end(metric, high)) for metric, (low, high) in spans.items()]
    return Table(columns=list(HEADINGS.values()), ends=ends, rows=rows, footnotes=notes.listed())


def _span(audit: PromptAudit, metric: str) -> tuple[float, float]:
    seen = [
        end
        for template in audit.templates
        for result in template.results
        if result.metric == metric and result.value is not None
        for end in (result.value, *(result.interval or ()))
    ]
    return enclosed(seen or [0.5])


def _denials(entry: Entry, audit: PromptAudit) -> Table:
    notes = Footnotes()
    rows = [
        Row(
            kind="model",
            label=denial.finding,
            sublabel=f"“{denial.present}” against “{denial.absent}”",
            cells=[
                Cell(text=f"{denial.cosine:.3f}"),
                Cell(text=printed("accuracy", denial.said_present)),
                Cell(text="–" if denial.shown is None else printed("accuracy", denial.shown)),
                *(_cell(entry, denial.results, f"auc/{side}", notes) for side in ("present", "absent", "pair")),
            ],
        )
        for denial in audit.denials
    ]
    columns = ["Cosine of the two", "Answered present", "Is present", "AUC, named", "AUC, denied", "AUC, both"]
    return Table(columns=columns, rows=rows, footnotes=notes.listed())


def _cell(
    entry: Entry,
    results: Sequence[Result],
    metric: str,
    notes: Footnotes,
    span: tuple[float, float] | None = None,
) -> Cell:
    result = next((each for each in results if each.metric == metric), None)
    if result is None or result.value is None or small(result, entry.evaluation):
        reason = (result.reason if result else None) or "not measured"
        return Cell(text="–", note=notes.letter(reason), title=reason)
    colour = style(entry.series)[0]
    picture = whisker(result.value, result.interval, span, kind="model", colour=colour, level=-1) if span else ""
    return Cell(
        text=printed(metric, result.value),
        detail=printed_range(metric, result.interval) if result.interval else "",
        note=notes.letter(result.reason),
        picture=picture,
    )
