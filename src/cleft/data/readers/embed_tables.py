"""The two tables of EMBED: where they lie, what their columns are called, and ids that are still whole.

A row of the metadata table is a file, a row of the clinical table a finding. Both exist in full and reduced, and in
revisions that name some columns differently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from cleft.data.tables.csv import Column, Table, scan_table
from cleft.data.tables.faults import Fault, nearest, refuse
from cleft.data.tables.files import leaves_root
from cleft.data.tables.patients import whole_id
from cleft.errors import ConfigError, DataError

METADATA: Mapping[str, tuple[str, ...]] = {
    "patient": ("empi_anon",),
    "exam": ("acc_anon",),
    "path": ("anon_dicom_path",),
    "type": ("FinalImageType",),
    "laterality": ("ImageLateralityFinal",),
    "view": ("ViewPosition",),
}
"""Meaning to the names a required column may have; case does not matter."""

METADATA_MORE: Mapping[str, tuple[str, ...]] = {
    "magnified": ("spot_mag",),
    "description": ("StudyDescription",),
    "scanner": ("Manufacturer",),
    "implant": ("BreastImplantPresent",),
    "sex": ("PatientSex",),
}
"""Columns that a revision may lack."""

CLINICAL: Mapping[str, tuple[str, ...]] = {
    "patient": ("empi_anon",),
    "exam": ("acc_anon",),
    "side": ("side",),
    "assessment": ("asses",),
    "density": ("tissueden",),
}

CLINICAL_MORE: Mapping[str, tuple[str, ...]] = {
    "description": ("desc",),
    "age": ("age_at_study",),
    "sex": ("GENDER_DESC",),
    "race": ("RACE_DESC", "ETHNICITY_DESC"),
    "ethnicity": ("ETHNIC_GROUP_DESC",),
    "mass_shape": ("massshape",),
    "mass_density": ("massdens",),
    "calcification": ("calcfind",),
    "distribution": ("calcdistri",),
}

_FOLDER = "tables"
_NAMES = ("EMBED_OpenData_{}.csv", "EMBED_OpenData_{}_reduced.csv")
_FLOAT = re.compile(r"[0-9]*\.?[0-9]+[eE]\+?[0-9]+|[0-9]+\.[0-9]*")
_SHOWN = 30


class Named(NamedTuple):
    """A table whose columns are known by their meaning."""

    table: Table
    columns: Mapping[str, Column]
    faults: list[Fault]
    notes: list[str]


def find_tables(root: Path, name: str | None) -> tuple[Path, Path]:
    """Finds the metadata and the clinical table.

    Args:
        root: The folder that holds `tables`, or that one itself.
        name: Of the metadata table inside the root, or None for the full one, or else the reduced one.

    Raises:
        ConfigError: If the name leads out of the root.
        DataError: If one of them is not there, or cannot be told from others.
    """
    if name is not None and leaves_root(name):
        raise ConfigError(f"data.table={name!r} leads out of data.root; give a path inside {root}")
    folders = [folder for folder in (root / _FOLDER, root) if folder.is_dir()]
    if name is None:
        return _find(folders, "metadata"), _find(folders, "clinical")
    given = [folder / name for folder in (root, *folders) if (folder / name).is_file()]
    if not given:
        raise DataError(f"no {name} in {_listed(folders)}; data.table names the metadata table", reason="table")
    return given[0], _find([given[0].parent, *folders], "clinical")


def home_of(root: Path, table: Path) -> Path:
    """Returns the folder that holds `tables`, where `root` may be `tables` itself."""
    return root.parent if table.parent == root and root.name == _FOLDER else root


def read_columns(path: Path, required: Mapping[str, tuple[str, ...]], optional: Mapping[str, tuple[str, ...]]) -> Named:
    """Reads those columns of a table that have a meaning, and says where one goes by another name than usual.

    Raises:
        DataError: If nothing can be read, or a required column is missing; says what was found and what is nearest.
    """
    every = {**required, **optional}
    wanted = {name.casefold() for names in every.values() for name in names}
    table, faults = scan_table(path, wanted=lambda name: name.casefold() in wanted)
    found = {name.casefold(): name for name in table.columns}
    columns: dict[str, Column] = {}
    notes: list[str] = []
    for meaning, names in every.items():
        name = next((found[name.casefold()] for name in names if name.casefold() in found), None)
        if name is not None:
            columns[meaning] = table.columns[name]
            if name != names[0]:
                notes.append(f"{path.name} calls {names[0]} {name}")
    missing = [names[0] for meaning, names in required.items() if meaning not in columns]
    if missing:
        guesses = "".join(nearest(name, table.header) for name in missing)
        more = ", …" if len(table.header) > _SHOWN else ""
        what = f"no column {', '.join(map(repr, missing))}; found {', '.join(table.header[:_SHOWN])}{more}"
        refuse(path, [Fault("columns", what, f"is this a table of EMBED? rename or add it{guesses}")])
    return Named(table, columns, faults, notes)


def whole_ids(column: Column) -> tuple[list[str], list[int], int]:
    """Returns an id for each distinct text of a column, positions of the spoilt ones, and how many lost a `.0`.

    Ids are text: some of EMBED's 16 digits are more than a floating-point number holds. `123.0` is what a table
    makes of 123 when it was saved with numbers and gaps; up to 2^53 nothing was lost by that, and the `.0` is dropped.

    Example:
        >>> from numpy import arange
        >>> whole_ids(Column(["1234567890123456789", "12.0", "1.23e+15", "9007199254740993.0"], arange(4)))
        (['1234567890123456789', '12', '1.23e+15', '9007199254740993.0'], [2, 3], 1)
    """
    ids: list[str] = []
    spoilt: list[int] = []
    shortened = 0
    for position, value in enumerate(column.values):
        text = value.strip()
        whole = whole_id(text)
        if whole != text:
            text = whole
            shortened += 1
        elif not text.isdigit() and _FLOAT.fullmatch(text):
            spoilt.append(position)
        ids.append(text)
    return ids, spoilt, shortened


def told_of(path: Path, faults: Iterable[Fault]) -> list[Fault]:
    """Faults of a table other than the one that a scan is named after: their place goes into their words."""
    told: list[Fault] = []
    for fault in faults:
        sentence = fault.sentence(path)
        told.append(Fault(fault.reason, sentence.removesuffix(f"; {fault.remedy}"), fault.remedy))
    return told


def _find(folders: list[Path], kind: str) -> Path:
    for folder in folders:
        for pattern in _NAMES:
            if (folder / pattern.format(kind)).is_file():
                return folder / pattern.format(kind)
    others = sorted(
        {
            path
            for folder in folders
            for path in folder.glob("*.csv*")
            if kind in path.name.casefold() and "legend" not in path.name.casefold() and path.is_file()
        }
    )
    if len(others) == 1:
        return others[0]
    expected = " or ".join(pattern.format(kind) for pattern in _NAMES)
    if others:
        names = ", ".join(path.name for path in others)
        remedy = "set data.table to the one with the images" if kind == "metadata" else "keep one of them"
        raise DataError(f"{_listed(folders)} holds several {kind} tables: {names}; {remedy}", reason="table")
    raise DataError(
        f"no {expected} in {_listed(folders)}; set data.root to the folder that holds tables and images", reason="table"
    )


def _listed(folders: list[Path]) -> str:
    return " and ".join(str(folder) for folder in dict.fromkeys(folders))
