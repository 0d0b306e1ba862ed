"""Golden numbers of the real CheXpert table: census, captions and splits, independent of this code's version."""

from collections import Counter
from dataclasses import replace

import pytest

from cleft.config import DataConfig
from cleft.data.captions import OPENING, add_captions
from cleft.data.chexpert import read_chexpert
from cleft.data.chexpert_5x200 import draw_5x200
from cleft.data.draws import ids_digest
from cleft.data.labels import apply_uncertain
from cleft.data.splits import split_records

CONFIG = DataConfig(table="chexpert_train.csv.gz")


@pytest.fixture(scope="module")
def table(request):
    return read_chexpert(replace(CONFIG, root=request.getfixturevalue("shared_tables")), check_files=False)


@pytest.fixture(scope="module")
def shared_tables():
    from tests.conftest import SHARED

    if not SHARED.is_dir():
        pytest.skip("the folder of real data and reference values is not beside the checkout")
    return SHARED / "data/tables"


@pytest.fixture(scope="module")
def decided(table):
    return replace(table, records=apply_uncertain(table.records, "zeros"))


def test_the_table_has_the_published_counts(table):
    assert len(table.records) == 191_010
    assert len({record.patient for record in table.records}) == 64_534
    assert table.notes[0].startswith("chexpert_train.csv.gz holds 223,414 images of 64,540 patients")
    assert {reason: len(rows) for reason, rows in table.rejected.items()} == {
        "view-lateral": 32_387,
        "view-LL": 16,
        "view-RL": 1,
    }
    edema = Counter(record.labels.get("Edema") for record in table.records)
    assert edema == {1: 49_674, -1: 11_818, 0: 15_910, None: 113_608}
    assert sum(record.sex is None for record in table.records) <= 1


def test_captions_repeat_as_counted(decided):
    counts = Counter(record.caption for record in add_captions(decided, CONFIG).records)
    assert len(counts) == 1_466
    assert sum(count == 1 for count in counts.values()) == 399
    assert [(caption.removeprefix(OPENING).strip(), count) for caption, count in counts.most_common(6)] == [
        ("lung opacity pleural effusion support devices", 12_538),
        ("no finding", 9_550),
        ("lung opacity support devices", 8_987),
        ("lung opacity", 8_444),
        ("", 7_764),
        ("support devices no finding", 7_420),
    ]
    lengths = [len(caption.split()) for caption in counts]
    assert (min(lengths), max(lengths)) == (10, 23)
    denied = add_captions(decided, replace(CONFIG, negatives=True)).records
    assert max(len(record.caption.split()) for record in denied) == 29


@pytest.mark.parametrize("policy", ["zeros", "ones", "ignore"])
def test_5x200_is_drawn_the_same_under_every_policy(table, policy):
    drawn = draw_5x200(apply_uncertain(table.records, policy))
    assert {name: ids_digest(ids) for name, ids in drawn.items()} == {
        "Atelectasis": "56dfdc4473b683b4",
        "Cardiomegaly": "23e08f95df42cf4d",
        "Consolidation": "072be0b90de0a753",
        "Edema": "cdb133829ae3ee9d",
        "Pleural Effusion": "932b42390a49a4dd",
    }
    assert ids_digest(image for ids in drawn.values() for image in ids) == "7ad98f6f27bf6200"


@pytest.mark.parametrize(
    ("recipe", "val", "train", "digest", "shared"),
    [
        ("5x200-strict", (9_255, 3_212), (175_850, 60_356), "c5da296990fc9d76", 0),
        ("5x200-paper", (9_500, 3_231), (180_510, 61_040), "fd507be25f2b6106", 703),
    ],
)
def test_5x200_splits_have_their_golden_digests(decided, recipe, val, train, digest, shared):
    splits = split_records(decided, replace(CONFIG, split=recipe))
    assert (len(splits.val), len(patients(splits.val))) == val
    assert (len(splits.train), len(patients(splits.train))) == train
    assert (len(splits.test), len(patients(splits.test))) == (1_000, 966)
    assert ids_digest(patients(splits.val)) == digest
    assert splits.shared_patients == shared


def test_a_validation_set_drawn_by_image_shares_most_of_its_patients(decided):
    splits = split_records(decided, replace(CONFIG, split="5x200-images"))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (180_510, 9_500, 1_000)
    known = patients(splits.train)
    assert sum(record.patient in known for record in splits.val) / 9_500 == pytest.approx(0.81, abs=0.01)


def patients(records):
    return {record.patient for record in records}
