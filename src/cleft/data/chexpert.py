"""Reads CheXpert-v1.0: the small release, the full release with its batch folders, and the test set.

Expects a label table (`train.csv`, `valid.csv`, `train_cheXbert.csv`, …) whose `Path` column ends in
`train/patientNNNNN/studyK/viewJ_frontal.jpg`. What stands in front of that need not be the folder on disk and is
dropped; the images are then looked for where the releases have them (`cleft.data.chexpert_folders`).

Shapes: `N` rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cleft.config import DataConfig
from cleft.data.cells import read_ages, read_codes, read_sexes, read_texts
from cleft.data.chexpert_folders import locate_images, table_folders
from cleft.data.faults import Fault, missing_columns, refuse
from cleft.data.files import are_files
from cleft.data.rows import Rows
from cleft.data.scan import Scan, find_table, make_scan, oddities, require_root
from cleft.data.tables import Column, Table, scan_table
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

_PATH = re.compile(
    r"(?P<prefix>.*/)?(?P<id>(?:train|valid|test)/(?P<patient>patient\d+)/(?P<study>study\d+)/"
    r"view\d+_(?P<side>frontal|lateral)\.(?:jpe?g|png))"
)
_PUBLISHED = {
    "train": "223,414 images of 64,540 patients",
    "valid": "234 images of 200 patients",
    "test": "668 images of 500 patients",
}


def read_chexpert(config: DataConfig, *, check_files: bool = True) -> Reading:
    """Reads one label table of CheXpert.

    Args:
        config: `root` is the folder that holds the table, or the folder above it; `table` its name, by default
            `train.csv`; `views` are the projections to keep, by default AP and PA.
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
    lacking = missing_columns(table.columns, ["Path", *FINDINGS])
    if "Path" not in table.columns:
        refuse(path, lacking)
    findings = tuple(name for name in FINDINGS if name in table.columns)
    codes, wrong_codes = read_codes(table, findings)
    paths, wrong_paths = _read_paths(table)
    sexes, odd_sexes = read_sexes(table.columns.get("Sex"), len(table))
    ages, odd_ages = read_ages(table.columns.get("Age"), len(table))
    locate = locate_images if check_files else _beside_table
    rows = Rows(
        ids=paths.ids,
        images=locate(root, path, paths.ids),
        findings=findings,
        codes=codes,
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
        paths.usable,
        config,
        views=config.views or VIEWS,
        are_present=(lambda kept: are_files([rows.images[row] for row in kept.tolist()])) if check_files else None,
        notes=[*_census(path.name, rows, paths), *oddities(odd_sexes, odd_ages)],
        faults=[*faults, *lacking, *wrong_codes, *wrong_paths],
    )


class _Paths(NamedTuple):
    """What the `Path` column says; entries of a row that says nothing are empty."""

    ids: list[str]
    patients: list[str]
    studies: list[str | None]
    sides: list[str]
    usable: NDArray[np.int64]
    prefixes: Counter[str]


def _read_paths(table: Table) -> tuple[_Paths, list[Fault]]:
    texts = table.columns["Path"].texts()
    matches = [_PATH.fullmatch(text.replace("\\", "/")) for text in texts]
    wrong = [row for row, match in enumerate(matches) if match is None]
    parts = [
        match.group("prefix", "id", "patient", "study", "side") if match else (None, "", "", "", "")
        for match in matches
    ]
    paths = _Paths(
        ids=[part[1] or "" for part in parts],
        patients=[part[2] or "" for part in parts],
        studies=[f"{part[2]}/{part[3]}" for part in parts],
        sides=[part[4] or "" for part in parts],
        usable=np.array([row for row, match in enumerate(matches) if match], dtype=np.int64),
        prefixes=Counter(part[0] or "" for part in parts if part[1]),
    )
    if not wrong:
        return paths, []
    what = f"column 'Path' holds {texts[wrong[0]][:80]!r}"
    remedy = "CheXpert's end in train/patientNNNNN/studyK/viewJ_frontal.jpg; for other images set data.dataset=manifest"
    return paths, [Fault("path", what, remedy, table.lines[wrong].tolist())]


def _read_views(column: Column | None, sides: list[str]) -> list[str | None]:
    """The table's projection; where it has none, what the file name says."""
    return [text or side or None for text, side in zip(read_texts(column, len(sides)), sides, strict=True)]


def _beside_table(root: Path, table: Path, ids: Sequence[str]) -> list[str]:
    folder = str(table.parent)
    return [f"{folder}/{name}" for name in ids]


def _census(name: str, rows: Rows, paths: _Paths) -> list[str]:
    """Counts beside the published ones. A difference is news, not an error: subsets are welcome."""
    patients = {rows.patients[row] for row in paths.usable.tolist()}
    parts = Counter(rows.ids[row].partition("/")[0] for row in paths.usable.tolist())
    published = "; ".join(f"published for {part}: {_PUBLISHED[part]}" for part in parts)
    notes = [f"{name} holds {len(paths.usable):,} images of {len(patients):,} patients ({published})"]
    if len(paths.prefixes) > 1:
        prefixes = ", ".join(f"{prefix or 'none'} ({count:,})" for prefix, count in paths.prefixes.most_common())
        notes.append(f"{name} mixes release prefixes: {prefixes}; they were dropped")
    return notes
