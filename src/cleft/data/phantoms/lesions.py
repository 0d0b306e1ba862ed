"""Draws the signs a mammogram is read for: masses, calcifications, asymmetries and what a biopsy leaves behind.

Coordinates and sizes are in heights of the image, as in `breast.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cleft.data.phantoms.drawing import Map, Sheet, curve, soft
from cleft.data.phantoms.film import Film


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


def draw_sign(film: Film, sign: Sign, view: str) -> tuple[int, int, int, int] | None:
    """Draws a sign and returns its box (top, left, bottom, right in pixels), or None where it is hardly to be seen."""
    small, large = _RADII[sign.kind]
    radius = small + sign.size * (large - small)
    x, y = _place(film, sign, radius)
    faint = view == sign.faint_in
    spot = Spot(
        film.sheet.part(x, y, 4 * radius), x, y, radius, 0.35 if faint else 1.0, np.random.default_rng(sign.seed)
    )
    SIGNS[sign.kind](spot)
    if faint:
        return None
    height, width = film.sheet.size
    top, bottom = (int(np.clip((y + way * 1.4 * radius) * height, 0, height)) for way in (-1, 1))
    left, right = (int(np.clip((x + way * 1.4 * radius) * height, 0, width)) for way in (-1, 1))
    return top, left, bottom, right


def _place(film: Film, sign: Sign, radius: float) -> tuple[float, float]:
    """Where a sign lies; nearer to the middle if it would touch the skin."""
    middle = np.array([0.45 * film.reach, film.nipple[1]])
    side = sign.high + 0.12 if film.oblique else sign.across
    wish = np.array([(0.18 + 0.60 * sign.deep) * film.reach, film.nipple[1] + 0.55 * side * film.half])
    height, width = film.sheet.size
    x, y = wish
    for step in range(1, 9):
        row, column = int(np.clip(y * height, 0, height - 1)), int(np.clip(x * height, 0, width - 1))
        if film.depth[row, column] > radius + 0.02:
            break
        x, y = wish + (middle - wish) * step / 8
    return float(x), float(y)


@dataclass(frozen=True)
class Spot:
    """Where to draw, how large, how clear; and the sign's own chance."""

    sheet: Sheet
    """The part of the image around it."""
    x: float
    y: float
    radius: float
    clear: float
    """1 plain to see, less where it is hidden."""
    rng: np.random.Generator = field(compare=False)

    def blob(self, x: float, y: float, wide: float, high: float, edge: float) -> Map:
        """Soft ellipse; centre and half axes in radii from the sign's own centre."""
        size = self.radius
        return self.sheet.blob(self.x + x * size, self.y + y * size, wide * size, high * size, edge)

    def shape(self, rough: float, turns: int, edge: float) -> Map:
        """A soft round shape with a rim that wanders in and out by the share `rough`, about `turns` times."""
        dx, dy = self.sheet.x - self.x, self.sheet.y - self.y
        lobes = 1 + rough * np.clip(self.rng.standard_normal(turns), -1.5, 1.5)
        ring = np.tile(lobes, 3)
        fine = np.interp(np.linspace(turns, 2 * turns, 181), np.arange(len(ring)), _smooth(ring))
        angle = (np.arctan2(dy, dx) / (2 * np.pi) + 0.5) * 180
        rim = np.interp(angle, np.arange(181), fine) * self.radius
        return soft((rim - np.hypot(dx, dy)).astype(np.float32), edge * self.radius)

    def cover(self, where: Map, goal: float | Map, share: float = 1.0) -> None:
        """Brings the brightness of a place up to a goal; what is brighter stays."""
        image = self.sheet.image
        image += share * self.clear * where * np.clip(goal - image, 0, 1)

    def texture(self, scale: float) -> Map:
        """Clouds of the sign's own."""
        return self.sheet.clouds(scale, self.rng)


def _smooth(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Takes the corners off a ring of values."""
    return 0.25 * np.roll(ring, 1) + 0.5 * ring + 0.25 * np.roll(ring, -1)


def _round(spot: Spot) -> None:
    """A small smooth mass with a fine dark halo."""
    wide, high = spot.rng.uniform(1.0, 1.2), spot.rng.uniform(0.85, 1.0)
    mass = spot.blob(0, 0, wide, high, 0.20)
    halo = spot.blob(0, 0, 1.28 * wide, 1.28 * high, 0.25) - mass
    spot.sheet.darken(np.clip(halo, 0, 1), 0.32 * spot.clear)
    spot.cover(mass, 0.58 + 0.28 * spot.sheet.image + 0.02 * spot.texture(0.02))


def _irregular(spot: Spot) -> None:
    """A mass grown together from lobes, with an uneven and blurred rim."""
    spot.cover(spot.shape(0.05, 5, 0.5), 0.46, 0.6)
    mass = spot.blob(0, 0, 0.60, 0.55, 0.9)
    for _ in range(9):
        x, y = 0.48 * np.clip(spot.rng.standard_normal(2), -1.4, 1.4)
        mass = np.maximum(mass, spot.blob(x, y, spot.rng.uniform(0.22, 0.75), spot.rng.uniform(0.22, 0.55), 1.0))
    spot.cover(np.clip(1.15 * mass, 0, 1) * (1 - 0.08 * np.abs(spot.texture(0.02))), 0.84)


def _spiculated(spot: Spot) -> None:
    """A large white mass with a crown of spicules that pull the tissue in."""
    lines: list[tuple[NDArray[np.float64], float, float]] = []
    centre = np.array([spot.x, spot.y])
    for number in range(30):
        angle = 2 * np.pi * (number + spot.rng.uniform(-0.4, 0.4)) / 30
        length = spot.radius * spot.rng.uniform(1.5, 3.1)
        along = np.array([np.cos(angle), np.sin(angle)])
        bend = spot.rng.normal(0, 0.10) * length * np.array([-along[1], along[0]])
        line = curve(np.stack([centre, centre + 0.5 * length * along + bend, centre + length * along]))
        lines += [(line, 0.0035, 0.22), (line[:15], 0.0055, 0.42), (line[:11], 0.009, 0.60)]
    lines.sort(key=lambda line: line[2])
    spot.cover(spot.shape(0.05, 5, 0.6), 0.55, 0.6)
    spot.sheet.strokes(lines, blur=0.0018)
    spot.cover(spot.shape(0.22, 15, 0.12), 0.95)


def _clipped(spot: Spot) -> None:
    """A mass with the metal clip that a biopsy left in it."""
    _irregular(spot)
    turn = spot.rng.uniform(0, np.pi)
    along, aside = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    coil = [(-1.0, 0.0), (-0.6, 0.8), (-0.2, -0.8), (0.2, 0.8), (0.6, -0.8), (1.0, 0.0)]
    centre = np.array([spot.x, spot.y])
    ribbon = curve(centre + np.stack([0.034 * across * along + 0.017 * up * aside for across, up in coil]))
    spot.sheet.stroke(ribbon, 0.019, -0.60)
    spot.sheet.stroke(ribbon, 0.009, 1.0)


def _cluster(spot: Spot) -> None:
    """Many small grains of different shape and brightness, close together."""
    spot.cover(spot.blob(0, 0, 1.2, 1.0, 1.4), 0.50, 0.45)
    lines: list[tuple[NDArray[np.float64], float, float]] = []
    for _ in range(38):
        angle, away = spot.rng.uniform(0, 2 * np.pi), spot.radius * np.sqrt(spot.rng.random())
        start = np.array([spot.x + 1.15 * away * np.cos(angle), spot.y + 0.85 * away * np.sin(angle)])
        turn, length = spot.rng.uniform(0, np.pi), spot.rng.uniform(0.0005, 0.007)
        end = start + length * np.array([np.cos(turn), np.sin(turn)])
        lines.append((np.stack([start, end]), 0.0045, spot.rng.uniform(0.65, 1.0)))
    spot.sheet.strokes(lines)


def _popcorn(spot: Spot) -> None:
    """Coarse white lumps of an old fibroadenoma."""
    for _ in range(9):
        x, y = spot.rng.normal(0, 0.42, 2)
        size = spot.rng.uniform(0.26, 0.52)
        spot.cover(spot.blob(x, y, size, 0.85 * size, 0.25), 1.0)


def _rim(spot: Spot) -> None:
    """An egg shell: a white ring around something dark."""
    away = np.hypot(spot.sheet.x - spot.x, (spot.sheet.y - spot.y) * spot.rng.uniform(1.0, 1.25))
    spot.sheet.darken(soft(spot.radius - away, 0.003), 0.30 * spot.clear)
    uneven = 1 + 0.35 * np.sin(2 * np.arctan2(spot.sheet.y - spot.y, spot.sheet.x - spot.x) + spot.rng.uniform(0, 6))
    spot.cover(soft(0.13 * spot.radius * uneven - np.abs(away - spot.radius), 0.0015), 1.0)


def _node(spot: Spot) -> None:
    """A bean with a dark notch of fat: a lymph node."""
    bean = spot.blob(0, 0, 0.78, 1.15, 0.16)
    spot.sheet.darken(np.clip(spot.blob(0, 0, 1.05, 1.45, 0.3) - bean, 0, 1), 0.30 * spot.clear)
    spot.cover(bean, 0.78)
    spot.sheet.darken(spot.blob(-0.42, 0, 0.45, 0.55, 0.4) * bean, 0.72 * spot.clear)


def _asymmetry(spot: Spot) -> None:
    """More tissue than elsewhere, without a border of its own."""
    patch = spot.shape(0.12, 6, 0.26)
    spot.cover(patch * np.clip(0.88 + 0.14 * spot.texture(0.03), 0, 1), 0.76)


SIGNS: Mapping[str, Callable[[Spot], None]] = {
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
    "clipped": (0.054, 0.068),
    "asymmetry": (0.085, 0.115),
}
"""Smallest and largest radius of each kind."""
