import io

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import JPEGLSLossless, RLELossless
from tests.fakes.dicom import LEAKS, dicom_bytes

from cleft.data.images.looks import Look, look_at, look_at_all

RAMP = np.arange(40 * 48, dtype=np.uint16).reshape(40, 48)


def encoded(mode="L", kind="PNG", pixels=None, **options):
    image = Image.fromarray((RAMP % 256).astype(np.uint8) if pixels is None else pixels)
    buffer = io.BytesIO()
    (image if pixels is not None else image.convert(mode)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "look"),
    [
        (encoded("L"), Look("PNG", "gray", 8, (40, 48))),
        (encoded(pixels=RAMP), Look("PNG", "gray", 16, (40, 48))),
        (encoded("P"), Look("PNG", "palette", 8, (40, 48))),
        (encoded("RGBA"), Look("PNG", "RGB with transparency", 8, (40, 48))),
        (encoded("L", "JPEG"), Look("JPEG", "gray", 8, (40, 48))),
        (encoded("RGB", "JPEG", progressive=True, comment=b"x" * 60_000), Look("JPEG", "colour", 8, (40, 48))),
        (encoded("L", "BMP"), Look("another")),
        (b"", Look("empty")),
        (b"\x89PNG\r\n\x1a\n", Look("PNG")),
        (b"\xff\xd8\xff\xe0" + bytes(3), Look("JPEG")),
        (b"\xff\xd8" + b"\xff" * 4000, Look("JPEG")),
        (b"some words", Look("another")),
    ],
)
def test_a_file_says_what_it_is_whatever_it_is_called(tmp_path, data, look):
    (tmp_path / "a.dcm").write_bytes(data)
    assert look_at(tmp_path / "a.dcm") == look


def test_a_dicom_file_is_described_in_its_own_words(tmp_path):
    (tmp_path / "noending").write_bytes(dicom_bytes(RAMP, bits=12, photometric="MONOCHROME1"))
    look = look_at(tmp_path / "noending")
    assert look[:4] == ("DICOM", "MONOCHROME1", 12, (40, 48))
    assert not any(leak in repr(look) for leak in LEAKS)


def test_o1_a_header_that_says_something_else_in_place_of_a_kind_is_not_quoted(tmp_path):
    (tmp_path / "a").write_bytes(dicom_bytes(RAMP, photometric="CANARY"))
    assert look_at(tmp_path / "a").kind == "of no legal kind"


def test_what_is_missing_says_so(tmp_path):
    assert look_at(tmp_path / "none").format == "missing"
    assert look_at(tmp_path).format == "not-a-file"


def test_many_files_are_counted_and_what_they_need_is_said(tmp_path, monkeypatch):
    files = {
        "a.png": encoded("L"),
        "b.jpg": encoded("L", "JPEG"),
        "c": dicom_bytes(RAMP, syntax=RLELossless),
        "d": dicom_bytes(RAMP, syntax=JPEGLSLossless),
        "e": dicom_bytes(None),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(
        "cleft.data.images.dicom.decodable", lambda uid, deep: (uid[-2:], "run: pip install it" * ("80" in uid))
    )
    looks = look_at_all([tmp_path / name for name in files])
    counted = {tally.name: dict(tally.counts) for tally in looks.tallies}
    assert counted["format"] == {"DICOM": 2, "DICOM without an image": 1, "JPEG": 1, "PNG": 1}
    assert counted["pixels"] == {"8-bit gray": 2, "16-bit MONOCHROME2": 2}
    assert counted["size"] == {"40 × 48": 4}
    assert counted["transfer syntax"] == {".5": 1, "80": 1}
    assert looks.notes == ["1 image is encoded as 80, which cannot be decoded here; run: pip install it"]


def test_rare_sizes_are_counted_together(tmp_path):
    paths = []
    for side in range(40, 50):
        paths.append(tmp_path / f"{side}.png")
        Image.fromarray(np.zeros((side, side), np.uint8)).save(paths[-1])
    (size,) = [tally for tally in look_at_all(paths).tallies if tally.name == "size"]
    assert len(size.counts) == 6
    assert size.counts[-1] == ("5 others", 5)
