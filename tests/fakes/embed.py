"""Writes the folder structure of EMBED with invented patients; the image files are empty.

It has the oddities of the real data: ids of 16 digits and more, findings of one side, both and none, exams with
findings of one breast only, several findings of one breast, a male patient, synthesised views, magnified views, and
other folders before the cohort in paths.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.fakes.chexpert import write_csv

Row = dict[str, str]
FOREIGN = "/mnt/NAS2/mammo/anon_dicom"
SCREENING = "MG Screening Bilateral"
DIAGNOSTIC = "MG Diagnostic Bilateral w/ CAD"


def file_row(
    name: str,
    *,
    patient: str = "10000001",
    exam: str = "1234567890123456",
    side: str = "L",
    view: str = "CC",
    kind: str = "2D",
    cohort: str = "cohort_1",
    prefix: str = FOREIGN + "/",
    **more: str,
) -> Row:
    """A row of the metadata table for `images/<cohort>/<patient>/1.2.3/1.2.4/<name>.dcm`."""
    return {
        "empi_anon": patient,
        "acc_anon": exam,
        "cohort_num": cohort[-1],
        "anon_dicom_path": f"{prefix}{cohort}/{patient}/1.2.3/1.2.4/{name}.dcm",
        "StudyDescription": SCREENING,
        "FinalImageType": kind,
        "ImageLateralityFinal": side,
        "ViewPosition": view,
        "spot_mag": "",
        "num_roi": "0",
        "Manufacturer": "HOLOGIC",
        "BreastImplantPresent": "NO",
        **more,
    }


def finding_row(
    letter: str = "N",
    side: str = "",
    density: str = "2.0",
    *,
    patient: str = "10000001",
    exam: str = "1234567890123456",
    desc: str = SCREENING,
    **more: str,
) -> Row:
    """A row of the clinical table."""
    return {
        "empi_anon": patient,
        "acc_anon": exam,
        "desc": desc,
        "numfind": "1",
        "side": side,
        "asses": letter,
        "tissueden": density,
        "massshape": "",
        "massdens": "",
        "calcfind": "",
        "calcdistri": "",
        "age_at_study": "57.9",
        "GENDER_DESC": "Female",
        "RACE_DESC": "Caucasian or White",
        "ETHNIC_GROUP_DESC": "Non-Hispanic or Latino",
        **more,
    }


def both_breasts(**more: str) -> list[Row]:
    """One file per breast, named `left` and `right`."""
    return [file_row("left", side="L", **more), file_row("right", side="R", **more)]


def write_fake_embed(
    folder: Path,
    files: Sequence[Mapping[str, str]] | None = None,
    findings: Sequence[Mapping[str, str]] | None = None,
    *,
    suffix: str = "",
    missing: Sequence[str] = (),
) -> Path:
    """Writes `tables/` and `images/` below `folder` and returns it.

    Args:
        folder: Made if it is not there.
        files: As `file_row` makes them; by default one of each breast.
        findings: As `finding_row` makes them; by default one for both breasts.
        suffix: `_reduced` for the names of the reduced tables.
        missing: Names of files that the download lost.
    """
    files = both_breasts() if files is None else files
    findings = [finding_row()] if findings is None else findings
    write_csv(folder / "tables" / f"EMBED_OpenData_metadata{suffix}.csv", files)
    write_csv(folder / "tables" / f"EMBED_OpenData_clinical{suffix}.csv", findings)
    (folder / "images" / "cohort_1").mkdir(parents=True, exist_ok=True)
    for row in files:
        path = folder / "images" / row.get("anon_dicom_path", "").partition("mammo/anon_dicom/")[2].replace("\\", "/")
        if path.suffix == ".dcm" and path.stem not in missing:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return folder
