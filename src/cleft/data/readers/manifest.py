"""A user's own table: one row per image, the images anywhere below one folder.

Expects a CSV with a column `image` and optionally `patient`, `study`, `view`, `sex`, `age`, `laterality`, `scanner`,
`caption`, and a `report` or its `findings` and `impression`. Every other column is a finding with cells 1, 0, -1 or
empty; columns whose name begins with `_` are ignored.

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
    SectionChoice,
    choose_sections,
    collapse_whitespace,
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
"""Names of the columns that are not findings, by meaning, case-insensitive. If a table has none of them, other usual
names are accepted (`tables.patients.COLUMN_SYNONYMS`)."""

_REPORTS = ("report", "findings", "impression")
_ADD_TEXT = "add a column 'caption' or 'report', or one per finding"
_VIEWS = {"ap": "AP", "pa": "PA", "ll": "LL", "rl": "RL", "lat": "lateral", "lateral": "lateral"}
_SIDES = {"l": "L", "left": "L", "r": "R", "right": "R"}
_NO_PATIENT = (
    "no column 'patient': every image counts as a separate patient, and images of one patient may be in different "
    "splits"
)
_INSIDE = (
    "write paths below data.root with /, such as images/p1.png, and set data.root to a folder that contains all images"
)


def read_manifest(config: DataConfig, *, check_files: bool = True) -> ReaderResult:
    """Reads a user's own table.

    Args:
        config: `root` is the folder that contains the table and, at any depth, the images; `table` the table's name, by
            default `manifest.csv`; `views` the view positions to keep, by default all.
        check_files: Whether to drop images without a file. False reads a table without its images.

    Returns:
        One record per image in the table's order; uncertain labels are -1. The id is the image's path relative to the
        root. Without a patient column every image counts as a separate patient, and a note says so. Faulty rows are
        in `faults`.

    Raises:
        ConfigError: If `data.root` is not set.
        DataError: If there is no table, it cannot be read, or it has no column of images.
    """
    root = require_root(config)
    path = find_table(root, [root], config.table or TABLE)
    table, faults = read_table(path)
    named, ignored, column_faults = _name_columns(table)
    if "image" not in named:
        similar = suggestion("image", table.columns)
        missing = Fault(
            "columns",
            f"no column 'image'; found {list(table.columns)}",
            f"name the column of the images' paths so{similar}",
        )
        raise_faults(path, [*column_faults, missing])
    known = {id(column) for column in named.values()}
    findings = tuple(
        name
        for name, column in table.columns.items()
        if id(column) not in known and name not in ignored and not name.startswith("_")
    )
    codes, wrong_codes = read_codes(table, findings)
    ids, valid, wrong_paths = _read_paths(table, named["image"])
    present, outside = find_inside(root, ids)
    respelled = _find_respelled(root, ids, valid, present, outside)
    patients, id_faults, id_notes = _read_patients(table, named.get("patient"), ids)
    sexes, unknown_sexes = read_sexes(named.get("sex"), len(table))
    ages, unknown_ages = read_ages(named.get("age"), len(table))
    splits, wrong_splits = read_splits(table, named.get("split"))
    rows = Rows(
        ids=ids,
        images=[f"{root}/{respelled.get(name, name)}" for name in ids],
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
        valid=valid[~outside[valid]],
        views=config.views,
        present=present,
        notes=[
            *_column_notes(table, named, ignored),
            *id_notes,
            *_split_note(splits),
            *report_notes(rows.reports),
            *unknown_value_notes(unknown_sexes, unknown_ages),
            *_spelling_note(table, ids, respelled),
        ],
        faults=[
            *faults,
            *column_faults,
            *wrong_codes,
            *wrong_paths,
            *_outside_faults(table, outside),
            *id_faults,
            *wrong_splits,
            *_no_text_fault(named, findings),
        ],
        cautions=() if "patient" in named else (_NO_PATIENT,),
    )
    return build_result(parsed, config, check_files=check_files)


def _name_columns(table: Table) -> tuple[dict[str, Column], list[str], list[Fault]]:
    """Finds the columns that are not findings by their names.

    Returns:
        Columns by meaning; columns to ignore, because another one has their meaning or they are certainly not findings;
        and faults.
    """
    names = [name for name in table.columns if not name.startswith("_")]
    named: dict[str, Column] = {}
    ignored: list[str] = []
    faults: list[Fault] = []
    for meaning, accepted in COLUMNS.items():
        exact, usual = [name for name in names if name.casefold() in accepted], columns_for(meaning, names)
        found = exact or usual
        if found:
            named[meaning] = table.columns[found[0]]
            ignored += [name for name in usual if name != found[0]]
        if len(found) > 1:
            remedy = f"name one of them {meaning!r}, and put _ in front of the others"
            faults.append(Fault("columns", f"columns {found} all mean {meaning!r}", remedy, (1,)))
    known = {*ignored, *(name for name in names if any(table.columns[name] is column for column in named.values()))}
    for name in names:
        if name in known:
            continue
        if may_name_patients(name):
            what = f"column {name!r} may identify patients"
            remedy = f"name it 'patient' if it does, '_{name}' to ignore it, or differently if it is a finding"
            faults.append(Fault("columns", what, remedy, (1,)))
            ignored.append(name)
        elif is_not_a_finding(name):
            what = f"column {name!r} does not have the name of a finding"
            remedy = f"name it '_{name}' to ignore it, or give it the name of its finding"
            faults.append(Fault("columns", what, remedy, (1,)))
            ignored.append(name)
    return named, ignored, faults


def _read_paths(table: Table, column: Column) -> tuple[list[str], NDArray[np.int64], list[Fault]]:
    """Returns ids, the rows with a valid path, and faults; other rows have an empty id."""
    texts = column.texts()
    leaves = [leaves_root(text) for text in texts]
    ids = ["" if outside else normalise_path(text) for text, outside in zip(texts, leaves, strict=True)]
    out = [row for row, outside in enumerate(leaves) if outside]
    blank = [row for row, text in enumerate(texts) if not text]
    faults: list[Fault] = []
    if out:
        what = f"image {texts[out[0]][:80]!r} leaves the folder of the table"
        faults.append(Fault("outside-root", what, _INSIDE, table.lines[out].tolist()))
    if blank:
        faults.append(
            Fault("path", "column 'image' is empty", "fill in the path or remove the row", table.lines[blank].tolist())
        )
    return ids, np.array([row for row, name in enumerate(ids) if name], dtype=np.int64), faults


def _find_respelled(
    root: Path, ids: Sequence[str], valid: NDArray[np.int64], present: NDArray[np.bool_], outside: NDArray[np.bool_]
) -> dict[str, str]:
    """Finds missing images under another spelling and marks them as present."""
    missing: list[int] = [row for row in valid.tolist() if not present[row] and not outside[row]]
    if not missing:
        return {}
    taken = {ids[row] for row in np.flatnonzero(present).tolist()}
    respelled = find_respelled(root, list(dict.fromkeys(ids[row] for row in missing)), taken)
    for row in missing:
        present[row] = ids[row] in respelled
    return respelled


def _spelling_note(table: Table, ids: Sequence[str], respelled: Mapping[str, str]) -> list[str]:
    lines = [int(line) for name, line in zip(ids, table.lines.tolist(), strict=True) if name in respelled]
    if not lines:
        return []
    return [
        f"{count(len(respelled), 'image')} {verb(len(respelled), 'has', 'have')} another spelling on disk, in letter "
        f"case or Unicode composition ({format_lines(lines)}); "
        + agree(
            len(respelled), "[it is|they are] read, but spell [it|them] as on disk so that the table works everywhere"
        )
    ]


def _outside_faults(table: Table, outside: NDArray[np.bool_]) -> list[Fault]:
    if not outside.any():
        return []
    what = "an image is reached by a link that leaves the folder of the table"
    return [Fault("outside-root", what, "copy the images below data.root", table.lines[outside].tolist())]


def _read_patients(table: Table, column: Column | None, ids: list[str]) -> tuple[list[str], list[Fault], list[str]]:
    """Returns the patient of each row, faults, and a note about ids written as numbers."""
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


def _read_reports(named: Mapping[str, Column], rows: int, choice: SectionChoice) -> list[str | None] | None:
    """Returns the chosen sections of each report, from two columns or from the sections of one column.

    A report without headings is read completely.
    """
    if not named.keys() & set(_REPORTS):
        return None
    chosen: dict[tuple[str | None, ...], str | None] = {}
    columns = zip(*(read_texts(named.get(name), rows) for name in _REPORTS), strict=True)
    reports: list[str | None] = []
    for report, findings, impression in columns:
        key = (report, findings, impression)
        if key not in chosen:
            parts = {FINDINGS: findings or "", IMPRESSION: impression or ""}
            chosen[key] = choose_sections(parts, choice) if any(parts.values()) else _choose(report or "", choice)
        reports.append(chosen[key])
    return reports


def _choose(report: str, choice: SectionChoice) -> str | None:
    sections = split_sections(report)
    if choice == "whole" or not sections.keys() & {FINDINGS, IMPRESSION}:
        return collapse_whitespace(report) or None
    return choose_sections(sections, choice)


def _no_text_fault(named: Mapping[str, Column], findings: tuple[str, ...]) -> list[Fault]:
    if findings or named.keys() & {"caption", *_REPORTS}:
        return []
    return [Fault("columns", "no caption, report or finding", _ADD_TEXT)]


def _split_note(splits: Sequence[str | None] | None) -> list[str]:
    if splits is None:
        return []
    counts = Counter(splits)
    sizes = ", ".join(f"{split} {counts[split]:,}" for split in ("train", "val", "test"))
    none = counts[None]
    rest = f"; {count(none, 'row')} {verb(none, 'has', 'have')} none and would be left out" if none else ""
    return [f"column 'split' names {sizes}; data.split=given uses it{rest}"]


def _column_notes(table: Table, named: Mapping[str, Column], ignored: Sequence[str]) -> list[str]:
    underscored = [name for name in table.columns if name.startswith("_")]
    notes = [f"{table.path.name} holds {count(len(table), 'row')}"]
    notes += [_NO_PATIENT] * ("patient" not in named)
    for meaning, column in named.items():
        name = next(name for name, other in table.columns.items() if other is column)
        if name.casefold() not in COLUMNS[meaning]:
            notes.append(f"column {name!r} is read as {meaning!r}; name it {meaning!r} to be sure")
    if ignored:
        notes.append(f"ignored columns that are not findings: {', '.join(ignored)}")
    return notes + ([f"ignored columns that begin with _: {', '.join(underscored)}"] if underscored else [])


def write_template(folder: Path) -> Path:
    """Writes an example `manifest.csv` and a page that explains it.

    Returns:
        Path of the example table.

    Raises:
        ConfigError: If the folder has one that was edited, or that cleft did not write.
        ResourceError: If it cannot be written.
    """
    page, table = (
        Output(folder / name, "the example", overwrite=None, mode=0o644).check() for name in ("MANIFEST.md", TABLE)
    )
    for output in (page, table):
        output.write((_TEMPLATE / output.path.name).read_text(encoding="utf-8"))
    return table.path
