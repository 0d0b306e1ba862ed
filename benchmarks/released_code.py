"""The released code's way to load a training sample: three channels, everything for every sample, in its order.

Omitted in its favour: it also builds a list of all indices for each sample and looks up labels in a data frame.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pydicom
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

SIZE, STORED = 224, 256


def sample(path: Path, rng: np.random.Generator) -> torch.Tensor:
    """Returns one normalised view, `[3, 224, 224]` float32."""
    return _normalised(_augmented(prepared(path), rng))


def prepared(path: Path) -> Image.Image:
    """Decodes, resizes, pads, crops by Otsu's threshold and stretches; returns `[256, 256]` in three equal channels."""
    return _stretched(_padded(_read(path)))


def _read(path: Path) -> NDArray[np.uint8]:
    if path.suffix != ".dcm":
        return np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), dtype=np.uint8)
    pixels = pydicom.dcmread(path).pixel_array
    return np.asarray(cv2.convertScaleAbs(pixels, alpha=255 / pixels.max()), dtype=np.uint8)


def _padded(pixels: NDArray[np.uint8]) -> Image.Image:
    height, width = pixels.shape
    scale = STORED / max(height, width)
    size = (STORED, int(height * scale)) if width > height else (int(width * scale), STORED)
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    down, right = STORED - small.shape[0], STORED - small.shape[1]
    square = np.pad(small, ((down // 2, down - down // 2), (right // 2, right - right // 2)))
    return Image.fromarray(square).convert("RGB")


def _stretched(image: Image.Image) -> Image.Image:
    gray = np.array(image.convert("L"))
    mask = np.asarray(cv2.threshold(gray, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1])
    rows, columns = np.where(mask)
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    return image.crop(box).resize((STORED, STORED), Image.Resampling.BILINEAR)


def _augmented(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    left, top = rng.integers(0, STORED - SIZE + 1, 2).tolist()
    image = image.crop((left, top, left + SIZE, top + SIZE))
    if rng.random() < 0.4:
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.8, 1.2))
        image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.8, 1.2))
    if rng.random() < 0.4:
        image = _blurred(image, rng.uniform(0.1, 2.0))
    turn, scale = np.radians(rng.uniform(-10, 10)), rng.uniform(0.8, 1.1)
    right, down = rng.uniform(-0.0625 * SIZE, 0.0625 * SIZE, 2).round()
    cos, sin, middle = np.cos(turn) / scale, np.sin(turn) / scale, SIZE / 2
    x, y = middle + right, middle + down
    matrix = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    image = image.transform((SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
    image = Image.merge("RGB", [image.convert("L")] * 3)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def _blurred(image: Image.Image, sigma: float) -> Image.Image:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    line = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * sigma**2))
    window = torch.outer(line, line)
    window = (window / window.sum()).expand(3, 1, 7, 7)
    padded = torch.nn.functional.pad(pixels, [3, 3, 3, 3], mode="reflect")
    blurred = torch.nn.functional.conv2d(padded, window, groups=3)[0].round().byte()
    return Image.fromarray(blurred.permute(1, 2, 0).contiguous().numpy())


def _normalised(image: Image.Image) -> torch.Tensor:
    channels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
    return (channels - 0.5) / 0.5
