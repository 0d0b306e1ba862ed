"""Which files of EMBED are kept, why the others are not, and what is known of the breast each shows.

Shapes: `M` files, `N` of them kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cleft.data.readers.embed_exams import Exams, Keys
from cleft.data.readers.embed_files import Files
from cleft.data.readers.embed_join import NONE, Flags, Integers

_NEGATIVE = 1


@dataclass(frozen=True, kw_only=True)
class Images:
    """Entry n of every array speaks of the same image."""

    kept: Integers
    """Its row in the metadata table, ascending, `[N]`."""
    birads: Integers
    """0 to 6, or `NONE`, `[N]`."""
    density: Integers
    """1 to 4, or 0, `[N]`."""
    finding: Integers
    """Row of the clinical table that speaks for its breast, or `NONE` where it is negative by implication, `[N]`."""
    several: Flags
    """Whether other rows might have spoken, `[N]`."""
    rejected: dict[str, Sequence[str]]
    """Reason to the ids that it took out."""


def choose_images(files: Files, keys: Keys, exams: Exams) -> Images:
    """Keeps 2D images of which an assessment or a density is known.

    Left out are, under `type-<kind>`, synthetic and other images; under `no-side`, images of neither breast; under
    `no-exam`, those whose exam is not in the clinical table; under `male`, every image of a man; under `other-breast`,
    breasts that no finding of their exam speaks of, where the exam need not have been of both; under `no-label`,
    those with neither assessment nor density. Rows without a path or an id are faults and counted there.
    """
    exam, side = np.maximum(keys.exam, 0), np.maximum(files.side, 0)
    finding = exams.breasts.row[exam, side]
    implied = exams.breasts.implied[exam, side]
    birads = np.where(finding >= 0, exams.findings.birads[finding], np.where(implied, _NEGATIVE, NONE))
    density = exams.density[exam]
    sound = np.array([bool(name) for name in files.ids], dtype=bool) & (keys.patient >= 0) & (keys.accession >= 0)
    reasons: list[tuple[str, Flags]] = [
        *_kinds(files),
        ("no-side", files.side == NONE),
        ("no-exam", keys.exam == NONE),
        ("male", _of_men(keys, exams)),
        ("other-breast", (finding == NONE) & ~implied),
        ("no-label", (birads == NONE) & (density == 0)),
    ]
    left = sound.copy()
    rejected: dict[str, Sequence[str]] = {}
    for reason, holds in reasons:
        out = np.flatnonzero(left & holds)
        if len(out):
            rejected[reason] = [files.ids[m] for m in out.tolist()]
            left[out] = False
    kept = np.flatnonzero(left)
    return Images(
        kept=kept,
        birads=birads[kept],
        density=density[kept],
        finding=finding[kept],
        several=exams.breasts.rows[exam, side][kept] > 1,
        rejected=rejected,
    )


def _kinds(files: Files) -> list[tuple[str, Flags]]:
    """Every kind of image but 2D."""
    distinct, place = np.unique(np.array(files.kinds, dtype=object), return_inverse=True)
    return [
        (f"type-{kind or 'unknown'}", place == position)
        for position, kind in enumerate(distinct.tolist())
        if kind != "2d"
    ]


def _of_men(keys: Keys, exams: Exams) -> Flags:
    """Which files are of a patient with an exam of a man, `[M]`."""
    rows = keys.finding_exam >= 0
    men = np.unique(keys.finding_patient[rows & exams.male[np.maximum(keys.finding_exam, 0)]])
    return np.isin(keys.patient, men) & (keys.patient >= 0)
