"""Texts and paths in every form that callers pass."""

import inspect
from pathlib import Path

import numpy as np
import pytest

import cleft
from cleft.config import Settings, load_settings
from cleft.data.text.prompts import resolve_classes
from cleft.errors import CleftError, ConfigError, DataError
from cleft.files import as_path, as_paths
from cleft.text_rules import as_texts


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
        (b"edema", "bytes is no text; decode it first"),
        (None, "None is no text; give a str"),
        (3, "int is no text"),
        ({"edema": 1}, "dict is no text"),
        ({"edema"}, "set is no text"),
        ([], "no text was given"),
        (["edema", None], "the text at position 1 is None"),
        (["edema", b"mass"], "the text at position 1 is bytes"),
        (["edema", float("nan")], "the text at position 1 is nan"),
        ([["edema"]], "the text at position 0 is list"),
        (np.array([["edema"]]), "the text at position 0 is list"),
        (np.array([1.5]), "the text at position 0 is 1.5"),
        (Path("edema"), "is no text"),
    ],
)
def test_what_is_no_text_is_refused_with_a_sentence(texts, sentence):
    with pytest.raises(DataError, match=sentence):
        as_texts(texts)


def test_paths_are_str_or_path():
    assert as_path("a/b", "run") == as_path(Path("a/b"), "run") == Path("a/b")
    assert as_path("~/b", "run") == Path.home() / "b"
    assert as_paths("a", "runs") == as_paths(Path("a"), "runs") == as_paths(["a"], "runs") == [Path("a")]
    assert as_paths((path for path in ("a", Path("b"))), "runs") == [Path("a"), Path("b")]


@pytest.mark.parametrize("path", [b"a", None, 3, "", ["a"]])
def test_what_is_no_path_is_refused_with_a_sentence(path):
    with pytest.raises(ConfigError, match=r"run=.* is no path; give a str or a pathlib\.Path"):
        as_path(path, "run")


@pytest.mark.parametrize("paths", [[], None, b"a", {"a": 1}, 3, [None]])
def test_what_holds_no_path_is_refused_with_a_sentence(paths):
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


def test_classes_in_one_str_are_no_letters():
    findings = ["Edema", "Mass, large", "No Finding"]
    assert resolve_classes("edema,No Finding", findings) == ("Edema", "No Finding")
    assert resolve_classes("Mass, large", findings) == ("Mass, large",)
