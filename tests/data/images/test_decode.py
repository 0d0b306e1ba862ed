import struct
import zlib
from collections import Counter
from io import BytesIO

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from cleft.data.images.cache_files import decoder_versions
from cleft.data.images.decode import DECODERS, decode_gray
from cleft.data.images.source import ReadLimits
from cleft.errors import DataError

RAMP = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))


def encode(pixels, kind="PNG", mode=None, **options):
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    buffer = BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width, height, depth=8):
    """A PNG that declares a size and brings no pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def reason(data, **limits):
    with pytest.raises(DataError) as caught:
        decode_gray(data, "p17/view1", ReadLimits(**limits))
    assert str(caught.value).startswith("p17/view1: ")
    return caught.value.reason


def test_an_8_bit_png_is_read_as_stored():
    assert np.array_equal(decode_gray(encode(RAMP), "x"), RAMP)


def test_a_gray_jpeg_is_read_as_pillow_decodes_it():
    data = encode(RAMP, "JPEG", quality=80)
    assert np.array_equal(decode_gray(data, "x"), np.asarray(Image.open(BytesIO(data))))


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_c3_sixteen_bit_gray_keeps_every_bit(bits):
    ramp = np.linspace(0, 2**bits - 1, 64 * 48).astype(np.uint16).reshape(48, 64)
    pixels = decode_gray(encode(ramp), "x")
    assert pixels.dtype == np.uint16
    assert np.array_equal(pixels, ramp)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("progressive", [False, True])
def test_c1_a_file_cut_anywhere_is_truncated(kind, progressive):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    data = encode(noise, kind, progressive=progressive)
    cuts = [len(data) * part // 16 for part in range(1, 16)] + [len(data) - 2]
    assert {reason(data[:cut]) for cut in cuts} == {"truncated"}


def test_bytes_after_the_end_of_an_image_are_accepted():
    assert np.array_equal(decode_gray(encode(RAMP) + b"made by a scanner", "x"), RAMP)


def test_flipped_bytes_are_read_or_refused_with_a_reason():
    data = encode(RAMP, "JPEG")
    rng = np.random.default_rng(0)
    outcomes = Counter()
    for _ in range(300):
        bad = bytearray(data)
        bad[rng.integers(3, len(bad))] = rng.integers(256)
        try:
            outcomes[decode_gray(bytes(bad), "x").shape == RAMP.shape] += 1
        except DataError as error:
            outcomes[error.reason] += 1
    assert set(outcomes) <= {True, False, "truncated", "malformed", "geometry", "too-large", "colour", "format"}
    assert outcomes["malformed"] + outcomes["truncated"] > 0


def test_c5_a_declared_size_over_the_limit_is_refused_from_the_header():
    assert reason(png_header(30_000, 30_000)) == "too-large"
    assert reason(png_header(8_100, 8_000)) == "too-large"
    assert reason(encode(RAMP), pixels=3_071) == "too-large"
    assert decode_gray(encode(RAMP), "x", ReadLimits(pixels=3_072)).size == 3_072


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_c6_orientation_is_applied_once(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(RAMP, kind, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))))
    assert np.array_equal(decode_gray(data, "x"), upright)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_c7_colour_that_only_repeats_gray_is_reduced(mode):
    assert np.array_equal(decode_gray(encode(RAMP, mode=mode), "x"), RAMP)


def test_c7_a_gray_radiograph_stored_as_colour_jpeg_is_read():
    gray, colour = (decode_gray(encode(RAMP, "JPEG", mode=mode, quality=95), "x") for mode in ("L", "RGB"))
    assert np.abs(gray.astype(int) - colour).max() <= 2


def test_c7_transparency_is_composited_over_black():
    image = Image.fromarray(RAMP).convert("RGBA")
    image.putalpha(Image.fromarray(np.where(RAMP > 100, 255, 0).astype(np.uint8)))
    assert np.array_equal(decode_gray(encode(image), "x"), np.where(RAMP > 100, RAMP, 0))


def test_c7_a_gray_value_or_palette_place_may_be_declared_transparent():
    hole = RAMP == RAMP[0, 30]
    assert np.array_equal(decode_gray(encode(RAMP, transparency=int(RAMP[0, 30])), "x"), np.where(hole, 0, RAMP))
    palette = Image.fromarray(RAMP).convert("P")
    place = int(np.asarray(palette)[0, 30])
    assert np.array_equal(decode_gray(encode(palette, transparency=place), "x"), np.where(hole, 0, RAMP))


def test_c7_a_palette_of_colours_is_refused():
    places = Image.fromarray(RAMP // 4, "P")
    places.putpalette([channel for value in range(256) for channel in (value, 0, 255 - value)])
    assert reason(encode(places)) == "colour"


def test_c7_true_colour_is_refused():
    red = np.zeros((48, 64, 3), np.uint8)
    red[:, :32, 0] = 200
    assert reason(encode(red)) == "colour"
    assert reason(encode(Image.fromarray(red), "JPEG", mode="CMYK")) == "colour"


def test_a_single_bit_becomes_black_and_white():
    pixels = decode_gray(encode(RAMP > 100, mode="1"), "x")
    assert np.array_equal(pixels, np.where(RAMP > 100, 255, 0))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_sixteen_bits_per_channel_are_not_halved(mode):
    data = bytearray(encode(RAMP, mode=mode))
    data[24] = 16
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    assert reason(bytes(data)) == "format"


@pytest.mark.parametrize(
    "data",
    [b"BM" + bytes(200), b"GIF89a" + bytes(200), b"<svg/>", b"PK\x03\x04", b"plain text", encode(RAMP, "TIFF")],
    ids=["bmp", "gif", "svg", "zip", "text", "tiff"],
)
def test_c8_other_formats_are_refused_by_content(data):
    assert reason(data) == "format"


@pytest.mark.parametrize("mode", ["1", "L"])
def test_few_bits_per_pixel_use_the_full_range(mode):
    coarse = (RAMP // 64) * 85 if mode == "L" else np.where(RAMP > 100, 255, 0).astype(np.uint8)
    assert np.array_equal(decode_gray(encode(coarse, mode=mode, bits=2), "x"), coarse)


def test_c8_animated_images_are_refused():
    frames = [Image.fromarray(RAMP), Image.fromarray(RAMP[::-1].copy())]
    assert reason(encode(frames[0], save_all=True, append_images=frames[1:])) == "format"


def test_c9_a_bomb_in_a_text_chunk_is_malformed():
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * 2_000_000, zip=True)
    assert reason(encode(RAMP, pnginfo=info)) == "malformed"


def test_c10_odd_shapes_and_constant_images_have_their_own_reasons():
    assert reason(encode(RAMP[:31])) == "geometry"
    assert reason(encode(np.tile(RAMP[:32], (1, 11)))) == "geometry"
    assert reason(encode(np.full_like(RAMP, 7))) == "constant"
    assert reason(b"") == "empty"


def test_every_decoder_is_versioned():
    versions = decoder_versions()
    assert {"pillow", "jpeg", "libjpeg_turbo", "pydicom", "python-gdcm", "pylibjpeg-openjpeg"} <= set(versions)
    assert versions["pydicom"] == pydicom.__version__
    assert versions["pyjpegls"] == "absent"
    assert len(DECODERS) == 4
