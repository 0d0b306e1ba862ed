"""What a mammogram phantom is made of: patients, their exams, findings and pictures.

What is drawn and what the tables say come from the same findings. Whatever makes the real tables hard to read happens
to these patients too (`ODDITIES`): patient number n, as long as there are oddities left, shows the n-th; later patients
show one now and then.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal

from cleft.data.phantoms.film import Breast
from cleft.data.phantoms.lesions import Sign

LETTERS = "ANBPSMK"
"""Assessment letter of BI-RADS 0 to 6."""

ODDITIES = {
    "blank_side": "one row without a side speaks for both breasts",
    "both_sides": "one row with side B speaks for both breasts",
    "implied_negative": "a bilateral exam has rows of one breast alone; the other one is negative",
    "worse_second": "a breast has a row P and after it a row M",
    "several_rows": "a breast has several rows that agree, and one that is milder",
    "no_assessment": "the assessment is X",
    "blank_assessment": "the assessment is blank",
    "blank_density": "the density is blank",
    "male": "a man: density 5",
    "great_ids": "two exams of a patient have ids above 2^53 that are equal when read as floating-point numbers",
    "synthetic": "beside each 2D image stands a cview",
    "spot": "magnified views with spot_mag 1; others have 0 or nothing",
    "special_views": "ML and XCCL beside CC and MLO, and an image without a view",
    "unilateral": "an exam of one breast",
    "implant": "implants",
    "two_dates": "the two tables have different dates for an exam",
    "two_names": "the two tables disagree on what kind of exam it was, or one is silent",
    "mixed_numbers": "densities are written 2.0 here and 2 there",
}
"""What the first patients show, one each, in this order."""

Side = Literal["L", "R"]


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How often things occur; scaled to sum to 1."""

    birads: tuple[float, ...] = (0.16, 0.22, 0.19, 0.12, 0.12, 0.10, 0.09)
    """Of the leading breast of an exam, BI-RADS 0 to 6. Its other breast is negative or benign."""
    density: tuple[float, ...] = (0.20, 0.32, 0.32, 0.16)
    """Of patients, density 1 to 4."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row of the clinical table."""

    side: str
    """L, R, B or blank."""
    letter: str
    """Of the assessment; X or blank where there is none."""
    shape: str = ""
    margin: str = ""
    dens: str = ""
    calc: str = ""
    distri: str = ""
    path: str = ""
    """Severity of what a biopsy found, 0 to 6."""
    sign: Sign | None = None
    """How it is drawn."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One row of the metadata table and one file."""

    side: Side
    view: str
    """As drawn."""
    named: str
    """As the table names it; may be blank."""
    kind: Literal["2D", "cview"] = "2D"
    spot: bool = False
    spot_mag: str = ""


@dataclass(frozen=True, kw_only=True)
class Exam:
    """One visit."""

    acc: int
    taken: date
    signed: date
    desc: str
    """What the clinical table calls it."""
    study: str
    """What the images call it."""
    density: str
    """As written: `2.0`, `2` or nothing."""
    findings: tuple[Finding, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True)
class Patient:
    """Somebody who does not exist."""

    number: int
    empi: int
    cohort: int
    male: bool
    born: date
    race: str
    ethnic: str
    breasts: dict[Side, Breast]
    exams: tuple[Exam, ...]
