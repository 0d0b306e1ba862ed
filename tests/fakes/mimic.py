"""Writes the folder structure of MIMIC-CXR-JPG, or of MIMIC-CXR with DICOM files, with invented patients and reports.

It has the oddities of the real data: labels and reports by study and views by image, empty and lateral views,
uncertain labels, a study without labels and one without a report, combined, misspelt and missing headings, a page break
in a report, text removed by de-identification.
"""

import csv
import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.fakes.chexpert import write_image
from tests.fakes.dicom import dicom_bytes
from tests.fakes.mixed import scene

from cleft.data.readers.mimic import FINDINGS

METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)


class Study(NamedTuple):
    """One visit."""

    subject: str
    study: str
    views: Sequence[str]
    """`ViewPosition` of each image; `/meaning` after it gives the meaning of the view code."""
    labels: dict[str, str] | None
    """Code by finding; None if the label table does not have the study."""
    report: str | None
    part: str = "train"


def final(*sections: str) -> str:
    """The text of a report; as in MIMIC-CXR, every line begins with a space."""
    return "                                 FINAL REPORT\n " + "\n \n ".join(sections) + "\n"


def odd_studies() -> list[Study]:
    """Six studies of four invented patients, nine images."""
    return [
        Study(
            "10000101",
            "50000101",
            ("PA", "LATERAL"),
            {"No Finding": "1.0"},
            final(
                "EXAMINATION:  CHEST (PA AND LAT)",
                "INDICATION:  ___ year old with cough.",
                "FINDINGS: \n \n Lungs are clear. \n Heart size is 3.5 units.",
                "IMPRESSION: \n \n No acute process.",
            ),
        ),
        Study(
            "10000101",
            "50000102",
            ("AP",),
            {"Edema": "-1.0", "Cardiomegaly": "1.0", "Pneumothorax": "0.0"},
            final("HISTORY:  Fall.", "FINDINGS AND IMPRESSION:  Enlarged heart.  Possible edema."),
        ),
        Study(
            "11000102",
            "51000103",
            ("", "/lateral"),
            {"Pleural Effusion": "1.0"},
            final("CHEST RADIOGRAPHS", "COMPARISON:  None.\n \n Small left effusion.  Otherwise unchanged."),
            "validate",
        ),
        Study(
            "11000103",
            "51000104",
            ("/postero-anterior",),
            None,
            final("FINDNGS:  (Over)\n\n  FINAL REPORT\n (Cont)\n Small nodule.", "IMPRESSSION:\n Follow up in ___."),
            "test",
        ),
        Study("19000104", "59000105", ("AP", "PA"), {"Fracture": "1.0"}, None, "test"),
        Study("19000104", "59000106", ("AP",), {"Support Devices": "1.0"}, "Tube in place as before.\n", "test"),
    ]


def image_id(study: Study, number: int) -> str:
    """A `dicom_id`: five groups of eight characters."""
    return "-".join([study.study, *(f"{number:08x}",) * 4])


def text_path(study: Study) -> str:
    """Path of the report below `files`."""
    return f"p{study.subject[:2]}/p{study.subject}/s{study.study}.txt"


def write_fake_mimic(
    folder: Path,
    studies: Sequence[Study] | None = None,
    *,
    images: str = "jpg",
    reports: str = "files",
    tables: Iterable[str] = ("metadata", "split", "chexpert", "negbio"),
    packed: bool = True,
    missing: Iterable[str] = (),
) -> Path:
    """Writes tables, images and reports; returns `folder`.

    Args:
        folder: Root of the download.
        studies: By default `odd_studies()`.
        images: `jpg` or `dcm`.
        reports: `files`, `sectioned`, or nothing of the two.
        tables: Which of MIMIC-CXR-JPG's tables there are; `records` is the list of the DICOM release.
        packed: Whether tables are compressed, as they are published.
        missing: Ids of images that the download lost.
    """
    studies = odd_studies() if studies is None else studies
    folder.mkdir(parents=True, exist_ok=True)
    lost = set(missing)
    contents = _tables(studies)
    for name in tables:
        stem = "cxr-record-list.csv" if name == "records" else f"mimic-cxr-2.0.0-{name}.csv"
        write_table(folder / (f"{stem}.gz" if packed else stem), contents[name])
    for study in studies:
        home = folder / "files" / f"p{study.subject[:2]}" / f"p{study.subject}"
        (home / f"s{study.study}").mkdir(parents=True, exist_ok=True)
        for number, view in enumerate(study.views):
            name = image_id(study, number)
            if name in lost:
                continue
            path = home / f"s{study.study}" / f"{name}.{images}"
            if images == "jpg":
                write_image(path)
            else:
                shown = {"ViewPosition": view.partition("/")[0]}
                path.write_bytes(dicom_bytes(scene(number).astype("uint16") * 16, bits=12, **shown))
        if reports == "files" and study.report is not None:
            (folder / "files" / text_path(study)).write_text(study.report)
    if reports == "sectioned":
        write_sectioned(folder / "mimic_cxr_sectioned.csv", studies)
    return folder


def write_table(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """Writes a CSV table, compressed if its name says so."""
    opened = gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="")
    with opened as file:
        csv.writer(file).writerows(rows)


def write_sectioned(path: Path, studies: Sequence[Study]) -> None:
    """Writes a table of invented sections: findings and an impression for every study that has a report."""
    rows = [["study", "impression", "findings", "last_paragraph", "comparison"]]
    rows += [
        [f"s{study.study}", "No change\n since before.", f"Findings of {study.study[-3:]}.", "", ""]
        for study in studies
        if study.report is not None
    ]
    write_table(path, rows)


def _tables(studies: Sequence[Study]) -> dict[str, list[list[object]]]:
    named = [(study, number, view) for study in studies for number, view in enumerate(study.views)]
    metadata: list[list[object]] = [METADATA.split(",")]
    split: list[list[object]] = [["dicom_id", "study_id", "subject_id", "split"]]
    records: list[list[object]] = [["subject_id", "study_id", "dicom_id", "path"]]
    labels: list[list[object]] = [["subject_id", "study_id", *FINDINGS]]
    for study, number, shown in named:
        name = image_id(study, number)
        view, _, meaning = shown.partition("/")
        about = ["CHEST (PA AND LAT)", view, 64, 64, 21800506, 213014.5, "CHEST", meaning, "Erect"]
        metadata.append([name, study.subject, study.study, *about])
        split.append([name, study.study, study.subject, study.part])
        records.append([study.subject, study.study, name, f"files/p{study.subject[:2]}/p{study.subject}/{name}.dcm"])
    for study in studies:
        if study.labels is not None:
            labels.append([study.subject, study.study, *(study.labels.get(name, "") for name in FINDINGS)])
    negbio = [labels[0], *([*row[:2], *("0.0" if code == "-1.0" else code for code in row[2:])] for row in labels[1:])]
    return {"metadata": metadata, "split": split, "chexpert": labels, "negbio": negbio, "records": records}
