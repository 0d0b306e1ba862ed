"""Only words of many patients, and our own, are left to learn a vocabulary from."""

import numpy as np
import pytest

from cleft.config import DataConfig
from cleft.data.text.texts import Texts, finding_sentences, report_format, shared_words
from cleft.errors import ConfigError, DataError
from cleft.models.tokenizer import train_tokenizer
from cleft.types import Record

FINDINGS = ("Edema", "Pleural Effusion")
REPORT = "Edema is seen. Small pleural effusion on the left. No fracture."


def record(number, edema=0.0, effusion=0.0, **more):
    labels = {"Edema": edema, "Pleural Effusion": effusion}
    return Record(id=f"{number}", image=f"{number}.png", labels=labels, patient=f"p{number}", **more)


def texts_of(records, seed=0, *, still=False, **options):
    return Texts(records, FINDINGS, DataConfig(**options), seed, fixed=still)


def test_captions_are_the_same_in_every_epoch():
    texts = texts_of([record(0, caption="an edema"), record(1, caption="a chest")])
    assert [texts.sample(epoch, 1).text for epoch in range(3)] == ["a chest"] * 3
    assert texts.all_texts() == ["an edema", "a chest"]
    assert texts.sample(0, 0).labels is texts.sample(0, 0).reworded is None


def test_a_caption_template_is_drawn_for_each_epoch():
    opening = "this is a chest x ray of a patient with"
    templates = ("this is a chest x ray of a patient with {}", "The film shows {}.", "{} can be seen")
    captions = [f"{opening} edema", opening, "a sentence of the table"]
    texts = texts_of(
        [record(number, caption=caption) for number, caption in enumerate(captions)], caption_templates=templates
    )
    said = ["this is a chest x ray of a patient with edema", "the film shows edema", "edema can be seen"]
    assert {texts.sample(epoch, 0).text for epoch in range(30)} == set(said)
    assert texts.all_texts() == [*said, *captions[1:]]
    assert {texts.sample(epoch, 1).text for epoch in range(30)} == {opening}


def test_a_template_without_a_place_for_findings_is_refused():
    with pytest.raises(ConfigError, match=r"holds 'an edema'; write \{\} once"):
        DataConfig(caption_templates=("{} here", "an edema"))


def test_a_finding_sentence_is_drawn_for_each_epoch():
    texts = texts_of([record(0, 1, 1, caption="x"), record(1, caption="x")], texts="findings")
    assert {texts.sample(epoch, 0).text for epoch in range(20)} == {"there is edema", "there is pleural effusion"}
    assert {texts.sample(epoch, 1).text for epoch in range(20)} == {"there is no finding"}
    assert finding_sentences({"Edema": -1, "Fracture": 1}) == ("there is fracture",)


def test_a_draw_is_a_function_of_seed_epoch_and_row():
    records = [record(number, 1, 1, caption="x") for number in range(30)]
    drawn = [[texts_of(records, seed, texts="findings").sample(3, row).text for row in range(30)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_validation_uses_the_texts_of_the_first_epoch():
    records = [record(number, 1, 1, caption="x") for number in range(30)]
    still, moving = (texts_of(records, still=way, texts="findings", augment_texts=True) for way in (True, False))
    first = [moving.sample(0, row).text for row in range(30)]
    assert (
        [still.sample(7, row).text for row in range(30)] == first != [moving.sample(7, row).text for row in range(30)]
    )
    assert still.sample(0, 0).reworded is None


def test_a_subset_has_the_texts_of_its_rows():
    records = [record(number, 1, 1, caption="x") for number in range(30)]
    texts = texts_of(records, texts="findings")
    part = texts.subset([7, 20, 3]).subset([2, 0])
    assert [part.sample(5, row).text for row in (0, 1)] == [texts.sample(5, row).text for row in (3, 7)]


def test_sentences_of_a_report_are_drawn_and_a_full_report_is_not():
    sentences = texts_of([record(0, report=REPORT)], texts="sentences")
    assert {sentences.sample(epoch, 0).text for epoch in range(30)} == set(sentences.all_texts())
    assert len(sentences.all_texts()) == 3
    assert texts_of([record(0, report=REPORT)], texts="whole").all_texts() == [REPORT]
    assert (report_format(DataConfig(texts="mgca")), report_format(DataConfig(texts="findings"))) == ("mgca", None)


def test_a_record_without_text_is_refused():
    with pytest.raises(DataError, match=r"1 has no text for data\.texts=sentences"):
        texts_of([record(0, report=REPORT), record(1, report="Stable.")], texts="sentences")


def test_a_sentence_of_the_bank_shares_a_finding_and_has_labels():
    texts = texts_of([record(0, 1, caption="x"), record(1, caption="x")], texts="bank")
    edema, normal = ([texts.sample(epoch, row) for epoch in range(10)] for row in (0, 1))
    assert all("edema" in read.text and read.labels.tolist() == [1, 0] for read in edema)
    assert all("no finding" in read.text and read.labels.tolist() == [0, 0] for read in normal)
    assert len({read.text for read in edema}) > 1
    assert {read.text for read in edema} <= set(texts.all_texts())


def test_a_users_bank_is_read_from_its_table(tmp_path):
    (tmp_path / "bank.csv").write_text(
        "sentence,Edema,Pleural Effusion,No Finding\nwet lungs,1,0,0\nwet and wide,1,1,0\nall clear,0,0,1\n"
    )
    texts = texts_of(
        [record(0, effusion=1), record(1)], texts="bank", sentence_bank=tmp_path / "bank.csv", augment_texts=True
    )
    read = texts.sample(0, 0)
    assert (read.text, read.labels.tolist()) == ("wet and wide", [1, 1])
    assert texts.sample(0, 1).text == "all clear"
    assert read.labels.dtype == np.float32
    assert {texts.sample(epoch, 0).reworded for epoch in range(40)} > {"wet and wide"}


CAPTIONS = (
    "this is a chest x ray of a patient with",
    "this is a chest x ray of a patient with edema",
    "this is a chest x ray of a patient with edema pleural effusion",
)


def test_a_tokenizer_is_trained_on_all_captions_from_labels():
    records = [record(number, number % 2, caption=caption) for number, caption in enumerate(CAPTIONS)]
    for options in ({}, {"texts": "findings"}, {"texts": "bank"}, {"caption_templates": ("a chest that shows {}",)}):
        texts = texts_of(records, **options)
        assert texts.tokenizer_corpus().parts == list(dict.fromkeys(texts.all_texts())), options
        assert texts.tokenizer_corpus().left_out == 0


def test_a_tokenizer_is_not_trained_on_words_of_few_patients(tmp_path):
    records = [record(number, report=f"Clear lungs. Told {'Ada' if number < 4 else 'nobody'}.") for number in range(9)]
    for way, parts in {
        "whole": ["Clear lungs. Told ", ".", "Clear lungs. Told nobody."],
        "sentences": ["clear lungs", "told ", "told nobody"],
    }.items():
        learnable = texts_of(records, texts=way).tokenizer_corpus()
        assert (learnable.parts, learnable.left_out) == (parts, 1)
    (tmp_path / "PHANTOMS.json").write_text("{}")
    drawn = texts_of(records, texts="whole", root=tmp_path)
    assert (drawn.tokenizer_corpus().parts, drawn.tokenizer_corpus().left_out) == (
        list(dict.fromkeys(drawn.all_texts())),
        0,
    )


def test_a_sentence_of_a_bank_counts_as_a_patient(tmp_path):
    lines = [f"wet lungs {'by Ada ' * (number < 4)}{number},1,0,0" for number in range(6)]
    (tmp_path / "bank.csv").write_text("\n".join(["sentence,Edema,Pleural Effusion,No Finding", *lines, "clear,0,0,1"]))
    learnable = texts_of([record(0, 1)], texts="bank", sentence_bank=tmp_path / "bank.csv").tokenizer_corpus()
    assert learnable.parts == ["wet lungs "]


def told(*texts, patients="abcde"):
    return [(patient, text) for patient in patients for text in texts]


def test_a_word_needs_as_many_patients_and_not_as_many_texts():
    many = told("clear lungs", patients="abcde")
    few = told("Ada was seen", "Ada came back", "Ada left", "Ada rose", "Ada sat", patients="a")
    found = shared_words([*many, *few], [], min_patients=5)
    assert found.parts == ["clear lungs"]
    assert (found.words, found.left_out) == (10, 8)
    assert shared_words([*many, *few], [], min_patients=1).parts == list(
        dict.fromkeys(text for _, text in [*many, *few])
    )


def test_a_patient_counts_once_for_one_or_several_texts():
    said = [("a", "one Ada"), ("b", "one Ada"), ("c", "Ada two")]
    assert shared_words(said, [], min_patients=3).parts == [" Ada", "Ada "]


def test_words_of_templates_are_always_kept():
    found = shared_words([("a", "there is a hernia of Bo")], ["Hernia", "hernia", "there is"])
    assert found.parts == ["there is ", " hernia "]


def test_case_distinguishes_a_name_from_a_word():
    found = shared_words([*told("the long lung"), ("f", "the Long report")], [])
    assert found.parts == ["the long lung", "the "]


def test_without_shared_words_the_templates_remain():
    assert shared_words([("a", "Ada"), ("b", "Bo")], ["this is"]).parts == ["this is"]
    assert shared_words([], ["this is"]).parts == ["this is"]


@pytest.mark.parametrize(
    "name", ["Quartermaine", "O'Quartermaine", "Éloïse", "Quarter-Maine", "МАРИЯ", "QM12345", "12345678", "'Squire"]
)
@pytest.mark.parametrize("around", ["seen by {}", "by Dr.{}'s hand", "{}", "({})", "by_{}_", "by\n{}\n", "1{}1"])
@pytest.mark.parametrize("causal", [True, False])
def test_no_token_of_a_trained_tokenizer_is_a_rare_name(name, around, causal):
    shared = told("seen by Dr. hand's", "1 of 2 (by)")
    said = [*shared, *((patient, around.format(name)) for patient in "abcd" for _ in range(9))]
    tokenizer, naive = (
        train_tokenizer(texts, causal=causal) for texts in (shared_words(said, []).parts, [text for _, text in said])
    )
    assert tokenizer.tokenize(" seen") == ["Ġseen"] or tokenizer.tokenize("seen") == ["seen"]
    assert max(map(len, naive.tokenize(name))) > 3
    assert max(map(len, tokenizer.tokenize(name))) <= 2
    assert tokenizer.convert_tokens_to_string(tokenizer.tokenize(name)) == name
