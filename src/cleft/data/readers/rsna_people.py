"""Which patient of NIH each image of RSNA's challenge shows; its own `patientId` names an image.

Three forms are known: RSNA's `pneumonia-challenge-dataset-mappings_2018.json` (records with `subset_img_id` and the NIH
file name as `img_id`), a table of matches found by comparing pixels (`patientId`, `nih_image`, `nih_patient`,
`pixel_mse`), and a table of `patientId` and `nih_patient` alone.

Shapes: `N` images.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from cleft.data.tables.csv import scan_table
from cleft.data.tables.faults import Fault, refuse
from cleft.data.tables.patients import person
from cleft.data.tables.rows import read_texts
from cleft.errors import DataError
from cleft.files import parse_json, read_limited
from cleft.grammar import count, share, verb

NAMES = (
    "pneumonia-challenge-dataset-mappings_2018.json",
    *(f"{name}.csv{end}" for name in ("nih_patients", "rsna_nih_match") for end in ("", ".gz")),
)
"""Files that are found by themselves, the owner's first."""
DOUBTFUL = 5.0
"""A match of pixels whose mean squared difference is above this may be another picture."""

_NIH_IMAGE = re.compile(r"([0-9]{8})_[0-9]{3}\.png")
_EXAMPLES = 3


_ALONE = (
    "no mapping to NIH's patients: `patientId` names an image, so every image counts as a patient of its own, and "
    "images of one person may stand on both sides of a split (leakage: unknown); set data.mapping"
)


class PatientMap(NamedTuple):
    """A mapping that was read."""

    path: Path
    sha256: str
    patients: Mapping[str, str]
    """Image to the number of its patient, as text without leading zeros."""
    doubtful: frozenset[str]
    """Images whose match is not sure."""


def find_mapping(given: Path | None, folders: Sequence[Path]) -> PatientMap | None:
    """Reads the mapping that was given, or the one that lies in one of the folders; None where there is none.

    Raises:
        DataError: If the file is not there, not of a known form, or contradicts itself.
    """
    if given is not None and not given.is_file():
        raise DataError(f"no mapping at {given}; set data.mapping to the file, or leave it out", reason="mapping")
    lying = (folder / name for name in NAMES for folder in folders if (folder / name).is_file())
    path = given or next(lying, None)
    if path is None:
        return None
    return _read_json(path) if path.suffix == ".json" else _read_csv(path)


@dataclass(frozen=True, kw_only=True)
class Patients:
    """Who the images show."""

    people: str
    names: list[str]
    """One per image, `[N]`."""
    known: NDArray[np.bool_]
    """Images whose patient is known, or all where nobody's is, `[N]`."""
    notes: list[str]
    cautions: tuple[str, ...] = ()
    faults: Sequence[Fault] = ()
    rejected: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    sources: Mapping[str, str] = field(default_factory=dict[str, str])


def assign_patients(found: PatientMap | None, images: list[str], max_bad: float) -> Patients:
    """Gives every image its patient.

    Args:
        found: The mapping. Without one every image is its own patient, and a caution says so.
        images: Names of the images, `[N]`.
        max_bad: Share of them that may lack a patient. They are left out under `no-patient`; where they are more, that
            is a fault.
    """
    every = np.ones(len(images), dtype=bool)
    if found is None:
        return Patients(people="", names=images, known=every, notes=[_ALONE], cautions=(_ALONE,))
    strangers = [image for image in images if image not in found.patients]
    names = [found.patients.get(image, image) for image in images]
    shown = len(images) - len(strangers)
    people = len(set(names)) - len(strangers)
    notes = [f"{found.path.name} names {count(people, 'patient')} of NIH for {count(shown, 'image')}"]
    doubtful = len(found.doubtful.intersection(images))
    if doubtful:
        are = verb(doubtful, "is", "are")
        notes.append(f"{doubtful:,} of these matches {are} doubtful (pixel_mse above {DOUBTFUL:g})")
    faults: list[Fault] = []
    if len(strangers) > max_bad * len(images):
        part = f"{len(strangers) / len(images):.1%}, data.max_bad allows {max_bad:.1%}"
        images_are = f"{share(len(strangers), len(images), 'image')} {verb(len(strangers), 'is', 'are')}"
        what = f"{images_are} not in {found.path.name} ({part}), such as "
        faults.append(Fault("no-patient", what + ", ".join(strangers[:3]), "give the mapping of these images, or none"))
    return Patients(
        people="nih",
        names=names,
        known=np.array([image in found.patients for image in images], dtype=bool),
        notes=notes,
        faults=faults,
        rejected={"no-patient": strangers} if strangers else {},
        sources={f"{found.path.name} (patients)": found.sha256},
    )


def _read_json(path: Path) -> PatientMap:
    failure = partial(DataError, reason="mapping")
    raw = read_limited(path, error=failure)
    tree: Any = parse_json(raw, str(path), top=None, error=failure)
    records = cast("list[Any]", tree) if isinstance(tree, list) else []
    pairs = [
        (str(record.get("subset_img_id") or ""), str(record.get("img_id") or ""))
        for record in cast("list[dict[str, Any]]", [record for record in records if isinstance(record, dict)])
    ]
    if not pairs or not any(image for image, _ in pairs):
        raise DataError(
            f"{path} is no list of records with subset_img_id and img_id; is it RSNA's mapping file?", reason="mapping"
        )
    images, names = [image for image, _ in pairs], [name for _, name in pairs]
    patients, faults = _from_names(names, range(len(names)), "record")
    refuse(path, [*faults, *_clashes(images, patients, [])])
    return PatientMap(path, hashlib.sha256(raw).hexdigest(), _known(images, patients), frozenset())


def _read_csv(path: Path) -> PatientMap:
    table, faults = scan_table(path)
    columns = {name.casefold(): column for name, column in table.columns.items()}
    images = read_texts(columns.get("patientid"), len(table))
    numbers, names = (read_texts(columns.get(name), len(table)) for name in ("nih_patient", "nih_image"))
    if "patientid" not in columns or not {"nih_patient", "nih_image"} & columns.keys():
        what = f"no columns 'patientId' and 'nih_patient'; found {list(table.columns)}"
        refuse(path, [Fault("mapping", what, "give one of the forms in docs/datasets/rsna.md", (1,)), *faults])
    lines = table.lines.tolist()
    by_name, wrong = (
        _from_names([name or "" for name in names], lines, "line") if "nih_image" in columns else (None, [])
    )
    patients = by_name or ["" for _ in lines]
    if "nih_patient" in columns:
        patients = [person("nih", number or "") for number in numbers]
        strange = [lines[i] for i, patient in enumerate(patients) if not patient.isdecimal()]
        if strange:
            wrong.append(Fault("mapping", "column 'nih_patient' holds no number of a patient", "correct it", strange))
        elif by_name is not None:
            apart = [lines[i] for i, (one, other) in enumerate(zip(patients, by_name, strict=True)) if one != other]
            if apart:
                wrong.append(Fault("mapping", "'nih_patient' and 'nih_image' name two patients", "correct one", apart))
    errors = [_float(text) for text in read_texts(columns.get("pixel_mse"), len(table))]
    texts = [image or "" for image in images]
    doubtful = frozenset(image for image, error in zip(texts, errors, strict=True) if not error <= DOUBTFUL)
    refuse(path, [*faults, *wrong, *_clashes(texts, patients, lines)])
    return PatientMap(path, table.sha256, _known(texts, patients), doubtful)


def _from_names(names: Sequence[str], places: Sequence[int], what: str) -> tuple[list[str], list[Fault]]:
    """Patients out of NIH's file names."""
    found = [_NIH_IMAGE.fullmatch(name) for name in names]
    strange = [places[i] for i, match in enumerate(found) if match is None]
    patients = [person("nih", match[1]) if match else "" for match in found]
    if not strange:
        return patients, []
    example = names[[match is None for match in found].index(True)][:80]
    where = f", such as {what} {strange[0]}" if what != "line" else ""
    sentence = f"{example!r} is no file of ChestX-ray14{where}"
    return patients, [Fault("mapping", sentence, "they are named 00000013_004.png", strange if what == "line" else ())]


def _clashes(images: Sequence[str], patients: Sequence[str], lines: Sequence[int]) -> list[Fault]:
    first: dict[str, str] = {}
    apart = [i for i, image in enumerate(images) if image and first.setdefault(image, patients[i]) != patients[i]]
    if not apart:
        return []
    are = verb(len(apart), "is", "are")
    what = f"{count(len(apart), 'image')} {are} given two patients, such as {images[apart[0]]}"
    return [Fault("mapping", what, "keep the one that is right", [lines[i] for i in apart] if lines else ())]


def _known(images: Sequence[str], patients: Sequence[str]) -> dict[str, str]:
    return {image: patient for image, patient in zip(images, patients, strict=True) if image and patient}


def _float(text: str | None) -> float:
    try:
        return float(text) if text else 0.0
    except ValueError:
        return math.inf
