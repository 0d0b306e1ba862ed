"""Damaged image data is refused wherever its format can show it, and undamaged data never is."""

import base64
import itertools
import struct
import zlib
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from tests.fakes.dicom import dicom_bytes, encapsulated_bytes

from cleft.data.images.decode import decode_gray
from cleft.data.images.integrity import check_jpeg2000_structure
from cleft.errors import DataError


def radiograph(height=200, width=180, seed=0):
    """Smooth shapes and noise, as JPEG data of a radiograph has them."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).normal(0, 12, (height, width))
    return (128 + 80 * np.sin(x / 31) * np.cos(y / 23) + noise).clip(0, 255).astype(np.uint8)


PIXELS = radiograph()


def jpeg(pixels=PIXELS, **options):
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def png(pixels=PIXELS, mode=None, **options):
    buffer = BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, "PNG", **options)
    return buffer.getvalue()


def reason(data):
    """Reason code of a refused file; empty if it is accepted."""
    try:
        decode_gray(data, "p17/view1")
    except DataError as error:
        return error.reason
    return ""


def segments(data):
    """Marker, start and end of each segment, the last being the first SOS."""
    place, found = 2, []
    while not found or found[-1][0] != 0xDA:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4])
        found.append((data[place + 1], place, end))
        place = end
    return found


def damaged(data, kind, place, size):
    piece = data[place : place + size]
    return {
        "hole": data[:place] + bytes(size) + data[place + size :],
        "dropped": data[:place] + data[place + size :],
        "duplicated": data[:place] + piece + data[place:],
    }[kind]


@pytest.mark.parametrize("kind", ["hole", "dropped", "duplicated"])
@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 2}, {"optimize": True}], ids=str)
def test_a_piece_of_jpeg_data_that_is_damaged_is_refused(kind, options):
    data = jpeg(quality=90, **options)
    start = segments(data)[-1][2]
    places = range(start + 10, len(data) - 1100, (len(data) - start) // 24)
    reasons = [reason(damaged(data, kind, place, 1024)) for place in places]
    assert len(reasons) > 15
    assert set(reasons) <= {"malformed", "truncated"}


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit])
@pytest.mark.parametrize("kind", ["hole", "dropped", "duplicated"])
def test_a_damaged_jpeg_in_a_dicom_file_is_refused(kind, syntax):
    stream = jpeg(quality=90)
    assert reason(encapsulated_bytes([stream], PIXELS, syntax)) == ""
    places = range(1000, len(stream) - 1100, len(stream) // 10)
    damages = [encapsulated_bytes([damaged(stream, kind, place, 1024)], PIXELS, syntax) for place in places]
    assert {reason(data) for data in damages} <= {"malformed", "truncated"}


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless])
def test_decoders_of_lossless_dicom_files_report_damage(syntax):
    data = dicom_bytes(PIXELS.astype(np.uint16) * 16, bits=12, syntax=syntax)
    assert reason(data) == ""
    places = range(len(data) // 4, len(data) - 1100, len(data) // 20)
    assert {reason(damaged(data, "hole", place, 1024)) for place in places} <= {"malformed", "truncated"}


def test_a_marker_within_jpeg_2000_data_is_refused(capfd):
    data = bytearray(dicom_bytes(PIXELS, syntax=JPEG2000Lossless))
    assert reason(bytes(data)) == ""
    data[-3000:-2998] = b"\xff\xb0"
    assert reason(bytes(data)) == "malformed"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("tile", [None, (64, 64)])
@pytest.mark.parametrize("progression", ["LRCP", "RPCL"])
@pytest.mark.parametrize("plt", [False, True])
@pytest.mark.parametrize("layers", [None, [20, 5, 1]])
def test_jpeg_2000_streams_of_every_kind_are_accepted(tile, progression, plt, layers):
    extra = ({"tile_size": tile} if tile else {}) | (
        {"quality_mode": "rates", "quality_layers": layers} if layers else {}
    )
    for no_jp2 in (True, False):
        buffer = BytesIO()
        Image.fromarray(PIXELS).save(buffer, "JPEG2000", progression=progression, plt=plt, no_jp2=no_jp2, **extra)
        check_jpeg2000_structure(buffer.getvalue(), "x")
        check_jpeg2000_structure(buffer.getvalue() + b"\0", "x")
        with pytest.raises(DataError, match="incomplete"):
            check_jpeg2000_structure(buffer.getvalue()[:-500], "x")


def rle(*segments):
    """A frame in RLE Lossless data."""
    offsets = [64 + sum(map(len, segments[:number])) for number in range(len(segments))]
    return struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments))) + b"".join(segments)


ROWS = b"".join(b"\x3f" + bytes((3 * x + y) % 256 for x in range(64)) for y in range(48))


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (rle(ROWS), ""),
        (rle(ROWS + b"\0"), ""),
        (rle(b"\x80" + ROWS + b"\x80\x80"), ""),
        (rle(ROWS[:-65] + b"\xc1\x07"), ""),
        (rle(ROWS[:-65] + b"\xc0\x07"), "malformed"),
        (rle(ROWS[:-65] + b"\xc2\x07"), "truncated"),
        (rle(ROWS[:-65]), "truncated"),
        (rle(ROWS[:-3]), "truncated"),
        (rle(ROWS + ROWS[:65]), "malformed"),
        (rle(ROWS, ROWS), "malformed"),
        (rle(ROWS)[:40], "truncated"),
        (b"\1\0\0\0\x44" + rle(ROWS)[5:], "malformed"),
    ],
)
def test_segments_of_rle_have_the_length_of_the_pixels(stream, expected):
    assert reason(encapsulated_bytes([stream + bytes(len(stream) % 2)], PIXELS[:48, :64], RLELossless)) == expected


def edits():
    """Structural damage of a JPEG: what is done, to be applied to data and its segments."""
    yield "drop", lambda data, start, end: data[:start] + data[end:]
    yield "duplicate", lambda data, start, end: data[:end] + data[start:]
    yield "zero", lambda data, start, end: data[: start + 4] + bytes(end - start - 4) + data[end:]
    yield "shorten", lambda data, start, end: data[: end - 1] + data[end:]
    yield "lengthen", lambda data, start, end: data[:end] + b"\0" + data[end:]


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
@pytest.mark.parametrize(("name", "edit"), list(edits()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_jpeg_with_damaged_segments_is_refused_or_decoded_unchanged(name, edit, options):
    data = jpeg(**options)
    right = decode_gray(data, "x")
    # What follows the header of a scan is a code more or less, which may leave as many as are needed.
    for marker, start, end in segments(data)[: -1 if name in {"lengthen", "shorten"} else None]:
        try:
            pixels = decode_gray(edit(data, start, end), "x")
        except DataError:
            pass
        else:
            # An application segment may be lost, and a table defined twice.
            assert marker == 0xE0 or name == "duplicate"
            assert np.array_equal(pixels, right)


def with_table(change):
    """JPEG data whose first table of a kind is edited in place."""
    marker, place, value = change
    data = bytearray(jpeg())
    start = next(start for found, start, _ in segments(bytes(data)) if found == marker)
    data[start + place] = value
    return bytes(data)


@pytest.mark.parametrize(
    "change",
    [(0xDB, 20, 0), (0xDB, 4, 0x25), (0xC4, 5, 3), (0xC4, 21, 1), (0xC0, 9, 0), (0xC0, 11, 0x50), (0xDA, 5, 9)],
    ids=["zero quantiser", "precision", "code space", "repeated symbol", "components", "sampling", "component"],
)
def test_illegal_tables_and_headers_are_refused(change):
    assert reason(with_table(change)) == "malformed"


def test_a_missing_scan_is_refused():
    data = jpeg(progressive=True)
    starts = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
    assert len(starts) > 3
    assert reason(data[: starts[-1]] + b"\xff\xd9") == "truncated"
    assert reason(data[: starts[1]] + data[starts[2] :]) == "malformed"  # A later scan refines it.


def test_restart_markers_are_counted():
    data = jpeg(restart_marker_blocks=1)
    assert reason(data) == ""
    second, tenth = (data.index(b"\xff\xd1"), data.index(b"\xff\xd1", data.index(b"\xff\xd1") + 2))
    assert reason(data[:second] + data[tenth:]) == "malformed"  # Eight intervals, so that their numbers still fit.


@pytest.mark.parametrize("colour", [False, True])
def test_jpeg_files_of_every_kind_are_accepted(colour):
    exif = Image.Exif()
    exif[0x010E] = "a thumbnail may follow"
    for height, width in ((33, 47), (64, 64), (97, 130)):
        pixels = radiograph(height, width)
        pixels = np.repeat(pixels[..., None], 3, 2) if colour else pixels
        for quality, progressive, optimize, subsampling, restart in itertools.product(
            (5, 95), (False, True), (False, True), (0, 1, 2), (0, 3)
        ):
            extra = {"exif": exif, "icc_profile": b"icc", "comment": b"hello"} if restart else {}
            data = jpeg(
                pixels,
                quality=quality,
                progressive=progressive,
                optimize=optimize,
                subsampling=subsampling,
                restart_marker_blocks=restart,
                **extra,
            )
            assert reason(data) == ""
            assert reason(data + bytes(100_000)) == ""
        for progressive, restart in ((0, 0), (1, 0), (0, 5)):
            flags = [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_RST_INTERVAL, restart]
            assert reason(cv2.imencode(".jpg", pixels, flags)[1].tobytes()) == ""


def test_fill_bytes_before_a_marker_are_legal():
    data = jpeg()
    second = segments(data)[1][1]
    assert reason(data[:second] + b"\xff\xff\xff" + data[second:]) == ""


def test_legal_data_that_libjpeg_warns_about_is_accepted():
    data = bytearray(jpeg())
    data[segments(bytes(data))[0][1] + 9] = 7  # The version of JFIF.
    assert reason(bytes(data)) == ""
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x65\x00\x00\x00\x00\x09"  # An unknown transform of colours.
    assert reason(bytes(data[:2]) + adobe + bytes(data[2:])) == ""
    start = segments(bytes(data))[-1][2]
    assert reason(damaged(bytes(data[:2]) + adobe + bytes(data[2:]), "hole", start + 100, 1024)) == "malformed"


def test_a_scan_may_end_with_a_restart_marker():
    data = jpeg(radiograph(64, 64), restart_marker_blocks=8)
    assert [data.count(b"\xff" + bytes([0xD0 + number])) for number in range(8)] == [1, 1, 1, 1, 1, 1, 1, 0]
    assert reason(data[:-2] + b"\xff\xd7" + data[-2:]) == ""
    assert reason(data[:-2] + b"\xff\xd7\xff\xd0" + data[-2:]) == "malformed"


@pytest.mark.parametrize("stream", ["arithmetic", "subsampling"])
def test_arithmetic_coding_and_rare_subsampling_are_accepted(stream):
    y, x = np.mgrid[:40, :48]
    pixels = decode_gray(base64.b85decode(_STREAMS[stream]), "x")
    assert np.abs(pixels - (x * 3.0 + y * 2)).max() < 12


def test_damaged_arithmetic_coding_is_refused():
    data = base64.b85decode(_STREAMS["arithmetic"])
    assert reason(damaged(data, "hole", len(data) - 90, 60)) == "malformed"


def chunk(kind, body, crc=None):
    return (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) if crc is None else crc)
    )


def made_png(raw=None, height=48, extra=(), tail=b"", split=1, packed=None):
    """A gray PNG of 48 lines with 64 samples each, made by hand."""
    lines = b"".join(b"\0" + bytes((x * 3 + y) % 256 for x in range(64)) for y in range(48)) if raw is None else raw
    packed = zlib.compress(lines) if packed is None else packed
    pieces = [packed[n * len(packed) // split : (n + 1) * len(packed) // split] for n in range(split)]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, height, 8, 0, 0, 0, 0))
    body = b"".join(chunk(b"IDAT", piece) for piece in pieces)
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + body + tail + chunk(b"IEND", b"")


def test_every_single_changed_byte_of_a_png_is_refused():
    data = made_png(split=3)
    assert reason(data) == ""
    for place in range(8, len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x10
        assert reason(bytes(changed)), f"byte {place}"


def test_png_chunks_are_checked_one_by_one():
    whole = zlib.compress(b"".join(b"\0" + bytes(range(64)) for _ in range(48)))
    assert reason(made_png(packed=whole[:-4])) == "truncated"
    assert reason(made_png(packed=whole[:-1] + b"\0")) == "malformed"  # A wrong Adler-32 in chunks of right CRC.
    assert reason(made_png(height=40)) == "malformed"
    assert reason(made_png(height=60)) == "truncated"
    assert reason(made_png(extra=[chunk(b"tEXt", b"a\0b", crc=1)])) == "malformed"
    assert reason(made_png(tail=chunk(b"tEXt", b"a\0b", crc=1))) == "malformed"
    assert reason(made_png(extra=[chunk(b"ABCD", b"")])) == "malformed"
    assert reason(made_png(tail=chunk(b"tEXt", b"a\0b") + chunk(b"IDAT", b""))) == "malformed"
    assert reason(made_png()[:-12]) == "truncated"


def test_a_palette_must_precede_its_pixels():
    """Pillow shows places in a palette as if they were gray where the palette is missing."""
    data = png(mode="P")
    start = data.index(b"PLTE") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4])
    assert reason(data) == ""
    assert reason(data[:start] + data[end:]) == "malformed"
    assert reason(data[:end] + data[start:]) == "malformed"
    assert reason(data[:start] + data[end:-12] + data[start:end] + data[-12:]) == "malformed"


def test_legal_png_variants_are_accepted():
    extra = [chunk(b"tEXt", b"a\0b"), chunk(b"prVt", bytes(9)), chunk(b"gAMA", struct.pack(">I", 45455))]
    assert reason(made_png(extra=extra, tail=chunk(b"tIME", bytes(7)), split=7) + bytes(100_000)) == ""
    assert reason(made_png(packed=zlib.compress(b"".join(b"\0" + bytes(range(64)) for _ in range(48))) + b"zz")) == ""


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_png_files_of_every_mode_are_accepted(mode):
    for height, width in ((33, 47), (64, 64)):
        pixels = radiograph(height, width)
        if mode == "I;16":
            assert reason(png(pixels.astype(np.uint16) * 200)) == ""
            assert reason(cv2.imencode(".png", pixels.astype(np.uint16) * 200)[1].tobytes()) == ""
        else:
            assert reason(png(pixels, mode)) == reason(png(pixels, mode, optimize=True)) == ""


def interlaced(pixels):
    """A PNG in seven passes, which no writer at hand makes."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    raw = b"".join(
        b"\0" + line.tobytes() for x, y, across, down in passes for line in pixels[y::down, x::across] if line.size
    )
    head = struct.pack(">IIBBBBB", *pixels.shape[::-1], 8, 0, 0, 0, 1)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    assert np.array_equal(np.asarray(Image.open(BytesIO(data))), pixels)
    return data


@pytest.mark.parametrize("shape", [(33, 47), (40, 64), (35, 33)])
def test_an_interlaced_png_is_accepted(shape):
    assert reason(interlaced(radiograph(*shape))) == ""


def test_real_radiographs_are_accepted_and_their_damage_refused(shared):
    folder = shared / "data/chexpert-mini/CheXpert-v1.0-small/train"
    files = sorted(folder.rglob("*.jpg"))[::24]
    rng = np.random.default_rng(0)
    for file in files:
        data = file.read_bytes()
        assert reason(data) == ""
        place = int(rng.integers(segments(data)[-1][2], len(data) - 1026))
        assert {reason(damaged(data, kind, place, 1024)) for kind in ("hole", "dropped", "duplicated")} <= {
            "malformed",
            "truncated",
        }
    for file in sorted((shared / "data/rsna-mini").rglob("*.dcm"))[::40]:
        assert reason(file.read_bytes()) == ""


@pytest.mark.parametrize("name", ["hole.jpg", "wrong.png"])
def test_cases_of_damaged_files_are_refused(shared, name):
    assert reason((shared / "cases/files" / name).read_bytes()) == "malformed"


_STREAMS = {
    "arithmetic": (
        "|JeWF01!$>Nk#wx0RR9200961|JwjV02>k%7Zed27Zw*D92+1gLMtdGB`8rkJupIGRb^yfRb5+Zc$tA}agcLcU4^xVke;Kft*d8%"
        "yve$z$C;?Br2okP3kU!x05Aao5di<p00saM5C#9;00aO5|Jncu0RaF2KLGy#VEKUm(Ek8FreOck{@B`p|I+=}JO9)8+fe`1$ougB"
        ")&BrN{UHC={^#Hz|JVMDb^p-)E6o4VpGg1G&&XK+)Bfa%VE@$q93=nM{b%a`*6y+Y*Un$)|IpB~h5yn1*xG>q(*4&v|I_%}Q2*4("
        "`|$tO(5<Hb*3qFb|JVMDb^p-)E6o4VpGg1G&&XK+)6rqz|J2dniGcsv"
    ),
    "subsampling": (
        "|JeWF01!$>Nk#wx0RR9200961|JwjV02>k%7Zed27Zw*D92+1gLMtdGB`8rkJupIGRb^yfRb5+Zc$tA}agcLcU4^xVke;Kft*d8%"
        "yve$z$C;?Br2pFhLjfEf9w;LyPAe-;q;6eqq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@@4A"
        "01*fPC;%`60U-ba5&;7d0sq7R761VO0RR910000000000000981pmYU7Z3mg0RR910000000000000010t5fV02BcM0000000000"
        "0000000000|HJ?k5di=I0000000000000000095m01N{G00I#M5dc2`gBgz*fIMbAW&rV+@t6cy%y`TJ<1ynf4H1~}m;^XTct`=^"
        "A>kkm5RmYY2mjd"
    ),
}
"""40 x 48 pixels by the encoder of libjpeg-turbo: arithmetic coding with restarts; 2 x 1, 1 x 2 and 1 x 1 samples."""
