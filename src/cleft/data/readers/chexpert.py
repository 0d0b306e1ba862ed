"""CheXpert-v1.0: the small release, the full release with its batch folders, and the test set.

Expects a label table (`train.csv`, `valid.csv`, `train_cheXbert.csv`, …) whose `Path` column ends in
`train/patientNNNNN/studyK/viewJ_frontal.jpg`. Tables disagree on what precedes `train/` (`CheXpert-v1.0-small/`,
`CheXpert-v1.0/`, nothing), so that prefix is dropped and the rest is the image's id.

Layouts on disk: the small release is `CheXpert-v1.0-small/train/patientNNNNN/…`. The full release is a folder with
`CheXpert-v1.0 batch 1 (validate & csv)`, which holds the tables and `valid/`, and further batches that hold
`patientNNNNN/…` without a `train/` level.

Labels come from the table itself, or from those of CheXbert or visualCheXbert. Their tables list the images of the full
release in any order; rows are matched by path, never by row number.

Shapes: `N` rows, `C` findings.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cleft.config import DataConfig
from cleft.data.tables.csv import Column, Table, read_table
from cleft.data.tables.faults import Fault, missing_columns, raise_faults
from cleft.data.tables.paths import is_synthetic
from cleft.data.tables.reading import (
    ParsedTable,
    ReaderResult,
    build_result,
    find_table,
    require_root,
    unknown_value_notes,
)
from cleft.data.tables.rows import BLANK, Rows, read_ages, read_codes, read_sexes, read_texts
from cleft.data.text.captions import CAPTION_ORDER
from cleft.errors import DataError
from cleft.grammar import count, verb

LABEL_TABLES = {"chexbert": "train_cheXbert.csv", "visualchexbert": "train_visualCheXbert.csv"}
"""File name of the label table, by the value of `data.label_source`."""

_BINARY = "visualchexbert"
"""Source whose labels are 0 and 1 only."""

_RELEASES = ("CheXpert-v1.0-small", "CheXpert-v1.0")
_BATCHES = "CheXpert-v1.0 batch *"
_CONTAINER = "chexpertchestxrays*"
_PROBES = 8
_PATH = re.compile(
    r"(?P<prefix>.*/)?(?P<id>(?:train|valid|val|test)/(?P<patient>patient\d+)/(?P<study>study\d+)/"
    r"view\d+_(?P<side>frontal|lateral)\.(?:jpe?g|png))"
)
FINDINGS = (CAPTION_ORDER[-1], *CAPTION_ORDER[:-1])
"""Findings in the order of the table's columns."""

VIEWS = ("AP", "PA")
"""View positions kept by default. 17 images named frontal are LL or RL and are dropped."""

_PUBLISHED = {
    "train": "223,414 images of 64,540 patients",
    "valid": "234 images of 200 patients",
    "val": "234 images of 200 patients",
    "test": "668 images of 500 patients",
}


def read_chexpert(config: DataConfig, *, check_files: bool = True) -> ReaderResult:
    """Reads one label table of CheXpert.

    Args:
        config: `root` is the folder that contains the table, or its parent; `table` the table's name, by default
            `train.csv`; `label_source` the source of the labels; `views` the view positions to keep, by default AP and
            PA.
        check_files: Whether to check that every image exists. False reads a table without its images.

    Returns:
        One record per image in the table's order; uncertain labels are -1. The id is the path from `train/` on, the
        view AP, PA, LL, RL, lateral, or frontal if the table does not say which. Faulty rows are in `faults`.

    Raises:
        ConfigError: If `data.root` is not set.
        DataError: If there is no table, it cannot be read, or none of its images exists.
    """
    root = require_root(config)
    path = find_table(root, table_folders(root), config.table or "train.csv")
    table, faults = read_table(path)
    if "Path" not in table.columns:
        raise_faults(
            path, missing_columns(table.columns, ["Path", *(FINDINGS if config.label_source == "table" else ())])
        )
    paths, wrong_paths = read_paths(table)
    labels, wrong_labels = _read_labels(config, root, table, paths.ids)
    labelled = labels.labelled[paths.valid]
    unlabelled = [paths.ids[row] for row in paths.valid[~labelled].tolist()]
    sexes, unknown_sexes = read_sexes(table.columns.get("Sex"), len(table))
    ages, unknown_ages = read_ages(table.columns.get("Age"), len(table))
    locate = locate_images if check_files else _next_to_table
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
        lines=table.lines,
    )
    parsed = ParsedTable(
        dataset="chexpert",
        table=table,
        rows=rows,
        valid=paths.valid[labelled],
        views=config.views or VIEWS,
        notes=[
            *_size_notes(path.name, rows, paths, synthetic=is_synthetic(root)),
            *labels.notes,
            *unknown_value_notes(unknown_sexes, unknown_ages),
        ],
        faults=[*faults, *wrong_labels, *wrong_paths],
        rejected={"no-label": unlabelled} if unlabelled else {},
        sources={**table.source, **labels.sources},
    )
    return build_result(parsed, config, check_files=check_files)


class Labels(NamedTuple):
    """Labels of the images, in the order of the image list."""

    findings: tuple[str, ...]
    codes: NDArray[np.int8]
    """1, 0, -1 or `BLANK`, `[N, C]`."""
    labelled: NDArray[np.bool_]
    """Whether the label table lists the image, `[N]`."""
    sources: dict[str, str]
    """SHA-256 of each additional table, by name."""
    notes: list[str]


def read_other_labels(path: Path, source: str, ids: Sequence[str], findings: Sequence[str]) -> Labels:
    """Reads the labels of given images from another label table.

    Args:
        path: The label table.
        source: Its key in `LABEL_TABLES`.
        ids: Image ids of the image list, `[N]`; empty for rows without a valid path.
        findings: Columns the table must have.

    Raises:
        DataError: If the table has a fault, two of its rows disagree, or it lists none of the images.
    """
    table, faults = read_table(path)
    lacking = missing_columns(table.columns, ["Path", *findings])
    raise_faults(path, [*faults, *lacking])
    codes, wrong_codes = read_codes(table, findings)
    paths, wrong_paths = read_paths(table)
    rows, conflicts = _row_of_image(paths.ids, codes, table.lines)
    raise_faults(path, [*wrong_codes, *wrong_paths, *conflicts])
    row_of = np.array([rows.get(name, -1) for name in ids], dtype=np.int64)
    labelled = row_of >= 0
    if not labelled.any():
        what = "none of its images is in the image list"
        raise_faults(
            path, [Fault("labels", what, "choose the table of the same images, or set data.label_source=table")]
        )
    matched = np.where(labelled[:, None], codes[row_of], BLANK).astype(np.int8)
    notes = _match_notes(path.name, source, ids, rows, codes)
    return Labels(tuple(findings), matched, labelled, table.source, notes)


def _row_of_image(
    ids: Sequence[str], codes: NDArray[np.int8], lines: NDArray[np.int64]
) -> tuple[dict[str, int], list[Fault]]:
    """The row of each image; a fault if two rows of an image have different labels."""
    rows: dict[str, int] = {}
    conflicts: list[int] = []
    for row, name in enumerate(ids):
        other = rows.setdefault(name, row)
        if other != row and name and not np.array_equal(codes[other], codes[row]):
            conflicts += [int(lines[other]), int(lines[row])]
    rows.pop("", None)
    what = "two rows of the same image disagree"
    return rows, [Fault("duplicate", what, "keep the correct row", conflicts)] if conflicts else []


def _match_notes(
    name: str, source: str, ids: Sequence[str], rows: dict[str, int], codes: NDArray[np.int8]
) -> list[str]:
    listed = {image for image in ids if image}
    without, unlisted = len(listed - rows.keys()), len(rows.keys() - listed)
    notes = [f"labels come from {name}, matched by path; labels in the image list are ignored"]
    if without:
        them = verb(without, "it has no label and is", "they have no label and are")
        notes.append(
            f"{count(without, 'image')} of the image list {verb(without, 'is', 'are')} not in {name}; {them} left out"
        )
    if unlisted:
        are = verb(unlisted, "is", "are")
        notes.append(f"{count(unlisted, 'image')} of {name} {are} not in the image list and {are} not used")
    unexpected = int(((codes != 0) & (codes != 1)).any(axis=1).sum())
    if source == _BINARY and unexpected:
        rows_hold = f"{count(unexpected, 'row')} of {name} {verb(unexpected, 'has', 'have')}"
        notes.append(f"{rows_hold} -1 or empty cells, but only 0 and 1 are expected")
    return notes


def table_folders(root: Path) -> list[Path]:
    """Returns the folders that may contain a label table, given the folder of a release or its parent."""
    bases = [root, *sorted(root.glob(_CONTAINER))]
    inner = [folder for home in bases for folder in [*(home / name for name in _RELEASES), *_batches(home)]]
    return [folder for folder in [*bases, *inner] if folder.is_dir()]


def locate_images(root: Path, table: Path, ids: Sequence[str]) -> list[str]:
    """Returns the path of each image; the layout on disk is detected from a few rows.

    Args:
        root: `data.root`.
        table: The label table, inside the root.
        ids: Paths from `train/`, `valid/` or `test/` on; empty for rows without a valid path.

    Raises:
        DataError: If none of the probed images exists; names the paths that were tried.
    """
    named = [name for name in ids if name]
    probes = named[:: max(1, len(named) // _PROBES)]
    folders = list(dict.fromkeys([table.parent, root, *(root / name for name in _RELEASES)]))
    for folder in folders:
        if any((folder / name).is_file() for name in probes):
            home = str(folder)
            return [f"{home}/{name}" for name in ids]
    batches = [*_batches(table.parent), *_batches(table.parent.parent)]
    batch_of = {entry.name: str(batch) for batch in batches for entry in os.scandir(batch) if entry.is_dir()}
    home = str(table.parent)
    if named and not any(os.path.isfile(_in_batch(name, batch_of, home)) for name in probes):
        tried = [f"{folder}/{probes[0]}" for folder in folders]
        tried += [f"{batch}/{probes[0].partition('/')[2]}" for batch in batches]
        raise DataError(
            f"none of {count(len(probes), 'image')} probed from {table.name} is on disk; looked for "
            f"{', '.join(tried)}; set data.root to the folder that contains train/, or to its parent",
            reason="missing",
        )
    return [_in_batch(name, batch_of, home) for name in ids]


def _batches(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob(_BATCHES)) if path.is_dir()]


def _in_batch(name: str, batch_of: dict[str, str], otherwise: str) -> str:
    split, _, rest = name.partition("/")
    batch = batch_of.get(rest.partition("/")[0]) if split == "train" else None
    return f"{batch}/{rest}" if batch else f"{otherwise}/{name}"


class Paths(NamedTuple):
    """The parsed `Path` column, one entry per row; entries of rows that do not match are empty."""

    ids: list[str]
    """Path from `train/` on."""
    patients: list[str]
    studies: list[str | None]
    sides: list[str]
    """`frontal` or `lateral`."""
    valid: NDArray[np.int64]
    """Rows whose path matches."""
    prefixes: Counter[str]
    """How often each prefix precedes an id."""


def read_paths(table: Table) -> tuple[Paths, list[Fault]]:
    """Parses the column `Path`; rows that do not match share one fault.

    CheXlocalize calls the folder `valid/` `val/`; the name is kept, because its images are there.
    """
    texts = table.columns["Path"].texts()
    matches = [_PATH.fullmatch(text.replace("\\", "/")) for text in texts]
    wrong = [row for row, match in enumerate(matches) if match is None]
    parts = [
        match.group("prefix", "id", "patient", "study", "side") if match else (None, "", "", "", "")
        for match in matches
    ]
    paths = Paths(
        ids=[part[1] or "" for part in parts],
        patients=[part[2] or "" for part in parts],
        studies=[f"{part[2]}/{part[3]}" for part in parts],
        sides=[part[4] or "" for part in parts],
        valid=np.array([row for row, match in enumerate(matches) if match], dtype=np.int64),
        prefixes=Counter(part[0] or "" for part in parts if part[1]),
    )
    if not wrong:
        return paths, []
    what = f"column 'Path' holds {texts[wrong[0]][:80]!r}"
    remedy = "paths must end in train/patientNNNNN/studyK/viewJ_frontal.jpg; for other images set data.dataset=manifest"
    return paths, [Fault("path", what, remedy, table.lines[wrong].tolist())]


def _read_labels(config: DataConfig, root: Path, table: Table, ids: Sequence[str]) -> tuple[Labels, list[Fault]]:
    """Labels of the image list, or of the table of `data.label_source`."""
    if config.label_source == "table":
        findings = tuple(name for name in FINDINGS if name in table.columns)
        codes, wrong = read_codes(table, findings)
        lacking = missing_columns(table.columns, FINDINGS)
        return Labels(findings, codes, np.ones(len(table), dtype=bool), {}, []), [*lacking, *wrong]
    try:
        path = find_table(root, table_folders(root), LABEL_TABLES[config.label_source])
    except DataError as error:
        message = f"{error}; or set data.label_source=table to use the labels of the image list"
        raise DataError(message, reason="table") from error
    return read_other_labels(path, config.label_source, ids, FINDINGS), []


def _read_views(column: Column | None, sides: list[str]) -> list[str | None]:
    """View position of the table, or else the view in the file name."""
    return [text or side or None for text, side in zip(read_texts(column, len(sides)), sides, strict=True)]


def _next_to_table(root: Path, table: Path, ids: Sequence[str]) -> list[str]:
    folder = str(table.parent)
    return [f"{folder}/{name}" for name in ids]


def _size_notes(name: str, rows: Rows, paths: Paths, *, synthetic: bool) -> list[str]:
    """Number of images and patients, next to the published numbers; subsets are fine."""
    patients = {rows.patients[row] for row in paths.valid.tolist()}
    parts = Counter(rows.ids[row].partition("/")[0] for row in paths.valid.tolist())
    published = "; ".join(f"published for {part}: {_PUBLISHED[part]}" for part in parts)
    reference = "synthetic images" if synthetic else published
    notes = [f"{name} holds {count(len(paths.valid), 'image')} of {count(len(patients), 'patient')} ({reference})"]
    if len(paths.prefixes) > 1:
        prefixes = ", ".join(f"{prefix or 'none'} ({number:,})" for prefix, number in paths.prefixes.most_common())
        notes.append(f"{name} mixes release prefixes: {prefixes}; they were dropped")
    return notes
