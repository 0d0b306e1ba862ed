"""RSNA's tables by image: the label table has a row per box, and so has the table of detailed classes.

Shapes: `R` rows, `N` images.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cleft.data.tables.csv import Table, scan_table
from cleft.data.tables.faults import Fault, missing_columns, refuse
from cleft.data.tables.rows import BLANK, read_codes
from cleft.grammar import count, verb

BOX = ("x", "y", "width", "height")
CLASSES = {"Normal": 1, "No Lung Opacity / Not Normal": 0, "Lung Opacity": 0}
"""Detailed class to whether the image is normal."""

_OPACITY = "Lung Opacity"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The label table by image, in the order in which it first names each."""

    names: list[str]
    target: NDArray[np.int8]
    """1 or 0, `[N]`."""
    lines: NDArray[np.int64]
    """Line of the first row of each, `[N]`."""
    sound: NDArray[np.bool_]
    """Whether nothing is wrong with any row of it, `[N]`."""
    boxes: int
    repeated: list[str]
    """Lines of rows that say once more what an earlier one says."""


@dataclass(frozen=True, kw_only=True)
class Details:
    """What the detailed classes add."""

    normal: NDArray[np.int8] | None = None
    """1, 0 or `BLANK`, `[N]`; None where nobody says."""
    notes: Sequence[str] = ()
    sources: Mapping[str, str] = field(default_factory=dict[str, str])


def read_labels(table: Table) -> tuple[Labels, list[Fault]]:
    """Takes the rows of an image together: it is positive if any of them is.

    Returns:
        The images, and faults: a name that is none, a Target other than 0 and 1, rows of an image that disagree, a box
        that is no four numbers or stands where Target is 0.
    """
    names = table.columns["patientId"].texts()
    codes, wrong = read_codes(table, ["Target"])
    target: list[int] = codes[:, 0].tolist()
    boxes = list(zip(*(_numbers(table, side) for side in BOX), strict=True))
    first: dict[str, int] = {}
    for row, name in enumerate(names):
        first.setdefault(name, row)
    # Labels elsewhere may also be -1 or empty; here they may not.
    faults = [fault._replace(remedy="allowed are 1 and 0") for fault in wrong]
    bad = set[str]()

    def check(holds: Callable[[int], bool], reason: str, what: str, remedy: str) -> None:
        rows = [row for row in range(len(names)) if holds(row)]
        bad.update(names[row] for row in rows)
        if rows and not (reason == "label" and wrong):
            faults.append(Fault(reason, what, remedy, table.lines[rows].tolist()))

    said = {name: set[int]() for name in first}
    for name, value in zip(names, target, strict=True):
        said[name].add(value)
    misnamed = {name for name in first if _NAME.fullmatch(name) is None}
    check(lambda row: names[row] in misnamed, "path", "'patientId' is no name of a file", "give the id of an image")
    check(lambda row: target[row] not in (0, 1), "label", "'Target' is neither 0 nor 1", "allowed are 1 and 0")
    disagree = {name for name, values in said.items() if {0, 1} <= values}
    what = "rows of the same image disagree on Target"
    check(lambda row: names[row] in disagree, "duplicate", what, "keep those that are right")
    what, remedy = "a box is no four numbers", "fill in x, y, width and height, or leave all four empty"
    check(lambda row: not (_is_box(boxes[row]) or _is_empty(boxes[row])), "box", what, remedy)
    what, remedy = "a box where Target is 0", "empty the box, or set Target to 1"
    check(lambda row: target[row] == 0 and _is_box(boxes[row]) and names[row] not in disagree, "box", what, remedy)
    told: dict[object, int] = {}
    for row, name in enumerate(names):
        told.setdefault((name, target[row], boxes[row] if _is_box(boxes[row]) else None), row)
    once = set(told.values())
    labels = Labels(
        names=list(first),
        target=np.array([max(said[name]) == 1 for name in first], dtype=np.int8),
        lines=table.lines[list(first.values())],
        sound=np.array([name not in bad for name in first], dtype=bool),
        boxes=sum(_is_box(boxes[row]) for row in once),
        repeated=[f"line {table.lines[row]}" for row in range(len(names)) if row not in once],
    )
    return labels, faults


def read_details(path: Path, labels: Labels) -> Details:
    """Reads the detailed classes.

    Raises:
        DataError: If a class is unknown, or contradicts another row or the label table.
    """
    table, faults = scan_table(path)
    refuse(path, [*faults, *missing_columns(table.columns, ["patientId", "class"])])
    names, classes = table.columns["patientId"].texts(), table.columns["class"].texts()
    target = dict(zip(labels.names, labels.target.tolist(), strict=True))
    said: dict[str, str] = {}
    strange: list[int] = []
    apart: list[int] = []
    for row, (image, name) in enumerate(zip(names, classes, strict=True)):
        if name not in CLASSES:
            strange.append(row)
        elif said.setdefault(image, name) != name or (name == _OPACITY) != target.get(image, name == _OPACITY):
            apart.append(row)
    what = f"'class' is none of {', '.join(repr(name) for name in CLASSES)}"
    wrong = [Fault("label", what, "correct it", table.lines[strange].tolist())] * bool(strange)
    what = "the class of an image contradicts another row of it, or its Target in the label table"
    wrong += [Fault("label", what, "keep what is right", table.lines[apart].tolist())] * bool(apart)
    refuse(path, wrong)
    normal = np.array([CLASSES.get(said.get(name, ""), BLANK) for name in labels.names], dtype=np.int8)
    silent = int((normal == BLANK).sum())
    they = verb(silent, "it is", "they are")
    unnamed = f"{path.name} does not name {count(silent, 'image')}; whether {they} normal is unknown"
    notes = [unnamed] if silent else []
    return Details(normal=normal, notes=notes, sources={path.name: table.sha256})


def _numbers(table: Table, name: str) -> list[float | None]:
    """Cells of a column as numbers: None where empty, NaN where no number."""
    column = table.columns[name]
    values = [_number(value.strip()) for value in column.values]
    return [values[i] for i in column.index.tolist()]


def _number(text: str) -> float | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        return math.nan


def _is_box(box: Sequence[float | None]) -> bool:
    return all(side is not None and math.isfinite(side) for side in box)


def _is_empty(box: Sequence[float | None]) -> bool:
    return all(side is None for side in box)
