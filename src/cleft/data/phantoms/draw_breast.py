"""Drawing of synthetic mammograms: anatomy, lesions, and exposure.

Nothing is a simulation of physics. A drawing is a map of brightness in [0, 1] in which air is black, fat dark gray and
glandular tissue bright, in craniocaudal (CC) or mediolateral oblique (MLO) view, with its own pose, exposure and noise.
The amount of tissue follows the density; lesions follow the findings.

Coordinates: x from 0 (the chest wall, at the left edge) to the right, y from 0 (top) down, both in heights of the
image. A right breast is drawn like a left one and mirrored at the end. Shapes: `H`, `W` height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cleft.data.phantoms.drawing import Drawing, Map, curve, soft

OBLIQUE = ("MLO", "ML", "LM")
"""Lateral views, which show the pectoral muscle."""


@dataclass(frozen=True, kw_only=True)
class Breast:
    """Properties common to all images of a breast."""

    depth: float = 0.56
    """From chest wall to nipple, in heights of the image."""
    half: float = 0.40
    """Half of the width at the chest wall."""
    density: int = 2
    """1 almost entirely fat, 2 scattered, 3 heterogeneously dense, 4 extremely dense."""
    pattern: int = 0
    """Seed of its tissue, which is the same in every exam."""
    implant: bool = False
    male: bool = False


@dataclass(kw_only=True)
class BreastDrawing:
    """A breast in progress, with the positions that lesions need."""

    sheet: Drawing
    depth: Map
    """Distance of each point to the skin, `[H, W]`; 0 outside."""
    inside: Map
    nipple: tuple[float, float]
    reach: float
    """From chest wall to nipple."""
    half: float
    """Half of the width at the chest wall."""
    oblique: bool


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """A lesion at a position that all views share."""

    kind: str
    """A key of `LESIONS`."""
    deep: float = 0.5
    """0 at the chest wall, 1 at the nipple."""
    across: float = 0.0
    """-1 to 1: position from side to side in CC view."""
    high: float = 0.0
    """-1 to 1: position from top to bottom in MLO view."""
    size: float = 0.5
    """0 for the smallest of its kind, 1 for the largest."""
    seed: int = 0
    """Seed of its shape, which is the same in all views."""
    faint_in: str = ""
    """View in which it is hardly visible, if any."""


def draw_lesion(drawing: BreastDrawing, lesion: Lesion, view: str) -> tuple[int, int, int, int] | None:
    """Draw a lesion; return its box (top, left, bottom, right in pixels), or None if it is hardly visible."""
    small, large = _RADII[lesion.kind]
    radius = small + lesion.size * (large - small)
    x, y = _place(drawing, lesion, radius)
    faint = view == lesion.faint_in
    spot = LesionArea(
        drawing.sheet.part(x, y, 4 * radius), x, y, radius, 0.35 if faint else 1.0, np.random.default_rng(lesion.seed)
    )
    LESIONS[lesion.kind](spot)
    if faint:
        return None
    height, width = drawing.sheet.size
    top, bottom = (int(np.clip((y + way * 1.4 * radius) * height, 0, height)) for way in (-1, 1))
    left, right = (int(np.clip((x + way * 1.4 * radius) * height, 0, width)) for way in (-1, 1))
    return top, left, bottom, right


def _place(drawing: BreastDrawing, lesion: Lesion, radius: float) -> tuple[float, float]:
    """Position of a lesion, moved towards the middle if it touches the skin."""
    middle = np.array([0.45 * drawing.reach, drawing.nipple[1]])
    side = lesion.high + 0.12 if drawing.oblique else lesion.across
    wish = np.array([(0.18 + 0.60 * lesion.deep) * drawing.reach, drawing.nipple[1] + 0.55 * side * drawing.half])
    height, width = drawing.sheet.size
    x, y = wish
    for step in range(1, 9):
        row, column = int(np.clip(y * height, 0, height - 1)), int(np.clip(x * height, 0, width - 1))
        if drawing.depth[row, column] > radius + 0.02:
            break
        x, y = wish + (middle - wish) * step / 8
    return float(x), float(y)


@dataclass(frozen=True)
class LesionArea:
    """Where a lesion is drawn, and how large and visible it is."""

    sheet: Drawing
    """The surrounding part of the image."""
    x: float
    y: float
    radius: float
    clear: float
    """1 fully visible, less if it is hidden."""
    rng: np.random.Generator = field(compare=False)

    def blob(self, x: float, y: float, wide: float, high: float, edge: float) -> Map:
        """Soft ellipse; centre and half axes in radii, relative to the centre of the lesion."""
        size = self.radius
        return self.sheet.blob(self.x + x * size, self.y + y * size, wide * size, high * size, edge)

    def shape(self, rough: float, turns: int, edge: float) -> Map:
        """A soft round shape whose outline varies by the share `rough`, about `turns` times."""
        dx, dy = self.sheet.x - self.x, self.sheet.y - self.y
        lobes = 1 + rough * np.clip(self.rng.standard_normal(turns), -1.5, 1.5)
        ring = np.tile(lobes, 3)
        fine = np.interp(np.linspace(turns, 2 * turns, 181), np.arange(len(ring)), _smooth(ring))
        angle = (np.arctan2(dy, dx) / (2 * np.pi) + 0.5) * 180
        rim = np.interp(angle, np.arange(181), fine) * self.radius
        return soft((rim - np.hypot(dx, dy)).astype(np.float32), edge * self.radius)

    def cover(self, where: Map, goal: float | Map, share: float = 1.0) -> None:
        """Raise the brightness of an area to a goal; brighter pixels are unchanged."""
        image = self.sheet.image
        image += share * self.clear * where * np.clip(goal - image, 0, 1)

    def texture(self, scale: float) -> Map:
        """Random texture from the generator of the lesion."""
        return self.sheet.clouds(scale, self.rng)


def _smooth(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smooth a ring of values."""
    return 0.25 * np.roll(ring, 1) + 0.5 * ring + 0.25 * np.roll(ring, -1)


def _round(spot: LesionArea) -> None:
    """A small circumscribed mass with a thin dark halo."""
    wide, high = spot.rng.uniform(1.0, 1.2), spot.rng.uniform(0.85, 1.0)
    mass = spot.blob(0, 0, wide, high, 0.20)
    halo = spot.blob(0, 0, 1.28 * wide, 1.28 * high, 0.25) - mass
    spot.sheet.darken(np.clip(halo, 0, 1), 0.32 * spot.clear)
    spot.cover(mass, 0.58 + 0.28 * spot.sheet.image + 0.02 * spot.texture(0.02))


def _irregular(spot: LesionArea) -> None:
    """An irregular mass of several lobes with an indistinct margin."""
    spot.cover(spot.shape(0.05, 5, 0.5), 0.46, 0.6)
    mass = spot.blob(0, 0, 0.60, 0.55, 0.9)
    for _ in range(9):
        x, y = 0.48 * np.clip(spot.rng.standard_normal(2), -1.4, 1.4)
        mass = np.maximum(mass, spot.blob(x, y, spot.rng.uniform(0.22, 0.75), spot.rng.uniform(0.22, 0.55), 1.0))
    spot.cover(np.clip(1.15 * mass, 0, 1) * (1 - 0.08 * np.abs(spot.texture(0.02))), 0.84)


def _spiculated(spot: LesionArea) -> None:
    """A large spiculated mass."""
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


def _clipped(spot: LesionArea) -> None:
    """A mass with a biopsy clip."""
    _irregular(spot)
    turn = spot.rng.uniform(0, np.pi)
    along, aside = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    coil = [(-1.0, 0.0), (-0.6, 0.8), (-0.2, -0.8), (0.2, 0.8), (0.6, -0.8), (1.0, 0.0)]
    centre = np.array([spot.x, spot.y])
    ribbon = curve(centre + np.stack([0.034 * across * along + 0.017 * up * aside for across, up in coil]))
    spot.sheet.stroke(ribbon, 0.019, -0.60)
    spot.sheet.stroke(ribbon, 0.009, 1.0)


def _cluster(spot: LesionArea) -> None:
    """Clustered microcalcifications of different shape and brightness."""
    spot.cover(spot.blob(0, 0, 1.2, 1.0, 1.4), 0.50, 0.45)
    lines: list[tuple[NDArray[np.float64], float, float]] = []
    for _ in range(38):
        angle, away = spot.rng.uniform(0, 2 * np.pi), spot.radius * np.sqrt(spot.rng.random())
        start = np.array([spot.x + 1.15 * away * np.cos(angle), spot.y + 0.85 * away * np.sin(angle)])
        turn, length = spot.rng.uniform(0, np.pi), spot.rng.uniform(0.0005, 0.007)
        end = start + length * np.array([np.cos(turn), np.sin(turn)])
        lines.append((np.stack([start, end]), 0.0045, spot.rng.uniform(0.65, 1.0)))
    spot.sheet.strokes(lines)


def _popcorn(spot: LesionArea) -> None:
    """Coarse popcorn-like calcifications of a fibroadenoma."""
    for _ in range(9):
        x, y = spot.rng.normal(0, 0.42, 2)
        size = spot.rng.uniform(0.26, 0.52)
        spot.cover(spot.blob(x, y, size, 0.85 * size, 0.25), 1.0)


def _rim(spot: LesionArea) -> None:
    """A rim calcification."""
    away = np.hypot(spot.sheet.x - spot.x, (spot.sheet.y - spot.y) * spot.rng.uniform(1.0, 1.25))
    spot.sheet.darken(soft(spot.radius - away, 0.003), 0.30 * spot.clear)
    uneven = 1 + 0.35 * np.sin(2 * np.arctan2(spot.sheet.y - spot.y, spot.sheet.x - spot.x) + spot.rng.uniform(0, 6))
    spot.cover(soft(0.13 * spot.radius * uneven - np.abs(away - spot.radius), 0.0015), 1.0)


def _node(spot: LesionArea) -> None:
    """A lymph node with a fatty hilum."""
    bean = spot.blob(0, 0, 0.78, 1.15, 0.16)
    spot.sheet.darken(np.clip(spot.blob(0, 0, 1.05, 1.45, 0.3) - bean, 0, 1), 0.30 * spot.clear)
    spot.cover(bean, 0.78)
    spot.sheet.darken(spot.blob(-0.42, 0, 0.45, 0.55, 0.4) * bean, 0.72 * spot.clear)


def _asymmetry(spot: LesionArea) -> None:
    """An asymmetry: more tissue than elsewhere, without a margin."""
    patch = spot.shape(0.12, 6, 0.26)
    spot.cover(patch * np.clip(0.88 + 0.14 * spot.texture(0.03), 0, 1), 0.76)


LESIONS: Mapping[str, Callable[[LesionArea], None]] = {
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
"""Function that draws each kind of lesion."""

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


def draw_fat(drawing: BreastDrawing) -> None:
    """Gray that increases with the thickness of the breast."""
    sheet = drawing.sheet
    sheet.image[:] = drawing.inside * (0.07 + 0.15 * (1 - np.exp(-drawing.depth / 0.06)))


_BIAS = {1: -2.05, 2: -1.05, 3: -0.05, 4: 1.35, 5: -2.6}
_WHITE = {1: 0.24, 2: 0.33, 3: 0.42, 4: 0.54, 5: 0.20}
"""By density: amount of tissue, and its brightness. 5 is a male breast."""


def draw_tissue(drawing: BreastDrawing, breast: Breast, rng: np.random.Generator) -> None:
    """Glandular tissue: a cone behind the nipple, filled according to the density, with streaks towards the nipple.

    Drawn at half the size, because it has no fine edges.
    """
    sheet = drawing.sheet
    size = (sheet.size[0] // 2, sheet.size[1] // 2)
    x, y, depth = (_resized(plane, size) for plane in (sheet.x, sheet.y, drawing.depth))
    away = np.hypot(x - drawing.nipple[0], y - drawing.nipple[1])
    streaks = _streaks(away, np.arctan2(y - drawing.nipple[1], drawing.nipple[0] - x), rng) * np.clip(
        away / 0.18, 0.15, 1
    )
    lumps = _lumps(size, rng)
    middle = (0.46 * drawing.reach, drawing.nipple[1] - (0.06 if drawing.oblique else 0.0))
    wide = drawing.half * (0.42 if breast.male else 0.80)
    out = np.hypot((x - middle[0]) / (0.62 * drawing.reach), (y - middle[1]) / wide)
    place = 1.05 - 2.4 * np.clip(out - 0.30, 0, 2) ** 1.5
    kind = 5 if breast.male else breast.density
    filled = soft(0.95 * lumps + 0.60 * streaks + place + _BIAS[kind], 0.42)
    amount = filled * soft(depth - 0.032, 0.008) * (0.82 + 0.14 * lumps + 0.10 * streaks)
    fat = 1 + 0.09 * lumps + 0.06 * streaks
    sheet.image *= _resized(fat, sheet.size)
    sheet.brighten(np.clip(_resized(amount, sheet.size), 0, 1.3) * drawing.inside, _WHITE[kind])


def _resized(plane: Map, size: tuple[int, int]) -> Map:
    return cv2.resize(plane, (size[1], size[0]), interpolation=cv2.INTER_LINEAR).astype(np.float32)


def _streaks(away: Map, angle: Map, rng: np.random.Generator) -> Map:
    """Noise that is fine around the nipple and coarse along its rays, like ducts."""
    total = np.zeros(away.shape, np.float32)
    for rays, rings, strength in ((30, 8, 1.0), (75, 20, 0.6)):
        coarse = rng.standard_normal((rings, rays), dtype=np.float32)
        across = ((angle / np.pi + 1) / 2 * (rays - 1)).astype(np.float32)
        along = np.clip(away / 1.2 * (rings - 1), 0, rings - 1).astype(np.float32)
        noise = cv2.remap(coarse, across, along, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        total += strength * noise.astype(np.float32)
    return total / (total.std() + 1e-6)


def _lumps(size: tuple[int, int], rng: np.random.Generator) -> Map:
    """Noise of several scales, the coarse ones strongest, as in real tissue; independent of the size."""
    total = np.zeros(size, np.float32)
    for cells, strength in ((5, 1.0), (10, 0.8), (20, 0.55), (40, 0.34), (80, 0.22)):
        coarse = rng.standard_normal((cells, cells), dtype=np.float32)
        total += strength * cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    return (total - total.mean()) / (total.std() + 1e-6)


def draw_strands(drawing: BreastDrawing, rng: np.random.Generator) -> None:
    """Cooper's ligaments and a few vessels."""
    lines: list[tuple[NDArray[np.float64], float, float]] = []
    for _ in range(46):
        start = np.array(
            [rng.uniform(0.02, 0.95) * drawing.reach, drawing.nipple[1] + rng.uniform(-0.95, 0.95) * drawing.half]
        )
        angle = np.arctan2(drawing.nipple[1] - start[1], drawing.nipple[0] - start[0]) + rng.normal(0, 0.5)
        length, bend = rng.uniform(0.04, 0.13), rng.normal(0, 0.014)
        along = np.array([np.cos(angle), np.sin(angle)])
        points = np.stack([start, start + 0.5 * length * along + bend * along[::-1], start + length * along])
        lines.append((curve(points), 0.0025, rng.uniform(0.04, 0.12)))
    for _ in range(3):
        start = drawing.nipple[1] + rng.uniform(-0.75, 0.75) * drawing.half
        run = np.linspace(0, 1, 9)
        turns = np.cumsum(rng.normal(0, 0.011, 9)) + 0.3 * run * (drawing.nipple[1] - start)
        points = curve(np.stack([0.82 * drawing.reach * run, start + turns], axis=1))
        lines += [(points, 0.0055, 0.09), (points[50:], 0.0035, 0.07)]
    drawing.sheet.strokes(lines, within=soft(drawing.depth - 0.014, 0.005), blur=0.0016)


def draw_skin(drawing: BreastDrawing) -> None:
    """A thin bright line, thicker around the nipple."""
    near = np.exp(-((drawing.sheet.x - drawing.nipple[0]) ** 2 + (drawing.sheet.y - drawing.nipple[1]) ** 2) / 0.004)
    line = np.exp(-(((drawing.depth - 0.006) / (0.0045 + 0.006 * near)) ** 2)).astype(np.float32) * drawing.inside
    drawing.sheet.brighten(line, 0.16)
    drawing.sheet.brighten(
        drawing.sheet.blob(drawing.nipple[0] - 0.004, drawing.nipple[1], 0.020, 0.020, 0.9) * drawing.inside, 0.22
    )


def draw_muscle(drawing: BreastDrawing, breast: Breast, view: str) -> None:
    """The pectoral muscle: a bright triangle in the upper corner with fibres along its edge."""
    sheet = drawing.sheet
    top, low = (0.54 * drawing.reach, 0.62) if view == "MLO" else (0.20 * drawing.reach, 0.46)
    if breast.male:
        top, low = 1.05 * top, 0.75
    across = 1 - sheet.x / top - sheet.y / low + 0.13 * np.sin(np.clip(sheet.y / low, 0, 1) * np.pi)
    wedge = soft(across, 0.022) * drawing.inside
    fibres = cv2.remap(
        sheet.rng.standard_normal((60, 6), dtype=np.float32),
        (sheet.y / low * 4 + 0.5).astype(np.float32),
        (np.clip(across, 0, 1) * 55).astype(np.float32),
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT,
    ).astype(np.float32)
    goal = 0.40 + 0.10 * np.clip(across, 0, 1) + 0.018 * fibres
    sheet.image += wedge * np.clip(goal - 0.75 * sheet.image, 0, 1) * 0.8


def draw_implant(drawing: BreastDrawing, breast: Breast) -> None:
    """A smooth bright implant in front of the chest wall."""
    y = drawing.nipple[1] + (0.03 if drawing.oblique else 0.0)
    sack = drawing.sheet.blob(0.04, y, 0.62 * drawing.reach, 0.66 * drawing.half, 0.08)
    drawing.sheet.image += sack * (0.80 - drawing.sheet.image)
    drawing.sheet.brighten(
        np.clip(drawing.sheet.blob(0.04, y, 0.64 * drawing.reach, 0.68 * drawing.half, 0.06) - sack, 0, 1), 0.5
    )


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """Properties of one image."""

    view: str = "CC"
    side: str = "L"
    synthetic: bool = False
    """Whether it is a synthetic 2D image from tomosynthesis (C-View): smoother, with harder edges."""
    spot: bool = False
    """Whether it is a magnification view of a lesion."""
    squeeze: float = 1.0
    """How far compression spreads the breast."""
    shift: float = 0.0
    """Vertical position of the breast."""
    gamma: float = 1.0
    noise: float = 0.012


class Mammogram(NamedTuple):
    """An image and the boxes of its lesions."""

    image: Map
    """Brightness, `[H, W]`, float32 in [0, 1]; 0 is air."""
    boxes: list[tuple[int, int, int, int]]
    """One per visible lesion: top, left, bottom, right in pixels."""


def draw_mammogram(
    size: tuple[int, int], breast: Breast, exposure: Exposure, lesions: Sequence[Lesion], rng: np.random.Generator
) -> Mammogram:
    """Draw an image of a breast.

    Args:
        size: Height and width in pixels.
        breast: Shape and tissue.
        exposure: View, side, pose.
        lesions: Lesions of the breast.
        rng: Source of the randomness of this exposure.
    """
    drawing = _lay_out(size, breast, exposure, rng)
    draw_fat(drawing)
    tissue = np.random.default_rng([breast.pattern, exposure.view in OBLIQUE])
    draw_tissue(drawing, breast, tissue)
    draw_strands(drawing, tissue)
    if breast.implant:
        draw_implant(drawing, breast)
    draw_skin(drawing)
    if exposure.view in OBLIQUE:
        draw_muscle(drawing, breast, exposure.view)
    boxes = [box for lesion in lesions if (box := draw_lesion(drawing, lesion, exposure.view)) is not None]
    return _expose(drawing, exposure, boxes)


def _lay_out(size: tuple[int, int], breast: Breast, exposure: Exposure, rng: np.random.Generator) -> BreastDrawing:
    """Outline, nipple, and the depth of each point below the skin."""
    sheet = Drawing(size, rng, origin=(0, 0), step=(size[0], size[0]))
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
    return BreastDrawing(
        sheet=sheet,
        depth=depth,
        inside=soft(depth - 0.003, 0.0012) * (depth > 0),
        nipple=nipple,
        reach=reach,
        half=breast.half,
        oblique=oblique,
    )


def _round_edge(rows: NDArray[np.float64], reach: float, middle: float, half: float) -> NDArray[np.float64]:
    """Outline in CC view: a dome on the chest wall."""
    out = np.abs(rows - middle) / half
    return np.where(out < 1, reach * np.clip(1 - out**2.3, 0, None) ** 0.62, -1)


def _oblique_edge(rows: NDArray[np.float64], reach: float, middle: float, breast: Breast) -> NDArray[np.float64]:
    """Outline in MLO view: from the axilla to the nipple, back to the inframammary fold and to the abdomen."""
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


def _expose(drawing: BreastDrawing, exposure: Exposure, boxes: list[tuple[int, int, int, int]]) -> Mammogram:
    """Apply magnification, sharpness, noise and side."""
    image, (height, width) = drawing.sheet.image * drawing.inside, drawing.sheet.size
    if exposure.spot and boxes:
        image, boxes = _magnify(image, boxes)
    inside = image > 0.04
    soft_image: Map = cv2.GaussianBlur(image, (0, 0), height / 500).astype(np.float32)
    if exposure.synthetic:
        soft_image += 0.9 * (soft_image - cv2.GaussianBlur(soft_image, (0, 0), height / 90).astype(np.float32)) * inside
    bright = np.clip(soft_image, 0, 1) ** exposure.gamma
    grain = drawing.sheet.rng.standard_normal((height, width)).astype(np.float32)
    bright += grain * exposure.noise * (0.4 if exposure.synthetic else 1.0) * np.sqrt(bright) * inside
    if exposure.side == "R":
        bright = np.ascontiguousarray(bright[:, ::-1])
        boxes = [(top, width - right, bottom, width - left) for top, left, bottom, right in boxes]
    _letter(bright, exposure)
    return Mammogram(np.clip(bright, 0, 1).astype(np.float32), boxes)


def _magnify(
    image: Map, boxes: list[tuple[int, int, int, int]], zoom: float = 1.8
) -> tuple[Map, list[tuple[int, int, int, int]]]:
    """Enlarge around the first box."""
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
    """Burn in side and view in the free corner."""
    height, width = bright.shape
    text = f"{exposure.side} {exposure.view}" if exposure.view else exposure.side
    scale = height / 900
    (wide, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    column = width - wide - round(0.03 * height) if exposure.side == "L" else round(0.03 * height)
    ink = np.zeros(bright.shape, np.uint8)
    cv2.putText(ink, text, (column, round(0.06 * height)), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1, cv2.LINE_AA)
    bright += ink.astype(np.float32) / 255 * (0.9 - bright)
