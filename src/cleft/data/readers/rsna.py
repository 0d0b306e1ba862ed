"""RSNA Pneumonia Detection Challenge of 2018, as distributed by Kaggle (stage 2).

Expects `stage_2_train_labels.csv`, one row per bounding box, and `stage_2_train_images/<patientId>.dcm`. An image is
positive if any of its rows is. View position, sex and age come from the DICOM headers, which are read once and cached.

`patientId` names an image; a mapping to ChestX-ray14 identifies the patients. Accepted are RSNA's
`pneumonia-challenge-dataset-mappings_2018.json` (records with `subset_img_id` and NIH's file name as `img_id`), a table
of matches found by comparing pixels (`patientId`, `nih_image`, `nih_patient`, `pixel_mse`), and a table of `patientId`
and `nih_patient`.

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

TABLE = "stage_2_train_labels.csv"
DETAILS = "stage_2_detailed_class_info.csv"
IMAGES = "stage_2_train_images"
UNLABELLED = "stage_2_test_images"
MAPPINGS = (
    "pneumonia-challenge-dataset-mappings_2018.json",
    *(f"{name}.csv{end}" for name in ("nih_patients", "rsna_nih_match") for end in ("", ".gz")),
)
"""File names of mappings to NIH's patients that are found without `data.patient_mapping`, RSNA's own first."""

NEGATIVE, POSITIVE, NORMAL = "No Pneumonia", "Pneumonia", "Normal"
"""Findings. 70 % of the images without boxes are abnormal; `Normal` is known only from the detailed classes."""

CLASSES = {"Normal": 1, "No Lung Opacity / Not Normal": 0, "Lung Opacity": 0}
"""Whether an image is normal, by its detailed class."""

BOX = ("x", "y", "width", "height")
DOUBTFUL = 5.0
"""Mean squared pixel difference above which a match found by comparing pixels may be wrong."""

_OPACITY = "Lung Opacity"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NIH_IMAGE = re.compile(r"([0-9]{8})_[0-9]{3}\.png")
_PROBES = 8
_PUBLISHED = "published: 26,684 images, 6,012 of them positive with 9,555 boxes"
_NO_MAPPING = (
    "no mapping to NIH's patients: `patientId` names an image, so every image counts as a separate patient, and images "
    "of one patient may be in different splits (leakage: unknown); set data.patient_mapping"
)


def read_rsna(config: DataConfig, *, check_files: bool = True) -> ReaderResult:
    """Reads the RSNA challenge.

    Args:
        config: `root` is the folder of the download, or its parent; `table` the label table, by default
            `stage_2_train_labels.csv`; `patient_mapping` the mapping to NIH's patients; `views` the view positions to
            keep, by default all.
        check_files: Whether to check that every image exists and to read its header. False reads the tables only, and
            view position, sex and age are unknown.

    Returns:
        One record per image, in the order of the table. The id is the `patientId`. Exactly one of `Pneumonia` and
        `No Pneumonia` is 1; `Normal` is known if the detailed classes are next to the table. Faulty rows are in
        `faults`.

    Raises:
        ConfigError: If `data.root` is not set.
        DataError: If a table or the mapping is missing or cannot be read, or none of the images exists.
    """
    root = require_root(config)
    folders = folders_below(root)
    path = find_table(root, folders, config.table or TABLE)
    table, faults = read_table(path)
    raise_faults(path, missing_columns(table.columns, ["patientId", *BOX, "Target"]))
    labels, wrong = read_labels(table)
    searched = list(dict.fromkeys([path.parent, *folders]))
    detailed = find_file(searched, DETAILS)
    details = Details() if detailed is None else read_details(detailed, labels)
    patients = assign_patients(find_mapping(config.patient_mapping, searched), labels.names, config.max_invalid)
    folder = _find_images(searched, labels.names) if check_files else str(path.parent / IMAGES)
    files = [f"{folder}/{name}.dcm" for name in labels.names]
    present = are_files(files) if check_files else None
    headers = {} if present is None else read_dataset_headers(config, compress(files, present.tolist()))
    image_headers = [headers.get(file, Header()) for file in files]
    codes = [1 - labels.target, labels.target, *([] if details.normal is None else [details.normal])]
    rows = Rows(
        ids=labels.names,
        images=files,
        findings=(NEGATIVE, POSITIVE, NORMAL)[: len(codes)],
        codes=np.stack(codes, axis=1).astype(np.int8),
        patients=patients.names,
        views=[header.view for header in image_headers],
        sexes=[header.sex for header in image_headers],
        ages=[header.age for header in image_headers],
        lines=labels.lines,
        scanners=[header.manufacturer for header in image_headers],
    )
    parsed = ParsedTable(
        dataset="rsna",
        table=table,
        rows=rows,
        valid=np.flatnonzero(labels.valid & patients.known),
        views=config.views,
        present=present,
        notes=[
            _size_note(path.name, labels),
            *details.notes,
            *patients.notes,
            *header_notes(headers.values()),
            *_unlabelled_note(searched),
        ],
        faults=[*faults, *wrong, *patients.faults],
        rejected={**({"duplicate": labels.repeated} if labels.repeated else {}), **patients.rejected},
        sources={**table.source, **details.sources, **patients.sources},
        patient_dataset=patients.dataset,
        cautions=patients.cautions,
    )
    return build_result(parsed, config, check_files=check_files)


class PatientMap(NamedTuple):
    """A mapping of images to NIH's patients."""

    path: Path
    sha256: str
    patients: Mapping[str, str]
    """Number of the patient, as text without leading zeros, by image."""
    doubtful: frozenset[str]
    """Images whose match may be wrong."""


def find_mapping(given: Path | None, folders: Sequence[Path]) -> PatientMap | None:
    """Reads the given mapping, or else one that is in one of the folders; None if there is none.

    Raises:
        DataError: If the file does not exist, has another form, or contradicts itself.
    """
    if given is not None and not given.is_file():
        raise DataError(
            f"no mapping at {given}; set data.patient_mapping to an existing file, or omit it", reason="mapping"
        )
    found = (folder / name for name in MAPPINGS for folder in folders if (folder / name).is_file())
    path = given or next(found, None)
    if path is None:
        return None
    return _read_json(path) if path.suffix == ".json" else _read_csv(path)


@dataclass(frozen=True, kw_only=True)
class Patients:
    """The patient of each image."""

    dataset: str
    """Dataset that the patient ids belong to, as `Reading.patient_dataset`."""
    names: list[str]
    """Patient of each image, `[N]`."""
    known: NDArray[np.bool_]
    """Whether the mapping has the image, `[N]`; all True without a mapping."""
    notes: list[str]
    cautions: tuple[str, ...] = ()
    faults: Sequence[Fault] = ()
    rejected: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    sources: Mapping[str, str] = field(default_factory=dict[str, str])


def assign_patients(mapping: PatientMap | None, images: list[str], max_invalid: float) -> Patients:
    """Returns the patient of every image.

    Args:
        mapping: Without a mapping every image counts as a separate patient, and a caution says so.
        images: Ids of the images, `[N]`.
        max_invalid: Share of images that may be missing from the mapping. They are rejected as `no-patient`; more of
            them are a fault.
    """
    if mapping is None:
        everything = np.ones(len(images), dtype=bool)
        return Patients(dataset="", names=images, known=everything, notes=[_NO_MAPPING], cautions=(_NO_MAPPING,))
    unmapped = [image for image in images if image not in mapping.patients]
    names = [mapping.patients.get(image, image) for image in images]
    mapped = len(images) - len(unmapped)
    patients = len(set(names)) - len(unmapped)
    notes = [f"{mapping.path.name} names {count(patients, 'patient')} of NIH for {count(mapped, 'image')}"]
    doubtful = len(mapping.doubtful.intersection(images))
    if doubtful:
        are = verb(doubtful, "is", "are")
        notes.append(f"{doubtful:,} of these matches {are} doubtful (pixel_mse above {DOUBTFUL:g})")
    faults: list[Fault] = []
    if len(unmapped) > max_invalid * len(images):
        part = f"{len(unmapped) / len(images):.1%}, data.max_invalid allows {max_invalid:.1%}"
        images_are = f"{share(len(unmapped), len(images), 'image')} {verb(len(unmapped), 'is', 'are')}"
        what = f"{images_are} not in {mapping.path.name} ({part}), such as "
        faults.append(
            Fault("no-patient", what + ", ".join(unmapped[:3]), "set data.patient_mapping to a mapping of these images")
        )
    return Patients(
        dataset="nih",
        names=names,
        known=np.array([image in mapping.patients for image in images], dtype=bool),
        notes=notes,
        faults=faults,
        rejected={"no-patient": unmapped} if unmapped else {},
        sources={f"{mapping.path.name} (patients)": mapping.sha256},
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
            f"{path} is not a list of records with subset_img_id and img_id; is it RSNA's mapping file?",
            reason="mapping",
        )
    images, names = [image for image, _ in pairs], [name for _, name in pairs]
    patients, faults = _patients_of_names(names, range(len(names)), "record")
    raise_faults(path, [*faults, *_conflicts(images, patients, [])])
    return PatientMap(path, hashlib.sha256(raw).hexdigest(), _complete_pairs(images, patients), frozenset())


def _read_csv(path: Path) -> PatientMap:
    table, faults = read_table(path)
    columns = {name.casefold(): column for name, column in table.columns.items()}
    images = read_texts(columns.get("patientid"), len(table))
    numbers, names = (read_texts(columns.get(name), len(table)) for name in ("nih_patient", "nih_image"))
    if "patientid" not in columns or not {"nih_patient", "nih_image"} & columns.keys():
        what = f"no columns 'patientId' and 'nih_patient'; found {list(table.columns)}"
        raise_faults(path, [Fault("mapping", what, "use one of the forms in docs/datasets/rsna.md", (1,)), *faults])
    lines = table.lines.tolist()
    by_name, wrong = (
        _patients_of_names([name or "" for name in names], lines, "line") if "nih_image" in columns else (None, [])
    )
    patients = by_name or ["" for _ in lines]
    if "nih_patient" in columns:
        patients = [canonical_patient("nih", number or "") for number in numbers]
        wrong_lines = [lines[i] for i, patient in enumerate(patients) if not patient.isdecimal()]
        if wrong_lines:
            what = "column 'nih_patient' holds no number of a patient"
            wrong.append(Fault("mapping", what, "correct it", wrong_lines))
        elif by_name is not None:
            conflicting = [
                lines[i] for i, (one, other) in enumerate(zip(patients, by_name, strict=True)) if one != other
            ]
            if conflicting:
                what = "'nih_patient' and 'nih_image' name two patients"
                wrong.append(Fault("mapping", what, "correct one of them", conflicting))
    errors = [_float(text) for text in read_texts(columns.get("pixel_mse"), len(table))]
    texts = [image or "" for image in images]
    doubtful = frozenset(image for image, error in zip(texts, errors, strict=True) if not error <= DOUBTFUL)
    raise_faults(path, [*faults, *wrong, *_conflicts(texts, patients, lines)])
    return PatientMap(path, table.sha256, _complete_pairs(texts, patients), doubtful)


def _patients_of_names(names: Sequence[str], places: Sequence[int], what: str) -> tuple[list[str], list[Fault]]:
    """Returns the patients of NIH's file names, and a fault of other names."""
    matches = [_NIH_IMAGE.fullmatch(name) for name in names]
    wrong = [places[i] for i, match in enumerate(matches) if match is None]
    patients = [canonical_patient("nih", match[1]) if match else "" for match in matches]
    if not wrong:
        return patients, []
    example = names[[match is None for match in matches].index(True)][:80]
    where = f", such as {what} {wrong[0]}" if what != "line" else ""
    message = f"{example!r} is not a file of ChestX-ray14{where}"
    return patients, [Fault("mapping", message, "they are named 00000013_004.png", wrong if what == "line" else ())]


def _conflicts(images: Sequence[str], patients: Sequence[str], lines: Sequence[int]) -> list[Fault]:
    first: dict[str, str] = {}
    conflicting = [i for i, image in enumerate(images) if image and first.setdefault(image, patients[i]) != patients[i]]
    if not conflicting:
        return []
    are = verb(len(conflicting), "has", "have")
    what = f"{count(len(conflicting), 'image')} {are} two patients, such as {images[conflicting[0]]}"
    return [Fault("mapping", what, "keep the correct one", [lines[i] for i in conflicting] if lines else ())]


def _complete_pairs(images: Sequence[str], patients: Sequence[str]) -> dict[str, str]:
    return {image: patient for image, patient in zip(images, patients, strict=True) if image and patient}


def _float(text: str | None) -> float:
    try:
        return float(text) if text else 0.0
    except ValueError:
        return math.inf


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The label table by image, in the order in which images first occur."""

    names: list[str]
    target: NDArray[np.int8]
    """1 positive or 0 negative, `[N]`."""
    lines: NDArray[np.int64]
    """Line of the first row of each image, `[N]`."""
    valid: NDArray[np.bool_]
    """Whether none of its rows has a fault, `[N]`."""
    boxes: int
    """Number of boxes."""
    repeated: list[str]
    """Lines of rows that repeat an earlier one."""


@dataclass(frozen=True, kw_only=True)
class Details:
    """The detailed classes."""

    normal: NDArray[np.int8] | None = None
    """1, 0 or `BLANK`, `[N]`; None without detailed classes."""
    notes: Sequence[str] = ()
    sources: Mapping[str, str] = field(default_factory=dict[str, str])


def read_labels(table: Table) -> tuple[Labels, list[Fault]]:
    """Combines the rows of each image, which is positive if any of them is.

    Returns:
        The images, and faults: an invalid `patientId`, a Target other than 0 and 1, rows of an image that disagree, a
        box that is not four numbers, or a box with Target 0.
    """
    names = table.columns["patientId"].texts()
    codes, wrong = read_codes(table, ["Target"])
    target: list[int] = codes[:, 0].tolist()
    boxes = list(zip(*(_numbers(table, side) for side in BOX), strict=True))
    first: dict[str, int] = {}
    for row, name in enumerate(names):
        first.setdefault(name, row)
    # Other datasets may have -1 or empty cells; this one may not.
    faults = [fault._replace(remedy="allowed are 1 and 0") for fault in wrong]
    faulty = set[str]()

    def check(holds: Callable[[int], bool], reason: str, what: str, remedy: str) -> None:
        rows = [row for row in range(len(names)) if holds(row)]
        faulty.update(names[row] for row in rows)
        if rows and not (reason == "label" and wrong):
            faults.append(Fault(reason, what, remedy, table.lines[rows].tolist()))

    targets = {name: set[int]() for name in first}
    for name, value in zip(names, target, strict=True):
        targets[name].add(value)
    invalid = {name for name in first if _NAME.fullmatch(name) is None}
    check(lambda row: names[row] in invalid, "path", "'patientId' is not a valid file name", "use the id of an image")
    check(lambda row: target[row] not in (0, 1), "label", "'Target' is neither 0 nor 1", "allowed are 1 and 0")
    disagree = {name for name, values in targets.items() if {0, 1} <= values}
    what = "rows of the same image disagree on Target"
    check(lambda row: names[row] in disagree, "duplicate", what, "keep the correct rows")
    what, remedy = "a box is not four numbers", "fill in x, y, width and height, or leave all four empty"
    check(lambda row: not (_is_box(boxes[row]) or _is_empty(boxes[row])), "box", what, remedy)
    what, remedy = "a box where Target is 0", "empty the box, or set Target to 1"
    check(lambda row: target[row] == 0 and _is_box(boxes[row]) and names[row] not in disagree, "box", what, remedy)
    first_row: dict[object, int] = {}
    for row, name in enumerate(names):
        first_row.setdefault((name, target[row], boxes[row] if _is_box(boxes[row]) else None), row)
    distinct = set(first_row.values())
    labels = Labels(
        names=list(first),
        target=np.array([max(targets[name]) == 1 for name in first], dtype=np.int8),
        lines=table.lines[list(first.values())],
        valid=np.array([name not in faulty for name in first], dtype=bool),
        boxes=sum(_is_box(boxes[row]) for row in distinct),
        repeated=[f"line {table.lines[row]}" for row in range(len(names)) if row not in distinct],
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
    class_of: dict[str, str] = {}
    unknown: list[int] = []
    conflicting: list[int] = []
    for row, (image, name) in enumerate(zip(names, classes, strict=True)):
        if name not in CLASSES:
            unknown.append(row)
        elif class_of.setdefault(image, name) != name or (name == _OPACITY) != target.get(image, name == _OPACITY):
            conflicting.append(row)
    what = f"'class' is not one of {', '.join(repr(name) for name in CLASSES)}"
    wrong = [Fault("label", what, "correct it", table.lines[unknown].tolist())] * bool(unknown)
    what = "the class of an image contradicts another row of it, or its Target in the label table"
    wrong += [Fault("label", what, "keep the correct one", table.lines[conflicting].tolist())] * bool(conflicting)
    raise_faults(path, wrong)
    normal = np.array([CLASSES.get(class_of.get(name, ""), BLANK) for name in labels.names], dtype=np.int8)
    absent = int((normal == BLANK).sum())
    they = verb(absent, "it is", "they are")
    note = f"{path.name} does not list {count(absent, 'image')}; whether {they} normal is unknown"
    return Details(normal=normal, notes=[note] if absent else [], sources=table.source)


def _numbers(table: Table, name: str) -> list[float | None]:
    """Returns the cells of a column as numbers: None where empty, NaN where not a number."""
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


def _find_images(searched: Sequence[Path], names: Sequence[str]) -> str:
    """Returns the folder of the images; it is found by probing a few of them.

    Raises:
        DataError: If none of the probed images exists.
    """
    probes = names[:: max(1, len(names) // _PROBES)]
    tried = [path for folder in searched for path in (folder / IMAGES, folder / IMAGES / IMAGES)]
    for folder in tried:
        if any((folder / f"{name}.dcm").is_file() for name in probes):
            return str(folder)
    raise DataError(
        f"none of {count(len(probes), 'image')} probed is on disk; looked for {probes[0]}.dcm in "
        f"{', '.join(str(folder) for folder in tried[:4])}; set data.root to the folder that contains {IMAGES}",
        reason="missing",
    )


def _size_note(name: str, labels: Labels) -> str:
    positive = int(labels.target.sum())
    return (
        f"{name} holds {count(len(labels.names), 'image')}, {positive:,} positive with "
        f"{count(labels.boxes, 'box', 'boxes')} ({_PUBLISHED})"
    )


def _unlabelled_note(searched: Sequence[Path]) -> list[str]:
    for folder in searched:
        number = sum(1 for path in (folder / UNLABELLED).glob("*.dcm") if not is_junk(path.name))
        if number:
            are = verb(number, "is", "are")
            return [f"{count(number, 'image')} in {UNLABELLED} {are} without labels and {are} not read"]
    return []
