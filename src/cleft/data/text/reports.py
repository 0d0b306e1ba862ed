"""From the free text of a radiology report to its sections, and from sections to the text that is read.

A section begins with a heading and a colon at the beginning of a line, `FINDINGS:` say. Hospitals spell and combine
headings in many ways; what they mean is told by `_HEADINGS` and by what they contain, as MIMIC-CXR's owner does.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Literal, TypeAlias

from cleft.data.sampling import Stream, philox_generator
from cleft.data.text.captions import clean_text, refuse_unreadable
from cleft.errors import DataError
from cleft.grammar import count, share, verb
from cleft.types import Reading

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


Way: TypeAlias = Literal["sentences", "whole", "gloria", "mgca", "medclip"]

FEWEST_WORDS = 2
"""Words of a sentence: one alone, such as a heading or `Stable`, says too little about an image."""

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
    r"""Cuts a report into its sentences and cleans each as captions are cleaned.

    A sentence ends at a full stop, question or exclamation mark with white space behind it, so that a decimal stays
    whole; the number of a list begins one. Sentences of fewer than two words are left out; what de-identification left
    (`___`, `XXXX`) is no word.

    Example:
        >>> read_sentences("1. Nodule of 3.5 cm in XXXX.\n2. No effusion. Stable. ___ XXXX.")
        ('nodule of 3 5 cm in xxxx', 'no effusion')
    """
    cleaned = (clean_text(part) for part in _END.split(report))
    return tuple(text for text in cleaned if count_words(text) >= FEWEST_WORDS)


def read_whole(report: str) -> tuple[str, ...]:
    r"""Keeps a report as it is, with case and punctuation; its tokenizer does the rest. MRM reads so.

    Example:
        >>> read_whole("FINDINGS:\n Clear lungs."), read_whole("Normal.")
        (('FINDINGS: Clear lungs.',), ())
    """
    text = join_blanks(report)
    return (text,) if count_words(text) >= FEWEST_WORDS else ()


def read_as_gloria(report: str) -> tuple[str, ...]:
    """Cuts a report at digits with a full stop behind them and at every full stop, as GLoRIA's released code does.

    Keeps runs of letters and digits, lower-cased, without what is not ASCII. Its cap on words is read from another
    setting (5) and compared for equality, so what follows is cut off where sentences sum up to exactly five words.

    Example:
        >>> read_as_gloria("No effusion. Nodule of 3.5 cm seen. Stable.")
        ('no effusion', 'nodule of', '5 cm seen')
        >>> read_as_gloria("No effusion. No focal consolidation. Heart is large.")
        ('no effusion', 'no focal consolidation')

    Source:
        GLoRIA's released code; `read_sentences` is without these losses.
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
    """Cuts and cleans a report as GLoRIA does, without its cap, and joins the sentences to one text.

    MGCA reads the impression with the findings behind it (`data.report_sections: both`).

    Example:
        >>> read_as_mgca("No effusion. Heart is large. Stable."), read_as_mgca("No effusion.")
        (('no effusion heart is large',), ())

    Source:
        MGCA's released code: a report of fewer than three words is left out.
    """
    words = [word for sentence in _plain_sentences(report) for word in sentence]
    return (" ".join(words),) if len(words) >= _MGCA_FEWEST else ()


def read_as_medclip(report: str) -> tuple[str, ...]:
    """Cuts a report at a full stop with a blank behind it and at the numbers of a list; marks stay, as tokens.

    Example:
        >>> read_as_medclip("1. Nodule of 3.5 cm in the left lung. No effusion.")
        ('nodule of 3 . 5 cm in the left lung',)

    Source:
        MedCLIP's released code: sentences of at least five tokens.
    """
    parts = (part for text in _DIGITS_DOT_OTHER.split(join_blanks(report)) for part in text.split(". "))
    tokens = (_ascii(_WORDS_AND_MARKS.findall(part.lower())) for part in parts)
    return tuple(" ".join(words) for words in tokens if len(words) >= _MEDCLIP_FEWEST)


READ_REPORT: Mapping[Way, Callable[[str], tuple[str, ...]]] = MappingProxyType(
    {
        "sentences": read_sentences,
        "whole": read_whole,
        "gloria": read_as_gloria,
        "mgca": read_as_mgca,
        "medclip": read_as_medclip,
    }
)
"""Way of reading to the texts it makes of a report; none where the report says too little."""


def draw_text(texts: Sequence[str], seed: int, epoch: int, sample: int) -> str:
    """Returns the one of some texts that an image is paired with in an epoch.

    Args:
        texts: Of one report, at least one.
        seed: Of the run.
        epoch: Counted from 0.
        sample: Row of the image in its split.
    """
    if len(texts) == 1:
        return texts[0]
    return texts[int(philox_generator(seed, Stream.SENTENCE, epoch, sample).integers(len(texts)))]


def keep_reported(reading: Reading, way: Way) -> Reading:
    """Leaves out images whose report gives a method nothing to read; they are counted under `no-report` and `no-text`.

    Raises:
        DataError: If no image is left.
    """
    known: dict[str | None, bool] = {None: False}
    out: dict[str, list[str]] = {"no-report": [], "no-text": []}
    kept = []
    for record in reading.records:
        if record.report not in known:
            refuse_unreadable(record.report or "", record.id)
            known[record.report] = bool(READ_REPORT[way](record.report or ""))
        if known[record.report]:
            kept.append(record)
        else:
            out["no-text" if record.report else "no-report"].append(record.id)
    if not kept:
        short = len(out["no-text"])
        silent = f"; {short:,} {verb(short, 'has', 'have')} one of too few words" if short else ""
        raise DataError(
            f"none of {count(len(reading.records), 'image')} of {reading.dataset} has a report that can be "
            f"read{silent}; put the reports beside the images as docs/datasets/ says, or train on captions, which "
            "labels make (data.texts: captions)",
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
    """Changes a text a little: two words change places, or some are left out, or some give way to a synonym.

    Args:
        text: Words between blanks.
        seed: Of the run.
        epoch: Counted from 0.
        sample: Row of the image or text.
        synonyms: Word to others that mean the same. Without any, only the other two changes are drawn.
        share: Probability with which a word is left out; share of the words, at least one, that change places or give
            way.

    Returns:
        The changed text, never empty; texts of one word stay as they are.

    Source:
        EDA (Wei and Zou, 2019), of whose changes MedCLIP draws one for each text.
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
    """Counts words, without what de-identification left in their place.

    Example:
        >>> count_words("XXXX of ___ x ray, stable.")
        4
    """
    return sum(not _PLACEHOLDER.fullmatch(word) for word in _WORDS.findall(text))


def _plain_sentences(report: str) -> Iterator[list[str]]:
    """Words of each sentence as GLoRIA and MGCA cut and clean them; sentences of one word are left out."""
    parts = (part for text in _DIGITS_DOT.split(join_blanks(report)) for part in text.split("."))
    for part in parts:
        words = _WORDS.findall(part.replace("\ufffd\ufffd", " ").lower())
        plain = _ascii(words)
        if len(words) >= FEWEST_WORDS and plain:
            yield plain


def _ascii(words: Sequence[str]) -> list[str]:
    plain = (word.encode("ascii", "ignore").decode() for word in words)
    return [word for word in plain if word]
