"""Damaged image files of every format are preprocessed or refused with a reason.

    python -m pytest -m slow -p no:xdist tests/fuzz/test_image_files.py -s

prints how many mutants ended how. Seeds and numbers are fixed, so that a failure can be repeated.
"""

import random
import struct
import zlib
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from tests.fakes.dicom import dicom_bytes, encapsulated_bytes, htj2k_bytes

from cleft.config import ImagesConfig
from cleft.data.images.decode_pool import Limits, prepare_pool

pytestmark = pytest.mark.slow

CONFIG = ImagesConfig(stored_size=96, size=96, recipe="pad")
FILES, STRUCTURAL = 20_000, 2_000
REASONS = {
    "codec",
    "colour",
    "constant",
    "crashed",
    "empty",
    "format",
    "frames",
    "geometry",
    "malformed",
    "memory",
    "no-image",
    "timeout",
    "too-large",
    "truncated",
}


def radiograph(height=96, width=80, top=255):
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).normal(0, 0.04, (height, width))
    values = 0.5 + 0.3 * np.sin(x / 13) * np.cos(y / 17) + noise
    return (values.clip(0, 1) * top).astype(np.uint8 if top < 256 else np.uint16)


GRAY, DEEP = radiograph(), radiograph(top=4095)


def saved(pixels, kind, **options):
    buffer = BytesIO()
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def seeds():
    """Returns an intact file of every format."""
    colour = np.repeat(GRAY[..., None], 3, 2)
    found = {
        "JPEG": saved(GRAY, "JPEG", quality=90),
        "JPEG, colour 4:2:0": saved(colour, "JPEG", quality=90, subsampling=2),
        "JPEG, restarts": saved(GRAY, "JPEG", quality=90, restart_marker_blocks=5),
        "JPEG, progressive": saved(GRAY, "JPEG", quality=90, progressive=True),
        "PNG, 8 bit": saved(GRAY, "PNG"),
        "PNG, 16 bit": saved(DEEP, "PNG"),
        "PNG, palette": saved(Image.fromarray(GRAY).convert("P"), "PNG"),
        "DICOM, JPEG Baseline": encapsulated_bytes([saved(GRAY, "JPEG", quality=90)], GRAY, JPEGBaseline8Bit),
        "DICOM, JPEG Extended": encapsulated_bytes([saved(GRAY, "JPEG", quality=90)], GRAY, JPEGExtended12Bit),
        "DICOM, HTJ2K": htj2k_bytes()[0],
    }
    for syntax in (
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEG2000Lossless,
        JPEGLSLossless,
        JPEGLosslessSV1,
    ):
        name = (
            syntax.name.partition(",")[0]
            .replace(" Image Compression", "")
            .replace("Deflated Explicit VR", "Deflated")
            .removesuffix(" (Lossless Only)")
        )
        found[f"DICOM, {name}"] = dicom_bytes(DEEP, bits=12, syntax=syntax, WindowCenter=2000, WindowWidth=3000)
    return found


def mutate(data, rng):
    """Damages a file in one of nine ways, one to three times."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        size = min(rng.choice((1, 2, 4, 16, 64, 256, 1024)), max(1, len(data) // 4))
        place = rng.randrange(len(data) - size + 1)
        other = rng.randrange(len(data) - size + 1)
        piece = data[place : place + size]
        kind = rng.choice(("flip", "cut", "hole", "drop", "duplicate", "swap", "noise", "header", "number"))
        if kind == "flip":
            changed = bytearray(data)
            for _ in range(rng.choice((1, 2, 8))):
                changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            data = bytes(changed)
        elif kind == "cut":
            data = data[: rng.randrange(1, len(data))]
        elif kind == "hole":
            data = data[:place] + bytes(size) + data[place + size :]
        elif kind == "drop":
            data = data[:place] + data[place + size :]
        elif kind == "duplicate":
            data = data[:place] + piece + data[place:]
        elif kind == "swap":
            first, second = sorted((place, other))
            data = (
                data[:first] + data[second : second + size] + data[first + size :]
                if second >= first + size
                else data[:first] + data[second:] + data[first:second]
            )
        elif kind == "noise":
            data = data[:place] + rng.randbytes(size) + data[place + size :]
        else:
            # A number that headers hold, of any length and either order, among the first bytes or anywhere.
            value = rng.choice((0, 1, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**32 - 1, rng.randrange(2**32)))
            order = rng.choice("<>")
            number = struct.pack(f"{order}I", value) if rng.random() < 0.5 else struct.pack(f"{order}H", value & 0xFFFF)
            place = rng.randrange(min(len(data), 600) if kind == "header" else len(data))
            data = data[:place] + number + data[place + len(number) :]
        data = data or b"\0"
    return data


def with_right_checksums(data):
    """Returns a PNG with recomputed CRCs, as far as chunks can be found."""
    fixed, place = bytearray(data), 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4])
        if place + 12 + length > len(data):
            break
        end = place + 8 + length
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(fixed)


class Tally:
    """Counts outcomes of mutants by format."""

    def __init__(self, folder):
        self._folder = folder
        self.counts = {}
        self.wrong = {}

    def run(self, mutants, right):
        """Preprocesses mutants, given as pairs of format and bytes, in this order."""
        with prepare_pool(CONFIG, frozenset(), 2, Limits(seconds=5)) as prepare:
            for start in range(0, len(mutants), 500):
                batch = mutants[start : start + 500]
                paths = []
                for number, (_, data) in enumerate(batch):
                    paths.append(self._folder / f"{number}")
                    paths[-1].write_bytes(data)
                for (name, data), outcome in zip(batch, prepare(paths), strict=True):
                    self._note(name, data, outcome, right[name])

    def _note(self, name, data, outcome, right):
        ended = outcome.reason
        if ended:
            assert ended in REASONS
            assert outcome.message.startswith(str(outcome.path))
            assert "CANARY" not in outcome.message
            assert outcome.pixels is None
        else:
            ended = "same pixels" if np.array_equal(outcome.pixels, right) else "other pixels"
            if ended == "other pixels":
                self.wrong.setdefault(name, []).append(data)
        self.counts.setdefault(name, Counter())[ended] += 1

    def table(self):
        """Returns table rows: formats and their outcomes."""
        total = sum(self.counts.values(), Counter())
        columns = [key for key, _ in total.most_common()]
        rows = [*self.counts.items(), ("all", total)]
        lines = [f"{'':30}" + "".join(f"{column:>14}" for column in columns) + f"{'sum':>8}"]
        for name, counts in rows:
            lines.append(
                f"{name:30}" + "".join(f"{counts[column]:>14,}" for column in columns) + f"{counts.total():>8,}"
            )
        return lines


def prepared(files, folder):
    """Returns format to correct pixels."""
    paths = [folder / f"whole-{number}" for number in range(len(files))]
    for path, data in zip(paths, files.values(), strict=True):
        path.write_bytes(data)
    with prepare_pool(CONFIG, frozenset(), 1) as prepare:
        outcomes = list(prepare(paths))
    assert [outcome.message for outcome in outcomes if outcome.reason] == []
    return {name: outcome.pixels for name, outcome in zip(files, outcomes, strict=True)}


def report(capsys, title, lines):
    with capsys.disabled():
        print(f"\n{title}\n" + "\n".join(lines))


def test_c11_mutants_of_every_format_are_prepared_or_refused(tmp_path, capsys):
    files = seeds()
    right = prepared(files, tmp_path)
    rng = random.Random(20261201)
    names = list(files)
    mutants = [(names[number % len(names)], b"") for number in range(FILES)]
    mutants = [(name, mutate(files[name], rng)) for name, _ in mutants]
    tally = Tally(tmp_path)
    tally.run(mutants, right)
    report(capsys, f"{FILES:,} mutants of image files", tally.table())
    # Every byte of a PNG up to its end has a checksum.
    assert not any(name.startswith("PNG") for name in tally.wrong)
    for name, wrong in tally.wrong.items():
        if name.startswith("JPEG"):
            for data in wrong:
                simplejpeg.decode_jpeg(data, colorspace="GRAY", strict=True)
    total = sum(tally.counts.values(), Counter())
    assert total["same pixels"] > 0
    assert not total["timeout"] + total["memory"]


def test_c11_a_damaged_png_with_matching_checksums_is_refused(tmp_path, capsys):
    """Damage before the checksums were computed: the header is compared with the size of the pixels."""
    files = {name: data for name, data in seeds().items() if name.startswith("PNG")}
    right = prepared(files, tmp_path)
    rng = random.Random(7)
    names = list(files)
    tally = Tally(tmp_path)
    mutants = [(name, with_right_checksums(mutate(files[name], rng))) for name in names * 600]
    tally.run(mutants, right)
    report(capsys, f"{len(mutants):,} mutants of PNG files with right chunk checksums", tally.table())
    assert set(tally.wrong) <= {"PNG, palette"}  # colours have only the checksum of their chunk


def parts(data):
    """Segments of a JPEG: its start, each segment, and each scan's data with the marker behind it."""
    found, place = [data[:2]], 2
    while place < len(data) - 2:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4])
        scan = data[place + 1] == 0xDA
        found.append(data[place:end])
        place = end
        if scan:
            while not (data[end] == 0xFF and data[end + 1] not in {0, *range(0xD0, 0xD8)}):
                end += 1
            found.append(data[place:end])
            place = end
    return [*found, data[place:]]


def restructure(data, rng):
    """Damages the structure of a JPEG: segments, bytes of tables and headers, or bytes of scans."""
    pieces = parts(data)
    for _ in range(rng.choice((1, 1, 2))):
        number = rng.randrange(1, len(pieces) - 1) if len(pieces) > 2 else 0
        piece = pieces[number]
        kind = rng.choice(("drop", "duplicate", "zero", "swap", "byte", "byte", "byte", "length", "insert", "remove"))
        place = rng.randrange(len(piece)) if piece else 0
        if kind == "drop":
            del pieces[number]
        elif kind == "duplicate":
            pieces.insert(rng.randrange(1, len(pieces)), piece)
        elif kind == "zero":
            pieces[number] = piece[:4] + bytes(max(0, len(piece) - 4))
        elif kind == "swap":
            other = rng.randrange(1, len(pieces) - 1) if len(pieces) > 2 else 0
            pieces[number], pieces[other] = pieces[other], piece
        elif kind == "byte":
            pieces[number] = piece[:place] + rng.randbytes(1) + piece[place + 1 :]
        elif kind == "length":
            pieces[number] = piece[:2] + struct.pack(">H", rng.randrange(400)) + piece[4:]
        elif kind == "insert":
            pieces[number] = piece[:place] + rng.randbytes(rng.choice((1, 2, 64))) + piece[place:]
        else:
            pieces[number] = piece[:place] + piece[place + rng.choice((1, 2, 64)) :]
    return b"".join(pieces)


def test_c11_structural_mutants_of_jpeg_are_prepared_or_refused(tmp_path, capsys):
    files = {name: data for name, data in seeds().items() if name.startswith("JPEG")}
    right = prepared(files, tmp_path)
    rng = random.Random(20261202)
    names = list(files)
    mutants = [(names[number % len(names)], b"") for number in range(STRUCTURAL)]
    mutants = [(name, restructure(files[name], rng)) for name, _ in mutants]
    tally = Tally(tmp_path)
    tally.run(mutants, right)
    report(capsys, f"{STRUCTURAL:,} structural mutants of JPEG files", tally.table())
    for wrong in tally.wrong.values():
        for data in wrong:
            simplejpeg.decode_jpeg(data, colorspace="GRAY", strict=True)


def scan_start(data):
    place = data.index(b"\xff\xda")
    return place + 2 + int.from_bytes(data[place + 2 : place + 4])


def damaged(data, kind, rng, size):
    place = rng.randrange(scan_start(data), len(data) - 2 - size)
    if kind == "hole":
        return data[:place] + bytes(size) + data[place + size :]
    if kind == "dropped":
        return data[:place] + data[place + size :]
    return data[: place + size] + data[place:]


@pytest.mark.parametrize("size", [64, 256, 1024])
def test_real_radiographs_with_a_damaged_piece_are_refused(shared, tmp_path, capsys, size):
    """JPEG files as released, and DICOM files with the same kind of stream."""
    paths = sorted((shared / "data/chexpert-mini").rglob("*.jpg"))
    files = {str(number): path.read_bytes() for number, path in enumerate(paths)}
    right = prepared(files, tmp_path)
    lines = []
    for kind in ("hole", "dropped", "duplicated"):
        rng = random.Random(size)
        tally = Tally(tmp_path)
        tally.run([(name, damaged(data, kind, rng, size)) for name, data in files.items()], right)
        total = sum(tally.counts.values(), Counter())
        lines.append(f"{kind:12}{dict(total)}")
        wrapped = [damaged(data, kind, rng, size) for data in list(files.values())[:100]]
        dicoms = Tally(tmp_path)
        shapes = [np.zeros(simplejpeg.decode_jpeg_header(data)[:2], np.uint8) for data in list(files.values())[:100]]
        dicoms.run(
            [
                (str(number), encapsulated_bytes([data], shape, JPEGBaseline8Bit))
                for number, (data, shape) in enumerate(zip(wrapped, shapes, strict=True))
            ],
            right,
        )
        total_dicom = sum(dicoms.counts.values(), Counter())
        lines.append(f"{'in DICOM':12}{dict(total_dicom)}")
        if size == 1024:
            assert not tally.wrong
            assert not dicoms.wrong
    report(capsys, f"real radiographs, a piece of {size} bytes", lines)
