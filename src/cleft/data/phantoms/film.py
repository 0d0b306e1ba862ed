"""A breast, and the film it is drawn on.

Coordinates and sizes are in heights of the image, as in `breast.py`. Shapes: `H`, `W` height and width in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from cleft.data.phantoms.drawing import Map, Sheet

OBLIQUE = ("MLO", "ML", "LM")
"""Views from the side, which show the pectoral muscle."""


@dataclass(frozen=True, kw_only=True)
class Breast:
    """What stays the same in all images of one breast."""

    depth: float = 0.56
    """From chest wall to nipple, in heights of the image."""
    half: float = 0.40
    """Half of its width at the chest wall."""
    density: int = 2
    """1 almost entirely fat, 2 scattered, 3 heterogeneously dense, 4 extremely dense."""
    pattern: int = 0
    """Seed of its tissue, so that it looks alike in every exam."""
    implant: bool = False
    male: bool = False


@dataclass(kw_only=True)
class Film:
    """A breast in progress, with what signs need to find their place."""

    sheet: Sheet
    depth: Map
    """Distance of each point to the skin, `[H, W]`; 0 outside."""
    inside: Map
    nipple: tuple[float, float]
    reach: float
    """From chest wall to nipple."""
    half: float
    """Half of the width at the chest wall."""
    oblique: bool
