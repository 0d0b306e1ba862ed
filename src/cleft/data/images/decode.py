"""From bytes to gray pixels, by content: the one place where foreign bytes meet a decoder.

Whatever is wrong ends as `DataError` with a reason to count by; nothing is clipped, halved or guessed in silence.
Only NumPy and Pillow are imported, so that decoding can live in a small child process.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from cleft.config import ImagesConfig
from cleft.data.images.integrity import check_jpeg_scans, check_jpeg_structure, check_png_chunks, check_png_pixels
from cleft.data.images.preprocess import Gray, flatten_colours
from cleft.data.images.source import DEFAULT_LIMITS, ReadLimits, check_size, may_be_dicom, read_bytes, refusal
from cleft.errors import DataError

DEFAULT_IMAGES = ImagesConfig()


def decode_gray(
    data: bytes,
    name: Path | str,
    limits: ReadLimits = DEFAULT_LIMITS,
    images: ImagesConfig = DEFAULT_IMAGES,
    notes: list[str] | None = None,
) -> Gray:
    """Decodes one picture, upright, at its own size and depth.

    Args:
        data: Bytes of a whole file.
        name: What to call it in messages.
        limits: What is refused by its header.
        images: How a DICOM file's values become gray; nothing else of it matters here.
        notes: Receives keys of `cleft.data.images.dicom_headers.ODDITIES`: what was inferred or ignored.

    Raises:
        DataError: With reason `empty`, `format` (not a picture this reader knows), `too-large`, `geometry` (too
            small or too narrow), `truncated`, `malformed`, `colour` or `constant` (a single gray value); of DICOM files
            also `no-image`, `frames` or `codec`.
    """
    if not data:
        raise refusal("empty", name, "the file has no bytes; copy it again")
    decode = next((decode for belongs, decode in DECODERS if belongs(data)), None)
    if decode is None:
        raise refusal("format", name, "is no JPEG, PNG or DICOM file; its content decides, not its name")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            pixels = decode(data, name, limits, images, [] if notes is None else notes)
    except (DataError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise refusal("too-large", name, f"declares more pixels than the limit of {limits.pixels}") from error
    except MemoryError as error:
        raise refusal("too-large", name, "memory ran out while decoding it") from error
    except BaseException as error:  # A decoder written in Rust raises what is no `Exception` when it panics.
        cut = "truncated" in str(error).lower()
        raise refusal("truncated" if cut else "malformed", name, f"{error}; copy the file again") from error
    if pixels.min() == pixels.max():
        raise refusal("constant", name, f"every pixel is {pixels.flat[0]}")
    return pixels


def decoder_versions() -> dict[str, str]:
    """Return what decides besides the file which pixels it has, or whether it is refused; part of every cache key."""
    turbo = features.version("libjpeg_turbo")
    versions = {"pillow": Image.__version__, "jpeg": str(features.version("jpg")), "libjpeg_turbo": str(turbo)}
    versions["checks"] = _CHECKS
    for package in ("simplejpeg", *_DICOM_PACKAGES):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions


def _decode_with_pillow(
    data: bytes, name: Path | str, limits: ReadLimits, images: ImagesConfig, notes: list[str]
) -> NDArray[Any]:
    png = data.startswith(_PNG)
    (check_png_chunks if png else check_jpeg_structure)(data, name)
    # Pillow registers some forty formats; these two are all it may try.
    with Image.open(BytesIO(data), formats=["JPEG", "PNG"]) as image:
        _check_header(image, data, name, limits)
        (check_png_pixels if png else check_jpeg_scans)(data, name)
        image.load()
        pixels = _gray(image, name)
        upright = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1), _UPRIGHT[1])
    return np.ascontiguousarray(upright(pixels))


def _check_header(image: Image.Image, data: bytes, name: Path | str, limits: ReadLimits) -> None:
    check_size(image.height, image.width, name, limits)
    if getattr(image, "n_frames", 1) != 1:
        raise refusal("format", name, "holds several pictures; store each in a file of its own")
    if image.mode == "CMYK":
        raise refusal("colour", name, "in printer's colours (CMYK); store it as gray")
    if image.format == "PNG" and data[_PNG_DEPTH] == 16 and not image.mode.startswith("I"):
        raise refusal("format", name, "16 bits per channel in colour would lose half of them; store it as 16-bit gray")


def _gray(image: Image.Image, name: Path | str) -> NDArray[Any]:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise refusal("format", name, "more than 16 bits per pixel")
        return values.astype(np.uint16)
    if image.mode in ("L", "1") and "transparency" not in image.info:
        return np.asarray(image.convert("L"))
    colours = np.asarray(image.convert("RGBA"))
    luminance = flatten_colours(np.ascontiguousarray(colours[..., :3]), name).astype(np.uint16)
    return (luminance * colours[..., 3] // 255).astype(np.uint8)  # What is transparent lies over black.


def _decode_dicom(
    data: bytes, name: Path | str, limits: ReadLimits, images: ImagesConfig, notes: list[str]
) -> NDArray[Any]:
    from cleft.data.images.dicom import decode_dicom  # Half a second, which only those who have such files pay.

    return decode_dicom(data, name, limits, images, notes)


_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH = 24
"""Where a PNG's header says its bits per channel."""
_CHECKS = "1"
"""Rises when damaged files are refused that were accepted before: caches may hold their pixels."""
_DICOM_PACKAGES = ("pydicom", "python-gdcm", "pylibjpeg-openjpeg", "pylibjpeg-libjpeg", "pylibjpeg-rle", "pyjpegls")
"""pydicom, and what it hands compressed pixels to."""
_ORIENTATION = 0x0112
_UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a),
}
"""EXIF orientation to what undoes it."""

Decode: TypeAlias = Callable[[bytes, Path | str, ReadLimits, ImagesConfig, list[str]], NDArray[Any]]

DECODERS: tuple[tuple[Callable[[bytes], bool], Decode], ...] = (
    (lambda data: data[128:132] == b"DICM", _decode_dicom),
    (lambda data: data.startswith(_PNG), _decode_with_pillow),
    (lambda data: data.startswith(b"\xff\xd8\xff"), _decode_with_pillow),
    (may_be_dicom, _decode_dicom),
)
"""How a format is told by its bytes, and who decodes it; the first that recognises the bytes does."""


def read_gray(source: Path | bytes, limits: ReadLimits = DEFAULT_LIMITS, images: ImagesConfig = DEFAULT_IMAGES) -> Gray:
    """Reads a gray radiograph, upright, at its own size and depth.

    Args:
        source: A regular file, or the bytes of one. The ending of its name is not looked at.
        limits: What is refused before work.
        images: How a DICOM file's values become gray; nothing else of it matters here.

    Returns:
        Pixels as stored, `[H, W]`: uint8, or uint16 where the file has more than 8 bits; of a DICOM file always uint8,
        as it is meant to be seen. Colour files that only
        repeat one gray value lose the repetition; transparency is laid over black.

    Raises:
        DataError: With the reasons of `read_bytes` and `decode_gray`.
    """
    if isinstance(source, bytes):
        return decode_gray(source, "the image", limits, images)
    return decode_gray(read_bytes(source, limits)[0], source, limits, images)
