"""Faults of tables: collected while reading, so that all of them can be reported."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cleft.errors import DataError
from cleft.grammar import count
from cleft.text_rules import text_fault

_NAMED = 20


class Fault(NamedTuple):
    """One kind of fault and the lines on which it occurs."""

    reason: str
    """Short code, as `DataError.reason`."""
    what: str
    """What is wrong."""
    remedy: str
    """How to fix it."""
    lines: Sequence[int] = ()
    """Line numbers, the header being line 1; empty if the fault concerns the entire table."""

    def message(self, path: Path) -> str:
        """Returns where the fault is (up to 20 lines), what is wrong and how to fix it."""
        where = f" {format_lines(self.lines)}" if self.lines else ""
        return f"{path}{where}: {self.what}; {self.remedy}"


def format_lines(lines: Sequence[int]) -> str:
    """Returns up to 20 line numbers and the number of further ones.

    Example:
        >>> format_lines([3]), format_lines(range(2, 25))[-17:]
        ('line 3', '20, 21 and 3 more')
    """
    named = ", ".join(str(line) for line in lines[:_NAMED])
    more = f" and {len(lines) - _NAMED:,} more" if len(lines) > _NAMED else ""
    return f"line{'s' if len(lines) > 1 else ''} {named}{more}"


def missing_columns(found: Collection[str], required: Iterable[str]) -> list[Fault]:
    """Returns a fault if required columns are missing; it lists the columns found and suggests the nearest."""
    missing = [name for name in required if name not in found]
    if not missing:
        return []
    guesses = "".join(suggestion(name, found) for name in missing)
    names = ", ".join(repr(name) for name in missing)
    return [Fault("columns", f"no column {names}; found {list(found)}", f"rename or add it{guesses}")]


def suggestion(name: str, known: Iterable[str]) -> str:
    """Returns `, nearest to 'x' is 'y'` if one of the known names is similar, else an empty string."""
    names = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold(), names, n=1)
    return f", nearest to {name!r} is {names[close[0]]!r}" if close else ""


def unreadable_texts(texts: Iterable[tuple[int, str, str]]) -> list[Fault]:
    """Returns faults of texts that are too long or contain invisible characters, one per kind.

    Args:
        texts: Line number, description of the text, such as `a caption`, and the text.
    """
    known: dict[str, tuple[str, str] | None] = {}
    found: dict[tuple[str, str], list[int]] = {}
    for line, what, text in texts:
        if text not in known:
            known[text] = text_fault(text)
        fault = known[text]
        if fault is not None:
            found.setdefault((fault[0], f"{what} {fault[1]}"), []).append(line)
    faults: list[Fault] = []
    for (reason, message), lines in found.items():
        what, _, remedy = message.rpartition("; ")
        faults.append(Fault(reason, what, remedy, lines))
    return faults


def faults_of_table(path: Path, faults: Iterable[Fault]) -> list[Fault]:
    """Returns the faults of an additional table with its name and lines as part of the text.

    Faults are reported under the path of the dataset's main table, whose lines `lines` would be taken for.
    """
    return [
        Fault(fault.reason, fault.message(Path(path.name)).removesuffix(f"; {fault.remedy}"), fault.remedy)
        for fault in faults
    ]


def raise_faults(path: Path, faults: Sequence[Fault]) -> None:
    """Raises a DataError with the first fault and the number of others; does nothing without faults."""
    if not faults:
        return
    others = f" ({count(len(faults) - 1, 'more kind')} of fault: see `cleft data check`)" if len(faults) > 1 else ""
    raise DataError(faults[0].message(path) + others, reason=faults[0].reason)
