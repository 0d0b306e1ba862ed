"""What a vocabulary may be learned from: a word that few patients' texts hold may be somebody's name, date or number.

A tokenizer that is learned from reports lists its words in a file of the model folder, for whoever is given the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cleft.data.counting import FEWEST_PATIENTS

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


def words_of_many(told: Iterable[tuple[str, str]], own: Iterable[str], *, fewest: int = FEWEST_PATIENTS) -> Learnable:
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
