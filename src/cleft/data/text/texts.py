"""The text that is paired with each image in training: a caption, a part of the report, or a sentence from the bank.

`data.texts` selects the source. Each draw is a function of (seed, epoch, row), so nothing depends on the worker or the
order. From a sentence bank an image without a report gets a sentence that matches its labels, as in MedCLIP.
Shapes: `S` sentences, `C` findings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from cleft.config import DataConfig
from cleft.data.datasets import prompt_prefix
from cleft.data.sampling import Stream, philox_generator
from cleft.data.tables.csv import read_table
from cleft.data.tables.faults import Fault, raise_faults, unreadable_texts
from cleft.data.tables.paths import is_synthetic
from cleft.data.tables.rows import read_codes
from cleft.data.text.captions import NO_FINDING, check_readable, clean_text
from cleft.data.text.reports import READ_REPORT, ReportFormat, change_words
from cleft.errors import DataError
from cleft.grammar import count
from cleft.privacy import MIN_PATIENTS
from cleft.types import Record

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
    return _build_bank(texts, names, np.repeat(np.eye(len(names), dtype=bool), len(templates), axis=0), "templates")


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
    return _build_bank([texts[row] for row in kept], findings, present[kept], str(path))


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


def _build_bank(texts: Sequence[str], findings: Sequence[str], present: NDArray[np.bool_], origin: str) -> SentenceBank:
    bank = SentenceBank(tuple(texts), tuple(findings), present)
    if not len(bank.normal):
        raise DataError(
            f"{origin}: none of {count(len(texts), 'sentence')} states that there is no finding, which images without "
            "findings need; add one whose only finding is 'No Finding'",
            reason="sentences",
        )
    return bank


_FINDING_TEMPLATE = "there is {}"
"""Two words before a finding: methods that compare words need more than one."""


class SampledText(NamedTuple):
    """The text paired with one image."""

    text: str
    labels: NDArray[np.float32] | None
    """Findings that the text states, `[C]`; None if they are the labels of the image."""
    reworded: str | None
    """The text after word augmentation, if `data.augment_texts` is set."""


class Texts:
    """The texts of a split, epoch by epoch.

    Args:
        records: Records of the split, each with a caption.
        findings: Columns of the labels.
        config: `texts`, `caption_templates`, `sentence_bank` and `augment_texts` are used.
        seed: Seed of the run.
        fixed: Whether every epoch uses the texts of the first one without augmentation, as for validation.

    Raises:
        DataError: If a record has no text, or the sentence bank cannot be read.
    """

    def __init__(
        self, records: Sequence[Record], findings: Sequence[str], config: DataConfig, seed: int, *, fixed: bool = False
    ) -> None:
        self._seed = seed
        self._fixed = fixed
        self._reword = config.augment_texts and not fixed
        self._bank = _bank(findings, config) if config.texts == "bank" else None
        self._pool: tuple[int, SentenceBank] | None = None
        self._findings = tuple(findings)
        self._rows: Sequence[int] = range(len(records))
        self._patients = [record.patient for record in records]
        self._synthetic = is_synthetic(config.root)
        self._own = _own_texts(findings, config)
        self._labels = [record.labels for record in records] if self._bank is not None else []
        self._choices = [] if self._bank is not None else _choices(records, config)

    def sample(self, epoch: int, row: int) -> SampledText:
        """Return the text of an image.

        Args:
            epoch: Counted from 0.
            row: Row of the image in its split.
        """
        epoch, row = 0 if self._fixed else epoch, self._rows[row]
        if self._bank is None:
            text, labels = draw_text(self._choices[row], self._seed, epoch, row), None
        else:
            pool = self._pool_of(epoch)
            index = draw_sentence(pool, self._labels[row], self._seed, epoch, row)
            text, stated = pool.texts[index], pool.labels(index)
            labels = np.array([stated.get(name, 0.0) for name in self._findings], np.float32)
        return SampledText(text, labels, change_words(text, self._seed, epoch, row) if self._reword else None)

    def subset(self, rows: Sequence[int]) -> Texts:
        """Return the texts of some rows, drawn as they are among all rows."""
        part = copy(self)
        part._rows = [self._rows[row] for row in rows]
        return part

    def all_texts(self) -> list[str]:
        """Return every text that may be drawn, unaugmented, once for each image it may be paired with."""
        if self._bank is not None:
            return list(self._bank.texts)
        return [text for choices in self._choices for text in choices]

    def tokenizer_corpus(self) -> TokenizerCorpus:
        """Return the parts of these texts that a tokenizer may be trained on: words of several patients, and ours.

        Synthetic images have no patients. The source of a sentence of the bank is unknown, so each counts as one
        patient.
        """
        if self._bank is not None:
            pairs = [(str(index), text) for index, text in enumerate(self._bank.texts)]
        else:
            of_patients = zip(self._patients, self._choices, strict=True)
            pairs = [(patient, text) for patient, choices in of_patients for text in choices]
        return shared_words(pairs, self._own, min_patients=1 if self._synthetic else MIN_PATIENTS)

    def _pool_of(self, epoch: int) -> SentenceBank:
        assert self._bank is not None
        if self._pool is None or self._pool[0] != epoch:
            self._pool = epoch, epoch_subset(self._bank, self._seed, epoch)
        return self._pool[1]


def report_format(config: DataConfig) -> ReportFormat | None:
    """Return how reports are read, or None if they are not used."""
    return cast("ReportFormat", config.texts) if config.texts in READ_REPORT else None


def finding_sentences(labels: Mapping[str, float]) -> tuple[str, ...]:
    """Return one short sentence per present finding, or one that there is none.

    Example:
        >>> finding_sentences({"Edema": 1, "Fracture": 0, "Pleural Effusion": 1}), finding_sentences({"Edema": -1})
        (('there is edema', 'there is pleural effusion'), ('there is no finding',))
    """
    present = tuple(_FINDING_TEMPLATE.format(clean_text(name)) for name, value in labels.items() if value == 1)
    return present or (_FINDING_TEMPLATE.format(NO_FINDING),)


def _own_texts(findings: Sequence[str], config: DataConfig) -> list[str]:
    """Templates and names that texts are made from, which were not written about a patient."""
    names = [*findings, *map(clean_text, findings), NO_FINDING]
    return [prompt_prefix(config), *names, _FINDING_TEMPLATE, *TEMPLATES, *config.caption_templates]


def _caption_variants(caption: str, config: DataConfig) -> tuple[str, ...]:
    """A caption in each of `data.caption_templates`; unchanged if it has no finding after the prompt prefix."""
    beginning = prompt_prefix(config)
    findings = caption.removeprefix(beginning).strip()
    if not config.caption_templates or not caption.startswith(beginning) or not findings:
        return (caption,) if caption else ()
    return tuple(clean_text(template.replace("{}", findings)) for template in config.caption_templates)


def _bank(findings: Sequence[str], config: DataConfig) -> SentenceBank:
    if config.sentence_bank is None:
        return bank_from_findings(findings)
    columns = list(findings)
    if NO_FINDING not in map(clean_text, columns):
        columns.append("No Finding")
    return read_bank(config.sentence_bank, columns)


def _choices(records: Sequence[Record], config: DataConfig) -> list[tuple[str, ...]]:
    """The texts of each record, one of which is drawn; equal ones share one object."""
    form = report_format(config)
    known: dict[object, tuple[str, ...]] = {}
    choices: list[tuple[str, ...]] = []
    for record in records:
        if form is not None:
            key, make = record.report, lambda record: READ_REPORT[form](record.report or "")
        elif config.texts == "findings":
            key, make = tuple(record.labels.items()), lambda record: finding_sentences(record.labels)
        else:
            key, make = record.caption, lambda record: _caption_variants(record.caption or "", config)
        if key not in known:
            check_readable((record.report if form is not None else record.caption) or "", record.id)
            known[key] = make(record)
        if not known[key]:
            raise DataError(
                f"{record.id} has no text for data.texts={config.texts}; leave it out, or set data.texts=captions",
                reason="no-text",
            )
        choices.append(known[key])
    return choices


_WORD = re.compile(r"[^\W\d_]+|\d+")
"""A run of letters or of digits. No token spans two of them."""


class TokenizerCorpus(NamedTuple):
    """Texts without rare words.

    A tokenizer lists its words in a file of the model folder, and a word from the texts of few patients may be a name,
    date or number.
    """

    parts: list[str]
    """Text between the removed words, each part once."""
    words: int
    """Number of distinct words before."""
    left_out: int
    """Number of these that are in no part."""


def shared_words(
    texts: Iterable[tuple[str, str]], own: Iterable[str], *, min_patients: int = MIN_PATIENTS
) -> TokenizerCorpus:
    """Remove every word that occurs in the texts of too few patients.

    Case is distinguished: a name in capitals is not a common word.

    Args:
        texts: Pairs of patient and text, in any order and number.
        own: Texts not about patients, such as templates and names of findings; their words are kept.
        min_patients: Number of patients whose texts must contain a word.

    Returns:
        The remaining parts; `own` if nothing remains.

    Example:
        >>> shared_words([("a", "seen by Ada"), ("b", "seen by Bo")], ["edema"], min_patients=2).parts
        ['seen by ']
    """
    own, held = list(own), _distinct(texts)
    kept = {word for text in own for word in _WORD.findall(text)}
    holders: dict[str, set[str]] = {}
    all_words: set[str] = set()
    for text, patients in held.items():
        words = set(_WORD.findall(text))
        all_words |= words
        for word in words - kept:
            known = holders.setdefault(word, set())
            known |= patients
            if len(known) >= min_patients:
                kept.add(word)
                del holders[word]
    parts = dict.fromkeys(part for text in held for part in _parts(text, holders))
    return TokenizerCorpus(list(parts) or own, len(all_words), len(holders))


def _distinct(texts: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    held: dict[str, set[str]] = {}
    for patient, text in texts:
        held.setdefault(text, set()).add(patient)
    return held


def _parts(text: str, left_out: dict[str, set[str]]) -> Sequence[str]:
    """The text between removed words."""
    parts: list[str] = []
    start = 0
    for match in _WORD.finditer(text):
        if match[0] in left_out:
            parts.append(text[start : match.start()])
            start = match.end()
    return [part for part in (*parts, text[start:]) if part.strip()]


def draw_text(texts: Sequence[str], seed: int, epoch: int, sample: int) -> str:
    """Return the text that an image is paired with in an epoch.

    Args:
        texts: Texts of one report, at least one.
        seed: Seed of the run.
        epoch: Counted from 0.
        sample: Row of the image in its split.
    """
    if len(texts) == 1:
        return texts[0]
    return texts[int(philox_generator(seed, Stream.SENTENCE, epoch, sample).integers(len(texts)))]
