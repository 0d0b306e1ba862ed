"""Logs and settings read from run folders."""

import pytest
from tests.fakes.fake_runs import evaluation, write_run

from cleft.privacy import LEFT_OUT, redact
from cleft.report.run_charts import training_charts
from cleft.report.run_page import render
from cleft.report.runs import read_runs


def read(folder):
    return read_runs([folder])[0]


def test_curves_are_read_from_numeric_columns(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "logs" / "metrics.csv").write_text("step,train/loss,val/loss,lr\n1,2.5,,0.1\n2,nan,2.0,0.2\n3,1.5,,\n")
    assert read(run).curves == {
        "train/loss": [(1.0, 2.5), (3.0, 1.5)],
        "val/loss": [(2.0, 2.0)],
        "lr": [(1.0, 0.1), (2.0, 0.2)],
    }


def test_last_row_of_a_repeated_step_counts(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "logs" / "metrics.csv").write_text("step,train/loss\n1,2.5\n2,2.0\n2,1.9\n")
    assert read(run).curves["train/loss"][-1] == (2.0, 1.9)


def test_long_curves_are_thinned_and_keep_the_last_point(tmp_path):
    run = write_run(tmp_path / "run")
    lines = "\n".join(f"{step},{step}" for step in range(1, 40_001))
    (run / "logs" / "metrics.csv").write_text(f"step,train/loss\n{lines}\n")
    points = read(run).curves["train/loss"]
    assert len(points) <= 401
    assert points[-1] == (40_000.0, 40_000.0)


def test_loss_is_first_with_its_best_step(tmp_path):
    charts = training_charts(read(write_run(tmp_path / "run")))
    assert [chart.title for chart in charts] == ["Loss", "Learning rate", "Inverse temperature"]
    assert charts[0].caption.startswith("Lowest validation loss 2.591 at step 1,600")
    assert [name for _, name in charts[0].legend] == ["training", "validation"]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("data.root", "anything", LEFT_OUT),
        ("data.cache", None, "–"),
        ("text.model", "stanford-crfm/BioMedLM", "stanford-crfm/BioMedLM"),
        ("text.model", "/models/gpt2", LEFT_OUT),
        ("text.model", "../models/gpt2", LEFT_OUT),
        ("text.model", "C:\\models\\gpt2", LEFT_OUT),
        ("command", "cleft evaluate --data chexpert:/data/x", LEFT_OUT),
        ("command", "cleft evaluate first --data chexpert:<folder>", "cleft evaluate first --data chexpert:<folder>"),
        ("image.train", True, "true"),
        ("classes", ["a", "b"], "a, b"),
        ("note", "ghp_abcdefghijklmnop1234", "left out: it looks like a token"),
        ("optim.lr", 4e-05, "4e-05"),
        ("machine", "Linux x86_64", "Linux x86_64"),
    ],
)
def test_settings_are_redacted(key, value, text):
    assert redact(key, value) == text


def test_stage_is_read_from_the_environment(tmp_path):
    assert read(write_run(tmp_path / "run", evaluation(), stage="context")).stage == "context"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('{"recipe": "patients", "digest": "5916e6647916b84a", "counts": {}}', "patients, 5916e6647916b84a"),
        ('{"recipe": "patients"}', ""),
        ("[1]", ""),
        ("{", ""),
        (None, ""),
    ],
)
def test_split_is_read_from_the_run_folder(tmp_path, written, expected):
    run = write_run(tmp_path / "run")
    if written is not None:
        (run / "split.json").write_text(written)
    assert read(run).split == expected
    assert (f"<dd>{expected}</dd>" in render(read_runs([run]))) == bool(expected)
