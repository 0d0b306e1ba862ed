"""The common part of every reader: where its table lies, and from typed rows to a reading and its faults."""

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
    """Indices of rows without a fault of their own, ascending."""
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
    people: str = ""
    """Population whose patient ids these are, as `Reading.people`."""
    cautions: tuple[str, ...] = ()
    """As `Reading.cautions`."""


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


def folders_below(root: Path) -> list[Path]:
    """Returns the root and the folders directly in it, where downloads unpack, in alphabetical order."""
    return [root, *sorted(path for path in root.iterdir() if path.is_dir() and not is_junk(path.name))]


def find_file(folders: Sequence[Path], name: str) -> Path | None:
    """Returns the first file of this name, or of it with `.gz` or `.zip`, in any of the folders; None without one."""
    paths = (folder / f"{name}{ending}" for ending in ("", ".gz", ".zip") for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def find_table(root: Path, folders: Sequence[Path], name: str) -> Path:
    """Finds a table in one of several folders.

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
        kept, missing, missing_faults = drop_missing(rows, kept, present, config.max_bad)
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
        listed=frozenset(listed),
        people=parsed.people,
        cautions=parsed.cautions,
    )
    images_of_table = rows.images if parsed.images is None else parsed.images
    return ReaderResult(parsed.table.path, reading, faults, images_of_table)


def _with_hint(fault: Fault, rows: Rows, missing: Sequence[str], config: DataConfig) -> Fault:
    """Adds to a fault of missing images which files are on disk in their place."""
    root = require_root(config)
    path_of = dict(zip(rows.ids, rows.images, strict=True))
    paths = [path_of[name] for name in missing]
    if not all(path.startswith(f"{root}/") for path in paths):
        return fault
    hint = nearby_hint(root, [path.removeprefix(f"{root}/") for path in paths])
    return fault._replace(remedy=hint) if hint else fault


def unknown_value_notes(sexes: int, ages: int) -> list[str]:
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


IMAGE_COLUMNS = ("path", "image", "id", "image_id", "filename", "file")
CLASS_COLUMNS = ("class", "label", "category")
"""Names a column may have; case does not matter."""

_SILENT = 3
"""Code of a finding of which the list says nothing; beside those of `cells`."""


class ImageList(NamedTuple):
    """Images somebody chose, each once, in the order of the list."""

    name: str
    sha256: str
    ids: list[str]
    """As the table spells them, `[L]`."""
    codes: NDArray[np.int8]
    """What the list says of them, `[L, C]`; `_SILENT` where it says nothing."""
    repeated: int
    """Entries that name an image a second time."""

    @property
    def source(self) -> dict[str, str]:
        """Name to SHA-256, as it stands among a reading's sources."""
        return {f"{self.name} (test list)": self.sha256}


def read_image_list(path: Path, table: str, ids: Sequence[str], findings: Sequence[str]) -> ImageList:
    """Reads a list of images.

    Args:
        path: A CSV table with a column `Path`, `image` or `id`, and as far as known findings or a column `class`; or
            plain text with one image a line.
        table: Name of the table the images are looked for in, for messages.
        ids: Images of that table, `[N]`; empty where a row names none.
        findings: The table's.

    Raises:
        DataError: If it is no such list, names images that the table lacks, or contradicts itself; names the lines.
    """
    if not path.is_file():
        raise DataError(f"no list of images at {path}; set data.test_list to the file, or leave it out", reason="table")
    content, faults = read_table(path)
    raise_faults(path, faults)
    entries, lines = _entries(path, content)
    known = {name for name in ids if name}
    found = [_match(entry, known) for entry in entries]
    strange = [i for i, name in enumerate(found) if name is None]
    if strange:
        examples = ", ".join(repr(entries[i][:80]) for i in strange[:3])
        what = (
            f"{share(len(strange), len(entries), 'entry', 'entries')} {verb(len(strange), 'is', 'are')} not in "
            f"{table}, such as {examples}"
        )
        remedy = "set data.table to the table that the list was drawn from, or take these entries out"
        raise_faults(path, [Fault("test-list", what, remedy, [lines[i] for i in strange])])
    named = [name or "" for name in found]
    codes = np.full((len(named), len(findings)), _SILENT, dtype=np.int8)
    if len(content) == len(named):
        codes = _codes(path, content, findings)
    first: dict[str, int] = {}
    clashes = [i for i, name in enumerate(named) if not np.array_equal(codes[first.setdefault(name, i)], codes[i])]
    if clashes:
        what, at = "two entries of the same image disagree", [lines[i] for i in clashes]
        raise_faults(path, [Fault("duplicate", what, "keep the one that is right", at)])
    once = list(first.values())
    return ImageList(path.name, content.sha256, list(first), codes[once], len(named) - len(once))


def apply_list_labels(rows: Rows, listed: ImageList) -> tuple[Rows, list[str]]:
    """Gives the images of a list the labels it says they have.

    Returns:
        The rows, and sentences about the list and what it changed.
    """
    place = {name: i for i, name in enumerate(listed.ids)}
    here = np.array([row for row, name in enumerate(rows.ids) if name in place], dtype=np.int64)
    said = listed.codes[[place[rows.ids[row]] for row in here.tolist()]]
    old = rows.codes[here]
    new = np.where(said == _SILENT, old, said).astype(np.int8)
    changed = int((new != old).any(axis=1).sum())
    notes = [
        f"{listed.name} lists {count(len(listed.ids), 'image')}; "
        f"{verb(len(listed.ids), 'it is', 'they are')} the test set"
    ]
    if listed.repeated:
        names, counts = (verb(listed.repeated, one, many) for one, many in (("names", "name"), ("counts", "count")))
        entries = count(listed.repeated, "entry", "entries")
        notes.append(f"{entries} of {listed.name} {names} an image a second time and {counts} once")
    if changed:
        notes.append(
            f"the labels of {count(changed, 'image')} are those of {listed.name}, which differ from the table's"
        )
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
    """Takes back the images of a list that were left out by their projection: who drew the list wanted them.

    Args:
        rows: All rows.
        before: Those that were looked at, `[M]`.
        kept: Those of a wanted projection.
        by_view: Ids of the others under `view-<projection>`.
        listed: Ids of the list.

    Returns:
        The rows that stay, the ids that stay out, and a sentence where any were taken back.
    """
    wanted = set(listed)
    taken = Counter({reason: sum(name in wanted for name in ids) for reason, ids in by_view.items()})
    if not taken.total():
        return kept, dict(by_view), []
    stay = set(kept.tolist())
    rows_kept = [row for row in before.tolist() if row in stay or rows.ids[row] in wanted]
    rest = {reason: [name for name in ids if name not in wanted] for reason, ids in by_view.items()}
    stays = verb(taken.total(), "stays", "stay")
    views = ", ".join(f"{number:,} {reason.removeprefix('view-')}" for reason, number in taken.items() if number)
    note = f"{count(taken.total(), 'image')} of the test list {stays} although data.views would leave them out: {views}"
    return np.array(rows_kept, dtype=np.int64), {reason: ids for reason, ids in rest.items() if ids}, [note]


def _entries(path: Path, content: Table) -> tuple[list[str], list[int]]:
    """The images named and their lines; a header that is itself an entry counts as one."""
    names = list(content.columns)
    usual = columns_for("image", names)
    column = _find(content, IMAGE_COLUMNS) or (content.columns[usual[0]] if len(usual) == 1 else None)
    if column is not None:
        return column.texts(), content.lines.tolist()
    if len(names) == 1:
        return [names[0], *content.columns[names[0]].texts()], [1, *content.lines.tolist()]
    what = f"no column {' or '.join(repr(name) for name in IMAGE_COLUMNS[:3])}; found {names}"
    fault = Fault("columns", what, "name the column of the images so, or write one image a line")
    raise DataError(fault.message(path), reason=fault.reason)


def _find(content: Table, names: Sequence[str]) -> Column | None:
    found = [column for name, column in content.columns.items() if name.casefold() in names]
    return found[0] if found else None


def _match(entry: str, known: Collection[str]) -> str | None:
    """The image whose id is the longest end of the entry's path."""
    parts = [part for part in entry.replace("\\", "/").split("/") if part not in ("", ".")]
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((end for end in ends if end in known), None)


def _codes(path: Path, content: Table, findings: Sequence[str]) -> NDArray[np.int8]:
    """What the list says: from its columns of findings, from its column of classes, or both."""
    codes = np.full((len(content), len(findings)), _SILENT, dtype=np.int8)
    present = [name for name in findings if name in content.columns]
    typed, wrong = read_codes(content, present)
    raise_faults(path, wrong)
    codes[:, [findings.index(name) for name in present]] = typed
    column = _find(content, CLASS_COLUMNS)
    if column is None:
        return codes
    spelled = {_plain(name): i for i, name in enumerate(findings)}
    classes = [spelled.get(_plain(value)) for value in column.values]
    strange = [i for i, place in enumerate(classes) if place is None]
    if strange:
        held = ", ".join(repr(column.values[i][:40]) for i in strange[:3])
        where = content.lines[column.rows_of(strange)].tolist()
        raise_faults(path, [Fault("label", f"the class is {held}", f"name one of {', '.join(findings)}", where)])
    places = np.array([place or 0 for place in classes], dtype=np.int64)[column.index]
    rows = np.arange(len(content))
    denied = ~np.isin(codes[rows, places], (1, _SILENT))
    if denied.any():
        what = "the class is a finding whose own column does not say 1"
        raise_faults(path, [Fault("label", what, "fix one of them", content.lines[denied].tolist())])
    # Of the classes that the list tells apart an image shows its own and no other.
    for other in sorted(set(places.tolist())):
        codes[:, other] = np.where(codes[:, other] == _SILENT, 0, codes[:, other])
    codes[rows, places] = 1
    return codes


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()
