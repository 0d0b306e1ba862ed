"""The reports of MIMIC-CXR: a text file for every study, or the table of sections that its owner makes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cleft.data.sections import (
    COMPARISON,
    FINDINGS,
    IMPRESSION,
    LAST_PARAGRAPH,
    Choice,
    choose_sections,
    split_sections,
)
from cleft.data.tables.csv import MAX_CELL_BYTES, scan_table
from cleft.data.tables.faults import Fault, missing_columns, refuse
from cleft.errors import ConfigError, DataError
from cleft.grammar import agree, count, verb

SECTIONED = tuple(f"mimic_cxr_sectioned.csv{end}" for end in ("", ".gz", ".zip"))
ARCHIVE = "mimic-cxr-reports.zip"
_HOMES = ("files", "mimic-cxr-reports/files", "mimic-cxr-reports", "reports/files", "reports", ".")
_SECTIONS = (FINDINGS, IMPRESSION, LAST_PARAGRAPH, COMPARISON)
_SHOWN = 3


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
    table, faults = scan_table(path)
    if "study" not in table.columns or not any(name in table.columns for name in _SECTIONS[:2]):
        lacking = missing_columns(table.columns, ["study", *_SECTIONS[:2]])
        refuse(
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
    faults = [fault._replace(what=f"{path.name}: {fault.what}") for fault in faults]
    if clashes:
        what = f"{path.name}: two reports of the same study differ"
        faults.append(
            Fault("duplicate", what, "keep the one that is right", table.lines[sorted(set(clashes))].tolist())
        )
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
