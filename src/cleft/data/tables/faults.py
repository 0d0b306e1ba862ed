"""What is wrong with a table, collected so that everything is reported at once."""

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
    """One kind of thing that is wrong with a table, wherever it occurs."""

    reason: str
    """Short code, as `DataError.reason`."""
    what: str
    remedy: str
    lines: Sequence[int] = ()
    """Every line it occurs on, the header being line 1; empty where it concerns the table as a whole."""

    def message(self, path: Path) -> str:
        """Says where, what and what to do, naming up to 20 lines and counting the rest."""
        where = f" {format_lines(self.lines)}" if self.lines else ""
        return f"{path}{where}: {self.what}; {self.remedy}"


def format_lines(lines: Sequence[int]) -> str:
    """Names up to 20 lines and counts the rest.

    Example:
        >>> format_lines([3]), format_lines(range(2, 25))[-17:]
        ('line 3', '20, 21 and 3 more')
    """
    named = ", ".join(str(line) for line in lines[:_NAMED])
    more = f" and {len(lines) - _NAMED:,} more" if len(lines) > _NAMED else ""
    return f"line{'s' if len(lines) > 1 else ''} {named}{more}"


def missing_columns(found: Collection[str], required: Iterable[str]) -> list[Fault]:
    """Compares names of columns; at most one fault, which says what was found and what comes nearest."""
    missing = [name for name in required if name not in found]
    if not missing:
        return []
    guesses = "".join(suggestion(name, found) for name in missing)
    names = ", ".join(repr(name) for name in missing)
    return [Fault("columns", f"no column {names}; found {list(found)}", f"rename or add it{guesses}")]


def suggestion(name: str, known: Iterable[str]) -> str:
    """Returns `, nearest to 'x' is 'y'` where one of the known names is close, else nothing."""
    names = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold(), names, n=1)
    return f", nearest to {name!r} is {names[close[0]]!r}" if close else ""


def unreadable_texts(texts: Iterable[tuple[int, str, str]]) -> list[Fault]:
    """Finds texts that are too long or hold an invisible character; equal faults are one.

    Args:
        texts: Line, what the text is, such as `a caption`, and the text.
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
    for (reason, sentence), lines in found.items():
        what, _, remedy = sentence.rpartition("; ")
        faults.append(Fault(reason, what, remedy, lines))
    return faults


def faults_of_table(path: Path, faults: Iterable[Fault]) -> list[Fault]:
    """Returns the faults of an additional table with its path and lines in the text.

    Faults are reported for the dataset's main table; `lines` of another table would be taken for lines of that one.
    """
    return [
        Fault(fault.reason, fault.message(Path(path.name)).removesuffix(f"; {fault.remedy}"), fault.remedy)
        for fault in faults
    ]


def raise_faults(path: Path, faults: Sequence[Fault]) -> None:
    """Raises a DataError that tells the first fault and counts the others; does nothing without faults."""
    if not faults:
        return
    others = f" ({count(len(faults) - 1, 'more kind')} of fault: see `cleft data check`)" if len(faults) > 1 else ""
    raise DataError(faults[0].message(path) + others, reason=faults[0].reason)
