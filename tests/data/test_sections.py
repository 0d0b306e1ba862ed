import pytest

from cleft.data.sections import choose_sections, report_notes, split_sections

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
def test_headings_mean_a_section_however_they_are_spelled(heading, section):
    text = f" FINDINGS:  Clear.\n IMPRESSION:  Normal.\n {heading}:  Said here."
    assert split_sections(text)[section] == "Said here."


def test_of_several_sections_of_a_name_the_last_with_any_text_counts():
    text = " FINDINGS:\n First.\n\n FINDINGS:\n Second.\n\n FINDINGS:\n\n IMPRESSION: Normal."
    assert split_sections(text) == {"findings": "Second.", "impression": "Normal."}


def test_headings_may_stand_in_one_line_and_a_colon_alone_is_none():
    text = "HISTORY: Cough. FINDINGS: Clear lungs: no effusion. IMPRESSION: Normal."
    assert split_sections(text) == {
        "history": "Cough.",
        "findings": "Clear lungs: no effusion.",
        "impression": "Normal.",
    }


def test_a_page_break_within_a_report_is_no_part_of_it():
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
def test_without_findings_and_impression_the_last_paragraph_counts(text, last):
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
def test_a_choice_says_which_sections_are_read_in_which_order(choice, text):
    assert choose_sections(split_sections(REPORT), choice) == text


def test_a_section_that_is_not_there_is_no_text():
    assert choose_sections({"findings": "Clear."}, "impression") is None
    assert choose_sections({"findings": "Clear.", "impression": " "}, "both") == "Clear."
    assert choose_sections({}, "whole") is None


def test_reports_are_counted_without_a_word_of_them():
    assert report_notes(None) == []
    assert report_notes(["Seen ___ ago.", "Seen ___ ago.", "XXXX lungs.", None]) == [
        "3 of 4 images have a report, 2 of them distinct",
        "2 distinct reports have places taken out by de-identification",
    ]
