"""Reads the RSNA Pneumonia Detection Challenge of 2018, as Kaggle gives it out (stage 2).

Expects `stage_2_train_labels.csv`, one row per box, and `stage_2_train_images/<patientId>.dcm`. An image is positive if
any of its rows is. `patientId` names an image; who the patient is, says a mapping to NIH (`readers.rsna_people`).
Projection, sex and age stand in the DICOM headers, which are read once and kept.

Shapes: `R` rows of the table, `N` images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cleft.config import DataConfig
from cleft.data.images.headers import Header, header_notes, read_headers
from cleft.data.readers.rsna_people import assign_patients, find_mapping
from cleft.data.readers.rsna_tables import BOX, Details, Labels, read_details, read_labels
from cleft.data.tables.csv import scan_table
from cleft.data.tables.faults import missing_columns, refuse
from cleft.data.tables.files import are_files, is_junk
from cleft.data.tables.rows import Rows
from cleft.data.tables.scan import Scan, find_table, make_scan, require_root
from cleft.errors import DataError
from cleft.grammar import count, verb
from cleft.types import Reading

NEGATIVE, POSITIVE, NORMAL = "No Pneumonia", "Pneumonia", "Normal"
"""An image without boxes need not be normal, and 70 % are not; `Normal` is known where the detailed classes are."""

TABLE = "stage_2_train_labels.csv"
DETAILS = "stage_2_detailed_class_info.csv"
IMAGES = "stage_2_train_images"
UNLABELLED = "stage_2_test_images"

_PROBES = 8
_PUBLISHED = "published: 26,684 images, 6,012 of them positive with 9,555 boxes"


def read_rsna(config: DataConfig, *, check_files: bool = True) -> Reading:
    """Reads RSNA.

    Args:
        config: `root` is the folder of the download, or the one above it; `table` the label table, by default
            `stage_2_train_labels.csv`; `mapping` says who the patients are; `views` are the projections to keep, by
            default all.
        check_files: Whether to look for every image on disk and to read its header. False reads tables alone, so that
            projection, sex and age stay unknown.

    Returns:
        One record per image, in the order in which the table first names them. Its id is the `patientId`. `Pneumonia`
        and `No Pneumonia` are both told, one of them 1; `Normal` where the detailed classes lie beside the table.

    Raises:
        ConfigError: If `data.root` is not set.
        DataError: If a table or the images are not there, rows of an image disagree, or more than `data.max_bad` of the
            images are missing or not in the mapping.
    """
    scan = scan_rsna(config, check_files=check_files)
    refuse(scan.path, scan.faults)
    return scan.reading


def scan_rsna(config: DataConfig, *, check_files: bool = True) -> Scan:
    """Reads what can be read and collects what is wrong with the rest; see `read_rsna`."""
    root = require_root(config)
    folders = _folders(root)
    path = _find(root, folders, config.table or TABLE)
    table, faults = scan_table(path)
    lacking = missing_columns(table.columns, ["patientId", *BOX, "Target"])
    if lacking:
        refuse(path, lacking)
    labels, wrong = read_labels(table)
    homes = list(dict.fromkeys([path.parent, *folders]))
    detailed = next((found for home in homes for found in _forms(home, DETAILS)), None)
    details = Details() if detailed is None else read_details(detailed, labels)
    patients = assign_patients(find_mapping(config.mapping, homes), labels.names, config.max_bad)
    folder = _locate(homes, labels.names) if check_files else str(path.parent / IMAGES)
    files = [f"{folder}/{name}.dcm" for name in labels.names]
    present = are_files(files) if check_files else None
    headers = {} if present is None else _read_headers(config, files, present)
    seen = [headers.get(file, Header()) for file in files]
    told = [1 - labels.target, labels.target, *([] if details.normal is None else [details.normal])]
    rows = Rows(
        ids=labels.names,
        images=files,
        findings=(NEGATIVE, POSITIVE, NORMAL)[: len(told)],
        codes=np.stack(told, axis=1).astype(np.int8),
        patients=patients.names,
        studies=[None] * len(files),
        views=[header.view for header in seen],
        sexes=[header.sex for header in seen],
        ages=[header.age for header in seen],
        captions=[None] * len(files),
        lines=labels.lines,
        scanners=[header.manufacturer for header in seen],
    )
    scan = make_scan(
        "rsna",
        table,
        rows,
        np.flatnonzero(labels.sound & patients.known),
        config,
        views=config.views,
        are_present=None if present is None else (lambda kept: present[kept]),
        notes=[
            _census(path.name, labels),
            *details.notes,
            *patients.notes,
            *header_notes(headers.values()),
            *_unlabelled(homes),
        ],
        faults=[*faults, *wrong, *patients.faults],
        rejected={**({"duplicate": labels.repeated} if labels.repeated else {}), **patients.rejected},
        sources={**details.sources, **patients.sources},
    )
    return scan._replace(reading=replace(scan.reading, people=patients.people, cautions=patients.cautions))


def _folders(root: Path) -> list[Path]:
    """The root and what lies one level below it, such as `RSNA Pneumonia`."""
    return [root, *sorted(path for path in root.iterdir() if path.is_dir() and not is_junk(path.name))]


def _forms(folder: Path, name: str) -> list[Path]:
    """A table that is there: plain, compressed, or alone in an archive."""
    return [folder / f"{name}{end}" for end in ("", ".gz", ".zip") if (folder / f"{name}{end}").is_file()]


def _find(root: Path, folders: Sequence[Path], name: str) -> Path:
    found = [path.name for folder in folders for path in _forms(folder, name)]
    return find_table(root, folders, found[0] if found and name not in found else name)


def _locate(homes: Sequence[Path], names: Sequence[str]) -> str:
    """Finds the folder of the images from a handful of them.

    Raises:
        DataError: If none of the probed images is anywhere.
    """
    probes = names[:: max(1, len(names) // _PROBES)]
    tried = [place for home in homes for place in (home / IMAGES, home / IMAGES / IMAGES)]
    for folder in tried:
        if any((folder / f"{name}.dcm").is_file() for name in probes):
            return str(folder)
    raise DataError(
        f"none of {count(len(probes), 'image')} probed is on disk; looked for {probes[0]}.dcm in "
        f"{', '.join(str(folder) for folder in tried[:4])}; set data.root to the folder that holds {IMAGES}",
        reason="missing",
    )


def _read_headers(config: DataConfig, files: Sequence[str], present: NDArray[np.bool_] | None) -> dict[str, Header]:
    """Headers of the images that are there, each read once and kept beside the prepared images."""
    if present is None:
        return {}
    from cleft.data.images.prepared import cache_folder

    paths = [Path(file) for file, is_there in zip(files, present.tolist(), strict=True) if is_there]
    found = read_headers(paths, cache_folder(config) / "headers-rsna.parquet")
    return {str(path): header for path, header in found.items()}


def _census(name: str, labels: Labels) -> str:
    positive = int(labels.target.sum())
    return (
        f"{name} holds {count(len(labels.names), 'image')}, {positive:,} positive with "
        f"{count(labels.boxes, 'box', 'boxes')} ({_PUBLISHED})"
    )


def _unlabelled(homes: Sequence[Path]) -> list[str]:
    for home in homes:
        number = sum(1 for path in (home / UNLABELLED).glob("*.dcm") if not is_junk(path.name))
        if number:
            are = verb(number, "is", "are")
            return [f"{count(number, 'image')} in {UNLABELLED} {are} without labels and {are} not read"]
    return []
