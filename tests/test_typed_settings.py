"""What was typed is used or refused, by every command that takes dotted settings."""

import dataclasses
import logging
import re
from pathlib import Path

import pytest
from tests.fakes.rsna import rsna_row, write_fake_rsna

from cleft.cli import main
from cleft.config import DataConfig, Settings, dump_settings, flat_settings, load_settings
from cleft.data import data_config
from cleft.errors import ConfigError
from cleft.evaluation import EvaluationOptions
from cleft.evaluation.task import evaluation_data, evaluation_settings
from cleft.studies.plans import paper_plan
from cleft.studies.reproduce import Reproduction
from cleft.studies.steps import StudyOptions

VALUES = {
    "dataset": "nih",
    "root": "elsewhere",
    "table": "other.csv",
    "label_source": "chexbert",
    "views": "PA",
    "prompt_prefix": "a radiograph with",
    "uncertain": "ones",
    "split": "patients",
    "split_file": "missing.json",
    "test_list": "list.csv",
    "val_fraction": "0.15",
    "test_fraction": "0.35",
    "mention_absent": "true",
    "empty_caption": "drop",
    "caption": "natural",
    "report_sections": "findings",
    "missing_report": "drop",
    "reports": "reports",
    "texts": "findings",
    "caption_templates": "a film of {}",
    "sentence_bank": "bank.csv",
    "augment_texts": "true",
    "breast_label": "first",
    "patient_mapping": "mapping.json",
    "patient_dataset": "nih",
    "exclude_patients": "list.csv",
    "max_invalid": "0.5",
    "workers": "3",
    "timeout": "7",
    "cache": "cache",
    "prepare": "required",
}
"""A value that is not the default, for every setting of the data."""

COMMANDS = {
    "pretrain": (["pretrain", "tiny"], "cleft.training.pretrain.pretrain"),
    "learn-context": (["learn-context", "RUN"], "cleft.training.prompt_context.learn_context"),
    "classify": (["classify", "RUN"], "cleft.evaluation.classifier.train_classifiers"),
    "classify another dataset": (
        ["classify", "RUN", "--data", "DATA"],
        "cleft.evaluation.classifier.train_classifiers",
    ),
    "data check": (["data", "check", "tiny"], "cleft.data.census.check.check_dataset"),
    "data check a dataset": (["data", "check", "chexpert"], "cleft.data.census.check.check_dataset"),
    "data split": (["data", "split", "RUN"], "cleft.data.read_dataset"),
    "data prepare": (["data", "prepare", "tiny"], "cleft.data.read_dataset"),
}
"""Words of a command, and the function that it hands its settings to."""


class Captured(Exception):
    """Carries the settings a command came to."""

    def __init__(self, *parts):
        self.data = next(
            part.data if isinstance(part, Settings) else part
            for part in parts
            if isinstance(part, Settings | DataConfig)
        )


@pytest.fixture
def run(tmp_path):
    """A run whose data settings all belong to its own dataset."""
    folder = tmp_path / "run"
    folder.mkdir()
    own = [
        "--data.split=5x200-strict",
        "--data.exclude_patients=own.csv",
        "--data.views=AP",
        "--data.patient_dataset=nih",
    ]
    (folder / "config.yaml").write_text(dump_settings(load_settings("tiny", [f"--data.root={tmp_path}", *own])))
    return folder


@pytest.fixture
def rsna(tmp_path):
    return write_fake_rsna(tmp_path / "rsna", [rsna_row(n, str(n % 2)) for n in range(8)])


def settings_of(words, capture, monkeypatch):
    """The data settings that a command hands on, or its exit code."""

    def stop(*parts, **_):
        raise Captured(*parts)

    monkeypatch.setattr(capture, stop)
    try:
        return main(words)
    except Captured as captured:
        return captured.data


def plain(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def test_every_data_setting_is_covered():
    assert list(VALUES) == [field.name for field in dataclasses.fields(DataConfig)]
    assert all(plain(getattr(DataConfig(), name)) != value for name, value in VALUES.items())


QUICK = ("classify another dataset", "learn-context", "data split")


@pytest.mark.parametrize(
    "command", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS]
)
def test_a_typed_setting_of_the_data_is_used_or_refused(command, run, rsna, monkeypatch, capsys):
    words, capture = COMMANDS[command]
    words = [{"RUN": str(run), "DATA": f"rsna:{rsna}"}.get(word, word) for word in words]
    used = []
    for name, value in VALUES.items():
        found = settings_of([*words, f"--data.{name}", value], capture, monkeypatch)
        if isinstance(found, DataConfig):
            assert plain(getattr(found, name)).casefold() == value.casefold(), f"{command}: --data.{name} was dropped"
            used.append(name)
        else:
            assert found == 2
            assert f"data.{name}" in capsys.readouterr().err
    assert len(used) >= 20
    assert {"exclude_patients", "split_file", "max_invalid", "patient_dataset"} <= set(used)


@pytest.mark.parametrize("other", [False, True])
def test_data_setting_of_evaluate_is_used_or_refused(other, run, rsna):
    data = f"rsna:{rsna}" if other else None
    used = []
    for name, value in VALUES.items():
        options = EvaluationOptions(data=data, overrides=(f"--data.{name}", value))
        try:
            found = evaluation_data(evaluation_settings(run, options), options)
        except ConfigError as refused:
            named = f"data.{name}" in str(refused)
        else:
            named = plain(getattr(found, name)).casefold() == value.casefold()
            used.append(name)
        assert named, name
    assert len(used) >= 20
    assert {"exclude_patients", "split_file", "max_invalid", "patient_dataset"} <= set(used)


@pytest.mark.parametrize(
    ("typed", "what"),
    [
        (["--data.exclude_patients", "absent.csv"], "no list of patients at absent.csv"),
        (["--data.split_file", "missing.json"], "no split file at missing.json"),
        (["--data.test_list", "absent.csv", "--data.split", "patients"], "no list of images at absent.csv"),
        (["--data.patient_mapping", "absent.json"], "absent.json"),
    ],
)
def test_classifier_on_another_dataset_reads_typed_files(typed, what, run, rsna, capsys):
    assert main(["classify", str(run), "--data", f"rsna:{rsna}", *typed]) == 3
    assert what in capsys.readouterr().err


def test_settings_of_the_run_that_other_data_do_not_use_are_named_in_one_line(run, rsna, monkeypatch, capsys):
    capture = COMMANDS["classify"][1]
    found = settings_of(["classify", str(run), "--data", f"rsna:{rsna}"], capture, monkeypatch)
    assert (found.split, found.exclude_patients, found.views, found.patient_dataset) == (None, None, None, None)
    [line] = [line for line in capsys.readouterr().err.splitlines() if "not used" in line]
    assert line == (
        "settings of the run that are not used for these data (rsna, split rsna-balanced): data.split=5x200-strict, "
        "data.exclude_patients=own.csv, data.patient_dataset=nih, data.views=AP"
    )
    settings_of(["classify", str(run), "--data", f"chexpert:{rsna}"], capture, monkeypatch)
    assert "not used" not in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("root", "elsewhere"), ("dataset", "nih")])
def test_two_ways_to_name_the_images_are_refused(name, value, run, rsna, capsys):
    assert main(["classify", str(run), "--data", f"rsna:{rsna}", f"--data.{name}", value]) == 2
    assert f"--data.{name} both set the images to read" in capsys.readouterr().err


def test_settings_set_in_python_are_kept_for_other_data(run, rsna):
    own = load_settings(run)
    mine = dataclasses.replace(own, data=dataclasses.replace(own.data, exclude_patients=Path("mine.csv")))
    kept = data_config(mine, f"rsna:{rsna}", inherited=own.data)
    assert (kept.exclude_patients, kept.split) == (Path("mine.csv"), None)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--data.split_file=s.json", "--data.split=patients"], "data.split_file"),
        (["--data.split_file=s.json", "--data.val_fraction=0.3"], "data.split_file"),
        (["--data.test_list=l.csv", "--data.test_fraction=0.3"], "data.test_list"),
        (["--data.dataset=rsna", "--data.test_fraction=0.3"], "data.split is 'rsna-balanced'"),
        (["--data.dataset=embed", "--data.val_fraction=0.3"], "data.split is 'embed'"),
    ],
)
def test_overruled_setting_is_refused(words, why, capsys):
    assert main(["pretrain", "tiny", *words]) == 2
    assert re.search(f"does nothing here: {why}", capsys.readouterr().err)


def test_classifier_refuses_context_settings(run, capsys):
    assert main(["classify", str(run), "--context.length", "4"]) == 2
    assert "--context.length does nothing with cleft classify" in capsys.readouterr().err


def test_unused_overrides_of_a_study_are_reported(tmp_path, rsna, caplog):
    caplog.set_level(logging.INFO, "cleft")
    words = ("--data.views=PA", "--data.split=patients", "--text.rank=4", "--data.max_invalid=0.5")
    given = StudyOptions(data={"chexpert": tmp_path, "rsna": rsna}, overrides=words, seeds=1, runs=tmp_path / "runs")
    plan = paper_plan("table1", "paper")
    rows = tuple(row for row in plan.rows if row.key in ("cleft-lora", "random-vit"))
    study = Reproduction(
        plans=[(dataclasses.replace(plan, rows=rows, columns=plan.columns[-1:]), tmp_path)], options=given
    )
    lines = study.describe()
    assert "--text.rank has no effect on rows that set it themselves or have no text encoder: random-vit" in lines
    assert "--data.views applies to chexpert, not to rsna (split rsna-balanced)" in lines
    assert "--data.split applies to chexpert, not to rsna (split rsna-balanced)" in lines
    assert not any("max_invalid" in line for line in lines)
    own = tuple(dataclasses.replace(row, overrides=("--data.max_invalid=0.1",)) for row in rows)
    fixed = dataclasses.replace(plan, rows=own, columns=plan.columns[-1:])
    with pytest.raises(ConfigError, match=r"--data\.max_invalid has no effect"):
        Reproduction(plans=[(fixed, tmp_path)], options=given)


def test_every_setting_is_compared_by_its_key():
    assert {f"data.{name}" for name in VALUES} <= set(flat_settings(Settings()))
