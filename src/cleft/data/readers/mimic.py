"""Reads MIMIC-CXR-JPG, or MIMIC-CXR with its DICOM files, and the reports of both.

Expects `files/p10/p10000032/s50414267/<dicom_id>.jpg` or `.dcm` and the tables of MIMIC-CXR-JPG beside `files`. Labels
and reports belong to studies, projections to images.

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
    find_table,
    folders_below,
    require_root,
)
from cleft.data.tables.rows import BLANK, Rows, read_codes, read_splits
from cleft.data.text.reports import (
    COMPARISON,
    IMPRESSION,
    LAST_PARAGRAPH,
    Choice,
    choose_sections,
    report_notes,
    split_sections,
)
from cleft.data.text.reports import FINDINGS as FINDINGS_SECTION
from cleft.errors import ConfigError, DataError
from cleft.grammar import agree, count, share, verb

SECTIONED = tuple(f"mimic_cxr_sectioned.csv{end}" for end in ("", ".gz", ".zip"))
ARCHIVE = "mimic-cxr-reports.zip"
_HOMES = ("files", "mimic-cxr-reports/files", "mimic-cxr-reports", "reports/files", "reports", ".")
_SECTIONS = (FINDINGS_SECTION, IMPRESSION, LAST_PARAGRAPH, COMPARISON)
_SHOWN = 3
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
"""CheXpert's, in the tables' alphabetical order."""

_VIEW, _VIEW_CODE = "ViewPosition", "ViewCodeSequence_CodeMeaning"
_VIEWS = {"lateral": "lateral", "postero-anterior": "PA", "antero-posterior": "AP", "left lateral": "LL"}
_NUMBER = re.compile(r"[0-9]{1,12}")
_NAME = re.compile(r"[0-9A-Za-z]+(?:-[0-9A-Za-z]+)*")
VIEWS = ("AP", "PA")
TABLE = "mimic-cxr-2.0.0-metadata.csv.gz"
RECORDS = "cxr-record-list"
LABELS = {"table": "chexpert", "negbio": "negbio"}
"""Value of `data.label_source` to the end of the table's name."""

TERMS = (
    "PhysioNet's agreement for credentialed data allows no passing on of MIMIC-CXR, and its owners ask that models "
    "trained on it be treated as sensitive and be shared on PhysioNet alone, under the same agreement"
)
_ENDINGS = (".jpg", ".dcm", ".png", ".jpeg")
_PROBES = 64
_PUBLISHED = "published: 377,110 images of 227,835 studies of 65,379 patients"


def read_mimic(config: DataConfig, *, check_files: bool = True) -> ReaderResult:
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
        DataError: If a table, the images or the reports are not what they should be, or more than `data.max_invalid` of
            the images are missing.
    """
    root = require_root(config)
    folders = folders_below(root)
    path = _find_images(root, folders, config.table)
    homes = list(dict.fromkeys([path.parent, *folders]))
    table, faults = read_table(path)
    images = read_images(table)
    parts = read_parts(find_named(homes, "split"), images.names)
    labels = read_labels(find_named(homes, LABELS.get(config.label_source, config.label_source)), images)
    usable = np.flatnonzero(images.sound)
    studies = {images.studies[row]: images.subjects[row] for row in usable.tolist()}
    reports = read_reports(config.reports, homes, studies, config.report_sections)
    files = _locate(homes, images, usable, check_files=check_files)
    present = are_files(files) if check_files else None
    headers: dict[str, Header] = {}
    if present is not None and not any(images.views):
        # No table has the view positions; DICOM headers do.
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
        splits=parts.values,
        reports=None if reports is None else [reports.texts.get(study) for study in images.studies],
    )
    parsed = ParsedTable(
        dataset="mimic",
        table=table,
        rows=rows,
        valid=usable,
        views=config.views or VIEWS,
        present=present,
        notes=[
            _census(table, images),
            *parts.notes,
            *labels.notes,
            *([archive_note(homes)] if reports is None else _report_notes(reports, studies)),
            *report_notes(rows.reports),
            *header_notes(headers.values()),
        ],
        faults=[*faults, *images.faults, *parts.faults, *labels.faults, *(reports.faults if reports else ())],
        sources={**labels.sources, **table.source, **parts.sources, **(reports.sources if reports else {})},
    )
    return build_result(parsed, config, check_files=check_files)


class Reports(NamedTuple):
    """The chosen text of each study that has a report."""

    texts: Mapping[str, str | None]
    """`study_id` to text; None where the report does not have what was chosen. Studies without a report are missing."""
    faults: list[Fault]
    notes: list[str]
    sources: Mapping[str, str]


def read_reports(
    given: Path | None, folders: Sequence[Path], studies: Mapping[str, str], choice: Choice
) -> Reports | None:
    """Reads the report of every study.

    Args:
        given: `data.reports`, a folder or a table; None looks for them.
        folders: Where they may lie.
        studies: `study_id` to `subject_id`.
        choice: What is read of a report.

    Returns:
        The texts, or None where there is neither a table nor a folder of reports.

    Raises:
        ConfigError: If `data.reports` is not there.
        DataError: If the table cannot be read, or not one of its studies or files is known.
    """
    if given is not None and not given.exists():
        raise ConfigError(f"no reports at {given}; set data.reports to the folder or table, or leave it out")
    if given is not None and given.is_file():
        return _read_sectioned(given, studies, choice)
    for folder in [given] if given is not None else folders:
        table = next((folder / name for name in SECTIONED if (folder / name).is_file()), None)
        if table is not None:
            return _read_sectioned(table, studies, choice)
    homes = [folder / name for folder in ([given] if given is not None else folders) for name in _HOMES]
    home = next((place for place in homes if _holds_reports(place, studies)), None)
    if home is not None:
        return _read_files(home, studies, choice)
    if given is not None:
        raise DataError(
            f"no report of a study in {given}; it should hold p10/p10000032/s50414267.txt and so on, or {SECTIONED[0]}",
            reason="reports",
        )
    return None


def archive_note(folders: Sequence[Path]) -> str:
    """Says that there are no reports, and what to do about it."""
    packed = next((folder / ARCHIVE for folder in folders if (folder / ARCHIVE).is_file()), None)
    if packed is not None:
        return f"{ARCHIVE} is not unpacked: no report is read; unpack it in {packed.parent}"
    return f"no reports: neither {SECTIONED[0]} nor files/p10/p10000032/s50414267.txt; captions are made from labels"


def _holds_reports(home: Path, studies: Mapping[str, str]) -> bool:
    """Whether a folder holds text files for any of a few studies, or of their patients."""
    if not home.is_dir():
        return False
    probes = list(studies.items())[:: max(1, len(studies) // 64)]
    return any(_place(home, study, subject).is_file() for study, subject in probes)


def _place(home: Path, study: str, subject: str) -> Path:
    return home / f"p{subject[:2]}" / f"p{subject}" / f"s{study}.txt"


def _read_files(home: Path, studies: Mapping[str, str], choice: Choice) -> Reports:
    texts: dict[str, str | None] = {}
    digest = hashlib.sha256()
    large: list[str] = []
    for study in sorted(studies):
        try:
            with _place(home, study, studies[study]).open("rb") as file:
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
        named = ", ".join(f"s{study}.txt" for study in large[:_SHOWN])
        reports_are = f"{count(len(large), 'report')} {verb(len(large), 'is', 'are')}"
        what = f"{reports_are} larger than {MAX_CELL_BYTES >> 10} KiB, such as {named}"
        remedy = "[this is no report|these are no reports] of MIMIC-CXR; copy [it|them] again"
        faults.append(Fault("reports", what, agree(len(large), remedy)))
    return Reports(texts, faults, [f"reports from {count(len(texts), 'text file')}"], {"reports": digest.hexdigest()})


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace").replace("\r\n", "\n")


def _read_sectioned(path: Path, studies: Mapping[str, str], choice: Choice) -> Reports:
    table, faults = read_table(path)
    if "study" not in table.columns or not any(name in table.columns for name in _SECTIONS[:2]):
        lacking = missing_columns(table.columns, ["study", *_SECTIONS[:2]])
        raise_faults(
            path,
            [fault._replace(remedy=f"{fault.remedy}; is it made by create_section_files.py?") for fault in lacking],
        )
    columns = {name: table.columns[name].texts() for name in _SECTIONS if name in table.columns}
    names = [name.removeprefix("s").removesuffix(".txt") for name in table.columns["study"].texts()]
    first: dict[str, int] = {}
    clashes: list[int] = []
    for row, study in enumerate(names):
        other = first.setdefault(study, row)
        if any(texts[row] != texts[other] for texts in columns.values()):
            clashes += [other, row]
    if clashes:
        what, lines = "two reports of the same study differ", table.lines[sorted(set(clashes))].tolist()
        faults = [*faults, Fault("duplicate", what, "keep the correct row", lines)]
    faults = faults_of_table(path, faults)
    known = {study: row for study, row in first.items() if study in studies}
    if not known:
        raise DataError(
            f"{path} names {count(len(first), 'study', 'studies')}, none of which is among the {len(studies):,} of the "
            "images; is it of another release or dataset?",
            reason="reports",
        )
    texts = {
        study: choose_sections(_last({name: texts[row] for name, texts in columns.items()}), choice)
        for study, row in known.items()
    }
    studies_named = count(len(first), "study", "studies")
    notes = [f"reports from {path.name}: {studies_named}", *_strangers(path, len(first) - len(known))]
    if LAST_PARAGRAPH not in columns:
        notes.append(f"{path.name} has no column 'last_paragraph'; reports without headings stay empty")
    return Reports(texts, faults, notes, {path.name: table.sha256})


def _last(sections: Mapping[str, str]) -> Mapping[str, str]:
    """A comparison takes the place of a missing last paragraph, where some radiologists write everything."""
    return {**sections, LAST_PARAGRAPH: sections.get(LAST_PARAGRAPH) or sections.get(COMPARISON, "")}


def _strangers(path: Path, number: int) -> Iterator[str]:
    if number:
        yield f"{count(number, 'study', 'studies')} of {path.name} {verb(number, 'has', 'have')} no image here"


class Images(NamedTuple):
    """Every image of the list, in its order."""

    names: list[str]
    """`dicom_id`."""
    subjects: list[str]
    studies: list[str]
    views: list[str | None]
    sound: NDArray[np.bool_]
    """Whether all three ids are what they should be, `[N]`; the others may not become paths."""
    faults: list[Fault]


class Parts(NamedTuple):
    """What another table says of the images."""

    values: list[str | None] | None
    faults: list[Fault]
    notes: list[str]
    sources: Mapping[str, str]


class Labels(NamedTuple):
    """What the label table says of each image, by its study."""

    codes: NDArray[np.int8]
    """`[N, C]`."""
    faults: list[Fault]
    notes: list[str]
    sources: Mapping[str, str]


def find_named(folders: Sequence[Path], name: str) -> Path | None:
    """Finds a table whose name ends so, whatever its release: `mimic-cxr-2.0.0-split.csv.gz` by `split`."""
    ending = re.compile(rf"(?:mimic-cxr-[0-9.]+-{name}|{name})\.csv(?:\.gz|\.zip)?")
    for folder in folders:
        found = sorted(path for path in folder.iterdir() if ending.fullmatch(path.name) and not is_junk(path.name))
        if found:
            return found[0]
    return None


def read_images(table: Table) -> Images:
    """Reads the list of images: the metadata of MIMIC-CXR-JPG, or the record list of MIMIC-CXR.

    Raises:
        DataError: If it has no column of one of the three ids.
    """
    lacking = missing_columns(table.columns, [SUBJECT, STUDY, DICOM])
    raise_faults(table.path, lacking)
    names = table.columns[DICOM].texts()
    subjects, studies = (list(map(clean_id, table.columns[name].texts())) for name in (SUBJECT, STUDY))
    sound = np.ones(len(table), dtype=bool)
    faults: list[Fault] = []
    for column, texts, form, remedy in (
        (SUBJECT, subjects, _NUMBER, "it is a number, such as 10000032"),
        (STUDY, studies, _NUMBER, "it is a number, such as 50414267"),
        (DICOM, names, _NAME, "it is groups of letters and digits with - between them; copy the table again"),
    ):
        wrong = [row for row, text in enumerate(texts) if not form.fullmatch(text)]
        if wrong:
            sound[wrong] = False
            faults.append(Fault("path", f"column {column!r} holds no id", remedy, table.lines[wrong].tolist()))
    faults += _torn_studies(table, subjects, studies, sound)
    return Images(names, subjects, studies, _read_views(table), sound, faults)


def _torn_studies(
    table: Table, subjects: Sequence[str], studies: Sequence[str], sound: NDArray[np.bool_]
) -> list[Fault]:
    """A study belongs to one patient; splits would otherwise tear it."""
    owner: dict[str, str] = {}
    torn = [
        row for row in np.flatnonzero(sound).tolist() if owner.setdefault(studies[row], subjects[row]) != subjects[row]
    ]
    if not torn:
        return []
    sound[torn] = False
    what = "a study belongs to two patients"
    return [Fault("patient", what, "keep the row that is right", table.lines[torn].tolist())]


def _read_views(table: Table) -> list[str | None]:
    """`ViewPosition`, and where it is empty what the view's code means."""
    views: list[str | None] = [None] * len(table)
    for column in (_VIEW_CODE, _VIEW):
        if column in table.columns:
            texts = table.columns[column].texts()
            known = {text: _VIEWS.get(text.casefold(), text if column == _VIEW else None) for text in set(texts)}
            views = [known[text] if text else view for text, view in zip(texts, views, strict=True)]
    return [view or None for view in views]


def read_parts(path: Path | None, names: Sequence[str]) -> Parts:
    """Reads the official split: `train`, `validate` or `test` of every image.

    Args:
        path: Its table; None where there is none.
        names: `dicom_id` of each image, `[N]`.
    """
    if path is None:
        told = "no mimic-cxr-2.0.0-split.csv: the official split is not known (data.split=patients does without)"
        return Parts(None, [], [told], {})
    table, faults = read_table(path)
    raise_faults(path, missing_columns(table.columns, [DICOM, "split"]))
    parts, wrong = read_splits(table, table.columns["split"])
    part_of: dict[str, str | None] = {}
    clashes: list[int] = []
    for row, (name, part) in enumerate(zip(table.columns[DICOM].texts(), parts or (), strict=True)):
        if part_of.setdefault(name, part) != part:
            clashes.append(row)
    if clashes:
        what = "an image is in two splits"
        wrong = [*wrong, Fault("split", what, "copy the table again", table.lines[clashes].tolist())]
    values = [part_of.get(name) for name in names]
    counts = Counter(values)
    notes = ["official split: " + ", ".join(f"{part} {counts[part]:,}" for part in ("train", "val", "test"))]
    if counts[None]:
        notes.append(
            f"{count(counts[None], 'image')} {verb(counts[None], 'is', 'are')} not in {path.name}; under "
            f"data.split=given {verb(counts[None], 'it stays', 'they stay')} out. Is it of the same release?"
        )
    return Parts(values, faults_of_table(path, [*faults, *wrong]), notes, table.source)


def read_labels(path: Path | None, images: Images) -> Labels:
    """Reads the labels of every study and gives them to its images.

    Args:
        path: `mimic-cxr-2.0.0-chexpert.csv` or `-negbio.csv`; None where there is none.
        images: Whose.

    Raises:
        DataError: If the table lacks a column.
    """
    codes = np.full((len(images.names), len(FINDINGS)), BLANK, dtype=np.int8)
    if path is None:
        told = "no mimic-cxr-2.0.0-chexpert.csv and no -negbio.csv that was asked for: no finding is known"
        return Labels(codes, [], [told], {})
    table, faults = read_table(path)
    raise_faults(path, missing_columns(table.columns, [SUBJECT, STUDY, *FINDINGS]))
    told, wrong = read_codes(table, FINDINGS)
    place: dict[tuple[str, str], int] = {}
    clashes: list[int] = []
    keys = zip(*(map(clean_id, table.columns[name].texts()) for name in (SUBJECT, STUDY)), strict=True)
    for row, key in enumerate(keys):
        other = place.setdefault(key, row)
        if not np.array_equal(told[row], told[other]):
            clashes += [other, row]
    if clashes:
        what = "two rows of the same study disagree"
        wrong = [*wrong, Fault("duplicate", what, "keep the correct row", table.lines[clashes].tolist())]
    faults = faults_of_table(path, [*faults, *wrong])
    rows = np.array([place.get(key, -1) for key in zip(images.subjects, images.studies, strict=True)], dtype=np.int64)
    codes[rows >= 0] = told[rows[rows >= 0]]
    unlabelled = len({images.studies[row] for row in np.flatnonzero(rows < 0).tolist()})
    notes = [f"{path.name} labels {count(len(place), 'study', 'studies')} (published: 227,827)"]
    if unlabelled == len(set(images.studies)):
        what = f"none of the studies is in {path.name}"
        faults.append(Fault("labels", what, "copy both tables from one release"))
    elif unlabelled:
        lack = agree(unlabelled, "[has|have] no labels there; [its|their] findings are unknown")
        notes.append(f"{count(unlabelled, 'study', 'studies')} {lack}")
    return Labels(codes, faults, notes, {path.name: table.sha256})


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
        notes.append(f"{count(without, 'report')} {do} not have the sections that data.report_sections chooses")
    return notes
