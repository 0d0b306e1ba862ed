"""IU X-ray: the chest radiographs of Indiana University with their reports, from Open-i or Kaggle.

Expects Open-i's `ecgen-radiology/1.xml` and PNG or DICOM files, or Kaggle's `indiana_reports.csv`,
`indiana_projections.csv` and PNG files. Image names are the same in both. Most reports have two images, a frontal and a
lateral one, as the table of projections or the DICOM header says.

Findings come from the index terms of the reports, which are MeSH terms. XML entities are refused, never expanded.

Shapes: `N` images, `R` reports.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from cleft.config import DataConfig
from cleft.data.images.cache import read_dataset_headers
from cleft.data.images.dicom_headers import Header, header_notes
from cleft.data.readers.chexpert import FINDINGS as CHEXPERT
from cleft.data.tables.csv import Table, read_table
from cleft.data.tables.faults import Fault, faults_of_table, missing_columns, raise_faults
from cleft.data.tables.paths import is_junk
from cleft.data.tables.patients import clean_id
from cleft.data.tables.reading import ParsedTable, ReaderResult, build_result, find_file, require_root
from cleft.data.tables.rows import BLANK, Rows, read_texts
from cleft.data.text.reports import choose_sections, collapse_whitespace, report_notes
from cleft.errors import ConfigError, DataError
from cleft.grammar import agree, count, verb

FOLDER = "ecgen-radiology"
REPORTS, PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"
VIEWS = ("AP", "PA")
FINDINGS = (*CHEXPERT, "Emphysema", "Fibrosis", "Granuloma", "Hernia")
"""CheXpert's fourteen findings, and four that are frequent in Open-i's reports."""

NORMAL = "normal"
_FINDING_OF_TERM = {
    "cardiomegaly": "Cardiomegaly",
    "cardiac shadow/enlarged": "Cardiomegaly",
    "mediastinum/enlarged": "Enlarged Cardiomediastinum",
    "mediastinum/prominent": "Enlarged Cardiomediastinum",
    "opacity": "Lung Opacity",
    "airspace disease": "Lung Opacity",
    "infiltrate": "Lung Opacity",
    "nodule": "Lung Lesion",
    "mass": "Lung Lesion",
    "pulmonary edema": "Edema",
    "consolidation": "Consolidation",
    "pneumonia": "Pneumonia",
    "atelectasis": "Atelectasis",
    "pulmonary atelectasis": "Atelectasis",
    "pneumothorax": "Pneumothorax",
    "hydropneumothorax": "Pneumothorax",
    "pleural effusion": "Pleural Effusion",
    "pleural thickening": "Pleural Other",
    "thickening/pleura": "Pleural Other",
    "fractures, bone": "Fracture",
    "catheters, indwelling": "Support Devices",
    "implanted medical device": "Support Devices",
    "medical device": "Support Devices",
    "tube, inserted": "Support Devices",
    "emphysema": "Emphysema",
    "pulmonary emphysema": "Emphysema",
    "pulmonary fibrosis": "Fibrosis",
    "calcified granuloma": "Granuloma",
    "granuloma": "Granuloma",
    "granulomatous disease": "Granuloma",
    "hernia, hiatal": "Hernia",
}
"""Finding of an index term, alone or with its first qualifier."""

_UNINFORMATIVE = {"no indexing", "technical quality of image unsatisfactory"}
MAX_XML_BYTES = 1 << 20
"""Largest XML file; those of Open-i have a few KiB."""

_XML_FILE = re.compile(r"(?:CXR)?([0-9]{1,6})\.xml", re.IGNORECASE)
_IMAGE_NAME = re.compile(r"(?:CXR[0-9]+_)?([0-9A-Za-z]+(?:[-_][0-9A-Za-z]+)*)", re.IGNORECASE)
_REMEDY = "unpack NLMCXR_reports.tgz again, or remove these files"
_UID, _FILE, _VIEW, _TERMS = "uid", "filename", "projection", "MeSH"
_SECTIONS = ("comparison", "indication", "findings", "impression")
_VIEWS = {"frontal": "frontal", "lateral": "lateral"}
_EXTENSIONS = (".png", ".dcm", ".dicom", ".jpg", ".jpeg")
_MAX_DEPTH = 4
_EXAMPLES = 3
_PUBLISHED = "published: 3,955 reports, 7,470 images"
_NO_VIEWS = (
    f"view positions are unknown: lateral images are not excluded; copy {PROJECTIONS} into the folder, or use "
    "the DICOM files"
)


def read_iu_xray(config: DataConfig, *, check_files: bool = True) -> ReaderResult:
    """Reads IU X-ray.

    Args:
        config: `root` is the folder of the download, or its parent; `report_sections` the sections to read, `reports`
            the folder of the XML files if it is elsewhere; `views` the view positions to keep, by default frontal ones.
        check_files: Whether to check that every image exists. False reads reports and tables only.

    Returns:
        One record per image. Findings come from the index terms; patient and study are the number of the report.
        Faulty rows and files are in `faults`.

    Raises:
        ConfigError: If `data.root` is not set, or `data.table` is.
        DataError: If there are no reports, they cannot be read, or none of the images exists.
    """
    root = require_root(config)
    if config.table is not None:
        raise ConfigError(f"data.table={config.table} does not apply to data.dataset=iu-xray; omit it")
    folders = list(_folders(root))
    images = _find_images(root, folders, config.reports)
    order = list(images.reports)
    codes, term_notes = code_terms([images.reports[number].terms for number in order])
    row_of = {number: row for row, number in enumerate(order)}
    texts = [choose_sections(images.reports[number].sections, config.report_sections) for number in order]
    files = _locate_images(root, folders, images.names) if check_files else {}
    with_view = {name for name, view in zip(images.names, images.views, strict=True) if view}
    dicom = [path for name, path in sorted(files.items()) if path.endswith(".dcm") and name not in with_view]
    headers = read_dataset_headers(config, dicom) if dicom else {}
    blank, _ = code_terms([()])
    views = [
        view or headers.get(files.get(name, ""), Header()).view
        for name, view in zip(images.names, images.views, strict=True)
    ]
    rows = Rows(
        ids=images.names,
        images=[files.get(name, f"{root}/{name}.png") for name in images.names],
        findings=FINDINGS,
        codes=np.concatenate([codes, blank])[[row_of.get(number, -1) for number in images.numbers]],
        patients=images.numbers,
        studies=list(images.numbers),
        views=views,
        lines=images.table.lines,
        reports=[texts[row_of[number]] if number in row_of else None for number in images.numbers],
    )
    present = np.array([name in files for name in images.names], dtype=bool)
    valid = [
        row for row, (name, number) in enumerate(zip(images.names, images.numbers, strict=True)) if name and number
    ]
    no_views = not any(views)
    parsed = ParsedTable(
        dataset="iu-xray",
        table=images.table,
        rows=rows,
        valid=np.array(valid, dtype=np.int64),
        views=config.views or VIEWS,
        present=present,
        notes=[
            *images.notes,
            *term_notes,
            *report_notes(rows.reports),
            *header_notes(headers.values()),
            *([_NO_VIEWS] if no_views else []),
        ],
        faults=images.faults,
        sources={**images.table.source, **images.sources},
        cautions=(_NO_VIEWS,) if no_views else (),
    )
    result = build_result(parsed, config, check_files=check_files)
    if images.table.columns:
        return result
    # Lines do not apply to a folder of XML files.
    return result._replace(faults=[fault._replace(lines=()) for fault in result.faults])


class Report(NamedTuple):
    """One report, which is one study."""

    number: str
    sections: dict[str, str]
    """Text by section name in lower case, in the order of the report; no text is empty."""
    terms: tuple[str, ...]
    """Index terms with their qualifiers: `Opacity/lung/base/left`, `normal`."""
    images: tuple[str, ...]
    """Names as `image_name` returns them."""


class XmlReports(NamedTuple):
    """All reports of a folder, in the order of their numbers."""

    reports: list[Report]
    faults: list[Fault]
    sha256: str
    """Digest of the digests of all files."""


def image_name(text: str) -> str | None:
    """Returns the canonical name of an image, or None if it is not an image name.

    Example:
        >>> [image_name(text) for text in ("CXR1_1_IM-0001-3001", "1_IM-0001-3001.dcm.png", "../x.png")]
        ['1_IM-0001-3001', '1_IM-0001-3001', None]
    """
    stem = re.sub(r"(?:\.(?:dcm|dicom|png|jpe?g))+$", "", text.strip(), flags=re.IGNORECASE)
    found = _IMAGE_NAME.fullmatch(stem)
    return found[1] if found else None


def report_files(folder: Path) -> list[Path]:
    """Returns the XML files of reports in a folder, sorted by number."""
    found = [(path, _XML_FILE.fullmatch(path.name)) for path in folder.iterdir()] if folder.is_dir() else []
    return [path for _, path in sorted((int(match[1]), path) for path, match in found if match)]


def read_xml_reports(paths: Sequence[Path]) -> XmlReports:
    """Reads every file; those that cannot be read share one fault per kind of damage."""
    reports: list[Report] = []
    wrong: dict[str, list[str]] = {}
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            raw = file.read(MAX_XML_BYTES + 1)
        digest.update(f"{path.name} ".encode() + hashlib.sha256(raw).digest())
        try:
            reports.append(_parse(path, raw))
        except _Refused as error:
            wrong.setdefault(str(error), []).append(path.name)
    faults = [
        Fault("reports", f"{count(len(names), 'file')} {agree(len(names), what)}, such as {examples}", _REMEDY)
        for what, names in wrong.items()
        for examples in (", ".join(names[:_EXAMPLES]),)
    ]
    return XmlReports(reports, faults, digest.hexdigest())


class _Refused(Exception):
    """Reason why a file is not read, for `agree`; without its content, which may identify patients."""


def _parse(path: Path, raw: bytes) -> Report:
    if len(raw) > MAX_XML_BYTES:
        raise _Refused(f"[is|are] larger than {MAX_XML_BYTES >> 10} KiB")
    if not raw.strip():
        raise _Refused("[is|are] empty")
    handlers = _Handlers()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = handlers.start
    parser.EndElementHandler = handlers.end
    parser.CharacterDataHandler = handlers.text
    parser.EntityDeclHandler = _refuse_entity
    try:
        parser.Parse(raw, True)
    except expat.ExpatError as error:
        raise _Refused("[is|are] damaged XML") from error
    if handlers.root != "eCitation":
        raise _Refused("[is not a report|are not reports] of Open-i ([its|their] outermost element is not eCitation)")
    number = _XML_FILE.fullmatch(path.name)
    assert number is not None
    return Report(str(int(number[1])), handlers.sections, tuple(handlers.terms), tuple(handlers.images))


def _refuse_entity(*_: Any) -> None:
    raise _Refused("[declares|declare] XML entities, which no report needs and which could fill the memory")


class _Handlers:
    """Handlers of the XML parser that collect sections, terms and image names."""

    def __init__(self) -> None:
        self.root = ""
        self.sections: dict[str, str] = {}
        self.terms: list[str] = []
        self.images: list[str] = []
        self._label = ""
        self._words: list[str] | None = None

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.root = self.root or tag
        if tag == "parentImage":
            name = image_name(attributes.get("id", ""))
            if name is None:
                raise _Refused("[has|have] an image name that is not a file name")
            if name not in self.images:
                self.images.append(name)
        elif tag in ("AbstractText", "major"):
            self._label, self._words = attributes.get("Label", "").casefold(), []

    def text(self, words: str) -> None:
        if self._words is not None:
            self._words.append(words)

    def end(self, tag: str) -> None:
        if self._words is None or tag not in ("AbstractText", "major"):
            return
        text = collapse_whitespace("".join(self._words))
        self._words = None
        if text and tag == "major":
            self.terms.append(text)
        elif text and self._label in _SECTIONS:
            self.sections[self._label] = text


def finding_of(term: str) -> str | None:
    """Returns the finding that a term states, if it is one of `FINDINGS`.

    Example:
        >>> [finding_of(term) for term in ("Opacity/lung/base/left", "Cardiac Shadow/enlarged/mild", "Spine")]
        ['Lung Opacity', 'Cardiomegaly', None]
    """
    parts = [part.strip() for part in term.casefold().split("/")]
    return _FINDING_OF_TERM.get("/".join(parts[:2])) or _FINDING_OF_TERM.get(parts[0])


def code_terms(terms: Sequence[Sequence[str]]) -> tuple[NDArray[np.int8], list[str]]:
    """Returns the labels of each report, `[R, C]`, and notes.

    Indexers recorded every finding of a report, so findings without a term are absent. A report without index terms has
    no labels. `No Finding` is present if `normal` is the only term.
    """
    codes = np.full((len(terms), len(FINDINGS)), BLANK, dtype=np.int8)
    column_of = {name: column for column, name in enumerate(FINDINGS)}
    other: Counter[str] = Counter()
    unindexed = 0
    for row, report_terms in enumerate(terms):
        informative = [term for term in report_terms if term.casefold() not in _UNINFORMATIVE]
        if not informative:
            unindexed += 1
            continue
        codes[row] = 0
        for term in informative:
            finding = finding_of(term)
            if finding is not None:
                codes[row, column_of[finding]] = 1
            elif term.casefold() != NORMAL:
                other[term.partition("/")[0].strip()] += 1
        codes[row, column_of["No Finding"]] = int(all(term.casefold() == NORMAL for term in informative))
    notes: list[str] = []
    if unindexed:
        text = agree(unindexed, "[is|are] not indexed; [its|their] findings are unknown")
        notes.append(f"{count(unindexed, 'report')} {text}")
    if other:
        state = verb(len(other), "matches", "match")
        times = count(other.total(), "time")
        notes.append(f"{count(len(other), 'index term')} {state} no finding ({times})")
    return codes, notes


class Projections(NamedTuple):
    """The table of images: name, report and view of each, in the order of the table."""

    table: Table
    names: list[str]
    """As `image_name` returns them; empty if a row names none."""
    numbers: list[str]
    """`uid` of the report without leading zeros; empty if there is none."""
    views: list[str | None]
    faults: list[Fault]


class TableReports(NamedTuple):
    """The reports of a table."""

    by_number: Mapping[str, Report]
    """Report by `uid`."""
    faults: list[Fault]
    sources: Mapping[str, str]


def read_projections(path: Path) -> Projections:
    """Reads `indiana_projections.csv`.

    Raises:
        DataError: If a column is missing.
    """
    table, faults = read_table(path)
    raise_faults(path, missing_columns(table.columns, [_UID, _FILE, _VIEW]))
    names = [image_name(text) or "" for text in table.columns[_FILE].texts()]
    numbers = _numbers(table)
    texts = table.columns[_VIEW].texts()
    unknown_views = [row for row, text in enumerate(texts) if text and text.casefold() not in _VIEWS]
    for column, rows, what, remedy in (
        (_FILE, [row for row, name in enumerate(names) if not name], "names no image", "it is 1_IM-0001-4001.dcm.png"),
        (_UID, [row for row, number in enumerate(numbers) if not number], "holds no number", "fill it in"),
        (_VIEW, unknown_views, "must be Frontal or Lateral", "fix it, or leave it empty"),
    ):
        if rows:
            faults.append(Fault("path", f"column {column!r} {what}", remedy, table.lines[rows].tolist()))
    views = [_VIEWS.get(text.casefold()) for text in texts]
    return Projections(table, names, numbers, views, faults)


def read_table_reports(path: Path, wanted: Sequence[str]) -> TableReports:
    """Reads `indiana_reports.csv`.

    Args:
        path: The table.
        wanted: Numbers of the reports of the images.

    Raises:
        DataError: If a column is missing, or none of the reports belongs to an image.
    """
    table, faults = read_table(path)
    raise_faults(path, missing_columns(table.columns, [_UID, _TERMS, "findings", "impression"]))
    numbers = _numbers(table)
    sections = {name: read_texts(table.columns.get(name), len(table)) for name in _SECTIONS}
    terms = read_texts(table.columns[_TERMS], len(table))
    reports: dict[str, Report] = {}
    blank: list[int] = []
    conflicts: list[int] = []
    for row, number in enumerate(numbers):
        if not number:
            blank.append(row)
            continue
        text_of = {name: texts[row] or "" for name, texts in sections.items() if texts[row]}
        index_terms = tuple(term.strip() for term in (terms[row] or "").split(";") if term.strip())
        report = Report(number, text_of, index_terms, ())
        if reports.setdefault(number, report) != report:
            conflicts.append(row)
    for reason, rows, what, remedy in (
        ("reports", blank, f"column {_UID!r} holds no number", "fill it in or remove the row"),
        ("duplicate", conflicts, "two reports of the same study differ", "keep the correct row"),
    ):
        if rows:
            faults.append(Fault(reason, what, remedy, table.lines[rows].tolist()))
    faults = faults_of_table(path, faults)
    if not reports.keys() & set(wanted):
        raise DataError(
            f"{path} holds {count(len(reports), 'report')}, none of which belongs to an image of {PROJECTIONS}; "
            "are both tables from the same download?",
            reason="reports",
        )
    return TableReports(reports, faults, table.source)


def _numbers(table: Table) -> list[str]:
    texts = [clean_id(text) for text in table.columns[_UID].texts()]
    return [str(int(text)) if text.isascii() and text.isdecimal() else "" for text in texts]


class _Images(NamedTuple):
    """The images named by reports or by a table."""

    table: Table
    names: list[str]
    numbers: list[str]
    """Number of the report of each image."""
    views: list[str | None]
    reports: Mapping[str, Report]
    faults: list[Fault]
    notes: list[str]
    sources: Mapping[str, str]


def _folders(root: Path, depth: int = 2) -> Iterator[Path]:
    """The root and folders up to two levels below it, without the folders of single studies."""
    yield root
    if depth:
        for path in sorted(path for path in root.iterdir() if path.is_dir() and not is_junk(path.name)):
            if not path.name.isdecimal():
                yield from _folders(path, depth - 1)


def _find_images(root: Path, folders: Sequence[Path], given: Path | None) -> _Images:
    """Reads Open-i's XML files if there are any, else Kaggle's tables."""
    if given is not None and not given.is_dir():
        raise ConfigError(f"no folder {given}; set data.reports to the folder of the XML files, or omit it")
    candidates = [given] if given is not None else [folder / FOLDER for folder in folders] + [root]
    paths = next((found for home in candidates if (found := report_files(home))), [])
    reports, listed = find_file(folders, REPORTS), find_file(folders, PROJECTIONS)
    projections = None if listed is None else read_projections(listed)
    if paths:
        return _from_xml(paths, projections)
    if reports is not None and projections is not None:
        return _from_tables(reports, projections)
    what = f"neither {FOLDER}/1.xml etc. nor {REPORTS}"
    if reports is not None or projections is not None:
        what = f"no {PROJECTIONS if projections is None else REPORTS} next to the other table"
    raise DataError(f"{what} in {given or root}; set data.root to the folder that contains them", reason="table")


def _from_xml(paths: Sequence[Path], projections: Projections | None) -> _Images:
    read = read_xml_reports(paths)
    pairs = [(name, report.number) for report in read.reports for name in report.images]
    names, numbers = [name for name, _ in pairs], [number for _, number in pairs]
    if not names and not read.faults:
        raise DataError(
            f"no report in {paths[0].parent} names an image; unpack NLMCXR_reports.tgz again", reason="reports"
        )
    twice = [name for name, times in Counter(names).items() if times > 1]
    faults = list(read.faults)
    if twice:
        images = f"{count(len(twice), 'image')} {verb(len(twice), 'is', 'are')}"
        what = f"{images} in two reports, such as {', '.join(twice[:_EXAMPLES])}"
        faults.append(Fault("duplicate", what, "keep the correct report"))
        # The report of these images is unknown.
        numbers = ["" if name in set(twice) else number for name, number in pairs]
    without = sum(not report.images for report in read.reports)
    notes = [
        f"{paths[0].parent.name} holds {count(len(read.reports), 'report')} with {count(len(set(names)), 'image')} "
        f"({_PUBLISHED})"
    ]
    if without:
        notes.append(f"{count(without, 'report')} {verb(without, 'names', 'name')} no image")
    views: dict[str, str | None] = {}
    if projections is not None:
        views = dict(zip(projections.names, projections.views, strict=True))
        faults += faults_of_table(projections.table.path, projections.faults)
    table = Table(path=paths[0].parent, columns={}, lines=np.arange(len(names), dtype=np.int64), sha256=read.sha256)
    sources = {} if projections is None else projections.table.source
    reports = {report.number: report for report in read.reports}
    return _Images(table, names, numbers, [views.get(name) for name in names], reports, faults, notes, sources)


def _from_tables(path: Path, projections: Projections) -> _Images:
    read = read_table_reports(path, projections.numbers)
    without_report = sum(bool(number) and number not in read.by_number for number in projections.numbers)
    counts = f"{count(len(read.by_number), 'report')} and {count(len(set(projections.names)), 'image')}"
    notes = [f"{path.name} and {projections.table.path.name} hold {counts} ({_PUBLISHED})"]
    if without_report:
        belong = verb(without_report, "belongs", "belong")
        notes.append(f"{count(without_report, 'image')} {belong} to a report that is not in {path.name}")
    faults = [*projections.faults, *read.faults]
    return _Images(
        projections.table,
        projections.names,
        projections.numbers,
        projections.views,
        read.by_number,
        faults,
        notes,
        read.sources,
    )


def _locate_images(root: Path, folders: Sequence[Path], names: Sequence[str]) -> dict[str, str]:
    """Returns the file of each image by name; PNG is preferred to DICOM.

    Raises:
        DataError: If none of them exists.
    """
    wanted = set(names)
    found: dict[str, tuple[int, str]] = {}
    for home, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not is_junk(name))
        if home[len(str(root)) :].count(os.sep) >= _MAX_DEPTH:
            below.clear()
        for file in files:
            extension = os.path.splitext(file)[1].lower()
            name = image_name(file) if extension in _EXTENSIONS and not is_junk(file) else None
            if name in wanted:
                rank = (_EXTENSIONS.index(extension), f"{home}/{file}")
                found[name] = min(found.get(name, rank), rank)
    if wanted and not found:
        looked = ", ".join(str(folder) for folder in folders[:4])
        raise DataError(
            f"none of {count(len(wanted), 'image')} is on disk; looked for {names[0]}.png and .dcm in {looked}; "
            "set data.root to the folder that contains images and reports",
            reason="missing",
        )
    return {name: path for name, (_, path) in found.items()}
