"""From typed rows of a table to records: what is left out, why, and that nothing comes apart.

Shapes: `N` rows, `C` findings.
"""

from __future__ import annotations

import gc
import math
import re
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cleft.data.tables.csv import Column, Table
from cleft.data.tables.faults import Fault, unreadable_texts
from cleft.grammar import share, verb
from cleft.types import Record

BLANK = 2
"""Code of a finding that nobody mentioned, beside 1 present, 0 absent and -1 uncertain."""

_CODES = {"": BLANK, "1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1}
_PARTS = {
    **dict.fromkeys(("train", "training", "train_val", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "development", "tune", "tuning"), "val"),
    **dict.fromkeys(("test", "testing", "holdout"), "test"),
}
_SEXES = {"male": "Male", "m": "Male", "female": "Female", "f": "Female"}
_OLDEST = 120
_ALLOWED = "allowed are 1, 0, -1 and empty"
_WORD = re.compile(r"(?!(?:.*\d){5})[\w.+/?-]{1,12}")
_LABELS = {
    *("yes", "no", "y", "n", "true", "false", "t", "f", "positive", "negative", "pos", "neg", "present", "absent"),
    *("unknown", "uncertain", "unsure", "na", "n/a", "nan", "none", "null", "normal", "abnormal", "x", "?", "+", "-"),
    *map(str, range(2, 10)),
    "inf",
}
_EXAMPLES = 3


@contextmanager
def gc_paused() -> Generator[None]:
    """Pauses the collector; also a decorator. Looking through records again and again takes as long as making them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def read_codes(table: Table, findings: Sequence[str]) -> tuple[NDArray[np.int8], list[Fault]]:
    """Types label columns.

    Returns:
        Codes `[N, C]`: 1, 0, -1 or `BLANK`; and one fault per column that holds anything else than `1`, `0`,
        `-1` (or `1.0`, `0.0`, `-1.0`) and nothing. Such cells count as blank.
    """
    codes = np.full((len(table), len(findings)), BLANK, dtype=np.int8)
    faults: list[Fault] = []
    for c, name in enumerate(findings):
        column = table.columns[name]
        known = [_CODES.get(value.strip()) for value in column.values]
        wrong = [i for i, code in enumerate(known) if code is None]
        if column.values:
            codes[:, c] = np.array([BLANK if code is None else code for code in known], dtype=np.int8)[column.index]
        if wrong:
            are_labels = any(code not in (None, BLANK) for code in known)
            what, remedy = _strange(name, [column.values[i].strip() for i in wrong], are_labels=are_labels)
            faults.append(Fault("label", what, remedy, table.lines[column.rows_of(wrong)].tolist()))
    return codes, faults


def _strange(name: str, texts: Sequence[str], *, are_labels: bool) -> tuple[str, str]:
    """Says what a column of labels holds in place of codes, and what to do.

    Only what looks like a label is quoted: a name or a date in a column that was taken for a finding is not.
    """
    quoted = [repr(text) for text in texts if _WORD.fullmatch(text) and (are_labels or text.casefold() in _LABELS)]
    if not quoted:
        return f"column {name!r} holds text that is no label", f"{_ALLOWED}; if it is no finding, call it '_{name}'"
    held = ", ".join(quoted[:3]) + (", …" if len(texts) > min(3, len(quoted)) else "")
    return f"column {name!r} holds {held}", _ALLOWED


def read_texts(column: Column | None, rows: int) -> list[str | None]:
    """Returns the text of each row; None where it is empty or where the table has no such column."""
    if column is None:
        return [None] * rows
    values = [value.strip() or None for value in column.values]
    return [values[i] for i in column.index.tolist()]


def read_sexes(column: Column | None, rows: int) -> tuple[list[str | None], int]:
    """Returns `Male`, `Female` or None for each row, and how many texts were neither (such as `Unknown`)."""
    texts = read_texts(column, rows)
    sexes = [_SEXES.get(text.casefold()) if text else None for text in texts]
    return sexes, sum(1 for text, sex in zip(texts, sexes, strict=True) if text and sex is None)


def read_splits(table: Table, column: Column | None) -> tuple[list[str | None] | None, list[Fault]]:
    """Returns `train`, `val`, `test` or None for each row; None in place of all where there is no such column.

    Other names of these parts are understood. A fault tells what is none of them.
    """
    if column is None:
        return None, []
    texts = [value.strip().casefold() for value in column.values]
    wrong = [i for i, text in enumerate(texts) if text and text not in _PARTS]
    splits = [_PARTS.get(text) for text in texts]
    read = [splits[i] for i in column.index.tolist()]
    if not wrong:
        return read, []
    held = ", ".join(repr(column.values[i][:40]) for i in wrong[:3]) + (", …" if len(wrong) > 3 else "")
    lines = table.lines[column.rows_of(wrong)].tolist()
    return read, [Fault("split", f"column 'split' holds {held}", "allowed are train, val, test and empty", lines)]


def read_ages(column: Column | None, rows: int) -> tuple[list[float | None], int]:
    """Returns the age in years of each row, and how many texts were no age between 0 and 120."""
    if column is None:
        return [None] * rows, 0
    values = [_age(value.strip()) for value in column.values]
    strange = [
        i for i, (text, age) in enumerate(zip(column.values, values, strict=True)) if text.strip() and age is None
    ]
    return [values[i] for i in column.index.tolist()], len(column.rows_of(strange))


def _age(text: str) -> float | None:
    try:
        age = float(text)
    except ValueError:
        return None
    return age if math.isfinite(age) and 0 <= age <= _OLDEST else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """A table after typing; entry i of every list speaks of the same image."""

    ids: list[str]
    images: list[str]
    """Path of each image as text."""
    findings: tuple[str, ...]
    codes: NDArray[np.int8]
    """1, 0, -1 or `BLANK`, `[N, C]`."""
    patients: list[str]
    lines: NDArray[np.int64]
    """Line of each row in its table, `[N]`."""
    studies: list[str | None] | None = None
    views: list[str | None] | None = None
    sexes: list[str | None] | None = None
    ages: list[float | None] | None = None
    captions: list[str | None] | None = None
    lateralities: list[str | None] | None = None
    scanners: list[str | None] | None = None
    splits: list[str | None] | None = None
    reports: list[str | None] | None = None
    """None in place of a list: the dataset has no such column."""


def text_faults(rows: Rows, *, reports: bool) -> list[Fault]:
    """Finds texts that are too long or hold an invisible character.

    Args:
        rows: All rows.
        reports: Whether reports are read, besides captions and the names of findings.
    """
    texts: list[tuple[int, str, str]] = [(1, "the column of a finding", name) for name in rows.findings]
    for what, column in (("a caption", rows.captions), ("a report", rows.reports if reports else None)):
        texts += [(int(line), what, text) for line, text in zip(rows.lines, column or (), strict=False) if text]
    return unreadable_texts(texts)


def merge_duplicates(rows: Rows, kept: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[str], list[Fault]]:
    """Keeps an image that stands twice once.

    Returns:
        The rows that stay, the lines of equal rows that were merged, and a fault where two rows of one image
        disagree.
    """
    if len({rows.ids[row] for row in kept.tolist()}) == len(kept):
        return kept, [], []
    first: dict[str, int] = {}
    stay: list[int] = []
    merged: list[str] = []
    clashes: list[int] = []
    for row in kept.tolist():
        other = first.setdefault(rows.ids[row], row)
        if other == row:
            stay.append(row)
        elif _content(rows, row) == _content(rows, other):
            merged.append(f"line {rows.lines[row]}")
        else:
            clashes += [int(rows.lines[other]), int(rows.lines[row])]
    faults = [Fault("duplicate", "two rows of the same image disagree", "keep the one that is right", clashes)] * bool(
        clashes
    )
    return np.array(stay, dtype=np.int64), merged, faults


def keep_views(
    rows: Rows, kept: NDArray[np.int64], views: Sequence[str] | None
) -> tuple[NDArray[np.int64], dict[str, list[str]]]:
    """Leaves out projections that are not wanted; None wants all.

    A row whose projection is unknown stays. `frontal` is what a file name says where the table does not: it stays
    if any frontal projection is wanted.

    Returns:
        The rows that stay, and the ids of those left out under `view-<projection>`.
    """
    if views is None or rows.views is None:
        return kept, {}
    wanted = {view.casefold() for view in views}
    if wanted & {"ap", "pa"}:
        wanted.add("frontal")
    stay = {view: view is None or view.casefold() in wanted for view in set(rows.views)}
    rejected: dict[str, list[str]] = {}
    for row in kept.tolist():
        view = rows.views[row]
        if not stay[view]:
            rejected.setdefault(f"view-{view}", []).append(rows.ids[row])
    mask = np.fromiter((stay[rows.views[row]] for row in kept.tolist()), dtype=bool, count=len(kept))
    return kept[mask], rejected


def drop_missing(
    rows: Rows, kept: NDArray[np.int64], present: NDArray[np.bool_], max_bad: float
) -> tuple[NDArray[np.int64], list[str], list[Fault]]:
    """Leaves out rows without a file; a fault if they are more than a share of `max_bad`.

    Args:
        rows: All rows.
        kept: Rows still in question, `[K]`.
        present: Whether the file of each of them exists, `[K]`.
        max_bad: Largest share of them that may be missing.

    Returns:
        The rows that stay, the ids of those left out, and the fault.
    """
    gone = kept[~present].tolist()
    missing = [rows.ids[row] for row in gone]
    faults: list[Fault] = []
    if len(missing) > max_bad * len(kept):
        gone_images = f"{share(len(missing), len(kept), 'image')} {verb(len(missing), 'is', 'are')} not on disk"
        faults.append(
            Fault(
                "missing",
                f"{gone_images} ({len(missing) / len(kept):.1%}, data.max_bad allows {max_bad:.1%}), such as "
                f"{', '.join(missing[:_EXAMPLES])}",
                "complete the download, correct the paths, or raise data.max_bad",
                rows.lines[gone].tolist(),
            )
        )
    return kept[present], missing, faults


@gc_paused()
def to_records(rows: Rows, kept: NDArray[np.int64]) -> list[Record]:
    """Makes one record per row, in the table's order. Rows with equal labels share one mapping."""
    labels: dict[bytes, dict[str, float]] = {}
    width = len(rows.findings)
    blob = np.ascontiguousarray(rows.codes).tobytes()
    records: list[Record] = []
    blank: list[Any] = [None] * len(rows.ids)
    studies, views, splits = rows.studies or blank, rows.views or blank, rows.splits or blank
    sexes, ages = rows.sexes or blank, rows.ages or blank
    lateralities, scanners = rows.lateralities or blank, rows.scanners or blank
    captions, reports = rows.captions or blank, rows.reports or blank
    for row in kept.tolist():
        key = blob[row * width : (row + 1) * width]
        if key not in labels:
            pairs = zip(rows.findings, rows.codes[row].tolist(), strict=True)
            labels[key] = {finding: float(code) for finding, code in pairs if code != BLANK}
        records.append(
            Record(
                id=rows.ids[row],
                image=Path(rows.images[row]),
                labels=labels[key],
                patient=rows.patients[row],
                study=studies[row],
                view=views[row],
                sex=sexes[row],
                laterality=lateralities[row],
                age=ages[row],
                scanner=scanners[row],
                split=splits[row],
                caption=captions[row],
                report=reports[row],
            )
        )
    return records


def view_note(rejected: dict[str, list[str]], views: Sequence[str] | None) -> list[str]:
    """Says how many images of which projection were left out."""
    counts = Counter({reason.removeprefix("view-"): len(ids) for reason, ids in rejected.items()})
    if not counts or views is None:
        return []
    parts = ", ".join(f"{count:,} {view}" for view, count in counts.most_common())
    return [f"left out by projection: {parts} (data.views keeps {', '.join(views)})"]


def _content(rows: Rows, row: int) -> tuple[object, ...]:
    columns = (
        *(rows.patients, rows.studies, rows.views, rows.sexes, rows.ages, rows.captions),
        *(rows.lateralities, rows.scanners, rows.splits, rows.reports),
    )
    return (*(column[row] for column in columns if column), *rows.codes[row].tolist())
