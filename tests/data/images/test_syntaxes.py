import pytest
from pydicom.pixels.decoders import JPEGExtended12BitDecoder, JPEGLosslessSV1Decoder
from pydicom.uid import MPEG2MPML, ExplicitVRLittleEndian, JPEGExtended12Bit, JPEGLosslessSV1, JPEGLSNearLossless

from cleft.data.images.headers import Header
from cleft.data.images.syntaxes import check_syntaxes, decodable, syntax_census


def image(uid, bits=12):
    return Header(is_image=True, transfer_syntax=str(uid), bits_stored=bits)


@pytest.fixture
def bare(monkeypatch):
    """As if the optional decoders were not installed."""
    monkeypatch.setattr(JPEGLosslessSV1Decoder, "_available", {})


def test_the_census_counts_images_alone_and_the_most_frequent_first():
    headers = [image(ExplicitVRLittleEndian)] * 2 + [image(JPEGLosslessSV1)] * 3
    others = [Header(reason="missing"), Header(transfer_syntax=str(ExplicitVRLittleEndian))]
    census = syntax_census([*headers, *others])
    assert [(row.images, row.uid) for row in census] == [(3, str(JPEGLosslessSV1)), (2, str(ExplicitVRLittleEndian))]
    assert all(row.readable and not row.remedy for row in census)
    assert check_syntaxes(headers) == []


def test_d6_a_missing_decoder_is_named_with_the_extra_that_brings_it(bare):
    census = syntax_census([image(JPEGLosslessSV1), image(JPEGLSNearLossless)])
    assert [row.readable for row in census] == [False, True]
    (sentence,) = check_syntaxes([image(JPEGLosslessSV1)] * 2)
    assert sentence.startswith("2 images are encoded as JPEG Lossless, Non-Hierarchical")
    assert sentence.endswith("cannot be decoded here; run: pip install 'cleft[dicom]'")


def test_what_nothing_decodes_is_told_apart():
    assert decodable(str(MPEG2MPML), deep=False)[1] == "store it again in another transfer syntax"
    assert decodable("CANARY^NAME", deep=False)[0] == "an illegal transfer syntax"


def test_extended_jpeg_of_12_bits_needs_a_package_that_is_only_mentioned(monkeypatch):
    assert decodable(str(JPEGExtended12Bit), deep=False)[1] == ""
    assert decodable(str(JPEGExtended12Bit), deep=True)[1].startswith("pylibjpeg-libjpeg, which is under the GPL")
    monkeypatch.setattr(JPEGExtended12BitDecoder, "_available", {"pylibjpeg": None})
    assert decodable(str(JPEGExtended12Bit), deep=True)[1] == ""
