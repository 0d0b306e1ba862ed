import os

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import RLELossless
from tests.fakes.dicom import dicom_bytes

from cleft.config import ImagesConfig
from cleft.data.images.decoding import prepare_file, preparing
from cleft.data.images.prepared import prepare_images
from cleft.data.images.single import load_image
from cleft.errors import DataError, ResourceError
from cleft.files import file_key
from cleft.types import Record

CONFIG = ImagesConfig(stored_size=32, size=32)


class Lethal:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (3,)


@pytest.fixture
def paths(tmp_path):
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"not an image")
    return [tmp_path / f"{number}.png" for number in range(3)]


def test_a_bad_file_is_an_outcome_not_an_error(paths, tmp_path):
    outcome = prepare_file(paths[1], CONFIG, frozenset())
    assert (outcome.reason, outcome.pixels) == ("format", None)
    assert outcome.source.key == file_key(paths[1])
    assert prepare_file(tmp_path / "absent", CONFIG, frozenset()).source is None


def test_known_content_is_recognised_before_it_is_decoded(paths):
    content = prepare_file(paths[1], CONFIG, frozenset()).source.content
    outcome = prepare_file(paths[1], CONFIG, frozenset({content}))
    assert (outcome.reason, outcome.pixels) == ("", None)


def test_a_process_that_cannot_begin_stops_everything(paths):
    with pytest.raises(ResourceError, match=r"could not begin \(exit code 3\)"):
        with preparing(Lethal(), frozenset(), 2) as prepare:
            list(prepare(paths))


def write_radiograph(path, syntax, damage=lambda data: data):
    pixels = np.random.default_rng(0).integers(1000, 1100, (64, 64)).astype(np.uint16)
    path.write_bytes(damage(dicom_bytes(pixels, bits=12, syntax=syntax)))
    return path


def without_the_middle(data):
    return data[: len(data) // 2] + data[len(data) // 2 + 64 :]


@pytest.mark.parametrize("jobs", [0, 2])
def test_a_file_at_which_a_decoder_panics_costs_itself_alone(paths, tmp_path, jobs):
    """The decoder of RLE raises what is no `Exception`."""
    broken = write_radiograph(tmp_path / "broken", RLELossless, without_the_middle)
    whole = write_radiograph(tmp_path / "whole", RLELossless)
    with preparing(CONFIG, frozenset(), jobs) as prepare:
        outcomes = list(prepare([whole, broken, paths[0], whole]))
    assert [outcome.reason for outcome in outcomes] == ["", "malformed", "", ""]
    assert np.array_equal(outcomes[0].pixels, outcomes[3].pixels)
    assert all(outcome.pixels is not None for outcome in outcomes if not outcome.reason)


def test_the_process_that_calls_decodes_nothing(paths, monkeypatch):
    monkeypatch.setattr("cleft.data.images.decoding.decode_gray", None)
    with preparing(CONFIG, frozenset(), 0) as prepare:
        assert [outcome.reason for outcome in prepare(paths)] == ["", "format", ""]


@pytest.mark.parametrize("name", ["abrt.dcm", "panic.dcm"])
def test_cases_that_ended_the_process_have_a_reason(shared, tmp_path, paths, name):
    case = shared / "cases/files" / name
    records = [Record(id=path.name, image=path, labels={}, patient="p") for path in (paths[0], case, paths[2])]
    images = prepare_images(records, CONFIG, tmp_path / "cache", max_bad=0.5, progress=False)
    assert images.rejected == {name: "malformed"}
    with pytest.raises(DataError, match=name) as caught:
        load_image(case, CONFIG)
    assert caught.value.reason == "malformed"
    assert load_image(str(paths[0]), CONFIG).shape == (1, 1, 32, 32)
