from collections import Counter
from pathlib import Path

import pytest

from cleft.data.reports import (
    READ_REPORT,
    change_words,
    draw_text,
    keep_reported,
    read_as_gloria,
    read_as_medclip,
    read_as_mgca,
    read_sentences,
)
from cleft.errors import DataError
from cleft.types import Reading, Record

REPORT = "Impression: 1. Small left effusion, 3.5 cm.  2. No pneumothorax.\nStable. Épanchement à gauche."


def record(name, report):
    return Record(id=name, image=Path(name), labels={}, patient=name, report=report)


def reading(*reports):
    return Reading(dataset="mimic", records=[record(f"{i}", text) for i, text in enumerate(reports)], findings=())


def test_the_sound_way_keeps_decimals_and_letters_of_every_script():
    assert read_sentences(REPORT) == ("small left effusion 3 5 cm", "no pneumothorax", "épanchement à gauche")


def test_gloria_cuts_decimals_and_drops_what_is_not_ascii():
    assert read_as_gloria(REPORT.replace("Small left", "Left")) == (
        "left effusion",
        "5 cm",
        "no pneumothorax",
        "panchement gauche",
    )


def test_glorias_cap_cuts_only_where_sentences_sum_up_to_exactly_five_words():
    assert read_as_gloria("a b c. d e. f g.") == ("a b c", "d e")
    assert read_as_gloria(REPORT) == ("small left effusion", "5 cm")
    assert read_as_gloria("a b c. d e f. g h.") == ("a b c", "d e f", "g h")


def test_mgca_joins_all_sentences_and_leaves_out_reports_of_fewer_than_three_words():
    assert read_as_mgca(REPORT) == ("small left effusion 5 cm no pneumothorax panchement gauche",)
    assert read_as_mgca("No effusion. Stable.") == ()


def test_medclip_keeps_marks_as_tokens_and_sentences_of_five_of_them():
    assert read_as_medclip(REPORT) == ("small left effusion , 3 . 5 cm",)
    assert read_as_medclip("No pneumothorax is seen. Heart is at the upper limit.") == (
        "heart is at the upper limit .",
    )


@pytest.mark.parametrize("way", READ_REPORT)
@pytest.mark.parametrize("report", ["", " ", "Normal.", "___", "1.", "\n\n"])
def test_a_report_that_says_too_little_has_no_text_in_any_way(way, report):
    assert READ_REPORT[way](report) == ()


def test_what_de_identification_left_is_no_word():
    assert READ_REPORT["sentences"]("XXXX XXXX. ___ ___. XXXX effusion. No XXXX effusion.") == ("no xxxx effusion",)
    assert READ_REPORT["whole"]("XXXX ___.") == ()


@pytest.mark.parametrize("way", READ_REPORT)
def test_sections_may_break_lines_anywhere(way):
    text = "The heart is not enlarged today. Lungs are clear on both sides."
    assert READ_REPORT[way](text.replace(" ", "\n ")) == READ_REPORT[way](text) != ()


def test_the_drawn_sentence_depends_on_seed_epoch_and_sample_alone():
    texts = ("one", "two", "three")
    drawn = [draw_text(texts, 0, epoch, 7) for epoch in range(300)]
    assert drawn == [draw_text(texts, 0, epoch, 7) for epoch in range(300)]
    assert min(Counter(drawn).values()) > 70
    assert drawn != [draw_text(texts, 0, epoch, 8) for epoch in range(300)]
    assert drawn != [draw_text(texts, 1, epoch, 7) for epoch in range(300)]


def test_images_without_a_readable_report_are_left_out_and_counted():
    kept = keep_reported(reading("No effusion.", None, "Normal.", "No effusion. Clear lungs."), "sentences")
    assert [r.id for r in kept.records] == ["0", "3"]
    assert kept.rejected == {"no-report": ["1"], "no-text": ["2"]}


def test_a_dataset_without_reports_is_refused():
    with pytest.raises(DataError, match=r"none of 2 images of mimic has a report that can be read; put the reports"):
        keep_reported(reading(None, None), "whole")
    with pytest.raises(DataError, match=r"can be read; 2 have one of too few words; put"):
        keep_reported(reading("Normal.", "Stable", None), "mgca")


def test_changed_words_are_the_same_words_but_few():
    text = "there is a small effusion on the left side of the chest"
    changed = [change_words(text, 0, epoch, 3) for epoch in range(60)]
    assert changed == [change_words(text, 0, epoch, 3) for epoch in range(60)]
    assert len(set(changed)) > 20
    words = Counter(text.split())
    assert all(Counter(other.split()) <= words and other for other in changed)
    swapped = [other for other in changed if len(other.split()) == 12 and other != text]
    assert swapped
    assert all(sum(a != b for a, b in zip(other.split(), text.split(), strict=True)) <= 2 for other in swapped)
    assert any(len(other.split()) < 12 for other in changed)


def test_a_synonym_is_drawn_only_where_a_list_is_given():
    text = "small effusion"
    given = {change_words(text, 0, epoch, 0, synonyms={"small": ["tiny"]}) for epoch in range(80)}
    assert "tiny effusion" in given
    assert {word for other in given for word in other.split()} == {"tiny", "small", "effusion"}
    assert not any("tiny" in change_words(text, 0, epoch, 0) for epoch in range(80))


def test_one_word_stays_and_deletion_leaves_at_least_one():
    assert change_words("effusion", 0, 0, 0) == "effusion"
    assert all(change_words("small effusion", 0, epoch, 0, share=1.0) for epoch in range(40))
