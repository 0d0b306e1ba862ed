"""DICOM files as they come: every encoding, every hazard, and never a word of a header in a message."""

import logging

import numpy as np
import pytest
from pydicom.pixels.decoders import JPEGLosslessSV1Decoder
from pydicom.uid import (
    MPEG2MPML,
    BasicTextSRStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    RLELossless,
)
from tests.fakes.dicom import (
    COMPRESSED,
    LEAKS,
    NATIVE,
    deflated_bomb,
    dicom_bytes,
    encapsulated_bytes,
    htj2k_bytes,
    table_item,
)

from cleft.config import ImagesConfig
from cleft.data.images.decode import decode_gray
from cleft.data.images.source import ReadLimits
from cleft.errors import DataError

RNG = np.random.default_rng(0)
PIXELS = np.clip(np.add.outer(np.arange(48) * 40, np.arange(64) * 30) + RNG.integers(0, 50, (48, 64)), 0, 4095)
PIXELS = PIXELS.astype(np.uint16)
BYTES = (PIXELS >> 4).astype(np.uint8)
BYTES[0, :2] = 0, 255
WINDOW = {"bits": 12, "WindowCenter": 2048, "WindowWidth": 4096}
"""Under which a value of 12 bits becomes itself, times 255 / 4095."""
SHOWN = np.rint(PIXELS * (255 / 4095))


def read(data, **images):
    return decode_gray(data, "scan", images=ImagesConfig(**images))


def refused(data, limits=None, **images):
    """The reason and the sentence; nothing in them may come out of the header's texts."""
    with pytest.raises(DataError) as caught:
        decode_gray(data, "scan", limits or ReadLimits(), ImagesConfig(**images))
    sentence = str(caught.value)
    assert sentence.startswith(f"scan: {caught.value.reason} (")
    assert not any(leak in sentence for leak in LEAKS)
    return caught.value.reason, sentence


def reason(data, **arguments):
    return refused(data, **arguments)[0]


def name_of(value):
    return getattr(value, "keyword", None)


@pytest.mark.parametrize("syntax", [*NATIVE, *COMPRESSED], ids=name_of)
def test_q8_every_lossless_encoding_gives_the_same_pixels(syntax):
    assert np.array_equal(read(dicom_bytes(PIXELS, syntax=syntax, **WINDOW)), SHOWN)


@pytest.mark.parametrize("syntax", [*NATIVE, *COMPRESSED], ids=name_of)
def test_q8_every_lossless_encoding_gives_the_same_signed_pixels(syntax):
    signed = PIXELS.astype(np.int16) - 2048
    assert np.array_equal(read(dicom_bytes(signed, syntax=syntax, **WINDOW | {"WindowCenter": 0})), SHOWN)


@pytest.mark.parametrize("syntax", [*NATIVE, *COMPRESSED], ids=name_of)
def test_q8_every_lossless_encoding_gives_the_same_8_bit_pixels(syntax):
    assert np.array_equal(read(dicom_bytes(BYTES, syntax=syntax)), BYTES)


def test_jpeg_baseline_is_read_as_the_jpeg_in_it():
    data = dicom_bytes(BYTES, syntax=JPEGBaseline8Bit)
    stream = data[data.index(b"\xff\xd8\xff") :]
    assert np.array_equal(read(data), decode_gray(stream, "the stream"))
    assert np.abs(read(data).astype(int) - BYTES).max() < 12


def test_high_throughput_jpeg_2000_is_read():
    data, pixels = htj2k_bytes(WindowCenter=2048, WindowWidth=4096)
    assert np.array_equal(read(data), np.rint(pixels * (255 / 4095)))


@pytest.mark.parametrize("syntax", NATIVE[:3], ids=name_of)
@pytest.mark.parametrize("arguments", [{"preamble": False}, {"has_syntax": False}], ids=str)
def test_d13_a_file_without_preamble_or_transfer_syntax_is_read(syntax, arguments):
    assert np.array_equal(read(dicom_bytes(PIXELS, syntax=syntax, **WINDOW, **arguments)), SHOWN)


def test_d13_a_file_without_preamble_and_pixels_is_no_dicom_file():
    report = dicom_bytes(None, preamble=False, SOPClassUID=BasicTextSRStorage)
    assert reason(report) == "format"
    assert reason(dicom_bytes(PIXELS, preamble=False, Rows=None)) == "format"
    assert reason(b"\x08\x00 text that begins like a data set " * 20) in ("format", "malformed")


def test_d13_compressed_pixels_without_transfer_syntax_are_refused():
    data = dicom_bytes(PIXELS, syntax=RLELossless, has_syntax=False, **WINDOW)
    assert refused(data)[1].startswith("scan: malformed (TransferSyntaxUID is missing, and the pixels are compressed")


def test_d1_monochrome1_is_inverted_once():
    light = read(dicom_bytes(PIXELS, **WINDOW))
    for shape in (None, "INVERSE"):
        dark = read(dicom_bytes(PIXELS, photometric="MONOCHROME1", PresentationLUTShape=shape, **WINDOW))
        assert np.array_equal(dark, 255 - light)


UPPER = {"overlays": (12, 13, 14, 15)}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless], ids=name_of)
def test_d3_declared_overlays_above_the_bits_stored_are_ignored(syntax):
    junk = PIXELS | (RNG.integers(0, 16, PIXELS.shape, dtype=np.uint16) << 12)
    assert np.array_equal(read(dicom_bytes(junk, syntax=syntax, **UPPER, **WINDOW)), SHOWN)
    signed = ((PIXELS - 2048) & 0x0FFF | (junk & 0xF000)).view(np.int16)
    assert np.array_equal(read(dicom_bytes(signed, **UPPER, **WINDOW | {"WindowCenter": 0})), SHOWN)


def test_d3_junk_in_a_jpeg_stream_is_a_contradiction():
    deep = dicom_bytes(PIXELS | 0x1000, syntax=JPEGLosslessSV1)
    data = encapsulated_bytes([deep[deep.index(b"\xff\xd8\xff") :]], PIXELS, JPEGLosslessSV1, bits=12)
    beyond = (
        "malformed",
        f"scan: malformed (BitsStored is 12, and values from 0 to {0x1000 | PIXELS.max()} need more bits; correct "
        "BitsStored and HighBit, or clear the bits above)",
    )
    assert refused(data) == beyond
    deep = dicom_bytes(PIXELS | 0x1000, syntax=JPEG2000Lossless)
    assert refused(encapsulated_bytes([deep[deep.index(b"\xff\x4f") :]], PIXELS, JPEG2000Lossless, bits=12)) == beyond


@pytest.mark.parametrize("wrong", [{"HighBit": 15}, {"BitsStored": 0}, {"BitsStored": 17}], ids=str)
def test_d3_bits_that_contradict_each_other_are_malformed(wrong):
    assert reason(dicom_bytes(PIXELS, bits=12, **wrong)) == "malformed"


@pytest.mark.parametrize("depth", [np.uint32, np.int32])
def test_other_depths_than_radiographs_have_are_refused(depth):
    assert reason(dicom_bytes(PIXELS.astype(depth))) == "format"


def test_floating_point_pixels_are_refused():
    data = dicom_bytes(None, Rows=48, Columns=64, FloatPixelData=PIXELS.astype(np.float32).tobytes())
    assert refused(data) == (
        "format",
        "scan: format (its pixels are floating-point numbers, which radiographs do not have)",
    )


@pytest.mark.parametrize(
    "kind", [BasicTextSRStorage, GrayscaleSoftcopyPresentationStateStorage, MediaStorageDirectoryStorage], ids=name_of
)
def test_d5_a_file_without_an_image_is_refused_by_its_kind(kind):
    assert refused(dicom_bytes(None, SOPClassUID=kind)) == (
        "no-image",
        f"scan: no-image (contains no image, but {kind.keyword})",
    )


def test_d5_an_unknown_sop_class_is_not_quoted():
    assert refused(dicom_bytes(None, SOPClassUID="1.2.3.19991"))[1].endswith("but an object of unknown SOP class)")


@pytest.mark.parametrize("syntax", [*NATIVE, *COMPRESSED, JPEGBaseline8Bit], ids=name_of)
def test_a_truncated_file_is_refused(syntax):
    pixels, arguments = (BYTES, {}) if syntax == JPEGBaseline8Bit else (PIXELS, WINDOW)
    data = dicom_bytes(pixels, syntax=syntax, **arguments)
    begin = 200 if syntax == NATIVE[3] else data.index(b"\x7f\xe0" if syntax == NATIVE[2] else b"\xe0\x7f")
    for cut in np.linspace(begin + 12, len(data) - 16, 13).astype(int):
        assert reason(data[:cut]) == "truncated"


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, JPEGBaseline8Bit], ids=name_of)
def test_a_truncated_stream_in_a_complete_file_is_refused(syntax):
    pixels, arguments = (BYTES, {}) if syntax == JPEGBaseline8Bit else (PIXELS, WINDOW)
    data = dicom_bytes(pixels, syntax=syntax, **arguments)
    start = data.index(b"\xff\x4f\xff\x51" if syntax == JPEG2000Lossless else b"\xff\xd8\xff")
    stream = data[start : data.rindex(b"\xff\xd9") + 2]
    whole = encapsulated_bytes([stream], pixels, syntax, **arguments)
    assert np.array_equal(read(whole), read(data))
    for part in range(1, 16, 3):
        cut = encapsulated_bytes([stream[: len(stream) * part // 16]], pixels, syntax, **arguments)
        assert reason(cut) in ("truncated", "malformed")


def test_d8_a_size_over_the_limit_is_refused_by_the_header():
    data = dicom_bytes(PIXELS, Rows=65535, Columns=65535, syntax=ExplicitVRLittleEndian)
    assert reason(data) == "too-large"
    assert reason(dicom_bytes(PIXELS), limits=ReadLimits(pixels=3_071)) == "too-large"
    assert reason(dicom_bytes(PIXELS[:31])) == "geometry"
    assert reason(dicom_bytes(PIXELS, Rows=0)) == "malformed"


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, JPEGBaseline8Bit], ids=name_of)
def test_d8_a_stream_with_another_size_than_the_header_is_not_decoded(syntax, monkeypatch):
    pixels = BYTES if syntax == JPEGBaseline8Bit else PIXELS
    data = dicom_bytes(pixels, syntax=syntax)
    start = data.index(b"\xff\x4f\xff\x51" if syntax == JPEG2000Lossless else b"\xff\xd8\xff")
    bomb = encapsulated_bytes([data[start:]], np.zeros((4000, 4000), pixels.dtype), syntax)
    monkeypatch.setattr("cleft.data.images.dicom._run_decoder", None)
    assert refused(bomb)[1] == ("scan: malformed ((48, 64) compressed pixels, but the header declares (4000, 4000))")


def test_more_uncompressed_frames_than_declared_are_refused():
    assert reason(dicom_bytes(np.stack([PIXELS, PIXELS]), frames=True, NumberOfFrames=1)) == "malformed"


def test_d7_a_deflated_bomb_is_refused_before_it_grows():
    assert reason(deflated_bomb(2**25), limits=ReadLimits(pixels=2**23)) == "too-large"


FRAMES = np.stack([PIXELS, PIXELS[::-1], PIXELS[:, ::-1]])


def test_d10_several_frames_are_refused_by_default_with_the_setting():
    assert refused(dicom_bytes(FRAMES, frames=True)) == (
        "frames",
        "scan: frames (contains 3 frames; set images.frame=middle or first to use one)",
    )


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLosslessSV1], ids=name_of)
def test_d10_one_of_several_frames_is_read_when_selected(syntax):
    data = dicom_bytes(FRAMES, frames=True, syntax=syntax, **WINDOW)
    assert np.array_equal(read(data, frame="first"), SHOWN)
    assert np.array_equal(read(data, frame="middle"), SHOWN[::-1])


def test_d10_zero_frames_are_read_as_one():
    assert np.array_equal(read(dicom_bytes(PIXELS, NumberOfFrames=0, **WINDOW)), SHOWN)


GRAY = np.repeat(BYTES[..., None], 3, axis=2)


def test_d11_colour_is_refused_unless_it_repeats_gray():
    red = GRAY.copy()
    red[:, :9, 0] = 200
    assert reason(dicom_bytes(red, photometric="RGB")) == "colour"
    assert reason(dicom_bytes(red, photometric="RGB", syntax=RLELossless)) == "colour"
    assert reason(dicom_bytes(GRAY.astype(np.uint16), photometric="RGB")) == "colour"
    assert reason(dicom_bytes(BYTES, photometric="PALETTE COLOR")) == "colour"
    assert reason(dicom_bytes(BYTES, photometric="HSV")) == "malformed"
    assert reason(dicom_bytes(GRAY, photometric="MONOCHROME2")) == "malformed"


def test_d11_gray_in_three_channels_is_read_in_either_order():
    assert np.array_equal(read(dicom_bytes(GRAY, photometric="RGB")), BYTES)
    planes = dicom_bytes(
        np.ascontiguousarray(GRAY), photometric="RGB", PlanarConfiguration=1, PixelData=BYTES.tobytes() * 3
    )
    assert np.array_equal(read(planes), BYTES)
    ybr = np.dstack([BYTES, np.full_like(BYTES, 128), np.full_like(BYTES, 128)])
    assert np.array_equal(read(dicom_bytes(ybr, photometric="YBR_FULL")), BYTES)


def test_d6_a_missing_decoder_is_named_with_its_extra(monkeypatch):
    data = dicom_bytes(PIXELS, syntax=JPEGLosslessSV1)
    monkeypatch.setattr(JPEGLosslessSV1Decoder, "_available", {})
    why, sentence = refused(data)
    assert why == "codec"
    assert JPEGLosslessSV1.name in sentence
    assert sentence.endswith("which cannot be decoded here; run: pip install 'cleft[dicom]')")


def test_d6_the_package_under_the_gpl_is_only_mentioned():
    data = encapsulated_bytes([b"\xff\xd8\xff"], PIXELS, JPEGExtended12Bit, bits=12)
    assert "install pylibjpeg-libjpeg (GPL)" in refused(data)[1]


def test_video_transfer_syntaxes_are_refused():
    assert reason(encapsulated_bytes([b"\0\0"], BYTES, MPEG2MPML)) == "codec"


def test_d12_bytes_changed_anywhere_give_pixels_or_a_reason():
    errors, clean = [], dicom_bytes(BYTES, VOILUTSequence=[table_item(range(256))], **WINDOW | {"bits": 8})
    table = clean.index(np.arange(256, dtype="<u2").tobytes())
    places = [*range(132, table, 6), *range(table + 512, clean.index(b"\xe0\x7f\x10\x00") + 12, 3)]
    for place in places:
        for changed in (b"\xff\xff", b"\x01"):
            try:
                pixels = read(clean[:place] + changed + clean[place + len(changed) :])
                assert pixels.dtype == np.uint8
                assert pixels.ndim == 2
            except DataError as error:
                errors.append(error)
    assert len(errors) > 20
    assert not any(leak in str(error) for error in errors for leak in LEAKS)
    assert not any(error.__cause__ for error in errors)


def test_d12_sequences_nested_without_end_are_malformed():
    nest = b"\x40\x00\x10\xa7SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 2000
    data = dicom_bytes(PIXELS)
    place = data.index(b"\x28\x00\x02\x00")
    assert reason(data[:place] + nest + data[place:]) in ("malformed", "truncated", "no-image")


def test_r11_messages_quote_no_header_value(caplog, capfd):
    caplog.set_level(logging.DEBUG)
    odd = {"PatientBirthDate": "CANARY-1", "StudyDate": "19450607-CANARY", "RescaleSlope": "1", "RescaleIntercept": "0"}
    read(dicom_bytes(PIXELS, **WINDOW, **odd))
    assert reason(dicom_bytes(PIXELS, syntax=RLELossless)[:-3000]) == "truncated"
    assert reason(dicom_bytes(PIXELS, bits=12, PixelRepresentation=None, **odd)) == "malformed"
    assert reason(encapsulated_bytes([b"\xff\x4f\xff\x51" + bytes(60)], PIXELS, JPEG2000Lossless)) == "malformed"
    told = caplog.text + "".join(capfd.readouterr())
    assert not any(leak in told for leak in LEAKS)
    assert "Traceback" not in told


def test_implicit_tables_are_read_like_explicit_ones():
    curve = (np.arange(4096) ** 2 // 4096).astype(np.uint16)
    tags = {"bits": 12, "VOILUTSequence": [table_item(curve, depth=12)]}
    explicit, implicit = (read(dicom_bytes(PIXELS, syntax=s, **tags)) for s in (ExplicitVRLittleEndian, NATIVE[1]))
    assert np.array_equal(explicit, implicit)
    assert np.array_equal(explicit, np.rint(curve[PIXELS] * (255 / curve.max())))
    assert NATIVE[1] == ImplicitVRLittleEndian


def test_a_digital_xray_is_what_the_fakes_write():
    assert refused(dicom_bytes(None))[1].startswith(
        f"scan: truncated (is {DigitalXRayImageStorageForPresentation.keyword}, and no pixels follow"
    )


def test_every_real_file_of_rsna_is_read(shared):
    paths = sorted((shared / "data/rsna-mini/stage_2_train_images").glob("*.dcm"))
    for path in paths:
        data = path.read_bytes()
        pixels = read(data)
        assert pixels.shape == (512, 512)
    stream = data[data.index(b"\xff\xd8\xff") :]
    assert np.array_equal(pixels, decode_gray(stream, "the stream"))
    assert len(paths) == 238
