"""Whose patients the ids of a table name, and how people are kept apart across datasets that show the same ones.

NIH's patients stand in ChestX-ray14 as `13`, in its file names as `00000013`, in RSNA's challenge behind a mapping, and
in copies made in CheXpert's layout as `patient00013`. All of these are one person.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cleft.config import DataConfig
from cleft.data.tables.columns import scan_table
from cleft.data.tables.faults import Fault, refuse
from cleft.data.tables.ids import id_key, whole_id
from cleft.data.tables.names import usual_columns
from cleft.errors import DataError
from cleft.grammar import count, share, verb
from cleft.types import Reading

COLUMNS = ("patient", "patient_id", "patient id", "nih_patient")
"""Names the column of a list of patients may have; case does not matter. RSNA's `patientId` names an image, so that it
and other usual names count only where there is none of these."""

_NIH = re.compile(r"(?:patient)?0*([0-9]+)", re.IGNORECASE)


def person(people: str, patient: str) -> str:
    """Returns the one name of a patient among people.

    Args:
        people: Whose patients these are; of `nih` several spellings are known, of others none.
        patient: The id in a table.

    Example:
        >>> person("nih", "patient00013"), person("nih", "00000013"), person("chexpert", "patient00013")
        ('13', '13', 'patient00013')
    """
    found = _NIH.fullmatch(whole_id(patient)) if people == "nih" else None
    return found[1] if found else patient


def settle_people(reading: Reading, config: DataConfig) -> Reading:
    """Says whose patients these are where a setting knows better, and leaves out those who must stay out.

    Args:
        reading: As a reader returns it.
        config: `people` and `exclude`.

    Returns:
        A new reading. Images of excluded patients are counted under `excluded`; a note says how many people that is.

    Raises:
        DataError: If the list of patients cannot be read, or no patient is left.
    """
    people = config.people or reading.people
    reading = replace(reading, people=people)
    if config.exclude is None:
        return reading
    listed = read_patients(config.exclude, people or reading.dataset)
    names = {patient: person(people, patient) for patient in {record.patient for record in reading.records}}
    out = {patient for patient, name in names.items() if id_key(name) in listed.people}
    kept = [record for record in reading.records if record.patient not in out]
    if not kept:
        raise DataError(f"every patient is in {config.exclude}; no patient is left to train on", reason="excluded")
    gone = [record.id for record in reading.records if record.patient in out]
    excluded = (
        f"{share(len(out), len(listed.people), 'patient')} in {config.exclude.name} {verb(len(out), 'is', 'are')} here"
    )
    doubt = "" if out else "; do its ids and data.people name the same people?"
    other = sorted(patient for patient in out if names[patient] not in listed.spellings)
    if other:
        are = verb(len(other), "is", "are")
        doubt += f"; {len(other):,} of them {are} spelled otherwise there, in case, zeros or as a number"
    images = f"{count(len(gone), 'image')} that {verb(len(gone), 'stays', 'stay')}"
    return replace(
        reading,
        records=kept,
        rejected={**reading.rejected, "excluded": gone} if gone else reading.rejected,
        sources={**reading.sources, f"{config.exclude.name} (excluded)": listed.sha256},
        notes=(
            *reading.notes,
            f"{excluded}, with {images} out of every split{doubt}",
        ),
    )


class Listed(NamedTuple):
    """A list of patients."""

    people: frozenset[str]
    """Each by what all spellings of their id have in common."""
    spellings: frozenset[str]
    """Each by their name as the list spells it."""
    sha256: str


def read_patients(path: Path, people: str) -> Listed:
    """Reads a table with a column of patients.

    Args:
        path: A CSV table with one column of `COLUMNS` or of another usual name, and any others.
        people: Whose patients these are.

    Raises:
        DataError: If there is no such table or column, or several, or a row names nobody.
    """
    if not path.is_file():
        raise DataError(f"no list of patients at {path}; set data.exclude to the file, or leave it out", reason="table")
    table, faults = scan_table(path)
    names = list(table.columns)
    # Of NIH's people a column `patientId` is RSNA's, which names images.
    usual = [name for name in usual_columns("patient", names) if people != "nih" or name.casefold() != "patientid"]
    found = [name for name in names if name.casefold() in COLUMNS] or usual
    if len(found) != 1:
        what = f"columns {found} all name patients" if found else f"no column of patients; found {list(table.columns)}"
        faults = [Fault("columns", what, f"call exactly one of them {COLUMNS[0]!r}", (1,)), *faults]
        refuse(path, faults)
    texts = table.columns[found[0]].texts()
    blank = [row for row, text in enumerate(texts) if not text]
    if blank:
        at = table.lines[blank].tolist()
        faults = [*faults, Fault("patient", f"column {found[0]!r} is empty", "fill it in or remove the row", at)]
    refuse(path, faults)
    names = frozenset(person(people, whole_id(text)) for text in texts)
    return Listed(frozenset(map(id_key, names)), names, table.sha256)
