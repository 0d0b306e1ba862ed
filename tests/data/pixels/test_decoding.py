import os

import numpy as np
import pytest
from PIL import Image

from cleft.config import ImagesConfig
from cleft.data.pixels.decoding import prepare_file, preparing
from cleft.errors import ResourceError
from cleft.identity import file_key

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
