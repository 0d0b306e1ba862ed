"""The tables in which IU X-ray is most often passed on: `indiana_reports.csv` and `indiana_projections.csv`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cleft.data.readers.iu_xml import Report, image_name
from cleft.data.tables.csv import Table, scan_table
from cleft.data.tables.faults import Fault, missing_columns, refuse
from cleft.data.tables.patients import whole_id
from cleft.data.tables.rows import read_texts
from cleft.errors import DataError
from cleft.grammar import count

REPORTS, PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"

_UID, _FILE, _VIEW, _TERMS = "uid", "filename", "projection", "MeSH"
_SECTIONS = ("comparison", "indication", "findings", "impression")
_VIEWS = {"frontal": "frontal", "lateral": "lateral"}


class Projections(NamedTuple):
    """Which images there are, to which report each belongs, and its view; in the order of the table."""

    table: Table
    names: list[str]
    """As `image_name` spells them; empty where a row names none."""
    numbers: list[str]
    """`uid` without leading zeros; empty where there is none."""
    views: list[str | None]
    faults: list[Fault]


class TableReports(NamedTuple):
    """The reports of a table."""

    by_number: Mapping[str, Report]
    faults: list[Fault]
    sources: Mapping[str, str]


def read_projections(path: Path) -> Projections:
    """Reads `indiana_projections.csv`.

    Raises:
        DataError: If it lacks a column.
    """
    table, faults = scan_table(path)
    refuse(path, missing_columns(table.columns, [_UID, _FILE, _VIEW]))
    names = [image_name(text) or "" for text in table.columns[_FILE].texts()]
    numbers = _numbers(table)
    texts = table.columns[_VIEW].texts()
    strange = [row for row, text in enumerate(texts) if text and text.casefold() not in _VIEWS]
    for column, rows, what, remedy in (
        (_FILE, [row for row, name in enumerate(names) if not name], "names no image", "it is 1_IM-0001-4001.dcm.png"),
        (_UID, [row for row, number in enumerate(numbers) if not number], "holds no number", "fill it in"),
        (_VIEW, strange, "holds something else than Frontal and Lateral", "fix it, or leave it empty"),
    ):
        if rows:
            faults.append(Fault("path", f"column {column!r} {what}", remedy, table.lines[rows].tolist()))
    views = [_VIEWS.get(text.casefold()) for text in texts]
    return Projections(table, names, numbers, views, faults)


def read_table_reports(path: Path, wanted: Sequence[str]) -> TableReports:
    """Reads `indiana_reports.csv`.

    Args:
        path: The table.
        wanted: Numbers of the reports that images belong to.

    Raises:
        DataError: If it lacks a column, or not one of its reports belongs to an image.
    """
    table, faults = scan_table(path)
    refuse(path, missing_columns(table.columns, [_UID, _TERMS, "findings", "impression"]))
    numbers = _numbers(table)
    sections = {name: read_texts(table.columns.get(name), len(table)) for name in _SECTIONS}
    terms = read_texts(table.columns[_TERMS], len(table))
    reports: dict[str, Report] = {}
    blank: list[int] = []
    clashes: list[int] = []
    for row, number in enumerate(numbers):
        if not number:
            blank.append(row)
            continue
        said = {name: texts[row] or "" for name, texts in sections.items() if texts[row]}
        named = tuple(term.strip() for term in (terms[row] or "").split(";") if term.strip())
        report = Report(number, said, named, ())
        if reports.setdefault(number, report) != report:
            clashes.append(row)
    faults = [fault._replace(what=f"{path.name}: {fault.what}") for fault in faults]
    for reason, rows, what, remedy in (
        ("reports", blank, f"column {_UID!r} holds no number", "fill it in or remove the row"),
        ("duplicate", clashes, "two reports of the same study differ", "keep the one that is right"),
    ):
        if rows:
            faults.append(Fault(reason, f"{path.name}: {what}", remedy, table.lines[rows].tolist()))
    if not reports.keys() & set(wanted):
        raise DataError(
            f"{path} holds {count(len(reports), 'report')}, none of which belongs to an image of {PROJECTIONS}; "
            f"do both tables come from one download?",
            reason="reports",
        )
    return TableReports(reports, faults, {path.name: table.sha256})


def _numbers(table: Table) -> list[str]:
    texts = [whole_id(text) for text in table.columns[_UID].texts()]
    return [str(int(text)) if text.isascii() and text.isdecimal() else "" for text in texts]
