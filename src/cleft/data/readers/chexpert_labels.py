"""Labels of CheXpert that other programs read from the same reports, or from the images: CheXbert and visualCheXbert.

Their tables name the images of the full release whatever lies on disk, and need not have the rows of `train.csv` or
its order. Rows are matched by the path from `train/` on, never by their number.

Shapes: `N` rows of the image list, `C` findings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cleft.data.readers.chexpert_paths import read_paths
from cleft.data.tables.csv import scan_table
from cleft.data.tables.faults import Fault, missing_columns, refuse
from cleft.data.tables.rows import BLANK, read_codes
from cleft.grammar import count, verb

LABEL_TABLES = {"chexbert": "train_cheXbert.csv", "visualchexbert": "train_visualCheXbert.csv"}
"""Value of `data.labels` to the name of its table."""

_BINARY = "visualchexbert"


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
    table, faults = scan_table(path)
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
