"""Which result files answer a study's question, and which runs are this study's, also where they were moved."""

from pathlib import Path

import pytest
from tests.fakes.fake_runs import evaluation
from tests.tools.replacing import replace_keeping_size_and_time

from cleft.config import dump_settings, load_settings
from cleft.errors import ConfigError
from cleft.results import to_json
from cleft.studies.plans import paper_plan
from cleft.studies.status import answers, check_settings, glance, settle
from cleft.studies.steps import Given, Step, lay_out
from cleft.training.run_folder import changes

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


@pytest.fixture
def moved(tmp_path):
    """Steps of a study in the folder `new` whose runs were begun in `old`, with their models of language."""
    steps = {}
    for place in ("old", "new"):
        given = Given(data={"chexpert": tmp_path / place}, seeds=1, runs=tmp_path / place / "runs")
        steps[place] = lay_out([paper_plan("table3", "tiny")], given).steps
    for name, step in steps["new"].items():
        if step.kind in ("pretrain", "context"):
            step.folder.mkdir(parents=True)
            (step.folder / "config.yaml").write_text(dump_settings(steps["old"][name].settings))
            (step.folder / "summary.json").write_text("{}")
    return steps


def test_a_study_that_was_moved_is_the_same_and_is_told_where_it_lies(moved):
    step = moved["new"]["cleft-lora/seed-0/stage-one"]
    begun_with = load_settings(step.folder)
    assert begun_with.text.model != step.settings.text.model
    check_settings(step)
    assert load_settings(step.folder) == begun_with  # looking changes nothing
    settle(step)
    now = load_settings(step.folder)
    assert (now.text.model, now.data.root) == (step.settings.text.model, step.settings.data.root)
    assert changes(begun_with, now, "pretrain")[0] == changes(begun_with, step.settings, "pretrain")[0]


def test_a_run_that_began_from_another_language_model_is_refused(moved):
    step = moved["new"]["cleft-lora/seed-0/stage-one"]
    config = step.folder / "config.yaml"
    config.write_text(config.read_text().replace("base-lm-chexpert-", "base-lm-chexpert-1"))
    with pytest.raises(ConfigError, match=r"was begun with other settings: text\.model .*base-lm-chexpert-1"):
        check_settings(step)
    settle(step)
    assert "base-lm-chexpert-1" in config.read_text()


def test_a_result_replaced_with_its_size_and_time_kept_is_read_anew(tmp_path):
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    path.write_text(to_json(evaluation(0.6, command="cleft evaluate one")))
    other.write_text(to_json(evaluation(0.6, command="cleft evaluate two")))
    assert glance(path).command == "cleft evaluate one"
    replace_keeping_size_and_time(path, other.read_bytes())
    assert glance(path).command == "cleft evaluate two"
