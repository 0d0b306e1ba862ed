"""Sentence bank: sentences with known findings, from which an image without a report gets one that matches its labels.

MedCLIP is trained this way: images and texts need not be paired or come from one table, as long as both have labels.
Shapes: `S` sentences, `C` findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

TEMPLATES = (
    "{}",
    "there is {}",
    "findings of {}",
    "the radiograph shows {}",
    "the chest shows signs of {}",
)
"""Sentences about a finding that is present, if there are no written ones."""

COLUMNS = ("sentence", "text", "report", "caption")
"""Names of the text column of a table; case is ignored."""


@dataclass(frozen=True)
class SentenceBank:
    """Sentences, and the findings that each one states."""

    texts: tuple[str, ...]
    findings: tuple[str, ...]
    present: NDArray[np.bool_]
    """Whether a sentence states a finding, `[S, C]`."""

    @cached_property
    def rows(self) -> tuple[NDArray[np.int64], ...]:
        """Sentences that state each finding, `C` arrays."""
        return tuple(np.flatnonzero(column) for column in self.present.T)

    @cached_property
    def normal(self) -> NDArray[np.int64]:
        """Sentences that state "no finding" and nothing else."""
        normal = [clean_text(name) == NO_FINDING for name in self.findings]
        stated = self.present[:, normal].any(axis=1) & ~self.present[:, np.logical_not(normal)].any(axis=1)
        return np.flatnonzero(stated)

    def labels(self, place: int) -> dict[str, float]:
        """Return the findings of a sentence, 1 or 0."""
        return dict(zip(self.findings, self.present[place].astype(float).tolist(), strict=True))


def bank_from_findings(findings: Sequence[str], templates: Sequence[str] = TEMPLATES) -> SentenceBank:
    """Fill each template with each finding; "no finding" is added if missing.

    Example:
        >>> bank = bank_from_findings(["Pleural Effusion"], ["there is {}"])
        >>> bank.texts, bank.labels(0)
        (('there is pleural effusion', 'there is no finding'), {'Pleural Effusion': 1.0, 'No Finding': 0.0})
    """
    names = list(findings)
    if NO_FINDING not in map(clean_text, names):
        names.append("No Finding")
    texts = [template.format(clean_text(name)) for name in names for template in templates]
    return _bank(texts, names, np.repeat(np.eye(len(names), dtype=bool), len(templates), axis=0), "templates")


def read_bank(path: Path, findings: Sequence[str]) -> SentenceBank:
    """Read a table of sentences with a column per finding: 1 if stated, any other value if not.

    Args:
        path: CSV table with a column `sentence`, `text`, `report` or `caption`.
        findings: Findings of the images; the table needs a column of at least one.

    Raises:
        DataError: If the table cannot be read, lacks these columns, or has no sentence that states "no finding".
    """
    table, faults = read_table(path)
    by_name = {name.casefold(): name for name in table.columns}
    text = next((by_name[name] for name in COLUMNS if name in by_name), None)
    named = [name for name in findings if name.casefold() in by_name]
    if text is None or not named:
        lacking = f"column {', '.join(map(repr, COLUMNS))}" if text is None else "column named like a finding"
        what, remedy = f"no {lacking}; the columns are {list(table.columns)}", "rename the columns"
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


def epoch_subset(bank: SentenceBank, seed: int, epoch: int, *, most: int = 200) -> SentenceBank:
    """Draw at most `most` sentences of each finding, anew for every epoch.

    This way frequent findings do not displace rare ones in images that show both.

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
    """Return the index of a sentence that shares a finding with an image.

    Every sentence that states at least one present finding of the image, "no finding" excluded, has the same
    probability. If there is none, or the image has no finding, a sentence that states "no finding" is drawn.

    Args:
        bank: Sentences to draw from.
        labels: Labels of the image; 1 is present.
        seed: Seed of the run.
        epoch: Counted from 0.
        sample: Row of the image in its split.

    Source:
        MedCLIP. For an image without findings its released code returns the first letter of such a sentence.
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
        # A sentence with k of the findings is in k lists; accepting it with probability 1/k makes all equally likely.
        if rng.random() * int(bank.present[place, shown].sum()) < 1:
            return place


def _bank(texts: Sequence[str], findings: Sequence[str], present: NDArray[np.bool_], origin: str) -> SentenceBank:
    bank = SentenceBank(tuple(texts), tuple(findings), present)
    if not len(bank.normal):
        raise DataError(
            f"{origin}: none of {count(len(texts), 'sentence')} states that there is no finding, which images without "
            "findings need; add one whose only finding is 'No Finding'",
            reason="sentences",
        )
    return bank
