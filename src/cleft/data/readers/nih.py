"""Reads ChestX-ray14 of the NIH Clinical Center: `Data_Entry_2017_v2020.csv`, or its first edition of 2017.

Images lie in `images/`, or as the twelve archives unpack, in `images_001/images/` to `images_012/images/`. The header
of the table has brackets that its commas tear apart (`OriginalImage[Width,Height]`); that is how it is published.

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
"""Part to the list of its images. What is for choosing is drawn from the first."""

_PUBLISHED_LISTS = {"train": "86,524", "test": "25,596"}
_EXAMPLES = 3
TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
"""The label table by name, the newer edition first."""

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
"""In the order of the paper that published them; the table writes `Pleural_Thickening`."""

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
        config: `root` is the folder that holds the table, or the one above it; `table` its name; `views` are the
            projections to keep, by default AP and PA, which are all.
        check_files: Whether to look for every image on disk. False reads the table without its images.

    Returns:
        One record per image in the table's order. Every finding is present or absent; labels were found in reports by
        a program. Its id is the file name, its patient the number without leading zeros; `split` is that of the
        official lists where both lie beside the table or in the root.

    Raises:
        ConfigError: If `data.root` is not set.
        DataError: If the table or the images are not there, a cell is not what it should be, or more than
            `data.max_bad` of the images are missing.
    """
    root = require_root(config)
    folders = folders_below(root)
    editions = [name for name in TABLES if find_file(folders, name)]
    path = find_table(root, folders, config.table or (editions or TABLES)[0])
    table, faults = read_table(path)
    lacking = missing_columns(
        table.columns, [_IMAGE, _LABELS, _PATIENT, "Patient Age", "Patient Gender", "View Position"]
    )
    if lacking:
        raise_faults(path, lacking)
    ids, patients, sound, wrong_names = _read_names(table)
    codes, wrong_labels = _read_labels(table)
    lists = read_lists([path.parent, *folders], ids)
    sexes, odd_sexes = read_sexes(table.columns[_SEXES], len(table))
    ages, odd_ages = read_ages(_in_years(table.columns[_AGES]), len(table))
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
        splits=lists.splits,
    )
    parsed = ParsedTable(
        dataset="nih",
        table=table,
        rows=rows,
        valid=np.flatnonzero(sound),
        views=config.views or VIEWS,
        present=present,
        notes=[
            *_census(table, ids, patients, sound),
            *lists.notes,
            *unknown_value_notes(odd_sexes, odd_ages),
        ],
        faults=[*faults, *wrong_names, *wrong_labels, *lists.faults],
        sources={**table.source, **lists.sources},
        people="nih",
    )
    return build_result(parsed, config, check_files=check_files)


class Lists(NamedTuple):
    """What the official lists say."""

    splits: list[str | None] | None
    """Part of each row, `[N]`; None where there are no lists."""
    notes: list[str]
    faults: list[Fault]
    sources: Mapping[str, str]


def read_lists(folders: Sequence[Path], ids: Sequence[str]) -> Lists:
    """Reads the official lists, where they are; one of them alone is a fault.

    Args:
        folders: Where they may lie.
        ids: Images of the table, `[N]`.
    """
    paths = {
        part: next((folder / name for folder in folders if (folder / name).is_file()), None)
        for part, name in LISTS.items()
    }
    absent = [LISTS[part] for part, path in paths.items() if path is None]
    if len(absent) == len(LISTS):
        told = f"no {' and no '.join(absent)}: the official split is not known (data.split=patients does without)"
        return Lists(None, [told], [], {})
    if absent:
        what = f"one of the two official lists is there, and no {absent[0]}"
        return Lists(None, [], [Fault("lists", what, "copy it beside the other")], {})
    part_of: dict[str, str] = {}
    sources: dict[str, str] = {}
    both: list[str] = []
    for part, path in paths.items():
        assert path is not None
        raw = path.read_bytes()
        sources[path.name] = hashlib.sha256(raw).hexdigest()
        for name in raw.decode("utf-8", errors="replace").split():
            if part_of.setdefault(name, part) != part:
                both.append(name)
    splits = [part_of.get(name) for name in ids]
    counts = Counter(splits)
    counted = ", ".join(
        f"{part} {count(counts[part], 'image')} (published: {_PUBLISHED_LISTS[part]})" for part in LISTS
    )
    notes = [f"official lists: {counted}"]
    strangers = len(part_of.keys() - set(ids))
    if strangers:
        are = verb(strangers, "is", "are")
        notes.append(f"{count(strangers, 'image')} of the official lists {are} not in the table")
    if counts[None]:
        stay = "[is|are] in neither official list; under data.split=given [it stays|they stay] out"
        notes.append(f"{count(counts[None], 'image')} {agree(counts[None], stay)}")
    faults: list[Fault] = []
    if both:
        images_are = f"{count(len(both), 'image')} {verb(len(both), 'is', 'are')}"
        what = f"{images_are} in both official lists, such as {', '.join(both[:_EXAMPLES])}"
        faults.append(Fault("lists", what, "copy the lists again"))
    return Lists(splits, notes, faults, sources)


def locate_images(folders: Sequence[Path], ids: Sequence[str]) -> tuple[list[str], NDArray[np.bool_]]:
    """Finds every image in `images`, `images_001/images` to `images_012/images`, or `images_001` to `images_012`.

    Args:
        folders: Where these may lie.
        ids: File names, `[N]`.

    Returns:
        The path of each image, and whether it is there, `[N]` each.

    Raises:
        DataError: If none of them is anywhere.
    """
    place: dict[str, str] = {}
    homes = list(dict.fromkeys(_image_folders(folders)))
    for home in homes:
        with os.scandir(home) as entries:
            for entry in entries:
                if entry.name.endswith(".png") and entry.is_file():
                    place.setdefault(entry.name, home)
    present = np.array([name in place for name in ids], dtype=bool)
    if ids and not present.any():
        tried = ", ".join(homes[:4]) or ", ".join(str(folder / "images") for folder in folders[:2])
        raise DataError(
            f"none of {count(len(ids), 'image')} is on disk; looked in {tried}; set data.root to the folder with "
            "images/ or images_001/ to images_012/",
            reason="missing",
        )
    otherwise = homes[0] if homes else str(folders[0] / "images")
    return [f"{place.get(name, otherwise)}/{name}" for name in ids], present


def _image_folders(folders: Sequence[Path]) -> list[str]:
    found: list[Path] = []
    for folder in folders:
        batches = sorted(folder.glob("images_[0-9][0-9][0-9]"))
        found += [folder / "images", folder / "images" / "images"]
        found += [place for batch in batches for place in (batch / "images", batch)]
    return [str(path) for path in found if path.is_dir()]


def _read_names(table: Table) -> tuple[list[str], list[str], NDArray[np.bool_], list[Fault]]:
    """Ids, patients, which rows have both, and what is wrong with the others."""
    ids = table.columns[_IMAGE].texts()
    matches = [_NAME.fullmatch(name) for name in ids]
    numbers = [clean_id(value) for value in table.columns[_PATIENT].values]
    people = [canonical_patient("nih", number) if number.isdecimal() else "" for number in numbers]
    patients = [people[i] for i in table.columns[_PATIENT].index.tolist()]
    strange = [row for row, match in enumerate(matches) if match is None]
    unnamed = [row for row, patient in enumerate(patients) if not patient]
    apart = [
        row
        for row, (match, patient) in enumerate(zip(matches, patients, strict=True))
        if match and patient and match[1].lstrip("0") != patient.lstrip("0")
    ]
    sound = np.ones(len(ids), dtype=bool)
    faults: list[Fault] = []
    for rows, reason, what, remedy in (
        (strange, "path", f"column {_IMAGE!r} holds no file name of ChestX-ray14", "they are named 00000013_004.png"),
        (unnamed, "patient", f"column {_PATIENT!r} holds no number", "fill in the number of the patient"),
        (apart, "patient", f"{_IMAGE!r} and {_PATIENT!r} name two patients", "keep the row that is right"),
    ):
        if rows:
            sound[rows] = False
            faults.append(Fault(reason, what, remedy, table.lines[rows].tolist()))
    return ids, patients, sound, faults


def _read_labels(table: Table) -> tuple[NDArray[np.int8], list[Fault]]:
    """Codes `[N, C + 1]`, `No Finding` last; each distinct set of labels is read once."""
    column = table.columns[_LABELS]
    place = {name: c for c, name in enumerate((*FINDINGS, NO_FINDING))}
    known = np.zeros((max(1, len(column.values)), len(place)), dtype=np.int8)
    unknown: dict[str, list[int]] = {}
    contradicting: list[int] = []
    for i, text in enumerate(column.values):
        names = [name.strip().replace("_", " ") for name in text.split("|")]
        for name in names:
            if name in place:
                known[i, place[name]] = 1
            else:
                unknown.setdefault(name, []).append(i)
        if NO_FINDING in names and len(names) > 1:
            contradicting.append(i)
    faults = [
        Fault(
            "label",
            f"column {_LABELS!r} names {name[:40]!r}{suggestion(name, place)}",
            remedy,
            _lines(table, column, at),
        )
        for name, at in unknown.items()
        for remedy in [f"known are {', '.join(place)}, several with | between them"]
    ]
    if contradicting:
        what = f"{NO_FINDING!r} stands beside a finding"
        faults.append(Fault("label", what, "keep what is right", _lines(table, column, contradicting)))
    return known[column.index], faults


def _lines(table: Table, column: Column, values: Sequence[int]) -> list[int]:
    return table.lines[column.rows_of(values)].tolist()


def _in_years(column: Column) -> Column:
    """Ages as the first edition writes them, `058Y` or `013M`, in years."""
    return Column([_years(value.strip()) for value in column.values], column.index)


def _years(text: str) -> str:
    found = _AGE.fullmatch(text)
    return f"{int(found[1]) * _YEARS[found[2]]:g}" if found else text


def _census(table: Table, ids: Sequence[str], patients: Sequence[str], sound: NDArray[np.bool_]) -> list[str]:
    """Counts beside the published ones, and which edition of the labels this is."""
    people = {patient for patient in patients if patient}
    name = table.path.name
    notes = [f"{name} holds {count(len(set(ids)), 'image')} of {count(len(people), 'patient')} ({_PUBLISHED})"]
    units = _have_units(table.columns[_AGES].values)
    edition = "2017, whose ages carry a unit" if units else "v2020" if "v2020" in name else "unknown by its name"
    return [*notes, f"edition of the labels: {edition}"]


def _have_units(ages: Iterable[str]) -> bool:
    ends = Counter(age.strip()[-1:].isdecimal() for age in ages if age.strip())
    return ends[False] > ends[True]
