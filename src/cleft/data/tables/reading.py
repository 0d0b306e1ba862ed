"""The common part of all readers: find the table, filter typed rows, build the reading; and test lists.

A test list is a published list of test images, such as those of CheXpert-5x200: a table with the columns of `train.csv`
or one path per line. Its entries are matched to the table's images by the end of their path. Labels of the list replace
labels of the table, because published results were measured with them.

Shapes: `N` rows of the table, `L` images of the list, `C` findings.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cleft.config import DataConfig
from cleft.data.tables.csv import Column, Table, read_table
from cleft.data.tables.faults import Fault, raise_faults
from cleft.data.tables.paths import are_files, is_junk, leaves_root, nearby_hint
from cleft.data.tables.patients import columns_for, spelling_faults
from cleft.data.tables.rows import (
    Rows,
    drop_missing,
    keep_views,
    merge_duplicates,
    read_codes,
    text_faults,
    to_records,
    view_note,
)
from cleft.errors import ConfigError, DataError
from cleft.grammar import count, share, verb
from cleft.privacy import hidden_name, is_hidden
from cleft.types import Reading


class ReaderResult(NamedTuple):
    """What a reader could read, and everything that is wrong with the rest."""

    path: Path
    """The table, named in messages about its faults."""
    reading: Reading
    """Records of the rows without faults."""
    faults: list[Fault]
    images: Sequence[str] = ()
    """Path of the image of every row, including rows that were left out."""

    def checked(self) -> Reading:
        """Returns the reading of a table without faults.

        Raises:
            DataError: If there are faults; describes the first and counts the others.
        """
        raise_faults(self.path, self.faults)
        return self.reading


@dataclass(frozen=True, kw_only=True)
class ParsedTable:
    """What a reader makes of its tables, before duplicates, views and missing files are dealt with."""

    dataset: str
    """Value of `data.dataset`."""
    table: Table
    """The table that names the images."""
    rows: Rows
    valid: NDArray[np.int64]
    """Indices of rows without a fault, ascending."""
    views: Sequence[str] | None = None
    """View positions to keep; None keeps all."""
    present: NDArray[np.bool_] | None = None
    """Whether the image file of each row exists, `[N]`; None looks for the files at `rows.images`."""
    notes: Sequence[str] = ()
    """Sentences for the user: counts, published counts, what was unusual."""
    faults: Sequence[Fault] = ()
    rejected: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    """Ids (or lines) of what the reader left out, by reason."""
    sources: Mapping[str, str] | None = None
    """SHA-256 of every table read, by name, the one with the labels first; None: `table` alone."""
    images: Sequence[str] | None = None
    """Paths of all images of the table, where `rows` has only some of them."""
    patient_dataset: str = ""
    """Dataset that the patient ids belong to, as `Reading.patient_dataset`."""
    cautions: tuple[str, ...] = ()
    """As `Reading.cautions`."""


def require_root(config: DataConfig) -> Path:
    """Returns `data.root` as an absolute path without links, `..` or `~`.

    Raises:
        ConfigError: If it is not set, or a path belongs to another user or machine.
        DataError: If it is not a folder.
    """
    for name, value in vars(config).items():
        if name != "cache" and is_hidden(value):
            raise ConfigError(
                f"data.{name} names {hidden_name(value)!r} in a folder of another user or machine; set "
                f"--data.{name} <its path here>"
            )
    if config.root is None:
        raise ConfigError(
            "data.root is not set; set --data.root to the folder that contains the images and their table"
        )
    root = Path(os.path.realpath(os.path.expanduser(config.root)))
    if not root.is_dir():
        raise DataError(f"{config.root} is not a folder; set --data.root <folder of your data>", reason="root")
    return root


def folders_below(root: Path) -> list[Path]:
    """Returns the root and the folders directly in it, where downloads unpack, in alphabetical order."""
    return [root, *sorted(path for path in root.iterdir() if path.is_dir() and not is_junk(path.name))]


def find_file(folders: Sequence[Path], name: str) -> Path | None:
    """Returns the first file of this name, or of it with `.gz` or `.zip`, in any of the folders; None without one."""
    paths = (folder / f"{name}{ending}" for ending in ("", ".gz", ".zip") for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def find_table(root: Path, folders: Sequence[Path], name: str) -> Path:
    """Returns the path of a table, plain or compressed, that is in one of several folders.

    Raises:
        ConfigError: If the name leads out of the root.
        DataError: If it is in none of them, or in several.
    """
    if leaves_root(name):
        raise ConfigError(f"data.table={name!r} leads out of data.root; give a path inside {root}")
    first = find_file(folders, name)
    found = [] if first is None else [folder / first.name for folder in folders if (folder / first.name).is_file()]
    if len(found) > 1:
        places = ", ".join(str(path.parent) for path in found)
        raise DataError(f"{name} is in several folders: {places}; set data.root to one of them", reason="table")
    if not found:
        files = [path for folder in folders for path in folder.glob("*") if path.is_file() and not is_junk(path.name)]
        seen = sorted({path.name for path in files if ".csv" in path.name})
        packed = sorted({path.name for path in files if path.suffix == ".zip"} - set(seen))
        there = f"; there are {', '.join(seen[:10])}: set data.table to one of them" if seen else ""
        there += f"; if it is packed in {', '.join(packed[:10])}, unpack that first" if packed else ""
        looked = ", ".join(str(folder) for folder in folders)
        raise DataError(f"no {name} in {looked}{there or '; check data.root'}", reason="table")
    return found[0]


def build_result(parsed: ParsedTable, config: DataConfig, *, check_files: bool) -> ReaderResult:
    """Merges duplicates, drops unwanted views and missing files, and makes records of the remaining rows.

    Args:
        parsed: Rows of the dataset.
        config: Share of images that may be missing, and the test list, whose images are kept whatever their view.
        check_files: Whether images without a file are dropped; False keeps them.
    """
    rows, notes, sources = parsed.rows, parsed.notes, parsed.sources or parsed.table.source
    valid, duplicates, conflicts = merge_duplicates(rows, parsed.valid)
    kept, by_view = keep_views(rows, valid, parsed.views)
    listed: list[str] = []
    if config.test_list is not None:
        images = read_image_list(config.test_list, parsed.table.path.name, rows.ids, rows.findings)
        rows, label_notes = apply_list_labels(rows, images)
        kept, by_view, view_notes = keep_listed(rows, valid, kept, by_view, images.ids)
        listed, sources, notes = images.ids, {**sources, **images.source}, [*notes, *label_notes, *view_notes]
    rejected: dict[str, Sequence[str]] = {**parsed.rejected, **by_view}
    if duplicates:
        rejected["duplicate"] = duplicates
    missing_faults: list[Fault] = []
    if check_files:
        present = (
            are_files([rows.images[row] for row in kept.tolist()]) if parsed.present is None else parsed.present[kept]
        )
        kept, missing, missing_faults = drop_missing(rows, kept, present, config.max_invalid)
        if missing:
            rejected["missing"] = missing
        missing_faults = [_with_hint(fault, rows, missing, config) for fault in missing_faults]
    # Without a patient column an image is its own patient, named by its path; in paths, case and zeros matter.
    spellings: list[Fault] = []
    if rows.patients != rows.ids:
        spellings = spelling_faults(rows.patients, parsed.valid.tolist(), rows.lines.tolist())
    reads_reports = config.texts not in ("captions", "findings", "bank") or not rows.findings
    texts = text_faults(rows, reports=reads_reports)
    faults = [*parsed.faults, *spellings, *conflicts, *missing_faults, *texts]
    if not len(kept) and not faults:
        faults.append(_nothing_left(rejected, parsed.views))
    reading = Reading(
        dataset=parsed.dataset,
        records=to_records(rows, kept),
        findings=rows.findings,
        rejected=rejected,
        sources=sources,
        notes=(*notes, *view_note(by_view, parsed.views)),
        listed_ids=frozenset(listed),
        patient_dataset=parsed.patient_dataset,
        cautions=parsed.cautions,
    )
    images_of_table = rows.images if parsed.images is None else parsed.images
    return ReaderResult(parsed.table.path, reading, faults, images_of_table)


def _with_hint(fault: Fault, rows: Rows, missing: Sequence[str], config: DataConfig) -> Fault:
    """Adds to a fault of missing images which similar files exist."""
    root = require_root(config)
    path_of = dict(zip(rows.ids, rows.images, strict=True))
    paths = [path_of[name] for name in missing]
    if not all(path.startswith(f"{root}/") for path in paths):
        return fault
    hint = nearby_hint(root, [path.removeprefix(f"{root}/") for path in paths])
    return fault._replace(remedy=hint) if hint else fault


def unknown_value_notes(sexes: int, ages: int) -> list[str]:
    """Returns notes on the numbers of sexes and ages that could not be read."""
    return [
        f"{count(rows, 'row')} with {what} {verb(rows, 'counts', 'count')} as unknown"
        for rows, what in ((sexes, "a sex other than Male or Female"), (ages, "an age outside 0 to 120"))
        if rows
    ]


def _nothing_left(rejected: dict[str, Sequence[str]], views: Sequence[str] | None) -> Fault:
    counts = ", ".join(f"{reason} ({len(rows):,})" for reason, rows in rejected.items())
    if views is None:
        return Fault("empty", f"no row is left ({counts or 'the table has none'})", "check the rows left out")
    remedy = f"data.views keeps {', '.join(views)}; set it to view positions of the table"
    return Fault("empty", f"no row is left after leaving out {counts}", remedy)


IMAGE_COLUMNS = ("path", "image", "id", "image_id", "filename", "file")
CLASS_COLUMNS = ("class", "label", "category")
"""Accepted column names, case-insensitive."""

_UNLISTED = 3
"""Code of a finding that the list does not mention, besides the codes of `tables.rows`."""


class ImageList(NamedTuple):
    """A test list: images without repetition, in the order of the list."""

    name: str
    sha256: str
    ids: list[str]
    """Ids of the table, `[L]`."""
    codes: NDArray[np.int8]
    """Labels of the list, `[L, C]`; `_UNLISTED` where it has none."""
    repeated: int
    """Number of repeated entries."""

    @property
    def source(self) -> dict[str, str]:
        """Name and SHA-256, as `Reading.sources` lists them."""
        return {f"{self.name} (test list)": self.sha256}


def read_image_list(path: Path, table: str, ids: Sequence[str], findings: Sequence[str]) -> ImageList:
    """Reads a test list.

    Args:
        path: A CSV table with a column `Path`, `image` or `id`, and optionally findings or a column `class`; or plain
            text with one image per line.
        table: Name of the table of the images, for messages.
        ids: Ids of the images in that table, `[N]`; empty for rows without one.
        findings: Findings of that table.

    Raises:
        DataError: If it is not such a list, an entry is not in the table, or two entries disagree; names the lines.
    """
    if not path.is_file():
        raise DataError(
            f"no list of images at {path}; set data.test_list to an existing file, or omit it", reason="table"
        )
    content, faults = read_table(path)
    raise_faults(path, faults)
    entries, lines = _entries(path, content)
    known = {name for name in ids if name}
    found = [_match(entry, known) for entry in entries]
    unmatched = [i for i, name in enumerate(found) if name is None]
    if unmatched:
        examples = ", ".join(repr(entries[i][:80]) for i in unmatched[:3])
        what = (
            f"{share(len(unmatched), len(entries), 'entry', 'entries')} {verb(len(unmatched), 'is', 'are')} not in "
            f"{table}, such as {examples}"
        )
        remedy = "set data.table to the table the list was made from, or remove these entries"
        raise_faults(path, [Fault("test-list", what, remedy, [lines[i] for i in unmatched])])
    named = [name or "" for name in found]
    codes = np.full((len(named), len(findings)), _UNLISTED, dtype=np.int8)
    if len(content) == len(named):
        codes = _codes(path, content, findings)
    first: dict[str, int] = {}
    conflicts = [i for i, name in enumerate(named) if not np.array_equal(codes[first.setdefault(name, i)], codes[i])]
    if conflicts:
        what, at = "two entries of the same image disagree", [lines[i] for i in conflicts]
        raise_faults(path, [Fault("duplicate", what, "keep the correct entry", at)])
    once = list(first.values())
    return ImageList(path.name, content.sha256, list(first), codes[once], len(named) - len(once))


def apply_list_labels(rows: Rows, listed: ImageList) -> tuple[Rows, list[str]]:
    """Replaces labels of the table by those of the list.

    Returns:
        The rows, and notes about the list and the changed labels.
    """
    place = {name: i for i, name in enumerate(listed.ids)}
    here = np.array([row for row, name in enumerate(rows.ids) if name in place], dtype=np.int64)
    new_codes = listed.codes[[place[rows.ids[row]] for row in here.tolist()]]
    old = rows.codes[here]
    new = np.where(new_codes == _UNLISTED, old, new_codes).astype(np.int8)
    changed = int((new != old).any(axis=1).sum())
    notes = [
        f"{listed.name} lists {count(len(listed.ids), 'image')}; "
        f"{verb(len(listed.ids), 'it is', 'they are')} the test set"
    ]
    if listed.repeated:
        repeats = verb(listed.repeated, "repeats an earlier one and is", "repeat earlier ones and are")
        notes.append(f"{count(listed.repeated, 'entry', 'entries')} of {listed.name} {repeats} ignored")
    if changed:
        notes.append(f"labels of {count(changed, 'image')} come from {listed.name}, which differs from the table")
    codes = rows.codes.copy()
    codes[here] = new
    return replace(rows, codes=codes), notes


def keep_listed(
    rows: Rows,
    before: NDArray[np.int64],
    kept: NDArray[np.int64],
    by_view: Mapping[str, list[str]],
    listed: Collection[str],
) -> tuple[NDArray[np.int64], dict[str, list[str]], list[str]]:
    """Restores images of the test list that were dropped by view position.

    Args:
        rows: All rows.
        before: Rows before views were filtered, `[M]`.
        kept: Rows kept by view position.
        by_view: Ids of the dropped rows by `view-<view position>`.
        listed: Ids of the list.

    Returns:
        The kept rows, the ids still dropped, and a note if any were restored.
    """
    wanted = set(listed)
    restored = Counter({reason: sum(name in wanted for name in ids) for reason, ids in by_view.items()})
    if not restored.total():
        return kept, dict(by_view), []
    kept_set = set(kept.tolist())
    rows_kept = [row for row in before.tolist() if row in kept_set or rows.ids[row] in wanted]
    rest = {reason: [name for name in ids if name not in wanted] for reason, ids in by_view.items()}
    are = verb(restored.total(), "is", "are")
    views = ", ".join(f"{number:,} {reason.removeprefix('view-')}" for reason, number in restored.items() if number)
    note = f"{count(restored.total(), 'image')} of the test list {are} kept although data.views excludes them: {views}"
    return np.array(rows_kept, dtype=np.int64), {reason: ids for reason, ids in rest.items() if ids}, [note]


def _entries(path: Path, content: Table) -> tuple[list[str], list[int]]:
    """Returns the entries and their lines; the header of a list without one is an entry."""
    names = list(content.columns)
    usual = columns_for("image", names)
    column = _find(content, IMAGE_COLUMNS) or (content.columns[usual[0]] if len(usual) == 1 else None)
    if column is not None:
        return column.texts(), content.lines.tolist()
    if len(names) == 1:
        return [names[0], *content.columns[names[0]].texts()], [1, *content.lines.tolist()]
    what = f"no column {' or '.join(repr(name) for name in IMAGE_COLUMNS[:3])}; found {names}"
    fault = Fault("columns", what, "rename the column of the images, or write one image per line")
    raise DataError(fault.message(path), reason=fault.reason)


def _find(content: Table, names: Sequence[str]) -> Column | None:
    found = [column for name, column in content.columns.items() if name.casefold() in names]
    return found[0] if found else None


def _match(entry: str, known: Collection[str]) -> str | None:
    """Returns the id that is the longest suffix of the entry's path."""
    parts = [part for part in entry.replace("\\", "/").split("/") if part not in ("", ".")]
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((end for end in ends if end in known), None)


def _codes(path: Path, content: Table, findings: Sequence[str]) -> NDArray[np.int8]:
    """Returns labels of the list, from its columns of findings, its column of classes, or both."""
    codes = np.full((len(content), len(findings)), _UNLISTED, dtype=np.int8)
    present = [name for name in findings if name in content.columns]
    typed, wrong = read_codes(content, present)
    raise_faults(path, wrong)
    codes[:, [findings.index(name) for name in present]] = typed
    column = _find(content, CLASS_COLUMNS)
    if column is None:
        return codes
    spelled = {_plain(name): i for i, name in enumerate(findings)}
    classes = [spelled.get(_plain(value)) for value in column.values]
    unknown = [i for i, place in enumerate(classes) if place is None]
    if unknown:
        held = ", ".join(repr(column.values[i][:40]) for i in unknown[:3])
        where = content.lines_of(column, unknown)
        raise_faults(path, [Fault("label", f"the class is {held}", f"name one of {', '.join(findings)}", where)])
    places = np.array([place or 0 for place in classes], dtype=np.int64)[column.index]
    rows = np.arange(len(content))
    contradicted = ~np.isin(codes[rows, places], (1, _UNLISTED))
    if contradicted.any():
        what = "the class is a finding whose own column does not say 1"
        raise_faults(path, [Fault("label", what, "fix one of them", content.lines[contradicted].tolist())])
    # The classes of the list exclude each other.
    for other in sorted(set(places.tolist())):
        codes[:, other] = np.where(codes[:, other] == _UNLISTED, 0, codes[:, other])
    codes[rows, places] = 1
    return codes


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()
