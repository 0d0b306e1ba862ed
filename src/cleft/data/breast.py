"""Draws mammograms: the pencil of the phantom writer for the breast.

Nothing here is a simulation of physics. A drawing is a map of brightness in [0, 1] in which air is black, fat dark gray
and glandular tissue bright, seen from above (CC) or along the pectoral muscle (MLO), with pose, exposure and noise of
its own. How much tissue there is follows the density, what else can be seen follows the signs (`lesions.py`).

Coordinates: x from 0 (the chest wall, at the left edge) rightwards, y from 0 (top) down, both in heights of the image.
A right breast is drawn like a left one and mirrored at the end, so that it stands against the right edge.

Shapes: `H`, `W` height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cleft.data.drawing import Map, Sheet, curve, soft
from cleft.data.lesions import Film, Sign, draw_sign

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


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """What differs from one image of a breast to the next."""

    view: str = "CC"
    side: str = "L"
    synthetic: bool = False
    """Whether it is made from a tomosynthesis (C-view): smoother, with harder edges."""
    spot: bool = False
    """Whether it is a magnified view of a sign."""
    squeeze: float = 1.0
    """How far the paddle spreads the breast."""
    shift: float = 0.0
    """How far up or down the breast lies."""
    gamma: float = 1.0
    noise: float = 0.012


class Mammogram(NamedTuple):
    """An image and where its signs are."""

    image: Map
    """Brightness, `[H, W]`, float32 in [0, 1]; 0 is air."""
    boxes: list[tuple[int, int, int, int]]
    """One per sign that can be seen: top, left, bottom, right in pixels of this image."""


def draw_mammogram(
    size: tuple[int, int], breast: Breast, exposure: Exposure, signs: Sequence[Sign], rng: np.random.Generator
) -> Mammogram:
    """Draws one image of one breast.

    Args:
        size: Height and width in pixels.
        breast: Shape and tissue.
        exposure: View, side, pose.
        signs: What is to be seen in the tissue; the same in both views, each at its place.
        rng: Decides everything that chance decides in one exposure.
    """
    film = _lay_out(size, breast, exposure, rng)
    _draw_fat(film)
    tissue = np.random.default_rng([breast.pattern, exposure.view in OBLIQUE])
    _draw_tissue(film, breast, tissue)
    _draw_strands(film, tissue)
    if breast.implant:
        _draw_implant(film, breast)
    _draw_skin(film)
    if exposure.view in OBLIQUE:
        _draw_muscle(film, breast, exposure.view)
    boxes = [box for sign in signs if (box := draw_sign(film, sign, exposure.view)) is not None]
    return _expose(film, exposure, boxes)


def _lay_out(size: tuple[int, int], breast: Breast, exposure: Exposure, rng: np.random.Generator) -> Film:
    """Outline, nipple, and the depth of each point below the skin."""
    sheet = Sheet(size, rng, origin=(0, 0), step=(size[0], size[0]))
    reach = min(breast.depth * exposure.squeeze, 0.88 * size[1] / size[0])
    oblique = exposure.view in OBLIQUE
    middle = (0.585 if oblique else 0.5) + exposure.shift
    rows = np.arange(size[0], dtype=np.float64) / size[0]
    edge = _oblique_edge(rows, reach, middle, breast) if oblique else _round_edge(rows, reach, middle, breast.half)
    nipple = (reach, middle + (0.02 if oblique else 0.0))
    mask = ((sheet.x < edge[:, None].astype(np.float32)) | (sheet.blob(*nipple, 0.014, 0.016) > 0.5)).astype(np.uint8)
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    framed = cv2.copyMakeBorder(framed, 0, 0, size[0] // 2, 0, cv2.BORDER_REPLICATE)
    depth = cv2.distanceTransform(framed, cv2.DIST_L2, 5)[1:-1, size[0] // 2 + 1 : -1].astype(np.float32) / size[0]
    return Film(
        sheet=sheet,
        depth=depth,
        inside=soft(depth - 0.003, 0.0012) * (depth > 0),
        nipple=nipple,
        reach=reach,
        half=breast.half,
        oblique=oblique,
    )


def _round_edge(rows: NDArray[np.float64], reach: float, middle: float, half: float) -> NDArray[np.float64]:
    """From above: a dome on the chest wall."""
    out = np.abs(rows - middle) / half
    return np.where(out < 1, reach * np.clip(1 - out**2.3, 0, None) ** 0.62, -1)


def _oblique_edge(rows: NDArray[np.float64], reach: float, middle: float, breast: Breast) -> NDArray[np.float64]:
    """From the side: from the armpit out to the nipple, back to the fold below and on to the belly."""
    half = breast.half
    points = np.array(
        [
            [-0.05, 0.60 * reach],
            [0.12, 0.68 * reach],
            [middle - 0.55 * half, 0.83 * reach],
            [middle, reach],
            [middle + 0.45 * half, 0.88 * reach],
            [middle + 0.72 * half, 0.58 * reach],
            [middle + 0.88 * half, 0.24 * reach],
            [middle + 0.97 * half, 0.13 * reach],
            [1.08, 0.15 * reach],
        ]
    )
    smooth = curve(points)
    return np.interp(rows, smooth[:, 0], smooth[:, 1])


def _draw_fat(film: Film) -> None:
    """Gray that grows with the thickness under the paddle."""
    sheet = film.sheet
    sheet.image[:] = film.inside * (0.07 + 0.15 * (1 - np.exp(-film.depth / 0.06)))


_BIAS = {1: -2.05, 2: -1.05, 3: -0.05, 4: 1.35, 5: -2.6}
_WHITE = {1: 0.24, 2: 0.33, 3: 0.42, 4: 0.54, 5: 0.20}
"""By density: how much of the breast is tissue, and how bright it is. 5 is a man's."""


def _draw_tissue(film: Film, breast: Breast, rng: np.random.Generator) -> None:
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


def _draw_strands(film: Film, rng: np.random.Generator) -> None:
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


def _draw_skin(film: Film) -> None:
    """A fine bright line, thicker around the nipple."""
    near = np.exp(-((film.sheet.x - film.nipple[0]) ** 2 + (film.sheet.y - film.nipple[1]) ** 2) / 0.004)
    line = np.exp(-(((film.depth - 0.006) / (0.0045 + 0.006 * near)) ** 2)).astype(np.float32) * film.inside
    film.sheet.brighten(line, 0.16)
    film.sheet.brighten(film.sheet.blob(film.nipple[0] - 0.004, film.nipple[1], 0.020, 0.020, 0.9) * film.inside, 0.22)


def _draw_muscle(film: Film, breast: Breast, view: str) -> None:
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


def _draw_implant(film: Film, breast: Breast) -> None:
    """A smooth bright sack before the chest wall."""
    y = film.nipple[1] + (0.03 if film.oblique else 0.0)
    sack = film.sheet.blob(0.04, y, 0.62 * film.reach, 0.66 * film.half, 0.08)
    film.sheet.image += sack * (0.80 - film.sheet.image)
    film.sheet.brighten(np.clip(film.sheet.blob(0.04, y, 0.64 * film.reach, 0.68 * film.half, 0.06) - sack, 0, 1), 0.5)


def _expose(film: Film, exposure: Exposure, boxes: list[tuple[int, int, int, int]]) -> Mammogram:
    """Magnification, sharpness, grain, side: from tissue to film."""
    image, (height, width) = film.sheet.image * film.inside, film.sheet.size
    if exposure.spot and boxes:
        image, boxes = _magnify(image, boxes)
    inside = image > 0.04
    soft_image: Map = cv2.GaussianBlur(image, (0, 0), height / 500).astype(np.float32)
    if exposure.synthetic:
        soft_image += 0.9 * (soft_image - cv2.GaussianBlur(soft_image, (0, 0), height / 90).astype(np.float32)) * inside
    bright = np.clip(soft_image, 0, 1) ** exposure.gamma
    grain = film.sheet.rng.standard_normal((height, width)).astype(np.float32)
    bright += grain * exposure.noise * (0.4 if exposure.synthetic else 1.0) * np.sqrt(bright) * inside
    if exposure.side == "R":
        bright = np.ascontiguousarray(bright[:, ::-1])
        boxes = [(top, width - right, bottom, width - left) for top, left, bottom, right in boxes]
    _letter(bright, exposure)
    return Mammogram(np.clip(bright, 0, 1).astype(np.float32), boxes)


def _magnify(
    image: Map, boxes: list[tuple[int, int, int, int]], zoom: float = 1.8
) -> tuple[Map, list[tuple[int, int, int, int]]]:
    """Enlarges around the first box."""
    height, width = image.shape
    top, left, bottom, right = boxes[0]
    row = np.clip((top + bottom) / 2, height / 2 / zoom, height - height / 2 / zoom)
    column = np.clip((left + right) / 2, width / 2 / zoom, width - width / 2 / zoom)
    move = np.array([[zoom, 0, width / 2 - zoom * column], [0, zoom, height / 2 - zoom * row]])
    larger: Map = cv2.warpAffine(image, move, (width, height), flags=cv2.INTER_CUBIC).astype(np.float32)

    def moved(value: float, axis: int, limit: int) -> int:
        return int(np.clip(zoom * value + move[axis, 2], 0, limit))

    return larger, [
        (moved(t, 1, height), moved(le, 0, width), moved(b, 1, height), moved(r, 0, width)) for t, le, b, r in boxes
    ]


def _letter(bright: Map, exposure: Exposure) -> None:
    """Side and view in the free corner, as burnt in by the machine."""
    height, width = bright.shape
    text = f"{exposure.side} {exposure.view}" if exposure.view else exposure.side
    scale = height / 900
    (wide, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    column = width - wide - round(0.03 * height) if exposure.side == "L" else round(0.03 * height)
    ink = np.zeros(bright.shape, np.uint8)
    cv2.putText(ink, text, (column, round(0.06 * height)), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1, cv2.LINE_AA)
    bright += ink.astype(np.float32) / 255 * (0.9 - bright)
