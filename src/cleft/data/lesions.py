"""Draws the signs a mammogram is read for: masses, calcifications, asymmetries and what a biopsy leaves behind.

Coordinates and sizes are in heights of the image, as in `breast.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cleft.data.drawing import Map, Sheet, curve, soft


@dataclass(frozen=True, kw_only=True)
class Sign:
    """One thing to be seen in a breast, at a place that both views share."""

    kind: str
    """A name in `SIGNS`."""
    deep: float = 0.5
    """0 at the chest wall, 1 at the nipple."""
    across: float = 0.0
    """-1 to 1: where it lies from one side to the other, seen from above (CC)."""
    high: float = 0.0
    """-1 to 1: how far down it lies, seen from the side (MLO)."""
    size: float = 0.5
    """0 the smallest of its kind, 1 the largest."""
    seed: int = 0
    """Of its own shape, so that it looks alike in both views."""
    faint_in: str = ""
    """View in which it can hardly be seen, if any."""


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

    def place(self, sign: Sign, radius: float) -> tuple[float, float]:
        """Where a sign lies; nearer to the middle if it would touch the skin."""
        middle = np.array([0.45 * self.reach, self.nipple[1]])
        side = sign.high + 0.12 if self.oblique else sign.across
        wish = np.array([(0.18 + 0.60 * sign.deep) * self.reach, self.nipple[1] + 0.55 * side * self.half])
        height, width = self.sheet.size
        x, y = wish
        for step in range(1, 9):
            row, column = int(np.clip(y * height, 0, height - 1)), int(np.clip(x * height, 0, width - 1))
            if self.depth[row, column] > radius + 0.02:
                break
            x, y = wish + (middle - wish) * step / 8
        return float(x), float(y)

    def cover(self, where: Map, goal: float | Map, share: float = 1.0) -> None:
        """Brings the brightness of a place up to a goal; what is brighter stays."""
        image = self.sheet.image
        image += share * where * np.clip(goal - image, 0, 1)


def draw_sign(film: Film, sign: Sign, view: str) -> tuple[int, int, int, int] | None:
    """Draws a sign and returns its box (top, left, bottom, right in pixels), or None where it is hardly to be seen."""
    radius = _RADII[sign.kind][0] + sign.size * (_RADII[sign.kind][1] - _RADII[sign.kind][0])
    x, y = film.place(sign, radius)
    faint = view == sign.faint_in
    SIGNS[sign.kind](film, Spot(x, y, radius, 0.4 if faint else 1.0, np.random.default_rng(sign.seed)))
    if faint:
        return None
    height, width = film.sheet.size
    reach = 1.4 * radius
    top, bottom = (int(np.clip((y + way * reach) * height, 0, height)) for way in (-1, 1))
    left, right = (int(np.clip((x + way * reach) * height, 0, width)) for way in (-1, 1))
    return top, left, bottom, right


@dataclass(frozen=True)
class Spot:
    """Where to draw, how large, how clear; and the sign's own chance."""

    x: float
    y: float
    radius: float
    clear: float
    rng: np.random.Generator = field(compare=False)


def _shape(film: Film, spot: Spot, *, lobes: NDArray[np.float64], edge: float) -> Map:
    """A soft round shape whose radius is modulated around its rim by `lobes` (one value per direction)."""
    dx, dy = film.sheet.x - spot.x, film.sheet.y - spot.y
    angle = (np.arctan2(dy, dx) / (2 * np.pi) + 0.5) * len(lobes)
    rim = np.interp(angle, np.arange(len(lobes) + 1), np.append(lobes, lobes[0])) * spot.radius
    return soft((rim - np.hypot(dx, dy)).astype(np.float32), edge * spot.radius)


def _round(film: Film, spot: Spot) -> None:
    """A small smooth mass with a fine dark halo."""
    long = spot.rng.uniform(1.0, 1.25)
    mass = film.sheet.blob(spot.x, spot.y, spot.radius * long, spot.radius, 0.22)
    halo = film.sheet.blob(spot.x, spot.y, spot.radius * long * 1.25, spot.radius * 1.25, 0.25) - mass
    film.sheet.darken(np.clip(halo, 0, 1), 0.35 * spot.clear)
    film.cover(mass, 0.74, spot.clear)


def _irregular(film: Film, spot: Spot) -> None:
    """A mass with an uneven, blurred rim."""
    lobes = 1 + 0.30 * np.clip(spot.rng.standard_normal(11), -1.6, 1.6)
    mass = _shape(film, spot, lobes=lobes, edge=0.16)
    film.cover(mass, 0.84, spot.clear)


def _spiculated(film: Film, spot: Spot) -> None:
    """A large white mass with a crown of spicules that pull the tissue in."""
    lobes = 1 + 0.18 * np.clip(spot.rng.standard_normal(17), -1.6, 1.6)
    for number in range(26):
        angle = 2 * np.pi * (number + spot.rng.uniform(-0.3, 0.3)) / 26
        length = spot.radius * spot.rng.uniform(1.8, 3.2)
        along = np.array([np.cos(angle), np.sin(angle)])
        bend = spot.rng.normal(0, 0.08) * length * along[::-1]
        start = np.array([spot.x, spot.y])
        line = curve(
            np.stack([start + 0.6 * spot.radius * along, start + 0.6 * length * along + bend, start + length * along])
        )
        film.sheet.stroke(line, 0.006, 0.30 * spot.clear, within=film.inside)
        film.sheet.stroke(line[:12], 0.010, 0.30 * spot.clear, within=film.inside)
    film.cover(_shape(film, spot, lobes=lobes, edge=0.12), 0.95, spot.clear)


def _clipped(film: Film, spot: Spot) -> None:
    """A mass with the metal clip that a biopsy left in it."""
    _irregular(film, spot)
    x, y = spot.x + 0.2 * spot.radius, spot.y - 0.15 * spot.radius
    turn = spot.rng.uniform(0, np.pi)
    along = 0.026 * np.array([np.cos(turn), np.sin(turn)])
    centre = np.array([x, y])
    bow = np.stack([centre - along, centre + 0.4 * along[::-1] * [1, -1], centre + along])
    film.sheet.stroke(curve(bow), 0.020, -0.55)
    film.sheet.stroke(curve(bow), 0.010, 1.0)
    ring = np.hypot(film.sheet.x - centre[0] - along[0], film.sheet.y - centre[1] - along[1])
    film.sheet.brighten(soft(0.0045 - np.abs(ring - 0.012), 0.001), 1.0)


def _cluster(film: Film, spot: Spot) -> None:
    """Many small grains of different shape and brightness, close together."""
    haze = film.sheet.blob(spot.x, spot.y, 1.2 * spot.radius, spot.radius, 1.2)
    film.cover(haze, 0.52, 0.5 * spot.clear)
    for _ in range(34):
        angle, away = spot.rng.uniform(0, 2 * np.pi), spot.radius * np.sqrt(spot.rng.random())
        x, y = spot.x + 1.1 * away * np.cos(angle), spot.y + 0.9 * away * np.sin(angle)
        turn, length = spot.rng.uniform(0, np.pi), spot.rng.uniform(0.001, 0.007)
        end = length * np.array([np.cos(turn), np.sin(turn)])
        line = np.stack([np.array([x, y]), np.array([x, y]) + end])
        film.sheet.stroke(line, 0.005, spot.clear * spot.rng.uniform(0.65, 1.0))


def _popcorn(film: Film, spot: Spot) -> None:
    """Coarse white lumps of an old fibroadenoma."""
    film.cover(film.sheet.blob(spot.x, spot.y, 1.5 * spot.radius, 1.4 * spot.radius, 0.35), 0.50, 0.8 * spot.clear)
    for _ in range(9):
        dx, dy = spot.rng.normal(0, 0.42, 2) * spot.radius
        size = spot.radius * spot.rng.uniform(0.28, 0.55)
        film.cover(film.sheet.blob(spot.x + dx, spot.y + dy, size, 0.85 * size, 0.2), 1.0, spot.clear)


def _rim(film: Film, spot: Spot) -> None:
    """An egg shell: a white ring around something dark."""
    away = np.hypot(film.sheet.x - spot.x, (film.sheet.y - spot.y) * 1.12)
    film.sheet.darken(soft(spot.radius - away, 0.003), 0.35 * spot.clear)
    film.cover(soft(0.16 * spot.radius - np.abs(away - spot.radius), 0.0015), 1.0, spot.clear)


def _node(film: Film, spot: Spot) -> None:
    """A bean with a dark notch of fat: a lymph node."""
    bean = film.sheet.blob(spot.x, spot.y, 0.75 * spot.radius, 1.15 * spot.radius, 0.18)
    notch = film.sheet.blob(spot.x - 0.38 * spot.radius, spot.y, 0.42 * spot.radius, 0.55 * spot.radius, 0.4)
    film.cover(bean, 0.80, spot.clear)
    film.sheet.darken(notch * bean, 0.70 * spot.clear)


def _asymmetry(film: Film, spot: Spot) -> None:
    """More tissue than elsewhere, without a border of its own."""
    lobes = 1 + 0.15 * np.clip(spot.rng.standard_normal(7), -1.6, 1.6)
    patch = _shape(film, spot, lobes=lobes, edge=0.30)
    film.cover(patch * np.clip(0.9 + 0.16 * film.sheet.clouds(0.03), 0, 1), 0.72, 0.75 * spot.clear)


SIGNS: Mapping[str, Callable[[Film, Spot], None]] = {
    "popcorn": _popcorn,
    "rim": _rim,
    "node": _node,
    "round": _round,
    "irregular": _irregular,
    "cluster": _cluster,
    "spiculated": _spiculated,
    "clipped": _clipped,
    "asymmetry": _asymmetry,
}
"""What draws each sign."""

_RADII: Mapping[str, tuple[float, float]] = {
    "popcorn": (0.026, 0.036),
    "rim": (0.022, 0.036),
    "node": (0.026, 0.038),
    "round": (0.032, 0.046),
    "irregular": (0.042, 0.058),
    "cluster": (0.036, 0.055),
    "spiculated": (0.056, 0.075),
    "clipped": (0.044, 0.060),
    "asymmetry": (0.085, 0.115),
}
"""Smallest and largest radius of each kind."""
