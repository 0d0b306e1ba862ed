"""Reference numbers of the real CheXpert table: counts, captions and splits."""

import statistics
import time
from collections import Counter
from dataclasses import replace

import pytest

from cleft.config import DataConfig
from cleft.data.datasets import apply_uncertain
from cleft.data.readers.chexpert import FINDINGS, VIEWS, read_chexpert
from cleft.data.splits.recipes import draw_5x200, pools_5x200, split_records
from cleft.data.splits.subsets import Leakage, ids_digest, measure_leakage, take_fraction
from cleft.data.text.captions import CHEST_PREFIX, add_captions

CONFIG = DataConfig(table="chexpert_train.csv.gz")


ALL_VIEWS = (*VIEWS, "LL", "RL", "lateral")
FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")


@pytest.fixture(scope="module")
def shared_tables():
    from tests.conftest import SHARED

    if not SHARED.is_dir():
        pytest.skip("the folder of real data and reference values is not beside the checkout")
    return SHARED / "data/tables"


@pytest.fixture(scope="module")
def timed(shared_tables):
    """All rows, whatever their view position, and the CPU seconds to read them."""
    start = time.process_time()
    reading = read_chexpert(replace(CONFIG, root=shared_tables, views=ALL_VIEWS), check_files=False).checked()
    return reading, time.process_time() - start


@pytest.fixture(scope="module")
def whole(timed):
    return timed[0]


@pytest.fixture(scope="module")
def table(whole):
    """Rows kept by default: see `test_laterals_and_unusual_frontals_are_left_out`."""
    return replace(whole, records=[record for record in whole.records if record.view in VIEWS])


@pytest.fixture(scope="module")
def decided(table):
    return replace(table, records=apply_uncertain(table.records, "zeros"))


@pytest.fixture(scope="module")
def drawn(decided):
    """Splits by recipe, and the CPU seconds of the slowest draw."""
    splits, slowest = {}, 0.0
    for recipe in ("5x200-strict", "5x200-paper", "5x200-images"):
        start = time.process_time()
        splits[recipe] = split_records(decided, replace(CONFIG, split=recipe))
        slowest = max(slowest, time.process_time() - start)
    return splits, slowest


def counted(records):
    """Numbers of images with 1, -1, 0 and blank, by finding. Records with equal labels share one mapping."""
    times = Counter(id(record.labels) for record in records)
    mappings = {id(record.labels): record.labels for record in records}
    counts = {finding: Counter() for finding in FINDINGS}
    for key, labels in mappings.items():
        for finding in FINDINGS:
            counts[finding][labels.get(finding)] += times[key]
    return {finding: tuple(codes[code] for code in (1, -1, 0, None)) for finding, codes in counts.items()}


@pytest.fixture(scope="module")
def counts(whole, table):
    return counted(whole.records), counted(table.records)


@pytest.fixture(scope="module")
def pools(decided):
    return pools_5x200(decided.records)


@pytest.fixture(scope="module")
def alone(whole):
    """Images of any view with 1 for the finding, and neither 1 nor -1 for others except `No Finding`."""
    images = {finding: [] for finding in FIVE}
    for record in whole.records:
        not_absent = [name for name, code in record.labels.items() if code != 0 and name != "No Finding"]
        if len(not_absent) == 1 and record.labels[not_absent[0]] == 1 and not_absent[0] in FIVE:
            images[not_absent[0]].append(record)
    return images


@pytest.mark.benchmark
def test_all_rows_are_read_and_split_in_seconds(timed, drawn):
    assert timed[1] < 60
    assert drawn[1] < 20


def test_the_table_has_the_published_counts(whole, table):
    assert len(whole.records) == 223_414
    assert whole.notes[0].startswith("chexpert_train.csv.gz holds 223,414 images of 64,540 patients")
    assert Counter(record.view for record in whole.records) == {
        "AP": 161_590,
        "PA": 29_420,
        "lateral": 32_387,
        "LL": 16,
        "RL": 1,
    }
    assert (len(table.records), len(patients(table.records))) == (191_010, 64_534)
    assert Counter(record.sex for record in whole.records) == {"Male": 132_636, "Female": 90_777, None: 1}
    ages = Counter(record.age for record in whole.records)
    assert (min(ages), ages[0], max(ages), ages[90]) == (0, 3, 90, 7_579)
    assert not whole.rejected


@pytest.mark.slow
def test_laterals_and_unusual_frontals_are_left_out(table, shared_tables):
    reading = read_chexpert(replace(CONFIG, root=shared_tables), check_files=False).checked()
    assert reading.records == table.records
    assert {reason: len(rows) for reason, rows in reading.rejected.items()} == {
        "view-lateral": 32_387,
        "view-LL": 16,
        "view-RL": 1,
    }


def test_studies_and_patients_have_as_many_images_as_published(whole, table):
    names = Counter(record.id.rpartition("/")[2] for record in whole.records)
    assert names == {
        "view1_frontal.jpg": 187_625,
        "view2_lateral.jpg": 30_633,
        "view2_frontal.jpg": 3_361,
        "view3_lateral.jpg": 1_738,
        "view3_frontal.jpg": 41,
        "view1_lateral.jpg": 16,
    }
    studies = Counter(record.study for record in whole.records)
    assert Counter(studies.values()) == {1: 153_647, 2: 32_215, 3: 1_779}
    frontals = [record for record in whole.records if record.view != "lateral"]
    assert (len(frontals), len(patients(frontals))) == (191_027, 64_534)
    assert Counter(Counter(record.study for record in frontals).values()) == {1: 184_264, 2: 3_320, 3: 41}
    assert Counter(Counter(record.study for record in table.records).values()) == {1: 184_280, 2: 3_305, 3: 40}
    per_patient = Counter(record.patient for record in whole.records).values()
    assert (round(statistics.mean(per_patient), 2), statistics.median(per_patient), max(per_patient)) == (3.46, 2, 92)
    per_patient = Counter(record.patient for record in table.records).values()
    assert (round(statistics.mean(per_patient), 2), statistics.median(per_patient), max(per_patient)) == (2.96, 1, 91)
    assert Counter(per_patient)[1] == 32_794


def test_labels_are_those_of_the_study_and_no_finding_occurs_with_devices_only(whole):
    labels = {}
    assert all(labels.setdefault(record.study, record.labels) == record.labels for record in whole.records)
    present = Counter(frozenset(name for name, code in record.labels.items() if code == 1) for record in whole.records)
    assert present[frozenset()] == 11_141
    assert sum(not record.labels for record in whole.records) == 12
    beside = {shown: count for shown, count in present.items() if "No Finding" in shown and len(shown) > 1}
    assert beside == {frozenset({"No Finding", "Support Devices"}): 8_808}


@pytest.mark.parametrize(
    ("finding", "every", "frontal"),
    [
        ("No Finding", (22_381, 0, 0, 201_033), (16_970, 0, 0, 174_040)),
        ("Enlarged Cardiomediastinum", (10_798, 12_403, 21_638, 178_575), (9_186, 10_286, 15_341, 156_197)),
        ("Cardiomegaly", (27_000, 8_087, 11_116, 177_211), (23_384, 6_704, 7_869, 153_053)),
        ("Lung Opacity", (105_581, 5_598, 6_599, 105_636), (94_207, 4_431, 5_050, 87_322)),
        ("Lung Lesion", (9_186, 1_488, 1_270, 211_470), (7_040, 1_108, 775, 182_087)),
        ("Edema", (52_246, 12_984, 20_726, 137_458), (49_674, 11_818, 15_910, 113_608)),
        ("Consolidation", (14_783, 27_742, 28_097, 152_792), (12_982, 24_380, 19_602, 134_046)),
        ("Pneumonia", (6_039, 18_770, 2_799, 195_806), (4_674, 15_980, 1_875, 168_481)),
        ("Atelectasis", (33_376, 33_739, 1_328, 154_971), (29_718, 29_861, 1_025, 130_406)),
        ("Pneumothorax", (19_448, 3_145, 56_341, 144_480), (17_693, 2_708, 47_818, 122_791)),
        ("Pleural Effusion", (86_187, 11_628, 35_396, 90_203), (76_894, 9_576, 25_294, 79_246)),
        ("Pleural Other", (3_523, 2_653, 316, 216_922), (2_503, 1_811, 208, 186_488)),
        ("Fracture", (9_040, 642, 2_512, 211_220), (7_434, 499, 1_993, 181_084)),
        ("Support Devices", (116_001, 1_079, 6_137, 100_197), (107_167, 915, 5_340, 77_588)),
    ],
)
def test_label_values_of_every_finding_have_the_published_counts(counts, finding, every, frontal):
    assert counts[0][finding] == every
    assert counts[1][finding] == frontal


def test_images_show_as_many_findings_as_counted(table):
    shown = Counter(sum(code == 1 for code in record.labels.values()) for record in table.records)
    assert [shown[count] for count in range(9)] == [7_764, 40_380, 56_723, 49_364, 27_666, 7_865, 1_127, 111, 10]
    five = Counter(sum(record.labels.get(name) == 1 for name in FIVE) for record in table.records)
    assert [five[count] for count in range(6)] == [67_216, 70_202, 39_979, 12_009, 1_555, 49]


@pytest.mark.parametrize(
    ("finding", "every", "frontal", "ap_or_pa", "people"),
    [
        ("Atelectasis", 1_375, 1_087, 1_087, 1_037),
        ("Cardiomegaly", 1_464, 1_034, 1_034, 941),
        ("Consolidation", 663, 537, 536, 487),
        ("Edema", 2_440, 2_257, 2_257, 1_893),
        ("Pleural Effusion", 3_411, 2_425, 2_423, 2_016),
    ],
)
def test_5x200_draws_from_pools_of_the_published_rule(alone, pools, finding, every, frontal, ap_or_pa, people):
    images, pool = alone[finding], pools[finding]
    assert len(images) == every
    assert sum(record.view != "lateral" for record in images) == frontal
    assert (len(pool), len(patients(pool))) == (ap_or_pa, people)
    assert {record.id for record in pool} == {record.id for record in images if record.view in VIEWS}
    assert all(record.labels.get("No Finding") != 1 for record in pool)


def test_captions_repeat_as_counted(decided):
    counts = Counter(record.caption for record in add_captions(decided, CONFIG).records)
    assert len(counts) == 1_466
    assert sum(count == 1 for count in counts.values()) == 399
    assert [(caption.removeprefix(CHEST_PREFIX).strip(), count) for caption, count in counts.most_common(6)] == [
        ("lung opacity pleural effusion support devices", 12_538),
        ("no finding", 9_550),
        ("lung opacity support devices", 8_987),
        ("lung opacity", 8_444),
        ("", 7_764),
        ("support devices no finding", 7_420),
    ]
    lengths = [len(caption.split()) for caption in counts]
    assert (min(lengths), max(lengths)) == (10, 23)
    denied = add_captions(decided, replace(CONFIG, mention_absent=True)).records
    assert max(len(record.caption.split()) for record in denied) == 29


@pytest.mark.parametrize("policy", ["zeros", "ones", "ignore"])
def test_5x200_is_the_same_under_every_policy(table, policy):
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
    ("recipe", "pool", "val", "train", "digest", "shared"),
    [
        ("5x200-strict", 185_105, (9_255, 3_212), (175_850, 60_356), "c5da296990fc9d76", 0),
        ("5x200-paper", 190_010, (9_500, 3_231), (180_510, 61_040), "fd507be25f2b6106", 703),
    ],
)
def test_5x200_splits_have_their_golden_digests(drawn, recipe, pool, val, train, digest, shared):
    splits = drawn[0][recipe]
    assert len(splits.train) + len(splits.val) == pool
    assert (len(splits.val), len(patients(splits.val))) == val
    assert (len(splits.train), len(patients(splits.train))) == train
    assert (len(splits.test), len(patients(splits.test))) == (1_000, 966)
    assert ids_digest(record.id for record in splits.test) == "7ad98f6f27bf6200"
    assert ids_digest(patients(splits.val)) == digest
    assert splits.shared_patients == shared


@pytest.mark.parametrize("recipe", ["5x200-strict", "5x200-paper"])
def test_validation_shows_every_finding_nearly_as_often_as_training(drawn, recipe):
    splits = drawn[0][recipe]
    train, val = counted(splits.train), counted(splits.val)
    for finding in FINDINGS:
        assert train[finding][0] / len(splits.train) == pytest.approx(val[finding][0] / len(splits.val), abs=0.012)


def test_a_validation_set_drawn_by_image_shares_most_of_its_patients(drawn):
    splits = drawn[0]["5x200-images"]
    assert (len(splits.train), len(splits.val), len(splits.test)) == (180_510, 9_500, 1_000)
    known = patients(splits.train)
    assert sum(record.patient in known for record in splits.val) / 9_500 == pytest.approx(0.81, abs=0.01)


def test_leakage_has_the_expected_counts(drawn):
    """Shared patients, all patients, images in the other part, and images of the same study."""
    assert measure_leakage(drawn[0]["5x200-strict"]) == []
    assert measure_leakage(drawn[0]["5x200-paper"]) == [
        Leakage("test", "train", 671, 966, 4_612, 36),
        Leakage("test", "val", 32, 966, 293, 4),
    ]
    assert measure_leakage(drawn[0]["5x200-images"]) == [
        Leakage("test", "train", 695, 966, 4_670, 38),
        Leakage("test", "val", 172, 966, 235, 2),
        Leakage("val", "train", 6_381, 8_055, 47_483, 323),
    ]


def test_fractions_of_training_are_nested_and_have_their_golden_digests(drawn):
    train = drawn[0]["5x200-strict"].train
    one, ten = (take_fraction(train, fraction, FIVE) for fraction in (0.01, 0.1))
    assert {record.id for record in one} < {record.id for record in ten}
    assert (len(one), ids_digest(record.id for record in one)) == (1_759, "239b04727b92b21c")
    assert (len(ten), ids_digest(record.id for record in ten)) == (17_582, "9e0d6925f8981460")
    every, some = counted(train), counted(ten)
    for finding in FIVE:
        assert some[finding][0] / len(ten) == pytest.approx(every[finding][0] / len(train), abs=0.015)
    taken = {record.id for record in ten}
    assert not patients(ten) & patients(record for record in train if record.id not in taken)


def patients(records):
    return {record.patient for record in records}
