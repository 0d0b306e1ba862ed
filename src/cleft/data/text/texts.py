"""What a model reads with each image while it learns: a caption, something of the report, or a sentence that fits.

This is the seam between records and methods: whatever a method wants to read, `data.texts` names, and each draw is a
function of (seed, epoch, row), so that nothing depends on who asks or when.

Shapes: `C` findings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from cleft.config import DataConfig
from cleft.data.datasets import prompt_template
from cleft.data.tables.paths import is_synthetic
from cleft.data.text.captions import NO_FINDING, clean_text, refuse_unreadable
from cleft.data.text.reports import READ_REPORT, Way, change_words, draw_text
from cleft.data.text.sentence_bank import (
    TEMPLATES,
    SentenceBank,
    bank_of_findings,
    draw_sentence,
    pool_of_epoch,
    read_bank,
)
from cleft.errors import DataError
from cleft.privacy import MIN_PATIENTS
from cleft.types import Record

_WORD = re.compile(r"[^\W\d_]+|\d+")
"""A run of letters or of digits. No token spans two of them."""


class Learnable(NamedTuple):
    """Texts without the words of few."""

    parts: list[str]
    """What stands between such words, each part once."""
    words: int
    """Distinct words before."""
    left_out: int
    """Of these, how many stand in no part."""


def words_of_many(told: Iterable[tuple[str, str]], own: Iterable[str], *, fewest: int = MIN_PATIENTS) -> Learnable:
    """Cuts out of texts every word that the texts of too few patients hold.

    Case counts: a name in capitals is told apart from a common word.

    Args:
        told: Patient and text, in any order and number.
        own: Texts that are ours, such as openings and names of findings; their words stay.
        fewest: Patients whose texts must hold a word.

    Returns:
        The parts; `own` where nothing is left of the texts.

    Example:
        >>> words_of_many([("a", "seen by Ada"), ("b", "seen by Bo")], ["edema"], fewest=2).parts
        ['seen by ']
    """
    own, held = list(own), _distinct(told)
    kept = {word for text in own for word in _WORD.findall(text)}
    holders: dict[str, set[str]] = {}
    met: set[str] = set()
    for text, patients in held.items():
        words = set(_WORD.findall(text))
        met |= words
        for word in words - kept:
            known = holders.setdefault(word, set())
            known |= patients
            if len(known) >= fewest:
                kept.add(word)
                del holders[word]
    parts = dict.fromkeys(part for text in held for part in _parts(text, holders))
    return Learnable(list(parts) or own, len(met), len(holders))


def _distinct(told: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    held: dict[str, set[str]] = {}
    for patient, text in told:
        held.setdefault(text, set()).add(patient)
    return held


def _parts(text: str, left_out: dict[str, set[str]]) -> Sequence[str]:
    """The text between words that are left out."""
    parts: list[str] = []
    start = 0
    for match in _WORD.finditer(text):
        if match[0] in left_out:
            parts.append(text[start : match.start()])
            start = match.end()
    return [part for part in (*parts, text[start:]) if part.strip()]


_STATES = "there is {}"
"""Two words in front of a finding: methods that compare words need more than one."""


class Read(NamedTuple):
    """What is read with one image."""

    text: str
    labels: NDArray[np.float32] | None
    """What the text says of each finding, `[C]`; None where that is what is known of the image."""
    reworded: str | None
    """The same in other words, where `data.augment_texts` asks for it."""


class Texts:
    """The texts of a split, epoch by epoch.

    Args:
        records: Of the split, each with a caption.
        findings: Columns of the labels.
        config: `texts`, `caption_templates`, `bank` and `reword`.
        seed: Of the run.
        still: Whether every epoch is read as the first one and nothing is reworded, as validation wants it.

    Raises:
        DataError: If a record has nothing to read, or the bank cannot be read.
    """

    def __init__(
        self, records: Sequence[Record], findings: Sequence[str], config: DataConfig, seed: int, *, fixed: bool = False
    ) -> None:
        self._seed = seed
        self._still = fixed
        self._reword = config.augment_texts and not fixed
        self._bank = _bank(findings, config) if config.texts == "bank" else None
        self._pool: tuple[int, SentenceBank] | None = None
        self._findings = tuple(findings)
        self._rows: Sequence[int] = range(len(records))
        self._patients = [record.patient for record in records]
        self._drawn = is_synthetic(config.root)
        self._own = _own_texts(findings, config)
        self._labels = [record.labels for record in records] if self._bank is not None else []
        self._choices = [] if self._bank is not None else _choices(records, config)

    def read(self, epoch: int, row: int) -> Read:
        """Returns what is read with an image of the split.

        Args:
            epoch: Counted from 0.
            row: Of the image in its split.
        """
        epoch, row = 0 if self._still else epoch, self._rows[row]
        if self._bank is None:
            text, labels = draw_text(self._choices[row], self._seed, epoch, row), None
        else:
            pool = self._pool_of(epoch)
            place = draw_sentence(pool, self._labels[row], self._seed, epoch, row)
            text, said = pool.texts[place], pool.labels(place)
            labels = np.array([said.get(name, 0.0) for name in self._findings], np.float32)
        return Read(text, labels, change_words(text, self._seed, epoch, row) if self._reword else None)

    def subset(self, rows: Sequence[int]) -> Texts:
        """Returns the texts of some rows, read as they are read among all of them."""
        part = copy(self)
        part._rows = [self._rows[row] for row in rows]
        return part

    def all_texts(self) -> list[str]:
        """Returns every text that may be read, reworded ones apart; each once for each image it may stand with."""
        if self._bank is not None:
            return list(self._bank.texts)
        return [text for choices in self._choices for text in choices]

    def learnable(self) -> Learnable:
        """Returns what of these texts a vocabulary may be learned from: words that several patients share, and ours.

        Phantoms are nobody. Who stands behind a sentence of a bank is not known, so each counts as one patient.
        """
        if self._bank is not None:
            told = [(str(place), text) for place, text in enumerate(self._bank.texts)]
        else:
            of_patients = zip(self._patients, self._choices, strict=True)
            told = [(patient, text) for patient, choices in of_patients for text in choices]
        return words_of_many(told, self._own, fewest=1 if self._drawn else MIN_PATIENTS)

    def _pool_of(self, epoch: int) -> SentenceBank:
        assert self._bank is not None
        if self._pool is None or self._pool[0] != epoch:
            self._pool = epoch, pool_of_epoch(self._bank, self._seed, epoch)
        return self._pool[1]


def report_format(config: DataConfig) -> Way | None:
    """Returns how reports are read, or None where they are not."""
    return cast("Way", config.texts) if config.texts in READ_REPORT else None


def state_findings(labels: Mapping[str, float]) -> tuple[str, ...]:
    """Returns one short sentence for each finding that is present, or the one that says there is none.

    Example:
        >>> state_findings({"Edema": 1, "Fracture": 0, "Pleural Effusion": 1}), state_findings({"Edema": -1})
        (('there is edema', 'there is pleural effusion'), ('there is no finding',))
    """
    present = tuple(_STATES.format(clean_text(name)) for name, value in labels.items() if value == 1)
    return present or (_STATES.format(NO_FINDING),)


def _own_texts(findings: Sequence[str], config: DataConfig) -> list[str]:
    """What texts are put together from that nobody wrote of a patient."""
    names = [*findings, *map(clean_text, findings), NO_FINDING]
    return [prompt_template(config), *names, _STATES, *TEMPLATES, *config.caption_templates]


def _wordings(caption: str, config: DataConfig) -> tuple[str, ...]:
    """A caption in each of `data.caption_templates`; as it is where it names no finding behind the opening."""
    opening = prompt_template(config)
    findings = caption.removeprefix(opening).strip()
    if not config.caption_templates or not caption.startswith(opening) or not findings:
        return (caption,) if caption else ()
    return tuple(clean_text(template.replace("{}", findings)) for template in config.caption_templates)


def _bank(findings: Sequence[str], config: DataConfig) -> SentenceBank:
    if config.sentence_bank is None:
        return bank_of_findings(findings)
    columns = list(findings)
    if NO_FINDING not in map(clean_text, columns):
        columns.append("No Finding")
    return read_bank(config.sentence_bank, columns)


def _choices(records: Sequence[Record], config: DataConfig) -> list[tuple[str, ...]]:
    """The texts of each record, one of which is drawn; equal ones are held once."""
    way = report_format(config)
    known: dict[object, tuple[str, ...]] = {}
    choices: list[tuple[str, ...]] = []
    for record in records:
        if way is not None:
            key, make = record.report, lambda record: READ_REPORT[way](record.report or "")
        elif config.texts == "findings":
            key, make = tuple(record.labels.items()), lambda record: state_findings(record.labels)
        else:
            key, make = record.caption, lambda record: _wordings(record.caption or "", config)
        if key not in known:
            refuse_unreadable((record.report if way is not None else record.caption) or "", record.id)
            known[key] = make(record)
        if not known[key]:
            raise DataError(
                f"{record.id} has nothing to read with data.texts={config.texts}; leave it out, or read captions",
                reason="no-text",
            )
        choices.append(known[key])
    return choices
