"""Decoding of image files to gray pixels; the format is detected from the content.

Every problem ends as `DataError` with a reason code; nothing is clipped, truncated or guessed silently. pydicom is
imported only for DICOM files.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cleft.config import ImagesConfig
from cleft.data.images.integrity import check_jpeg_scans, check_jpeg_structure, check_png_chunks, check_png_pixels
from cleft.data.images.preprocess import Gray, to_luminance
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
    """Decode one image, upright, at its original size and bit depth.

    Args:
        data: Bytes of the complete file.
        name: Name of the file in messages.
        limits: Limits on the size that the header declares.
        images: How DICOM values are converted to gray; other fields are not used.
        notes: Receives keys of `cleft.data.images.dicom_headers.ODDITIES`: what was inferred or ignored.

    Raises:
        DataError: With reason `empty`, `format` (not a supported image), `too-large`, `geometry` (too small or too
            narrow), `truncated`, `malformed`, `colour` or `constant` (a single gray value); for DICOM files also
            `no-image`, `frames` or `codec`.
    """
    if not data:
        raise refusal("empty", name, "the file has no bytes; copy it again")
    decode = next((decode for belongs, decode in DECODERS if belongs(data)), None)
    if decode is None:
        raise refusal("format", name, "its content is not JPEG, PNG or DICOM (the file name does not matter)")
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
    except BaseException as error:  # A panic of a Rust decoder is not an `Exception`.
        cut = "truncated" in str(error).lower()
        raise refusal("truncated" if cut else "malformed", name, f"{error}; copy the file again") from error
    if pixels.min() == pixels.max():
        raise refusal("constant", name, f"every pixel has the value {pixels.flat[0]}")
    return pixels


def _decode_with_pillow(
    data: bytes, name: Path | str, limits: ReadLimits, images: ImagesConfig, notes: list[str]
) -> NDArray[Any]:
    png = data.startswith(_PNG)
    (check_png_chunks if png else check_jpeg_structure)(data, name)
    # Pillow supports some forty formats; only these two may be tried.
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
        raise refusal("format", name, "contains several images; store each in a separate file")
    if image.mode == "CMYK":
        raise refusal("colour", name, "its colours are CMYK; convert it to grayscale")
    if image.format == "PNG" and data[_PNG_DEPTH] == 16 and not image.mode.startswith("I"):
        raise refusal(
            "format", name, "colour with 16 bits per channel is not supported; convert it to 16-bit grayscale"
        )


def _gray(image: Image.Image, name: Path | str) -> NDArray[Any]:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise refusal("format", name, "more than 16 bits per pixel")
        return values.astype(np.uint16)
    if image.mode in ("L", "1") and "transparency" not in image.info:
        return np.asarray(image.convert("L"))
    colours = np.asarray(image.convert("RGBA"))
    luminance = to_luminance(np.ascontiguousarray(colours[..., :3]), name).astype(np.uint16)
    return (luminance * colours[..., 3] // 255).astype(np.uint8)  # Composed on black.


def _decode_dicom(
    data: bytes, name: Path | str, limits: ReadLimits, images: ImagesConfig, notes: list[str]
) -> NDArray[Any]:
    from cleft.data.images.dicom import decode_dicom  # Importing pydicom takes half a second.

    return decode_dicom(data, name, limits, images, notes)


_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH = 24
"""Offset of the bit depth in a PNG file."""
CHECKS = "1"
"""Increase when damaged files are rejected that were accepted before: caches may hold their pixels."""
DICOM_PACKAGES = ("pydicom", "python-gdcm", "pylibjpeg-openjpeg", "pylibjpeg-libjpeg", "pylibjpeg-rle", "pyjpegls")
"""pydicom and the packages that decode compressed pixels for it."""
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
"""EXIF orientation to the transformation that undoes it."""

Decode: TypeAlias = Callable[[bytes, Path | str, ReadLimits, ImagesConfig, list[str]], NDArray[Any]]

DECODERS: tuple[tuple[Callable[[bytes], bool], Decode], ...] = (
    (lambda data: data[128:132] == b"DICM", _decode_dicom),
    (lambda data: data.startswith(_PNG), _decode_with_pillow),
    (lambda data: data.startswith(b"\xff\xd8\xff"), _decode_with_pillow),
    (may_be_dicom, _decode_dicom),
)
"""Test for a format, and its decoder; the first match is used."""


def read_gray(source: Path | bytes, limits: ReadLimits = DEFAULT_LIMITS, images: ImagesConfig = DEFAULT_IMAGES) -> Gray:
    """Read and decode a gray radiograph, given as a regular file or its bytes; see `decode_gray`.

    Raises:
        DataError: With the reasons of `read_bytes` and `decode_gray`.
    """
    if isinstance(source, bytes):
        return decode_gray(source, "the image", limits, images)
    return decode_gray(read_bytes(source, limits)[0], source, limits, images)
