"""Writes phantoms: drawn chest images with labels, in the exact layout of CheXpert-v1.0-small.

The demo, the tutorial and the tests stand on them. No pixel comes from a patient, every finding named in the table can
be seen (`anatomy.py`), and the same seed writes the same bytes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cleft.data.phantoms.anatomy import Body, Shot, draw_frontal, draw_lateral
from cleft.data.phantoms.drawn import drawn_once
from cleft.data.progress import progress_bar
from cleft.data.readers.chexpert import FINDINGS
from cleft.data.sampling import Stream, philox_generator
from cleft.errors import DataError, ResourceError
from cleft.grammar import count, verb

VERSION = 1
"""Of the drawings: another version means other pixels for the same seed."""

RELEASE = "CheXpert-v1.0-small"

_ALONE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
_OTHERS = tuple(finding for finding in FINDINGS if finding not in _ALONE and finding != "No Finding")
_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)


@dataclass(frozen=True)
class _Study:
    """One visit: what is there, and how marked."""

    labels: dict[str, float]
    severity: dict[str, float]


def write_phantoms(folder: Path, *, patients: int, seed: int = 0, size: int = 320, progress: bool = True) -> Path:
    """Draws a dataset of phantoms.

    About half of the studies show exactly one of the five findings of CheXpert-5x200, a sixth shows none, the rest
    several; a few labels are uncertain or denied, as in the real table. A folder that already holds the same phantoms
    is left as it is.

    Args:
        folder: Where to write; becomes the `data.root`.
        patients: How many patients; a patient has one to three studies, a study one image or two.
        seed: Same seed, same bytes.
        size: Height of an image in pixels; the width is 1.22 times that.
        progress: Whether to show a bar where somebody looks.

    Returns:
        The folder.

    Raises:
        DataError: If the folder holds something else, or the numbers make no dataset.
        ResourceError: If an image cannot be written.
    """
    if patients < 1 or size < 32:
        raise DataError(
            f"{count(patients, 'patient')} of {count(size, 'pixel')} {verb(patients, 'makes', 'make')} no dataset; "
            "ask for 1 or more, of 32 or more"
        )
    mark = {"version": VERSION, "seed": seed, "patients": patients, "size": size}
    return drawn_once(folder, mark, lambda draft: _draw_all(draft / RELEASE, patients, seed, size, progress=progress))


def _draw_all(release: Path, patients: int, seed: int, size: int, *, progress: bool) -> None:
    """Draws every patient, then writes their table."""
    release.mkdir()
    rows: list[list[str]] = []
    with progress_bar("drawing phantoms", patients, enabled=progress) as advance:
        for patient in range(1, patients + 1):
            rows.extend(_write_patient(release, patient, seed, size))
            advance()
    with (release / "train.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(_COLUMNS)
        table.writerows(rows)


def _write_patient(release: Path, patient: int, seed: int, size: int) -> Iterator[list[str]]:
    rng = philox_generator(seed, Stream.PHANTOM, patient)
    body = Body(
        width=rng.uniform(0.82, 0.98),
        lung_top=rng.uniform(0.10, 0.16),
        heart=rng.uniform(0.23, 0.28),
        ribs=int(rng.integers(8, 10)),
    )
    sex, age = ("Female" if rng.random() < 0.41 else "Male"), int(np.clip(rng.normal(60, 18), 18, 90))
    for number in range(1, 1 + int(rng.choice([1, 2, 3], p=[0.65, 0.25, 0.10]))):
        study = _draw_study(rng)
        view = "AP" if rng.random() < 0.6 + 0.3 * (study.labels.get("No Finding") != 1) else "PA"
        home = f"train/patient{patient:05d}/study{number}"
        (release / home).mkdir(parents=True)
        frontal = draw_frontal((size, round(1.22 * size)), body, _shot(view, rng), study.severity, rng)
        yield _save(release, f"{home}/view1_frontal.jpg", frontal, [sex, str(age), "Frontal", view], study)
        if view == "PA" and rng.random() < 0.5:
            lateral = draw_lateral((round(1.22 * size), size), body, _shot("", rng), rng)
            yield _save(release, f"{home}/view2_lateral.jpg", lateral, [sex, str(age), "Lateral", ""], study)


def _shot(view: str, rng: np.random.Generator) -> Shot:
    return Shot(
        view=view,
        degrees=rng.normal(0, 2.5 if view == "AP" else 1.2),
        scale=rng.uniform(0.93, 1.05),
        shift=(rng.normal(0, 0.015), rng.normal(0, 0.015)),
        gamma=rng.uniform(0.85, 1.2),
        noise=rng.uniform(0.015, 0.035),
        breath=rng.normal(0, 0.012) - (0.02 if view == "AP" else 0.0),
    )


def _draw_study(rng: np.random.Generator) -> _Study:
    """Labels as the real table has them, and how marked each finding is."""
    kind = rng.choice(["alone", "none", "several"], p=[0.52, 0.18, 0.30])
    if kind == "none":
        labels = {"No Finding": 1.0}
        if rng.random() < 0.2:
            labels["Support Devices"] = 1.0
    elif kind == "alone":
        labels = {str(rng.choice(_ALONE)): 1.0}
    else:
        labels = {str(finding): 1.0 for finding in rng.choice(_ALONE, size=rng.integers(0, 3), replace=False)}
        labels |= {str(finding): 1.0 for finding in rng.choice(_OTHERS, size=rng.integers(1, 4), replace=False)}
    severity = {finding: float(rng.uniform(0.45, 1.0)) for finding, value in labels.items() if value == 1}
    severity.pop("No Finding", None)
    if kind == "several":
        _hedge(labels, severity, rng)
    return _Study(labels, severity)


def _hedge(labels: dict[str, float], severity: dict[str, float], rng: np.random.Generator) -> None:
    """Some findings are denied, some are too faint for the reader to be sure."""
    absent = [finding for finding in FINDINGS if finding not in labels and finding != "No Finding"]
    for finding in absent:
        draw = rng.random()
        if draw < 0.12:
            labels[finding] = 0.0
        elif draw < 0.18:
            labels[finding] = -1.0
            severity[finding] = float(rng.uniform(0.1, 0.25)) if rng.random() < 0.5 else 0.0


def _save(release: Path, name: str, pixels: np.ndarray, facts: list[str], study: _Study) -> list[str]:
    if not cv2.imwrite(str(release / name), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90]):
        raise ResourceError(f"{release / name} could not be written; make room on the disk")
    cells = [f"{study.labels[finding]:.1f}" if finding in study.labels else "" for finding in FINDINGS]
    return [f"{RELEASE}/{name}", *facts, *cells]
