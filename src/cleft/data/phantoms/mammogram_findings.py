"""Invents what was found in an exam, as rows and as signs to draw, and which pictures were taken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cleft.data.phantoms.lesions import Sign
from cleft.data.phantoms.mammogram_cases import LETTERS, Finding, Picture, Side


def invent_findings(
    lead: int, side: Side, oddity: str, rng: np.random.Generator, *, screening: bool, alone: bool
) -> list[Finding]:
    """Rows of an exam whose leading breast is of BI-RADS `lead`."""
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
    """Rows of one breast that say BI-RADS 0 to 6, and how they are drawn."""
    letter = LETTERS[birads]
    kind = str(rng.choice(_KINDS[birads])) if birads != 1 else ""
    shape, margin, dens, calc, distri = (str(rng.choice(list(codes))) if codes else "" for codes in _CODES[kind])
    path = {4: "24", 5: "001", 6: "01"}.get(birads, "")
    sign = Sign(
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
        sign=sign if kind else None,
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
"""Of each drawn sign: shape, margin, density, calcification, distribution; one code of each is drawn."""


def take_pictures(
    side: Side, oddity: str, rng: np.random.Generator, *, alone: bool, tomo: bool, screening: bool
) -> list[Picture]:
    """Both views of each breast, and what else was taken."""
    sides: tuple[Side, ...] = (side,) if alone else ("L", "R")
    blank = "0.0" if rng.random() < 0.2 else ""
    taken = [Picture(side=one, view=view, named=view, spot_mag=blank) for one in sides for view in ("CC", "MLO")]
    if tomo:
        taken += [replace(picture, kind="cview") for picture in taken]
    if oddity == "special_views" or (not screening and not oddity and rng.random() < 0.3):
        taken += [Picture(side=side, view="ML", named="ML"), Picture(side=side, view="XCCL", named="XCCL")]
    if oddity == "special_views":
        taken.append(Picture(side=side, view="ML", named=""))
    if oddity == "spot" or (not screening and not oddity and rng.random() < 0.25):
        taken += [Picture(side=side, view=view, named=view, spot=True, spot_mag="1.0") for view in ("CC", "ML")]
    if oddity == "spot":
        taken += [Picture(side=side, view="LM", named="LM", spot_mag="0.0")]
    return taken
