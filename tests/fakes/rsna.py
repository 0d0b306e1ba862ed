"""Writes the folder structure of RSNA's challenge with invented patients.

It has the oddities of the real data: several boxes of an image, headers in which ages lack their unit or are
impossible, an image that is not on disk, and names without relation to patients.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydicom.uid import JPEGBaseline8Bit
from tests.fakes.chexpert import write_csv
from tests.fakes.dicom import write_dicom

COLUMNS = ["patientId", "x", "y", "width", "height", "Target"]
BOX = ("10.0", "12.0", "20.0", "30.0")

Row = dict[str, str]


def name_of(number: int) -> str:
    """The `patientId` of an image by number, in the form of the challenge."""
    return f"{number:08x}-0000-4000-8000-{number:012x}"


def rsna_row(number: int, target: str = "0", box: Sequence[str] | None = None) -> Row:
    """One row of the label table; positive ones have a box unless another is given."""
    sides = box if box is not None else BOX if target == "1" else ("",) * 4
    return dict(zip(COLUMNS, [name_of(number), *sides, target], strict=True))


def odd_rows() -> list[Row]:
    """Four images: two boxes, none, one, none."""
    second = ("40.0", "12.0", "20.0", "30.0")
    return [rsna_row(1, "1"), rsna_row(1, "1", second), rsna_row(2), rsna_row(3, "1"), rsna_row(4)]


def write_fake_rsna(
    folder: Path,
    rows: Sequence[Row] | None = None,
    *,
    inner: str = "",
    table: str = "stage_2_train_labels.csv",
    headers: Mapping[int, Mapping[str, str]] | None = None,
    missing: Iterable[int] = (),
    size: int = 64,
) -> Path:
    """Writes the label table and one JPEG-in-DICOM file per image; returns `folder`.

    Args:
        folder: Root of the download.
        rows: As `rsna_row` makes them; by default `odd_rows()`.
        inner: Folder inside it that holds everything, such as `RSNA Pneumonia`.
        table: Name of the label table.
        headers: Attributes by the number of the image. By default even numbers are PA, odd ones AP, of a
            woman of 45.
        missing: Numbers of images that the download lost.
        size: Side of the images in pixels.
    """
    rows = odd_rows() if rows is None else rows
    write_csv(folder / inner / table, rows, COLUMNS)
    numbers = sorted({int(row["patientId"].partition("-")[0], 16) for row in rows if "-" in row["patientId"]})
    for number in set(numbers) - set(missing):
        tags = {"ViewPosition": "PA" if number % 2 == 0 else "AP", "PatientSex": "F", "PatientAge": "45"}
        pixels = np.random.default_rng(number).integers(0, 256, (size, size), dtype=np.uint8)
        path = folder / inner / "stage_2_train_images" / f"{name_of(number)}.dcm"
        write_dicom(path, pixels, syntax=JPEGBaseline8Bit, **{**tags, **(headers or {}).get(number, {})})
    return folder


def write_people(path: Path, people: Mapping[int, int]) -> Path:
    """Writes `nih_patients.csv`: number of the patient by number of the image."""
    return write_csv(path, [{"patientId": name_of(n), "nih_patient": str(p)} for n, p in people.items()])


def write_matches(path: Path, people: Mapping[int, tuple[int, float]]) -> Path:
    """Writes `rsna_nih_match.csv`: number of the patient and error of the match by number of the image."""
    rows = [
        {
            "patientId": name_of(number),
            "nih_image": f"{patient:08d}_{number:03d}.png",
            "nih_patient": str(patient),
            "pixel_mse": str(error),
        }
        for number, (patient, error) in people.items()
    ]
    return write_csv(path, rows)


def write_official(path: Path, people: Mapping[int, int]) -> Path:
    """Writes RSNA's own mapping file."""
    records = [
        {"subset_img_id": name_of(n), "img_id": f"{p:08d}_{n:03d}.png", "orig_labels": ["No Finding"]}
        for n, p in people.items()
    ]
    path.write_text(json.dumps(records))
    return path
