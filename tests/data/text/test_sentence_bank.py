from collections import Counter
from pathlib import Path

import pytest

from cleft.data.text.captions import write_caption
from cleft.data.text.texts import TEMPLATES, bank_from_findings, draw_sentence, epoch_subset, read_bank
from cleft.errors import DataError
from cleft.types import Record

FINDINGS = ("Edema", "Pleural Effusion", "No Finding")


def record(labels):
    return Record(id="a", image=Path("a"), labels=labels, patient="a", caption=write_caption(labels))


@pytest.fixture
def bank(tmp_path):
    rows = ["mild edema,1,,0", "edema and effusion,1,1,0", "large effusion,,1,0", "small effusion,,1,", "clear,0,0,1"]
    (tmp_path / "bank.csv").write_text("\n".join(["sentence,edema,Pleural Effusion,No Finding", *rows, ",1,,"]))
    return read_bank(tmp_path / "bank.csv", FINDINGS)


def drawn(bank, labels, epochs=400):
    return Counter(bank.texts[draw_sentence(bank, labels, 0, epoch, 5)] for epoch in range(epochs))


def test_a_table_gives_the_findings_of_each_sentence(bank):
    assert bank.texts == ("mild edema", "edema and effusion", "large effusion", "small effusion", "clear")
    assert bank.labels(1) == {"Edema": 1, "Pleural Effusion": 1, "No Finding": 0}
    assert bank.normal.tolist() == [4]


def test_a_drawn_sentence_shares_a_finding_with_equal_probability(bank):
    both = drawn(bank, {"Edema": 1, "Pleural Effusion": 1})
    assert set(both) == {"mild edema", "edema and effusion", "large effusion", "small effusion"}
    assert all(70 < times < 130 for times in both.values())
    assert set(drawn(bank, {"Edema": 1, "No Finding": 0})) == {"mild edema", "edema and effusion"}


@pytest.mark.parametrize("labels", [{}, {"No Finding": 1}, {"Edema": 0}, {"Edema": -1}, {"Fracture": 1}])
def test_an_image_without_findings_of_the_bank_gets_a_normal_sentence(bank, labels):
    assert set(drawn(bank, labels, 20)) == {"clear"}


def test_the_drawn_sentence_is_a_function_of_seed_epoch_and_sample(bank):
    labels = {"Pleural Effusion": 1}
    first, again = ([draw_sentence(bank, labels, 3, 1, sample) for sample in range(50)] for _ in range(2))
    assert first == again
    assert first != [draw_sentence(bank, labels, 3, 2, sample) for sample in range(50)]
    assert first != [draw_sentence(bank, labels, 4, 1, sample) for sample in range(50)]


def test_templates_state_one_finding_each():
    bank = bank_from_findings(FINDINGS)
    assert len(bank.texts) == len(TEMPLATES) * 3
    assert (bank.present.sum(axis=1) == 1).all()
    assert {text.removesuffix("pleural effusion") for text in drawn(bank, {"Pleural Effusion": 1})} == {
        template.format("") for template in TEMPLATES
    }


def test_an_epoch_uses_a_limited_new_subset_per_finding(bank):
    pools = [epoch_subset(bank, 0, epoch, most=1) for epoch in range(30)]
    assert all("clear" in pool.texts and len(pool.texts) <= 4 for pool in pools)
    assert all(pool.present[:, :2].any(axis=0).all() for pool in pools)
    assert len({pool.texts for pool in pools}) > 1
    assert pools[3].texts == epoch_subset(bank, 0, 3, most=1).texts
    assert epoch_subset(bank, 0, 0).texts == bank.texts


def test_a_bank_without_a_normal_sentence_is_refused(tmp_path):
    (tmp_path / "bank.csv").write_text("text,Edema\nmild edema,1\n")
    with pytest.raises(DataError, match=r"bank\.csv: none of 1 sentence states that there is no finding"):
        read_bank(tmp_path / "bank.csv", FINDINGS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "words,Edema\nmild edema,1\n",
            r"no column 'sentence', 'text', 'report', 'caption'; the columns are \['words', 'Edema'\]",
        ),
        ("sentence,Mass\na mass,1\n", "no column named like a finding"),
        ("sentence,Edema\nmild edema,yes\n", "column 'Edema' holds 'yes'"),
    ],
)
def test_a_table_without_sentences_or_findings_is_refused(tmp_path, text, message):
    (tmp_path / "bank.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_bank(tmp_path / "bank.csv", FINDINGS)
