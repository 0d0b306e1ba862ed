"""Which charts a log becomes."""

from tests.fakes.fake_runs import write_run

from cleft.report.curves import training_charts
from cleft.report.runs import read_runs


def charts(folder, table):
    run = write_run(folder / "run")
    (run / "logs" / "metrics.csv").write_text(table)
    return {chart.title: chart for chart in training_charts(read_runs([run])[0])}


def test_tokens_read_and_tokens_padded_share_a_chart(tmp_path):
    found = charts(tmp_path, "step,nodes,padded_tokens\n1,170,4608\n2,180,4608\n")
    assert [name for _, name in found["Caption tokens of a step"].legend] == ["prefix tree", "padded"]


def test_what_never_changed_needs_no_chart_but_the_loss_has_one(tmp_path):
    assert list(charts(tmp_path, "step,train/loss,clamped_steps\n1,2,0\n2,2,0\n")) == ["Loss"]


def test_the_columns_of_both_stages_are_understood(tmp_path):
    found = charts(tmp_path, "step,context/train/loss,context/val/loss,context/lr\n1,2,3,0.1\n2,1,2,0.2\n")
    assert list(found) == ["Loss", "Learning rate"]
    assert found["Loss"].caption == "Lowest validation loss 2 at step 2 (ringed)."
    assert found["Loss"].large
    assert not found["Learning rate"].large
