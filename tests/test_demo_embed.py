"""Drawn mammograms through every verb: what the preset `demo-embed` and its page promise, in little."""

import json
from pathlib import Path

import pytest

from cleft.cli import main
from cleft.evaluation.result_files import read_evaluation

FEW = ["--images.stored_size=80", "--images.size=72", "--train.batch_size=32", "--train.accelerator=cpu"]
SHORT = ["--optim.steps=200", "--optim.warmup_steps=20", "--train.val_every=50", "--context.optim.steps=200"]


def asked(folder, capsys, *words):
    """The answer to one evaluation, as the file that the command names holds it."""
    capsys.readouterr()
    assert main(["evaluate", str(folder), *words]) == 0
    return read_evaluation(Path(capsys.readouterr().out.splitlines()[-1].partition(";")[0]))


@pytest.mark.slow
def test_demo_on_synthetic_mammograms(tmp_path, capsys):
    data, run = tmp_path / "mammograms", tmp_path / "run"
    assert main(["data", "phantoms", str(data), "--kind", "mammogram", "--patients", "100", "--size", "128"]) == 0
    assert main(["data", "check", "embed", str(data)]) == 0
    place = ["--data.root", str(data), "--data.cache", str(tmp_path / "cache")]
    assert main(["pretrain", "demo-embed", "--run", str(run), *place, *FEW, *SHORT]) == 0
    assert main(["learn-context", str(run), "--classes", "density-4", "--out", str(tmp_path / "density")]) == 0
    for folder in (run, tmp_path / "density"):
        found = asked(folder, capsys, "--classes", "density-4", "--per-class", "5")
        assert {each.metric: each.value for each in found.results}["auc"] > 0.7
        assert [sum(row) for row in found.confusion or ()] == [5] * 4
    assert "terms" not in json.loads((run / "summary.json").read_text())
