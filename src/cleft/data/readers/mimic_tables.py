"""The tables of MIMIC-CXR: which images there are, what their studies show, and which part each is in.

Shapes: `N` images, `C` findings.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cleft.data.tables.csv import Table, scan_table
from cleft.data.tables.faults import Fault, missing_columns, refuse
from cleft.data.tables.files import is_junk
from cleft.data.tables.patients import whole_id
from cleft.data.tables.rows import BLANK, read_codes, read_splits
from cleft.grammar import agree, count, verb

SUBJECT, STUDY, DICOM = "subject_id", "study_id", "dicom_id"

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
"""CheXpert's, in the tables' alphabetical order."""

_VIEW, _VIEW_CODE = "ViewPosition", "ViewCodeSequence_CodeMeaning"
_VIEWS = {"lateral": "lateral", "postero-anterior": "PA", "antero-posterior": "AP", "left lateral": "LL"}
_NUMBER = re.compile(r"[0-9]{1,12}")
_NAME = re.compile(r"[0-9A-Za-z]+(?:-[0-9A-Za-z]+)*")


class Images(NamedTuple):
    """Every image of the list, in its order."""

    names: list[str]
    """`dicom_id`."""
    subjects: list[str]
    studies: list[str]
    views: list[str | None]
    sound: NDArray[np.bool_]
    """Whether all three ids are what they should be, `[N]`; the others may not become paths."""
    faults: list[Fault]


class Parts(NamedTuple):
    """What another table says of the images."""

    values: list[str | None] | None
    faults: list[Fault]
    notes: list[str]
    sources: Mapping[str, str]


class Labels(NamedTuple):
    """What the label table says of each image, by its study."""

    codes: NDArray[np.int8]
    """`[N, C]`."""
    faults: list[Fault]
    notes: list[str]
    sources: Mapping[str, str]


def find_named(folders: Sequence[Path], name: str) -> Path | None:
    """Finds a table whose name ends so, whatever its release: `mimic-cxr-2.0.0-split.csv.gz` by `split`."""
    ending = re.compile(rf"(?:mimic-cxr-[0-9.]+-{name}|{name})\.csv(?:\.gz|\.zip)?")
    for folder in folders:
        found = sorted(path for path in folder.iterdir() if ending.fullmatch(path.name) and not is_junk(path.name))
        if found:
            return found[0]
    return None


def read_images(table: Table) -> Images:
    """Reads the list of images: the metadata of MIMIC-CXR-JPG, or the record list of MIMIC-CXR.

    Raises:
        DataError: If it has no column of one of the three ids.
    """
    lacking = missing_columns(table.columns, [SUBJECT, STUDY, DICOM])
    refuse(table.path, lacking)
    names = table.columns[DICOM].texts()
    subjects, studies = (list(map(whole_id, table.columns[name].texts())) for name in (SUBJECT, STUDY))
    sound = np.ones(len(table), dtype=bool)
    faults: list[Fault] = []
    for column, texts, form, remedy in (
        (SUBJECT, subjects, _NUMBER, "it is a number, such as 10000032"),
        (STUDY, studies, _NUMBER, "it is a number, such as 50414267"),
        (DICOM, names, _NAME, "it is groups of letters and digits with - between them; copy the table again"),
    ):
        wrong = [row for row, text in enumerate(texts) if not form.fullmatch(text)]
        if wrong:
            sound[wrong] = False
            faults.append(Fault("path", f"column {column!r} holds no id", remedy, table.lines[wrong].tolist()))
    faults += _torn_studies(table, subjects, studies, sound)
    return Images(names, subjects, studies, _read_views(table), sound, faults)


def _torn_studies(
    table: Table, subjects: Sequence[str], studies: Sequence[str], sound: NDArray[np.bool_]
) -> list[Fault]:
    """A study belongs to one patient; splits would otherwise tear it."""
    owner: dict[str, str] = {}
    torn = [
        row for row in np.flatnonzero(sound).tolist() if owner.setdefault(studies[row], subjects[row]) != subjects[row]
    ]
    if not torn:
        return []
    sound[torn] = False
    what = "a study belongs to two patients"
    return [Fault("patient", what, "keep the row that is right", table.lines[torn].tolist())]


def _read_views(table: Table) -> list[str | None]:
    """`ViewPosition`, and where it is empty what the view's code means."""
    views: list[str | None] = [None] * len(table)
    for column in (_VIEW_CODE, _VIEW):
        if column in table.columns:
            texts = table.columns[column].texts()
            known = {text: _VIEWS.get(text.casefold(), text if column == _VIEW else None) for text in set(texts)}
            views = [known[text] if text else view for text, view in zip(texts, views, strict=True)]
    return [view or None for view in views]


def read_parts(path: Path | None, names: Sequence[str]) -> Parts:
    """Reads the official split: `train`, `validate` or `test` of every image.

    Args:
        path: Its table; None where there is none.
        names: `dicom_id` of each image, `[N]`.
    """
    if path is None:
        told = "no mimic-cxr-2.0.0-split.csv: the official split is not known (data.split=patients does without)"
        return Parts(None, [], [told], {})
    table, faults = scan_table(path)
    refuse(path, missing_columns(table.columns, [DICOM, "split"]))
    parts, wrong = read_splits(table, table.columns["split"])
    part_of: dict[str, str | None] = {}
    clashes: list[int] = []
    for row, (name, part) in enumerate(zip(table.columns[DICOM].texts(), parts or (), strict=True)):
        if part_of.setdefault(name, part) != part:
            clashes.append(row)
    faults = [*faults, *(fault._replace(what=f"{path.name}: {fault.what}") for fault in wrong)]
    if clashes:
        what = f"{path.name}: an image is in two parts"
        faults.append(Fault("split", what, "copy the table again", table.lines[clashes].tolist()))
    values = [part_of.get(name) for name in names]
    counts = Counter(values)
    notes = ["official split: " + ", ".join(f"{part} {counts[part]:,}" for part in ("train", "val", "test"))]
    if counts[None]:
        notes.append(
            f"{count(counts[None], 'image')} {verb(counts[None], 'is', 'are')} not in {path.name}; under "
            f"data.split=given {verb(counts[None], 'it stays', 'they stay')} out. Is it of the same release?"
        )
    return Parts(values, faults, notes, {path.name: table.sha256})


def read_labels(path: Path | None, images: Images) -> Labels:
    """Reads the labels of every study and gives them to its images.

    Args:
        path: `mimic-cxr-2.0.0-chexpert.csv` or `-negbio.csv`; None where there is none.
        images: Whose.

    Raises:
        DataError: If the table lacks a column.
    """
    codes = np.full((len(images.names), len(FINDINGS)), BLANK, dtype=np.int8)
    if path is None:
        told = "no mimic-cxr-2.0.0-chexpert.csv and no -negbio.csv that was asked for: no finding is known"
        return Labels(codes, [], [told], {})
    table, faults = scan_table(path)
    refuse(path, missing_columns(table.columns, [SUBJECT, STUDY, *FINDINGS]))
    told, wrong = read_codes(table, FINDINGS)
    place: dict[tuple[str, str], int] = {}
    clashes: list[int] = []
    keys = zip(*(map(whole_id, table.columns[name].texts()) for name in (SUBJECT, STUDY)), strict=True)
    for row, key in enumerate(keys):
        other = place.setdefault(key, row)
        if not np.array_equal(told[row], told[other]):
            clashes += [other, row]
    faults = [*faults, *(fault._replace(what=f"{path.name}: {fault.what}") for fault in wrong)]
    if clashes:
        what = f"{path.name}: two rows of the same study disagree"
        faults.append(Fault("duplicate", what, "keep the one that is right", table.lines[clashes].tolist()))
    rows = np.array([place.get(key, -1) for key in zip(images.subjects, images.studies, strict=True)], dtype=np.int64)
    codes[rows >= 0] = told[rows[rows >= 0]]
    unlabelled = len({images.studies[row] for row in np.flatnonzero(rows < 0).tolist()})
    notes = [f"{path.name} labels {count(len(place), 'study', 'studies')} (published: 227,827)"]
    if unlabelled == len(set(images.studies)):
        what = f"none of the studies is in {path.name}"
        faults.append(Fault("labels", what, "copy both tables from one release"))
    elif unlabelled:
        lack = agree(unlabelled, "[has|have] no labels there; [its|their] findings are unknown")
        notes.append(f"{count(unlabelled, 'study', 'studies')} {lack}")
    return Labels(codes, faults, notes, {path.name: table.sha256})
