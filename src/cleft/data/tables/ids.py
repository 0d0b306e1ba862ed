"""Ids of patients in several spellings: `12` and `12.0`, `012`, `p1` and `P1`.

Programs change ids on the way: pandas writes a column of numbers with gaps as `12.0`, Excel drops leading zeros and
writes long numbers as `1.23457E+15`, people type letters in either case. One person in two spellings is two patients
to a split, which may then be on both sides of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Decimal

from cleft.data.tables.columns import Column
from cleft.data.tables.faults import Fault

_WHOLE = re.compile(r"([0-9]+)\.0*")
_EXACT = 2**53
_ROUNDED = re.compile(r"[0-9]+\.[0-9]+[eE]\+?[0-9]+|[0-9]+[eE]\+[0-9]+")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]{1,2})?")
_COMMA = re.compile(r"([0-9]+),0{1,2}")
"""The form of a whole number where a comma separates decimals."""
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+")
_PADDED = re.compile(r"([^0-9]*)0+([0-9]+)")
_MOST = 3


def whole_id(text: str) -> str:
    """Returns an id without spaces around it and without the `.0` that a column of numbers with gaps is written with.

    Up to 2^53 nothing was lost by that; a longer number is left as it is.

    Example:
        >>> whole_id(" 12.0"), whole_id("012"), whole_id("9007199254740993.0")
        ('12', '012', '9007199254740993.0')
    """
    text = text.strip()
    found = None if text.isdigit() else _WHOLE.fullmatch(text)
    return found[1] if found and int(found[1]) <= _EXACT else text


def is_rounded(text: str) -> bool:
    """Whether an id was saved as a number that lost digits, such as `1.23457E+15`."""
    text = text.strip()
    found = _WHOLE.fullmatch(text)
    return _ROUNDED.fullmatch(text) is not None or (found is not None and int(found[1]) > _EXACT)


def id_key(text: str) -> str:
    r"""Returns what all spellings of an id have in common; ids of different people may share it.

    Letter case, leading zeros, spaces, invisible characters, forms of digits and the form of a number do not matter.

    Example:
        >>> [id_key(text) for text in ("12", "12.0", "012", "1.2e1", " 12\u200b", "P-007", "p-7")]
        ['12', '12', '12', '12', '12', 'p-7', 'p-7']
    """
    if text.isascii() and text.isdigit() and text[0] != "0":
        return text
    folded = unicodedata.normalize("NFKC", text).casefold()
    plain = "".join(letter for letter in folded if unicodedata.category(letter)[0] not in "ZC")
    plain = plain.removeprefix("+")
    if _GROUPED.fullmatch(plain):
        plain = plain.replace(",", "")
    elif found := _COMMA.fullmatch(plain):
        plain = found[1]
    if _NUMBER.fullmatch(plain):
        number = Decimal(plain)
        if number == number.to_integral_value():
            return f"{int(number)}"
    found = _PADDED.fullmatch(plain)
    return f"{found[1]}{found[2]}" if found else plain


def read_patients(column: Column) -> tuple[list[str], list[int], int]:
    """Returns the patient of each row, the rows whose id was rounded, and how many ids ended in `.0`."""
    ids = [whole_id(value) for value in column.values]
    rounded = [i for i, text in enumerate(ids) if is_rounded(text)]
    shortened = sum(text != value.strip() for text, value in zip(ids, column.values, strict=True))
    return [ids[i] for i in column.index.tolist()], column.rows_of(rounded).tolist(), shortened


def rounded_fault(name: str, example: str, lines: Sequence[int]) -> Fault:
    """Returns the fault of ids that were saved as numbers and lost digits."""
    what = f"column {name!r} holds {example!r}: it was saved as a number and lost digits"
    return Fault("id", what, "export the table again with the ids as text", lines)


def spelling_faults(patients: Sequence[str], rows: Iterable[int], lines: Sequence[int]) -> list[Fault]:
    """Returns a fault if persons may be in a table in two spellings; three are named.

    Args:
        patients: Of each row.
        rows: Which rows count.
        lines: Of each row in its table.
    """
    spellings: dict[str, set[str]] = {}
    rows = list(rows)
    for patient in {patients[row] for row in rows}:
        spellings.setdefault(id_key(patient), set()).add(patient)
    doubled = sorted(sorted(names) for names in spellings.values() if len(names) > 1)
    if not doubled:
        return []
    names = {name for group in doubled for name in group}
    at = [int(lines[row]) for row in rows if patients[row] in names]
    listed = "; ".join(" and ".join(map(repr, group)) for group in doubled[:_MOST])
    more = f" and {len(doubled) - _MOST:,} more" if len(doubled) > _MOST else ""
    what = f"patients that may be one person in two spellings: {listed}{more}"
    remedy = "write each patient one way; different people need ids that differ in more than case, zeros or spaces"
    return [Fault("patient", what, remedy, at)]
