"""Writes phantoms of the breast: drawn mammograms with their tables, in the exact layout of the EMBED open data.

The tables hold, on purpose, whatever makes the real ones hard to read (`mammogram_cases.ODDITIES`); the images show
what the tables say (`breast.py`, `lesions.py`); the same seed writes the same bytes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from cleft.data.phantoms.breast import Exposure, Mammogram, draw_mammogram
from cleft.data.phantoms.drawn import drawn_once
from cleft.data.phantoms.mammogram_cases import Exam, Patient, Picture, Shares
from cleft.data.phantoms.mammogram_files import MACHINES, facts, write_image
from cleft.data.phantoms.mammogram_people import invent_patient
from cleft.data.phantoms.mammogram_tables import Row, clinical_rows, metadata_row, write_tables
from cleft.data.progress import progress_bar
from cleft.data.sampling import Stream, philox_generator
from cleft.errors import DataError
from cleft.grammar import count, verb

VERSION = 1
"""Of the drawings and tables: another version means other bytes for the same seed."""

USUAL = Shares()


def write_mammograms(
    folder: Path, *, patients: int, seed: int = 0, size: int = 384, shares: Shares = USUAL, progress: bool = True
) -> Path:
    """Draws a download of the EMBED open data.

    A folder that already holds the same phantoms is left as it is. A patient does not depend on how many there are.

    Args:
        folder: Where to write; becomes the `data.root`.
        patients: How many; a patient has about seven images, and the first ones show one oddity each.
        seed: Same seed, same bytes.
        size: Height of an image in pixels; the width is 5/6 of that. At 384 a file has 250 kB.
        shares: How often each assessment and density occurs.
        progress: Whether to show a bar where somebody looks.

    Returns:
        The folder.

    Raises:
        DataError: If the folder holds something else, or the numbers make no dataset.
        ResourceError: If an image cannot be written.
    """
    if patients < 1 or size < 64:
        raise DataError(
            f"{count(patients, 'patient')} of {count(size, 'pixel')} {verb(patients, 'makes', 'make')} no dataset; "
            "ask for 1 or more, of 64 or more"
        )
    mark = {
        "kind": "mammogram",
        "version": VERSION,
        "seed": seed,
        "patients": patients,
        "size": size,
        "birads": list(shares.birads),
        "density": list(shares.density),
    }

    def draw(draft: Path) -> None:
        metadata: list[Row] = []
        clinical: list[Row] = []
        with progress_bar("drawing mammograms", patients, enabled=progress) as advance:
            for number in range(1, patients + 1):
                patient = invent_patient(seed, number, shares)
                metadata.extend(_draw_patient(draft / "images", patient, seed, (size, round(size * 5 / 6))))
                clinical.extend(row for exam in patient.exams for row in clinical_rows(patient, exam))
                advance()
        write_tables(draft / "tables", metadata, clinical)

    return drawn_once(folder, mark, draw)


def _draw_patient(images: Path, patient: Patient, seed: int, size: tuple[int, int]) -> list[Row]:
    """Draws every image of a patient and returns their rows."""
    rows: list[Row] = []
    rng = philox_generator(seed, Stream.PHANTOM, patient.number, 2)
    for visit, exam in enumerate(patient.exams):
        lot = int(rng.choice(len(MACHINES), p=[0.55, 0.20, 0.15, 0.10]))
        machine = MACHINES[patient.number % len(MACHINES) if patient.number <= 2 * len(MACHINES) else lot]
        for index, picture in enumerate(exam.pictures):
            uids = _uid(seed, exam.acc), _uid(seed, exam.acc, index), _uid(seed, exam.acc, index, 1)
            path = f"cohort_{patient.cohort}/{patient.empi}/{uids[0]}/{uids[1]}/{uids[2]}.dcm"
            drawn = _draw_picture(
                patient,
                exam,
                picture,
                size,
                philox_generator(seed, Stream.PHANTOM, patient.number, 16 + 64 * visit + index),
            )
            header = facts(patient, exam, picture, machine, size, uids)
            (images / path).parent.mkdir(parents=True)
            write_image(images / path, drawn.image, machine, header)
            rows.append(metadata_row(patient, exam, picture, path, _marked(drawn, picture, size, exam), header))
    return rows


def _draw_picture(
    patient: Patient, exam: Exam, picture: Picture, size: tuple[int, int], rng: np.random.Generator
) -> Mammogram:
    signs = [found.sign for found in exam.findings if found.sign is not None and found.side in (picture.side, "B", "")]
    exposure = Exposure(
        view=picture.view,
        side=picture.side,
        synthetic=picture.kind == "cview",
        spot=picture.spot,
        squeeze=rng.uniform(0.96, 1.04),
        shift=rng.normal(0, 0.012),
        gamma=rng.uniform(0.92, 1.08),
        noise=rng.uniform(0.008, 0.016),
    )
    return draw_mammogram(size, patient.breasts[picture.side], exposure, signs, rng)


def _marked(drawn: Mammogram, picture: Picture, size: tuple[int, int], exam: Exam) -> list[tuple[int, int, int, int]]:
    """The boxes a reader drew: in every fourth exam, and as if all breasts looked the same way."""
    if exam.acc % 4 or picture.spot:
        return []
    if picture.side == "L":
        return drawn.boxes
    return [(top, size[1] - right, bottom, size[1] - left) for top, left, bottom, right in drawn.boxes]


def _uid(seed: int, *parts: int) -> str:
    """A unique identifier below 2.25, the root for numbers that nobody hands out."""
    text = "|".join(str(part) for part in (seed, *parts))
    return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:15])}"
