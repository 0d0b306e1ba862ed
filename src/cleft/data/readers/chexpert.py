"""Reads CheXpert-v1.0: the small release, the full release with its batch folders, and the test set.

Expects a label table (`train.csv`, `valid.csv`, `train_cheXbert.csv`, …) whose `Path` column ends in
`train/patientNNNNN/studyK/viewJ_frontal.jpg`. What stands in front of that need not be the folder on disk and is
dropped; the images are then looked for where the releases have them (`cleft.data.readers.chexpert_folders`). Labels are
those of the table, or of another table whose rows are matched by path (`cleft.data.readers.chexpert_labels`).

Shapes: `N` rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cleft.config import DataConfig
from cleft.data.marks import is_drawn
from cleft.data.readers.chexpert_folders import locate_images, table_folders
from cleft.data.readers.chexpert_labels import LABEL_TABLES, Labels, take_labels
from cleft.data.readers.chexpert_paths import Paths, read_paths
from cleft.data.tables.csv import Column, Table, scan_table
from cleft.data.tables.faults import Fault, missing_columns, refuse
from cleft.data.tables.files import are_files
from cleft.data.tables.rows import Rows, read_ages, read_codes, read_sexes, read_texts
from cleft.data.tables.scan import Scan, find_table, make_scan, oddities, require_root
from cleft.errors import DataError
from cleft.grammar import count
from cleft.types import Reading

FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""In the order of the table."""

VIEWS = ("AP", "PA")
"""Projections that are kept unless `data.views` says otherwise: 17 frontal images are LL or RL."""

CAPTION_ORDER = (*FINDINGS[1:], FINDINGS[0])
"""In the order in which the authors' captions name them: `No Finding` comes last."""

_PUBLISHED = {
    "train": "223,414 images of 64,540 patients",
    "valid": "234 images of 200 patients",
    "val": "234 images of 200 patients",
    "test": "668 images of 500 patients",
}


def read_chexpert(config: DataConfig, *, check_files: bool = True) -> Reading:
    """Reads one label table of CheXpert.

    Args:
        config: `root` is the folder that holds the table, or the folder above it; `table` its name, by default
            `train.csv`; `labels` where the findings come from; `views` are the projections to keep, by default AP
            and PA.
        check_files: Whether to look for every image on disk. False reads a table without its images.

    Returns:
        One record per image in the table's order, with -1 still in its labels. Its id is the path from `train/`
        on; its view is AP, PA, LL, RL, lateral, or frontal where the table does not say which.

    Raises:
        ConfigError: If `data.root` is not set.
        DataError: If the table or its images are not there, a cell is not what it should be, or more than
            `data.max_bad` of the images are missing.
    """
    scan = scan_chexpert(config, check_files=check_files)
    refuse(scan.path, scan.faults)
    return scan.reading


def scan_chexpert(config: DataConfig, *, check_files: bool = True) -> Scan:
    """Reads what can be read and collects what is wrong with the rest; see `read_chexpert`."""
    root = require_root(config)
    path = find_table(root, table_folders(root), config.table or "train.csv")
    table, faults = scan_table(path)
    if "Path" not in table.columns:
        refuse(path, missing_columns(table.columns, ["Path", *(FINDINGS if config.labels == "table" else ())]))
    paths, wrong_paths = read_paths(table)
    labels, wrong_labels = _read_labels(config, root, table, paths.ids)
    known = labels.known[paths.usable]
    unlabelled = [paths.ids[row] for row in paths.usable[~known].tolist()]
    sexes, odd_sexes = read_sexes(table.columns.get("Sex"), len(table))
    ages, odd_ages = read_ages(table.columns.get("Age"), len(table))
    locate = locate_images if check_files else _beside_table
    rows = Rows(
        ids=paths.ids,
        images=locate(root, path, paths.ids),
        findings=labels.findings,
        codes=labels.codes,
        patients=paths.patients,
        studies=paths.studies,
        views=_read_views(table.columns.get("AP/PA"), paths.sides),
        sexes=sexes,
        ages=ages,
        captions=[None] * len(table),
        lines=table.lines,
    )
    return make_scan(
        "chexpert",
        table,
        rows,
        paths.usable[known],
        config,
        views=config.views or VIEWS,
        are_present=(lambda kept: are_files([rows.images[row] for row in kept.tolist()])) if check_files else None,
        notes=[*_census(path.name, rows, paths, drawn=is_drawn(root)), *labels.notes, *oddities(odd_sexes, odd_ages)],
        faults=[*faults, *wrong_labels, *wrong_paths],
        rejected={"no-label": unlabelled} if unlabelled else {},
        sources=labels.sources,
    )


def _read_labels(config: DataConfig, root: Path, table: Table, ids: Sequence[str]) -> tuple[Labels, list[Fault]]:
    """Labels of the image list itself, or of the table that `data.labels` names."""
    if config.labels == "table":
        findings = tuple(name for name in FINDINGS if name in table.columns)
        codes, wrong = read_codes(table, findings)
        lacking = missing_columns(table.columns, FINDINGS)
        return Labels(findings, codes, np.ones(len(table), dtype=bool), {}, []), [*lacking, *wrong]
    try:
        path = find_table(root, table_folders(root), LABEL_TABLES[config.labels])
    except DataError as error:
        sentence = f"{error}; or set data.labels=table for the labels of the image list"
        raise DataError(sentence, reason="table") from error
    return take_labels(path, config.labels, ids, FINDINGS), []


def _read_views(column: Column | None, sides: list[str]) -> list[str | None]:
    """The table's projection; where it has none, what the file name says."""
    return [text or side or None for text, side in zip(read_texts(column, len(sides)), sides, strict=True)]


def _beside_table(root: Path, table: Path, ids: Sequence[str]) -> list[str]:
    folder = str(table.parent)
    return [f"{folder}/{name}" for name in ids]


def _census(name: str, rows: Rows, paths: Paths, *, drawn: bool) -> list[str]:
    """Counts beside the published ones, of images that were not drawn. Subsets are welcome."""
    patients = {rows.patients[row] for row in paths.usable.tolist()}
    parts = Counter(rows.ids[row].partition("/")[0] for row in paths.usable.tolist())
    published = "; ".join(f"published for {part}: {_PUBLISHED[part]}" for part in parts)
    beside = "drawn phantoms" if drawn else published
    notes = [f"{name} holds {count(len(paths.usable), 'image')} of {count(len(patients), 'patient')} ({beside})"]
    if len(paths.prefixes) > 1:
        prefixes = ", ".join(f"{prefix or 'none'} ({number:,})" for prefix, number in paths.prefixes.most_common())
        notes.append(f"{name} mixes release prefixes: {prefixes}; they were dropped")
    return notes
