"""Correction of p-values for the number of comparisons that are shown together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

LEVEL = 0.05
"""Significance level: a difference counts where its corrected p-value is at most this."""


class Corrected(NamedTuple):
    """P-values of one family of comparisons."""

    p_values: list[float | None]
    """Holm-corrected, in the given order; None where there was none."""
    family: int
    """How many comparisons were tested together."""


def holm(p_values: Sequence[float | None]) -> Corrected:
    """Corrects p-values by Holm's step-down procedure, which bounds the chance of one false claim among all.

    The smallest of `m` is multiplied by `m`, the next by `m - 1` and so on; none becomes smaller than one before it.

    Args:
        p_values: Of all comparisons that are shown together; those that are None were not tested and do not count.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005]).p_values]
        [0.03, 0.06, 0.06, 0.02]

    Source:
        Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    tested = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(tested):
        largest = min(1.0, max(largest, (len(tested) - rank) * p))
        corrected[place] = largest
    return Corrected(corrected, len(tested))


def resamples_for(family: int, fewest: int = 1_000) -> int:
    """Returns how many bootstrap resamples a family of comparisons needs.

    The smallest p-value of `n` resamples is 2 / (n + 1); it must be able to stay below the level once it is multiplied
    by the number of comparisons.

    Example:
        >>> resamples_for(12), resamples_for(168)
        (1000, 7000)
    """
    needed = 2 * family / LEVEL
    return max(fewest, -(-int(needed) // 1_000) * 1_000)
