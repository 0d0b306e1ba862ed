"""The common part of every reader: where its table lies, and from typed rows to a reading and its faults."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cleft.config import DataConfig
from cleft.data.tables.columns import Table
from cleft.data.tables.faults import Fault
from cleft.data.tables.files import is_junk, leaves_root
from cleft.data.tables.ids import spelling_faults
from cleft.data.tables.image_lists import keep_listed, put_listed, read_image_list
from cleft.data.tables.nearby import hint_nearby
from cleft.data.tables.rows import Rows, drop_missing, keep_views, merge_duplicates, text_faults, to_records, view_note
from cleft.errors import ConfigError, DataError
from cleft.grammar import count, verb
from cleft.privacy import hidden_name, is_hidden
from cleft.types import Reading


class Scan(NamedTuple):
    """What could be read, and everything that is wrong with the rest."""

    path: Path
    """The table."""
    reading: Reading
    """Made of the rows without fault."""
    faults: list[Fault]
    images: Sequence[str] = ()
    """Where the image of every row should lie, also of rows that were left out; empty where a reader does not say."""


def require_root(config: DataConfig) -> Path:
    """Returns the folder of the data, as a real absolute path without links, `..` or `~`.

    Raises:
        ConfigError: If it is not set.
        DataError: If it is no folder.
    """
    for name, value in vars(config).items():
        if name != "cache" and is_hidden(value):
            raise ConfigError(
                f"data.{name} names {hidden_name(value)!r} in a folder of another user or machine; give "
                f"--data.{name} <its place here>"
            )
    if config.root is None:
        raise ConfigError("data.root is not set; set --data.root to the folder that holds the images and their table")
    root = Path(os.path.realpath(os.path.expanduser(config.root)))
    if not root.is_dir():
        raise DataError(f"{config.root} is not a folder; give --data.root <folder of your data>", reason="root")
    return root


def find_table(root: Path, folders: Sequence[Path], name: str) -> Path:
    """Finds a table in one of several folders.

    Raises:
        ConfigError: If the name leads out of the root.
        DataError: If it is in none of them, or in several.
    """
    if leaves_root(name):
        raise ConfigError(f"data.table={name!r} leads out of data.root; give a path inside {root}")
    found = [folder / name for folder in folders if (folder / name).is_file()]
    if len(found) > 1:
        places = ", ".join(str(path.parent) for path in found)
        raise DataError(f"{name} lies in several folders: {places}; set data.root to one of them", reason="table")
    if not found:
        files = [path for folder in folders for path in folder.glob("*") if path.is_file() and not is_junk(path.name)]
        seen = sorted({path.name for path in files if ".csv" in path.name})
        packed = sorted({path.name for path in files if path.suffix == ".zip"} - set(seen))
        there = f"; there are {', '.join(seen[:10])}: set data.table to one of them" if seen else ""
        there += f"; if it is packed in {', '.join(packed[:10])}, unpack that first" if packed else ""
        looked = ", ".join(str(folder) for folder in folders)
        raise DataError(f"no {name} in {looked}{there or '; check data.root'}", reason="table")
    return found[0]


def make_scan(
    dataset: str,
    table: Table,
    rows: Rows,
    usable: NDArray[np.int64],
    config: DataConfig,
    *,
    views: Sequence[str] | None,
    are_present: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None,
    notes: Sequence[str],
    faults: Sequence[Fault],
    rejected: Mapping[str, Sequence[str]] = MappingProxyType({}),
    sources: Mapping[str, str] = MappingProxyType({}),
) -> Scan:
    """Leaves out what is double, unwanted or missing, counts it, and makes records of the rest.

    Args:
        dataset: Name of the dataset.
        table: Where the rows come from.
        rows: The typed rows, `[N]`.
        usable: Those without a fault of their own.
        config: How much may be missing, and a list of images that stay whatever their projection.
        views: Projections to keep; None keeps all.
        are_present: Whether the files of given rows exist; None where nobody looks.
        notes: What the reader has to say.
        faults: What is already known to be wrong.
        rejected: What the reader has left out: reason code to the rows.
        sources: Further tables the rows come from: name to the SHA-256 of its bytes.
    """
    kept, merged, clashes = merge_duplicates(rows, usable)
    looked_at = kept
    kept, by_view = keep_views(rows, kept, views)
    listed: list[str] = []
    if config.test_list is not None:
        images = read_image_list(config.test_list, table.path.name, rows.ids, rows.findings)
        rows, told = put_listed(rows, images)
        kept, by_view, taken_back = keep_listed(rows, looked_at, kept, by_view, images.ids)
        listed, sources, notes = images.ids, {**sources, **images.source}, [*notes, *told, *taken_back]
    out: dict[str, Sequence[str]] = {**rejected, **by_view}
    if merged:
        out["duplicate"] = merged
    gone: list[Fault] = []
    if are_present is not None:
        kept, missing, gone = drop_missing(rows, kept, are_present(kept), config.max_bad)
        if missing:
            out["missing"] = missing
        gone = [_with_hint(fault, rows, missing, config) for fault in gone]
    # An image that is its own patient is named by its path, in which case and zeros matter.
    spelled = [] if rows.patients == rows.ids else spelling_faults(rows.patients, usable.tolist(), rows.lines.tolist())
    reads_reports = config.texts not in ("captions", "findings", "bank") or not rows.findings
    all_faults = [*faults, *spelled, *clashes, *gone, *text_faults(rows, reports=reads_reports)]
    if not len(kept) and not all_faults:
        all_faults.append(_nothing_left(out, views))
    reading = Reading(
        dataset=dataset,
        records=to_records(rows, kept),
        findings=rows.findings,
        rejected=out,
        sources={table.path.name: table.sha256, **sources},
        notes=(*notes, *view_note(by_view, views)),
        listed=frozenset(listed),
    )
    return Scan(table.path, reading, all_faults, rows.images)


def _with_hint(fault: Fault, rows: Rows, missing: Sequence[str], config: DataConfig) -> Fault:
    """Adds to a fault of missing images which files are on disk in their place."""
    root = require_root(config)
    path_of = dict(zip(rows.ids, rows.images, strict=True))
    paths = [path_of[name] for name in missing]
    if not all(path.startswith(f"{root}/") for path in paths):
        return fault
    hint = hint_nearby(root, [path.removeprefix(f"{root}/") for path in paths])
    return fault._replace(remedy=hint) if hint else fault


def oddities(sexes: int, ages: int) -> list[str]:
    """Says how many sexes and ages could not be read."""
    return [
        f"{count(rows, 'row')} with {what} {verb(rows, 'counts', 'count')} as unknown"
        for rows, what in ((sexes, "another sex than Male or Female"), (ages, "an age outside 0 to 120"))
        if rows
    ]


def _nothing_left(rejected: dict[str, Sequence[str]], views: Sequence[str] | None) -> Fault:
    counts = ", ".join(f"{reason} ({len(rows):,})" for reason, rows in rejected.items())
    if views is None:
        return Fault("empty", f"no row is left ({counts or 'the table has none'})", "look at the rows left out")
    remedy = f"data.views keeps {', '.join(views)}; set it to projections the table has"
    return Fault("empty", f"no row is left after leaving out {counts}", remedy)
