"""Reads a user's own table: one row per image, anywhere below one folder.

Expects a CSV with a column `image` and, as far as known, `patient`, `study`, `view`, `sex`, `age`, `laterality`,
`scanner`, `caption`, and a `report` or its `findings` and `impression`.
Every further column is a finding with 1, 0, -1 or nothing; a column whose name begins with `_` is left out.

Shapes: `N` rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cleft.config import DataConfig
from cleft.data.tables.csv import Column, Table, read_table
from cleft.data.tables.faults import Fault, format_lines, raise_faults, suggestion
from cleft.data.tables.paths import find_inside, find_respelled, leaves_root, normalise_path
from cleft.data.tables.patients import columns_for, is_not_a_finding, may_name_patients, read_patients, rounded_fault
from cleft.data.tables.reading import (
    ParsedTable,
    ReaderResult,
    build_result,
    find_table,
    require_root,
    unknown_value_notes,
)
from cleft.data.tables.rows import Rows, read_ages, read_codes, read_sexes, read_splits, read_texts
from cleft.data.text.reports import (
    FINDINGS,
    IMPRESSION,
    Choice,
    choose_sections,
    join_blanks,
    report_notes,
    split_sections,
)
from cleft.files import Output
from cleft.grammar import agree, count, verb

TABLE = "manifest.csv"
_TEMPLATE = Path(__file__).parent / "template"
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "path"),
    "patient": ("patient", "patient_id"),
    "study": ("study", "study_id"),
    "view": ("view",),
    "sex": ("sex",),
    "age": ("age",),
    "laterality": ("laterality", "side"),
    "scanner": ("scanner", "manufacturer"),
    "caption": ("caption", "text"),
    "report": ("report",),
    "findings": ("findings",),
    "impression": ("impression",),
    "split": ("split", "subset"),
}
"""What is not a finding: meaning to the names it may have; case does not matter. Where none of them is there, other
usual names are understood (`tables.patients`)."""

_REPORTS = ("report", "findings", "impression")
_TELL = "add a column 'caption' or 'report', or one per finding"
_VIEWS = {"ap": "AP", "pa": "PA", "ll": "LL", "rl": "RL", "lat": "lateral", "lateral": "lateral"}
_SIDES = {"l": "L", "left": "L", "r": "R", "right": "R"}
_NO_PATIENT = (
    "no column 'patient': every image counts as a patient of its own, and images of one person may stand on both "
    "sides of a split"
)
_INSIDE = (
    "write paths below data.root with /, such as images/p1.png, and set data.root to a folder that holds all images"
)


def read_manifest(config: DataConfig, *, check_files: bool = True) -> ReaderResult:
    """Reads a user's own table.

    Args:
        config: `root` is the folder that holds the table and, at any depth, the images; `table` the table's
            name, by default `manifest.csv`; `views` are the projections to keep, by default all.
        check_files: Whether to drop images without a file. False reads a table without its images.

    Returns:
        One record per image in the table's order, with -1 still in its labels. Its id is the image's path
        below the root. Without a patient column every image is its own patient, and a note says so.

    Raises:
        ConfigError: If `data.root` is not set.
        DataError: If the table is not there, a path leaves the root, a cell is not what it should be, or more
            than `data.max_invalid` of the images are missing.
    """
    root = require_root(config)
    path = find_table(root, [root], config.table or TABLE)
    table, faults = read_table(path)
    named, left, twice = _name_columns(table)
    if "image" not in named:
        close = suggestion("image", table.columns)
        lacking = Fault("columns", f"no column 'image'; found {list(table.columns)}", f"name the images' paths{close}")
        raise_faults(path, [*twice, lacking])
    taken = {id(column) for column in named.values()}
    findings = tuple(
        name
        for name, column in table.columns.items()
        if id(column) not in taken and name not in left and not name.startswith("_")
    )
    codes, wrong_codes = read_codes(table, findings)
    ids, usable, wrong_paths = _read_paths(table, named["image"])
    present, outside = find_inside(root, ids)
    spelled = _respell(root, ids, usable, present, outside)
    patients, unnamed, id_notes = _read_patients(table, named.get("patient"), ids)
    sexes, odd_sexes = read_sexes(named.get("sex"), len(table))
    ages, odd_ages = read_ages(named.get("age"), len(table))
    splits, wrong_splits = read_splits(table, named.get("split"))
    rows = Rows(
        ids=ids,
        images=[f"{root}/{spelled.get(name, name)}" for name in ids],
        findings=findings,
        codes=codes,
        patients=patients,
        studies=read_texts(named.get("study"), len(table)),
        views=[_VIEWS.get((view or "").casefold(), view) for view in read_texts(named.get("view"), len(table))],
        sexes=sexes,
        ages=ages,
        captions=read_texts(named.get("caption"), len(table)),
        lines=table.lines,
        lateralities=[_SIDES.get((side or "").casefold()) for side in read_texts(named.get("laterality"), len(table))],
        scanners=read_texts(named.get("scanner"), len(table)),
        splits=splits,
        reports=_read_reports(named, len(table), config.report_sections),
    )
    parsed = ParsedTable(
        dataset="manifest",
        table=table,
        rows=rows,
        valid=usable[~outside[usable]],
        views=config.views,
        present=present,
        notes=[
            *_notes(table, named, left),
            *id_notes,
            *_split_note(splits),
            *report_notes(rows.reports),
            *unknown_value_notes(odd_sexes, odd_ages),
            *_spelling_note(table, ids, spelled),
        ],
        faults=[
            *faults,
            *twice,
            *wrong_codes,
            *wrong_paths,
            *_outside_faults(table, outside),
            *unnamed,
            *wrong_splits,
            *_nothing_to_say(named, findings),
        ],
        cautions=() if "patient" in named else (_NO_PATIENT,),
    )
    return build_result(parsed, config, check_files=check_files)


def _name_columns(table: Table) -> tuple[dict[str, Column], list[str], list[Fault]]:
    """Finds the columns that are not findings by any of their names.

    Returns:
        Meaning to column, columns that are left out because another one has their meaning or their name is surely none
        of a finding, and faults.
    """
    names = [name for name in table.columns if not name.startswith("_")]
    named: dict[str, Column] = {}
    left: list[str] = []
    faults: list[Fault] = []
    for meaning, own in COLUMNS.items():
        exact, usual = [name for name in names if name.casefold() in own], columns_for(meaning, names)
        found = exact or usual
        if found:
            named[meaning] = table.columns[found[0]]
            left += [name for name in usual if name != found[0]]
        if len(found) > 1:
            remedy = f"call one of them {meaning!r}, and put _ in front of the others"
            faults.append(Fault("columns", f"columns {found} all mean {meaning!r}", remedy, (1,)))
    known = {*left, *(name for name in names if any(table.columns[name] is column for column in named.values()))}
    for name in names:
        if name in known:
            continue
        if may_name_patients(name):
            what = f"column {name!r} may say who the patient is"
            remedy = f"call it 'patient' if it does, '_{name}' to leave it out, or otherwise if it is a finding"
            faults.append(Fault("columns", what, remedy, (1,)))
            left.append(name)
        elif is_not_a_finding(name):
            what = f"column {name!r} has no name of a finding"
            remedy = f"call it '_{name}' to leave it out, or give it the name of its finding"
            faults.append(Fault("columns", what, remedy, (1,)))
            left.append(name)
    return named, left, faults


def _read_paths(table: Table, column: Column) -> tuple[list[str], NDArray[np.int64], list[Fault]]:
    """Returns ids, the rows that have one, and faults; rows whose path must not be looked at have an empty id."""
    texts = column.texts()
    leaving = [leaves_root(text) for text in texts]
    ids = ["" if leaves else normalise_path(text) for text, leaves in zip(texts, leaving, strict=True)]
    out = [row for row, leaves in enumerate(leaving) if leaves]
    blank = [row for row, text in enumerate(texts) if not text]
    faults: list[Fault] = []
    if out:
        what = f"image {texts[out[0]][:80]!r} leaves the folder of the table"
        faults.append(Fault("outside-root", what, _INSIDE, table.lines[out].tolist()))
    if blank:
        faults.append(
            Fault("path", "no image is named", "fill in the path or remove the row", table.lines[blank].tolist())
        )
    return ids, np.array([row for row, name in enumerate(ids) if name], dtype=np.int64), faults


def _respell(
    root: Path, ids: Sequence[str], usable: NDArray[np.int64], present: NDArray[np.bool_], outside: NDArray[np.bool_]
) -> dict[str, str]:
    """Looks for missing images under another spelling; what is found counts as present."""
    missing: list[int] = [row for row in usable.tolist() if not present[row] and not outside[row]]
    if not missing:
        return {}
    taken = {ids[row] for row in np.flatnonzero(present).tolist()}
    spelled = find_respelled(root, list(dict.fromkeys(ids[row] for row in missing)), taken)
    for row in missing:
        present[row] = ids[row] in spelled
    return spelled


def _spelling_note(table: Table, ids: Sequence[str], spelled: Mapping[str, str]) -> list[str]:
    lines = [int(line) for name, line in zip(ids, table.lines.tolist(), strict=True) if name in spelled]
    if not lines:
        return []
    return [
        f"{count(len(spelled), 'image')} {verb(len(spelled), 'has', 'have')} another spelling on disk, in letter case "
        f"or in how accents are composed ({format_lines(lines)}); "
        + agree(
            len(spelled), "[it was|they were] found, but spell [it|them] as the disk does and the table works anywhere"
        )
    ]


def _outside_faults(table: Table, outside: NDArray[np.bool_]) -> list[Fault]:
    if not outside.any():
        return []
    what = "an image is reached by a link that leaves the folder of the table"
    return [Fault("outside-root", what, "copy the images below data.root", table.lines[outside].tolist())]


def _read_patients(table: Table, column: Column | None, ids: list[str]) -> tuple[list[str], list[Fault], list[str]]:
    """Returns the patient of each row, faults, and a note about ids that were written as numbers."""
    if column is None:
        return ids, [], []
    patients, rounded, shortened = read_patients(column)
    faults: list[Fault] = []
    blank = [row for row, text in enumerate(patients) if not text]
    if blank:
        remedy = "fill in a patient for every row, or remove the column if no patient is known"
        faults.append(Fault("patient", "column 'patient' is empty", remedy, table.lines[blank].tolist()))
    if rounded:
        faults.append(rounded_fault("patient", patients[rounded[0]], table.lines[rounded].tolist()))
    if not shortened:
        return patients, faults, []
    ids_are = (
        f"{shortened:,} {agree(shortened, '[id of a patient is|ids of patients are] written with .0 behind [it|them]')}"
    )
    return patients, faults, [f"{ids_are}; it was dropped"]


def _read_reports(named: Mapping[str, Column], rows: int, choice: Choice) -> list[str | None] | None:
    """What is chosen of each report: of its two columns, or of the sections in its one column.

    A report without headings is read whole: nobody said where its findings end.
    """
    if not named.keys() & set(_REPORTS):
        return None
    known: dict[tuple[str | None, ...], str | None] = {}
    columns = zip(*(read_texts(named.get(name), rows) for name in _REPORTS), strict=True)
    reports: list[str | None] = []
    for report, findings, impression in columns:
        key = (report, findings, impression)
        if key not in known:
            parts = {FINDINGS: findings or "", IMPRESSION: impression or ""}
            known[key] = choose_sections(parts, choice) if any(parts.values()) else _choose(report or "", choice)
        reports.append(known[key])
    return reports


def _choose(report: str, choice: Choice) -> str | None:
    sections = split_sections(report)
    if choice == "whole" or not sections.keys() & {FINDINGS, IMPRESSION}:
        return join_blanks(report) or None
    return choose_sections(sections, choice)


def _nothing_to_say(named: Mapping[str, Column], findings: tuple[str, ...]) -> list[Fault]:
    if findings or named.keys() & {"caption", *_REPORTS}:
        return []
    return [Fault("columns", "neither a caption nor a report nor a finding", _TELL)]


def _split_note(splits: Sequence[str | None] | None) -> list[str]:
    if splits is None:
        return []
    counts = Counter(splits)
    told = ", ".join(f"{part} {counts[part]:,}" for part in ("train", "val", "test"))
    none = counts[None]
    rest = f"; {count(none, 'row')} {verb(none, 'names', 'name')} none and would stay out" if none else ""
    return [f"column 'split' names {told}; data.split=given follows it{rest}"]


def _notes(table: Table, named: Mapping[str, Column], left: Sequence[str]) -> list[str]:
    ignored = [name for name in table.columns if name.startswith("_")]
    notes = [f"{table.path.name} holds {count(len(table), 'row')}"]
    notes += [_NO_PATIENT] * ("patient" not in named)
    for meaning, column in named.items():
        name = next(name for name, other in table.columns.items() if other is column)
        if name.casefold() not in COLUMNS[meaning]:
            notes.append(f"column {name!r} is read as {meaning!r}; call it {meaning!r} to be sure")
    if left:
        notes.append(f"columns that are not read, as they are no findings: {', '.join(left)}")
    return notes + ([f"left out columns that begin with _: {', '.join(ignored)}"] if ignored else [])


def write_template(folder: Path) -> Path:
    """Writes an example `manifest.csv` and a page that explains it.

    Returns:
        The example table.

    Raises:
        ConfigError: If the folder holds one that was filled in, or that cleft did not write.
        ResourceError: If it cannot be written.
    """
    page, table = (
        Output(folder / name, "the example", overwrite=None, mode=0o644).check() for name in ("MANIFEST.md", TABLE)
    )
    for output in (page, table):
        output.write((_TEMPLATE / output.path.name).read_text(encoding="utf-8"))
    return table.path
