from pathlib import Path

from cleft.config import DataConfig
from cleft.data.splits.draws import ids_digest, order_key
from cleft.data.splits.recipes import split_records
from cleft.types import Reading, Record


def read(images=3, patients=100):
    records = [
        Record(id=f"{patient}/{i}.dcm", image=Path("x"), labels={}, patient=f"{10_000_000 + patient}")
        for patient in range(patients)
        for i in range(1 + (patient % images))
    ]
    return Reading(dataset="embed", records=records, findings=())


def patients(records):
    return {record.patient for record in records}


def test_patients_are_cut_at_seventy_and_eighty_percent():
    splits = split_records(read(), DataConfig(dataset="embed"))
    assert [len(patients(part)) for part in splits[:3]] == [70, 10, 20]
    assert sum(len(part) for part in splits[:3]) == len(read().records)
    assert (splits.recipe, splits.shared_patients) == ("embed", 0)


def test_the_first_patients_in_the_order_of_their_hash_are_trained_on():
    splits = split_records(read(), DataConfig(dataset="embed"))
    order = sorted(patients(read().records), key=lambda patient: order_key("cleft-embed-v1", patient))
    assert (patients(splits.train), patients(splits.test)) == (set(order[:70]), set(order[80:]))


def test_the_cut_depends_on_patients_alone_and_is_this_one():
    splits = split_records(read(), DataConfig(dataset="embed"))
    assert ids_digest(patients(splits.test)) == "b64c09bcab8b7210"  # pragma: allowlist secret
    assert patients(split_records(read(images=1), DataConfig(dataset="embed")).test) == patients(splits.test)


def test_another_recipe_can_be_asked_for():
    assert split_records(read(), DataConfig(dataset="embed", split="patients")).recipe == "patients"
