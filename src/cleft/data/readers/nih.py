"""ChestX-ray14 of the NIH Clinical Center: `Data_Entry_2017_v2020.csv`, or its first edition of 2017.

Images are in `images/`, or where the twelve archives unpack, in `images_001/images/` to `images_012/images/`. The
published header has commas inside brackets (`OriginalImage[Width,Height]`), which become separate columns.

Shapes: `N` rows, `C` findings.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cleft.config import DataConfig
from cleft.data.tables.csv import Column, Table, read_table
from cleft.data.tables.faults import Fault, missing_columns, raise_faults, suggestion
from cleft.data.tables.patients import canonical_patient, clean_id
from cleft.data.tables.reading import (
    ParsedTable,
    ReaderResult,
    build_result,
    find_file,
    find_table,
    folders_below,
    require_root,
    unknown_value_notes,
)
from cleft.data.tables.rows import Rows, read_ages, read_sexes, read_texts
from cleft.errors import DataError
from cleft.grammar import agree, count, verb

LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
"""Official list of images by split. Validation images are drawn from the first."""

_PUBLISHED_LISTS = {"train": "86,524", "test": "25,596"}
_EXAMPLES = 3

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
"""Names of the label table, the newer edition first."""

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural Thickening",
    "Hernia",
)
"""In the order of the dataset's paper; the table spells one of them `Pleural_Thickening`."""

NO_FINDING = "No Finding"
VIEWS = ("AP", "PA")
_IMAGE, _LABELS, _PATIENT, _VISIT = "Image Index", "Finding Labels", "Patient ID", "Follow-up #"
_AGES, _SEXES, _VIEW = "Patient Age", "Patient Gender", "View Position"
_COLUMNS = (_IMAGE, _LABELS, _PATIENT, _AGES, _SEXES, _VIEW)
_NAME = re.compile(r"([0-9]{8})_[0-9]{3}\.png")
_AGE = re.compile(r"0*([0-9]+)([YMD]?)")
_YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "D": 1 / 365.25}
_PUBLISHED = "published: 112,120 images of 30,805 patients"


def read_nih(config: DataConfig, *, check_files: bool = True) -> ReaderResult:
    """Reads ChestX-ray14.

    Args:
        config: `root` is the folder that contains the table, or its parent; `table` the table's name; `views` the view
            positions to keep, by default AP and PA (there are no others).
        check_files: Whether to check that every image exists. False reads the table without its images.

    Returns:
        One record per image in the table's order. Every finding is present or absent; the labels were extracted from
        reports by a program. The id is the file name, the patient the number without leading zeros; `split` follows
        the official lists if both are next to the table or in the root. Faulty rows are in `faults`.

    Raises:
        ConfigError: If `data.root` is not set.
        DataError: If there is no table, it cannot be read, or none of its images exists.
    """
    root = require_root(config)
    folders = folders_below(root)
    editions = [name for name in TABLES if find_file(folders, name)]
    path = find_table(root, folders, config.table or (editions or TABLES)[0])
    table, faults = read_table(path)
    raise_faults(path, missing_columns(table.columns, _COLUMNS))
    ids, patients, valid, wrong_names = _read_names(table)
    codes, wrong_labels = _read_labels(table)
    official = read_official_split([path.parent, *folders], ids)
    sexes, unknown_sexes = read_sexes(table.columns[_SEXES], len(table))
    ages, unknown_ages = read_ages(_in_years(table.columns[_AGES]), len(table))
    visits = read_texts(table.columns.get(_VISIT), len(table))
    files, present = locate_images([path.parent, *folders], ids) if check_files else (ids, None)
    rows = Rows(
        ids=ids,
        images=files,
        findings=(*FINDINGS, NO_FINDING),
        codes=codes,
        patients=patients,
        studies=[f"{patient}/{visit}" if visit else None for patient, visit in zip(patients, visits, strict=True)],
        views=read_texts(table.columns[_VIEW], len(table)),
        sexes=sexes,
        ages=ages,
        lines=table.lines,
        splits=official.splits,
    )
    parsed = ParsedTable(
        dataset="nih",
        table=table,
        rows=rows,
        valid=np.flatnonzero(valid),
        views=config.views or VIEWS,
        present=present,
        notes=[
            *_size_notes(table, ids, patients),
            *official.notes,
            *unknown_value_notes(unknown_sexes, unknown_ages),
        ],
        faults=[*faults, *wrong_names, *wrong_labels, *official.faults],
        sources={**table.source, **official.sources},
        patient_dataset="nih",
    )
    return build_result(parsed, config, check_files=check_files)


class OfficialSplit(NamedTuple):
    """The split of the official lists."""

    splits: list[str | None] | None
    """`train`, `test` or None for each row, `[N]`; None without lists."""
    notes: list[str]
    faults: list[Fault]
    sources: Mapping[str, str]


def read_official_split(folders: Sequence[Path], ids: Sequence[str]) -> OfficialSplit:
    """Reads the official lists if they exist; one of them alone is a fault.

    Args:
        folders: Where to look for them.
        ids: Image ids of the table, `[N]`.
    """
    paths = {split: find_file(folders, name) for split, name in LISTS.items()}
    absent = [LISTS[split] for split, path in paths.items() if path is None]
    if len(absent) == len(LISTS):
        note = f"no {' and no '.join(absent)}: no official split (data.split=patients needs none)"
        return OfficialSplit(None, [note], [], {})
    if absent:
        what = f"only one of the two official lists exists: no {absent[0]}"
        return OfficialSplit(None, [], [Fault("lists", what, "copy it next to the other")], {})
    split_of: dict[str, str] = {}
    sources: dict[str, str] = {}
    both: list[str] = []
    for split, path in paths.items():
        assert path is not None
        raw = path.read_bytes()
        sources[path.name] = hashlib.sha256(raw).hexdigest()
        for name in raw.decode("utf-8", errors="replace").split():
            if split_of.setdefault(name, split) != split:
                both.append(name)
    splits = [split_of.get(name) for name in ids]
    counts = Counter(splits)
    counted = ", ".join(
        f"{split} {count(counts[split], 'image')} (published: {_PUBLISHED_LISTS[split]})" for split in LISTS
    )
    notes = [f"official lists: {counted}"]
    unknown = len(split_of.keys() - set(ids))
    if unknown:
        are = verb(unknown, "is", "are")
        notes.append(f"{count(unknown, 'image')} of the official lists {are} not in the table")
    if counts[None]:
        text = "[is|are] in neither official list; data.split=given leaves [it|them] out"
        notes.append(f"{count(counts[None], 'image')} {agree(counts[None], text)}")
    faults: list[Fault] = []
    if both:
        images_are = f"{count(len(both), 'image')} {verb(len(both), 'is', 'are')}"
        what = f"{images_are} in both official lists, such as {', '.join(both[:_EXAMPLES])}"
        faults.append(Fault("lists", what, "copy the lists again"))
    return OfficialSplit(splits, notes, faults, sources)


def locate_images(folders: Sequence[Path], ids: Sequence[str]) -> tuple[list[str], NDArray[np.bool_]]:
    """Finds the images in `images`, `images_001/images` to `images_012/images`, or `images_001` to `images_012`.

    Args:
        folders: Folders that may contain these.
        ids: File names, `[N]`.

    Returns:
        The path of each image, and whether it exists, `[N]` each.

    Raises:
        DataError: If none of them exists.
    """
    folder_of: dict[str, str] = {}
    candidates = list(dict.fromkeys(_image_folders(folders)))
    for home in candidates:
        with os.scandir(home) as entries:
            for entry in entries:
                if entry.name.endswith(".png") and entry.is_file():
                    folder_of.setdefault(entry.name, home)
    present = np.array([name in folder_of for name in ids], dtype=bool)
    if ids and not present.any():
        tried = ", ".join(candidates[:4]) or ", ".join(str(folder / "images") for folder in folders[:2])
        raise DataError(
            f"none of {count(len(ids), 'image')} is on disk; looked in {tried}; set data.root to the folder with "
            "images/ or images_001/ to images_012/",
            reason="missing",
        )
    otherwise = candidates[0] if candidates else str(folders[0] / "images")
    return [f"{folder_of.get(name, otherwise)}/{name}" for name in ids], present


def _image_folders(folders: Sequence[Path]) -> list[str]:
    found: list[Path] = []
    for folder in folders:
        batches = sorted(folder.glob("images_[0-9][0-9][0-9]"))
        found += [folder / "images", folder / "images" / "images"]
        found += [path for batch in batches for path in (batch / "images", batch)]
    return [str(path) for path in found if path.is_dir()]


def _read_names(table: Table) -> tuple[list[str], list[str], NDArray[np.bool_], list[Fault]]:
    """Returns ids, patients, which rows have both, and faults of the others."""
    ids = table.columns[_IMAGE].texts()
    matches = [_NAME.fullmatch(name) for name in ids]
    numbers = [clean_id(value) for value in table.columns[_PATIENT].values]
    canonical = [canonical_patient("nih", number) if number.isdecimal() else "" for number in numbers]
    patients = [canonical[i] for i in table.columns[_PATIENT].index.tolist()]
    unnamed = [row for row, match in enumerate(matches) if match is None]
    without_patient = [row for row, patient in enumerate(patients) if not patient]
    conflicting = [
        row
        for row, (match, patient) in enumerate(zip(matches, patients, strict=True))
        if match and patient and match[1].lstrip("0") != patient.lstrip("0")
    ]
    valid = np.ones(len(ids), dtype=bool)
    faults: list[Fault] = []
    for rows, reason, what, remedy in (
        (unnamed, "path", f"column {_IMAGE!r} holds no file name of ChestX-ray14", "they are named 00000013_004.png"),
        (without_patient, "patient", f"column {_PATIENT!r} holds no number", "fill in the number of the patient"),
        (conflicting, "patient", f"{_IMAGE!r} and {_PATIENT!r} name two patients", "keep the correct row"),
    ):
        if rows:
            valid[rows] = False
            faults.append(Fault(reason, what, remedy, table.lines[rows].tolist()))
    return ids, patients, valid, faults


def _read_labels(table: Table) -> tuple[NDArray[np.int8], list[Fault]]:
    """Returns codes `[N, C + 1]`, `No Finding` last, and faults. Each distinct set of labels is parsed once."""
    column = table.columns[_LABELS]
    position = {name: c for c, name in enumerate((*FINDINGS, NO_FINDING))}
    codes = np.zeros((max(1, len(column.values)), len(position)), dtype=np.int8)
    unknown: dict[str, list[int]] = {}
    contradicting: list[int] = []
    for i, text in enumerate(column.values):
        names = [name.strip().replace("_", " ") for name in text.split("|")]
        for name in names:
            if name in position:
                codes[i, position[name]] = 1
            else:
                unknown.setdefault(name, []).append(i)
        if NO_FINDING in names and len(names) > 1:
            contradicting.append(i)
    faults = [
        Fault(
            "label",
            f"column {_LABELS!r} names {name[:40]!r}{suggestion(name, position)}",
            remedy,
            table.lines_of(column, at),
        )
        for name, at in unknown.items()
        for remedy in [f"allowed are {', '.join(position)}, several with | between them"]
    ]
    if contradicting:
        what = f"{NO_FINDING!r} is combined with a finding"
        faults.append(Fault("label", what, "keep the correct one", table.lines_of(column, contradicting)))
    return codes[column.index], faults


def _in_years(column: Column) -> Column:
    """Converts the ages of the first edition, such as `058Y` or `013M`, to years."""
    return Column([_years(value.strip()) for value in column.values], column.index)


def _years(text: str) -> str:
    found = _AGE.fullmatch(text)
    return f"{int(found[1]) * _YEARS[found[2]]:g}" if found else text


def _size_notes(table: Table, ids: Sequence[str], patients: Sequence[str]) -> list[str]:
    """Number of images and patients, next to the published numbers, and the edition of the labels."""
    distinct = {patient for patient in patients if patient}
    name = table.path.name
    notes = [f"{name} holds {count(len(set(ids)), 'image')} of {count(len(distinct), 'patient')} ({_PUBLISHED})"]
    units = _have_units(table.columns[_AGES].values)
    edition = "2017 (ages with a unit)" if units else "v2020" if "v2020" in name else "unknown"
    return [*notes, f"edition of the labels: {edition}"]


def _have_units(ages: Iterable[str]) -> bool:
    ends = Counter(age.strip()[-1:].isdecimal() for age in ages if age.strip())
    return ends[False] > ends[True]
