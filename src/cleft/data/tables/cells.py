"""From columns of text to label codes, ages, sexes and texts, each distinct text typed once.

Shapes: `N` rows, `C` findings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cleft.data.tables.columns import Column, Table
from cleft.data.tables.faults import Fault

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


_ALLOWED = "allowed are 1, 0, -1 and empty"
_WORD = re.compile(r"(?!(?:.*\d){5})[\w.+/?-]{1,12}")
_LABELS = {
    *("yes", "no", "y", "n", "true", "false", "t", "f", "positive", "negative", "pos", "neg", "present", "absent"),
    *("unknown", "uncertain", "unsure", "na", "n/a", "nan", "none", "null", "normal", "abnormal", "x", "?", "+", "-"),
    *map(str, range(2, 10)),
    "inf",
}


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
