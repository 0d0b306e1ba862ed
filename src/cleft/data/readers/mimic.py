"""Reads MIMIC-CXR-JPG, or MIMIC-CXR with its DICOM files, and the reports of both.

Expects `files/p10/p10000032/s50414267/<dicom_id>.jpg` or `.dcm` and the tables of MIMIC-CXR-JPG beside `files`. Labels
and reports belong to studies, projections to images.

Shapes: `N` images, `C` findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cleft.config import DataConfig
from cleft.data.images.headers import Header, header_notes, read_headers
from cleft.data.readers.mimic_reports import Reports, archive_note, read_reports
from cleft.data.readers.mimic_tables import FINDINGS, Images, find_named, read_images, read_labels, read_parts
from cleft.data.sections import report_notes
from cleft.data.tables.csv import Table, scan_table
from cleft.data.tables.faults import refuse
from cleft.data.tables.files import are_files, is_junk
from cleft.data.tables.rows import Rows
from cleft.data.tables.scan import Scan, find_table, make_scan, require_root
from cleft.errors import DataError
from cleft.grammar import count, share, verb
from cleft.types import Reading

VIEWS = ("AP", "PA")
TABLE = "mimic-cxr-2.0.0-metadata.csv.gz"
RECORDS = "cxr-record-list"
LABELS = {"table": "chexpert", "negbio": "negbio"}
"""Value of `data.labels` to the end of the table's name."""

TERMS = (
    "PhysioNet's agreement for credentialed data allows no passing on of MIMIC-CXR, and its owners ask that models "
    "trained on it be treated as sensitive and be shared on PhysioNet alone, under the same agreement"
)

_ENDINGS = (".jpg", ".dcm", ".png", ".jpeg")
_PROBES = 64
_PUBLISHED = "published: 377,110 images of 227,835 studies of 65,379 patients"


def read_mimic(config: DataConfig, *, check_files: bool = True) -> Reading:
    """Reads MIMIC-CXR.

    Args:
        config: `root` is the folder that holds the tables and `files`, or the one above it; `table` the list of images,
            by default the metadata of MIMIC-CXR-JPG or else the record list of MIMIC-CXR; `labels` says whose labels
            count; `report` what is read of a report, `reports` where they lie; `views` are the projections to keep, by
            default AP and PA.
        check_files: Whether to look for every image on disk. False reads tables and reports alone.

    Returns:
        One record per image in the table's order, with -1 still in its labels. Its id is the `dicom_id`, its patient
        the `subject_id`; `split` that of the official table, whose `validate` is `val`.

    Raises:
        ConfigError: If `data.root` is not set, or `data.reports` is not there.
        DataError: If a table, the images or the reports are not what they should be, or more than `data.max_bad` of
            the images are missing.
    """
    scan = scan_mimic(config, check_files=check_files)
    refuse(scan.path, scan.faults)
    return scan.reading


def scan_mimic(config: DataConfig, *, check_files: bool = True) -> Scan:
    """Reads what can be read and collects what is wrong with the rest; see `read_mimic`."""
    root = require_root(config)
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir() and not is_junk(path.name))]
    path = _find_images(root, folders, config.table)
    homes = list(dict.fromkeys([path.parent, *folders]))
    table, faults = scan_table(path)
    images = read_images(table)
    parts = read_parts(find_named(homes, "split"), images.names)
    labels = read_labels(find_named(homes, LABELS.get(config.labels, config.labels)), images)
    usable = np.flatnonzero(images.sound)
    studies = {images.studies[row]: images.subjects[row] for row in usable.tolist()}
    reports = read_reports(config.reports, homes, studies, config.report)
    files = _locate(homes, images, usable, check_files=check_files)
    present = are_files(files) if check_files else None
    headers = _read_headers(config, files, present, images)
    rows = Rows(
        ids=images.names,
        images=files,
        findings=FINDINGS,
        codes=labels.codes,
        patients=images.subjects,
        studies=list(images.studies),
        views=_views(images, files, headers),
        sexes=[None] * len(table),
        ages=[None] * len(table),
        captions=[None] * len(table),
        lines=table.lines,
        splits=parts.values,
        reports=None if reports is None else [reports.texts.get(study) for study in images.studies],
    )
    scan = make_scan(
        "mimic",
        table,
        rows,
        usable,
        config,
        views=config.views or VIEWS,
        are_present=None if present is None else (lambda kept: present[kept]),
        notes=[
            _census(table, images),
            *parts.notes,
            *labels.notes,
            *([archive_note(homes)] if reports is None else _report_notes(reports, studies)),
            *report_notes(rows.reports),
            *header_notes(headers.values()),
        ],
        faults=[*faults, *images.faults, *parts.faults, *labels.faults, *(reports.faults if reports else ())],
        sources={**parts.sources, **(reports.sources if reports else {})},
    )
    # The label table comes first: what is said of labels names the first source.
    return scan._replace(reading=replace(scan.reading, sources={**labels.sources, **scan.reading.sources}))


def _find_images(root: Path, folders: Sequence[Path], name: str | None) -> Path:
    """The list of images: the named table, or the metadata of the JPG release, or the record list of the DICOM one."""
    if name is not None:
        return find_table(root, folders, name)
    return find_named(folders, "metadata") or find_named(folders, RECORDS) or find_table(root, folders, TABLE)


def _locate(homes: Sequence[Path], images: Images, usable: NDArray[np.int64], *, check_files: bool) -> list[str]:
    """Finds the folder and the ending of the images from a handful of them.

    Raises:
        DataError: If none of the probed images is anywhere.
    """
    below = [
        f"p{subject[:2]}/p{subject}/s{study}/{name}" if is_sound else ""
        for name, subject, study, is_sound in zip(
            images.names, images.subjects, images.studies, images.sound.tolist(), strict=True
        )
    ]
    tried = [folder / name for folder in homes for name in ("files", ".")]
    probes = usable[:: max(1, len(usable) // _PROBES)].tolist()
    for folder in tried if check_files else ():
        for ending in _ENDINGS:
            if any((folder / f"{below[row]}{ending}").is_file() for row in probes):
                return [f"{folder}/{path}{ending}" if path else f"{folder}/" for path in below]
    if check_files and len(usable):
        looked = ", ".join(str(folder) for folder in tried[:4])
        raise DataError(
            f"none of {count(len(probes), 'image')} probed is on disk; looked for "
            f"{below[probes[0]]}{_ENDINGS[0]} in {looked}; set data.root to the folder that holds files/p10 "
            "to files/p19",
            reason="missing",
        )
    return [f"{tried[0]}/{path}{_ENDINGS[0]}" if path else f"{tried[0]}/" for path in below]


def _read_headers(
    config: DataConfig, files: Sequence[str], present: NDArray[np.bool_] | None, images: Images
) -> dict[str, Header]:
    """Headers of DICOM files, for projections that no table tells; each is read once and kept beside the cache."""
    if present is None or any(images.views) or not any(file.endswith(".dcm") for file in files):
        return {}
    from cleft.data.images.prepared import cache_folder

    paths = [Path(file) for file, is_there in zip(files, present.tolist(), strict=True) if is_there]
    found = read_headers(paths, cache_folder(config) / "headers-mimic.parquet")
    return {str(path): header for path, header in found.items()}


def _views(images: Images, files: Sequence[str], headers: Mapping[str, Header]) -> list[str | None]:
    return [view or headers.get(file, Header()).view for view, file in zip(images.views, files, strict=True)]


def _census(table: Table, images: Images) -> str:
    counts = f"{count(len(set(images.names)), 'image')} of {count(len(set(images.studies)), 'study', 'studies')}"
    return f"{table.path.name} holds {counts} of {count(len(set(images.subjects)), 'patient')} ({_PUBLISHED})"


def _report_notes(reports: Reports, studies: Mapping[str, str]) -> list[str]:
    absent = len(studies.keys() - reports.texts.keys())
    without = sum(text is None for text in reports.texts.values())
    notes = list(reports.notes)
    if absent:
        lacking = share(absent, len(studies), "study", "studies")
        notes.append(f"{lacking} {verb(absent, 'has', 'have')} no report")
    if without:
        do = verb(without, "does", "do")
        notes.append(f"{count(without, 'report')} {do} not have the sections that data.report chooses")
    return notes
