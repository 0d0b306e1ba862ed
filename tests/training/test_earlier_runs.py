"""Runs that version 0.1.0 wrote are resumed, evaluated and shown."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tools.tiny_runs import write_drawings

from cleft.cli import main
from cleft.evaluation.result_files import read_evaluation

RUNS = Path(__file__).with_name("runs-0.1.0.tar.xz")
"""A finished run with a result, a linear probe on it with a result, and the same run killed after step 5 of 6.

Method `clip` on 60 drawings; towers of a few hundred weights; seed 0.
"""


@pytest.fixture
def runs(tmp_path):
    """The folder of the three runs, with the images they were trained on in `data`."""
    shutil.unpack_archive(RUNS, tmp_path, filter="data")
    write_drawings(tmp_path / "data")
    return tmp_path


def test_an_interrupted_run_resumes_to_the_weights_of_the_uninterrupted_one(runs, capsys):
    run = runs / "interrupted"
    places = [f"--data.root={runs / 'data'}", f"--data.cache={runs / 'cache'}", f"--run={run}"]
    assert main(["pretrain", str(run / "config.yaml"), *places]) == 0
    assert "resuming from step 4 of 6" in capsys.readouterr().err
    resumed, complete = (load_file(folder / "model.safetensors") for folder in (run, runs / "finished"))
    assert resumed.keys() == complete.keys()
    for name, weight in resumed.items():
        torch.testing.assert_close(weight, complete[name], msg=name)  # other processors round differently


@pytest.mark.parametrize(
    ("name", "more"), [("finished", []), ("head", ["--task=linear-probe"])], ids=["zero-shot", "linear probe"]
)
def test_a_finished_run_has_the_same_results_as_before(runs, name, more):
    folder = runs / name / "results"
    before = read_evaluation(next(folder.glob("*.json")))
    shutil.rmtree(folder)
    assert (
        main(
            [
                "evaluate",
                str(runs / name),
                *more,
                f"--data.root={runs / 'data'}",
            ]
        )
        == 0
    )
    after = read_evaluation(next(folder.glob("*.json")))
    assert before.task == after.task
    assert [result.metric for result in after.results] == [result.metric for result in before.results]
    for old, new in zip(before.results, after.results, strict=True):
        assert new.value == pytest.approx(old.value, abs=1e-5), old.metric


def test_runs_are_shown_on_one_page(runs):
    page = runs / "page.html"
    assert main(["report", str(runs / "finished"), str(runs / "head"), "--out", str(page)]) == 0
    assert "Fracture" in page.read_text()
