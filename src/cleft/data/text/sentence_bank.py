"""A bank of sentences whose findings are known, from which an image without a report gets one that fits its labels.

MedCLIP trains so: images and texts need not belong together, nor come from one table, as long as both have labels.

Shapes: `S` sentences, `C` findings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cleft.data.sampling import Stream, philox_generator
from cleft.data.tables.csv import read_table
from cleft.data.tables.faults import Fault, raise_faults, unreadable_texts
from cleft.data.tables.rows import read_codes
from cleft.data.text.captions import NO_FINDING, clean_text
from cleft.errors import DataError
from cleft.grammar import count
from cleft.types import Record

TEMPLATES = (
    "{}",
    "there is {}",
    "findings of {}",
    "the radiograph shows {}",
    "the chest shows signs of {}",
)
"""What can be said of a finding that is present, where nobody wrote a sentence."""

COLUMNS = ("sentence", "text", "report", "caption")
"""Names the column of sentences may have in a table; case does not matter."""


@dataclass(frozen=True)
class SentenceBank:
    """Sentences and which findings each of them states."""

    texts: tuple[str, ...]
    findings: tuple[str, ...]
    present: NDArray[np.bool_]
    """Whether a sentence states a finding, `[S, C]`."""

    @cached_property
    def rows(self) -> tuple[NDArray[np.int64], ...]:
        """Sentences that state each finding, `C` lists."""
        return tuple(np.flatnonzero(column) for column in self.present.T)

    @cached_property
    def normal(self) -> NDArray[np.int64]:
        """Sentences that state that nothing was found, and nothing else."""
        normal = [clean_text(name) == NO_FINDING for name in self.findings]
        stated = self.present[:, normal].any(axis=1) & ~self.present[:, np.logical_not(normal)].any(axis=1)
        return np.flatnonzero(stated)

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Each text to its first place."""
        return {text: place for place, text in reversed(list(enumerate(self.texts)))}

    def labels(self, place: int) -> dict[str, float]:
        """Returns the findings of a sentence, 1 or 0."""
        return dict(zip(self.findings, self.present[place].astype(float).tolist(), strict=True))


def bank_of_findings(findings: Sequence[str], templates: Sequence[str] = TEMPLATES) -> SentenceBank:
    """Says each finding in the words of each template; "no finding" is among the findings or is added.

    Example:
        >>> bank = bank_of_findings(["Pleural Effusion"], ["there is {}"])
        >>> bank.texts, bank.labels(0)
        (('there is pleural effusion', 'there is no finding'), {'Pleural Effusion': 1.0, 'No Finding': 0.0})
    """
    names = list(findings)
    if NO_FINDING not in map(clean_text, names):
        names.append("No Finding")
    texts = [template.format(clean_text(name)) for name in names for template in templates]
    return _bank(texts, names, np.repeat(np.eye(len(names), dtype=bool), len(templates), axis=0), "templates")


def bank_of_records(records: Iterable[Record], findings: Sequence[str]) -> SentenceBank:
    """Takes the captions of records, each with the findings of its image; the images' table may be another one.

    Captions that were made from labels state these labels and nothing else. Equal captions of equal labels count once.

    Args:
        records: Captions written and uncertain labels decided.
        findings: Columns of the bank, by name; those a record does not mention are absent.

    Raises:
        DataError: If no record has a caption, or none says "no finding".
    """
    known: dict[tuple[str, tuple[bool, ...]], None] = {}
    for record in records:
        if record.caption:
            known.setdefault((record.caption, tuple(record.labels.get(name) == 1 for name in findings)))
    texts = [text for text, _ in known]
    present = np.array([stated for _, stated in known], dtype=bool).reshape(len(texts), len(findings))
    return _bank(texts, findings, present, "the captions")


def read_bank(path: Path, findings: Sequence[str]) -> SentenceBank:
    """Reads a table of sentences with one column for each finding: 1 stated, all else not.

    Args:
        path: A CSV table with a column `sentence`, `text`, `report` or `caption`.
        findings: Those of the images; the table needs a column of one at least.

    Raises:
        DataError: If the table cannot be read, has no such columns, or no sentence that says "no finding".
    """
    table, faults = read_table(path)
    by_name = {name.casefold(): name for name in table.columns}
    text = next((by_name[name] for name in COLUMNS if name in by_name), None)
    named = [name for name in findings if name.casefold() in by_name]
    if text is None or not named:
        lacking = f"column {', '.join(map(repr, COLUMNS))}" if text is None else "column of any finding of the images"
        what, remedy = f"no {lacking}; found {list(table.columns)}", "name the sentences and their findings so"
        faults = [Fault("columns", what, remedy), *faults]
    raise_faults(path, faults)
    assert text is not None
    codes, wrong = read_codes(table, [by_name[name.casefold()] for name in named])
    raise_faults(path, wrong)
    present = np.zeros((len(table), len(findings)), dtype=bool)
    present[:, [findings.index(name) for name in named]] = codes == 1
    texts = table.columns[text].texts()
    lines = map(int, table.lines)
    raise_faults(
        path, unreadable_texts((line, "a sentence", sentence) for line, sentence in zip(lines, texts, strict=True))
    )
    kept = [row for row, sentence in enumerate(texts) if sentence]
    return _bank([texts[row] for row in kept], findings, present[kept], str(path))


def pool_of_epoch(bank: SentenceBank, seed: int, epoch: int, *, most: int = 200) -> SentenceBank:
    """Draws at most so many sentences of each finding, anew for every epoch.

    So common findings do not crowd out rare ones where an image shows both.

    Source:
        MedCLIP's released code, with 200.
    """
    drawn: set[int] = set()
    for column, rows in enumerate((*bank.rows, bank.normal)):
        order = philox_generator(seed, Stream.BANK, epoch, column).permutation(len(rows))[:most]
        drawn.update(rows[order].tolist())
    places = sorted(drawn)
    return SentenceBank(tuple(bank.texts[place] for place in places), bank.findings, bank.present[places])


def draw_sentence(bank: SentenceBank, labels: Mapping[str, float], seed: int, epoch: int, sample: int) -> int:
    """Returns the place of a sentence that shares a finding with an image.

    Every sentence that states at least one of the image's present findings, "no finding" apart, is as likely as any
    other. If there is none, or the image shows nothing, one of those that say "no finding" is drawn.

    Args:
        bank: Where sentences are drawn from.
        labels: Of the image; 1 is present.
        seed: Of the run.
        epoch: Counted from 0.
        sample: Row of the image in its split.

    Source:
        MedCLIP. Its released code gives an image without any finding the first letter of such a sentence.
    """
    rng = philox_generator(seed, Stream.SENTENCE, epoch, sample)
    shown = [
        column
        for column, name in enumerate(bank.findings)
        if labels.get(name) == 1 and clean_text(name) != NO_FINDING and len(bank.rows[column])
    ]
    if not shown:
        return int(bank.normal[int(rng.integers(len(bank.normal)))])
    ends = np.cumsum([len(bank.rows[column]) for column in shown])
    while True:
        at = int(rng.integers(ends[-1]))
        which = int(np.searchsorted(ends, at, side="right"))
        rows = bank.rows[shown[which]]
        place = int(rows[at - int(ends[which]) + len(rows)])
        # A sentence that shares k findings stands in k lists; taken once in k times it is as likely as the others.
        if rng.random() * int(bank.present[place, shown].sum()) < 1:
            return place


def _bank(texts: Sequence[str], findings: Sequence[str], present: NDArray[np.bool_], origin: str) -> SentenceBank:
    bank = SentenceBank(tuple(texts), tuple(findings), present)
    if not len(bank.normal):
        raise DataError(
            f"{origin}: none of {count(len(texts), 'sentence')} says that nothing was found, which images without "
            "findings need; add one whose only finding is 'No Finding'",
            reason="sentences",
        )
    return bank
