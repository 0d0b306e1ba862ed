"""What `cleft purge` removes, and what it never touches."""

import os
import shutil
import stat

import pytest
from tests.fakes.untrained import write_untrained_runs

from cleft.cli import main
from cleft.config import load_settings
from cleft.errors import ConfigError
from cleft.evaluation.zero_shot import evaluate_zero_shot
from cleft.training.purge import plan_purges
from cleft.training.run import open_run
from cleft.training.training_state import StateStore


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A cache; and a run that is finished and was evaluated, and one that is not, each with a training state."""
    place = tmp_path_factory.mktemp("purge")
    write_untrained_runs(place)
    evaluate_zero_shot(place / "plain", progress=False)
    for name in ("plain", "run"):
        store = StateStore(place / name / "states")
        store.save_checkpoint({"step": 3}, store.name(3))
    with open_run(place / "plain", load_settings(place / "plain"), "pretrain") as run:
        run.finish({"steps": 3})
    return place


@pytest.fixture
def home(stock, tmp_path):
    """A copy of it to remove from; its images stay where they are."""
    return shutil.copytree(stock, tmp_path / "home", ignore=shutil.ignore_patterns("data"))


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_o7_caches_embeddings_and_states_are_for_their_owner_alone(home):
    modes = {}
    for place in (home / "cache", home / "plain" / "embeddings", home / "plain" / "states"):
        for path in place.rglob("*"):
            if path.name not in (".cleft-written", "lock"):
                modes.setdefault("folder" if path.is_dir() else "file", set()).add(stat.S_IMODE(path.stat().st_mode))
    assert modes == {"folder": {0o700}, "file": {0o600}}
    for place in (home / "plain" / "states", home / "plain" / "embeddings", home / "cache"):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_o7_nothing_is_removed_without_yes_and_everything_is_told(home, capsys):
    before = tree(home)
    assert main(["purge", str(home / "plain"), str(home / "cache")]) == 0
    said = capsys.readouterr().out
    assert tree(home) == before
    assert "would remove" in said
    assert "states: 1 file" in said
    assert "left: model, settings and logs" in said
    assert said.splitlines()[-1] == "nothing was removed yet; the same command with --yes removes these files"


def test_o7_purge_removes_patient_data_and_leaves_model_results_and_settings(home, capsys):
    before = tree(home / "plain")
    assert main(["purge", str(home / "plain"), str(home / "cache"), "--yes"]) == 0
    assert "removed" in capsys.readouterr().out
    gone = {name for name in before if name not in tree(home / "plain")}
    assert {name.split("/")[0] for name in gone} == {"embeddings", "states"}
    assert {name: content for name, content in before.items() if name not in gone} == tree(home / "plain")
    assert not list((home / "cache").rglob("*.u8"))
    assert not list((home / "cache").rglob("part-*"))
    evaluate_zero_shot(home / "plain", progress=False)  # all of it can be made again
    assert main(["purge", str(home / "plain"), "--yes"]) == 0
    assert main(["purge", str(home / "plain"), "--yes"]) == 0


def test_o7_states_of_a_run_that_is_not_finished_stay_because_they_are_its_weights(home, capsys):
    states = tree(home / "run" / "states")
    assert main(["purge", str(home / "run"), "--yes"]) == 0
    assert tree(home / "run" / "states") == states
    assert "left: states: the run is not finished, and they are its only weights" in capsys.readouterr().out


def test_o7_what_cleft_did_not_write_stays_and_is_named(home, capsys, tmp_path_factory):
    mine = tmp_path_factory.mktemp("mine")
    (mine / "thesis.safetensors").write_text("mine")
    (mine / "step-00000003.0123456789abcdef.ckpt").write_text("mine")
    run, cache = home / "plain", home / "cache"
    (prepared,) = (path.parent for path in cache.rglob("settings.json"))
    (run / "states" / "notes.txt").write_text("mine")
    (run / "states" / "step-00000001.0123456789abcdef.ckpt").symlink_to(mine / "step-00000003.0123456789abcdef.ckpt")
    (run / "embeddings" / "0123456789abcdef").symlink_to(mine)
    (run / "embeddings" / "mine").mkdir()
    (run / "embeddings" / "mine" / "rows.safetensors").write_text("mine")
    (prepared / "notes.txt").write_text("mine")
    (cache / "rejects-chexpert.csv").write_text("mine")
    (cache / "other").mkdir()
    (cache / "other" / f"part-{'0' * 16}.u8").write_text("mine")
    kept = {path: path.read_text() for path in home.rglob("*") if path.is_file() and path.read_bytes() == b"mine"}
    assert main(["purge", str(run), str(cache), "--yes"]) == 0
    assert {path: path.read_text() for path in kept} == kept
    assert sorted(os.listdir(mine)) == ["step-00000003.0123456789abcdef.ckpt", "thesis.safetensors"]
    said = capsys.readouterr().out
    for name in ("states/notes.txt", "embeddings/mine/rows.safetensors", f"{prepared.name}/notes.txt", "other"):
        assert f"left: {name}: not written by cleft" in said


def test_o7_a_folder_of_the_user_and_a_link_are_refused(home):
    (home / "project").mkdir()
    (home / "project" / "config.yaml").write_text("seed: 7\n")
    (home / "project" / "states").mkdir()
    (home / "link").symlink_to(home / "plain")
    (home / "empty").mkdir()
    for name in ("project", "link", "absent", "empty"):
        with pytest.raises(ConfigError, match="give a run folder or a cache folder"):
            plan_purges([home / name])


def test_o7_runs_are_found_in_a_folder_of_runs_and_a_run_in_use_is_left(home, capsys):
    assert {purge.place.name for purge in plan_purges([home])} == {"plain", "run"}
    with open_run(home / "plain", load_settings(home / "plain"), "pretrain"):
        child = os.fork()
        if child == 0:
            os._exit(main(["purge", str(home / "plain"), "--yes"]))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert list((home / "plain" / "states").glob("*.ckpt"))
