"""Writes IU X-ray like Open-i (XML with PNG or DICOM) or Kaggle (two tables with PNG), with invented content.

It has the oddities of the real data: two views of a report, a report without images, without text, with an empty
section, text removed by de-identification, and index terms with qualifiers.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from PIL import Image
from tests.fakes.dicom import dicom_bytes
from tests.fakes.mixed import scene


class Report(NamedTuple):
    """One study."""

    number: int
    terms: Sequence[str]
    findings: str
    impression: str
    views: Sequence[str] = ("Frontal", "Lateral")
    indication: str = "Positive TB test"


def odd_reports() -> list[Report]:
    """Five invented reports with seven images."""
    return [
        Report(1, ["normal"], "The heart is normal. XXXX lungs are clear.", "Normal chest x-XXXX."),
        Report(
            2, ["Cardiomegaly/mild", "Opacity/lung/base/left", "Spine/degenerative"], "", "Mild cardiomegaly & haze."
        ),
        Report(7, ["Pulmonary Atelectasis/base"], "Streaky opacity at the base.", "", ("Frontal",)),
        Report(11, ["No Indexing"], "", "", ("Frontal", "Lateral")),
        Report(40, ["normal"], "Clear.", "Normal.", ()),
    ]


def image_ids(report: Report) -> list[str]:
    """Common part of its image names."""
    return [f"{report.number}_IM-{report.number:04d}-{view + 1}001" for view in range(len(report.views))]


def as_xml(report: Report, head: str = '<?xml version="1.0" encoding="utf-8"?>') -> str:
    """A report as XML in the form of Open-i."""
    sections = {
        "COMPARISON": "None.",
        "INDICATION": report.indication,
        "FINDINGS": report.findings,
        "IMPRESSION": report.impression,
    }
    texts = "".join(f'<AbstractText Label="{name}">{escape(text)}</AbstractText>' for name, text in sections.items())
    terms = "".join(f"<major>{escape(term)}</major>" for term in report.terms)
    images = "".join(
        f'<parentImage id="CXR{report.number}_{name}"><figureId>F{place}</figureId><caption>Xray Chest</caption>'
        f"<url>/hadoop/{name}.jpg</url></parentImage>"
        for place, name in enumerate(image_ids(report), start=1)
    )
    return (
        f'{head}<eCitation><meta type="rr"/><uId id="CXR{report.number}"/><MedlineCitation><Article><Abstract>{texts}'
        f"</Abstract></Article></MedlineCitation><MeSH>{terms}<automatic>xray</automatic></MeSH>{images}</eCitation>"
    )


def write_fake_openi(
    folder: Path, reports: Sequence[Report] | None = None, *, images: str = "png", missing: Iterable[str] = ()
) -> Path:
    """Writes `ecgen-radiology` and images of a kind (`png` or `dcm`); returns `folder`."""
    reports = odd_reports() if reports is None else reports
    (folder / "ecgen-radiology").mkdir(parents=True, exist_ok=True)
    for report in reports:
        (folder / "ecgen-radiology" / f"{report.number}.xml").write_text(as_xml(report), encoding="utf-8")
        for name, view in zip(image_ids(report), report.views, strict=True):
            if name in set(missing):
                continue
            if images == "png":
                write_png(folder / "NLMCXR_png" / f"CXR{report.number}_{name}.png", report.number)
            else:
                shown = {"ViewPosition": "PA" if view == "Frontal" else "LL"}
                path = folder / "NLMCXR_dcm" / str(report.number) / f"{name}.dcm"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(dicom_bytes(scene(report.number).astype("uint16") * 16, bits=12, **shown))
    return folder


def write_fake_kaggle(folder: Path, reports: Sequence[Report] | None = None) -> Path:
    """Writes both tables and `images/images_normalized`; returns `folder`."""
    reports = odd_reports() if reports is None else reports
    folder.mkdir(parents=True, exist_ok=True)
    texts = [["uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression"]]
    for report in reports:
        about = ["Xray Chest PA and Lateral", report.indication, "None.", report.findings, report.impression]
        problems = ";".join(term.partition("/")[0] for term in report.terms)
        texts.append([str(report.number), ";".join(report.terms), problems, *about])
        for name in image_ids(report):
            write_png(folder / "images" / "images_normalized" / f"{name}.dcm.png", report.number)
    write_csv(folder / "indiana_reports.csv", texts)
    write_projections(folder / "indiana_projections.csv", reports)
    return folder


def write_projections(path: Path, reports: Sequence[Report]) -> None:
    """Writes `indiana_projections.csv`."""
    named = [
        [str(report.number), f"{name}.dcm.png", view]
        for report in reports
        for name, view in zip(image_ids(report), report.views, strict=True)
    ]
    write_csv(path, [["uid", "filename", "projection"], *named])


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Writes a table."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_png(path: Path, number: int) -> None:
    """Writes an 8-bit gray image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene(number)).save(path)
