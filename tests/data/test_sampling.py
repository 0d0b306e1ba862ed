"""Batches that repeat no patient where that is possible, and what is done where it is not."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import array, compute, csv

from cleft.data.sampling import Stream, distinct_order, epoch_order, group_rows, philox_generator, repeat_note
from cleft.types import Record


def test_draws_are_the_same_on_every_machine_and_version():
    draws = philox_generator(7, Stream.AUGMENT, 3, 11).random(3)
    assert [draw.hex() for draw in draws.tolist()] == [
        "0x1.dc16bd4b6755ep-2",
        "0x1.5eb85c2f1ff01p-1",
        "0x1.2277f47b59791p-1",
    ]


def test_positions_streams_and_seeds_are_independent():
    at = [(0, Stream.ORDER, 0, 0), (1, Stream.ORDER, 0, 0), (0, Stream.AUGMENT, 0, 0), (0, Stream.ORDER, 1, 0)]
    assert len({philox_generator(*where).random() for where in [*at, (0, Stream.ORDER, 0, 1)]}) == 5


def test_a_negative_seed_is_valid():
    assert philox_generator(-1, Stream.ORDER, 0).random() == philox_generator(2**64 - 1, Stream.ORDER, 0).random()


def batches_of(order, batch_size):
    whole = len(order) // batch_size
    return order[: whole * batch_size].reshape(whole, batch_size)


def record(number, patient="p", caption="c"):
    return Record(id=str(number), image=None, labels={}, patient=patient, caption=caption)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.data())
def test_groups_are_spread_evenly_and_every_row_occurs_once(owners, data):
    groups = np.array(owners, dtype=np.int64)
    size = data.draw(st.integers(1, len(groups)))
    order = distinct_order(groups, size, seed=data.draw(st.integers(0, 9)), epoch=data.draw(st.integers(0, 9)))
    assert sorted(order.tolist()) == list(range(len(groups)))
    drawn = groups[batches_of(order, size)]
    for group in np.unique(drawn):
        counts = (drawn == group).sum(axis=1)
        least, rest = divmod(counts.sum(), len(drawn))
        assert set(counts.tolist()) <= {least, least + bool(rest)}


def test_an_order_is_a_function_of_seed_and_epoch():
    groups = np.repeat(np.arange(50), 4)
    order = distinct_order(groups, 20, seed=1, epoch=2)
    assert np.array_equal(order, distinct_order(groups, 20, seed=1, epoch=2))
    for other in (distinct_order(groups, 20, seed=2, epoch=2), distinct_order(groups, 20, seed=1, epoch=3)):
        assert not np.array_equal(order, other)
    assert distinct_order(np.arange(8) // 2, 4, seed=0, epoch=0).tolist() == [7, 4, 2, 1, 6, 0, 3, 5]


def test_combinations_and_dropped_rows_are_random():
    groups = np.repeat(np.arange(10), 2)
    met, left = np.zeros((20, 20)), np.zeros(20)
    for epoch in range(1_000):
        order = distinct_order(groups, 6, seed=0, epoch=epoch)
        left[order[18:]] += 1
        for batch in batches_of(order, 6):
            met[np.ix_(batch, batch)] += 1
    assert np.all(np.abs(left - 100) < 50)  # Five standard deviations.
    others = met[groups[:, None] != groups]
    assert others.min() > 0.75 * others.mean()
    assert others.max() < 1.25 * others.mean()
    assert met[groups[:, None] == groups].sum() == met.trace()


def test_rows_are_numbered_by_patient_or_caption():
    records = [record(0, "a", "x"), record(1, "b", "y"), record(2, "a", "y")]
    assert group_rows(records, "none") is None
    assert group_rows(records, "patients").tolist() == [0, 1, 0]
    assert group_rows(records, "captions").tolist() == [0, 1, 1]


def test_unavoidable_repetitions_are_reported():
    records = [record(number, "ab"[number % 2], f"caption {number}") for number in range(12)]
    assert repeat_note(records, "patients", 4) == (
        "train.unique_in_batch=patients: both patients have more images than an epoch has batches (3; the most "
        "frequent has 6), so about 6 images per epoch repeat one in their batch, spread as evenly as possible"
    )
    assert repeat_note(records, "captions", 4) == ""
    assert repeat_note(records, "none", 4) == ""


@pytest.fixture
def patients(shared):
    """Patient of each AP or PA image of CheXpert's real table."""
    options = csv.ConvertOptions(include_columns=["Path", "AP/PA"], column_types={"Path": "string", "AP/PA": "string"})
    table = csv.read_csv(shared / "data" / "tables" / "chexpert_train.csv.gz", convert_options=options)
    kept = table.filter(compute.is_in(table["AP/PA"], value_set=array(["AP", "PA"])))
    return [path.split("/")[2] for path in kept["Path"].to_pylist()]


def test_no_batch_of_the_real_chexpert_repeats_a_patient(patients):
    records = [record(number, patient) for number, patient in enumerate(patients)]
    groups = group_rows(records, "patients")
    assert len(groups) == 191_010
    start = time.process_time()
    order = distinct_order(groups, 72, seed=0, epoch=0)
    assert time.process_time() - start < 1  # 0.05 s seen.
    assert repeat_note(records, "patients", 72) == ""

    def repeats(order):
        drawn = np.sort(groups[batches_of(order, 72)], axis=1)
        return int((drawn[:, 1:] == drawn[:, :-1]).sum())

    assert repeats(order) == 0
    assert repeats(epoch_order(len(groups), 0, 0)) > 200
