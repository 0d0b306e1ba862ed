"""Invents the patients of a mammogram phantom, their breasts and their exams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, timedelta

import numpy as np

from cleft.data.phantoms.film import Breast
from cleft.data.phantoms.mammogram_cases import ODDITIES, Exam, Finding, Patient, Shares, Side
from cleft.data.phantoms.mammogram_findings import invent_findings, take_pictures
from cleft.data.sampling import Stream, philox_generator

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
"""How often a later patient shows one of those that do not occur by themselves."""


def invent_patient(seed: int, number: int, shares: Shares) -> Patient:
    """Returns patient `number` (from 1) of a seed; no other patient has a say in it."""
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
    """One to three visits; the first one shows the oddity."""
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
    """Two breasts that are nearly alike."""
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
    """One visit that shows the oddity, or none."""
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
        pictures=tuple(take_pictures(side, oddity, rng, alone=alone, tomo=tomo, screening=screening)),
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
