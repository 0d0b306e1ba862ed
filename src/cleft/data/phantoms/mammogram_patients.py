"""Invented patients of the synthetic mammograms: breasts, exams, findings and images.

Images and tables are made from the same findings. The peculiarities of the real tables occur here too (`ODDITIES`):
the n-th patient shows the n-th one, later patients show one occasionally.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Literal

import numpy as np

from cleft.data.phantoms.draw_breast import Breast, Lesion
from cleft.data.sampling import Stream, philox_generator

LETTERS = "ANBPSMK"
"""Assessment letter of BI-RADS 0 to 6."""

ODDITIES = {
    "blank_side": "one row without a side describes both breasts",
    "both_sides": "one row with side B describes both breasts",
    "implied_negative": "a bilateral exam has rows of one breast alone; the other one is negative",
    "worse_second": "a breast has a row P and after it a row M",
    "several_rows": "a breast has several rows that agree, and one that is milder",
    "no_assessment": "the assessment is X",
    "blank_assessment": "the assessment is blank",
    "blank_density": "the density is blank",
    "male": "a man: density 5",
    "great_ids": "two exams of a patient have ids above 2^53 that are equal when read as floating-point numbers",
    "synthetic": "each 2D image has a cview",
    "spot": "magnified views with spot_mag 1; others have 0 or nothing",
    "special_views": "ML and XCCL in addition to CC and MLO, and an image without a view",
    "unilateral": "an exam of one breast",
    "implant": "implants",
    "two_dates": "the two tables have different dates for an exam",
    "two_names": "the two tables disagree on what kind of exam it was, or one is silent",
    "mixed_numbers": "densities are written 2.0 here and 2 there",
}
"""Peculiarities of the real tables; the first patients show one each, in this order."""

Side = Literal["L", "R"]


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Frequencies, scaled to sum to 1."""

    birads: tuple[float, ...] = (0.16, 0.22, 0.19, 0.12, 0.12, 0.10, 0.09)
    """Of BI-RADS 0 to 6 of the leading breast of an exam. The other breast is negative or benign."""
    density: tuple[float, ...] = (0.20, 0.32, 0.32, 0.16)
    """Of density 1 to 4 of a patient."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A row of the clinical table."""

    side: str
    """L, R, B or blank."""
    letter: str
    """Letter of the assessment; X or blank if there is none."""
    shape: str = ""
    margin: str = ""
    dens: str = ""
    calc: str = ""
    distri: str = ""
    path: str = ""
    """Severity of the biopsy result, 0 to 6."""
    lesion: Lesion | None = None
    """How it is drawn."""


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """A row of the metadata table and its file."""

    side: Side
    view: str
    """View that is drawn."""
    named: str
    """View in the table; may be blank."""
    kind: Literal["2D", "cview"] = "2D"
    spot: bool = False
    spot_mag: str = ""


@dataclass(frozen=True, kw_only=True)
class Exam:
    """An exam of a patient."""

    acc: int
    taken: date
    signed: date
    desc: str
    """Description in the clinical table."""
    study: str
    """Description in the metadata table."""
    density: str
    """As written in the table: `2.0`, `2` or blank."""
    findings: tuple[Finding, ...]
    images: tuple[ImageSpec, ...]


@dataclass(frozen=True, kw_only=True)
class Patient:
    """An invented patient."""

    number: int
    empi: int
    cohort: int
    male: bool
    born: date
    race: str
    ethnic: str
    breasts: dict[Side, Breast]
    exams: tuple[Exam, ...]


def invent_findings(
    lead: int, side: Side, oddity: str, rng: np.random.Generator, *, screening: bool, alone: bool
) -> list[Finding]:
    """Return the rows of an exam whose leading breast is of BI-RADS `lead`."""
    rows = invent_rows(lead, side, rng)
    if oddity == "worse_second":
        rows = [*invent_rows(3, side, rng), *rows]
    elif oddity == "several_rows":
        rows = [*rows, *invent_rows(4, side, rng), *invent_rows(2, side, rng)]
    elif lead >= 4 and rng.random() < 0.2:
        rows = [*rows, *invent_rows(2, side, rng)]
    if alone:
        return rows
    if oddity == "both_sides" or (lead == 2 and not oddity and rng.random() < 0.3):
        return [replace(rows[0], side="B")]
    other: Side = "R" if side == "L" else "L"
    if lead == 1:
        if oddity or rng.random() < 0.85:
            return [replace(rows[0], side="")]
        return [*rows, *invent_rows(1, other, rng)]
    draw = rng.random()
    if oddity == "implied_negative" or draw < 0.39:
        return rows
    if draw < 0.50:
        return [*rows, *invent_rows(2, other, rng)]
    silent = screening and draw < 0.60
    return [*rows, *invent_rows(1, "" if silent else other, rng)]


def invent_rows(birads: int, side: str, rng: np.random.Generator) -> list[Finding]:
    """Return the rows of one breast for BI-RADS 0 to 6, with the lesion to draw."""
    letter = LETTERS[birads]
    kind = str(rng.choice(_KINDS[birads])) if birads != 1 else ""
    shape, margin, dens, calc, distri = (str(rng.choice(list(codes))) if codes else "" for codes in _CODES[kind])
    path = {4: "24", 5: "001", 6: "01"}.get(birads, "")
    lesion = Lesion(
        kind=kind,
        deep=rng.random(),
        across=rng.uniform(-1, 1),
        high=rng.uniform(-0.8, 0.8),
        size=rng.random(),
        seed=int(rng.integers(2**31)),
        faint_in=str(rng.choice(["CC", "MLO"])) if kind == "asymmetry" else "",
    )
    found = Finding(
        side=side,
        letter=letter,
        shape=shape,
        margin=margin,
        dens=dens,
        calc=calc,
        distri=distri,
        path=str(rng.choice(list(path))) if path and (birads == 6 or rng.random() < 0.7) else "",
        lesion=lesion if kind else None,
    )
    if birads == 5 and rng.random() < 0.5:
        return [found, Finding(side=side, letter=letter, shape="A")]
    return [found]


_KINDS: dict[int, tuple[str, ...]] = {
    0: ("asymmetry",),
    2: ("popcorn", "rim", "node"),
    3: ("round",),
    4: ("irregular", "cluster"),
    5: ("spiculated",),
    6: ("clipped",),
}

_CODES: dict[str, tuple[str, str, str, str, str]] = {
    "": ("", "", "", "", ""),
    "asymmetry": ("FSV", "", "", "", ""),
    "popcorn": ("", "", "", "C", "G"),
    "rim": ("", "", "", "E", ""),
    "node": ("Y", "D", "0", "", ""),
    "round": ("RO", "D", "=", "", ""),
    "irregular": ("X", "IM", "+=", "", ""),
    "cluster": ("", "", "", "KI", "GC"),
    "spiculated": ("X", "S", "+", "", ""),
    "clipped": ("X", "I", "+", "", ""),
}
"""For each kind of lesion the possible codes of shape, margin, density, calcification and distribution."""


def invent_images(
    side: Side, oddity: str, rng: np.random.Generator, *, alone: bool, tomo: bool, screening: bool
) -> list[ImageSpec]:
    """Return both views of each breast, and additional images."""
    sides: tuple[Side, ...] = (side,) if alone else ("L", "R")
    blank = "0.0" if rng.random() < 0.2 else ""
    taken = [ImageSpec(side=one, view=view, named=view, spot_mag=blank) for one in sides for view in ("CC", "MLO")]
    if tomo:
        taken += [replace(spec, kind="cview") for spec in taken]
    if oddity == "special_views" or (not screening and not oddity and rng.random() < 0.3):
        taken += [ImageSpec(side=side, view="ML", named="ML"), ImageSpec(side=side, view="XCCL", named="XCCL")]
    if oddity == "special_views":
        taken.append(ImageSpec(side=side, view="ML", named=""))
    if oddity == "spot" or (not screening and not oddity and rng.random() < 0.25):
        taken += [ImageSpec(side=side, view=view, named=view, spot=True, spot_mag="1.0") for view in ("CC", "ML")]
    if oddity == "spot":
        taken += [ImageSpec(side=side, view="LM", named="LM", spot_mag="0.0")]
    return taken


_RATES = {
    "worse_second": 0.01,
    "several_rows": 0.03,
    "no_assessment": 0.01,
    "blank_assessment": 0.01,
    "blank_density": 0.02,
    "male": 0.01,
    "great_ids": 0.01,
    "spot": 0.03,
    "special_views": 0.05,
    "implant": 0.02,
    "two_names": 0.02,
    "mixed_numbers": 0.02,
}
"""Frequency of oddities among later patients."""


def invent_patient(seed: int, number: int, shares: Shares) -> Patient:
    """Return patient `number` (from 1) of a seed, independent of other patients."""
    rng = philox_generator(seed, Stream.PHANTOM, number, 1)
    oddity = _pick_oddity(number, rng)
    male = oddity == "male"
    density = 5 if male else 1 + int(rng.choice(4, p=_scaled(shares.density)))
    return Patient(
        number=number,
        empi=10_000_000 + (number + seed * 1009) * 37_123_457 % 90_000_000,
        cohort=1 + number % 2,
        male=male,
        born=date(1940, 1, 1) + timedelta(days=int(rng.integers(0, 12_000))),
        race=str(rng.choice(_RACES)),
        ethnic=str(rng.choice(_ETHNIC, p=[0.86, 0.07, 0.07])),
        breasts=_invent_breasts(density, rng, implant=oddity == "implant", male=male),
        exams=tuple(_invent_exams(seed, number, density, oddity, shares, rng)),
    )


def _invent_exams(
    seed: int, number: int, density: int, oddity: str, shares: Shares, rng: np.random.Generator
) -> Iterator[Exam]:
    """One to three exams; the first one shows the oddity."""
    count = 2 if oddity == "great_ids" else int(rng.choice([1, 2, 3], p=[0.55, 0.30, 0.15]))
    taken = date(2013, 1, 1) + timedelta(days=int(rng.integers(0, 1_200)))
    for visit in range(count):
        odd = oddity if visit == 0 or oddity in ("great_ids", "male") else ""
        acc = 10**15 + ((number + seed * 1_000_003) * 8 + visit) * 3_141_592_653_589_793 % (9 * 10**15)
        if oddity == "great_ids":
            acc = 2**53 + 4 * (number + seed % 1_000 * 100_000) + visit
        yield _invent_exam(acc, taken, density, odd, shares, rng)
        taken += timedelta(days=int(rng.integers(180, 800)))


def _scaled(shares: Sequence[float]) -> list[float]:
    return [share / sum(shares) for share in shares]


def _pick_oddity(number: int, rng: np.random.Generator) -> str:
    draw = rng.random()
    if number <= len(ODDITIES):
        return list(ODDITIES)[number - 1]
    for name, rate in _RATES.items():
        if draw < rate:
            return name
        draw -= rate
    return ""


def _invent_breasts(density: int, rng: np.random.Generator, *, implant: bool, male: bool) -> dict[Side, Breast]:
    """Two similar breasts."""
    depth = rng.uniform(0.26, 0.36) if male else rng.uniform(0.44, 0.66)
    half = rng.uniform(0.30, 0.36) if male else rng.uniform(0.33, 0.43)

    def breast() -> Breast:
        return Breast(
            depth=depth * rng.uniform(0.96, 1.04),
            half=half * rng.uniform(0.97, 1.03),
            density=density,
            pattern=int(rng.integers(2**31)),
            implant=implant,
            male=male,
        )

    return {"L": breast(), "R": breast()}


def _invent_exam(acc: int, taken: date, density: int, oddity: str, shares: Shares, rng: np.random.Generator) -> Exam:
    """One exam, with the oddity if there is one."""
    lead = _LEADS.get(oddity, int(rng.choice(7, p=_scaled(shares.birads))))
    side: Side = "L" if rng.random() < 0.5 else "R"
    screening = oddity not in _DIAGNOSTIC and (lead < 3 or (lead == 3 and rng.random() < 0.4))
    alone = oddity in ("unilateral", "worse_second") or (not screening and oddity != "male" and rng.random() < 0.6)
    tomo = oddity == "synthetic" or (rng.random() < 0.22 and oddity not in ("spot", "special_views"))
    findings = invent_findings(lead, side, oddity, rng, screening=screening, alone=alone)
    if oddity in ("no_assessment", "blank_assessment"):
        findings = [Finding(side="", letter="X" if oddity == "no_assessment" else "")]
    desc = _describe(side, screening=screening, alone=alone, tomo=tomo)
    study = desc
    if oddity == "two_names":
        study = "" if rng.random() < 0.5 else "MG Diagnostic Bilateral" if screening else "MG Screening Bilateral"
    late = oddity == "two_dates" or rng.random() < 0.1
    return Exam(
        acc=acc,
        taken=taken,
        signed=taken + timedelta(days=int(rng.integers(1, 10)) if late else 0),
        desc=desc,
        study=study,
        density="" if oddity == "blank_density" else str(density) if oddity == "mixed_numbers" else f"{density}.0",
        findings=tuple(findings),
        images=tuple(invent_images(side, oddity, rng, alone=alone, tomo=tomo, screening=screening)),
    )


_LEADS = {
    "blank_side": 1,
    "both_sides": 2,
    "implied_negative": 0,
    "worse_second": 5,
    "several_rows": 4,
    "no_assessment": 1,
    "blank_assessment": 1,
    "male": 1,
    "unilateral": 4,
    "spot": 4,
    "special_views": 3,
    "implant": 1,
}
_DIAGNOSTIC = ("worse_second", "several_rows", "male", "spot", "special_views", "unilateral")

_RACES = (
    "African American  or Black",
    "Caucasian or White",
    "Asian",
    "Multiple",
    "Unknown, Unavailable or Unreported",
)
_ETHNIC = ("Non-Hispanic or Latino", "Hispanic or Latino", "Unreported, Unknown, Unavailable")


def _describe(side: Side, *, screening: bool, alone: bool, tomo: bool) -> str:
    kind = "Screening" if screening else "Diagnostic"
    which = {"L": "Left", "R": "Right"}[side] if alone else "Bilateral"
    if tomo and screening and not alone:
        return "MG Screen Bilat w/Tomosynthesis"
    return f"MG {kind} {which}" + (" w/Tomosynthesis" if tomo else "")
