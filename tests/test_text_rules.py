"""Normalisation of texts: what counts as equal, what is refused, and that doing it twice changes nothing."""

import inspect
import sys
import typing
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cleft
from cleft.config import Settings, load_settings
from cleft.data.text.captions import clean_text
from cleft.data.text.prompts import resolve_classes
from cleft.data.text.reports import read_as_mgca
from cleft.errors import CleftError, ConfigError, DataError
from cleft.files import as_path, as_paths
from cleft.text_rules import (
    MOST_CHARACTERS,
    RuleName,
    as_texts,
    class_name_rule,
    normalise,
    normalise_all,
    refuse_duplicates,
    rule_for,
    text_fault,
)

RULES = typing.get_args(RuleName)
SPELLINGS = [
    "Pleural Effusion",
    "Pleural_Effusion",
    "pleural effusion.",
    "PLEURAL EFFUSION",
    "  pleural \t effusion\n",
    "pleural\u00a0effusion",
    "\u201cpleural effusion\u201d",
    "pleural\u2011effusion",
    "Pleural\u2013Effusion",
    "1. pleural effusion",
]
ODD = [
    *SPELLINGS,
    "No Finding",
    "3.5 cm nodule; 2. no pneumothorax",
    "e\u0301panchement Pleural",
    "\u0130stanbul",
    "\u1e9e STRASSE \u00df",
    "\u039f\u0394\u039f\u03a3.",
    "\u0939\u0943\u0926\u092f",
    "patient\u2019s heart",
    "\ufb01nding",
    "___ of 3 views",
    "A\u030a\u0323 b\u0323\u0307",
    "x.1.y 2. 3.",
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("text", ODD)
def test_normalising_twice_changes_nothing(rule, text):
    once = normalise(text, rule)
    assert normalise(once, rule) == once
    assert unicodedata.is_normalized("NFC", once)
    assert normalise(unicodedata.normalize("NFD", text), rule) == once


@pytest.mark.parametrize("text", SPELLINGS)
def test_table_and_human_spelling_normalise_equally(text):
    assert normalise(text, "words-2") == "pleural effusion"


@pytest.mark.parametrize("text", ODD)
def test_captions_are_unchanged_by_their_rule(text):
    caption = clean_text(text)
    assert normalise(caption, "words-1") == caption
    if "_" not in caption and caption == unicodedata.normalize("NFC", caption):
        assert normalise(caption, "words-2") == caption


def test_version_1_keeps_underscores():
    assert normalise("Pleural_Thickening", "words-1") == "pleural_thickening"
    assert normalise("Pleural_Thickening", "words-2") == "pleural thickening"
    assert class_name_rule("nfc-1") == "words-1"
    assert class_name_rule("release-2") == "words-2"


def test_combining_marks_stay_with_their_letter():
    assert normalise("\u0939\u0943\u0926\u092f \u0915\u093e \u0906\u0915\u093e\u0930", "words-2").count(" ") == 2


def test_release_rule_equals_the_report_cleaning():
    report = "Nodule of 3.5 cm in the left lung. \u00c9panchement seen. Heart is large."
    assert (normalise(report, "release-2"),) == read_as_mgca(report)


@pytest.mark.parametrize(
    ("texts", "rule"),
    [("captions", "words-2"), ("sentences", "words-2"), ("whole", "nfc-2"), ("mgca", "release-2"), ("bank", "lower-2")],
)
def test_rule_leaves_its_training_texts_unchanged(texts, rule):
    assert rule_for(texts) == rule
    assert rule_for(texts, version=1) == rule.replace("2", "1")


@pytest.mark.parametrize(
    ("letter", "code"),
    [
        ("\x00", "U+0000"),
        ("\x07", "U+0007"),
        ("\x1b", "U+001B"),
        ("\x7f", "U+007F"),
        ("\x92", "U+0092"),
        ("\u00ad", "U+00AD"),
        ("\u200b", "U+200B"),
        ("\u200d", "U+200D"),
        ("\u2060", "U+2060"),
        ("\ufeff", "U+FEFF"),
        ("\u200e", "U+200E"),
        ("\u202e", "U+202E"),
        ("\u2066", "U+2066"),
        ("\u061c", "U+061C"),
        ("\U000e0041", "U+E0041"),
        ("\ufe0f", "U+FE0F"),
        ("\ud83d", "U+D83D"),
        ("\udc80", "U+DC80"),
        ("\uffff", "U+FFFF"),
    ],
)
def test_invisible_characters_are_refused_with_code_point_and_position(letter, code):
    with pytest.raises(DataError, match=f"position 1 holds .*{code.replace('+', '[+]')}.* at character 6; ") as refused:
        normalise_all(["edema", f"pneumo{letter}thorax"], "words-2")
    assert refused.value.reason in ("forbidden-character", "encoding")
    assert letter not in str(refused.value)
    with pytest.raises(DataError, match=code.replace("+", "[+]")):
        clean_text(f"pneumo{letter}thorax")


def test_every_invisible_or_directional_character_of_unicode_is_refused():
    visible = (
        set(range(0x600, 0x606)) | {0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD} | {*range(0x13430, 0x13440)}
    )  # marks of Arabic, Syriac, Kaithi numbers and of hieroglyphs, which are drawn
    passed = {
        code
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs") and text_fault(chr(code)) is None
    }
    assert passed - visible == {0x9, 0xA, 0xB, 0xC, 0xD}


def test_letters_of_every_script_are_accepted():
    assert (
        text_fault(
            "\u80ba\u708e \u0627\u0644\u0635\u062f\u0631 \u0939\u0943\u0926\u092f \u00e9 \u00bd \u2264 5 \u00b5m"
        )
        is None
    )


def test_very_long_text_is_refused_before_tokenisation():
    with pytest.raises(DataError, match=r"position 0 has 1,000,000 characters and may have 50,000; shorten it"):
        normalise_all(["a" * 1_000_000], "words-2")
    assert normalise_all(["a" * MOST_CHARACTERS], "nfc-2")


@pytest.mark.parametrize("silent", ["", " ", "\u00a0", "...", "\u2014", "1.", "___"])
def test_empty_text_is_refused_also_after_normalisation(silent):
    with pytest.raises(DataError, match="positions 1, 3 hold no letter and no digit"):
        normalise_all(["edema", silent, "edema", silent], "words-2")


def test_text_emptied_by_the_rule_names_the_rule():
    with pytest.raises(
        DataError, match=r"position 0 holds no letter .* after normalisation by text\.normalisation=rel"
    ):
        normalise_all(["\u80ba\u708e"], "release-2")


def test_equal_class_names_are_refused_by_position():
    names = normalise_all(["Edema", "Pneumonia", "edema."], "words-2")
    with pytest.raises(DataError, match="class names at positions 0 and 2 are equal after normalisation"):
        refuse_duplicates(names, "class names")


@given(st.text(max_size=40), st.sampled_from(RULES))
def test_normalisation_is_idempotent_on_any_text(text, rule):
    once = normalise(text, rule)
    assert normalise(once, rule) == once
    assert normalise(unicodedata.normalize("NFD", text), rule) == once


class Column:
    """As a data frame's: it has `tolist` and is iterated over its values."""

    def __init__(self, values):
        self.values = values

    def tolist(self):
        return self.values


@pytest.mark.parametrize(
    "texts",
    [
        ["edema", "mass"],
        ("edema", "mass"),
        (text for text in ["edema", "mass"]),
        np.array(["edema", "mass"]),
        np.array(["edema", "mass"], dtype=object),
        Column(["edema", "mass"]),
    ],
)
def test_texts_come_in_any_sequence(texts):
    found = as_texts(texts)
    assert found == ["edema", "mass"]
    assert {type(text) for text in found} == {str}


@pytest.mark.parametrize("text", ["edema", np.str_("edema"), np.array("edema")])
def test_a_str_is_one_text(text):
    assert as_texts(text) == ["edema"]


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (b"edema", "bytes is not a text; decode it first"),
        (None, "None is not a text; give a str"),
        (3, "int is not a text"),
        ({"edema": 1}, "dict is not a text"),
        ({"edema"}, "set is not a text"),
        ([], "no text was given"),
        (["edema", None], "the text at position 1 is None"),
        (["edema", b"mass"], "the text at position 1 is bytes"),
        (["edema", float("nan")], "the text at position 1 is nan"),
        ([["edema"]], "the text at position 0 is list"),
        (np.array([["edema"]]), "the text at position 0 is list"),
        (np.array([1.5]), "the text at position 0 is 1.5"),
        (Path("edema"), "is not a text"),
    ],
)
def test_non_texts_are_refused(texts, sentence):
    with pytest.raises(DataError, match=sentence):
        as_texts(texts)


def test_paths_are_str_or_path():
    assert as_path("a/b", "run") == as_path(Path("a/b"), "run") == Path("a/b")
    assert as_path("~/b", "run") == Path.home() / "b"
    assert as_paths("a", "runs") == as_paths(Path("a"), "runs") == as_paths(["a"], "runs") == [Path("a")]
    assert as_paths((path for path in ("a", Path("b"))), "runs") == [Path("a"), Path("b")]


@pytest.mark.parametrize("path", [b"a", None, 3, "", ["a"]])
def test_non_paths_are_refused(path):
    with pytest.raises(ConfigError, match=r"run=.* is not a path; give a str or a pathlib\.Path"):
        as_path(path, "run")


@pytest.mark.parametrize("paths", [[], None, b"a", {"a": 1}, 3, [None]])
def test_empty_lists_of_paths_are_refused(paths):
    with pytest.raises(ConfigError, match=r"give"):
        as_paths(paths, "runs")


def test_dir_lists_the_public_names():
    listed = dir(cleft)
    assert [name for name in listed if not name.startswith("__")] == sorted(cleft.__all__)


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("name", [name for name in cleft.__all__ if inspect.isfunction(getattr(cleft, name))])
def test_public_functions_take_str_and_path(name, kind, tmp_path):
    """Each ends in an error of ours about a folder or file that is not there, and in no AttributeError."""
    public, gone = getattr(cleft, name), kind(tmp_path / "gone")
    arguments = {
        "load": (gone,),
        "load_settings": (gone,),
        "load_image": (gone, Settings().images),
        "pretrain": (Settings(), gone),
        "learn_context": (gone, Settings(), kind(tmp_path / "new")),
        "classify": (gone, Settings(), kind(tmp_path / "new")),
        "evaluate_zero_shot": (gone,),
        "evaluate_classifier": (gone,),
        "evaluate_retrieval": (gone,),
        "compare": (gone, gone),
        "read_evaluation": (gone,),
        "write_report": ([gone], kind(tmp_path / "page.html")),
    }[name]
    with pytest.raises(CleftError):
        public(*arguments)
    if name == "write_report":
        with pytest.raises(CleftError, match="gone"):
            public(gone, kind(tmp_path / "page.html"))


def test_settings_may_follow_in_one_line():
    assert load_settings("tiny", "--text.rank 4 --seed=3") == load_settings("tiny", ["--text.rank", "4", "--seed=3"])


def test_classes_in_one_str_are_split_at_commas():
    findings = ["Edema", "Mass, large", "No Finding"]
    assert resolve_classes("edema,No Finding", findings) == ("Edema", "No Finding")
    assert resolve_classes("Mass, large", findings) == ("Mass, large",)
