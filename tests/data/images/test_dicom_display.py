"""Looking values up equals computing on pixels, for every chain the standard allows."""

from io import BytesIO

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from tests.fakes.dicom import dicom_bytes, table_item

from cleft.config import ImagesConfig
from cleft.data.images.decode import decode_gray
from cleft.data.images.dicom_display import stored_values, weighted_percentiles
from cleft.data.images.preprocess import prepare_image
from cleft.errors import DataError

RAMP = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)


def read(pixels, *, images=None, **arguments):
    return decode_gray(dicom_bytes(pixels, **arguments), "scan", images=ImagesConfig(**images or {}))


def scaled(values, low, high):
    return np.rint(np.clip((values - low) * (255 / (high - low)), 0, 255))


@st.composite
def scenes(draw):
    """Pixels of any legal depth and sign, junk above them, and any chain."""
    bits, signed = draw(st.integers(2, 16)), draw(st.booleans())
    allocated = 16 if bits > 8 or draw(st.booleans()) else 8
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    low = -(2 ** (bits - 1)) if signed else 0
    values = rng.integers(low, low + 2**bits, (40, 48))
    values[0, :2] = low, low + 2**bits - 1
    junk = rng.integers(0, 2 ** (allocated - bits), values.shape) << bits
    stored = (
        ((values & (2**bits - 1)) | junk).astype(f"u{allocated // 8}").view(f"{'i' if signed else 'u'}{allocated // 8}")
    )
    tags = {"overlays": range(bits, allocated)}
    if draw(st.booleans()):
        tags |= {
            "RescaleSlope": draw(st.sampled_from([1, 0.5, 2.25, -1, -0.25])),
            "RescaleIntercept": draw(st.integers(-2000, 2000)),
        }
    return bits, signed, values, stored, tags, draw(st.sampled_from(["MONOCHROME1", "MONOCHROME2"]))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    scenes(),
    st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    st.integers(-3000, 3000),
    st.floats(1, 5000).map(lambda width: round(width, 3)),
)
def test_a_window_equals_a_direct_computation(scene, function, centre, width):
    bits, signed, values, stored, tags, photometric = scene
    tags = tags | {"WindowCenter": centre, "WindowWidth": width, "VOILUTFunction": function}
    data = dicom_bytes(stored, bits=bits, photometric=photometric, **tags)
    dataset = dcmread(BytesIO(data))
    with np.errstate(over="ignore"):
        shown = apply_voi_lut(apply_modality_lut(values, dataset), dataset)
    slope, intercept = float(tags.get("RescaleSlope", 1)), float(tags.get("RescaleIntercept", 0))
    low = (-(2 ** (bits - 1)) if signed else 0) * slope + intercept
    high = (2 ** (bits - 1) - 1 if signed else 2**bits - 1) * slope + intercept
    gray = scaled(shown, low, high)
    if photometric == "MONOCHROME1":
        gray = 255 - gray
    if gray.min() == gray.max() or (np.ptp(gray) < 4 and np.ptp(values.astype(int)) >= 64):
        with pytest.raises(DataError, match="constant"):
            decode_gray(data, "scan")
    elif function == "SIGMOID":  # There the largest value of all is a sum whose last bit may differ.
        assert np.abs(decode_gray(data, "scan") - gray).max() <= 1
    else:
        assert np.array_equal(decode_gray(data, "scan"), gray)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(scenes(), st.sampled_from(["voi", "percentile"]), st.sampled_from(["min-max", "percentile", "full-range"]))
def test_scaling_without_a_window_equals_a_direct_computation(scene, dicom, intensity):
    bits, signed, values, stored, tags, photometric = scene
    data = dicom_bytes(stored, bits=bits, photometric=photometric, **tags)
    meant = apply_modality_lut(values, dcmread(BytesIO(data)))
    if dicom == "voi" and bits == 8 and not signed and np.array_equal(meant, values):
        low, high = 0, 255
    elif "percentile" in (dicom, intensity):
        low, high = np.percentile(meant, (0.5, 99.5))
    else:
        low, high = meant.min(), meant.max()  # The scene holds its extremes, so the full range is no other.
    gray = scaled(meant, low, high)
    expected = 255 - gray if photometric == "MONOCHROME1" else gray
    found = decode_gray(data, "scan", images=ImagesConfig(dicom=dicom, intensity=intensity))
    assert np.array_equal(found, expected)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(scenes())
def test_released_equals_the_authors_arithmetic_to_the_bit(scene):
    bits, _, values, stored, tags, photometric = scene
    data = dicom_bytes(stored, bits=bits, photometric=photometric, WindowCenter=5, WindowWidth=9, **tags)
    pixels = values.astype(stored.dtype)
    gray = cv2.convertScaleAbs(pixels, alpha=255.0 / pixels.max())
    if photometric == "MONOCHROME1":
        gray = cv2.bitwise_not(gray)
    assert np.array_equal(decode_gray(data, "scan", images=ImagesConfig(dicom="released")), gray)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(scenes(), st.floats(0.1, 0.9), st.floats(0.05, 1))
def test_q6_an_inverted_image_stored_as_monochrome1_is_the_same_image(scene, place, share):
    bits, signed, values, _, _, _ = scene
    bottom = -(2 ** (bits - 1)) if signed else 0
    top = bottom + 2**bits - 1
    centre, width = bottom + round(place * (top - bottom), 3), round(share * (top - bottom), 3)
    tags = {"bits": bits, "WindowWidth": width, "VOILUTFunction": "LINEAR_EXACT"}
    kind = "i2" if signed else "u2"
    light = dicom_bytes(values.astype(kind), WindowCenter=centre, **tags)
    negative = (top + bottom - values).astype(kind)
    dark = dicom_bytes(negative, photometric="MONOCHROME1", WindowCenter=top + bottom - centre, **tags)
    assert np.abs(decode_gray(dark, "scan").astype(int) - decode_gray(light, "scan")).max() <= 1


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=60), st.floats(0, 100), st.floats(0, 100))
def test_percentiles_of_counts_equal_those_of_all_values(values, first, second):
    distinct, counts = np.unique(np.array(values) * 1.5, return_counts=True)
    order = np.random.default_rng(0).permutation(len(distinct))
    found = weighted_percentiles(distinct[order], counts[order], (first, second))
    assert found == np.percentile(np.array(values) * 1.5, (first, second)).tolist()


def test_a_bit_pattern_is_read_as_its_low_bits_with_sign():
    for stored in (1, 5, 12, 16):
        unsigned, signed = (stored_values(16, stored, signed=sign) for sign in (False, True))
        assert (unsigned.min(), unsigned.max()) == (0, 2**stored - 1)
        assert (signed.min(), signed.max()) == (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1)
        assert ((unsigned - signed) % 2**stored == 0).all()


def test_d4_windows_are_those_of_the_standard_worked_by_hand():
    # PS3.3 C.11.2.1.2: LINEAR, c = 2048, w = 4096 is the identity; c = 100, w = 5 goes from 97.5 to 101.5.
    assert np.array_equal(read(RAMP, bits=12, WindowCenter=2048, WindowWidth=4096), np.rint(RAMP * (255 / 4095)))
    steep = read(RAMP, bits=12, WindowCenter=100, WindowWidth=5).ravel()
    assert steep[95:105].tolist() == [0, 0, 0, 32, 96, 159, 223, 255, 255, 255]
    exact = read(RAMP, bits=12, WindowCenter=100, WindowWidth=4, VOILUTFunction="LINEAR_EXACT").ravel()
    assert exact[97:104].tolist() == [0, 0, 64, 128, 191, 255, 255]
    sigmoid = read(RAMP, bits=12, WindowCenter=100, WindowWidth=4, VOILUTFunction="SIGMOID").ravel()
    assert sigmoid[[98, 100, 102]].tolist() == [30, 128, 225]
    assert read(RAMP, bits=12, WindowCenter=100, WindowWidth=1).ravel()[98:102].tolist() == [0, 0, 255, 255]


def test_d4_the_first_window_is_used_or_the_selected_one():
    tags = {"bits": 12, "WindowCenter": [100, 2048, 3000], "WindowWidth": [5, 4096, 9]}
    alone = [read(RAMP, bits=12, WindowCenter=c, WindowWidth=w) for c, w in ((100, 5), (2048, 4096), (3000, 9))]
    for index, expected in ((0, alone[0]), (1, alone[1]), (2, alone[2]), (3, alone[0])):
        assert np.array_equal(read(RAMP, images={"window": index}, **tags), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"WindowCenter": 100, "WindowWidth": 0},
        {"WindowCenter": 100, "WindowWidth": 0.5},
        {"WindowCenter": 100, "WindowWidth": -5},
        {"WindowCenter": 100, "WindowWidth": None},
        {"WindowCenter": 100, "WindowWidth": 9, "VOILUTFunction": "CUBIC"},
        {"WindowCenter": "", "WindowWidth": ""},
    ],
    ids=str,
)
def test_d4_an_illegal_window_is_skipped(wrong):
    assert np.array_equal(read(RAMP, bits=12, **wrong), scaled(RAMP, 0, 4095))


def test_d4_a_legal_window_after_an_illegal_one_is_used():
    found = read(RAMP, bits=12, WindowCenter=[7, 2048], WindowWidth=[0, 4096])
    assert np.array_equal(found, scaled(RAMP, 0, 4095))


def test_a_window_does_not_depend_on_other_pixels():
    tags = {"bits": 12, "WindowCenter": 1000, "WindowWidth": 800}
    marked = RAMP.copy()
    marked[0] = 4095
    assert np.array_equal(read(RAMP, **tags)[1:], read(marked, **tags)[1:])


def test_a_lut_clamps_values_beyond_its_ends():
    curve = np.sqrt(np.arange(1000) / 999) * 3000 + 500
    found = read(RAMP, bits=12, VOILUTSequence=[table_item(curve, first=1000, depth=12)])
    entries = curve.astype(np.uint16)[np.clip(RAMP.astype(int) - 1000, 0, 999)]
    assert np.array_equal(found, scaled(entries, 500, 3500))


def test_a_lut_takes_precedence_and_the_second_can_be_selected():
    tables = [table_item(np.arange(4096), depth=12), table_item(np.arange(4096)[::-1], depth=12)]
    tags = {"bits": 12, "VOILUTSequence": tables, "WindowCenter": 5, "WindowWidth": 9}
    assert np.array_equal(read(RAMP, **tags), scaled(RAMP, 0, 4095))
    assert np.array_equal(read(RAMP, images={"window": 1}, **tags), scaled(4095 - RAMP, 0, 4095))


def test_a_table_of_8_bits_and_many_entries_does_not_wrap_around():
    packed = (np.arange(4096) // 16).astype(np.uint8)
    words = read(RAMP, bits=12, VOILUTSequence=[table_item(packed, depth=8)])
    item = {"LUTDescriptor": [4096, 0, 8], "LUTData": packed.tobytes()}
    assert np.array_equal(words, RAMP >> 4)
    assert np.array_equal(read(RAMP, bits=12, VOILUTSequence=[item]), RAMP >> 4)


def test_a_table_of_65536_entries_is_written_as_0_and_all_are_read():
    deep = RAMP * 16
    found = read(deep, VOILUTSequence=[table_item(np.arange(65536)[::-1])])
    assert np.array_equal(found, scaled(65535 - deep.astype(int), 0, 65535))


def test_tables_start_below_zero_for_signed_values():
    signed = RAMP.astype(np.int16) - 2048
    curve = np.arange(4096) ** 2 // 4096
    for first in (-2048, 65536 - 2048):
        found = read(signed, bits=12, VOILUTSequence=[table_item(curve, first=first, depth=12)])
        assert np.array_equal(found, scaled(curve[RAMP], 0, curve.max()))


def test_d2_a_modality_table_of_12_bits_is_looked_up_before_the_window():
    signed = RAMP.astype(np.int16) - 2048
    tags = {"ModalityLUTSequence": [table_item(np.arange(4096), first=-2048, depth=12)]}
    found = read(signed, bits=12, WindowCenter=2048, WindowWidth=4096, **tags)
    assert np.array_equal(found, scaled(RAMP, 0, 4095))


@pytest.mark.parametrize(
    "item",
    [
        {"LUTDescriptor": [4096, 0, 12], "LUTData": bytes(100)},
        {"LUTDescriptor": [4096, 0, 12], "LUTData": bytes(8192)},
    ],
    ids=["short", "flat"],
)
def test_a_table_that_is_too_short_or_flat_is_malformed(item):
    with pytest.raises(DataError) as caught:
        read(RAMP, bits=12, VOILUTSequence=[item])
    assert caught.value.reason == "malformed"


def test_a_lut_without_entries_is_skipped():
    assert np.array_equal(read(RAMP, bits=12, VOILUTSequence=[{"LUTExplanation": "none"}]), scaled(RAMP, 0, 4095))


def test_d2_negative_values_are_dark_not_bright():
    signed = RAMP.astype(np.int16) - 2048
    assert np.array_equal(read(signed, bits=12), scaled(RAMP, 0, 4095))
    released = read(signed, bits=12, images={"dicom": "released"})
    assert released[0, 0] == 255  # As published: -2048 becomes its absolute value.


@pytest.mark.parametrize("slope", ["0", "1e400"])
def test_d2_a_meaningless_slope_is_malformed(slope):
    with pytest.raises(DataError) as caught:
        read(RAMP, bits=12, RescaleSlope=slope, RescaleIntercept="0", WindowCenter=5, WindowWidth=9)
    assert caught.value.reason == "malformed"


def test_an_empty_slope_counts_as_none():
    assert np.array_equal(read(RAMP, bits=12, RescaleSlope="", RescaleIntercept=""), scaled(RAMP, 0, 4095))


def test_q7_slope_and_intercept_with_a_matching_window_show_the_same():
    plain = read(RAMP, bits=12, WindowCenter=900, WindowWidth=1000).astype(int)
    moved = read(RAMP, bits=12, RescaleSlope="-2", RescaleIntercept="77", WindowCenter=77 - 1800, WindowWidth=2000)
    assert np.abs(255 - plain - moved).max() <= 1


def test_eight_bits_without_a_window_are_unchanged():
    pixels = (RAMP // 32 + 40).astype(np.uint8)
    for intensity in ("min-max", "percentile", "full-range"):
        assert np.array_equal(read(pixels, images={"intensity": intensity}), pixels)
    assert np.array_equal(read(pixels, photometric="MONOCHROME1"), 255 - pixels)
    assert np.array_equal(read(pixels, RescaleSlope="1", RescaleIntercept="0"), pixels)
    assert np.array_equal(read(pixels.astype(np.uint16) | 0x5500, bits=8, overlays=range(8, 16)), pixels)


def test_d15_padding_is_black_and_does_not_affect_scaling():
    padded = RAMP // 4 + 1000
    padded[:, :20] = 4095
    tags = {"bits": 12, "PixelPaddingValue": 4095}
    inner = padded[:, 20:]
    for photometric, gray in (("MONOCHROME2", 0), ("MONOCHROME1", 255)):
        found = read(padded, photometric=photometric, **tags)
        expected = scaled(inner, inner.min(), inner.max())
        assert np.array_equal(found[:, 20:], np.abs(gray - expected))
        assert not found[:, :20].any()
    assert np.array_equal(
        read(padded, images={"dicom": "percentile"}, **tags)[:, 20:], scaled(inner, *np.percentile(inner, (0.5, 99.5)))
    )


def test_d15_padding_may_be_a_range_and_be_written_with_the_other_sign():
    signed = (RAMP // 4).astype(np.int16)
    signed[:, :20] = -2000
    signed[:, 20:25] = -1990
    for value in (-2000, 65536 - 2000):
        found = read(signed, PixelPaddingValue=value, PixelPaddingRangeLimit=-1980)
        assert not found[:, :25].any()
        assert found[:, 25:].min() == 0
        assert np.array_equal(found[:, 25:], scaled(signed[:, 25:], signed[:, 25:].min(), signed.max()))


@pytest.mark.parametrize("width", [1e6, 1e9])
def test_a_window_too_wide_to_show_anything_is_refused(width):
    with pytest.raises(DataError, match=r"WindowWidth 1e\+0[69]\) maps all its stored values, .* nearly the same gray"):
        read(RAMP, WindowCenter="2000", WindowWidth=f"{width:.0f}")
    assert np.ptp(read(RAMP, WindowCenter="2000", WindowWidth="65536")) >= 4


def test_an_image_of_padding_only_is_constant():
    with pytest.raises(DataError) as caught:
        read(np.full((40, 40), 7, np.uint16), PixelPaddingValue=7)
    assert caught.value.reason == "constant"


@pytest.mark.parametrize("images", [{}, {"dicom": "percentile"}, {"dicom": "released"}], ids=str)
@pytest.mark.parametrize("value", [0, 7])
def test_c10_a_single_value_is_constant_under_every_policy(images, value):
    with pytest.raises(DataError) as caught:
        read(np.full((40, 40), value, np.uint16), images=images)
    assert caught.value.reason == "constant"


def test_c4_one_scene_gives_equal_pixels_from_png_and_every_kind_of_dicom():
    scene = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (96, 64), dtype=np.uint8), (0, 0), 3)
    scene[0, :2] = 0, 255
    buffer = BytesIO()
    Image.fromarray(scene).save(buffer, "PNG")
    config = ImagesConfig(stored_size=48, size=40)
    expected = prepare_image(decode_gray(buffer.getvalue(), "png"), config)
    deep, window = scene.astype(np.uint16) * 16, {"WindowCenter": 2040.5, "WindowWidth": 4081}
    for data in (
        dicom_bytes(scene),
        dicom_bytes(255 - scene, photometric="MONOCHROME1"),
        dicom_bytes(deep, bits=12),
        dicom_bytes(deep, bits=12, **window),
        dicom_bytes(deep, bits=12, RescaleSlope="1", RescaleIntercept="-1024"),
        dicom_bytes(scene.astype(np.uint16) * 257),
        dicom_bytes(scene.astype(np.int16) - 128, photometric="MONOCHROME2", bits=9),
        dicom_bytes(4080 - deep, bits=12, photometric="MONOCHROME1"),
    ):
        assert np.array_equal(prepare_image(decode_gray(data, "dicom"), config), expected)
