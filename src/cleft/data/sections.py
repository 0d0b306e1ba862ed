"""From the free text of a radiology report to its sections, and from sections to the text that is read.

A section begins with a heading and a colon at the beginning of a line, `FINDINGS:` say. Hospitals spell and combine
headings in many ways; what they mean is told by `_HEADINGS` and by what they contain, as MIMIC-CXR's owner does.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from cleft.grammar import count, share, verb

Choice: TypeAlias = Literal["impression", "findings", "both", "as-written", "whole"]

FINDINGS, IMPRESSION, LAST_PARAGRAPH, COMPARISON = "findings", "impression", "last_paragraph", "comparison"

_PARTS = {
    "impression": (IMPRESSION,),
    "findings": (FINDINGS,),
    "both": (IMPRESSION, FINDINGS),
}
_HEADINGS = {
    "conclusion": IMPRESSION,
    "conclusions": IMPRESSION,
    "opinion": IMPRESSION,
    "findings and impression": IMPRESSION,
    "findings/impression": IMPRESSION,
    "clinical history": "history",
    "clinical information": "history",
    "clinical indication": "indication",
    "reason for examination": "indication",
    "reason for exam": "indication",
    "reference exam": COMPARISON,
    "type of examination": "examination",
    "exam": "examination",
    "wetread": "wet read",
    "recommendation": "recommendations",
    "recommendation(s)": "recommendations",
}
"""Heading to section, where the heading does not say it."""
_MAIN = (IMPRESSION, FINDINGS, "history", COMPARISON, "addendum", "indication", "technique", "examination")
_WHOLE_STUDY = re.compile(
    r"chest|portable|ribs|bone window|frontal upright|frontal semi-upright|frontal and|pa and lat|ap and lat"
    r"|lateral and (?:pa|ap)|two views|(?:frontal|pa|ap|one|lateral) view"
)
"""In a heading, these name the study; what follows are its findings."""
_CAPITALS = r"[A-Z][A-Z ()/,-]+"
_ANY_CASE = (
    r"(?i:findings?|impressions?|conclusions?|indications?|comparisons?|(?:clinical )?history|technique|examination)"
)
_HEADING = re.compile(rf"(?:^[ \t]*|(?<=[.!?])[ \t]+)({_CAPITALS}|{_ANY_CASE}):(?=\s|$)", re.MULTILINE)
_PAGE_BREAK = re.compile(r"\(Over\).*?\(Cont\)", re.DOTALL)
_PREAMBLE = re.compile(r"^\s*(?:FINAL REPORT|WET READ|INTERIM REPORT)\s*$", re.MULTILINE)
_EMPTY_LINE = re.compile(r"\n[ \t]*\n")
_BLANKS = re.compile(r"\s+")
_MASKED = re.compile(r"_{2,}|\bX{4,}\b")
_LIKE = 0.8


def split_sections(text: str) -> dict[str, str]:
    r"""Cuts a report at its headings.

    Of several sections of one name the last with any text counts, as MIMIC-CXR's owner has it. Where there are neither
    findings nor an impression, what follows the first empty line of the last section is its `last_paragraph`, and so is
    a comparison that comes last, where some radiologists write everything; without any heading that is the whole text.

    Returns:
        Name in lower case to text, in the order as written; no text is empty. What stands before the first heading is
        left out.

    Example:
        >>> split_sections("FINAL REPORT\n INDICATION:  Cough.\n\n FINDINGS AND IMPRESSION:\n Clear lungs.\n")
        {'indication': 'Cough.', 'impression': 'Clear lungs.'}
        >>> split_sections("Clear lungs.")
        {'last_paragraph': 'Clear lungs.'}
    """
    text = _PREAMBLE.sub("", _PAGE_BREAK.sub("\n", text))
    marks = list(_HEADING.finditer(text))
    ends = [*(mark.start() for mark in marks[1:]), len(text)][: len(marks)]
    raw = [(_name(mark[1]), text[mark.end() : end]) for mark, end in zip(marks, ends, strict=True)]
    if not any(name in (FINDINGS, IMPRESSION) and body.strip() for name, body in raw):
        raw = _with_last_paragraph(raw) if raw else [(LAST_PARAGRAPH, text)]
    sections: dict[str, str] = {}
    for name, body in raw:
        said = join_blanks(body)
        if said:
            sections.pop(name, None)
            sections[name] = said
    return sections


def choose_sections(sections: Mapping[str, str], choice: Choice) -> str | None:
    """Puts together the text that is read of a report.

    Args:
        sections: Name to text, in the order as written; empty ones count as absent.
        choice: `impression`; `findings`; `both`: impression, then findings; `as-written`: these two in their own order;
            `whole`: every section. Where there are neither findings nor an impression, the last paragraph stands for
            them.

    Returns:
        The text with single blanks, or None where the report does not have what was chosen.

    Example:
        >>> sections = {"indication": "Cough.", "findings": "Clear lungs.", "impression": "Normal."}
        >>> choose_sections(sections, "both"), choose_sections(sections, "as-written")
        ('Normal. Clear lungs.', 'Clear lungs. Normal.')
        >>> choose_sections({"findings": "Clear lungs."}, "impression") is None
        True
    """
    said = {name: text for name, text in sections.items() if text and not text.isspace()}
    if choice == "whole":
        return join_blanks(" ".join(said.values())) or None
    if FINDINGS not in said and IMPRESSION not in said:
        return join_blanks(said.get(LAST_PARAGRAPH, "")) or None
    parts = _PARTS[choice] if choice != "as-written" else [name for name in said if name in (FINDINGS, IMPRESSION)]
    return join_blanks(" ".join(said[name] for name in parts if name in said)) or None


def report_notes(reports: Sequence[str | None] | None) -> list[str]:
    """Returns notes on how many rows have a report and how many are distinct; none without reports."""
    if reports is None:
        return []
    present = [report for report in reports if report]
    masked = sum(1 for report in set(present) if _MASKED.search(report))
    distinct = f", {len(set(present)):,} of them distinct" if len(present) != 1 else ""
    notes = [f"{share(len(present), len(reports), 'image')} {verb(len(present), 'has', 'have')} a report{distinct}"]
    if masked:
        has = verb(masked, "has", "have")
        notes.append(f"{count(masked, 'distinct report')} {has} places taken out by de-identification")
    return notes


def join_blanks(text: str) -> str:
    """Makes every run of white space one blank."""
    return _BLANKS.sub(" ", text).strip()


def _name(heading: str) -> str:
    """The section a heading means; an unknown heading names a section of its own."""
    plain = join_blanks(heading).casefold()
    if plain in _HEADINGS:
        return _HEADINGS[plain]
    for name in _MAIN:
        if name in plain:
            return name
    close = difflib.get_close_matches(plain, _MAIN, n=1, cutoff=_LIKE)
    if close:
        return close[0]
    return FINDINGS if _WHOLE_STUDY.search(plain) else plain


def _with_last_paragraph(raw: list[tuple[str, str]]) -> list[tuple[str, str]]:
    name, body = raw[-1]
    head, *rest = _EMPTY_LINE.split(body.strip(), maxsplit=1)
    if not rest and name == COMPARISON:
        return [*raw[:-1], (LAST_PARAGRAPH, head)]
    return [*raw[:-1], (name, head), *((LAST_PARAGRAPH, text) for text in rest)]
