"""The metadata table of EMBED after typing: which file shows which breast in which view.

Shapes: `M` rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cleft.data.readers.embed_join import LEFT, NONE, RIGHT, Flags, Integers
from cleft.data.readers.embed_tables import Named
from cleft.data.tables.csv import Column
from cleft.data.tables.faults import Fault
from cleft.data.tables.files import leaves_root
from cleft.errors import DataError

_SIDES = {"L": LEFT, "R": RIGHT}
_YES = ("yes", "1", "1.0", "true")


@dataclass(frozen=True, kw_only=True)
class Files:
    """Entry m of everything speaks of the same file."""

    ids: list[str]
    """Path from `cohort_1` or `cohort_2` on; empty where the table names none."""
    kinds: list[str]
    """`2d`, `cview`, … in lower case; empty where it is not known."""
    side: Integers
    """`LEFT`, `RIGHT`, or `NONE`, `[M]`."""
    views: list[str]
    """As the table says; may be empty."""
    magnified: Flags
    """Spot compression or magnification, `[M]`; a blank is not one."""
    implant: Flags
    """`[M]`."""
    faults: list[Fault]


def read_files(metadata: Named) -> Files:
    """Types the metadata table; rows whose path is none have a fault and an empty id."""
    columns, rows = metadata.columns, len(metadata.table)
    ids, faults = _read_paths(metadata)
    side = columns["laterality"]
    return Files(
        ids=ids,
        kinds=[text.casefold().replace("-", "") for text in columns["type"].texts()],
        side=np.array([_SIDES.get(text.strip().upper(), NONE) for text in side.values], dtype=np.int64)[side.index],
        views=columns["view"].texts(),
        magnified=_says_yes(columns.get("magnified"), rows),
        implant=_says_yes(columns.get("implant"), rows),
        faults=faults,
    )


def locate_images(home: Path) -> str:
    """Returns the folder that holds the cohorts.

    Args:
        home: Folder that holds `tables`.

    Raises:
        DataError: If there is none; names the places that were tried.
    """
    tried = (home / "images", home)
    for folder in tried:
        if any(path.is_dir() for path in folder.glob("cohort_*")):
            return str(folder)
    raise DataError(
        f"no folder cohort_1 or cohort_2 in {tried[0]} or {tried[1]}; set data.root to the folder that holds tables "
        "and images",
        reason="missing",
    )


def _read_paths(metadata: Named) -> tuple[list[str], list[Fault]]:
    """What stands in front of the first `cohort_` is a folder of the owner's machine and is dropped."""
    column, lines = metadata.columns["path"], metadata.table.lines
    ids = [_from_cohort(text.strip().replace("\\", "/")) for text in column.values]
    wrong = [i for i, name in enumerate(ids) if not name]
    out = [i for i, name in enumerate(ids) if (".." in name or "\0" in name) and leaves_root(name)]
    faults: list[Fault] = []
    if wrong:
        what = f"anon_dicom_path holds {column.values[wrong[0]][:80]!r}"
        remedy = "EMBED's end in cohort_1/… or cohort_2/…; for other images set data.dataset=manifest"
        faults.append(Fault("path", what, remedy, lines[column.rows_of(wrong)].tolist()))
    if out:
        what = f"anon_dicom_path {column.values[out[0]][:80]!r} leaves the folder of images"
        faults.append(Fault("outside-root", what, "take out its ..", lines[column.rows_of(out)].tolist()))
    for i in out:
        ids[i] = ""
    return [ids[i] for i in column.index.tolist()], faults


def _from_cohort(path: str) -> str:
    """What a path holds from its first folder `cohort_…` on."""
    start = 0 if path.startswith("cohort_") else path.find("/cohort_") + 1
    tail = path[start:]
    return tail if tail.startswith("cohort_") and "/" in tail else ""


def _says_yes(column: Column | None, rows: int) -> Flags:
    if column is None:
        return np.zeros(rows, dtype=bool)
    return np.array([text.strip().casefold() in _YES for text in column.values], dtype=bool)[column.index]
