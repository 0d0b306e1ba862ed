"""Open-i's reports as XML: sections, index terms and image names. XML entities are refused, never expanded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers import expat

from cleft.data.tables.faults import Fault
from cleft.data.text.reports import collapse_whitespace
from cleft.grammar import agree, count

MAX_BYTES = 1 << 20
"""Largest XML file; those of Open-i have a few KiB."""

_FILE = re.compile(r"(?:CXR)?([0-9]{1,6})\.xml", re.IGNORECASE)
_IMAGE = re.compile(r"(?:CXR[0-9]+_)?([0-9A-Za-z]+(?:[-_][0-9A-Za-z]+)*)", re.IGNORECASE)
_SECTIONS = ("comparison", "indication", "findings", "impression")
_EXAMPLES = 3


class Report(NamedTuple):
    """One report, which is one study."""

    number: str
    sections: dict[str, str]
    """Text by section name in lower case, in the order of the report; no text is empty."""
    terms: tuple[str, ...]
    """Index terms with their qualifiers: `Opacity/lung/base/left`, `normal`."""
    images: tuple[str, ...]
    """Names as `image_name` returns them."""


class Reports(NamedTuple):
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
    found = _IMAGE.fullmatch(stem)
    return found[1] if found else None


def report_files(folder: Path) -> list[Path]:
    """Returns the XML files of reports in a folder, sorted by number."""
    found = [(path, _FILE.fullmatch(path.name)) for path in folder.iterdir()] if folder.is_dir() else []
    return [path for _, path in sorted((int(match[1]), path) for path, match in found if match)]


def read_xml_reports(paths: Sequence[Path]) -> Reports:
    """Reads every file; those that cannot be read share one fault per kind of damage."""
    reports: list[Report] = []
    wrong: dict[str, list[str]] = {}
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
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
    return Reports(reports, faults, digest.hexdigest())


_REMEDY = "unpack NLMCXR_reports.tgz again, or remove these files"


class _Refused(Exception):
    """Reason why a file is not read, for `agree`; without its content, which may identify patients."""


def _parse(path: Path, raw: bytes) -> Report:
    if len(raw) > MAX_BYTES:
        raise _Refused(f"[is|are] larger than {MAX_BYTES >> 10} KiB")
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
    number = _FILE.fullmatch(path.name)
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
