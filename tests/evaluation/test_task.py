"""What all questions have in common: their options, their command, and a warning where answers are the wrong way."""

from pathlib import Path

import pytest

from cleft.errors import ConfigError
from cleft.evaluation.selection import PerClass
from cleft.evaluation.task import Question, class_names, reversal_notes
from cleft.results import Result


def area(value, low, high, metric="auc/Edema"):
    return Result(metric=metric, value=value, interval=(low, high))


def test_an_auc_far_below_a_half_is_warned_of_with_its_interval():
    [note] = reversal_notes([area(0.2, 0.1, 0.3), area(0.7, 0.6, 0.8, "auc/Fracture"), area(0.3, 0.2, 0.4, "auc")])
    assert note.startswith("Beware: auc/Edema 0.200 [0.100-0.300], auc 0.300 [0.200-0.400] lie far below 0.5")
    assert "Look whether labels or prompts are reversed." in note
    assert "Fracture" not in note


@pytest.mark.parametrize(
    "harmless",
    [
        area(0.45, 0.41, 0.49),  # below a half, but not far
        area(0.3, 0.1, 0.55),  # far, but it may be chance
        area(0.2, 0.1, 0.3, "accuracy"),  # of five classes that is chance
        area(0.2, 0.1, 0.3, "majority-class/auc"),
        Result(metric="auc", value=None),
        Result(metric="auc", value=0.1),
    ],
)
def test_what_may_be_chance_or_is_no_auc_is_not_warned_of(harmless):
    assert reversal_notes([harmless]) == []


def test_a_command_names_what_is_not_usual_and_no_folder():
    question = Question(data="rsna:/home/somebody/rsna", classes=("Edema", "Pleural Effusion"), drop_overlap=True)
    assert question.command(Path("runs/one"), "zero-shot", {"--prompts": "auto", "--wording": None}) == (
        "cleft evaluate one --task zero-shot --split test --scoring multi-class --data 'rsna:<folder>' "
        "--classes 'Edema,Pleural Effusion' --prompts auto --drop-overlap"
    )


def test_classes_may_stand_in_one_string():
    assert class_names("Edema, Pleural Effusion,") == class_names(["Edema", "Pleural Effusion"])
    assert class_names(None) is None


def test_what_is_drawn_of_each_class_is_a_number_above_zero():
    assert Question(per_class=5).balance() == PerClass(5)
    assert Question(per_class=5, per_patient=1).balance() == PerClass(5, 1)
    assert Question().balance() is None
    with pytest.raises(ConfigError, match="--per-class 0: give 1 or more"):
        Question(per_class=0).balance()
    with pytest.raises(ConfigError, match="--per-patient 2 does nothing without --per-class"):
        Question(per_patient=2).balance()
