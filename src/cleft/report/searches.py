"""Retrieval: how often a search finds a right answer, beside guessing, and what it found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cleft.grammar import count, verb
from cleft.report.cells import Footnotes, Row, Table
from cleft.report.figures import swatch
from cleft.report.frame import PNG
from cleft.report.tables import DIRECTIONS, Entry, metric_name, result_cell
from cleft.types import Exhibit, Retrieval, RetrievalExample


class Search(NamedTuple):
    """One direction of searching, by every model."""

    title: str
    caption: str
    table: Table


class Shown(NamedTuple):
    """One query and what a model found first."""

    title: str
    examples: Sequence[RetrievalExample]


def searches(group: Sequence[Entry]) -> list[Search]:
    """A table per direction: the models, then guessing."""
    return [
        _search(members, direction)
        for direction in DIRECTIONS
        if (members := [entry for entry in group if _found(entry, direction)])
    ]


def _search(members: Sequence[Entry], direction: str) -> Search:
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
            swatch=swatch(entry.series),
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
    table = Table(columns=[metric_name(metric) for metric in metrics], rows=rows, footnotes=notes.listed())
    return Search(DIRECTIONS[direction], caption, table)


def _found(entry: Entry, direction: str) -> list[Retrieval]:
    return [each for each in entry.evaluation.retrieval if each.direction == direction]


def shown_searches(group: Sequence[Entry]) -> list[Shown]:
    """Queries with what was found first; pictures that are none are left out."""
    found: list[Shown] = []
    for entry in group:
        for each in entry.evaluation.retrieval:
            examples = [example for example in each.examples if _sound(example)]
            if examples:
                found.append(Shown(f"{entry.run.name}: {DIRECTIONS.get(each.direction, each.direction)}", examples))
    return found


def _sound(example: RetrievalExample) -> bool:
    return all(_is_picture_or_words(each) for each in (example.query, *example.answers))


def _is_picture_or_words(exhibit: Exhibit) -> bool:
    return not exhibit.image or PNG.fullmatch(exhibit.image) is not None
