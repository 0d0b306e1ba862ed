"""From findings to breasts: which row of EMBED's clinical table speaks for which breast of which exam.

The owner's rule: a finding belongs to an image of the same exam and patient if its side is the image's, both, or
blank. Joining on the exam alone would give about half of the pairs the wrong breast. A breast of a bilateral exam that
no row speaks of while rows name the other one is negative: findings rows exist only where there is a finding.

Shapes: `K` findings, `E` exams, `M` images. Breasts are numbered 0 left, 1 right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from cleft.data.readers.embed_captions import DIAGNOSTIC, LETTERS, MALE, NO_ASSESSMENT, SCREENING, known_race
from cleft.data.tables.csv import Column, Table, read_table
from cleft.data.tables.faults import Fault, faults_of_table, raise_faults, suggestion
from cleft.data.tables.paths import leaves_root
from cleft.data.tables.patients import clean_id
from cleft.data.tables.rows import read_ages, read_sexes, read_texts
from cleft.errors import ConfigError, DataError
from cleft.grammar import agree, count, verb

METADATA: Mapping[str, tuple[str, ...]] = {
    "patient": ("empi_anon",),
    "exam": ("acc_anon",),
    "path": ("anon_dicom_path",),
    "type": ("FinalImageType",),
    "laterality": ("ImageLateralityFinal",),
    "view": ("ViewPosition",),
}
"""Meaning to the names a required column may have; case does not matter."""

METADATA_MORE: Mapping[str, tuple[str, ...]] = {
    "magnified": ("spot_mag",),
    "description": ("StudyDescription",),
    "scanner": ("Manufacturer",),
    "implant": ("BreastImplantPresent",),
    "sex": ("PatientSex",),
}
"""Columns that a revision may lack."""

CLINICAL: Mapping[str, tuple[str, ...]] = {
    "patient": ("empi_anon",),
    "exam": ("acc_anon",),
    "side": ("side",),
    "assessment": ("asses",),
    "density": ("tissueden",),
}

CLINICAL_MORE: Mapping[str, tuple[str, ...]] = {
    "description": ("desc",),
    "age": ("age_at_study",),
    "sex": ("GENDER_DESC",),
    "race": ("RACE_DESC", "ETHNICITY_DESC"),
    "ethnicity": ("ETHNIC_GROUP_DESC",),
    "mass_shape": ("massshape",),
    "mass_density": ("massdens",),
    "calcification": ("calcfind",),
    "distribution": ("calcdistri",),
}

_FOLDER = "tables"
_NAMES = ("EMBED_OpenData_{}.csv", "EMBED_OpenData_{}_reduced.csv")
_FLOAT = re.compile(r"[0-9]*\.?[0-9]+[eE]\+?[0-9]+|[0-9]+\.[0-9]*")
_SHOWN = 30


class Named(NamedTuple):
    """A table whose columns are known by their meaning."""

    table: Table
    columns: Mapping[str, Column]
    faults: list[Fault]
    notes: list[str]


def find_tables(root: Path, name: str | None) -> tuple[Path, Path]:
    """Finds the metadata and the clinical table.

    Args:
        root: The folder that holds `tables`, or that one itself.
        name: Of the metadata table inside the root, or None for the full one, or else the reduced one.

    Raises:
        ConfigError: If the name leads out of the root.
        DataError: If one of them is not there, or cannot be told from others.
    """
    if name is not None and leaves_root(name):
        raise ConfigError(f"data.table={name!r} leads out of data.root; give a path inside {root}")
    folders = [folder for folder in (root / _FOLDER, root) if folder.is_dir()]
    if name is None:
        return _find(folders, "metadata"), _find(folders, "clinical")
    given = [folder / name for folder in (root, *folders) if (folder / name).is_file()]
    if not given:
        raise DataError(f"no {name} in {_listed(folders)}; data.table names the metadata table", reason="table")
    return given[0], _find([given[0].parent, *folders], "clinical")


def home_of(root: Path, table: Path) -> Path:
    """Returns the folder that holds `tables`, where `root` may be `tables` itself."""
    return root.parent if table.parent == root and root.name == _FOLDER else root


def read_columns(path: Path, required: Mapping[str, tuple[str, ...]], optional: Mapping[str, tuple[str, ...]]) -> Named:
    """Reads those columns of a table that have a meaning, and says where one goes by another name than usual.

    Raises:
        DataError: If nothing can be read, or a required column is missing; says what was found and what is nearest.
    """
    every = {**required, **optional}
    wanted = {name.casefold() for names in every.values() for name in names}
    table, faults = read_table(path, wanted=lambda name: name.casefold() in wanted)
    found = {name.casefold(): name for name in table.columns}
    columns: dict[str, Column] = {}
    notes: list[str] = []
    for meaning, names in every.items():
        name = next((found[name.casefold()] for name in names if name.casefold() in found), None)
        if name is not None:
            columns[meaning] = table.columns[name]
            if name != names[0]:
                notes.append(f"{path.name} calls {names[0]} {name}")
    missing = [names[0] for meaning, names in required.items() if meaning not in columns]
    if missing:
        guesses = "".join(suggestion(name, table.header) for name in missing)
        more = ", …" if len(table.header) > _SHOWN else ""
        what = f"no column {', '.join(map(repr, missing))}; found {', '.join(table.header[:_SHOWN])}{more}"
        raise_faults(path, [Fault("columns", what, f"is this a table of EMBED? rename or add it{guesses}")])
    return Named(table, columns, faults, notes)


def whole_ids(column: Column) -> tuple[list[str], list[int], int]:
    """Returns an id for each distinct text of a column, positions of the spoilt ones, and how many lost a `.0`.

    Ids are text: some of EMBED's 16 digits are more than a floating-point number holds. `123.0` is what a table
    makes of 123 when it was saved with numbers and gaps; up to 2^53 nothing was lost by that, and the `.0` is dropped.

    Example:
        >>> from numpy import arange
        >>> whole_ids(Column(["1234567890123456789", "12.0", "1.23e+15", "9007199254740993.0"], arange(4)))
        (['1234567890123456789', '12', '1.23e+15', '9007199254740993.0'], [2, 3], 1)
    """
    ids: list[str] = []
    spoilt: list[int] = []
    shortened = 0
    for position, value in enumerate(column.values):
        text = value.strip()
        whole = clean_id(text)
        if whole != text:
            text = whole
            shortened += 1
        elif not text.isdigit() and _FLOAT.fullmatch(text):
            spoilt.append(position)
        ids.append(text)
    return ids, spoilt, shortened


def _find(folders: list[Path], kind: str) -> Path:
    for folder in folders:
        for pattern in _NAMES:
            if (folder / pattern.format(kind)).is_file():
                return folder / pattern.format(kind)
    others = sorted(
        {
            path
            for folder in folders
            for path in folder.glob("*.csv*")
            if kind in path.name.casefold() and "legend" not in path.name.casefold() and path.is_file()
        }
    )
    if len(others) == 1:
        return others[0]
    expected = " or ".join(pattern.format(kind) for pattern in _NAMES)
    if others:
        names = ", ".join(path.name for path in others)
        remedy = "set data.table to the one with the images" if kind == "metadata" else "keep one of them"
        raise DataError(f"{_listed(folders)} holds several {kind} tables: {names}; {remedy}", reason="table")
    raise DataError(
        f"no {expected} in {_listed(folders)}; set data.root to the folder that holds tables and images", reason="table"
    )


def _listed(folders: list[Path]) -> str:
    return " and ".join(str(folder) for folder in dict.fromkeys(folders))


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
                wrong.append(Fault("id", what, _AS_TEXT, named.table.lines_of(column, spoilt)))
            if empty:
                lines = named.table.lines_of(column, empty)
                wrong.append(Fault("id", f"{name} is empty", "take the table as it was downloaded", lines))
            faults.extend(wrong if own else faults_of_table(path, wrong))
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
