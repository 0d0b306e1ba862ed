"""The five tables of a mammogram phantom, with the columns, spellings and gaps of the real ones."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from cleft.data.phantoms.mammogram_cases import Exam, Patient, Picture
from cleft.data.phantoms.mammogram_codes import CODES

FOREIGN = ("/mnt/archive/mammo/anon_dicom", "/data/2/mammo/anon_dicom")
"""Where the owner's machines kept the images of the two cohorts; the tables still say so."""

Row = dict[str, str]

_DUMPED = (
    "Manufacturer",
    "ManufacturerModelName",
    "Modality",
    "PresentationIntentType",
    "BodyPartExamined",
    "PatientSex",
    "PatientAge",
    "PatientOrientation",
    "ImageLaterality",
    "BreastImplantPresent",
    "PartialView",
    "KVP",
    "ExposureTime",
    "BodyPartThickness",
    "CompressionForce",
    "ImagerPixelSpacing",
    "BurnedInAnnotation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
)
"""Header attributes that the metadata table repeats as text."""

_PATHS = tuple(f"path{number}" for number in range(1, 11))


def metadata_row(
    patient: Patient,
    exam: Exam,
    picture: Picture,
    path: str,
    boxes: Sequence[tuple[int, int, int, int]],
    header: Mapping[str, object],
) -> Row:
    """What the full metadata table says of one file.

    Args:
        patient: Whose image.
        exam: Of which visit.
        picture: Which view.
        path: Of the file, from `cohort_1` or `cohort_2` on.
        boxes: Marked by a reader: top, left, bottom, right; after turning right breasts the way of left ones.
        header: Attributes of the file.
    """
    return {
        "empi_anon": str(patient.empi),
        "acc_anon": str(exam.acc),
        "cohort_num": str(patient.cohort),
        "anon_dicom_path": f"{FOREIGN[patient.cohort - 1]}/{path}",
        "study_date_anon": f"{exam.taken}",
        "StudyDescription": exam.study,
        "SeriesDescription": str(header["SeriesDescription"]),
        "FinalImageType": picture.kind,
        "ImageLateralityFinal": picture.side,
        "ViewPosition": picture.named,
        "spot_mag": picture.spot_mag,
        "num_roi": str(len(boxes)),
        "ROI_coords": "(" + "".join(f"{box}," for box in boxes) + ")",
        "match_level": "[" + ", ".join("1" for _ in boxes) + "]" if boxes else "",
        "SRC_DST": "",
        "png_path": "",
        "png_filename": "",
        **{name: _dumped(header.get(name)) for name in _DUMPED},
    }


def _dumped(value: object) -> str:
    return "" if value is None else str(value)


def clinical_rows(patient: Patient, exam: Exam) -> Iterator[Row]:
    """What the full clinical table says of one exam: a row per finding."""
    marked = [finding for finding in exam.findings if finding.letter not in ("N", "X", "")]
    totals = {side: sum(finding.side in (side, "B") for finding in marked) for side in "LR"}
    for number, finding in enumerate(exam.findings, start=1):
        biopsy = finding.path != ""
        yield {
            "empi_anon": str(patient.empi),
            "acc_anon": str(exam.acc),
            "cohort_num": str(patient.cohort),
            "study_date_anon": f"{exam.signed}",
            "desc": exam.desc,
            "numfind": str(number),
            "side": finding.side,
            "asses": finding.letter,
            "tissueden": exam.density,
            "massshape": finding.shape,
            "massmargin": finding.margin,
            "massdens": finding.dens,
            "calcfind": finding.calc,
            "calcdistri": finding.distri,
            "calcnumber": "0" if number % 2 else "0.0",
            "implanfind": "I" if any(breast.implant for breast in patient.breasts.values()) else "",
            "total_L_find": f"{totals['L']}.0",
            "total_R_find": f"{totals['R']}.0",
            "bside": finding.side if biopsy else "",
            "type": "CB" if biopsy else "",
            **{name: "" for name in _PATHS},
            "path1": _PATHOLOGY[finding.path] if biopsy else "",
            "path_severity": f"{finding.path}.0" if biopsy else "",
            "procdate_anon": f"{exam.signed}" if biopsy else "",
            "pdate_anon": f"{exam.signed}" if biopsy else "",
            "age_at_study": f"{(exam.taken - patient.born).days / 365.25:.6f}",
            "GENDER_DESC": "Male" if patient.male else "Female",
            "RACE_DESC": patient.race,
            "ETHNIC_GROUP_DESC": patient.ethnic,
        }


_PATHOLOGY = {"0": "ID", "1": "DC", "2": "LC", "4": "FA"}


def write_tables(folder: Path, metadata: Sequence[Row], clinical: Sequence[Row]) -> None:
    """Writes all five; the two reduced ones lack columns, spell some differently and are ordered differently."""
    folder.mkdir()
    _write(folder / "EMBED_OpenData_metadata.csv", metadata)
    _write(folder / "EMBED_OpenData_clinical.csv", clinical)
    short = [_renamed(row, _METADATA_REDUCED) for row in metadata]
    for row in short:
        row["num_ROI"] += ".0"
    _write(folder / "EMBED_OpenData_metadata_reduced.csv", _indexed(short))
    again = sorted(clinical, key=lambda row: (row["acc_anon"], int(row["numfind"])))
    _write(
        folder / "EMBED_OpenData_clinical_reduced.csv",
        _indexed([_renamed(row, _CLINICAL_REDUCED) for row in again]),
    )
    rows = [
        [header, about, code, f"{meaning:<50}"]
        for (header, about), codes in CODES.items()
        for code, meaning in codes.items()
    ]
    with (folder / "AWS_Open_Data_Clinical_Legend.csv").open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["Header in export", "Discription", "Code", "Meaning"])
        table.writerows(rows)


def _write(path: Path, rows: Iterable[Row]) -> None:
    """Writes rows that have the same columns."""
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    return {new: row[old] for old, new in columns.items()}


def _indexed(rows: Iterable[Row]) -> Iterator[Row]:
    """With the unnamed column of numbers that a table has when it was saved with its index."""
    return ({"": str(number), **row} for number, row in enumerate(rows))


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_METADATA_REDUCED = {
    **_same("empi_anon", "acc_anon", "cohort_num", "anon_dicom_path", "study_date_anon", "StudyDescription"),
    **_same("SeriesDescription", "FinalImageType", "ImageLateralityFinal", "ViewPosition", "spot_mag"),
    "num_roi": "num_ROI",
    **_same("ROI_coords", "match_level"),
}
_CLINICAL_REDUCED = {
    **_same("empi_anon", "acc_anon", "cohort_num", "study_date_anon", "desc", "numfind", "side", "asses", "tissueden"),
    **_same("massshape", "massmargin", "massdens", "calcfind", "calcdistri", "calcnumber"),
    "total_L_find": "total_l_find",
    "total_R_find": "total_r_find",
    **_same("bside", "path_severity", "age_at_study"),
    "RACE_DESC": "ETHNICITY_DESC",
    **_same("ETHNIC_GROUP_DESC"),
}
"""Columns of the reduced tables, and what they call them."""
