"""From findings to breasts: which row of EMBED's clinical table speaks for which breast of which exam.

The owner's rule: a finding belongs to an image of the same exam and patient if its side is the image's, both, or
blank. Joining on the exam alone would give about half of the pairs the wrong breast. A breast of a bilateral exam that
no row speaks of while rows name the other one is negative: findings rows exist only where there is a finding.

Shapes: `K` findings, `E` exams, `M` images. Breasts are numbered 0 left, 1 right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cleft.data.readers.embed_codes import DIAGNOSTIC, LETTERS, SCREENING

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]
Rule = Literal["severity", "first", "highest"]

LEFT, RIGHT, BOTH, UNKNOWN = 0, 1, 2, 3
"""Sides of a finding; a blank side is both, another text than L, R and B unknown."""
NONE = -1

_LAST = 9
"""Rank of a row without an assessment: it speaks only if no other does."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The clinical table after typing; entry k of every array speaks of the same row."""

    exam: Integers
    """Number of its exam, `[K]`; `NONE` where its ids are no ids."""
    side: Integers
    """`[K]`."""
    birads: Integers
    """0 to 6, or `NONE` where there is no assessment, `[K]`."""
    density: Integers
    """1 to 5, or 0 where the cell is blank or no code, `[K]`."""


class Breasts(NamedTuple):
    """What is known of each breast of each exam."""

    row: Integers
    """Row of the clinical table that speaks for it, or `NONE`, `[E, 2]`."""
    rows: Integers
    """How many there were, `[E, 2]`."""
    implied: Flags
    """Whether it is negative because only the other breast is named, `[E, 2]`."""


def match_exams(
    patients: Integers, exams: Integers, finding_patients: Integers, finding_exams: Integers
) -> tuple[Integers, Integers, int]:
    """Numbers the exams that have findings, and finds each image's.

    An exam is a pair of ids: a patient's and the exam's.

    Args:
        patients: Of the images, `[M]`, as numbers that mean the same in both tables; `NONE` where there is no id.
        exams: Likewise.
        finding_patients: Of the findings, `[K]`.
        finding_exams: Likewise.

    Returns:
        The exam of each image, `[M]`; of each finding, `[K]`; `NONE` where there is none; and how many images have
        an exam that the clinical table gives to another patient.
    """
    width = int(max(patients.max(initial=0), finding_patients.max(initial=0))) + 1
    sound = (finding_patients >= 0) & (finding_exams >= 0)
    known = np.unique(finding_exams[sound] * width + finding_patients[sound])
    of_findings = _position(known, finding_exams * width + finding_patients, sound)
    of_images = _position(known, exams * width + patients, (patients >= 0) & (exams >= 0))
    elsewhere = (of_images == NONE) & (exams >= 0) & np.isin(exams, finding_exams[sound])
    return of_images, of_findings, int(elsewhere.sum())


def reduce_breasts(findings: Findings, screening: Flags, bilateral: Flags, rule: Rule) -> Breasts:
    """Chooses the row that speaks for each breast.

    Args:
        findings: The clinical table.
        screening: Which exams are screening exams, `[E]`.
        bilateral: Which exams are of both breasts, `[E]`.
        rule: Which of several rows it is. `severity`: the worst (`SCREENING`, `DIAGNOSTIC`). `first`: the first in
            the table's order. `highest`: the highest BI-RADS, but 0 before 1 and 2 where there is nothing above 2.
            In every case rows with an assessment come first.

    Source:
        `severity`: the owner's curation notebook. `first`: what the authors' code does. `highest`: what their later
        code (MaMA) does.
    """
    count = len(screening)
    rows = np.arange(len(findings.exam), dtype=np.int64)
    sound = findings.exam >= 0
    of_left = rows[sound & np.isin(findings.side, (LEFT, BOTH))]
    of_right = rows[sound & np.isin(findings.side, (RIGHT, BOTH))]
    row = np.concatenate([of_left, of_right])
    breast = np.concatenate([findings.exam[of_left] * 2 + LEFT, findings.exam[of_right] * 2 + RIGHT])
    rank = _ranks(findings.birads[row], breast, screening, rule)
    order = np.lexsort((row, rank, breast))
    named, first = np.unique(breast[order], return_index=True)
    chosen = np.full(count * 2, NONE, dtype=np.int64)
    chosen[named] = row[order][first]
    return Breasts(
        row=chosen.reshape(count, 2),
        rows=np.bincount(breast, minlength=count * 2).reshape(count, 2),
        implied=_implied(findings, bilateral),
    )


def exam_densities(findings: Findings, exams: int) -> tuple[Integers, int]:
    """Returns the commonest density of each exam's rows, `[E]`, 0 where none has one; and how many exams have several.

    Of equally common ones the lowest.
    """
    counts = np.zeros((exams, 6), dtype=np.int64)
    known = (findings.exam >= 0) & (findings.density > 0)
    np.add.at(counts, (findings.exam[known], findings.density[known]), 1)
    return np.where(counts.any(axis=1), counts.argmax(axis=1), 0), int(((counts > 0).sum(axis=1) > 1).sum())


def first_of_exam(exam: Integers, filled: Flags, exams: int) -> Integers:
    """Returns the first row of each exam in which something is filled in, or `NONE`, `[E]`.

    Args:
        exam: Of each row, `[K]`.
        filled: Which rows have it, `[K]`.
        exams: How many exams there are.
    """
    rows = np.flatnonzero(filled & (exam >= 0))
    named, first = np.unique(exam[rows], return_index=True)
    found = np.full(exams, NONE, dtype=np.int64)
    found[named] = rows[first]
    return found


def any_of_exam(exam: Integers, holds: Flags, exams: int) -> Flags:
    """Returns which exams have a row of which something holds, `[E]`."""
    found = np.zeros(exams, dtype=bool)
    found[exam[holds & (exam >= 0)]] = True
    return found


def _position(known: Integers, pairs: Integers, sound: Flags) -> Integers:
    if not len(known):
        return np.full(len(pairs), NONE, dtype=np.int64)
    place = np.minimum(np.searchsorted(known, pairs), len(known) - 1)
    return np.where(sound & (known[place] == pairs), place, NONE)


def _ranks(birads: Integers, breast: Integers, screening: Flags, rule: Rule) -> Integers:
    """What each candidate row is sorted by: the lowest speaks."""
    if rule == "first":
        rank = np.zeros_like(birads)
    elif rule == "severity":
        rank = np.where(screening[breast // 2], _places(SCREENING)[birads], _places(DIAGNOSTIC)[birads])
    else:
        highest = np.full(len(screening) * 2, NONE, dtype=np.int64)
        np.maximum.at(highest, breast, birads)
        # 6 to 3 first; below them 0, which asks for more images, before 2 and 1.
        rank = np.where(highest[breast] > 2, 6 - birads, np.array([0, 2, 1, 3, 3, 3, 3])[birads])
    return np.where(birads == NONE, _LAST, rank)


def _places(letters: str) -> Integers:
    """Place of each BI-RADS score, 0 to 6, in an order of letters."""
    place = {LETTERS[letter]: position for position, letter in enumerate(letters)}
    return np.array([place[score] for score in range(len(place))], dtype=np.int64)


def _implied(findings: Findings, bilateral: Flags) -> Flags:
    """A row of an unknown side may speak of either breast, so it makes none negative."""
    count = len(bilateral)
    left, right = (any_of_exam(findings.exam, findings.side == side, count) for side in (LEFT, RIGHT))
    both = any_of_exam(findings.exam, findings.side >= BOTH, count)
    alone = bilateral & ~both
    return np.stack([alone & right & ~left, alone & left & ~right], axis=1)
