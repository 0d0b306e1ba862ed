import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleft.config import DataConfig
from cleft.data.splits.recipes import (
    CLASSES_5X200,
    DISJOINT,
    SALTS,
    SPLITS,
    draw_5x200,
    raise_shared_patients,
    salts_of,
    shared_patients,
    split_records,
)
from cleft.data.splits.subsets import ids_digest, order_key, take_patients
from cleft.errors import ConfigError, DataError
from cleft.types import Reading, Record


def record(name, patient, labels=None, *, view="AP", uncertain=(), split=None):
    return Record(
        id=name, image=Path(name), labels=labels or {}, patient=patient, view=view, uncertain=uncertain, split=split
    )


def people(sizes):
    """Patients p0, p1, … with the given numbers of images."""
    return [record(f"p{p}-{i}", f"p{p}") for p, size in enumerate(sizes) for i in range(size)]


def reading(records):
    return Reading(dataset="t", records=list(records), findings=())


def exclusive(count):
    """The given number of images per class with this finding only, two per patient."""
    return [
        record(f"{name}{i}", f"{name}{i // 2}", {name: 1.0, "Fracture": 0.0})
        for name in CLASSES_5X200
        for i in range(count)
    ]


def ids(records):
    return {record.id for record in records}


def test_the_order_is_that_of_a_salted_hash():
    assert order_key("salt", "patient00001") == hashlib.sha256(b"salt|patient00001").hexdigest()
    assert ids_digest(["b", "a"]) == hashlib.sha256(b"a\nb").hexdigest()[:16]


def test_fractions_are_of_images_and_patients_are_not_split():
    splits = split_records(reading(people([2] * 100)), DataConfig(test_fraction=0.2, val_fraction=0.05))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (152, 8, 40)
    assert splits.shared_patients == 0
    assert splits.recipe == "patients"


def test_a_patient_with_too_many_images_is_skipped():
    records = people([5, 5, 1, 5, 1])
    assert take_patients(records, 2, "salt") == {"p2-0", "p4-0"}


def test_a_requested_split_has_at_least_the_smallest_patient():
    assert take_patients(people([5, 3, 4]), 1, "salt") == {"p1-0", "p1-1", "p1-2"}
    assert take_patients(people([5, 3, 4]), 0, "salt") == set()


def test_a_fraction_of_zero_gives_no_split():
    splits = split_records(reading(people([1] * 9)), DataConfig(test_fraction=0, val_fraction=0))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (9, 0, 0)


@pytest.mark.parametrize("patients", [1, 2])
def test_too_few_patients_are_refused(patients):
    with pytest.raises(DataError, match=r"leave none for .*; every split needs at least one patient"):
        split_records(reading(people([4] * patients)), DataConfig())


def test_three_patients_are_enough():
    splits = split_records(reading(people([4] * 3)), DataConfig())
    assert [len(part) for part in splits[:3]] == [4, 4, 4]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 6), min_size=4, max_size=40), st.integers(0, 9))
def test_splits_partition_the_images_and_do_not_depend_on_their_order(sizes, seed):
    records = people(sizes)
    plain = split_records(reading(records), DataConfig())
    random.Random(seed).shuffle(records)
    shuffled = split_records(reading(records), DataConfig())
    assert plain.digest == shuffled.digest
    parts = [ids(part) for part in plain[:3]]
    assert set.union(*parts) == ids(records)
    assert sum(len(part) for part in parts) == len(records)
    assert shared_patients({str(i): part for i, part in enumerate(plain[:3])}) == []


def test_the_digest_depends_on_the_split_of_every_image():
    config = DataConfig()
    one = split_records(reading(people([1] * 20)), config)
    other = split_records(reading(people([1] * 20)), replace(config, val_fraction=0.2))
    assert ids(one.test) == ids(other.test)
    assert one.digest != other.digest


def test_5x200_takes_images_with_one_finding_only():
    records = exclusive(201)
    sure = {name: set(members) for name, members in draw_5x200(records).items()}
    assert all(len(members) == 200 for members in sure.values())
    spoilers = [
        record("two", "x", {"Edema": 1.0, "Fracture": 1.0}),
        record("unsure", "x", {"Edema": 1.0, "Fracture": 0.0}, uncertain=("Fracture",)),
        record("raw", "x", {"Edema": 1.0, "Fracture": -1.0}),
        record("decided", "x", {"Edema": 1.0}, uncertain=("Edema",)),
        record("lateral", "x", {"Edema": 1.0}, view="lateral"),
        record("other", "x", {"Fracture": 1.0}),
    ]
    assert {name: set(members) for name, members in draw_5x200([*records, *spoilers]).items()} == sure


def test_5x200_ignores_the_label_no_finding():
    records = [replace(r, labels={**r.labels, "No Finding": 1.0}) for r in exclusive(200)]
    assert len(draw_5x200(records)["Edema"]) == 200


def test_too_small_a_pool_is_refused_with_its_size():
    with pytest.raises(DataError, match=r"found Atelectasis 199, .*; set data\.split=patients"):
        draw_5x200(exclusive(199))


def test_5x200_strict_leaves_out_other_images_of_test_patients():
    records = exclusive(300)
    strict = split_records(reading(records), DataConfig(split="5x200-strict"))
    assert strict.shared_patients == 0
    assert len(strict.test) == 1000
    assert len(strict.train) + len(strict.val) + len(strict.test) < len(records)


def test_5x200_paper_removes_images_only_and_counts_shared_patients():
    records = exclusive(300)
    paper = split_records(reading(records), DataConfig(split="5x200-paper"))
    assert len(paper.train) + len(paper.val) == 500
    parts = {"train": paper.train, "val": paper.val, "test": paper.test}
    assert paper.shared_patients == len(shared_patients(parts)) > 0
    assert not shared_patients({"train": paper.train, "val": paper.val})


def told(**sizes):
    """Images of one patient each, with the given number per split; `none` has no split."""
    return [
        record(f"{part}{i}", f"{part}{i}", split=None if part == "none" else part)
        for part, size in sizes.items()
        for i in range(size)
    ]


def test_given_splits_are_used_and_images_without_one_left_out():
    splits = split_records(reading(told(train=20, val=4, test=6, none=5)), DataConfig(split="given"))
    assert [{record.split for record in part} for part in splits[:3]] == [{"train"}, {"val"}, {"test"}]
    assert [len(part) for part in splits[:3]] == [20, 4, 6]
    assert splits.recipe == "given"


def test_without_given_validation_it_is_drawn_from_training_by_patient():
    records = [*told(train=18, test=6), *(record(f"twin{i}", "train0", split="train") for i in range(2))]
    splits = split_records(reading(records), DataConfig(split="given", val_fraction=0.1))
    assert [len(part) for part in splits[:3]] == [18, 2, 6]
    assert {record.split for record in splits.val} == {"train"}
    assert not shared_patients({"train": splits.train, "val": splits.val})


def test_given_splits_need_no_test_set():
    assert [len(part) for part in split_records(reading(told(train=20)), DataConfig(split="given"))[:3]] == [19, 1, 0]


def test_given_splits_that_share_patients_are_counted():
    records = [*told(train=20, test=3), record("again", "test0", split="train")]
    assert split_records(reading(records), DataConfig(split="given", val_fraction=0)).shared_patients == 1


def test_given_splits_without_any_split_are_refused():
    with pytest.raises(DataError, match=r"no image has a split; .* set data\.split=patients"):
        split_records(reading(told(none=9)), DataConfig(split="given"))


def test_the_default_recipe_is_that_of_the_dataset():
    records = told(train=20, test=6)
    assert split_records(reading(records), DataConfig()).recipe == "patients"
    assert split_records(reading(records), DataConfig(dataset="nih")).recipe == "given"
    assert split_records(reading(records), DataConfig(dataset="nih", split="patients")).recipe == "patients"


def test_every_recipe_of_the_settings_exists():
    assert {DataConfig(split=name).split for name in SPLITS} == set(SPLITS)


def test_every_recipe_names_its_salts_and_draws_share_none():
    assert set(SALTS) == set(SPLITS)
    assert salts_of("5x200-strict", DataConfig()) == {"test": "cleft-5x200-v1", "val": "cleft-chexpert-val-v1"}
    assert salts_of("5x200-strict", DataConfig(test_list=Path("list"))) == {"val": "cleft-chexpert-val-v1"}
    assert salts_of("whatever", DataConfig(split_file=Path("split.json"))) == {}
    assert all(len(set(salts.values())) == len(salts) for salts in SALTS.values())


def listed(records, names, **more):
    return Reading(dataset="chexpert", records=list(records), findings=(), listed_ids=frozenset(names), **more)


LIST = Path("list.csv")


@pytest.mark.parametrize("recipe", ["patients", "5x200-strict", "5x200-paper", "5x200-images"])
def test_a_list_is_the_test_set_whatever_its_labels(recipe):
    records = people([2] * 60)
    splits = split_records(listed(records, {"p3-0", "p4-1", "p4-0"}), DataConfig(split=recipe, test_list=LIST))
    assert [record.id for record in splits.test] == ["p3-0", "p4-0", "p4-1"]
    left = {"p3-1"} & (ids(splits.train) | ids(splits.val))
    assert left == (set() if recipe in DISJOINT else {"p3-1"})
    assert splits.recipe == recipe
    assert len(splits.val) == 6


def test_a_list_of_another_size_is_used_with_a_note():
    records = exclusive(300)
    names = [image for members in draw_5x200(records).values() for image in members]
    config = DataConfig(split="5x200-strict", test_list=LIST)
    assert split_records(listed(records, names), config).notes == ()
    assert (
        split_records(listed(records, names), config).digest
        == split_records(reading(records), replace(config, test_list=None)).digest
    )
    both = record("both", "x", {"Edema": 1.0, "Cardiomegaly": 1.0})
    assert split_records(listed([*records, both], [*names[1:], "both"]), config).notes == (
        "the list is not 200 images of each class: it has 1,000 (Atelectasis 199, Cardiomegaly 200, Consolidation 200, "
        "Edema 200, Pleural Effusion 200, several or none of them 1)",
    )


def test_unusable_images_of_a_list_are_counted_and_too_many_are_an_error():
    names = [f"p{i}-0" for i in range(20)] + ["gone", "odd"]
    whole = listed(people([2] * 60), names, rejected={"missing": ["gone", "other"], "view-LL": ["odd"]})
    config = DataConfig(split="5x200-paper", test_list=LIST)
    with pytest.raises(
        DataError, match=r"2 of 22 images of the test list cannot be used \(missing 1, view-LL 1\), such as"
    ):
        split_records(whole, config)
    splits = split_records(whole, replace(config, max_invalid=0.1))
    assert len(splits.test) == 20
    assert splits.notes[0] == "2 of 22 images of the test list cannot be used (missing 1, view-LL 1)"


def test_recipes_and_datasets_without_test_lists_are_refused():
    with pytest.raises(
        ConfigError, match=r"data\.split=given does not support data\.test_list; use one of patients, 5x200"
    ):
        split_records(listed(told(train=9), {"train1"}), DataConfig(split="given", test_list=LIST))
    with pytest.raises(ConfigError, match=r"data\.test_list does not apply to data\.dataset=t"):
        split_records(reading(people([1] * 9)), DataConfig(split="patients", test_list=LIST))


def test_a_patient_in_two_splits_is_refused_with_a_count_and_three_examples():
    shared = shared_patients({"train": people([1] * 5), "test": people([1] * 4)})
    with pytest.raises(DataError, match=r"4 patients are in two splits of the recipe 'mine', such as p0, p1, p2; "):
        raise_shared_patients(shared, "mine")


def test_a_recipe_that_shares_patients_against_its_guarantee_is_an_error(monkeypatch):
    monkeypatch.setitem(SPLITS, "patients", SPLITS["5x200-images"])
    with pytest.raises(DataError, match=r"patients? (is|are) in two splits"):
        split_records(reading(exclusive(300)), DataConfig())


def exams(images=3, patients=100):
    records = [
        Record(id=f"{patient}/{i}.dcm", image=Path("x"), labels={}, patient=f"{10_000_000 + patient}")
        for patient in range(patients)
        for i in range(1 + (patient % images))
    ]
    return Reading(dataset="embed", records=records, findings=())


def patients(records):
    return {record.patient for record in records}


def test_patients_are_cut_at_seventy_and_eighty_percent():
    splits = split_records(exams(), DataConfig(dataset="embed"))
    assert [len(patients(part)) for part in splits[:3]] == [70, 10, 20]
    assert sum(len(part) for part in splits[:3]) == len(exams().records)
    assert (splits.recipe, splits.shared_patients) == ("embed", 0)


def test_the_first_patients_in_hash_order_are_training_patients():
    splits = split_records(exams(), DataConfig(dataset="embed"))
    order = sorted(patients(exams().records), key=lambda patient: order_key("cleft-embed-v1", patient))
    assert (patients(splits.train), patients(splits.test)) == (set(order[:70]), set(order[80:]))


def test_the_embed_split_depends_on_patients_only():
    splits = split_records(exams(), DataConfig(dataset="embed"))
    assert ids_digest(patients(splits.test)) == "b64c09bcab8b7210"  # pragma: allowlist secret
    assert patients(split_records(exams(images=1), DataConfig(dataset="embed")).test) == patients(splits.test)


def test_another_recipe_can_be_selected():
    assert split_records(exams(), DataConfig(dataset="embed", split="patients")).recipe == "patients"


CONFIG = DataConfig(split="rsna-balanced", val_fraction=0)


def image(name, patient, sick):
    labels = {"No Pneumonia": float(not sick), "Pneumonia": float(sick)}
    return Record(id=name, image=Path(name), labels=labels, patient=patient)


def population(patients=60, sick=1, well=3):
    """Patients with the given numbers of positive and negative images."""
    return [
        image(f"{kind}{p}-{i}", str(p), kind == "sick")
        for p in range(patients)
        for kind, count in (("sick", sick), ("well", well))
        for i in range(count)
    ]


def split(records, config=CONFIG):
    return split_records(Reading(dataset="rsna", records=list(records), findings=()), config)


def positives(records):
    return sum(record.labels["Pneumonia"] == 1 for record in records)


def test_both_sets_have_all_positives_and_as_many_negatives():
    splits = split(population())
    assert positives(splits.test) == round(60 * 1769 / 6012) == 18
    assert positives(splits.train) == 60 - 18
    assert (len(splits.test), len(splits.train)) == (36, 84)
    assert splits.shared_patients == 0


def test_balanced_validation_is_drawn_from_training_by_patient():
    plain, held = split(population()), split(population(), DataConfig(split="rsna-balanced", val_fraction=0.25))
    assert held.test == plain.test
    assert {r.id for r in held.train} | {r.id for r in held.val} == {r.id for r in plain.train}
    assert len(held.val) == 21
    assert held.shared_patients == 0


def test_with_few_negatives_positives_are_drawn():
    splits = split(population(sick=3, well=1))
    assert positives(splits.test) * 2 == len(splits.test) > 0
    assert positives(splits.train) * 2 == len(splits.train) > 0


def test_a_patient_with_too_many_positives_for_the_test_set_is_skipped():
    crowd = [image(f"crowd{i}", "crowd", True) for i in range(40)]
    splits = split([*population(), *crowd])
    assert "crowd" not in {record.patient for record in splits.test}
    assert positives(splits.test) == round(100 * 1769 / 6012)


def test_patients_are_ordered_by_their_eight_digit_names():
    short = split(population())
    long = split([image(r.id, r.patient.zfill(8), r.labels["Pneumonia"] == 1) for r in population()])
    assert short.digest == long.digest


def test_images_without_such_labels_are_refused():
    records = [Record(id=str(i), image=Path(str(i)), labels={"Edema": 1.0}, patient=str(i)) for i in range(9)]
    with pytest.raises(DataError, match="needs images with Pneumonia and images without; found 0 and 0"):
        split(records)


def test_the_balanced_split_is_stable():
    splits = split(population(sick=2, well=3), DataConfig(split="rsna-balanced", val_fraction=0.2))
    assert splits.digest == "e5d0a3018559c1e4"  # pragma: allowlist secret
