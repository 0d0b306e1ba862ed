"""The odd files that come with pydicom, each with what becomes of it: an image or a reason, and nothing else."""

import logging
import re
from pathlib import Path

import numpy as np
import pydicom.data
import pytest

from cleft.data.images.decode import decode_gray
from cleft.data.images.dicom_headers import read_header
from cleft.data.images.source import ReadLimits
from cleft.errors import DataError

FOLDER = Path(pydicom.data.__file__).parent
ANY_SIDE = ReadLimits(side=1)

OUTCOMES = """
128x128    test_files/CT_small
512x512    test_files/(693_J2KI|J2K_pixelrep_mismatch|image_dfl)
1024x256   test_files/JPEG2000
45x10      test_files/JPEGLSNearLossless_08
50x10      test_files/JPEGLSNearLossless_16
300x484    test_files/examples_overlay
64x64      test_files/MR_small(_RLE|_bigendian|_expb|_implicit|_jp2klossless|_jpeg_ls_lossless|_padded)?
32x32      charset_files/chr(Arab|Fren|FrenMulti|Germ|Greek|H31|H32|Hbrw|I2|Russ|X1|X2)
16x16      test_files/dicomdirtests/77654033/(CR1/6154|CR2/6247|CR3/6278|CT2/171[03]6)
16x16      test_files/dicomdirtests/9889200[13]/(CT2N|CT5N|MR1|MR2|MR700)/[0-9]+
constant   test_files/dicomdirtests/77654033/CT2/(17166|17196)
truncated  test_files/(MR_truncated|UN_sequence|no_meta_group_length|priv_SQ)
truncated  charset_files/chr(JapMulti|JapMultiExplicitIR6|KoreanMulti|SQEncoding1?)
truncated  test_files/dicomdirtests/TINY_ALPHA/PT000000/ST000000/SE000000/IM0000[0-9A-Z]{2}
no-image   palettes/[a-z0-9]+
no-image   test_files/dicomdirtests/(TINY_ALPHA/)?DICOMDIR(-[A-Za-z]+)?
no-image   test_files/(empty_charset_LEI|reportsi|reportsi_with_empty_number_tags|rtplan(_truncated)?|test-SR)
no-image   test_files/waveform_ecg
colour     test_files/(ExplVR_BigEnd|GDCMJ2K_TextGBR|SC_jpeg_no_color_transform(_2)?|SC_ybr_full_422_uncompressed)
colour     test_files/SC_rgb_(dcmtk_.*|gdcm_KY|jls_.*|jpeg.*|rle|rle_16bit|small_odd.*)
colour     test_files/examples_(jpeg2k|palette|rgb_color)
frames     test_files/(SC_rgb_rle_(16bit_|32bit_)?2frame|examples_ybr_color|rtdose|rtdose_expb|rtdose_rle)
codec      test_files/(JPEG-lossy|JPGExtended)
malformed  test_files/(JPEG2000-embedded-sequence-delimiter|badVR|meta_missing_tsyntax|nested_priv_SQ)
format     test_files/(SC_rgb_rle_32bit|liver_1frame|liver_expb_1frame|rtdose(_expb|_rle)?_1frame)
format     test_files/(ExplVR_(Big|Lit)EndNoMeta|no_meta|rtstruct)
format     .*(README|\\.(txt|md|json|icc|dump|gz))
"""
"""What becomes of each file, by its path without `.dcm`."""

EXPECTED = [tuple(line.split(maxsplit=1)) for line in OUTCOMES.strip().splitlines()]
FILES = [
    path
    for path in sorted(FOLDER.rglob("*"))
    if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts
]


def expected(path):
    name = path.relative_to(FOLDER).as_posix().removesuffix(".dcm")
    return {outcome for outcome, pattern in EXPECTED if re.fullmatch(pattern, name)}


def outcome(path):
    try:
        return "x".join(map(str, decode_gray(path.read_bytes(), path, ANY_SIDE).shape))
    except DataError as error:
        return error.reason


def test_every_file_is_an_image_or_has_a_reason(caplog):
    caplog.set_level(logging.INFO)
    found = {path: {outcome(path)} for path in FILES}
    assert found == {path: expected(path) for path in FILES}
    assert len(FILES) >= 200
    assert caplog.text == ""


def test_every_pattern_matches_a_file():
    names = [path.relative_to(FOLDER).as_posix().removesuffix(".dcm") for path in FILES]
    assert all(any(re.fullmatch(pattern, name) for name in names) for _, pattern in EXPECTED)


def header_or_reason(path):
    try:
        return read_header(path)
    except DataError as error:
        return error.reason


def test_headers_agree_with_decoding():
    for path in FILES:
        header, found = header_or_reason(path), outcome(path)
        if isinstance(header, str):
            assert (header, found) == ("format", "format"), path.name
        elif "x" in found:
            assert f"{header.rows}x{header.columns}" == found
        else:
            assert header.is_image or found in ("truncated", "no-image", "malformed"), path.name


@pytest.mark.parametrize("name", ["RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"])
def test_one_image_in_eight_encodings_gives_the_same_pixels(name):
    plain, other = (FOLDER / "test_files" / f"MR_small{end}.dcm" for end in ("", f"_{name}"))
    assert np.array_equal(*(decode_gray(path.read_bytes(), path) for path in (plain, other)))
