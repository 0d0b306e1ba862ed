"""Usual names of columns that are no findings, so that a table from elsewhere is read as it is meant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

USUAL: Mapping[str, tuple[str, ...]] = {
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


def plain_name(name: str) -> str:
    """Returns a column's name without case, spaces and signs.

    Example:
        >>> plain_name("Patient ID"), plain_name("subject_id"), plain_name("AP/PA")
        ('patientid', 'subjectid', 'appa')
    """
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def usual_columns(meaning: str, names: Sequence[str]) -> list[str]:
    """Returns those of the names that usually have a meaning, in their order."""
    return [name for name in names if not name.startswith("_") and plain_name(name) in USUAL[meaning]]


def may_name_patients(name: str) -> bool:
    """Whether a column of unknown meaning may say who the patient is.

    Example:
        >>> [may_name_patients(name) for name in ("client_id", "caseID", "Covid", "series_id")]
        [True, True, False, False]
    """
    plain = plain_name(name)
    is_id = _ID.fullmatch(name.strip()) is not None and plain not in _OTHERS
    return plain in _UNSURE or is_id or _PEOPLE.search(plain) is not None


def is_no_finding(name: str) -> bool:
    """Whether a column has the name of something that is surely no finding, such as `index` or `fold`."""
    return plain_name(name) in _OTHERS
