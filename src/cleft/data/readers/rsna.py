"""Reads the RSNA Pneumonia Detection Challenge of 2018, as Kaggle gives it out (stage 2).

Expects `stage_2_train_labels.csv`, one row per box, and `stage_2_train_images/<patientId>.dcm`. An image is positive if
any of its rows is. `patientId` names an image; who the patient is, says a mapping to NIH.
Projection, sex and age stand in the DICOM headers, which are read once and kept.

Shapes: `R` rows of the table, `N` images.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from cleft.config import DataConfig
from cleft.data.images.cache import read_dataset_headers
from cleft.data.images.dicom_headers import Header, header_notes
from cleft.data.tables.csv import Table, read_table
from cleft.data.tables.faults import Fault, missing_columns, raise_faults
from cleft.data.tables.paths import are_files, is_junk
from cleft.data.tables.patients import canonical_patient
from cleft.data.tables.reading import (
    ParsedTable,
    ReaderResult,
    build_result,
    find_file,
    find_table,
    folders_below,
    require_root,
)
from cleft.data.tables.rows import BLANK, Rows, read_codes, read_texts
from cleft.errors import DataError
from cleft.files import read_limited
from cleft.grammar import count, share, verb
from cleft.strict_json import parse_json

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
    "images of one person may stand on both sides of a split (leakage: unknown); set data.patient_mapping"
)
BOX = ("x", "y", "width", "height")
CLASSES = {"Normal": 1, "No Lung Opacity / Not Normal": 0, "Lung Opacity": 0}
"""Detailed class to whether the image is normal."""

_OPACITY = "Lung Opacity"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NEGATIVE, POSITIVE, NORMAL = "No Pneumonia", "Pneumonia", "Normal"
"""An image without boxes need not be normal, and 70 % are not; `Normal` is known where the detailed classes are."""

TABLE = "stage_2_train_labels.csv"
DETAILS = "stage_2_detailed_class_info.csv"
IMAGES = "stage_2_train_images"
UNLABELLED = "stage_2_test_images"
_PROBES = 8
_PUBLISHED = "published: 26,684 images, 6,012 of them positive with 9,555 boxes"


def read_rsna(config: DataConfig, *, check_files: bool = True) -> ReaderResult:
    """Reads RSNA.

    Args:
        config: `root` is the folder of the download, or the one above it; `table` the label table, by default
            `stage_2_train_labels.csv`; `mapping` says who the patients are; `views` are the projections to keep, by
            default all.
        check_files: Whether to look for every image on disk and to read its header. False reads tables alone, so that
            projection, sex and age stay unknown.

    Returns:
        One record per image, in the order in which the table first names them. Its id is the `patientId`. `Pneumonia`
        and `No Pneumonia` are both told, one of them 1; `Normal` where the detailed classes lie beside the table.

    Raises:
        ConfigError: If `data.root` is not set.
        DataError: If a table or the images are not there, rows of an image disagree, or more than `data.max_invalid` of
            the images are missing or not in the mapping.
    """
    root = require_root(config)
    folders = folders_below(root)
    path = find_table(root, folders, config.table or TABLE)
    table, faults = read_table(path)
    lacking = missing_columns(table.columns, ["patientId", *BOX, "Target"])
    if lacking:
        raise_faults(path, lacking)
    labels, wrong = read_labels(table)
    homes = list(dict.fromkeys([path.parent, *folders]))
    detailed = find_file(homes, DETAILS)
    details = Details() if detailed is None else read_details(detailed, labels)
    patients = assign_patients(find_mapping(config.patient_mapping, homes), labels.names, config.max_invalid)
    folder = _locate(homes, labels.names) if check_files else str(path.parent / IMAGES)
    files = [f"{folder}/{name}.dcm" for name in labels.names]
    present = are_files(files) if check_files else None
    headers = {} if present is None else read_dataset_headers(config, compress(files, present.tolist()))
    seen = [headers.get(file, Header()) for file in files]
    told = [1 - labels.target, labels.target, *([] if details.normal is None else [details.normal])]
    rows = Rows(
        ids=labels.names,
        images=files,
        findings=(NEGATIVE, POSITIVE, NORMAL)[: len(told)],
        codes=np.stack(told, axis=1).astype(np.int8),
        patients=patients.names,
        views=[header.view for header in seen],
        sexes=[header.sex for header in seen],
        ages=[header.age for header in seen],
        lines=labels.lines,
        scanners=[header.manufacturer for header in seen],
    )
    parsed = ParsedTable(
        dataset="rsna",
        table=table,
        rows=rows,
        valid=np.flatnonzero(labels.sound & patients.known),
        views=config.views,
        present=present,
        notes=[
            _census(path.name, labels),
            *details.notes,
            *patients.notes,
            *header_notes(headers.values()),
            *_unlabelled(homes),
        ],
        faults=[*faults, *wrong, *patients.faults],
        rejected={**({"duplicate": labels.repeated} if labels.repeated else {}), **patients.rejected},
        sources={**table.source, **details.sources, **patients.sources},
        people=patients.people,
        cautions=patients.cautions,
    )
    return build_result(parsed, config, check_files=check_files)


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
        raise DataError(
            f"no mapping at {given}; set data.patient_mapping to the file, or leave it out", reason="mapping"
        )
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
        part = f"{len(strangers) / len(images):.1%}, data.max_invalid allows {max_bad:.1%}"
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
    raise_faults(path, [*faults, *_clashes(images, patients, [])])
    return PatientMap(path, hashlib.sha256(raw).hexdigest(), _known(images, patients), frozenset())


def _read_csv(path: Path) -> PatientMap:
    table, faults = read_table(path)
    columns = {name.casefold(): column for name, column in table.columns.items()}
    images = read_texts(columns.get("patientid"), len(table))
    numbers, names = (read_texts(columns.get(name), len(table)) for name in ("nih_patient", "nih_image"))
    if "patientid" not in columns or not {"nih_patient", "nih_image"} & columns.keys():
        what = f"no columns 'patientId' and 'nih_patient'; found {list(table.columns)}"
        raise_faults(path, [Fault("mapping", what, "give one of the forms in docs/datasets/rsna.md", (1,)), *faults])
    lines = table.lines.tolist()
    by_name, wrong = (
        _from_names([name or "" for name in names], lines, "line") if "nih_image" in columns else (None, [])
    )
    patients = by_name or ["" for _ in lines]
    if "nih_patient" in columns:
        patients = [canonical_patient("nih", number or "") for number in numbers]
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
    raise_faults(path, [*faults, *wrong, *_clashes(texts, patients, lines)])
    return PatientMap(path, table.sha256, _known(texts, patients), doubtful)


def _from_names(names: Sequence[str], places: Sequence[int], what: str) -> tuple[list[str], list[Fault]]:
    """Patients out of NIH's file names."""
    found = [_NIH_IMAGE.fullmatch(name) for name in names]
    strange = [places[i] for i, match in enumerate(found) if match is None]
    patients = [canonical_patient("nih", match[1]) if match else "" for match in found]
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


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The label table by image, in the order in which it first names each."""

    names: list[str]
    target: NDArray[np.int8]
    """1 or 0, `[N]`."""
    lines: NDArray[np.int64]
    """Line of the first row of each, `[N]`."""
    sound: NDArray[np.bool_]
    """Whether nothing is wrong with any row of it, `[N]`."""
    boxes: int
    repeated: list[str]
    """Lines of rows that say once more what an earlier one says."""


@dataclass(frozen=True, kw_only=True)
class Details:
    """What the detailed classes add."""

    normal: NDArray[np.int8] | None = None
    """1, 0 or `BLANK`, `[N]`; None where nobody says."""
    notes: Sequence[str] = ()
    sources: Mapping[str, str] = field(default_factory=dict[str, str])


def read_labels(table: Table) -> tuple[Labels, list[Fault]]:
    """Takes the rows of an image together: it is positive if any of them is.

    Returns:
        The images, and faults: a name that is none, a Target other than 0 and 1, rows of an image that disagree, a box
        that is no four numbers or stands where Target is 0.
    """
    names = table.columns["patientId"].texts()
    codes, wrong = read_codes(table, ["Target"])
    target: list[int] = codes[:, 0].tolist()
    boxes = list(zip(*(_numbers(table, side) for side in BOX), strict=True))
    first: dict[str, int] = {}
    for row, name in enumerate(names):
        first.setdefault(name, row)
    # Labels elsewhere may also be -1 or empty; here they may not.
    faults = [fault._replace(remedy="allowed are 1 and 0") for fault in wrong]
    bad = set[str]()

    def check(holds: Callable[[int], bool], reason: str, what: str, remedy: str) -> None:
        rows = [row for row in range(len(names)) if holds(row)]
        bad.update(names[row] for row in rows)
        if rows and not (reason == "label" and wrong):
            faults.append(Fault(reason, what, remedy, table.lines[rows].tolist()))

    said = {name: set[int]() for name in first}
    for name, value in zip(names, target, strict=True):
        said[name].add(value)
    misnamed = {name for name in first if _NAME.fullmatch(name) is None}
    check(lambda row: names[row] in misnamed, "path", "'patientId' is no name of a file", "give the id of an image")
    check(lambda row: target[row] not in (0, 1), "label", "'Target' is neither 0 nor 1", "allowed are 1 and 0")
    disagree = {name for name, values in said.items() if {0, 1} <= values}
    what = "rows of the same image disagree on Target"
    check(lambda row: names[row] in disagree, "duplicate", what, "keep those that are right")
    what, remedy = "a box is no four numbers", "fill in x, y, width and height, or leave all four empty"
    check(lambda row: not (_is_box(boxes[row]) or _is_empty(boxes[row])), "box", what, remedy)
    what, remedy = "a box where Target is 0", "empty the box, or set Target to 1"
    check(lambda row: target[row] == 0 and _is_box(boxes[row]) and names[row] not in disagree, "box", what, remedy)
    told: dict[object, int] = {}
    for row, name in enumerate(names):
        told.setdefault((name, target[row], boxes[row] if _is_box(boxes[row]) else None), row)
    once = set(told.values())
    labels = Labels(
        names=list(first),
        target=np.array([max(said[name]) == 1 for name in first], dtype=np.int8),
        lines=table.lines[list(first.values())],
        sound=np.array([name not in bad for name in first], dtype=bool),
        boxes=sum(_is_box(boxes[row]) for row in once),
        repeated=[f"line {table.lines[row]}" for row in range(len(names)) if row not in once],
    )
    return labels, faults


def read_details(path: Path, labels: Labels) -> Details:
    """Reads the detailed classes.

    Raises:
        DataError: If a class is unknown, or contradicts another row or the label table.
    """
    table, faults = read_table(path)
    raise_faults(path, [*faults, *missing_columns(table.columns, ["patientId", "class"])])
    names, classes = table.columns["patientId"].texts(), table.columns["class"].texts()
    target = dict(zip(labels.names, labels.target.tolist(), strict=True))
    said: dict[str, str] = {}
    strange: list[int] = []
    apart: list[int] = []
    for row, (image, name) in enumerate(zip(names, classes, strict=True)):
        if name not in CLASSES:
            strange.append(row)
        elif said.setdefault(image, name) != name or (name == _OPACITY) != target.get(image, name == _OPACITY):
            apart.append(row)
    what = f"'class' is none of {', '.join(repr(name) for name in CLASSES)}"
    wrong = [Fault("label", what, "correct it", table.lines[strange].tolist())] * bool(strange)
    what = "the class of an image contradicts another row of it, or its Target in the label table"
    wrong += [Fault("label", what, "keep what is right", table.lines[apart].tolist())] * bool(apart)
    raise_faults(path, wrong)
    normal = np.array([CLASSES.get(said.get(name, ""), BLANK) for name in labels.names], dtype=np.int8)
    silent = int((normal == BLANK).sum())
    they = verb(silent, "it is", "they are")
    unnamed = f"{path.name} does not name {count(silent, 'image')}; whether {they} normal is unknown"
    notes = [unnamed] if silent else []
    return Details(normal=normal, notes=notes, sources={path.name: table.sha256})


def _numbers(table: Table, name: str) -> list[float | None]:
    """Cells of a column as numbers: None where empty, NaN where no number."""
    column = table.columns[name]
    values = [_number(value.strip()) for value in column.values]
    return [values[i] for i in column.index.tolist()]


def _number(text: str) -> float | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        return math.nan


def _is_box(box: Sequence[float | None]) -> bool:
    return all(side is not None and math.isfinite(side) for side in box)


def _is_empty(box: Sequence[float | None]) -> bool:
    return all(side is None for side in box)


def _locate(homes: Sequence[Path], names: Sequence[str]) -> str:
    """Finds the folder of the images from a handful of them.

    Raises:
        DataError: If none of the probed images is anywhere.
    """
    probes = names[:: max(1, len(names) // _PROBES)]
    tried = [place for home in homes for place in (home / IMAGES, home / IMAGES / IMAGES)]
    for folder in tried:
        if any((folder / f"{name}.dcm").is_file() for name in probes):
            return str(folder)
    raise DataError(
        f"none of {count(len(probes), 'image')} probed is on disk; looked for {probes[0]}.dcm in "
        f"{', '.join(str(folder) for folder in tried[:4])}; set data.root to the folder that holds {IMAGES}",
        reason="missing",
    )


def _census(name: str, labels: Labels) -> str:
    positive = int(labels.target.sum())
    return (
        f"{name} holds {count(len(labels.names), 'image')}, {positive:,} positive with "
        f"{count(labels.boxes, 'box', 'boxes')} ({_PUBLISHED})"
    )


def _unlabelled(homes: Sequence[Path]) -> list[str]:
    for home in homes:
        number = sum(1 for path in (home / UNLABELLED).glob("*.dcm") if not is_junk(path.name))
        if number:
            are = verb(number, "is", "are")
            return [f"{count(number, 'image')} in {UNLABELLED} {are} without labels and {are} not read"]
    return []
