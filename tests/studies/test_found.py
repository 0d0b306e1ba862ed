"""Which result files of a run are the answer to a study's question."""

from pathlib import Path

import pytest
from tests.fakes.fake_runs import evaluation

from cleft.config import load_settings
from cleft.studies.found import answers
from cleft.studies.steps import Step

STEP = Step(
    name="row/seed-0/stage-one/chexpert",
    kind="zero-shot",
    folder=Path("row"),
    settings=load_settings("tiny-scale"),
    subject="chexpert",
    balanced=False,
)
TWO = ("No Finding", "Pneumonia")


def test_the_same_question_is_an_answer():
    assert answers(evaluation(classes=TWO), STEP)


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": "rsna"},
        {"split": "val"},
        {"scoring": "present-absent"},
        {"task": "linear-probe"},
        {"wording": "released"},
        {"similarity": "both"},
        {"standardised": True},
        {"command": "cleft evaluate row --per-class 10"},
        {"classes": ("Edema", "Pneumonia")},
    ],
)
def test_another_question_is_none(other):
    assert not answers(evaluation(**{"classes": TWO, **other}), STEP)
