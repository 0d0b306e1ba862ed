from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleft.config import DataConfig
from cleft.data.readers.chexpert import CAPTION_ORDER, FINDINGS
from cleft.data.text.captions import CHEST_PREFIX, add_captions, clean_text, write_caption
from cleft.errors import DataError
from cleft.types import Reading, Record


def record(name, labels, caption=None, uncertain=()):
    return Record(id=name, image=Path(name), labels=labels, patient=name, caption=caption, uncertain=uncertain)


def captions(records, **settings):
    reading = Reading(dataset="t", records=records, findings=FINDINGS, rejected={"missing": ["x"]})
    return add_captions(reading, DataConfig(**settings))


def test_findings_are_in_the_authors_order():
    labels = dict.fromkeys(["No Finding", "Fracture", "Edema", "Cardiomegaly"], 1.0)
    assert write_caption(labels) == f"{CHEST_PREFIX} cardiomegaly edema fracture no finding"


def test_findings_of_other_tables_follow_in_their_order():
    assert (
        write_caption({"Nodule": 1, "Gas": 1, "No finding": 1, "edema": 1})
        == f"{CHEST_PREFIX} edema nodule gas no finding"
    )


def test_absent_findings_are_named_if_set_and_uncertain_ones_never():
    labels = {"Edema": 1.0, "Fracture": 0.0, "Pneumonia": 0.0, "Pneumothorax": -1.0, "No Finding": 0.0}
    assert write_caption(labels) == f"{CHEST_PREFIX} edema"
    said = write_caption(labels, negatives=True, uncertain=("Pneumonia",))
    assert said == f"{CHEST_PREFIX} edema but this image has no fracture"


def test_without_absent_findings_none_are_named():
    assert write_caption({"Edema": 1.0}, negatives=True) == f"{CHEST_PREFIX} edema"


@pytest.mark.parametrize(("policy", "expected"), [("keep", CHEST_PREFIX), ("no-finding", f"{CHEST_PREFIX} no finding")])
def test_an_image_without_a_finding_is_kept_by_policy(policy, expected):
    (kept,) = captions([record("a", {"Edema": 0.0})], empty_caption=policy).records
    assert kept.caption == expected


def test_an_image_without_a_finding_is_left_out_by_policy_and_counted():
    reading = captions([record("a", {"Edema": 0.0}), record("b", {"Edema": 1.0})], empty_caption="drop")
    assert [kept.id for kept in reading.records] == ["b"]
    assert reading.rejected == {"missing": ["x"], "empty-caption": ["a"]}


def test_leaving_out_every_image_is_an_error():
    with pytest.raises(DataError, match=r"none of 1 image has a present finding"):
        captions([record("a", {})], empty_caption="drop")


def test_a_sentence_of_the_table_is_cleaned_and_kept():
    reading = captions(
        [record("a", {"Edema": 1.0}, "No. 2: LEFT-sided\nEffusion."), record("b", {"Edema": 1.0}, " . ")]
    )
    assert [kept.caption for kept in reading.records] == ["no 2 left sided effusion", f"{CHEST_PREFIX} edema"]


def test_a_report_is_the_caption_only_without_labels_and_caption():
    reported = [
        replace(record("a", {}), report="Clear lungs, 3.5 cm."),
        replace(record("b", {"Edema": 0.0}), report="Clear lungs."),
        replace(record("c", {}, "mine"), report="Clear lungs."),
    ]
    assert [kept.caption for kept in captions(reported).records] == ["clear lungs 3 5 cm", CHEST_PREFIX, "mine"]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("This is a chest X ray of a patient with ", CHEST_PREFIX),
        ("1. Edema. 2. No fracture.", "edema no fracture"),
        ("2. a\n3. b. 4. c 5.5 d", "a b c 5 5 d"),
        ("size 3.5 cm", "size 3 5 cm"),
        ("a\ufffd\ufffdb", "a b"),
        ("Épanchement pleural", "épanchement pleural"),
        ("E\u0301panchement", "épanchement"),
        ("", ""),
    ],
)
def test_cleaning_keeps_words_only(text, cleaned):
    assert clean_text(text) == cleaned


LABELS = st.dictionaries(st.sampled_from(FINDINGS), st.sampled_from([1.0, 0.0, -1.0]))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(LABELS)
def test_every_present_finding_is_named_once_and_no_other(labels):
    rest = write_caption(labels).removeprefix(CHEST_PREFIX).strip()
    expected = [name.lower() for name in CAPTION_ORDER if labels.get(name) == 1]
    assert rest == " ".join(expected)
