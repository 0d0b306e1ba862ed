"""Reads NIH ChestX-ray14: `Data_Entry_2017_v2020.csv`, twelve folders of PNG files, and the official lists.

The header has brackets that a comma tears apart (`OriginalImage[Width,Height]`); that is the true header, and as many
cells stand in each row. Findings are one cell, joined by `|`; what it does not name counts as absent, as everybody who
measures on these data counts it.

Shapes: `N` rows, `C` findings.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cleft.config import DataConfig
from cleft.data.cells import read_ages, read_sexes, read_texts
from cleft.data.faults import Fault, missing_columns, nearest, refuse
from cleft.data.people import person
from cleft.data.rows import Rows
from cleft.data.scan import Scan, find_table, make_scan, oddities, require_root
from cleft.data.tables import Column, Table, scan_table
from cleft.errors import DataError

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
    "Pleural_Thickening",
    "Hernia",
    "No Finding",
)
"""As the table writes them, in the order of the paper that published them."""

PEOPLE = "nih"
VIEWS = ("AP", "PA")
TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
"""The second is the first release: other labels for some images, and impossible ages."""
LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}

_PUBLISHED = "112,120 images of 30,805 patients"
_COLUMNS = ("Image Index", "Finding Labels", "Patient ID")
_FACTS = ("Patient Age", "Patient Gender", "View Position")
_DAYS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


def scan_nih(config: DataConfig, *, check_files: bool = True) -> Scan:
    """Reads what can be read and collects what is wrong with the rest.

    Args:
        config: `root` is the folder that holds the table, its lists and the images: in `images`, in
            `images_001/images` to `images_012/images` as the archives unpack, or beside the table.
        check_files: Whether to look for every image on disk. False reads a table without its images.

    Returns:
        One record per image in the table's order, named by its file; `split` says `train` or `test` where the
        official lists are there; patients are numbers, as RSNA's mapping names the same people.

    Raises:
        ConfigError: If `data.root` is not set.
        DataError: If there is no such table, or nothing in it can be read.
    """
    root = require_root(config)
    path = find_table(root, [root], config.table or _table_of(root))
    table, faults = scan_table(path, wanted=lambda name: name in (*_COLUMNS, *_FACTS))
    refuse(path, missing_columns(table.header, _COLUMNS))
    ids = table.columns["Image Index"].texts()
    codes, wrong = _read_findings(table, table.columns["Finding Labels"])
    splits, listed, list_notes = _read_lists(root, ids)
    sexes, odd_sexes = read_sexes(table.columns.get("Patient Gender"), len(table))
    ages, odd_ages = read_ages(_in_years(table.columns.get("Patient Age")), len(table))
    images, present = _locate(root, ids) if check_files else ([f"{root}/images/{name}" for name in ids], None)
    rows = Rows(
        ids=ids,
        images=images,
        findings=tuple(name.replace("_", " ") for name in FINDINGS),
        codes=codes,
        patients=[person(PEOPLE, text) for text in table.columns["Patient ID"].texts()],
        studies=[None] * len(table),
        views=read_texts(table.columns.get("View Position"), len(table)),
        sexes=sexes,
        ages=ages,
        captions=[None] * len(table),
        lines=table.lines,
        splits=splits,
    )
    usable, nameless = _usable(table, rows)
    scan = make_scan(
        "nih",
        table,
        rows,
        usable,
        config,
        views=config.views or VIEWS,
        are_present=None if present is None else lambda kept: present[kept],
        notes=[_census(path.name, rows), *list_notes, *oddities(odd_sexes, odd_ages)],
        faults=[*faults, *wrong, *nameless],
        sources=listed,
    )
    return scan._replace(reading=replace(scan.reading, people=PEOPLE))


def _table_of(root: Path) -> str:
    """The newer of the tables that are there, packed or not."""
    names = [name for table in TABLES for name in (table, f"{table}.gz", f"{table}.zip")]
    return next((name for name in names if (root / name).is_file()), TABLES[0])


def _read_findings(table: Table, column: Column) -> tuple[NDArray[np.int8], list[Fault]]:
    """Codes `[N, C]`, 1 or 0; each distinct text is taken apart once."""
    place = {name.casefold(): c for c, name in enumerate(FINDINGS)}
    codes = np.zeros((len(column.values), len(FINDINGS)), dtype=np.int8)
    strange: dict[str, list[int]] = {}
    for row, text in enumerate(column.values):
        for name in text.split("|"):
            c = place.get(name.strip().casefold())
            if c is None:
                strange.setdefault(name.strip(), []).append(row)
            else:
                codes[row, c] = 1
    faults = [
        Fault(
            "label",
            f"column 'Finding Labels' holds {name[:40]!r}" if name else "column 'Finding Labels' names nothing",
            f"allowed are the fourteen findings and No Finding, joined by |{nearest(name, FINDINGS)}",
            table.lines[column.rows_of(rows)].tolist(),
        )
        for name, rows in strange.items()
    ]
    return codes[column.index], faults


def _usable(table: Table, rows: Rows) -> tuple[NDArray[np.int64], list[Fault]]:
    """Rows that name an image inside the folder, a patient and a finding."""
    bad = [row for row, name in enumerate(rows.ids) if not name or "/" in name or "\\" in name or name.startswith(".")]
    nobody = [row for row, patient in enumerate(rows.patients) if not patient]
    faults: list[Fault] = []
    if bad:
        what = f"column 'Image Index' holds {rows.ids[bad[0]][:80]!r}"
        faults.append(
            Fault("path", what, "it is a plain file name such as 00000001_000.png", table.lines[bad].tolist())
        )
    if nobody:
        faults.append(Fault("patient", "column 'Patient ID' is empty", "fill it in", table.lines[nobody].tolist()))
    good = {*np.flatnonzero((rows.codes == 1).any(axis=1)).tolist()} - {*bad, *nobody}
    return np.array(sorted(good), dtype=np.int64), faults


def _read_lists(root: Path, ids: Sequence[str]) -> tuple[list[str | None] | None, dict[str, str], list[str]]:
    """The official split of each image, the lists' digests, and what is to be said about them.

    Raises:
        DataError: If an image stands in both lists, or one of the two is missing.
    """
    there = {part: root / name for part, name in LISTS.items() if (root / name).is_file()}
    if not there:
        return (
            None,
            {},
            [f"no {' and no '.join(LISTS.values())}: the official split is not known (data.split=patients)"],
        )
    if len(there) == 1:
        missing = next(name for part, name in LISTS.items() if part not in there)
        raise DataError(f"{root} holds one of the two official lists; copy {missing} beside it", reason="table")
    part_of: dict[str, str] = {}
    sources: dict[str, str] = {}
    for part, path in there.items():
        data = path.read_bytes()
        sources[path.name] = hashlib.sha256(data).hexdigest()
        for name in data.decode("utf-8", "replace").split():
            if part_of.setdefault(name, part) != part:
                raise DataError(
                    f"{name[:80]} stands in both {' and '.join(LISTS.values())}; copy them again", reason="table"
                )
    splits = [part_of.get(name) for name in ids]
    counts = Counter(splits)
    notes = [f"official lists: {counts['train']:,} images for training and validation, {counts['test']:,} for testing"]
    if counts[None]:
        notes.append(f"{counts[None]:,} images stand in neither official list and in no part of data.split=given")
    return splits, sources, notes


def _in_years(column: Column | None) -> Column | None:
    """The first release writes `058Y`, `011M` or `009D`."""
    if column is None:
        return None

    def years(text: str) -> str:
        text = text.strip()
        number, unit = text[:-1], text[-1:].upper()
        return str(float(number) * _DAYS[unit]) if unit in _DAYS and number.isdigit() else text

    return Column([years(text) for text in column.values], column.index)


def _locate(root: Path, ids: Sequence[str]) -> tuple[list[str], NDArray[np.bool_]]:
    """Where each image lies, and whether it is there; every folder that may hold images is listed once."""
    folders = [root / "images", *sorted(root.glob("images_*/images")), *sorted(root.glob("images_*")), root]
    place: dict[str, str] = {}
    for folder in folders:
        if folder.is_dir():
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.endswith(".png") and entry.is_file():
                        place.setdefault(entry.name, entry.path)
    images = [place.get(name, f"{root}/images/{name}") for name in ids]
    return images, np.array([name in place for name in ids], dtype=bool)


def _census(name: str, rows: Rows) -> str:
    return f"{name} holds {len(rows.ids):,} images of {len(set(rows.patients)):,} patients (published: {_PUBLISHED})"
