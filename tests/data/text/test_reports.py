from collections import Counter
from pathlib import Path

import pytest

from cleft.data.text.reports import (
    READ_REPORT,
    change_words,
    choose_sections,
    drop_unreported,
    read_as_gloria,
    read_as_medclip,
    read_as_mgca,
    read_sentences,
    report_notes,
    split_sections,
)
from cleft.data.text.texts import draw_text
from cleft.errors import DataError
from cleft.types import Reading, Record

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___ year old with cough.
 
 FINDINGS: 
 
 Lungs are clear. Heart size is
 normal.
 
 IMPRESSION: 
 
 No acute process.
"""


def test_sections_begin_with_a_heading_at_the_beginning_of_a_line():
    assert split_sections(REPORT) == {
        "examination": "CHEST (PA AND LAT)",
        "indication": "___ year old with cough.",
        "findings": "Lungs are clear. Heart size is normal.",
        "impression": "No acute process.",
    }


@pytest.mark.parametrize(
    ("heading", "section"),
    [
        ("FINDINGS", "findings"),
        ("Findings", "findings"),
        ("FINDNGS", "findings"),
        ("IMPRESSSION", "impression"),
        ("CONCLUSION", "impression"),
        ("FINDINGS AND IMPRESSION", "impression"),
        ("FINDINGS/IMPRESSION", "impression"),
        ("PA AND LATERAL VIEWS OF THE CHEST", "findings"),
        ("PORTABLE AP CHEST", "findings"),
        ("COMPARISONS", "comparison"),
        ("REASON FOR EXAM", "indication"),
        ("CLINICAL HISTORY", "history"),
        ("WETREAD", "wet read"),
        ("NOTIFICATION", "notification"),
    ],
)
def test_spelling_variants_of_a_heading_give_the_same_section(heading, section):
    text = f" FINDINGS:  Clear.\n IMPRESSION:  Normal.\n {heading}:  Said here."
    assert split_sections(text)[section] == "Said here."


def test_of_sections_with_one_name_the_last_with_text_is_used():
    text = " FINDINGS:\n First.\n\n FINDINGS:\n Second.\n\n FINDINGS:\n\n IMPRESSION: Normal."
    assert split_sections(text) == {"findings": "Second.", "impression": "Normal."}


def test_headings_may_share_a_line_and_a_colon_alone_is_not_a_heading():
    text = "HISTORY: Cough. FINDINGS: Clear lungs: no effusion. IMPRESSION: Normal."
    assert split_sections(text) == {
        "history": "Cough.",
        "findings": "Clear lungs: no effusion.",
        "impression": "Normal.",
    }


def test_page_breaks_are_removed_from_a_report():
    text = " FINDINGS: Small (Over)\n\n   FINAL REPORT\n PATIENT PAGE: 2\n (Cont)\n effusion."
    assert split_sections(text) == {"findings": "Small effusion."}


@pytest.mark.parametrize(
    ("text", "last"),
    [
        (" CHEST RADIOGRAPHS\n\n HISTORY:  Fall.\n \n Clear lungs.\n \n No change.", "Clear lungs. No change."),
        (" COMPARISON:  Last week, unchanged effusion.", "Last week, unchanged effusion."),
        ("FINAL REPORT\n Clear lungs.", "Clear lungs."),
        (" HISTORY:  Fall.", None),
        ("", None),
    ],
)
def test_without_findings_and_impression_the_last_paragraph_is_used(text, last):
    sections = split_sections(text)
    assert sections.get("last_paragraph") == last
    assert {choose_sections(sections, choice) for choice in ("impression", "findings", "both", "as-written")} == {last}


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ("impression", "No acute process."),
        ("findings", "Lungs are clear. Heart size is normal."),
        ("both", "No acute process. Lungs are clear. Heart size is normal."),
        ("as-written", "Lungs are clear. Heart size is normal. No acute process."),
        (
            "whole",
            "CHEST (PA AND LAT) ___ year old with cough. Lungs are clear. Heart size is normal. No acute process.",
        ),
    ],
)
def test_a_choice_selects_sections_and_their_order(choice, text):
    assert choose_sections(split_sections(REPORT), choice) == text


def test_a_missing_section_has_no_text():
    assert choose_sections({"findings": "Clear."}, "impression") is None
    assert choose_sections({"findings": "Clear.", "impression": " "}, "both") == "Clear."
    assert choose_sections({}, "whole") is None


def test_report_notes_quote_no_report():
    assert report_notes(None) == []
    assert report_notes(["Seen ___ ago.", "Seen ___ ago.", "XXXX lungs.", None]) == [
        "3 of 4 images have a report, 2 of them distinct",
        "2 distinct reports have placeholders of de-identification",
    ]


SENTENCES = "Impression: 1. Small left effusion, 3.5 cm.  2. No pneumothorax.\nStable. Épanchement à gauche."


def record(name, report):
    return Record(id=name, image=Path(name), labels={}, patient=name, report=report)


def reading(*reports):
    return Reading(dataset="mimic", records=[record(f"{i}", text) for i, text in enumerate(reports)], findings=())


def test_sentences_keep_decimals_and_letters_of_every_script():
    assert read_sentences(SENTENCES) == ("small left effusion 3 5 cm", "no pneumothorax", "épanchement à gauche")


def test_gloria_splits_decimals_and_drops_other_characters_than_ascii():
    assert read_as_gloria(SENTENCES.replace("Small left", "Left")) == (
        "left effusion",
        "5 cm",
        "no pneumothorax",
        "panchement gauche",
    )


def test_glorias_limit_applies_only_at_exactly_five_words():
    assert read_as_gloria("a b c. d e. f g.") == ("a b c", "d e")
    assert read_as_gloria(SENTENCES) == ("small left effusion", "5 cm")
    assert read_as_gloria("a b c. d e f. g h.") == ("a b c", "d e f", "g h")


def test_mgca_joins_sentences_and_drops_reports_of_fewer_than_three_words():
    assert read_as_mgca(SENTENCES) == ("small left effusion 5 cm no pneumothorax panchement gauche",)
    assert read_as_mgca("No effusion. Stable.") == ()


def test_medclip_keeps_punctuation_and_sentences_of_five_tokens():
    assert read_as_medclip(SENTENCES) == ("small left effusion , 3 . 5 cm",)
    assert read_as_medclip("No pneumothorax is seen. Heart is at the upper limit.") == (
        "heart is at the upper limit .",
    )


@pytest.mark.parametrize("way", READ_REPORT)
@pytest.mark.parametrize("report", ["", " ", "Normal.", "___", "1.", "\n\n"])
def test_a_short_report_has_no_text_in_any_format(way, report):
    assert READ_REPORT[way](report) == ()


def test_placeholders_of_de_identification_are_not_words():
    assert READ_REPORT["sentences"]("XXXX XXXX. ___ ___. XXXX effusion. No XXXX effusion.") == ("no xxxx effusion",)
    assert READ_REPORT["whole"]("XXXX ___.") == ()


@pytest.mark.parametrize("way", READ_REPORT)
def test_sections_may_break_lines_anywhere(way):
    text = "The heart is not enlarged today. Lungs are clear on both sides."
    assert READ_REPORT[way](text.replace(" ", "\n ")) == READ_REPORT[way](text) != ()


def test_the_drawn_sentence_depends_on_seed_epoch_and_sample_only():
    texts = ("one", "two", "three")
    drawn = [draw_text(texts, 0, epoch, 7) for epoch in range(300)]
    assert drawn == [draw_text(texts, 0, epoch, 7) for epoch in range(300)]
    assert min(Counter(drawn).values()) > 70
    assert drawn != [draw_text(texts, 0, epoch, 8) for epoch in range(300)]
    assert drawn != [draw_text(texts, 1, epoch, 7) for epoch in range(300)]


def test_images_without_a_readable_report_are_left_out_and_counted():
    kept = drop_unreported(reading("No effusion.", None, "Normal.", "No effusion. Clear lungs."), "sentences")
    assert [r.id for r in kept.records] == ["0", "3"]
    assert kept.rejected == {"no-report": ["1"], "no-text": ["2"]}


def test_a_dataset_without_reports_is_refused():
    with pytest.raises(DataError, match=r"none of 2 images of mimic has a report that can be read; store the reports"):
        drop_unreported(reading(None, None), "whole")
    with pytest.raises(DataError, match=r"can be read; 2 have one that is too short; store"):
        drop_unreported(reading("Normal.", "Stable", None), "mgca")


def test_word_augmentation_changes_few_words():
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


def test_augmentation_keeps_at_least_one_word():
    assert change_words("effusion", 0, 0, 0) == "effusion"
    assert all(change_words("small effusion", 0, epoch, 0, share=1.0) for epoch in range(40))
