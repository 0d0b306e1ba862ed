"""`cleft reproduce`: plan, run, stop, resume, and invalid input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.tools.tiny_runs import CLASSES, write_drawings

from cleft.cli import main
from cleft.evaluation.compare import compare_seeds
from cleft.results import Study, from_json
from cleft.studies.reproduce import StudyRequest

GRID = """\
title: Ranks
columns: [manifest/zero-shot]
reference: lora
rows:
  lora: {preset: tiny, label: LoRA}
  plain: {stage_one: lora, stage_two: false}
  ia3: {preset: tiny, text: {adapt: ia3}}
"""
QUICK = [
    "--data.dataset=manifest",
    "--data.val_fraction=0.3",
    "--train.accelerator=cpu",
    "--optim.steps=4",
    "--context.optim.steps=4",
    f"--classes=[{', '.join(CLASSES)}]",
]


def read(folder):
    return from_json((folder / "study.json").read_text(), Study, where="study.json")


def states(folder):
    return {cell.row: cell.state for cell in read(folder).cells}


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    return write_drawings(tmp_path_factory.mktemp("drawings") / "data")


@pytest.fixture
def words(drawings, tmp_path):
    """Options of `cleft reproduce`."""
    return [f"--data=manifest={drawings}", f"--data.cache={drawings.parent / 'cache'}", *QUICK, "--seeds=2"]


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "ranks.yaml"
    path.write_text(GRID)
    return str(path)


@pytest.fixture(scope="module")
def finished(drawings, tmp_path_factory):
    """A finished study of a grid, and its command."""
    home = tmp_path_factory.mktemp("finished")
    (home / "ranks.yaml").write_text(GRID)
    words = [f"--data=manifest={drawings}", f"--data.cache={drawings.parent / 'cache'}", *QUICK, "--seeds=2"]
    line = ["reproduce", str(home / "ranks.yaml"), f"--out={home / 'study'}", *words]
    assert main(line) == 0
    return home / "study", line


def test_grid_becomes_a_study_with_results(finished):
    study = read(finished[0])
    assert (study.name, study.title, study.scale) == ("ranks", "Ranks", "paper")
    assert [row.label for row in study.rows] == ["LoRA", "plain", "ia3"]
    assert {cell.state for cell in study.cells} == {"done"}
    assert study.command.startswith(
        "cleft reproduce ranks.yaml --data=manifest=data --out=study --scale=paper --seeds=2"
    )
    assert os.sep not in study.command
    for cell in study.cells:
        assert [f"/seed-{seed}/" in file for seed, file in enumerate(cell.results)] == [True, True]
        assert all((finished[0] / file).is_file() for file in cell.results)
    plain = next(cell for cell in study.cells if cell.row == "plain")
    assert all(file.startswith("runs/lora/") and "/stage-one/results/" in file for file in plain.results)
    facts = {row.key: row.facts for row in study.rows}
    assert facts["lora"]["length"] == 12
    assert facts["lora"]["trainable"] > facts["ia3"]["trainable"] > 0
    assert facts["lora"]["seconds"] > 0
    assert "length" not in facts["plain"]


def test_rows_are_compared_with_the_reference_by_seed(finished):
    study = read(finished[0])
    cells = {cell.row: cell for cell in study.cells}
    assert study.reference == "lora"
    assert cells["lora"].differences == ()
    for row in ("plain", "ia3"):
        files = [[finished[0] / file for file in cells[name].results] for name in (row, "lora")]
        assert cells[row].differences == compare_seeds(*files)
        assert [each.metric for each in cells[row].differences] == ["accuracy", "auc"]


def test_rows_share_stage_one(finished):
    runs = finished[0] / "runs"
    assert sorted(path.name for path in runs.iterdir() if path.is_dir()) == ["ia3", "lora"]
    assert sorted(path.name for path in (runs / "lora" / "seed-1").iterdir()) == ["context", "stage-one"]


def test_repeated_command_runs_nothing(finished, capsys):
    folder, line = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.is_file()}
    assert main(line) == 0
    assert "to do: nothing" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.is_file()}


def test_time_of_another_seed_is_estimated(finished, capsys):
    folder, line = finished
    assert main([*line, "--seeds=3", "--plan"]) == 0
    output = capsys.readouterr().out
    assert "2 of 3 done; 3 steps, about" in output
    assert "unknown" not in output
    assert len(read(folder).cells[0].results) == 2


def test_result_of_other_weights_is_evaluated_again(finished, capsys):
    _, line = finished
    folder = finished[0]
    summary = folder / "runs/ia3/seed-0/context/summary.json"
    kept = summary.read_text()
    summary.write_text(json.dumps({**json.loads(kept), "weights": "0" * 16}))
    try:
        assert main([*line, "--plan"]) == 0
        assert "to do: 1 x evaluate" in capsys.readouterr().out
    finally:
        summary.write_text(kept)


def test_results_of_two_splits_are_refused(finished, capsys):
    folder, line = finished
    [result] = (folder / "runs/ia3/seed-0/context/results").glob("*.json")
    kept = result.read_text()
    tree = json.loads(kept)
    result.write_text(json.dumps({**tree, "split_digest": "feedfeedfeedfeed"}))
    try:
        assert main(line) == 3
    finally:
        result.write_text(kept)
    output = capsys.readouterr().err
    assert "results of two splits" in output
    assert "feedfeedfeedfeed" in output
    assert tree["split_digest"] in output
    assert "ia3/seed-0/context" in output


def test_folder_with_other_settings_is_refused(finished, capsys):
    _, line = finished
    assert main([*line, "--optim.lr=0.5", "--plan"]) == 2
    assert "started with other settings: optim.lr 0.001 → 0.5" in capsys.readouterr().err


def test_plan_writes_nothing(grid, words, tmp_path, capsys):
    assert main(["reproduce", grid, f"--out={tmp_path / 'study'}", "--plan", *words]) == 0
    output = capsys.readouterr().out
    assert "  lora  manifest/zero-shot         0 of 2 done; 6 steps, time unknown" in output
    assert "to do: 4 x stage one, 4 x stage two, 6 x evaluate; time unknown" in output
    assert not (tmp_path / "study").exists()


def test_only_selected_cells_are_run(grid, words, tmp_path, capsys):
    line = ["reproduce", grid, f"--out={tmp_path / 'study'}", "--seeds=1", "--only", "pla*", *words[:-1]]
    assert main(line) == 0
    assert states(tmp_path / "study") == {"lora": "planned", "plain": "done", "ia3": "planned"}
    output = capsys.readouterr().out.splitlines()
    assert output[0].endswith("; 1 seed")
    assert output[1].startswith("  plain manifest/zero-shot ")
    assert output[2] == "  not selected by --only: 2 cells"
    assert not (tmp_path / "study/runs/lora/seed-0/context").exists()


def test_cell_pattern_is_kept_in_the_command():
    request = StudyRequest(name="table1", data=("rsna=/secret/rsna",), only="*/rsna/*", out=Path("/secret/out"))
    typed = "cleft reproduce table1 --data=rsna=rsna --out=out --scale=paper --seeds=3 '--only=*/rsna/*'"
    assert request.command() == typed


def test_failed_cell_does_not_stop_the_others(words, tmp_path, capsys):
    grid = tmp_path / "one-bad.yaml"
    grid.write_text(
        "columns: [manifest/zero-shot]\nrows:\n"
        "  bad: {preset: tiny, train: {batch_size: 500}}\n  good: {preset: tiny}\n"
    )
    assert main(["reproduce", str(grid), f"--out={tmp_path / 'study'}", "--seeds=1", *words[:-1]]) == 1
    output = capsys.readouterr().err
    assert "failed: bad/seed-0/stage-one: " in output
    assert "do not fill one batch of 500" in output
    assert states(tmp_path / "study") == {"bad": "failed", "good": "done"}
    [bad] = [cell for cell in read(tmp_path / "study").cells if cell.row == "bad"]
    assert "do not fill one batch of 500" in bad.reason


def test_non_finite_loss_has_its_own_exit_code(words, tmp_path, capsys):
    grid = tmp_path / "too-fast.yaml"
    grid.write_text("columns: [manifest/zero-shot]\nrows:\n  fast: {preset: tiny, optim: {lr: 1.0e+30}}\n")
    assert main(["reproduce", str(grid), f"--out={tmp_path / 'study'}", "--seeds=1", *words[:-1]]) == 5
    assert "failed: fast/seed-0/stage-one: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "columns: [manifest/zero-shot]\nrows:\n  a: {preset: tinny}\n",
            "line 3: row a: no preset 'tinny'; did you mean 'tiny'",
        ),
        ("columns: [manifest/zero-shot]\nrows:\n  a: {preset: tiny, text: {rnk: 3}}\n", "did you mean text.rank"),
        (
            "columns: [manifest/zeroshot]\nrows:\n  a: {preset: tiny}\n",
            "unknown task 'zeroshot'; did you mean 'zero-shot'",
        ),
        (
            "columns: [manifst/zero-shot]\nrows:\n  a: {preset: tiny}\n",
            "unknown benchmark 'manifst'; did you mean 'manifest'",
        ),
        (
            "columns: [manifest/zero-shot, manifest/zero-shot]\nrows:\n  a: {preset: tiny}\n",
            "line 1: column 'manifest/zero-shot' is listed twice; remove one of them",
        ),
        ("columns: [manifest/fine-tune/2]\nrows:\n  a: {preset: tiny}\n", "must be in (0, 1]"),
        ("columns: [manifest/zero-shot/0.1]\nrows:\n  a: {preset: tiny}\n", "has no effect"),
        (
            "colums: [manifest/zero-shot]\nrows:\n  a: {preset: tiny}\n",
            "unknown key 'colums'; did you mean 'columns'",
        ),
        ("rows:\n  a: {preset: tiny}\n", "a grid needs rows"),
        ("columns: [manifest/zero-shot]\nrows:\n  a: tiny\n", "give its preset and settings"),
        ("columns: [manifest/zero-shot]\nrows:\n  a: {text: {rank: 3}}\n", "give either a preset, or the row"),
        ("columns: [manifest/zero-shot]\nrows:\n  a/b: {preset: tiny}\n", "is also a folder name"),
        ("columns: [manifest/zero-shot]\nrows:\n  a: {preset: tiny, stage_two: maybe}\n", "must be true or false"),
        (
            "columns: [manifest/zero-shot]\nrows:\n  a: {preset: tiny}\n  b: {stage_one: c}\n",
            "there is no row 'c' above",
        ),
        (
            "columns: [manifest/zero-shot]\nrows:\n  a: {preset: tiny}\n  b: {stage_one: a, text: {rank: 3}}\n",
            "cannot differ from row 'a', whose stage one it uses",
        ),
        (
            "columns: [manifest/zero-shot]\nrows:\n  a: {preset: tiny}\n  b: {stage_one: a}\n  c: {stage_one: b}\n",
            "name that row",
        ),
        (
            "columns: [manifest/zero-shot]\nreference: rank_4\nrows:\n  rank-4: {preset: tiny}\n",
            "line 2: reference: no row 'rank_4'; did you mean 'rank-4'",
        ),
        (
            "columns: [manifest/zero-shot]\nagainst: a\nrows:\n  a: {preset: tiny}\n",
            "line 2: unknown key 'against'; it is now called 'reference'",
        ),
    ],
)
def test_invalid_grid_is_refused_with_its_line(tmp_path, capsys, text, sentence):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    assert main(["reproduce", str(path), "--plan"]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "sentence"),
    [
        (["--data=chexprt=/tmp"], 2, "'chexprt=/tmp' is not a dataset and its folder; did you mean 'chexpert'"),
        (["--data=chexpert"], 2, "'chexpert' is not a dataset and its folder; write chexpert=<folder>"),
        (["--data=chexpert=/nowhere/at/all"], 2, "folder /nowhere/at/all does not exist"),
        (["--only=missing"], 2, "--only 'missing' matches no row or cell (such as random-vit/chexpert/zero-shot)"),
        (["--seeds=0"], 2, "--seeds 0: give 1 or more"),
        (["--jobs=0"], 2, "--jobs 0: give 1 or more"),
        (["--seed=3"], 2, "--seed"),
        (["--data.root=/tmp"], 2, "--data.root is set by the study"),
        (["--optim.stepps=3"], 2, "row matched-clip: the command line: unknown setting --optim.stepps"),
    ],
)
def test_invalid_option_is_refused(capsys, more, code, sentence):
    assert main(["reproduce", "table1", "--scale=tiny", "--plan", *more]) == code
    assert sentence in capsys.readouterr().err


def test_unknown_study_is_refused_with_the_nearest(capsys):
    assert main(["reproduce", "tabel1"]) == 2
    assert "unknown study 'tabel1'; did you mean 'table1'" in capsys.readouterr().err


def test_dataset_given_twice_is_refused(tmp_path, capsys):
    assert main(["reproduce", "table1", "--plan", f"--data=rsna={tmp_path}", f"--data=rsna={tmp_path}"]) == 2
    assert "--data rsna is given twice" in capsys.readouterr().err


def test_missing_class_is_refused_before_training(grid, words, tmp_path, capsys):
    line = ["reproduce", grid, f"--out={tmp_path / 'study'}", *words, "--classes=[Edema, Pneumothorax]"]
    assert main(line) == 2
    assert "'Pneumothorax', which is not a column of the table" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_classifiers_share_the_encoder_of_their_row(drawings, tmp_path, capsys):
    grid = tmp_path / "heads.yaml"
    grid.write_text(
        "columns: [manifest/linear-probe, manifest/fine-tune/0.5]\nrows:\n"
        "  random: {preset: tiny, method: image-only}\n  lora: {preset: tiny}\n"
    )
    words = [f"--data=manifest={drawings}", f"--data.cache={drawings.parent / 'cache'}", *QUICK, "--seeds=1"]
    heads = ["--classify.protocol=standard", "--classify.steps=4", "--classify.val_every=2", "--scale=tiny"]
    line = ["reproduce", str(grid), f"--out={tmp_path / 'study'}", *words, *heads]
    assert main(line) == 0
    assert {cell.state for cell in read(tmp_path / "study").cells} == {"done"}
    home = tmp_path / "study/runs/lora/seed-0"
    assert {path.name for path in home.iterdir()} == {"stage-one", "linear-probe-manifest-1", "fine-tune-manifest-0.5"}
    facts = {row.key: row.facts for row in read(tmp_path / "study").rows}
    assert facts["random"]["trainable"] < facts["lora"]["trainable"]
    capsys.readouterr()
    assert main(line) == 0
    assert "to do: nothing" in capsys.readouterr().out


@pytest.mark.slow
def test_moved_study_is_reported_and_resumed(words, tmp_path, capsys):
    grid = tmp_path / "grid.yaml"
    grid.write_text("columns: [manifest/zero-shot]\nrows:\n  lora: {preset: tiny}\n")
    line = ["reproduce", str(grid), *words, "--scale=tiny", "--seeds=1"]
    assert main([*line, f"--out={tmp_path / 'study'}"]) == 0
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "study").rename(tmp_path / "elsewhere/study")
    assert main(["report", str(tmp_path / "elsewhere/study")]) == 0
    line.append(f"--out={tmp_path / 'elsewhere/study'}")
    capsys.readouterr()
    assert main(line) == 0
    assert "to do: nothing" in capsys.readouterr().out
    grid.write_text(
        "columns: [manifest/zero-shot, manifest/linear-probe]\nrows:\n  lora: {preset: tiny}\n"
        "  longer: {stage_one: lora, context: {length: 14}}\n"
    )
    assert main([*line, "--classify.protocol=standard"]) == 0
    assert {cell.state for cell in read(tmp_path / "elsewhere/study").cells} == {"done"}
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(finished, grid, words, tmp_path):
    assert main(["reproduce", grid, f"--out={tmp_path / 'study'}", "--jobs=2", *words]) == 0
    for place in ("lora/seed-0/context", "ia3/seed-1/context"):
        mine, theirs = (root / "runs" / place / "model.safetensors" for root in (tmp_path / "study", finished[0]))
        assert mine.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_study_resumes_without_repeating_cells(grid, words, tmp_path, number, code, jobs):
    folder = tmp_path / "study"
    line = [sys.executable, "-m", "cleft", "reproduce", grid, f"--out={folder}", f"--jobs={jobs}", *words]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and "done" not in (
        states(folder).values() if (folder / "study.json").is_file() else ()
    ):
        time.sleep(0.02)
    process.send_signal(number)
    _, output = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert "Traceback" not in output
    done = {folder / file for cell in read(folder).cells for file in cell.results}
    assert done
    assert main(["report", str(folder)]) == 0  # of what is there
    assert (folder / "study.html").is_file()
    before = {path: path.stat().st_mtime_ns for file in done for path in file.parents[1].rglob("*") if path.is_file()}
    again = subprocess.run(line, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert set(states(folder).values()) == {"done"}
    assert before == {path: path.stat().st_mtime_ns for path in before}
