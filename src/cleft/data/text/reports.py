"""Radiology reports: their sections, and the texts that a method reads from them.

A section begins with a heading and a colon at the beginning of a line, such as `FINDINGS:`. Hospitals spell and combine
headings in many ways; `_HEADINGS` and the words in a heading determine the section, as in MIMIC-CXR's code. Some
methods read a complete report, others one sentence drawn anew for each epoch; each splits and cleans reports in its own
way. All functions are pure: a draw depends on (seed, epoch, sample) only.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Literal, TypeAlias

from cleft.data.sampling import Stream, philox_generator
from cleft.data.text.captions import check_readable, clean_text
from cleft.errors import DataError
from cleft.grammar import count, share, verb
from cleft.types import Reading

SectionChoice: TypeAlias = Literal["impression", "findings", "both", "as-written", "whole"]

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
"""Heading to section, where the heading does not contain its name."""
_MAIN = (IMPRESSION, FINDINGS, "history", COMPARISON, "addendum", "indication", "technique", "examination")
_WHOLE_STUDY = re.compile(
    r"chest|portable|ribs|bone window|frontal upright|frontal semi-upright|frontal and|pa and lat|ap and lat"
    r"|lateral and (?:pa|ap)|two views|(?:frontal|pa|ap|one|lateral) view"
)
"""Headings that name the study: their text is the findings."""
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
    r"""Split a report at its headings.

    Of several sections with the same name the last one with text is used, as in MIMIC-CXR's code. If there are neither
    findings nor an impression, the text after the first empty line of the last section is the `last_paragraph`, and so
    is a comparison that comes last, where some radiologists write everything; without any heading it is the complete
    text.

    Returns:
        Lower-case name to text, in the order of the report; no text is empty. Text before the first heading is dropped.

    Example:
        >>> split_sections("FINAL REPORT\n INDICATION:  Cough.\n\n FINDINGS AND IMPRESSION:\n Clear lungs.\n")
        {'indication': 'Cough.', 'impression': 'Clear lungs.'}
        >>> split_sections("Clear lungs.")
        {'last_paragraph': 'Clear lungs.'}
    """
    text = _PREAMBLE.sub("", _PAGE_BREAK.sub("\n", text))
    headings = list(_HEADING.finditer(text))
    ends = [*(heading.start() for heading in headings[1:]), len(text)][: len(headings)]
    raw = [(_name(heading[1]), text[heading.end() : end]) for heading, end in zip(headings, ends, strict=True)]
    if not any(name in (FINDINGS, IMPRESSION) and body.strip() for name, body in raw):
        raw = _with_last_paragraph(raw) if raw else [(LAST_PARAGRAPH, text)]
    sections: dict[str, str] = {}
    for name, body in raw:
        content = collapse_whitespace(body)
        if content:
            sections.pop(name, None)
            sections[name] = content
    return sections


def choose_sections(sections: Mapping[str, str], choice: SectionChoice) -> str | None:
    """Join the sections that are used of a report.

    Args:
        sections: Name to text, in the order of the report; empty ones count as absent.
        choice: `impression`; `findings`; `both`: impression, then findings; `as-written`: these two in their original
            order; `whole`: every section. Without findings and impression the last paragraph is used instead.

    Returns:
        The text with single spaces, or None if the report does not have the chosen sections.

    Example:
        >>> sections = {"indication": "Cough.", "findings": "Clear lungs.", "impression": "Normal."}
        >>> choose_sections(sections, "both"), choose_sections(sections, "as-written")
        ('Normal. Clear lungs.', 'Clear lungs. Normal.')
        >>> choose_sections({"findings": "Clear lungs."}, "impression") is None
        True
    """
    texts = {name: text for name, text in sections.items() if text and not text.isspace()}
    if choice == "whole":
        return collapse_whitespace(" ".join(texts.values())) or None
    if FINDINGS not in texts and IMPRESSION not in texts:
        return collapse_whitespace(texts.get(LAST_PARAGRAPH, "")) or None
    parts = _PARTS[choice] if choice != "as-written" else [name for name in texts if name in (FINDINGS, IMPRESSION)]
    return collapse_whitespace(" ".join(texts[name] for name in parts if name in texts)) or None


def report_notes(reports: Sequence[str | None] | None) -> list[str]:
    """Return notes on how many rows have a report and how many reports are distinct; none without reports."""
    if reports is None:
        return []
    present = [report for report in reports if report]
    masked = sum(1 for report in set(present) if _MASKED.search(report))
    distinct = f", {len(set(present)):,} of them distinct" if len(present) != 1 else ""
    notes = [f"{share(len(present), len(reports), 'image')} {verb(len(present), 'has', 'have')} a report{distinct}"]
    if masked:
        has = verb(masked, "has", "have")
        notes.append(f"{count(masked, 'distinct report')} {has} placeholders of de-identification")
    return notes


def collapse_whitespace(text: str) -> str:
    """Replace every run of white space by one space."""
    return _BLANKS.sub(" ", text).strip()


def _name(heading: str) -> str:
    """Section of a heading; an unknown heading names its own section."""
    plain = collapse_whitespace(heading).casefold()
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


ReportFormat: TypeAlias = Literal["sentences", "whole", "gloria", "mgca", "medclip"]

FEWEST_WORDS = 2
"""Minimum number of words of a sentence: one alone, such as a heading or `Stable`, says too little about an image."""

_END = re.compile(r"(?<=[.!?])\s+|(?:^|(?<=\s))[0-9]{1,2}[.)]\s+")
_PLACEHOLDER = re.compile(r"_+|x{3,}", re.IGNORECASE)
_DIGITS_DOT = re.compile(r"[0-9]+\.")
_DIGITS_DOT_OTHER = re.compile(r"[0-9]+\.+[^0-9]")
_WORDS = re.compile(r"\w+")
_WORDS_AND_MARKS = re.compile(r"\w+|[^\w\s]+")
_GLORIA_STOPS_AT = 5
_MGCA_FEWEST = 3
_MEDCLIP_FEWEST = 5


def read_sentences(report: str) -> tuple[str, ...]:
    r"""Split a report into sentences and clean each as captions are cleaned.

    A sentence ends at a full stop, question or exclamation mark followed by white space, so decimals stay intact; a
    list number begins one. Sentences of fewer than two words are dropped; de-identification placeholders (`___`,
    `XXXX`) are not words.

    Example:
        >>> read_sentences("1. Nodule of 3.5 cm in XXXX.\n2. No effusion. Stable. ___ XXXX.")
        ('nodule of 3 5 cm in xxxx', 'no effusion')
    """
    cleaned = (clean_text(part) for part in _END.split(report))
    return tuple(text for text in cleaned if count_words(text) >= FEWEST_WORDS)


def read_full_report(report: str) -> tuple[str, ...]:
    r"""Return a report as one text with case and punctuation, as MRM reads it.

    Example:
        >>> read_full_report("FINDINGS:\n Clear lungs."), read_full_report("Normal.")
        (('FINDINGS: Clear lungs.',), ())
    """
    text = collapse_whitespace(report)
    return (text,) if count_words(text) >= FEWEST_WORDS else ()


def read_as_gloria(report: str) -> tuple[str, ...]:
    """Split a report at digits followed by a full stop and at every full stop, as GLoRIA's released code does.

    Keeps runs of letters and digits, lower-cased, without characters other than ASCII. The released code reads its word
    limit from another setting (5) and compares for equality, so text is dropped after sentences that sum to exactly
    five words.

    Example:
        >>> read_as_gloria("No effusion. Nodule of 3.5 cm seen. Stable.")
        ('no effusion', 'nodule of', '5 cm seen')
        >>> read_as_gloria("No effusion. No focal consolidation. Heart is large.")
        ('no effusion', 'no focal consolidation')

    Source:
        GLoRIA's released code; `read_sentences` does not lose text.
    """
    sentences: list[str] = []
    total = 0
    for words in _plain_sentences(report):
        sentences.append(" ".join(words))
        total += len(words)
        if total == _GLORIA_STOPS_AT:
            break
    return tuple(sentences)


def read_as_mgca(report: str) -> tuple[str, ...]:
    """Split and clean a report as GLoRIA does, without the word limit, and join the sentences.

    MGCA reads the impression followed by the findings (`data.report_sections: both`).

    Example:
        >>> read_as_mgca("No effusion. Heart is large. Stable."), read_as_mgca("No effusion.")
        (('no effusion heart is large',), ())

    Source:
        MGCA's released code: a report of fewer than three words is dropped.
    """
    words = [word for sentence in _plain_sentences(report) for word in sentence]
    return (" ".join(words),) if len(words) >= _MGCA_FEWEST else ()


def read_as_medclip(report: str) -> tuple[str, ...]:
    """Split a report at full stops followed by a space and at list numbers; punctuation is kept as tokens.

    Example:
        >>> read_as_medclip("1. Nodule of 3.5 cm in the left lung. No effusion.")
        ('nodule of 3 . 5 cm in the left lung',)

    Source:
        MedCLIP's released code: sentences of at least five tokens.
    """
    parts = (part for text in _DIGITS_DOT_OTHER.split(collapse_whitespace(report)) for part in text.split(". "))
    tokens = (_ascii(_WORDS_AND_MARKS.findall(part.lower())) for part in parts)
    return tuple(" ".join(words) for words in tokens if len(words) >= _MEDCLIP_FEWEST)


READ_REPORT: Mapping[ReportFormat, Callable[[str], tuple[str, ...]]] = MappingProxyType(
    {
        "sentences": read_sentences,
        "whole": read_full_report,
        "gloria": read_as_gloria,
        "mgca": read_as_mgca,
        "medclip": read_as_medclip,
    }
)
"""Value of `data.texts` to the function that reads a report; it returns no text if the report is too short."""


def drop_unreported(reading: Reading, form: ReportFormat) -> Reading:
    """Drop images whose report gives a method no text; they are counted under `no-report` and `no-text`.

    Raises:
        DataError: If no image is left.
    """
    known: dict[str | None, bool] = {None: False}
    out: dict[str, list[str]] = {"no-report": [], "no-text": []}
    kept = []
    for record in reading.records:
        if record.report not in known:
            check_readable(record.report or "", record.id)
            known[record.report] = bool(READ_REPORT[form](record.report or ""))
        if known[record.report]:
            kept.append(record)
        else:
            out["no-text" if record.report else "no-report"].append(record.id)
    if not kept:
        short = len(out["no-text"])
        too_short = f"; {short:,} {verb(short, 'has', 'have')} one that is too short" if short else ""
        raise DataError(
            f"none of {count(len(reading.records), 'image')} of {reading.dataset} has a report that can be "
            f"read{too_short}; store the reports as described in docs/datasets/, or train on captions written from "
            "labels (data.texts: captions)",
            reason="no-report",
        )
    counted_out = {reason: [*reading.rejected.get(reason, ()), *ids] for reason, ids in out.items() if ids}
    return replace(reading, records=kept, rejected={**reading.rejected, **counted_out})


def change_words(
    text: str,
    seed: int,
    epoch: int,
    sample: int,
    *,
    synonyms: Mapping[str, Sequence[str]] = MappingProxyType({}),
    share: float = 0.1,
) -> str:
    """Augment a text: swap words, drop words, or replace words by synonyms.

    Args:
        text: Words separated by spaces.
        seed: Seed of the run.
        epoch: Counted from 0.
        sample: Row of the image or text.
        synonyms: Word to its synonyms. Without any, only the other two changes are drawn.
        share: Probability of dropping a word; share of the words, at least one, that are swapped or replaced.

    Returns:
        The changed text, never empty; texts of one word are returned unchanged.

    Source:
        EDA (Wei and Zou, 2019); MedCLIP draws one of its changes for each text.
    """
    words = text.split()
    if len(words) < FEWEST_WORDS:
        return text
    rng = philox_generator(seed, Stream.WORDS, epoch, sample)
    known = [place for place, word in enumerate(words) if synonyms.get(word)]
    change = int(rng.integers(3 if known else 2))
    times = max(1, round(share * len(words)))
    if change == 0:
        for _ in range(times):
            first, second = rng.choice(len(words), 2, replace=False).tolist()
            words[first], words[second] = words[second], words[first]
        return " ".join(words)
    if change == 1:
        kept = [word for word, drawn in zip(words, rng.random(len(words)).tolist(), strict=True) if drawn >= share]
        return " ".join(kept or [words[int(rng.integers(len(words)))]])
    for place in rng.choice(known, min(times, len(known)), replace=False).tolist():
        others = synonyms[words[place]]
        words[place] = others[int(rng.integers(len(others)))]
    return " ".join(words)


def count_words(text: str) -> int:
    """Count words, without placeholders of de-identification.

    Example:
        >>> count_words("XXXX of ___ x ray, stable.")
        4
    """
    return sum(not _PLACEHOLDER.fullmatch(word) for word in _WORDS.findall(text))


def _plain_sentences(report: str) -> Iterator[list[str]]:
    """Words of each sentence as GLoRIA and MGCA split and clean them; sentences of one word are dropped."""
    parts = (part for text in _DIGITS_DOT.split(collapse_whitespace(report)) for part in text.split("."))
    for part in parts:
        words = _WORDS.findall(part.replace("\ufffd\ufffd", " ").lower())
        plain = _ascii(words)
        if len(words) >= FEWEST_WORDS and plain:
            yield plain


def _ascii(words: Sequence[str]) -> list[str]:
    plain = (word.encode("ascii", "ignore").decode() for word in words)
    return [word for word in plain if word]
