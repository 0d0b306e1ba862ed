"""Reads CheXpert-v1.0: the small release, the full release with its batch folders, and the test set.

Expects a label table (`train.csv`, `valid.csv`, `train_cheXbert.csv`, …) whose `Path` column ends in
`train/patientNNNNN/studyK/viewJ_frontal.jpg`. What stands in front of that need not be the folder on disk and is
dropped; the images are then looked for where the releases have them (`cleft.data.readers.chexpert`). Labels are
those of the table, or of another table whose rows are matched by path (`cleft.data.readers.chexpert`).

Shapes: `N` rows.
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
from cleft.data.tables.faults import Fault, missing_columns, refuse
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
"""Value of `data.labels` to the name of its table."""

_BINARY = "visualchexbert"
_RELEASES = ("CheXpert-v1.0-small", "CheXpert-v1.0")
_BATCHES = "CheXpert-v1.0 batch *"
_CONTAINER = "chexpertchestxrays*"
_PROBES = 8
_PATH = re.compile(
    r"(?P<prefix>.*/)?(?P<id>(?:train|valid|val|test)/(?P<patient>patient\d+)/(?P<study>study\d+)/"
    r"view\d+_(?P<side>frontal|lateral)\.(?:jpe?g|png))"
)
FINDINGS = (CAPTION_ORDER[-1], *CAPTION_ORDER[:-1])
"""In the order of the table."""

VIEWS = ("AP", "PA")
"""Projections that are kept unless `data.views` says otherwise: 17 frontal images are LL or RL."""

_PUBLISHED = {
    "train": "223,414 images of 64,540 patients",
    "valid": "234 images of 200 patients",
    "val": "234 images of 200 patients",
    "test": "668 images of 500 patients",
}


def read_chexpert(config: DataConfig, *, check_files: bool = True) -> ReaderResult:
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
    root = require_root(config)
    path = find_table(root, table_folders(root), config.table or "train.csv")
    table, faults = read_table(path)
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
        lines=table.lines,
    )
    parsed = ParsedTable(
        dataset="chexpert",
        table=table,
        rows=rows,
        valid=paths.usable[known],
        views=config.views or VIEWS,
        notes=[
            *_census(path.name, rows, paths, drawn=is_synthetic(root)),
            *labels.notes,
            *unknown_value_notes(odd_sexes, odd_ages),
        ],
        faults=[*faults, *wrong_labels, *wrong_paths],
        rejected={"no-label": unlabelled} if unlabelled else {},
        sources={**table.source, **labels.sources},
    )
    return build_result(parsed, config, check_files=check_files)


class Labels(NamedTuple):
    """What is known of each image of the list, in its order."""

    findings: tuple[str, ...]
    codes: NDArray[np.int8]
    """1, 0, -1 or `BLANK`, `[N, C]`."""
    known: NDArray[np.bool_]
    """Whether the labels' table names the image, `[N]`."""
    sources: dict[str, str]
    """Tables read for them besides the list: name to the SHA-256 of its bytes."""
    notes: list[str]


def take_labels(path: Path, source: str, ids: Sequence[str], findings: Sequence[str]) -> Labels:
    """Reads labels of known images from another table.

    Args:
        path: The label table.
        source: Which one it is, a key of `LABEL_TABLES`.
        ids: Images in question, by the path from `train/` on; empty where a row of the image list names none.
        findings: Columns the table must have.

    Raises:
        DataError: If the table is not what it should be, two of its rows disagree, or it shares no image with `ids`.
    """
    table, faults = read_table(path)
    lacking = missing_columns(table.columns, ["Path", *findings])
    refuse(path, [*faults, *lacking])
    codes, wrong_codes = read_codes(table, findings)
    paths, wrong_paths = read_paths(table)
    rows, clashes = _rows_of(paths.ids, codes, table.lines)
    refuse(path, [*wrong_codes, *wrong_paths, *clashes])
    places = np.array([rows.get(name, -1) for name in ids], dtype=np.int64)
    known = places >= 0
    if not known.any():
        what = "none of its images is in the image list"
        refuse(path, [Fault("labels", what, "choose the table of the same images, or set data.labels=table")])
    taken = np.where(known[:, None], codes[places], BLANK).astype(np.int8)
    notes = _notes(path.name, source, ids, rows, codes)
    return Labels(tuple(findings), taken, known, {path.name: table.sha256}, notes)


def _rows_of(
    ids: Sequence[str], codes: NDArray[np.int8], lines: NDArray[np.int64]
) -> tuple[dict[str, int], list[Fault]]:
    """The row of each image; an image that stands twice must say the same twice."""
    rows: dict[str, int] = {}
    clashes: list[int] = []
    for row, name in enumerate(ids):
        other = rows.setdefault(name, row)
        if other != row and name and not np.array_equal(codes[other], codes[row]):
            clashes += [int(lines[other]), int(lines[row])]
    rows.pop("", None)
    what = "two rows of the same image disagree"
    return rows, [Fault("duplicate", what, "keep the one that is right", clashes)] if clashes else []


def _notes(name: str, source: str, ids: Sequence[str], rows: dict[str, int], codes: NDArray[np.int8]) -> list[str]:
    listed = {image for image in ids if image}
    without, unlisted = len(listed - rows.keys()), len(rows.keys() - listed)
    notes = [f"labels are those of {name}, matched by path; what the image list says of findings is not read"]
    if without:
        them = verb(without, "it has no label and is", "they have no label and are")
        notes.append(
            f"{count(without, 'image')} of the image list {verb(without, 'is', 'are')} not in {name}; {them} left out"
        )
    if unlisted:
        are = verb(unlisted, "is", "are")
        notes.append(f"{count(unlisted, 'image')} of {name} {are} not in the image list and {are} not used")
    odd = int(((codes != 0) & (codes != 1)).any(axis=1).sum())
    if source == _BINARY and odd:
        rows_hold = f"{count(odd, 'row')} of {name} {verb(odd, 'holds', 'hold')}"
        notes.append(f"{rows_hold} -1 or nothing, where 0 and 1 alone were expected")
    return notes


def table_folders(root: Path) -> list[Path]:
    """Returns the folders that may hold a label table, given a release's folder or the one above it."""
    homes = [root, *sorted(root.glob(_CONTAINER))]
    inner = [folder for home in homes for folder in [*(home / name for name in _RELEASES), *_batches(home)]]
    return [folder for folder in [*homes, *inner] if folder.is_dir()]


def locate_images(root: Path, table: Path, ids: Sequence[str]) -> list[str]:
    """Finds out which layout the images have, from a handful of rows, and returns the path of each image.

    Args:
        root: `data.root`.
        table: The label table, inside the root.
        ids: Paths from `train/`, `valid/` or `test/` on; empty where a row has none.

    Raises:
        DataError: If none of the probed images is anywhere; names the places that were tried.
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
            f"{', '.join(tried)}; set data.root to the folder that holds train/, or to the one above it",
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
    """One entry per row; those of a row that says nothing are empty."""

    ids: list[str]
    """From `train/` on."""
    patients: list[str]
    studies: list[str | None]
    sides: list[str]
    """`frontal` or `lateral`."""
    usable: NDArray[np.int64]
    """Rows whose path has the release's form."""
    prefixes: Counter[str]
    """What stood in front of the ids, and how often."""


def read_paths(table: Table) -> tuple[Paths, list[Fault]]:
    """Takes the column `Path` apart; at most one fault, for all rows whose path has another form.

    `val/` is what CheXlocalize calls the folder `valid/`; it stays, because that is where its images are.
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
        usable=np.array([row for row, match in enumerate(matches) if match], dtype=np.int64),
        prefixes=Counter(part[0] or "" for part in parts if part[1]),
    )
    if not wrong:
        return paths, []
    what = f"column 'Path' holds {texts[wrong[0]][:80]!r}"
    remedy = "CheXpert's end in train/patientNNNNN/studyK/viewJ_frontal.jpg; for other images set data.dataset=manifest"
    return paths, [Fault("path", what, remedy, table.lines[wrong].tolist())]


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
