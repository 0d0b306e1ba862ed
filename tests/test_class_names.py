"""Names that hold a comma: in tables, settings, options, and in the commands that results repeat."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tools.tiny_runs import tiny_settings, write_drawings

from cleft.cli import main
from cleft.config import Settings, join_list, merge_overrides, split_list
from cleft.data.text.prompts import resolve_classes
from cleft.errors import ConfigError
from cleft.evaluation.result_files import read_evaluation
from cleft.evaluation.task import parse_classes
from cleft.training.pretrain import pretrain

NAMES = ("Effusion, left", "Edema", 'so-called "haze", mild', "Crohn's disease")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("Edema,Pleural Effusion", ["Edema", "Pleural Effusion"]),
        ('"Effusion, left", Edema', ["Effusion, left", "Edema"]),
        ("'Effusion, left',Edema", ["Effusion, left", "Edema"]),
        (' "a ""b"", c" ', ['a "b", c']),
        ("Crohn's disease,b", ["Crohn's disease", "b"]),
        ("a,,b,", ["a", "b"]),
        ("", []),
    ],
)
def test_commas_separate_and_quotes_group(text, values):
    assert split_list(text) == values
    assert merge_overrides(Settings(), [f"--classes=[{text}]"]).classes == tuple(values)
    assert parse_classes(text) == tuple(values)


@given(
    st.lists(st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1).map(str.strip).filter(bool))
)
def test_joined_names_are_split_again(values):
    assert split_list(join_list(values)) == values


@pytest.mark.parametrize("text", ['"Effusion, left', "'a", '"a" b,c', '"a"b"'])
def test_a_quote_that_is_not_closed_is_refused(text):
    with pytest.raises(ConfigError, match="a quote is not closed"):
        split_list(text)


def test_part_of_a_name_with_comma_suggests_quotes():
    assert resolve_classes('"Effusion, left",edema', NAMES) == NAMES[:2]
    with pytest.raises(
        ConfigError, match="that name contains a comma; put it in quotes: --classes '\"Effusion, left\"'"
    ):
        resolve_classes("Effusion, left,Edema", NAMES)


def test_finding_with_comma_is_trained_and_evaluated(tmp_path, capsys):
    root = write_drawings(tmp_path / "drawings", patients=40)
    table = root / "manifest.csv"
    table.write_text(table.read_text().replace("Edema", '"Effusion, left"', 1))
    words = ["--optim.steps=4", "--classes=['Effusion, left', Fracture]"]
    run = pretrain(tiny_settings(root, *words), tmp_path / "run", progress=False)
    typed = '"Effusion, left",Fracture'
    assert main(["evaluate", str(run), "--classes", typed]) == 0
    [result] = (run / "results").glob("*.json")
    evaluation = read_evaluation(result)
    assert evaluation.classes == ("Effusion, left", "Fracture")
    repeated = shlex.split(evaluation.command)
    assert repeated[repeated.index("--classes") + 1] == typed
    assert main(["evaluate", str(run), "--classes", "Effusion, left,Fracture"]) == 2
    assert "put it in quotes" in capsys.readouterr().err
