"""The clinical table of EMBED after typing: exam by exam, breast by breast.

Shapes: `M` files, `K` findings, `E` exams that have findings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from cleft.data.readers.embed_captions import known_race
from cleft.data.readers.embed_codes import LETTERS, MALE, NO_ASSESSMENT
from cleft.data.readers.embed_join import (
    BOTH,
    LEFT,
    NONE,
    RIGHT,
    UNKNOWN,
    Breasts,
    Findings,
    Flags,
    Integers,
    Rule,
    any_of_exam,
    exam_densities,
    first_of_exam,
    match_exams,
    reduce_breasts,
)
from cleft.data.readers.embed_tables import Named, told_of, whole_ids
from cleft.data.tables.faults import Fault
from cleft.data.tables.rows import read_ages, read_sexes, read_texts
from cleft.grammar import agree, count, verb

_SIDES = {"L": LEFT, "R": RIGHT, "B": BOTH, "": BOTH}
_KINDS = ("bilat", "screen", "diag")
_AS_TEXT = "take the table as it was downloaded; if you must edit it, open the ids as text"
_SIGNS = ("mass_shape", "mass_density", "calcification", "distribution")
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Who is who in both tables."""

    patients: list[str]
    """Ids, as text."""
    exams: list[str]
    patient: Integers
    """Of each file, as a place in `patients` or `NONE`, `[M]`."""
    accession: Integers
    """Of each file, as a place in `exams` or `NONE`, `[M]`."""
    exam: Integers
    """Number of the exam, 0 to E - 1, of each file, `[M]`; `NONE` where the clinical table has no such exam."""
    finding_patient: Integers
    """Of each finding, `[K]`."""
    finding_exam: Integers
    """Of each finding, `[K]`."""
    strayed: int
    """Files whose exam the clinical table gives to another patient."""
    notes: list[str]
    faults: list[Fault]


@dataclass(frozen=True, kw_only=True)
class Exams:
    """What is known of each exam, `[E]`, and of its breasts, `[E, 2]`."""

    findings: Findings
    breasts: Breasts
    density: Integers
    """1 to 5, or 0."""
    ages: list[float | None]
    sexes: list[str | None]
    races: list[str | None]
    ethnicities: list[str | None]
    signs: list[list[str]]
    """Of each finding its codes of mass shape, mass density, calcification and distribution, `[4][K]`."""
    notes: list[str]

    @property
    def male(self) -> Flags:
        """Which exams are of a man, by their density."""
        return self.density == MALE


def match_keys(metadata: Named, clinical: Named) -> Keys:
    """Compares the ids of both tables as text."""
    notes: list[str] = []
    faults: list[Fault] = []

    def number(meaning: str, name: str) -> tuple[list[str], Integers, Integers]:
        numbers: dict[str, int] = {}
        found: list[Integers] = []
        for own, named in ((True, metadata), (False, clinical)):
            column, path = named.columns[meaning], named.table.path
            ids, spoilt, shortened = whole_ids(column)
            empty = [i for i, text in enumerate(ids) if not text]
            if shortened:
                them = verb(shortened, "it", "them")
                notes.append(
                    f"{path.name} writes {count(shortened, 'id')} in {name} with .0 behind {them}; it was dropped"
                )
            wrong: list[Fault] = []
            if spoilt:
                what = f"{name} holds {column.values[spoilt[0]].strip()!r}: it was saved as a number and lost digits"
                wrong.append(Fault("id", what, _AS_TEXT, named.table.lines[column.rows_of(spoilt)].tolist()))
            if empty:
                lines = named.table.lines[column.rows_of(empty)].tolist()
                wrong.append(Fault("id", f"{name} is empty", "take the table as it was downloaded", lines))
            faults.extend(wrong if own else told_of(path, wrong))
            codes = np.array([numbers.setdefault(text, len(numbers)) for text in ids], dtype=np.int64)
            codes[[*spoilt, *empty]] = NONE
            found.append(codes[column.index])
        return list(numbers), found[0], found[1]

    patients, patient, finding_patient = number("patient", "empi_anon")
    exams, accession, finding_accession = number("exam", "acc_anon")
    exam, finding_exam, strayed = match_exams(patient, accession, finding_patient, finding_accession)
    return Keys(
        patients=patients,
        exams=exams,
        patient=patient,
        accession=accession,
        exam=exam,
        finding_patient=finding_patient,
        finding_exam=finding_exam,
        strayed=strayed,
        notes=notes,
        faults=faults,
    )


def read_exams(metadata: Named, clinical: Named, keys: Keys, rule: Rule) -> Exams:
    """Types the clinical table and reduces it to one row per breast."""
    columns, rows = clinical.columns, len(clinical.table)
    count = int(keys.finding_exam.max(initial=0)) + 1  # at least one, so that there is something to index
    letters, sides, densities = (columns[name].texts() for name in ("assessment", "side", "density"))
    letters, sides = [text.upper() for text in letters], [text.upper() for text in sides]
    findings = Findings(
        exam=keys.finding_exam,
        side=np.array([_SIDES.get(text, UNKNOWN) for text in sides], dtype=np.int64),
        birads=np.array([LETTERS.get(text, NONE) for text in letters], dtype=np.int64),
        density=np.array([_density(text) for text in densities], dtype=np.int64),
    )
    screening, bilateral = _kinds(metadata, clinical, keys, count)
    density, several = exam_densities(findings, count)
    ages, odd_ages = read_ages(columns.get("age"), rows)
    sexes, odd_sexes = read_sexes(columns.get("sex"), rows)
    races, ethnicities = (
        [known_race(text or "") or None for text in read_texts(columns.get(name), rows)]
        for name in ("race", "ethnicity")
    )
    odd = {
        "a side other than L, R, B and blank; [it counts|they count] for no breast": sum(
            text not in _SIDES for text in sides
        ),
        "an assessment that is not in the code book": sum(
            text not in LETTERS and text not in NO_ASSESSMENT for text in letters
        ),
        "a density that is not in the code book": sum(
            bool(text) and not code for text, code in zip(densities, findings.density.tolist(), strict=True)
        ),
        "an age outside 0 to 120; it counts as unknown": odd_ages,
        "a sex other than Male or Female; it counts as unknown": odd_sexes,
    }
    notes = _oddities(odd, several)

    def first(values: Sequence[Value | None]) -> list[Value | None]:
        filled = np.array([value is not None for value in values], dtype=bool)
        return [values[row] if row >= 0 else None for row in first_of_exam(keys.finding_exam, filled, count).tolist()]

    return Exams(
        findings=findings,
        breasts=reduce_breasts(findings, screening, bilateral, rule),
        density=density,
        ages=first(ages),
        sexes=first(sexes),
        races=first(races),
        ethnicities=first(ethnicities),
        signs=[[(text or "").upper() for text in read_texts(columns.get(name), rows)] for name in _SIGNS],
        notes=notes,
    )


def _oddities(odd: Mapping[str, int], several: int) -> list[str]:
    notes = [
        f"{count(number, 'finding')} {verb(number, 'has', 'have')} {agree(number, what)}"
        for what, number in odd.items()
        if number
    ]
    if several:
        has = verb(several, "has", "have")
        notes.append(f"{count(several, 'exam')} {has} rows of several densities: the commonest counts")
    return notes


def _kinds(metadata: Named, clinical: Named, keys: Keys, count: int) -> tuple[Flags, Flags]:
    """Returns which exams are screening exams and which are of both breasts, `[E]` each.

    The clinical table's description decides; where that is blank or missing, the metadata table's.
    """
    told = np.zeros(count, dtype=bool)
    kinds = np.zeros((len(_KINDS), count), dtype=bool)
    for named, exam in ((clinical, keys.finding_exam), (metadata, keys.exam)):
        column = named.columns.get("description")
        if column is None:
            continue
        words = [text.strip().casefold() for text in column.values]
        silent = ~told
        for kind, part in zip(kinds, _KINDS, strict=True):
            holds = np.array([part in text for text in words], dtype=bool)[column.index]
            kind |= any_of_exam(exam, holds, count) & silent
        told |= any_of_exam(exam, np.array([bool(text) for text in words], dtype=bool)[column.index], count)
    bilateral, screening, diagnostic = kinds
    return screening & ~diagnostic, bilateral


def _density(text: str) -> int:
    """A code may be written 2 or 2.0."""
    try:
        value = float(text)
    except ValueError:
        return 0
    return int(value) if math.isfinite(value) and value == int(value) and 1 <= value <= MALE else 0
