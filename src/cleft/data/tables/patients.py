"""Patient ids: different spellings of one id, lists of excluded patients, and the usual names of columns.

Programs change ids: pandas writes a column of integers with gaps as `12.0`, Excel drops leading zeros and writes long
numbers as `1.23457E+15`, people type letters in either case. A patient in two spellings counts as two patients, who may
end up in different splits.

Different datasets show the same patients: those of ChestX-ray14 are `13` in its table, `00000013` in its file names,
`patient00013` in copies in CheXpert's layout, and are linked to RSNA's images by a mapping.
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
"""An integer written with a decimal comma."""

_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+")
_PADDED = re.compile(r"([^0-9]*)0+([0-9]+)")
_EXAMPLES = 3

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
"""Accepted names of columns as `plain_name` returns them, by meaning."""

_AMBIGUOUS = (
    "case",
    "caseid",
    "caseno",
    "casenumber",
    "casename",
    "patientname",
    "name",
    "nameid",
    "recordid",
    "record",
)
_PATIENT_WORD = re.compile(r"patient|subject|participant")
_ID = re.compile(r".*(?:[^a-zA-Z](?i:u?ids?|nr|mrn)|[a-z](?:U?IDs?|Id))")
"""A name that ends in a word for ids: `client_id`, `clientID`."""

_NOT_FINDINGS = (
    *("id", "ids", "index", "idx", "row", "rowid", "rownumber", "number", "no", "nr", "key", "uid", "uuid", "fold"),
    *("cvfold", "kfold", "date", "studydate", "time", "studytime", "year", "birthdate", "dateofbirth", "dob", "height"),
    *("width", "rows", "columns", "modality", "bodypart", "bodypartexamined", "site", "hospital", "institution"),
    *("source", "dataset", "url", "license", "licence", "series", "seriesid", "seriesuid", "seriesinstanceuid"),
    *("sopinstanceuid", "instance", "instancenumber", "race", "ethnicity", "followup", "followupnumber", "weight"),
    *("bmi", "set"),
)

PATIENT_COLUMNS = ("patient", "patient_id", "patient id", "nih_patient")
"""Names of the column in a list of patients, case-insensitive; other usual names are accepted if there is none of
these. `patientId` is not listed, because in RSNA's tables it names an image."""

_NIH_PATIENT = re.compile(r"(?:patient)?0*([0-9]+)", re.IGNORECASE)


def clean_id(text: str) -> str:
    """Returns an id without surrounding spaces and without `.0`, which pandas appends to integers in columns with gaps.

    Numbers above 2^53 are unchanged, because they may have lost digits.

    Example:
        >>> clean_id(" 12.0"), clean_id("012"), clean_id("9007199254740993.0")
        ('12', '012', '9007199254740993.0')
    """
    text = text.strip()
    found = None if text.isdigit() else _WHOLE.fullmatch(text)
    return found[1] if found and int(found[1]) <= _EXACT else text


def is_rounded(text: str) -> bool:
    """Whether an id was saved as a number and lost digits, such as `1.23457E+15`."""
    text = text.strip()
    found = _WHOLE.fullmatch(text)
    return _ROUNDED.fullmatch(text) is not None or (found is not None and int(found[1]) > _EXACT)


def id_key(text: str) -> str:
    r"""Returns a key that is equal for all spellings of an id; different ids may share it.

    Ignores letter case, leading zeros, spaces, invisible characters, digit variants and number formats.

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
    """Returns the patient of each row, the rows with rounded ids, and the number of ids that ended in `.0`."""
    ids = [clean_id(value) for value in column.values]
    rounded = [i for i, text in enumerate(ids) if is_rounded(text)]
    shortened = sum(text != value.strip() for text, value in zip(ids, column.values, strict=True))
    return [ids[i] for i in column.index.tolist()], column.rows_of(rounded).tolist(), shortened


def rounded_fault(name: str, example: str, lines: Sequence[int]) -> Fault:
    """Returns the fault of ids that were saved as numbers and lost digits."""
    what = f"column {name!r} holds {example!r}: it was saved as a number and lost digits"
    return Fault("id", what, "export the table again with the ids as text", lines)


def spelling_faults(patients: Sequence[str], rows: Iterable[int], lines: Sequence[int]) -> list[Fault]:
    """Returns a fault if patients seem to occur in two spellings; gives three examples.

    Args:
        patients: Patient of each row.
        rows: Indices of the rows to check.
        lines: Line of each row in its table.
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
    listed = "; ".join(" and ".join(map(repr, group)) for group in doubled[:_EXAMPLES])
    more = f" and {len(doubled) - _EXAMPLES:,} more" if len(doubled) > _EXAMPLES else ""
    what = f"ids that may be two spellings of one patient: {listed}{more}"
    remedy = "write each id one way; ids of different patients must differ in more than case, zeros or spaces"
    return [Fault("patient", what, remedy, at)]


def plain_name(name: str) -> str:
    """Returns a column name in lower case, letters and digits only.

    Example:
        >>> plain_name("Patient ID"), plain_name("subject_id"), plain_name("AP/PA")
        ('patientid', 'subjectid', 'appa')
    """
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def columns_for(meaning: str, names: Sequence[str]) -> list[str]:
    """Returns the columns that usually have a given meaning, in their order."""
    return [name for name in names if not name.startswith("_") and plain_name(name) in COLUMN_SYNONYMS[meaning]]


def may_name_patients(name: str) -> bool:
    """Whether a column of unknown meaning may identify patients.

    Example:
        >>> [may_name_patients(name) for name in ("client_id", "caseID", "Covid", "series_id")]
        [True, True, False, False]
    """
    plain = plain_name(name)
    is_id = _ID.fullmatch(name.strip()) is not None and plain not in _NOT_FINDINGS
    return plain in _AMBIGUOUS or is_id or _PATIENT_WORD.search(plain) is not None


def is_not_a_finding(name: str) -> bool:
    """Whether the name of a column is certainly not a finding, such as `index` or `fold`."""
    return plain_name(name) in _NOT_FINDINGS


def canonical_patient(dataset: str, patient: str) -> str:
    """Returns the canonical id of a patient.

    Args:
        dataset: Dataset that the patient ids belong to, as `data.patient_dataset`. Spellings are known for `nih` only.
        patient: Id in a table.

    Example:
        >>> [canonical_patient("nih", patient) for patient in ("patient00013", "00000013", "13.0")]
        ['13', '13', '13']
        >>> canonical_patient("chexpert", "patient00013")
        'patient00013'
    """
    found = _NIH_PATIENT.fullmatch(clean_id(patient)) if dataset == "nih" else None
    return found[1] if found else patient


def exclude_patients(reading: Reading, config: DataConfig) -> Reading:
    """Applies `data.patient_dataset` and `data.exclude_patients`.

    Args:
        reading: Result of a reader.
        config: `patient_dataset` overrides that of the reading; `exclude_patients` is a list of patients to drop.

    Returns:
        A new reading. Images of excluded patients are in `rejected` under `excluded`; a note counts the patients.

    Raises:
        DataError: If the list of patients cannot be read, or no patient is left.
    """
    dataset = config.patient_dataset or reading.patient_dataset
    reading = replace(reading, patient_dataset=dataset)
    if config.exclude_patients is None:
        return reading
    listed = read_patient_list(config.exclude_patients, dataset or reading.dataset)
    names = {patient: canonical_patient(dataset, patient) for patient in {record.patient for record in reading.records}}
    excluded = {patient for patient, name in names.items() if id_key(name) in listed.keys}
    kept = [record for record in reading.records if record.patient not in excluded]
    if not kept:
        raise DataError(
            f"every patient is in {config.exclude_patients}; no patient is left to train on", reason="excluded"
        )
    dropped = [record.id for record in reading.records if record.patient in excluded]
    patients = share(len(excluded), len(listed.keys), "patient")
    are = verb(len(excluded), "is", "are")
    note = f"{patients} in {config.exclude_patients.name} {are} here; "
    note += f"{count(len(dropped), 'image')} excluded from all splits"
    if not excluded:
        note += "; check that its ids are those of this dataset and data.patient_dataset is right"
    respelled = sorted(patient for patient in excluded if names[patient] not in listed.spellings)
    if respelled:
        are = verb(len(respelled), "is", "are")
        note += f"; {len(respelled):,} of them {are} spelled differently there, in case, zeros or number format"
    return replace(
        reading,
        records=kept,
        rejected={**reading.rejected, "excluded": dropped} if dropped else reading.rejected,
        sources={**reading.sources, f"{config.exclude_patients.name} (excluded)": listed.sha256},
        notes=(*reading.notes, note),
    )


class PatientList(NamedTuple):
    """Patients to exclude."""

    keys: frozenset[str]
    """`id_key` of each canonical id."""
    spellings: frozenset[str]
    """Canonical id of each, as spelled in the list."""
    sha256: str


def read_patient_list(path: Path, dataset: str) -> PatientList:
    """Reads a table with a column of patients.

    Args:
        path: A CSV table with one column named as in `PATIENT_COLUMNS` or with another usual name.
        dataset: Dataset that the patient ids belong to, as `data.patient_dataset`.

    Raises:
        DataError: If there is no such table, not exactly one such column, or a row without an id.
    """
    if not path.is_file():
        raise DataError(
            f"no list of patients at {path}; set data.exclude_patients to an existing file, or omit it", reason="table"
        )
    table, faults = read_table(path)
    names = list(table.columns)
    # With NIH's patients, a column `patientId` comes from RSNA, where it names images.
    usual = [name for name in columns_for("patient", names) if dataset != "nih" or name.casefold() != "patientid"]
    found = [name for name in names if name.casefold() in PATIENT_COLUMNS] or usual
    if len(found) != 1:
        what = (
            f"columns {found} all identify patients" if found else f"no column of patients; found {list(table.columns)}"
        )
        faults = [Fault("columns", what, f"name exactly one of them {PATIENT_COLUMNS[0]!r}", (1,)), *faults]
        raise_faults(path, faults)
    texts = table.columns[found[0]].texts()
    blank = [row for row, text in enumerate(texts) if not text]
    if blank:
        at = table.lines[blank].tolist()
        faults = [*faults, Fault("patient", f"column {found[0]!r} is empty", "fill it in or remove the row", at)]
    raise_faults(path, faults)
    names = frozenset(canonical_patient(dataset, clean_id(text)) for text in texts)
    return PatientList(frozenset(map(id_key, names)), names, table.sha256)
