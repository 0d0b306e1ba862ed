"""Draws what every breast has: fat, glandular tissue, strands, skin, and the muscle behind it; and implants.

Coordinates and sizes are in heights of the image, as in `breast.py`.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cleft.data.phantoms.drawing import Map, curve, soft
from cleft.data.phantoms.film import Breast, Film


def draw_fat(film: Film) -> None:
    """Gray that grows with the thickness under the paddle."""
    sheet = film.sheet
    sheet.image[:] = film.inside * (0.07 + 0.15 * (1 - np.exp(-film.depth / 0.06)))


_BIAS = {1: -2.05, 2: -1.05, 3: -0.05, 4: 1.35, 5: -2.6}
_WHITE = {1: 0.24, 2: 0.33, 3: 0.42, 4: 0.54, 5: 0.20}
"""By density: how much of the breast is tissue, and how bright it is. 5 is a man's."""


def draw_tissue(film: Film, breast: Breast, rng: np.random.Generator) -> None:
    """Glandular tissue: a cone behind the nipple, filled as the density says, streaked towards the nipple.

    Drawn at half the size: it has no fine edges.
    """
    sheet = film.sheet
    size = (sheet.size[0] // 2, sheet.size[1] // 2)
    x, y, depth = (_resized(plane, size) for plane in (sheet.x, sheet.y, film.depth))
    away = np.hypot(x - film.nipple[0], y - film.nipple[1])
    streaks = _streaks(away, np.arctan2(y - film.nipple[1], film.nipple[0] - x), rng) * np.clip(away / 0.18, 0.15, 1)
    lumps = _lumps(size, rng)
    middle = (0.46 * film.reach, film.nipple[1] - (0.06 if film.oblique else 0.0))
    wide = film.half * (0.42 if breast.male else 0.80)
    out = np.hypot((x - middle[0]) / (0.62 * film.reach), (y - middle[1]) / wide)
    place = 1.05 - 2.4 * np.clip(out - 0.30, 0, 2) ** 1.5
    kind = 5 if breast.male else breast.density
    filled = soft(0.95 * lumps + 0.60 * streaks + place + _BIAS[kind], 0.42)
    amount = filled * soft(depth - 0.032, 0.008) * (0.82 + 0.14 * lumps + 0.10 * streaks)
    fat = 1 + 0.09 * lumps + 0.06 * streaks
    sheet.image *= _resized(fat, sheet.size)
    sheet.brighten(np.clip(_resized(amount, sheet.size), 0, 1.3) * film.inside, _WHITE[kind])


def _resized(plane: Map, size: tuple[int, int]) -> Map:
    return cv2.resize(plane, (size[1], size[0]), interpolation=cv2.INTER_LINEAR).astype(np.float32)


def _streaks(away: Map, angle: Map, rng: np.random.Generator) -> Map:
    """Noise that is fine around the nipple and coarse along its rays: ducts."""
    total = np.zeros(away.shape, np.float32)
    for rays, rings, strength in ((30, 8, 1.0), (75, 20, 0.6)):
        coarse = rng.standard_normal((rings, rays), dtype=np.float32)
        across = ((angle / np.pi + 1) / 2 * (rays - 1)).astype(np.float32)
        along = np.clip(away / 1.2 * (rings - 1), 0, rings - 1).astype(np.float32)
        noise = cv2.remap(coarse, across, along, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        total += strength * noise.astype(np.float32)
    return total / (total.std() + 1e-6)


def _lumps(size: tuple[int, int], rng: np.random.Generator) -> Map:
    """Clouds of many grains, the coarse ones strongest, as in real tissue; the same at any size."""
    total = np.zeros(size, np.float32)
    for cells, strength in ((5, 1.0), (10, 0.8), (20, 0.55), (40, 0.34), (80, 0.22)):
        coarse = rng.standard_normal((cells, cells), dtype=np.float32)
        total += strength * cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    return (total - total.mean()) / (total.std() + 1e-6)


def draw_strands(film: Film, rng: np.random.Generator) -> None:
    """Ligaments that arch through the fat, and a few vessels."""
    lines: list[tuple[NDArray[np.float64], float, float]] = []
    for _ in range(46):
        start = np.array([rng.uniform(0.02, 0.95) * film.reach, film.nipple[1] + rng.uniform(-0.95, 0.95) * film.half])
        angle = np.arctan2(film.nipple[1] - start[1], film.nipple[0] - start[0]) + rng.normal(0, 0.5)
        length, bend = rng.uniform(0.04, 0.13), rng.normal(0, 0.014)
        along = np.array([np.cos(angle), np.sin(angle)])
        points = np.stack([start, start + 0.5 * length * along + bend * along[::-1], start + length * along])
        lines.append((curve(points), 0.0025, rng.uniform(0.04, 0.12)))
    for _ in range(3):
        start = film.nipple[1] + rng.uniform(-0.75, 0.75) * film.half
        run = np.linspace(0, 1, 9)
        turns = np.cumsum(rng.normal(0, 0.011, 9)) + 0.3 * run * (film.nipple[1] - start)
        points = curve(np.stack([0.82 * film.reach * run, start + turns], axis=1))
        lines += [(points, 0.0055, 0.09), (points[50:], 0.0035, 0.07)]
    film.sheet.strokes(lines, within=soft(film.depth - 0.014, 0.005), blur=0.0016)


def draw_skin(film: Film) -> None:
    """A fine bright line, thicker around the nipple."""
    near = np.exp(-((film.sheet.x - film.nipple[0]) ** 2 + (film.sheet.y - film.nipple[1]) ** 2) / 0.004)
    line = np.exp(-(((film.depth - 0.006) / (0.0045 + 0.006 * near)) ** 2)).astype(np.float32) * film.inside
    film.sheet.brighten(line, 0.16)
    film.sheet.brighten(film.sheet.blob(film.nipple[0] - 0.004, film.nipple[1], 0.020, 0.020, 0.9) * film.inside, 0.22)


def draw_muscle(film: Film, breast: Breast, view: str) -> None:
    """The pectoral muscle: a bright wedge in the upper corner, with fibres along its edge."""
    sheet = film.sheet
    top, low = (0.54 * film.reach, 0.62) if view == "MLO" else (0.20 * film.reach, 0.46)
    if breast.male:
        top, low = 1.05 * top, 0.75
    across = 1 - sheet.x / top - sheet.y / low + 0.13 * np.sin(np.clip(sheet.y / low, 0, 1) * np.pi)
    wedge = soft(across, 0.022) * film.inside
    fibres = cv2.remap(
        sheet.rng.standard_normal((60, 6), dtype=np.float32),
        (sheet.y / low * 4 + 0.5).astype(np.float32),
        (np.clip(across, 0, 1) * 55).astype(np.float32),
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT,
    ).astype(np.float32)
    goal = 0.40 + 0.10 * np.clip(across, 0, 1) + 0.018 * fibres
    sheet.image += wedge * np.clip(goal - 0.75 * sheet.image, 0, 1) * 0.8


def draw_implant(film: Film, breast: Breast) -> None:
    """A smooth bright sack before the chest wall."""
    y = film.nipple[1] + (0.03 if film.oblique else 0.0)
    sack = film.sheet.blob(0.04, y, 0.62 * film.reach, 0.66 * film.half, 0.08)
    film.sheet.image += sack * (0.80 - film.sheet.image)
    film.sheet.brighten(np.clip(film.sheet.blob(0.04, y, 0.64 * film.reach, 0.68 * film.half, 0.06) - sack, 0, 1), 0.5)
