"""Result files and runs that belong to a study, also after it was moved."""

from pathlib import Path

import pytest
from tests.fakes.fake_runs import evaluation
from tests.tools.replacing import replace_keeping_size_and_time

from cleft.config import dump_settings, load_settings
from cleft.errors import ConfigError
from cleft.results import to_json
from cleft.studies.plans import paper_plan
from cleft.studies.status import check_run_settings, is_result_of, read_evaluation_header, update_paths
from cleft.studies.steps import Step, StudyOptions, plan_steps
from cleft.training.run_folder import changes

STEP = Step(
    name="row/seed-0/stage-one/chexpert",
    kind="zero-shot",
    folder=Path("row"),
    settings=load_settings("tiny-scale"),
    benchmark="chexpert",
    balanced=False,
)
TWO = ("No Finding", "Pneumonia")


def test_matching_evaluation_is_recognised():
    assert is_result_of(evaluation(classes=TWO), STEP)


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": "rsna"},
        {"split": "val"},
        {"scoring": "present-absent"},
        {"task": "linear-probe"},
        {"class_names": "released"},
        {"similarity": "both"},
        {"standardised": True},
        {"per_class": 10},
        {"classes": ("Edema", "Pneumonia")},
    ],
)
def test_other_evaluation_is_not_a_match(other):
    assert not is_result_of(evaluation(**{"classes": TWO, **other}), STEP)


@pytest.fixture
def moved(tmp_path):
    """Steps of a study in the folder `new` whose runs were started in `old`, with their caption language models."""
    steps = {}
    for place in ("old", "new"):
        given = StudyOptions(data={"chexpert": tmp_path / place}, seeds=1, runs=tmp_path / place / "runs")
        steps[place] = plan_steps([paper_plan("table3", "tiny")], given).steps
    for name, step in steps["new"].items():
        if step.kind in ("pretrain", "context"):
            step.folder.mkdir(parents=True)
            (step.folder / "config.yaml").write_text(dump_settings(steps["old"][name].settings))
            (step.folder / "summary.json").write_text("{}")
    return steps


def test_paths_of_a_moved_study_are_updated(moved):
    step = moved["new"]["cleft-lora/seed-0/stage-one"]
    begun_with = load_settings(step.folder)
    assert begun_with.text.model != step.settings.text.model
    check_run_settings(step)
    assert load_settings(step.folder) == begun_with  # looking changes nothing
    update_paths(step)
    now = load_settings(step.folder)
    assert (now.text.model, now.data.root) == (step.settings.text.model, step.settings.data.root)
    assert changes(begun_with, now, "pretrain")[0] == changes(begun_with, step.settings, "pretrain")[0]


def test_run_with_another_caption_lm_is_refused(moved):
    step = moved["new"]["cleft-lora/seed-0/stage-one"]
    config = step.folder / "config.yaml"
    config.write_text(config.read_text().replace("base-lm-chexpert-", "base-lm-chexpert-1"))
    with pytest.raises(ConfigError, match=r"was started with other settings: text\.model .*base-lm-chexpert-1"):
        check_run_settings(step)
    update_paths(step)
    assert "base-lm-chexpert-1" in config.read_text()


def test_replaced_result_of_equal_size_and_time_is_read_again(tmp_path):
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    path.write_text(to_json(evaluation(0.6, command="cleft evaluate one")))
    other.write_text(to_json(evaluation(0.6, command="cleft evaluate two")))
    assert read_evaluation_header(path).command == "cleft evaluate one"
    replace_keeping_size_and_time(path, other.read_bytes())
    assert read_evaluation_header(path).command == "cleft evaluate two"
