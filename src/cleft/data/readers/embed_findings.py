"""EMBED's two tables: where they are, their columns and ids, and the finding that represents each breast of an exam.

The owner's rule: a finding belongs to an image of the same exam and patient if its side is the image's, both, or blank.
Joining on the exam alone would assign about half of the pairs to the wrong breast. Rows exist only for findings, so in
a bilateral exam with rows for one breast only, the other breast is negative.

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
"""Names of required columns, by meaning, case-insensitive."""

METADATA_MORE: Mapping[str, tuple[str, ...]] = {
    "magnified": ("spot_mag",),
    "description": ("StudyDescription",),
    "scanner": ("Manufacturer",),
    "implant": ("BreastImplantPresent",),
    "sex": ("PatientSex",),
}
"""Names of optional columns, which some revisions lack."""

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
_MAX_SHOWN = 30

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]
Rule = Literal["severity", "first", "highest"]

LEFT, RIGHT, BOTH, UNKNOWN = 0, 1, 2, 3
"""Sides of a finding; a blank side means both, any text other than L, R and B unknown."""

NONE = -1
_LAST = 9
"""Rank of a row without an assessment, after all others."""

_SIDES = {"L": LEFT, "R": RIGHT, "B": BOTH, "": BOTH}
_KINDS = ("bilat", "screen", "diag")
_AS_TEXT = "use the table as downloaded; if you must edit it, import the ids as text"
_SIGNS = ("mass_shape", "mass_density", "calcification", "distribution")
Value = TypeVar("Value")


class ColumnTable(NamedTuple):
    """A table with columns by meaning."""

    table: Table
    columns: Mapping[str, Column]
    """Columns by meaning, such as `laterality`."""
    faults: list[Fault]
    notes: list[str]


def find_tables(root: Path, name: str | None) -> tuple[Path, Path]:
    """Finds the metadata and the clinical table.

    Args:
        root: The folder that contains `tables`, or `tables` itself.
        name: Name of the metadata table inside the root; None takes the full one, or else the reduced one.

    Raises:
        ConfigError: If the name leads out of the root.
        DataError: If one of them does not exist or is ambiguous.
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
    """Returns the folder that contains `tables`; `root` may be `tables` itself."""
    return root.parent if table.parent == root and root.name == _FOLDER else root


def read_columns(
    path: Path, required: Mapping[str, tuple[str, ...]], optional: Mapping[str, tuple[str, ...]]
) -> ColumnTable:
    """Reads the required and optional columns of a table, and notes unusual column names.

    Raises:
        DataError: If the table cannot be read, or a required column is missing; suggests the nearest name.
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
                notes.append(f"{path.name} names the column {names[0]} {name}")
    missing = [names[0] for meaning, names in required.items() if meaning not in columns]
    if missing:
        guesses = "".join(suggestion(name, table.header) for name in missing)
        more = ", …" if len(table.header) > _MAX_SHOWN else ""
        what = f"no column {', '.join(map(repr, missing))}; found {', '.join(table.header[:_MAX_SHOWN])}{more}"
        raise_faults(path, [Fault("columns", what, f"is this a table of EMBED? rename or add it{guesses}")])
    return ColumnTable(table, columns, faults, notes)


def clean_ids(column: Column) -> tuple[list[str], list[int], int]:
    """Returns the id of each distinct text of a column, positions of damaged ids, and the number of ids with `.0`.

    Ids are text: some of EMBED's 16 digits exceed the precision of a floating-point number. `.0` is dropped, as
    `clean_id` does.

    Example:
        >>> from numpy import arange
        >>> clean_ids(Column(["1234567890123456789", "12.0", "1.23e+15", "9007199254740993.0"], arange(4)))
        (['1234567890123456789', '12', '1.23e+15', '9007199254740993.0'], [2, 3], 1)
    """
    ids: list[str] = []
    damaged: list[int] = []
    shortened = 0
    for position, value in enumerate(column.values):
        text = value.strip()
        cleaned = clean_id(text)
        if cleaned != text:
            text = cleaned
            shortened += 1
        elif not text.isdigit() and _FLOAT.fullmatch(text):
            damaged.append(position)
        ids.append(text)
    return ids, damaged, shortened


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
        raise DataError(f"{_listed(folders)} contains several {kind} tables: {names}; {remedy}", reason="table")
    raise DataError(
        f"no {expected} in {_listed(folders)}; set data.root to the folder that contains tables and images",
        reason="table",
    )


def _listed(folders: list[Path]) -> str:
    return " and ".join(str(folder) for folder in dict.fromkeys(folders))


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The clinical table after conversion; entry k of every array belongs to row k."""

    exam: Integers
    """Number of the exam, `[K]`; `NONE` if its ids are invalid."""
    side: Integers
    """`LEFT`, `RIGHT`, `BOTH` or `UNKNOWN`, `[K]`."""
    birads: Integers
    """BI-RADS score, 0 to 6, or `NONE` without an assessment, `[K]`."""
    density: Integers
    """1 to 5, or 0 if the cell is blank or not a code, `[K]`."""


class Breasts(NamedTuple):
    """The breasts of each exam, left and right."""

    row: Integers
    """Row of the clinical table that represents the breast, or `NONE`, `[E, 2]`."""
    rows: Integers
    """Number of its rows, `[E, 2]`."""
    implied: Flags
    """Whether it is negative because only the other breast has findings, `[E, 2]`."""


def match_exams(
    patients: Integers, exams: Integers, finding_patients: Integers, finding_exams: Integers
) -> tuple[Integers, Integers, int]:
    """Numbers the exams with findings and matches images to them.

    An exam is identified by the ids of patient and exam.

    Args:
        patients: Patients of the images, `[M]`, as numbers common to both tables; `NONE` without a valid id.
        exams: Exams of the images, likewise.
        finding_patients: Patients of the findings, `[K]`.
        finding_exams: Exams of the findings, `[K]`.

    Returns:
        The exam number of each image, `[M]`, and of each finding, `[K]`, or `NONE`; and the number of images whose exam
        belongs to another patient in the clinical table.
    """
    width = int(max(patients.max(initial=0), finding_patients.max(initial=0))) + 1
    valid = (finding_patients >= 0) & (finding_exams >= 0)
    known = np.unique(finding_exams[valid] * width + finding_patients[valid])
    of_findings = _find_positions(known, finding_exams * width + finding_patients, valid)
    of_images = _find_positions(known, exams * width + patients, (patients >= 0) & (exams >= 0))
    elsewhere = (of_images == NONE) & (exams >= 0) & np.isin(exams, finding_exams[valid])
    return of_images, of_findings, int(elsewhere.sum())


def select_findings(findings: Findings, screening: Flags, bilateral: Flags, rule: Rule) -> Breasts:
    """Selects the row that represents each breast.

    Args:
        findings: The clinical table.
        screening: Which exams are screening exams, `[E]`.
        bilateral: Which exams are of both breasts, `[E]`.
        rule: Which of several rows is selected. `severity`: the worst (`SCREENING`, `DIAGNOSTIC`). `first`: the first
            in the table's order. `highest`: the highest BI-RADS, but 0 before 1 and 2 if there is nothing above 2.
            Rows with an assessment always precede others.

    Source:
        `severity`: the owner's curation notebook. `first`: what the authors' code does. `highest`: what their later
        code (MaMA) does.
    """
    count = len(screening)
    rows = np.arange(len(findings.exam), dtype=np.int64)
    valid = findings.exam >= 0
    of_left = rows[valid & np.isin(findings.side, (LEFT, BOTH))]
    of_right = rows[valid & np.isin(findings.side, (RIGHT, BOTH))]
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
    """Returns the most frequent density of each exam, `[E]`, 0 if unknown; and the number of exams with several.

    The lowest of equally frequent ones is taken.
    """
    counts = np.zeros((exams, 6), dtype=np.int64)
    known = (findings.exam >= 0) & (findings.density > 0)
    np.add.at(counts, (findings.exam[known], findings.density[known]), 1)
    return np.where(counts.any(axis=1), counts.argmax(axis=1), 0), int(((counts > 0).sum(axis=1) > 1).sum())


def first_of_exam(exam: Integers, filled: Flags, exams: int) -> Integers:
    """Returns the first row of each exam with a value, or `NONE`, `[E]`.

    Args:
        exam: Exam of each row, `[K]`.
        filled: Whether each row has a value, `[K]`.
        exams: Number of exams.
    """
    rows = np.flatnonzero(filled & (exam >= 0))
    named, first = np.unique(exam[rows], return_index=True)
    found = np.full(exams, NONE, dtype=np.int64)
    found[named] = rows[first]
    return found


def any_of_exam(exam: Integers, mask: Flags, exams: int) -> Flags:
    """Returns whether any row of each exam is True in a mask, `[E]`."""
    found = np.zeros(exams, dtype=bool)
    found[exam[mask & (exam >= 0)]] = True
    return found


def _find_positions(known: Integers, pairs: Integers, valid: Flags) -> Integers:
    if not len(known):
        return np.full(len(pairs), NONE, dtype=np.int64)
    position = np.minimum(np.searchsorted(known, pairs), len(known) - 1)
    return np.where(valid & (known[position] == pairs), position, NONE)


def _ranks(birads: Integers, breast: Integers, screening: Flags, rule: Rule) -> Integers:
    """Rank of each candidate row; the lowest is selected."""
    if rule == "first":
        rank = np.zeros_like(birads)
    elif rule == "severity":
        rank = np.where(
            screening[breast // 2], _order_positions(SCREENING)[birads], _order_positions(DIAGNOSTIC)[birads]
        )
    else:
        highest = np.full(len(screening) * 2, NONE, dtype=np.int64)
        np.maximum.at(highest, breast, birads)
        # 6 to 3 first; below them 0, which requests more images, before 2 and 1.
        rank = np.where(highest[breast] > 2, 6 - birads, np.array([0, 2, 1, 3, 3, 3, 3])[birads])
    return np.where(birads == NONE, _LAST, rank)


def _order_positions(letters: str) -> Integers:
    """Position of each BI-RADS score, 0 to 6, in an order of letters."""
    position_of = {LETTERS[letter]: position for position, letter in enumerate(letters)}
    return np.array([position_of[score] for score in range(len(position_of))], dtype=np.int64)


def _implied(findings: Findings, bilateral: Flags) -> Flags:
    """Breasts that are negative by implication; a row of unknown side may be of either breast and implies nothing."""
    count = len(bilateral)
    left, right = (any_of_exam(findings.exam, findings.side == side, count) for side in (LEFT, RIGHT))
    both = any_of_exam(findings.exam, findings.side >= BOTH, count)
    alone = bilateral & ~both
    return np.stack([alone & right & ~left, alone & left & ~right], axis=1)


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Patients and exams of both tables, matched by id."""

    patients: list[str]
    """Patient ids."""
    exams: list[str]
    """Exam ids."""
    patient: Integers
    """Position of each file's patient in `patients`, or `NONE`, `[M]`."""
    accession: Integers
    """Position of each file's exam in `exams`, or `NONE`, `[M]`."""
    exam: Integers
    """Exam number of each file, 0 to E - 1, `[M]`; `NONE` if the clinical table has no such exam."""
    finding_patient: Integers
    """Position of each finding's patient in `patients`, or `NONE`, `[K]`."""
    finding_exam: Integers
    """Exam number of each finding, or `NONE`, `[K]`."""
    mismatched: int
    """Number of files whose exam belongs to another patient in the clinical table."""
    notes: list[str]
    faults: list[Fault]


@dataclass(frozen=True, kw_only=True)
class Exams:
    """The exams, `[E]`, and their breasts, `[E, 2]`."""

    findings: Findings
    breasts: Breasts
    density: Integers
    """1 to 5, or 0 if unknown."""
    ages: list[float | None]
    sexes: list[str | None]
    races: list[str | None]
    ethnicities: list[str | None]
    signs: list[list[str]]
    """Codes of mass shape, mass density, calcification and distribution of each finding, `[4][K]`."""
    notes: list[str]

    @property
    def male(self) -> Flags:
        """Whether each exam is of a male breast, by its density code."""
        return self.density == MALE


def match_keys(metadata: ColumnTable, clinical: ColumnTable) -> Keys:
    """Matches patients and exams of both tables by their ids as text."""
    notes: list[str] = []
    faults: list[Fault] = []

    def number(meaning: str, name: str) -> tuple[list[str], Integers, Integers]:
        numbers: dict[str, int] = {}
        found: list[Integers] = []
        for own, named in ((True, metadata), (False, clinical)):
            column, path = named.columns[meaning], named.table.path
            ids, damaged, shortened = clean_ids(column)
            empty = [i for i, text in enumerate(ids) if not text]
            if shortened:
                notes.append(
                    f"{path.name} writes {count(shortened, 'id')} in {name} with a trailing .0, which was dropped"
                )
            wrong: list[Fault] = []
            if damaged:
                what = f"{name} holds {column.values[damaged[0]].strip()!r}: it was saved as a number and lost digits"
                wrong.append(Fault("id", what, _AS_TEXT, named.table.lines_of(column, damaged)))
            if empty:
                lines = named.table.lines_of(column, empty)
                wrong.append(Fault("id", f"{name} is empty", "use the table as downloaded", lines))
            faults.extend(wrong if own else faults_of_table(path, wrong))
            codes = np.array([numbers.setdefault(text, len(numbers)) for text in ids], dtype=np.int64)
            codes[[*damaged, *empty]] = NONE
            found.append(codes[column.index])
        return list(numbers), found[0], found[1]

    patients, patient, finding_patient = number("patient", "empi_anon")
    exams, accession, finding_accession = number("exam", "acc_anon")
    exam, finding_exam, mismatched = match_exams(patient, accession, finding_patient, finding_accession)
    return Keys(
        patients=patients,
        exams=exams,
        patient=patient,
        accession=accession,
        exam=exam,
        finding_patient=finding_patient,
        finding_exam=finding_exam,
        mismatched=mismatched,
        notes=notes,
        faults=faults,
    )


def read_exams(metadata: ColumnTable, clinical: ColumnTable, keys: Keys, rule: Rule) -> Exams:
    """Converts the clinical table and selects one row per breast."""
    columns, rows = clinical.columns, len(clinical.table)
    count = int(keys.finding_exam.max(initial=0)) + 1  # at least one, so that indexing works
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
        "a side other than L, R, B and blank; [it is|they are] assigned to no breast": sum(
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
        breasts=select_findings(findings, screening, bilateral, rule),
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
        notes.append(f"{count(several, 'exam')} {has} rows with several densities: the most frequent counts")
    return notes


def _kinds(metadata: ColumnTable, clinical: ColumnTable, keys: Keys, count: int) -> tuple[Flags, Flags]:
    """Returns whether each exam is a screening exam, and whether it is bilateral, `[E]` each.

    Uses the description in the clinical table, or else in the metadata table.
    """
    described = np.zeros(count, dtype=bool)
    kinds = np.zeros((len(_KINDS), count), dtype=bool)
    for named, exam in ((clinical, keys.finding_exam), (metadata, keys.exam)):
        column = named.columns.get("description")
        if column is None:
            continue
        words = [text.strip().casefold() for text in column.values]
        undescribed = ~described
        for kind, part in zip(kinds, _KINDS, strict=True):
            matches = np.array([part in text for text in words], dtype=bool)[column.index]
            kind |= any_of_exam(exam, matches, count) & undescribed
        described |= any_of_exam(exam, np.array([bool(text) for text in words], dtype=bool)[column.index], count)
    bilateral, screening, diagnostic = kinds
    return screening & ~diagnostic, bilateral


def _density(text: str) -> int:
    """Returns a density code, which may be written 2 or 2.0; 0 if invalid."""
    try:
        value = float(text)
    except ValueError:
        return 0
    return int(value) if math.isfinite(value) and value == int(value) and 1 <= value <= MALE else 0
