import base64
import random

import cv2
import numpy as np
import pytest
from PIL import Image

from cleft.config import ImagesConfig
from cleft.data.images.decode import read_gray
from cleft.data.images.preprocess import centre_crop, prepare_image
from cleft.data.images.sampling import decode, draw, is_surely_more
from cleft.types import Record

IMAGES = ImagesConfig(size=48, stored_size=64)


@pytest.fixture
def records(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 255, (70, 60), np.uint8)).save(tmp_path / f"{number}.png")
    return [
        Record(id=f"{n}.png", image=tmp_path / f"{n}.png", labels={"Edema": float(n % 2)}, patient=str(n), view="AP")
        for n in range(6)
    ]


def test_a_draw_depends_on_ids_and_seed_alone(records):
    shuffled = random.Random(3).sample(records, len(records))
    assert draw(records, 3, 0) == draw(shuffled, 3, 0)
    assert len({tuple(r.id for r in draw(records, 3, seed)) for seed in range(8)}) > 1
    assert draw(records, None, 0)[:3] == draw(records, 3, 0)


def test_pictures_are_what_a_model_would_see(records):
    (first, second) = decode(records, IMAGES, pictures=2).pictures
    seen = cv2.imdecode(np.frombuffer(base64.b64decode(second.image), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(seen, centre_crop(prepare_image(read_gray(records[1].image), IMAGES), 48))
    assert (first.view, first.labels, second.labels) == ("AP", (), ("Edema",))


def test_what_cannot_be_decoded_is_kept_with_its_reason_and_the_rest_goes_on(records):
    records[2].image.write_bytes(records[2].image.read_bytes()[:200])
    Image.fromarray(np.full((40, 40), 7, np.uint8)).save(records[4].image)
    sample = decode(records, IMAGES, pictures=9)
    assert {name: reason for name, (reason, _) in sample.undecodable.items()} == {
        "2.png": "truncated",
        "4.png": "constant",
    }
    assert len(sample.contents) == 6
    assert len(sample.pictures) == 4


def test_nothing_is_left_on_disk(records, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    decode(records, IMAGES, pictures=2)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_process_of_its_own_gives_the_same(records):
    assert decode(records, IMAGES, pictures=2, jobs=1) == decode(records, IMAGES, pictures=2)


@pytest.mark.parametrize(
    ("bad", "drawn", "of", "share", "surely"),
    [
        (0, 50, 1000, 0.0, False),
        (1, 50, 1000, 0.0, True),
        (1, 50, 50, 0.02, False),
        (2, 50, 1000, 0.01, False),
        (3, 50, 1000, 0.01, True),
        (11, 2000, 1000, 0.01, True),
        (30, 2000, 200_000, 0.01, True),
        (22, 2000, 200_000, 0.01, False),
        (50, 50, 1000, 1.0, False),
    ],
)
def test_a_few_bad_ones_in_a_draw_prove_nothing(bad, drawn, of, share, surely):
    assert is_surely_more(bad, drawn, of, share) is surely
