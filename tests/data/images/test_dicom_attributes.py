"""What DICOM headers declare, rightly, wrongly, by halves or not at all: the right picture, or a reason that names it.

Expected values are computed here by the formulas of the standard (PS3.3, C.11.1 and C.11.2.1.2).
"""

from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import (
    EnhancedXAImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from tests.fakes.dicom import COMPRESSED, LEAKS, dicom_bytes, fragmented_bytes, streams, table_item, write_dicom

from cleft.config import ImagesConfig
from cleft.data.images.decode import decode_gray
from cleft.data.images.dicom_headers import ODDITIES, read_header
from cleft.errors import DataError


def name_of(uid):
    return uid.keyword


RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
GROUPS = {"SOPClassUID": EnhancedXAImageStorage, "bits": 12}


def read(pixels=RAMP, *, images=None, **arguments):
    """The picture and the notes."""
    notes = []
    config = ImagesConfig(**(images or {}))
    return decode_gray(dicom_bytes(pixels, **arguments), "scan", images=config, notes=notes), notes


def refused(pixels=RAMP, *, images=None, **arguments):
    """Reason and sentence; it neither quotes the header nor advises to copy the file again."""
    with pytest.raises(DataError) as caught:
        read(pixels, images=images, **arguments)
    sentence = str(caught.value)
    assert not any(leak in sentence for leak in LEAKS)
    assert "Error" not in sentence
    return caught.value.reason, sentence


def linear(values, center, width):
    """PS3.3 C.11.2.1.2.1, to 0 … 255."""
    return np.rint(np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1) * 255)


def by_range(values):
    return np.rint((values - values.min()) * (255 / (values.max() - values.min())))


def window(center, width, **more):
    return {"FrameVOILUTSequence": [{"WindowCenter": center, "WindowWidth": width, **more}]}


def rescale(**tags):
    return {"PixelValueTransformationSequence": [tags]}


def groups(shared=None, each=None):
    tags = {} if shared is None else {"SharedFunctionalGroupsSequence": [shared]}
    return {**GROUPS, **tags, **({} if each is None else {"PerFrameFunctionalGroupsSequence": each})}


def close(found, expected):
    return np.abs(found[0].astype(int) - expected).max() <= 1 and not found[1]


SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=name_of)
def test_a_window_in_the_shared_groups_is_applied(syntax):
    assert close(read(syntax=syntax, **groups(window(1500, 800))), linear(RAMP, 1500, 800))


def test_a_voi_function_applies_to_the_window_of_its_level():
    exact = np.rint(np.clip((RAMP - 1500.0) / 800 + 0.5, 0, 1) * 255)
    sigmoid = np.rint(255 / (1 + np.exp(-4 * (RAMP - 1500.0) / 800)))
    assert close(read(**groups(window(1500, 800, VOILUTFunction="LINEAR_EXACT"))), exact)
    assert close(read(**groups(window(1500, 800, VOILUTFunction="SIGMOID"))), sigmoid)
    assert close(read(VOILUTFunction="SIGMOID", **groups(window(1500, 800))), linear(RAMP, 1500, 800))


def test_a_lut_in_the_groups_takes_precedence_over_the_window():
    macro = {"FrameVOILUTSequence": [{"VOILUTSequence": [table_item(RAMP.ravel()[::-1], depth=12)], "WindowCenter": 9}]}
    assert np.array_equal(read(**groups(macro))[0], by_range(4095 - RAMP.astype(int)))


def test_rescaling_in_the_groups_is_applied_before_the_window():
    found = read(**groups({**rescale(RescaleSlope="2", RescaleIntercept="-1000"), **window(1000, 3000)}))
    assert close(found, linear(RAMP * 2.0 - 1000, 1000, 3000))
    found = read(**groups(rescale(RescaleSlope="-1", RescaleIntercept="0")))
    assert close(found, by_range(-RAMP.astype(int)))


def test_a_modality_table_in_the_groups_is_applied():
    macro = rescale(ModalityLUTSequence=[table_item(RAMP.ravel()[::-1], depth=12)])
    assert close(read(**groups({**macro, **window(1500, 800)})), linear(4095 - RAMP.astype(int), 1500, 800))


FRAMES = np.stack([RAMP, RAMP[::-1], RAMP.T])
EACH = [{**window(500 * (n + 1), 600), **rescale(RescaleSlope=str(n + 1), RescaleIntercept="7")} for n in range(3)]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=name_of)
@pytest.mark.parametrize(("choice", "frame"), [("first", 0), ("middle", 1)])
def test_each_frame_has_its_own_window_and_rescaling(syntax, choice, frame):
    tags = groups({**window(9, 9), **rescale(RescaleSlope="9")}, EACH)
    found = read(FRAMES, frames=True, syntax=syntax, images={"frame": choice}, WindowCenter=5, WindowWidth=9, **tags)
    assert close(found, linear(FRAMES[frame] * (frame + 1.0) + 7, 500 * (frame + 1), 600))


def test_frames_without_a_group_use_the_shared_one_then_the_top_level():
    each = [{}, window(500, 600), {"FrameVOILUTSequence": []}]
    shared = groups(window(2000, 900), each)
    alone = groups(None, each)
    for frame, expected in (("first", (2000, 900)), ("middle", (500, 600))):
        assert close(
            read(FRAMES, frames=True, images={"frame": frame}, **shared),
            linear(FRAMES[int(frame != "first")], *expected),
        )
    found = read(FRAMES, frames=True, images={"frame": "first"}, WindowCenter=800, WindowWidth=300, **alone)
    assert close(found, linear(FRAMES[0], 800, 300))


@pytest.mark.parametrize(
    "tags",
    [
        groups({}),
        groups({}, []),
        groups({"FrameVOILUTSequence": [], "PixelValueTransformationSequence": []}, [{}]),
        groups({"FrameVOILUTSequence": [{}], "PixelValueTransformationSequence": [{"RescaleType": "US"}]}),
        {**GROUPS, "SharedFunctionalGroupsSequence": [], "PerFrameFunctionalGroupsSequence": []},
        {**GROUPS, "SharedFunctionalGroupsSequence": None},
    ],
    ids=range(6),
)
def test_groups_that_declare_nothing_give_the_range_of_values(tags):
    assert close(read(**tags), by_range(RAMP))
    assert close(read(WindowCenter=1500, WindowWidth=800, **tags), linear(RAMP, 1500, 800))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_wrong_number_of_items_matters_only_where_they_differ(count):
    many = (EACH * 2)[:count]
    same = [EACH[0]] * count
    found = read(FRAMES, frames=True, images={"frame": "middle"}, **groups(None, same))
    assert close(found, linear(FRAMES[1] + 7.0, 500, 600))
    if count > 1:
        why, sentence = refused(FRAMES, frames=True, images={"frame": "middle"}, **groups(None, many))
        assert why == "malformed"
        assert f"PerFrameFunctionalGroupsSequence has {count} items for 3 frames" in sentence


def test_real_world_values_are_not_for_display():
    mapping = {"RealWorldValueMappingSequence": [{"RealWorldValueSlope": -1.0, "RealWorldValueIntercept": 4095.0}]}
    assert close(read(**mapping, **groups(mapping)), by_range(RAMP))


def test_an_invalid_sequence_is_named():
    data = dicom_bytes(RAMP, **groups(window(1500, 800)))
    length, pixels = data.index(b"\x00\x52\x29\x92SQ") + 8, data.index(b"\xe0\x7f\x10\0")
    with pytest.raises(DataError, match=r"malformed \(SharedFunctionalGroupsSequence cannot be read\)"):
        decode_gray(data[:length] + b"\6\0\0\0abcdef" + data[pixels:], "scan")


def test_half_a_rescale_has_the_default_of_the_other_half_and_is_noted():
    tags = {"bits": 12, "WindowCenter": 1024, "WindowWidth": 4096}
    found, notes = read(RescaleIntercept="-1024", **tags)
    assert (np.abs(found - linear(RAMP - 1024.0, 1024, 4096)).max() <= 1, notes) == (True, ["rescale"])
    for intercept in (None, ""):
        found, notes = read(RescaleSlope="0.5", RescaleIntercept=intercept, **tags)
        assert (np.abs(found - linear(RAMP * 0.5, 1024, 4096)).max() <= 1, notes) == (True, ["rescale"])
    found, notes = read(**groups({**rescale(RescaleIntercept="-1024"), **window(1024, 4096)}))
    assert (np.abs(found - linear(RAMP - 1024.0, 1024, 4096)).max() <= 1, notes) == (True, ["rescale"])


ILLEGAL = [b"2047,5", b"n/a", b"NaN", b"inf", b"1e999", b"0x10", b"1_000", b"1\\2,5", b"--1", b"\xff\xfe", b"CANARY^1"]


@pytest.mark.parametrize("wrong", ILLEGAL)
@pytest.mark.parametrize("keyword", ["WindowCenter", "WindowWidth"])
def test_a_window_that_is_not_a_number_is_skipped_and_noted(keyword, wrong):
    for tags in (
        {"bits": 12, "WindowCenter": b"100", "WindowWidth": b"200", keyword: wrong.replace(b"1\\", b"n\\")},
        groups(window(b"100", b"200", **{keyword: wrong.replace(b"1\\", b"n\\")})),
    ):
        found, notes = read(**tags)
        assert (np.array_equal(found, by_range(RAMP)), notes) == (True, ["window"])


@pytest.mark.parametrize(
    ("centers", "widths"),
    [
        (b"n/a\\1500", b"200\\800"),
        (b"7\\1500\\9", b"2,5\\800\\x"),
        (b"\\1500", b"200\\800"),
        (b"1500\\9", b"800\\"),
        (b"1500\\9", b"800"),
        (b"1500", b"800\\9"),
        (b" 7 \\ 1500 ", b"-4\\ 800 "),
    ],
)
def test_a_legal_window_among_illegal_ones_is_used(centers, widths):
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        found, notes = read(bits=12, syntax=syntax, WindowCenter=centers, WindowWidth=widths)
        assert np.abs(found - linear(RAMP, 1500, 800)).max() <= 1
        assert notes == ["windows"]


def test_an_illegal_window_of_a_frame_leaves_the_shared_one():
    found, notes = read(**groups(window(1500, 800), [window(b"n/a", b"5")]))
    assert np.abs(found - linear(RAMP, 1500, 800)).max() <= 1
    assert notes == ["windows"]


@pytest.mark.parametrize("wrong", [*ILLEGAL, b"1\\2", b"1e-320", b"1e305", b"0"])
def test_an_illegal_slope_is_refused_by_name(wrong):
    for tags in (
        {"bits": 12, "RescaleSlope": wrong, "RescaleIntercept": b"0"},
        groups(rescale(RescaleSlope=wrong, RescaleIntercept=b"0")),
        groups(None, [rescale(RescaleSlope=wrong)]),
    ):
        why, sentence = refused(WindowCenter=5, WindowWidth=9, **tags)
        assert (why, "RescaleSlope" in sentence) == ("malformed", True)


@pytest.mark.parametrize("wrong", [*ILLEGAL, b"1e20", b"-1e308"])
def test_an_illegal_intercept_is_refused_by_name(wrong):
    why, sentence = refused(bits=12, RescaleSlope=b"1", RescaleIntercept=wrong)
    assert (why, "RescaleIntercept" in sentence) == ("malformed", True)


NUMERIC = ["Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"]


@pytest.mark.parametrize("keyword", [*NUMERIC, "NumberOfFrames"])
@pytest.mark.parametrize("wrong", [b"\x01\x02\x03\x04", b"n/a ", b"\xff\xff", b"-7"])
def test_a_number_that_decides_the_pixels_and_is_illegal_is_refused_by_name(keyword, wrong, tmp_path):
    why, sentence = refused(bits=12, **{keyword: wrong})
    assert why in ("malformed", "too-large", "geometry", "truncated", "format")
    assert why != "malformed" or keyword in sentence or "values per pixel" in sentence
    write_dicom(tmp_path / "a.dcm", RAMP, bits=12, **{keyword: wrong})
    read_header(tmp_path / "a.dcm")


@pytest.mark.parametrize("keyword", ["PixelPaddingValue", "PixelPaddingRangeLimit"])
@pytest.mark.parametrize("wrong", [b"\x01\x02\x03\x04", b"\x01\x02\x03\x04\x05\x06"])
def test_padding_that_is_not_a_number_is_ignored_and_noted(keyword, wrong):
    tags = {"PixelPaddingValue": 9} if keyword == "PixelPaddingRangeLimit" else {}
    found, notes = read(bits=12, **tags, **{keyword: wrong})
    rest = RAMP != 9 if tags else RAMP >= 0
    assert np.array_equal(found[rest], by_range(RAMP)[rest])
    assert notes == ["padding"]


@pytest.mark.parametrize("keyword", ["PixelSpacing", "PixelAspectRatio", "PatientAge", "ViewPosition"])
@pytest.mark.parametrize("wrong", [b"n/a", b"1,5\\2", b"\xff\xfe\xfd\xfc"])
def test_other_attributes_that_are_illegal_change_nothing(keyword, wrong, tmp_path):
    assert close(read(bits=12, **{keyword: wrong}), by_range(RAMP))
    write_dicom(tmp_path / "a.dcm", RAMP, bits=12, **{keyword: wrong})
    assert read_header(tmp_path / "a.dcm").rows == 64


MISSING = {
    "Rows": "Rows",
    "Columns": "Columns",
    "BitsAllocated": "BitsAllocated",
    "PhotometricInterpretation": "PhotometricInterpretation",
    "BitsStored": ["bits"],
    "HighBit": [],
    "SamplesPerPixel": ["samples"],
    "NumberOfFrames": [],
}


@pytest.mark.parametrize("keyword", MISSING)
@pytest.mark.parametrize("syntax", [*SYNTAXES, JPEG2000Lossless, JPEGLosslessSV1], ids=name_of)
@pytest.mark.parametrize("empty", [False, True], ids=["absent", "empty"])
def test_a_missing_attribute_has_a_safe_default_or_is_named(keyword, syntax, empty):
    data = dicom_bytes(RAMP, bits=12, syntax=syntax, WindowCenter=1500, WindowWidth=800, NumberOfFrames=1)
    dataset, notes = rewritten(data, keyword, empty=empty), []
    if isinstance(MISSING[keyword], str):
        with pytest.raises(DataError) as caught:
            decode_gray(dataset, "scan", notes=notes)
        assert caught.value.reason == "malformed"
        assert str(caught.value).startswith(f"scan: malformed ({keyword} is missing, and the pixels cannot")
    else:
        found = decode_gray(dataset, "scan", notes=notes)
        assert np.abs(found - linear(RAMP, 1500, 800)).max() <= 1
        assert notes == MISSING[keyword]


def rewritten(data, keyword, *, empty):
    """A file without an attribute, or with an empty one; its pixels stay as they are."""
    dataset = dcmread(BytesIO(data))
    if empty:
        setattr(dataset, keyword, None)
    else:
        del dataset[keyword]
    buffer = BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def test_missing_signedness_is_unsigned_only_where_it_makes_no_difference():
    low = RAMP // 2
    found, notes = read(low, bits=12, PixelRepresentation=None)
    assert (np.array_equal(found, by_range(low)), notes) == (True, ["representation"])
    why, sentence = refused(RAMP, bits=12, PixelRepresentation=None)
    assert (why, "PixelRepresentation is missing" in sentence) == ("malformed", True)


def test_missing_bits_of_signed_pixels_are_named():
    signed = RAMP.astype(np.int16) - 2048
    assert "BitsStored is missing" in refused(signed, BitsStored=None, HighBit=None)[1]
    found, notes = read(signed, BitsStored=None, HighBit=11)
    assert (np.array_equal(found, by_range(signed)), notes) == (True, ["bits"])
    found, notes = read(RAMP, BitsStored=None, HighBit=None)
    assert (np.array_equal(found, by_range(RAMP)), notes) == (True, ["bits"])


def test_a_missing_order_of_channels_is_noted():
    gray = np.repeat((RAMP // 16).astype(np.uint8)[..., None], 3, axis=2)
    found, notes = read(gray, photometric="RGB", PlanarConfiguration=None)
    assert (np.array_equal(found, RAMP // 16), notes) == (True, ["planar"])
    found, notes = read(gray, photometric="RGB", SamplesPerPixel=None)
    assert (np.array_equal(found, RAMP // 16), notes) == (True, ["samples"])


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless], ids=lambda u: u.keyword
)
@pytest.mark.parametrize("images", [{}, {"dicom": "percentile"}, {"dicom": "released"}], ids=str)
def test_values_beyond_the_bits_stored_are_refused_and_never_wrapped(syntax, images):
    for pixels, bits in (
        (RAMP, 10),
        (RAMP, 11),
        (RAMP.astype(np.int16) - 2048, 11),
        (RAMP.astype(np.int16), 12),
        ((RAMP // 16).astype(np.uint8), 7),
    ):
        why, sentence = refused(pixels, bits=bits, syntax=syntax, images=images, WindowCenter=2048, WindowWidth=4096)
        assert (why, f"BitsStored is {bits}" in sentence) == ("malformed", True)


def test_an_overlay_permits_only_its_bits():
    with_overlay = RAMP | (RAMP % 2 << 13)
    assert close(read(with_overlay, bits=12, overlays=[13]), by_range(RAMP))
    assert "BitsStored" in refused(with_overlay, bits=12, overlays=[14])[1]
    assert "BitsStored" in refused(with_overlay, bits=12)[1]


def test_signed_values_may_be_extended_by_their_sign_or_by_zeros():
    signed = RAMP.astype(np.int16) - 2048
    assert close(read(signed, bits=12), by_range(signed))
    zeros = (signed.view(np.uint16) & 0x0FFF).view(np.int16)
    assert close(read(zeros, bits=12), by_range(signed))


def test_a_padding_value_may_exceed_the_bits_stored():
    padded = RAMP.copy()
    padded[:, :20] = 63536
    found, notes = read(padded, bits=12, PixelPaddingValue=63536)
    assert np.array_equal(found[:, 20:], by_range(RAMP[:, 20:].astype(int)))
    assert (found[:, :20].max(), notes) == (0, [])
    padded[0, 0] = 5000
    assert "BitsStored" in refused(padded, bits=12, PixelPaddingValue=63536)[1]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless], ids=name_of)
@pytest.mark.parametrize("high", [15, 13])
def test_left_aligned_values_are_shifted_down(syntax, high):
    tags = {"bits": 12, "HighBit": high, "WindowCenter": 1500, "WindowWidth": 800, "syntax": syntax}
    found, notes = read(RAMP << (high - 11), **tags)
    assert (np.abs(found - linear(RAMP, 1500, 800)).max() <= 1, notes) == (True, ["left-aligned"])
    signed = (RAMP.astype(np.int16) - 2048) << (high - 11)
    found, notes = read(signed, **tags | {"WindowCenter": 0})
    assert np.abs(found - linear(RAMP - 2048.0, 0, 800)).max() <= 1
    marked = (RAMP << (high - 11)) | 1
    found, notes = read(marked, overlays=[0], **tags)
    assert np.abs(found - linear(RAMP, 1500, 800)).max() <= 1


@pytest.mark.parametrize("high", [15, 10, 16, 3])
def test_a_high_bit_that_does_not_fit_the_values_is_named(high):
    why, sentence = refused(RAMP, bits=12, HighBit=high)
    assert (why, f"HighBit is {high}" in sentence) == ("malformed", True)


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted", "noted"),
    [
        ("MONOCHROME1", None, True, []),
        ("MONOCHROME1", "INVERSE", True, []),
        ("MONOCHROME1", "IDENTITY", False, ["shape"]),
        ("MONOCHROME2", None, False, []),
        ("MONOCHROME2", "IDENTITY", False, []),
        ("MONOCHROME2", "INVERSE", True, ["shape"]),
        ("MONOCHROME2", "inverse ", True, ["shape"]),
        ("MONOCHROME2", "LIN OD", False, []),
    ],
)
def test_the_presentation_shape_counts_and_a_contradiction_is_noted(photometric, shape, inverted, noted):
    found, notes = read(
        bits=12, photometric=photometric, PresentationLUTShape=shape, WindowCenter=1500, WindowWidth=800
    )
    expected = linear(RAMP, 1500, 800)
    assert np.abs(found - (255 - expected if inverted else expected)).max() <= 1
    assert notes == noted


def test_a_window_that_shows_nothing_is_named():
    far = RAMP + 12000
    for tags in ({"WindowCenter": 3174, "WindowWidth": 2426}, groups(window(3174, 2426)) | {"bits": None}):
        why, sentence = refused(far, **tags)
        assert why == "constant"
        assert "WindowCenter 3174, WindowWidth 2426" in sentence
        assert "12000 to 16095" in sentence
        assert "images.dicom=percentile" in sentence
    assert read(far, images={"dicom": "percentile"}, WindowCenter=3174, WindowWidth=2426)[0].max() == 255
    both = {"WindowCenter": [3174, 14000], "WindowWidth": [2426, 5000]}
    assert close(read(far, images={"window": 1}, **both), linear(far, 14000, 5000))
    padded = far.copy()
    padded[:, :9] = 1
    assert "WindowCenter 3174" in refused(padded, PixelPaddingValue=1, WindowCenter=3174, WindowWidth=2426)[1]


def test_a_table_that_shows_nothing_is_named():
    why, sentence = refused(RAMP + 8000, VOILUTSequence=[table_item(np.arange(4096), depth=12)])
    assert (why, "VOILUTSequence" in sentence) == ("constant", True)


def test_a_constant_image_is_not_blamed_on_its_window():
    flat = np.full((40, 40), 7, np.uint16)
    assert "Window" not in refused(flat, bits=12, WindowCenter=5, WindowWidth=100)[1]


@pytest.mark.parametrize("sequence", ["ModalityLUTSequence", "VOILUTSequence"])
@pytest.mark.parametrize(
    ("item", "attribute"),
    [
        ({"LUTDescriptor": b"\x01\x02", "LUTData": bytes(8192)}, "LUTDescriptor"),
        ({"LUTDescriptor": [4096, 0, 12], "LUTData": bytes(100)}, "LUTData"),
        ({"LUTDescriptor": [4096, 0, 12], "LUTData": bytes(8192)}, "LUTData"),
    ],
    ids=["descriptor", "short", "flat"],
)
def test_an_invalid_lut_is_named(sequence, item, attribute):
    why, sentence = refused(bits=12, **{sequence: [item]})
    assert (why, f"{attribute} in {sequence}" in sentence) == ("malformed", True)


def test_a_modality_table_without_entries_is_named():
    assert "ModalityLUTSequence" in refused(bits=12, ModalityLUTSequence=[{"LUTExplanation": "none"}])[1]


@pytest.mark.parametrize("syntax", [*COMPRESSED, JPEGBaseline8Bit], ids=name_of)
def test_eight_bits_may_be_compressed_where_sixteen_are_allocated(syntax):
    shallow = (RAMP // 16).astype(np.uint8)
    (stream,) = streams(shallow, syntax)
    found = decode_gray(fragmented_bytes([stream], [], RAMP, syntax, bits=8), "scan").astype(int)
    plain = decode_gray(dicom_bytes(shallow, syntax=syntax), "scan")
    assert np.array_equal(found, by_range(plain.astype(int)))
    tags = {"WindowCenter": 100, "WindowWidth": 50, "bits": 8}
    found = decode_gray(fragmented_bytes([stream], [], RAMP, syntax, **tags), "scan").astype(int)
    assert np.abs(found - linear(plain, 100, 50)).max() <= 1


TABLES = [[], [0], [99], [2**32 - 1], [4, 2], [0, 0]]


@pytest.mark.parametrize("table", TABLES, ids=str)
@pytest.mark.parametrize(
    "syntax", [JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless], ids=lambda u: u.keyword
)
def test_one_frame_may_have_several_fragments_without_offset_table(syntax, table):
    (stream,) = streams(RAMP, syntax, bits=12)
    half = len(stream) // 4 * 2
    for fragments in ([stream], [stream[:half], stream[half:]]):
        data = fragmented_bytes(fragments, table, RAMP, syntax, bits=12, ExtendedOffsetTable=b"\xff" * 8)
        assert np.array_equal(decode_gray(data, "scan"), by_range(RAMP))


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1, RLELossless], ids=name_of)
@pytest.mark.parametrize("table", [[], [1, 2, 3], [0, 0, 0], [0], "true"], ids=str)
def test_frames_of_one_fragment_each_need_no_offset_table(syntax, table):
    parts = streams(FRAMES, syntax, bits=12, frames=True)
    offsets = np.cumsum([0, *(8 + len(part) + len(part) % 2 for part in parts[:-1])]).tolist()
    data = fragmented_bytes(parts, offsets if table == "true" else table, FRAMES, syntax, bits=12, frames=True)
    for choice, frame in (("first", 0), ("middle", 1)):
        found = decode_gray(data, "scan", images=ImagesConfig(frame=choice))
        assert np.array_equal(found, by_range(FRAMES[frame]))


@pytest.mark.parametrize("table", ["none", "wrong", "true", "extended"])
def test_fragments_are_assigned_to_frames_by_a_valid_offset_table_or_their_first_bytes(table):
    parts = streams(FRAMES, JPEG2000Lossless, bits=12, frames=True)
    halves, offsets, place = [], [], 0
    for part in parts:
        offsets.append(place)
        middle = len(part) // 4 * 2
        for half in (part[:middle], part[middle:]):
            halves.append(half)
            place += 8 + len(half) + len(half) % 2
    tags = {"ExtendedOffsetTable": np.array(offsets, "<u8").tobytes()} if table == "extended" else {}
    basic = {"none": [], "wrong": [0, 6, 9], "true": offsets, "extended": []}[table]
    data = fragmented_bytes(halves, basic, FRAMES, JPEG2000Lossless, bits=12, frames=True, **tags)
    found = decode_gray(data, "scan", images=ImagesConfig(frame="middle"))
    assert np.array_equal(found, by_range(FRAMES[1]))


def test_fragments_that_cannot_be_assigned_to_frames_are_named():
    parts = streams(FRAMES, RLELossless, bits=12, frames=True)
    data = fragmented_bytes([*parts, parts[0][:64]], [0, 8, 16], FRAMES, RLELossless, bits=12, frames=True)
    with pytest.raises(DataError, match="NumberOfFrames is 3, PixelData has 4 fragments"):
        decode_gray(data, "scan", images=ImagesConfig(frame="first"))


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": b"n/a", "WindowWidth": b"5"},
        {"WindowCenter": b"n/a\\5", "WindowWidth": b"5\\9"},
        {"RescaleSlope": "2"},
        {"PresentationLUTShape": "INVERSE"},
        {"PixelPaddingValue": b"\x01"},
        {"SamplesPerPixel": None, "BitsStored": None},
        {"NumberOfFrames": 3, "PerFrameFunctionalGroupsSequence": [window(b"x", b"1"), window(5, 9), window(6, 9)]},
        {"NumberOfFrames": 0},
        {"has_syntax": False},
        {"WindowCenter": 500, "WindowWidth": 900},
    ],
    ids=range(10),
)
def test_a_header_has_the_notes_of_decoding(tags, tmp_path):
    pixels = FRAMES if tags.get("NumberOfFrames") else RAMP
    frames = bool(tags.get("NumberOfFrames"))
    _, notes = read(pixels, bits=12, frames=frames, images={"frame": "first"}, **tags)
    header = read_header(write_dicom(tmp_path / "a.dcm", pixels, bits=12, frames=frames, **tags))
    assert header.oddities == tuple(notes)
    assert set(notes) <= set(ODDITIES)


def test_bytes_changed_in_functional_groups_give_pixels_or_a_reason(tmp_path):
    data = dicom_bytes(FRAMES, frames=True, **groups({**window(9, 9), **rescale(RescaleSlope="9")}, EACH))
    start, end = data.index(b"\x00\x52\x29\x92"), data.index(b"\xe0\x7f\x10\0")
    errors = []
    for place in range(start, end, 7):
        for changed in (b"\xff", b"\x00", b"A"):
            broken = data[:place] + changed + data[place + 1 :]
            (tmp_path / "a.dcm").write_bytes(broken)
            try:
                decode_gray(broken, "scan", images=ImagesConfig(frame="middle"))
            except DataError as error:
                errors.append(error)
            with suppress(DataError):
                read_header(tmp_path / "a.dcm")
    assert {"malformed", "truncated"} <= {error.reason for error in errors}
    assert not any(leak in str(error) for error in errors for leak in (*LEAKS, "Error)"))


REFUSED = {
    "d07": "BitsStored",
    "d08-PhotometricInterpretation": "PhotometricInterpretation is missing",
    "d08-PixelRepresentation": "PixelRepresentation is missing",
    "d11": "WindowCenter 3174",
    "e09c": "RescaleSlope",
}
NOTED = {"e090": ["window"], "e09b0": ["window"], "e09b2": ["window"]}
"""Cases that are shown by the range of their values, which is not what `expected.npy` holds."""


def test_every_case_is_displayed_as_expected_or_named(shared):
    folders = sorted(path.parent for path in (shared / "cases").glob("[de]*/a.dcm"))
    for folder in folders:
        notes = []
        config = ImagesConfig(frame="middle" if folder.name == "d02" else "reject")
        data = (folder / "a.dcm").read_bytes()
        if folder.name in REFUSED:
            with pytest.raises(DataError, match=REFUSED[folder.name]):
                decode_gray(data, "scan", images=config, notes=notes)
            continue
        found = decode_gray(data, "scan", images=config, notes=notes)
        if folder.name in NOTED:
            assert notes == NOTED[folder.name]
        elif (folder / "expected.npy").is_file():
            assert np.abs(found - np.load(folder / "expected.npy")).max() <= 1
    assert len(folders) >= 16
