"""Ids of patients in several spellings: `12` and `12.0`, `012`, `p1` and `P1`.

Programs change ids on the way: pandas writes a column of numbers with gaps as `12.0`, Excel drops leading zeros and
writes long numbers as `1.23457E+15`, people type letters in either case. One person in two spellings is two patients
to a split, which may then be on both sides of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from cleft.config import DataConfig
from cleft.data.tables.csv import Column, read_table
from cleft.data.tables.faults import Fault, raise_faults
from cleft.errors import DataError
from cleft.grammar import count, share, verb
from cleft.types import Reading

_WHOLE = re.compile(r"([0-9]+)\.0*")
_EXACT = 2**53
_ROUNDED = re.compile(r"[0-9]+\.[0-9]+[eE]\+?[0-9]+|[0-9]+[eE]\+[0-9]+")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]{1,2})?")
_COMMA = re.compile(r"([0-9]+),0{1,2}")
"""The form of a whole number where a comma separates decimals."""

_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+")
_PADDED = re.compile(r"([^0-9]*)0+([0-9]+)")
_MOST = 3
COLUMN_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "image": (
        *("image", "imagepath", "imagefile", "imagefilename", "imagename", "imageid", "imageindex", "imagefilepath"),
        *("img", "imgpath", "imgfile", "imgname", "imgid", "path", "filepath", "filename", "file", "fullpath"),
        *("relativepath", "relpath", "pathtoimage", "dicom", "dicompath", "dicomfile", "dicomfilename", "dicomid"),
        *("dcmpath", "dcmfile", "anondicompath", "pngpath", "jpgpath", "imagelocation", "imageurl", "xray", "xraypath"),
    ),
    "patient": (
        *("patient", "patientid", "patientids", "patientno", "patientnr", "patientnum", "patientnumber", "patientkey"),
        *("patientcode", "patientidentifier", "anonpatientid", "patientanonid", "patientpseudoid", "patientuid"),
        *("patid", "ptid", "pat", "pid", "subject", "subjectid", "subjectids", "subjectno", "subjectnumber"),
        *("subjectkey", "subjectcode", "subjectlabel", "subj", "subjid", "participant", "participantid"),
        *("participantnumber", "person", "personid", "individual", "individualid", "mrn", "medicalrecordnumber"),
        *("empi", "empianon", "empiid", "nihpatient", "patientsubjectid"),
    ),
    "study": (
        *("study", "studyid", "studyuid", "studyinstanceuid", "accession", "accessionnumber", "accessionid"),
        *("accanon", "exam", "examid", "examination", "examinationid", "visit", "visitid", "encounter", "encounterid"),
    ),
    "view": ("view", "viewposition", "viewpos", "projection", "appa", "viewtype", "viewname", "imageview"),
    "sex": ("sex", "gender", "patientsex", "patientgender", "biologicalsex"),
    "age": ("age", "patientage", "ageyears", "ageinyears", "agey", "ageatstudy", "ageatexam", "ageatscan", "yearsold"),
    "laterality": ("laterality", "side", "imagelaterality", "breastside"),
    "scanner": ("scanner", "manufacturer", "vendor", "scannermanufacturer", "device", "devicemanufacturer"),
    "caption": ("caption", "captions", "text"),
    "report": ("report", "reporttext", "radiologyreport", "fullreport", "reports"),
    "findings": ("findings", "findingstext"),
    "impression": ("impression", "impressions", "impressiontext"),
    "split": ("split", "subset", "partition", "datasplit"),
}
"""Meaning of a column to the names it may have, as `plain_name` writes them, the surest first."""

_UNSURE = ("case", "caseid", "caseno", "casenumber", "casename", "patientname", "name", "nameid", "recordid", "record")
_PEOPLE = re.compile(r"patient|subject|participant")
_ID = re.compile(r".*(?:[^a-zA-Z](?i:u?ids?|nr|mrn)|[a-z](?:U?IDs?|Id))")
"""A name whose last word says that the column holds ids: `client_id`, `clientID`."""

_OTHERS = (
    *("id", "ids", "index", "idx", "row", "rowid", "rownumber", "number", "no", "nr", "key", "uid", "uuid", "fold"),
    *("cvfold", "kfold", "date", "studydate", "time", "studytime", "year", "birthdate", "dateofbirth", "dob", "height"),
    *("width", "rows", "columns", "modality", "bodypart", "bodypartexamined", "site", "hospital", "institution"),
    *("source", "dataset", "url", "license", "licence", "series", "seriesid", "seriesuid", "seriesinstanceuid"),
    *("sopinstanceuid", "instance", "instancenumber", "race", "ethnicity", "followup", "followupnumber", "weight"),
    *("bmi", "set"),
)
COLUMNS = ("patient", "patient_id", "patient id", "nih_patient")
"""Names the column of a list of patients may have; case does not matter. RSNA's `patientId` names an image, so that it
and other usual names count only where there is none of these."""

_NIH_PATIENT = re.compile(r"(?:patient)?0*([0-9]+)", re.IGNORECASE)


def clean_id(text: str) -> str:
    """Returns an id without spaces around it and without the `.0` that a column of numbers with gaps is written with.

    Up to 2^53 nothing was lost by that; a longer number is left as it is.

    Example:
        >>> clean_id(" 12.0"), clean_id("012"), clean_id("9007199254740993.0")
        ('12', '012', '9007199254740993.0')
    """
    text = text.strip()
    found = None if text.isdigit() else _WHOLE.fullmatch(text)
    return found[1] if found and int(found[1]) <= _EXACT else text


def is_rounded(text: str) -> bool:
    """Whether an id was saved as a number that lost digits, such as `1.23457E+15`."""
    text = text.strip()
    found = _WHOLE.fullmatch(text)
    return _ROUNDED.fullmatch(text) is not None or (found is not None and int(found[1]) > _EXACT)


def id_key(text: str) -> str:
    r"""Returns what all spellings of an id have in common; ids of different people may share it.

    Letter case, leading zeros, spaces, invisible characters, forms of digits and the form of a number do not matter.

    Example:
        >>> [id_key(text) for text in ("12", "12.0", "012", "1.2e1", " 12\u200b", "P-007", "p-7")]
        ['12', '12', '12', '12', '12', 'p-7', 'p-7']
    """
    if text.isascii() and text.isdigit() and text[0] != "0":
        return text
    folded = unicodedata.normalize("NFKC", text).casefold()
    plain = "".join(letter for letter in folded if unicodedata.category(letter)[0] not in "ZC")
    plain = plain.removeprefix("+")
    if _GROUPED.fullmatch(plain):
        plain = plain.replace(",", "")
    elif found := _COMMA.fullmatch(plain):
        plain = found[1]
    if _NUMBER.fullmatch(plain):
        number = Decimal(plain)
        if number == number.to_integral_value():
            return f"{int(number)}"
    found = _PADDED.fullmatch(plain)
    return f"{found[1]}{found[2]}" if found else plain


def read_patients(column: Column) -> tuple[list[str], list[int], int]:
    """Returns the patient of each row, the rows whose id was rounded, and how many ids ended in `.0`."""
    ids = [clean_id(value) for value in column.values]
    rounded = [i for i, text in enumerate(ids) if is_rounded(text)]
    shortened = sum(text != value.strip() for text, value in zip(ids, column.values, strict=True))
    return [ids[i] for i in column.index.tolist()], column.rows_of(rounded).tolist(), shortened


def rounded_fault(name: str, example: str, lines: Sequence[int]) -> Fault:
    """Returns the fault of ids that were saved as numbers and lost digits."""
    what = f"column {name!r} holds {example!r}: it was saved as a number and lost digits"
    return Fault("id", what, "export the table again with the ids as text", lines)


def spelling_faults(patients: Sequence[str], rows: Iterable[int], lines: Sequence[int]) -> list[Fault]:
    """Returns a fault if persons may be in a table in two spellings; three are named.

    Args:
        patients: Of each row.
        rows: Which rows count.
        lines: Of each row in its table.
    """
    spellings: dict[str, set[str]] = {}
    rows = list(rows)
    for patient in {patients[row] for row in rows}:
        spellings.setdefault(id_key(patient), set()).add(patient)
    doubled = sorted(sorted(names) for names in spellings.values() if len(names) > 1)
    if not doubled:
        return []
    names = {name for group in doubled for name in group}
    at = [int(lines[row]) for row in rows if patients[row] in names]
    listed = "; ".join(" and ".join(map(repr, group)) for group in doubled[:_MOST])
    more = f" and {len(doubled) - _MOST:,} more" if len(doubled) > _MOST else ""
    what = f"patients that may be one person in two spellings: {listed}{more}"
    remedy = "write each patient one way; different people need ids that differ in more than case, zeros or spaces"
    return [Fault("patient", what, remedy, at)]


def plain_name(name: str) -> str:
    """Returns a column's name without case, spaces and signs.

    Example:
        >>> plain_name("Patient ID"), plain_name("subject_id"), plain_name("AP/PA")
        ('patientid', 'subjectid', 'appa')
    """
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def columns_for(meaning: str, names: Sequence[str]) -> list[str]:
    """Returns those of the names that usually have a meaning, in their order."""
    return [name for name in names if not name.startswith("_") and plain_name(name) in COLUMN_SYNONYMS[meaning]]


def may_name_patients(name: str) -> bool:
    """Whether a column of unknown meaning may say who the patient is.

    Example:
        >>> [may_name_patients(name) for name in ("client_id", "caseID", "Covid", "series_id")]
        [True, True, False, False]
    """
    plain = plain_name(name)
    is_id = _ID.fullmatch(name.strip()) is not None and plain not in _OTHERS
    return plain in _UNSURE or is_id or _PEOPLE.search(plain) is not None


def is_not_a_finding(name: str) -> bool:
    """Whether a column has the name of something that is surely no finding, such as `index` or `fold`."""
    return plain_name(name) in _OTHERS


def canonical_patient(people: str, patient: str) -> str:
    """Returns the one name of a patient among people.

    Args:
        people: Whose patients these are; of `nih` several spellings are known, of others none.
        patient: The id in a table.

    Example:
        >>> [canonical_patient("nih", patient) for patient in ("patient00013", "00000013", "13.0")]
        ['13', '13', '13']
        >>> canonical_patient("chexpert", "patient00013")
        'patient00013'
    """
    found = _NIH_PATIENT.fullmatch(clean_id(patient)) if people == "nih" else None
    return found[1] if found else patient


def exclude_patients(reading: Reading, config: DataConfig) -> Reading:
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
    listed = read_patient_list(config.exclude, people or reading.dataset)
    names = {patient: canonical_patient(people, patient) for patient in {record.patient for record in reading.records}}
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


class PatientList(NamedTuple):
    """A list of patients."""

    people: frozenset[str]
    """Each by what all spellings of their id have in common."""
    spellings: frozenset[str]
    """Each by their name as the list spells it."""
    sha256: str


def read_patient_list(path: Path, people: str) -> PatientList:
    """Reads a table with a column of patients.

    Args:
        path: A CSV table with one column of `COLUMNS` or of another usual name, and any others.
        people: Whose patients these are.

    Raises:
        DataError: If there is no such table or column, or several, or a row names nobody.
    """
    if not path.is_file():
        raise DataError(f"no list of patients at {path}; set data.exclude to the file, or leave it out", reason="table")
    table, faults = read_table(path)
    names = list(table.columns)
    # Of NIH's people a column `patientId` is RSNA's, which names images.
    usual = [name for name in columns_for("patient", names) if people != "nih" or name.casefold() != "patientid"]
    found = [name for name in names if name.casefold() in COLUMNS] or usual
    if len(found) != 1:
        what = f"columns {found} all name patients" if found else f"no column of patients; found {list(table.columns)}"
        faults = [Fault("columns", what, f"call exactly one of them {COLUMNS[0]!r}", (1,)), *faults]
        raise_faults(path, faults)
    texts = table.columns[found[0]].texts()
    blank = [row for row, text in enumerate(texts) if not text]
    if blank:
        at = table.lines[blank].tolist()
        faults = [*faults, Fault("patient", f"column {found[0]!r} is empty", "fill it in or remove the row", at)]
    raise_faults(path, faults)
    names = frozenset(canonical_patient(people, clean_id(text)) for text in texts)
    return PatientList(frozenset(map(id_key, names)), names, table.sha256)
