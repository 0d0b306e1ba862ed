"""MIMIC-CXR-JPG, or MIMIC-CXR with its DICOM files, and the reports of both.

Expects `files/p10/p10000032/s50414267/<dicom_id>.jpg` or `.dcm` and the tables of MIMIC-CXR-JPG next to `files`. Labels
and reports belong to studies, view positions to images. Reports are text files, one per study, or the table of sections
written by the owner's `create_section_files.py`.

Shapes: `N` images, `C` findings.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cleft.config import DataConfig
from cleft.data.images.cache import read_dataset_headers
from cleft.data.images.dicom_headers import Header, header_notes
from cleft.data.tables.csv import MAX_CELL_BYTES, Table, read_table
from cleft.data.tables.faults import Fault, faults_of_table, missing_columns, raise_faults
from cleft.data.tables.paths import are_files, is_junk
from cleft.data.tables.patients import clean_id
from cleft.data.tables.reading import (
    ParsedTable,
    ReaderResult,
    build_result,
    find_file,
    find_table,
    folders_below,
    require_root,
)
from cleft.data.tables.rows import BLANK, Rows, read_codes, read_splits
from cleft.data.text.reports import (
    COMPARISON,
    IMPRESSION,
    LAST_PARAGRAPH,
    SectionChoice,
    choose_sections,
    report_notes,
    split_sections,
)
from cleft.data.text.reports import FINDINGS as FINDINGS_SECTION
from cleft.errors import ConfigError, DataError
from cleft.grammar import agree, count, share, verb

TABLE = "mimic-cxr-2.0.0-metadata.csv.gz"
RECORDS = "cxr-record-list"
LABELS = {"table": "chexpert", "negbio": "negbio"}
"""Last part of the label table's name, by the value of `data.label_source`."""

SECTIONED = "mimic_cxr_sectioned.csv"
ARCHIVE = "mimic-cxr-reports.zip"
SUBJECT, STUDY, DICOM = "subject_id", "study_id", "dicom_id"
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
"""CheXpert's findings, in alphabetical order as in the tables."""

VIEWS = ("AP", "PA")
TERMS = (
    "PhysioNet's agreement for credentialed data forbids passing MIMIC-CXR on; its owners request that models trained "
    "on it be treated as sensitive and shared only on PhysioNet, under the same agreement"
)
_REPORT_FOLDERS = ("files", "mimic-cxr-reports/files", "mimic-cxr-reports", "reports/files", "reports", ".")
_SECTIONS = (FINDINGS_SECTION, IMPRESSION, LAST_PARAGRAPH, COMPARISON)
_VIEW, _VIEW_CODE = "ViewPosition", "ViewCodeSequence_CodeMeaning"
_VIEWS = {"lateral": "lateral", "postero-anterior": "PA", "antero-posterior": "AP", "left lateral": "LL"}
_NUMBER = re.compile(r"[0-9]{1,12}")
_NAME = re.compile(r"[0-9A-Za-z]+(?:-[0-9A-Za-z]+)*")
_EXTENSIONS = (".jpg", ".dcm", ".png", ".jpeg")
_EXAMPLES = 3
_PROBES = 64
_PUBLISHED = "published: 377,110 images of 227,835 studies of 65,379 patients"


def read_mimic(config: DataConfig, *, check_files: bool = True) -> ReaderResult:
    """Reads MIMIC-CXR.

    Args:
        config: `root` is the folder that contains the tables and `files`, or its parent; `table` the list of images, by
            default the metadata of MIMIC-CXR-JPG or else the record list of MIMIC-CXR; `label_source` the source of the
            labels; `report_sections` the sections to read, `reports` the folder or table of the reports; `views` the
            view positions to keep, by default AP and PA.
        check_files: Whether to check that every image exists. False reads tables and reports only.

    Returns:
        One record per image in the table's order; uncertain labels are -1. The id is the `dicom_id`, the patient the
        `subject_id`; `split` follows the official table, whose `validate` is `val`. Faulty rows are in `faults`.

    Raises:
        ConfigError: If `data.root` is not set, or `data.reports` does not exist.
        DataError: If a table or the reports cannot be read, or none of the images exists.
    """
    root = require_root(config)
    folders = folders_below(root)
    path = _find_image_list(root, folders, config.table)
    search_folders = list(dict.fromkeys([path.parent, *folders]))
    table, faults = read_table(path)
    images = read_images(table)
    official = read_official_split(find_named(search_folders, "split"), images.names)
    labels = read_labels(find_named(search_folders, LABELS.get(config.label_source, config.label_source)), images)
    valid = np.flatnonzero(images.valid)
    studies = {images.studies[row]: images.subjects[row] for row in valid.tolist()}
    reports = read_reports(config.reports, search_folders, studies, config.report_sections)
    files = _image_paths(search_folders, images, valid, check_files=check_files)
    present = are_files(files) if check_files else None
    headers: dict[str, Header] = {}
    if present is not None and not any(images.views):
        # The record list of the DICOM release has no view positions; the headers do.
        dicom = [file for file in compress(files, present.tolist()) if file.endswith(".dcm")]
        headers = read_dataset_headers(config, dicom) if dicom else {}
    rows = Rows(
        ids=images.names,
        images=files,
        findings=FINDINGS,
        codes=labels.codes,
        patients=images.subjects,
        studies=list(images.studies),
        views=_views(images, files, headers),
        lines=table.lines,
        splits=official.splits,
        reports=None if reports is None else [reports.texts.get(study) for study in images.studies],
    )
    parsed = ParsedTable(
        dataset="mimic",
        table=table,
        rows=rows,
        valid=valid,
        views=config.views or VIEWS,
        present=present,
        notes=[
            _size_note(table, images),
            *official.notes,
            *labels.notes,
            *([no_reports_note(search_folders)] if reports is None else _report_notes(reports, studies)),
            *report_notes(rows.reports),
            *header_notes(headers.values()),
        ],
        faults=[*faults, *images.faults, *official.faults, *labels.faults, *(reports.faults if reports else ())],
        sources={**labels.sources, **table.source, **official.sources, **(reports.sources if reports else {})},
    )
    return build_result(parsed, config, check_files=check_files)


class Reports(NamedTuple):
    """Texts of the reports."""

    texts: Mapping[str, str | None]
    """Text by `study_id`; None if the report lacks the chosen sections. Studies without a report are missing."""
    faults: list[Fault]
    notes: list[str]
    sources: Mapping[str, str]


def read_reports(
    given: Path | None, folders: Sequence[Path], studies: Mapping[str, str], choice: SectionChoice
) -> Reports | None:
    """Reads the report of every study.

    Args:
        given: `data.reports`, a folder or a table; None looks for them in `folders`.
        folders: Folders that may contain a table or a folder of reports.
        studies: `subject_id` by `study_id`.
        choice: Sections to read.

    Returns:
        The texts, or None if there is neither a table nor a folder of reports.

    Raises:
        ConfigError: If `data.reports` does not exist.
        DataError: If the table cannot be read, or none of the reports belongs to a study.
    """
    if given is not None and not given.exists():
        raise ConfigError(f"no reports at {given}; set data.reports to an existing folder or table, or omit it")
    if given is not None and given.is_file():
        return _read_sectioned(given, studies, choice)
    searched = folders if given is None else [given]
    table = find_file(searched, SECTIONED)
    if table is not None:
        return _read_sectioned(table, studies, choice)
    for folder in (folder / name for folder in searched for name in _REPORT_FOLDERS):
        if _has_reports(folder, studies):
            return _read_files(folder, studies, choice)
    if given is not None:
        raise DataError(
            f"no report of a study in {given}; it should contain p10/p10000032/s50414267.txt etc., or {SECTIONED}",
            reason="reports",
        )
    return None


def no_reports_note(folders: Sequence[Path]) -> str:
    """Returns a note that there are no reports, and how to get them."""
    packed = next((folder / ARCHIVE for folder in folders if (folder / ARCHIVE).is_file()), None)
    if packed is not None:
        return f"{ARCHIVE} is not unpacked: reports are not read; unpack it in {packed.parent}"
    return f"no reports: neither {SECTIONED} nor files/p10/p10000032/s50414267.txt; captions are made from labels"


def _has_reports(folder: Path, studies: Mapping[str, str]) -> bool:
    """Whether a folder has reports, judged by a few studies."""
    if not folder.is_dir():
        return False
    probes = list(studies.items())[:: max(1, len(studies) // _PROBES)]
    return any(_report_path(folder, study, subject).is_file() for study, subject in probes)


def _report_path(folder: Path, study: str, subject: str) -> Path:
    return folder / f"p{subject[:2]}" / f"p{subject}" / f"s{study}.txt"


def _read_files(folder: Path, studies: Mapping[str, str], choice: SectionChoice) -> Reports:
    texts: dict[str, str | None] = {}
    digest = hashlib.sha256()
    large: list[str] = []
    for study in sorted(studies):
        try:
            with _report_path(folder, study, studies[study]).open("rb") as file:
                raw = file.read(MAX_CELL_BYTES + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataError(f"s{study}.txt cannot be read: {error.strerror}", reason="reports") from error
        if len(raw) > MAX_CELL_BYTES:
            large.append(study)
            continue
        digest.update(f"{study} {len(raw)} ".encode() + raw)
        texts[study] = choose_sections(split_sections(_decode(raw)), choice)
    faults: list[Fault] = []
    if large:
        examples = ", ".join(f"s{study}.txt" for study in large[:_EXAMPLES])
        reports_are = f"{count(len(large), 'report')} {verb(len(large), 'is', 'are')}"
        what = f"{reports_are} larger than {MAX_CELL_BYTES >> 10} KiB, such as {examples}"
        remedy = "[this is not a report|these are not reports] of MIMIC-CXR; copy [it|them] again"
        faults.append(Fault("reports", what, agree(len(large), remedy)))
    return Reports(texts, faults, [f"reports from {count(len(texts), 'text file')}"], {"reports": digest.hexdigest()})


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace").replace("\r\n", "\n")


def _read_sectioned(path: Path, studies: Mapping[str, str], choice: SectionChoice) -> Reports:
    table, faults = read_table(path)
    if "study" not in table.columns or not any(name in table.columns for name in _SECTIONS[:2]):
        lacking = missing_columns(table.columns, ["study", *_SECTIONS[:2]])
        raise_faults(
            path,
            [fault._replace(remedy=f"{fault.remedy}; was it made by create_section_files.py?") for fault in lacking],
        )
    columns = {name: table.columns[name].texts() for name in _SECTIONS if name in table.columns}
    names = [name.removeprefix("s").removesuffix(".txt") for name in table.columns["study"].texts()]
    first: dict[str, int] = {}
    conflicts: list[int] = []
    for row, study in enumerate(names):
        other = first.setdefault(study, row)
        if any(texts[row] != texts[other] for texts in columns.values()):
            conflicts += [other, row]
    if conflicts:
        what, lines = "two reports of the same study differ", table.lines[sorted(set(conflicts))].tolist()
        faults = [*faults, Fault("duplicate", what, "keep the correct row", lines)]
    faults = faults_of_table(path, faults)
    matched = {study: row for study, row in first.items() if study in studies}
    if not matched:
        raise DataError(
            f"{path} names {count(len(first), 'study', 'studies')}, none of which is among the {len(studies):,} of the "
            "images; is it from another release or dataset?",
            reason="reports",
        )
    texts = {
        study: choose_sections(_with_last_paragraph({name: texts[row] for name, texts in columns.items()}), choice)
        for study, row in matched.items()
    }
    studies_named = count(len(first), "study", "studies")
    notes = [f"reports from {path.name}: {studies_named}", *_unmatched_note(path, len(first) - len(matched))]
    if LAST_PARAGRAPH not in columns:
        notes.append(f"{path.name} has no column 'last_paragraph'; reports without headings have no text")
    return Reports(texts, faults, notes, table.source)


def _with_last_paragraph(sections: Mapping[str, str]) -> Mapping[str, str]:
    """Uses the comparison as last paragraph if there is none; some radiologists write everything there."""
    return {**sections, LAST_PARAGRAPH: sections.get(LAST_PARAGRAPH) or sections.get(COMPARISON, "")}


def _unmatched_note(path: Path, number: int) -> Iterator[str]:
    if number:
        yield f"{count(number, 'study', 'studies')} of {path.name} {verb(number, 'has', 'have')} no image here"


class Images(NamedTuple):
    """The images of the list, in its order."""

    names: list[str]
    """`dicom_id`."""
    subjects: list[str]
    studies: list[str]
    views: list[str | None]
    valid: NDArray[np.bool_]
    """Whether all three ids have the right form, `[N]`; other ids must not be used as paths."""
    faults: list[Fault]


class OfficialSplit(NamedTuple):
    """The split of the official table."""

    splits: list[str | None] | None
    """`train`, `val`, `test` or None for each image, `[N]`; None without a table."""
    faults: list[Fault]
    notes: list[str]
    sources: Mapping[str, str]


class Labels(NamedTuple):
    """Labels of the images, which are those of their studies."""

    codes: NDArray[np.int8]
    """1, 0, -1 or `BLANK`, `[N, C]`."""
    faults: list[Fault]
    notes: list[str]
    sources: Mapping[str, str]


def find_named(folders: Sequence[Path], name: str) -> Path | None:
    """Finds a table of any release by the last part of its name: `mimic-cxr-2.0.0-split.csv.gz` by `split`."""
    ending = re.compile(rf"(?:mimic-cxr-[0-9.]+-{name}|{name})\.csv(?:\.gz|\.zip)?")
    for folder in folders:
        found = sorted(path for path in folder.iterdir() if ending.fullmatch(path.name) and not is_junk(path.name))
        if found:
            return found[0]
    return None


def read_images(table: Table) -> Images:
    """Reads the list of images: the metadata of MIMIC-CXR-JPG, or the record list of MIMIC-CXR.

    Raises:
        DataError: If the column of one of the three ids is missing.
    """
    raise_faults(table.path, missing_columns(table.columns, [SUBJECT, STUDY, DICOM]))
    names = table.columns[DICOM].texts()
    subjects, studies = (list(map(clean_id, table.columns[name].texts())) for name in (SUBJECT, STUDY))
    valid = np.ones(len(table), dtype=bool)
    faults: list[Fault] = []
    for column, texts, form, remedy in (
        (SUBJECT, subjects, _NUMBER, "it is a number, such as 10000032"),
        (STUDY, studies, _NUMBER, "it is a number, such as 50414267"),
        (DICOM, names, _NAME, "it is groups of letters and digits with - between them; copy the table again"),
    ):
        wrong = [row for row, text in enumerate(texts) if not form.fullmatch(text)]
        if wrong:
            valid[wrong] = False
            faults.append(Fault("path", f"column {column!r} holds no id", remedy, table.lines[wrong].tolist()))
    faults += _shared_study_faults(table, subjects, studies, valid)
    return Images(names, subjects, studies, _read_views(table), valid, faults)


def _shared_study_faults(
    table: Table, subjects: Sequence[str], studies: Sequence[str], valid: NDArray[np.bool_]
) -> list[Fault]:
    """Marks rows as invalid whose study belongs to another patient; such a study could be in two splits."""
    subject_of: dict[str, str] = {}
    shared = [
        row
        for row in np.flatnonzero(valid).tolist()
        if subject_of.setdefault(studies[row], subjects[row]) != subjects[row]
    ]
    if not shared:
        return []
    valid[shared] = False
    what = "a study belongs to two patients"
    return [Fault("patient", what, "keep the correct row", table.lines[shared].tolist())]


def _read_views(table: Table) -> list[str | None]:
    """Returns `ViewPosition`, or else the meaning of the view code."""
    views: list[str | None] = [None] * len(table)
    for column in (_VIEW_CODE, _VIEW):
        if column in table.columns:
            texts = table.columns[column].texts()
            view_of = {text: _VIEWS.get(text.casefold(), text if column == _VIEW else None) for text in set(texts)}
            views = [view_of[text] if text else view for text, view in zip(texts, views, strict=True)]
    return [view or None for view in views]


def read_official_split(path: Path | None, names: Sequence[str]) -> OfficialSplit:
    """Reads the official split: `train`, `validate` or `test` of every image.

    Args:
        path: Its table; None if there is none.
        names: `dicom_id` of each image, `[N]`.
    """
    if path is None:
        note = "no mimic-cxr-2.0.0-split.csv: no official split (data.split=patients needs none)"
        return OfficialSplit(None, [], [note], {})
    table, faults = read_table(path)
    raise_faults(path, missing_columns(table.columns, [DICOM, "split"]))
    splits, wrong = read_splits(table, table.columns["split"])
    split_of: dict[str, str | None] = {}
    conflicts: list[int] = []
    for row, (name, split) in enumerate(zip(table.columns[DICOM].texts(), splits or (), strict=True)):
        if split_of.setdefault(name, split) != split:
            conflicts.append(row)
    if conflicts:
        what = "an image is in two splits"
        wrong = [*wrong, Fault("split", what, "copy the table again", table.lines[conflicts].tolist())]
    splits = [split_of.get(name) for name in names]
    counts = Counter(splits)
    notes = ["official split: " + ", ".join(f"{split} {counts[split]:,}" for split in ("train", "val", "test"))]
    if counts[None]:
        notes.append(
            f"{count(counts[None], 'image')} {verb(counts[None], 'is', 'are')} not in {path.name}; "
            f"data.split=given leaves {verb(counts[None], 'it', 'them')} out. Is the table from the same release?"
        )
    return OfficialSplit(splits, faults_of_table(path, [*faults, *wrong]), notes, table.source)


def read_labels(path: Path | None, images: Images) -> Labels:
    """Reads the labels of every study and assigns them to its images.

    Args:
        path: `mimic-cxr-2.0.0-chexpert.csv` or `-negbio.csv`; None if there is none.
        images: The images.

    Raises:
        DataError: If the table lacks a column.
    """
    codes = np.full((len(images.names), len(FINDINGS)), BLANK, dtype=np.int8)
    if path is None:
        note = "no mimic-cxr-2.0.0-chexpert.csv (or -negbio.csv with data.label_source=negbio): findings are unknown"
        return Labels(codes, [], [note], {})
    table, faults = read_table(path)
    raise_faults(path, missing_columns(table.columns, [SUBJECT, STUDY, *FINDINGS]))
    study_codes, wrong = read_codes(table, FINDINGS)
    row_of: dict[tuple[str, str], int] = {}
    conflicts: list[int] = []
    keys = zip(*(map(clean_id, table.columns[name].texts()) for name in (SUBJECT, STUDY)), strict=True)
    for row, key in enumerate(keys):
        other = row_of.setdefault(key, row)
        if not np.array_equal(study_codes[row], study_codes[other]):
            conflicts += [other, row]
    if conflicts:
        what = "two rows of the same study disagree"
        wrong = [*wrong, Fault("duplicate", what, "keep the correct row", table.lines[conflicts].tolist())]
    faults = faults_of_table(path, [*faults, *wrong])
    rows = np.array([row_of.get(key, -1) for key in zip(images.subjects, images.studies, strict=True)], dtype=np.int64)
    codes[rows >= 0] = study_codes[rows[rows >= 0]]
    unlabelled = len({images.studies[row] for row in np.flatnonzero(rows < 0).tolist()})
    notes = [f"{path.name} labels {count(len(row_of), 'study', 'studies')} (published: 227,827)"]
    if unlabelled == len(set(images.studies)):
        what = f"none of the studies is in {path.name}"
        faults.append(Fault("labels", what, "copy both tables from one release"))
    elif unlabelled:
        text = agree(unlabelled, "[has|have] no labels there; [its|their] findings are unknown")
        notes.append(f"{count(unlabelled, 'study', 'studies')} {text}")
    return Labels(codes, faults, notes, table.source)


def _find_image_list(root: Path, folders: Sequence[Path], name: str | None) -> Path:
    """Returns the named table, or else the metadata of the JPG release, or the record list of the DICOM release."""
    if name is not None:
        return find_table(root, folders, name)
    return find_named(folders, "metadata") or find_named(folders, RECORDS) or find_table(root, folders, TABLE)


def _image_paths(
    search_folders: Sequence[Path], images: Images, valid: NDArray[np.int64], *, check_files: bool
) -> list[str]:
    """Returns the path of each image; folder and extension are found by probing a few of them.

    Raises:
        DataError: If none of the probed images exists.
    """
    relative = [
        f"p{subject[:2]}/p{subject}/s{study}/{name}" if is_valid else ""
        for name, subject, study, is_valid in zip(
            images.names, images.subjects, images.studies, images.valid.tolist(), strict=True
        )
    ]
    tried = [folder / name for folder in search_folders for name in ("files", ".")]
    probes = valid[:: max(1, len(valid) // _PROBES)].tolist()
    for folder in tried if check_files else ():
        for extension in _EXTENSIONS:
            if any((folder / f"{relative[row]}{extension}").is_file() for row in probes):
                return [f"{folder}/{path}{extension}" if path else f"{folder}/" for path in relative]
    if check_files and len(valid):
        looked = ", ".join(str(folder) for folder in tried[:4])
        raise DataError(
            f"none of {count(len(probes), 'image')} probed is on disk; looked for "
            f"{relative[probes[0]]}{_EXTENSIONS[0]} in {looked}; set data.root to the folder that contains files/p10 "
            "to files/p19",
            reason="missing",
        )
    return [f"{tried[0]}/{path}{_EXTENSIONS[0]}" if path else f"{tried[0]}/" for path in relative]


def _views(images: Images, files: Sequence[str], headers: Mapping[str, Header]) -> list[str | None]:
    return [view or headers.get(file, Header()).view for view, file in zip(images.views, files, strict=True)]


def _size_note(table: Table, images: Images) -> str:
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
        notes.append(f"{count(without, 'report')} {do} not have the sections that data.report_sections chooses")
    return notes
