"""Run folders: what they hold, whom they refuse, what they keep to themselves."""

import hashlib
import json
import os
import shutil
import stat
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fakes.untrained import write_untrained_runs
from tests.tools.forks import forked

from cleft.cli import main
from cleft.config import DataConfig, Settings, flat_settings, load_settings, setting_effect
from cleft.errors import ConfigError, DataError, ResourceError
from cleft.evaluation.zero_shot import evaluate_zero_shot
from cleft.training.provenance import inherited_split, seen_patients, split_record
from cleft.training.run_folder import changes, file_changes, find_purges, is_run, open_run
from cleft.training.training_state import StateStore


def test_a10_a_learning_rate_decides_and_workers_do_not():
    assert setting_effect("optim.lr") == ("pretrain",)
    assert setting_effect("context.optim.lr") == ("context",)
    assert setting_effect("data.workers") == ()
    assert setting_effect("text.packing") == "rounding"
    assert setting_effect("text.rank") == ("pretrain",)


def test_a10_a_change_is_reported_with_old_and_new_value():
    old = Settings()
    new = replace(old, seed=1, train=replace(old.train, precision="bf16-mixed", log_every=3))
    deciding, rounding = changes(old, new, "pretrain")
    assert [str(change) for change in deciding] == ["seed 0 → 1"]
    assert [change.key for change in rounding] == ["train.precision"]


def test_a10_a_recipe_that_was_spelled_out_may_be_left_to_the_dataset():
    spelled = Settings(data=DataConfig(split="patients"))
    assert changes(spelled, Settings(), "pretrain") == ([], [])
    other = Settings(data=DataConfig(split="5x200-paper"))
    assert [str(change) for change in changes(other, Settings(), "pretrain")[0]] == [
        "data.split '5x200-paper' → 'patients'"
    ]


def test_a10_each_stage_minds_its_own_settings():
    old = Settings()
    new = replace(old, loss=replace(old.loss, temperature=0.1), context=replace(old.context, length=3))
    assert [change.key for change in changes(old, new, "pretrain")[0]] == ["loss.temperature"]
    assert [change.key for change in changes(old, new, "context")[0]] == ["context.length"]
    assert changes(old, new, "classify")[0] == []
    other = replace(old, classes=("Edema",), classify=replace(old.classify, fraction=0.1, precision="32-true"))
    assert [change.key for change in changes(old, other, "pretrain")[0]] == []
    assert [change.key for change in changes(old, other, "context")[0]] == ["classes"]
    deciding, rounding = changes(old, other, "classify")
    assert [change.key for change in deciding] == ["classes", "classify.fraction"]
    assert [change.key for change in rounding] == ["classify.precision"]


def test_files_that_only_one_of_the_settings_names_are_changes():
    harmless = {key for key in flat_settings(Settings()) if key.startswith("data.") and setting_effect(key) == ()}
    named = harmless - {f"data.{name}" for name in ("root", "max_invalid", "workers", "timeout", "cache", "prepare")}
    assert "data.exclude_patients" in named
    owners = {"patient_mapping": "rsna", "reports": "mimic"}
    for name in (key.removeprefix("data.") for key in named):
        dataset = owners.get(name, "chexpert")
        plain, given, moved = (
            Settings(data=DataConfig(dataset=dataset, **file)) for file in ({}, {name: Path("a")}, {name: Path("b/a")})
        )
        assert [change.key for change in file_changes(plain, given)] == [f"data.{name}"]
        assert [change.key for change in file_changes(given, plain)] == [f"data.{name}"]
        assert file_changes(given, moved) == []


SETTINGS = Settings()
FACTS = split_record(
    people="manifest", recipe="patients", digest="d1", counts={"train": 3}, patients=["p17", "p18", "p17"]
)


def test_a_new_run_records_settings_and_environment(tmp_path):
    with open_run(tmp_path / "a" / "run", SETTINGS, "pretrain") as run:
        assert load_settings(run.folder) == SETTINGS
        environment = json.loads((run.folder / "environment.json").read_text())
        assert environment["stage"] == "pretrain"
        assert environment["versions"]["torch"].startswith("2")
        assert "/" not in environment["command"]
        assert run.summary() is None
        run.finish({"best_step": 7})
        assert run.summary() == {"stage": "pretrain", "best_step": 7}


def test_a_run_of_an_earlier_version_is_known_by_any_of_its_files_and_settings_of_a_user_are_no_run(tmp_path):
    keep(tmp_path / "run")
    settings = tmp_path / "run" / "config.yaml"
    settings.write_text(settings.read_text().partition("\n")[2])
    for name in ("environment.json", "split.json"):
        assert is_run(tmp_path / "run"), name
        (tmp_path / "run" / name).unlink()
    assert not is_run(tmp_path / "run")
    (tmp_path / "run" / "environment.json").write_text('{"stage": "mine"}')
    assert not is_run(tmp_path / "run")


def test_a_list_named_after_the_end_of_a_run_is_refused_and_not_dropped(tmp_path):
    for name in ("exclude_patients", "test_list", "split_file"):
        with open_run(tmp_path / name, SETTINGS, "pretrain") as run:
            run.finish({})
        named = replace(SETTINGS, data=replace(SETTINGS.data, **{name: tmp_path / "list.csv"}))
        with (
            pytest.raises(ConfigError, match=rf"settings changed: data\.{name} None → .*list\.csv"),
            open_run(tmp_path / name, named, "pretrain"),
        ):
            pass
        with open_run(tmp_path / name, SETTINGS, "pretrain") as run:
            assert run.is_finished()


def test_an_imported_model_is_not_trained_over(tmp_path):
    keep(tmp_path)
    (tmp_path / "split.json").unlink()
    (tmp_path / "environment.json").unlink()
    (tmp_path / "model.json").write_text('{"schema": 1, "files": {}}')
    with pytest.raises(ConfigError, match="a model that was not trained in it"):
        keep(tmp_path)
    assert (tmp_path / "model.json").read_text() == '{"schema": 1, "files": {}}'


def test_a12_a_second_process_is_refused_with_pid_and_host(tmp_path):
    with open_run(tmp_path, SETTINGS, "pretrain"):

        def second():
            with (
                pytest.raises(ConfigError, match=rf"in use by process {os.getppid()} on \w+"),
                open_run(tmp_path, SETTINGS, "pretrain"),
            ):
                pass

        assert forked(second) == 0


def test_a12_the_lock_dies_with_its_holder(tmp_path):
    ready = tmp_path / "ready"
    child = os.fork()
    if child == 0:
        with open_run(tmp_path / "run", SETTINGS, "pretrain"):
            ready.touch()
            time.sleep(60)
        os._exit(0)
    while not ready.exists():
        time.sleep(0.01)
    with pytest.raises(ConfigError, match="in use"), open_run(tmp_path / "run", SETTINGS, "pretrain"):
        pass
    os.kill(child, 9)
    os.waitpid(child, 0)
    with open_run(tmp_path / "run", SETTINGS, "pretrain") as run:
        assert run.summary() is None


def test_a10_other_settings_are_refused_and_harmless_ones_pass(tmp_path, caplog):
    with open_run(tmp_path, SETTINGS, "pretrain"):
        (tmp_path / "states").mkdir(exist_ok=True)
        (tmp_path / "states" / "step-00000010.0000000000000000.ckpt").touch()
    other = replace(SETTINGS, optim=replace(SETTINGS.optim, lr=1e-3))
    with pytest.raises(ConfigError, match=r"optim\.lr 4e-05 → 0\.001"), open_run(tmp_path, other, "pretrain"):
        pass
    harmless = replace(SETTINGS, data=replace(SETTINGS.data, workers=2))
    with open_run(tmp_path, harmless, "pretrain"):
        assert not caplog.records
    rounding = replace(harmless, train=replace(SETTINGS.train, precision="bf16-mixed"))
    with open_run(tmp_path, rounding, "pretrain"):
        assert "no longer bitwise reproducible: train.precision" in caplog.text


def test_a10_other_data_are_refused(tmp_path):
    with open_run(tmp_path, SETTINGS, "pretrain") as run:
        run.record_split(FACTS)
        run.record_split(FACTS)
        with pytest.raises(ConfigError, match="training data changed: digest 'd1' → 'd2'"):
            run.record_split({**FACTS, "digest": "d2"})


def test_the_same_data_out_of_a_table_that_was_packed_are_the_same(tmp_path):
    with open_run(tmp_path, SETTINGS, "pretrain") as run:
        run.record_split({**FACTS, "sources": {"train.csv": "a"}})
        run.record_split({**FACTS, "sources": {"train.csv.gz": "b"}})
        run.record_split(FACTS)


def test_a10_other_versions_pass_with_a_note(tmp_path, caplog):
    with open_run(tmp_path, SETTINGS, "pretrain"):
        pass
    path = tmp_path / "environment.json"
    path.write_text(path.read_text().replace('"threads": 1', '"threads": 5'))
    with open_run(tmp_path, SETTINGS, "pretrain"):
        assert "no longer bitwise reproducible: threads 5 → 1" in caplog.text


def test_a_folder_of_something_else_is_never_written_into(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with (
        pytest.raises(ConfigError, match=r"holds no run \(found thesis\.tex\)"),
        open_run(tmp_path, SETTINGS, "pretrain"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigError, match="is a file"), open_run(tmp_path / "thesis.tex", SETTINGS, "pretrain"):
        pass


def test_a_run_of_the_other_stage_is_refused(tmp_path):
    with open_run(tmp_path, SETTINGS, "pretrain"):
        pass
    with (
        pytest.raises(ConfigError, match="run of stage 'pretrain', not 'context'"),
        open_run(tmp_path, SETTINGS, "context"),
    ):
        pass


def test_b3_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(ResourceError, match="Permission denied"), open_run(tmp_path / "run", SETTINGS, "pretrain"):
        pass


def keep(folder, facts=FACTS):
    with open_run(folder, SETTINGS, "pretrain") as run:
        run.record_split(facts)
    return folder


def facts_of(*patients, digest="d1", **more):
    """As FACTS, keyed with the secret of whoever calls."""
    return split_record(
        people="manifest", recipe="patients", digest=digest, counts={"train": 3}, patients=patients, **more
    )


def unkeyed(facts):
    """As earlier versions wrote it: SHA-256 with a salt that is in the file."""
    patients = [
        hashlib.sha256(f"{facts['digest']}|manifest|{patient}".encode()).hexdigest()[:16] for patient in ("p17", "p18")
    ]
    return {**{name: value for name, value in facts.items() if name != "key"}, "patients": patients}


def test_o2_patients_are_known_by_keyed_digest_alone(tmp_path):
    keep(tmp_path)
    assert "p17" not in (tmp_path / "split.json").read_text()
    assert len(FACTS["patients"]) == 2
    assert seen_patients(tmp_path, "manifest", ["p16", "p17", "p19"]) == {"p17"}
    assert seen_patients(tmp_path, "chexpert", ["p17"]) == set()
    with pytest.raises(DataError, match="does not say which patients it was trained on"):
        seen_patients(tmp_path / "other", "manifest", [])


def test_o2_trying_every_id_finds_no_patient(tmp_path):
    text = (keep(tmp_path) / "split.json").read_text()
    salts = ("d1", "manifest", "d1|manifest", "")
    tried = {
        hashed(f"{salt}|{patient}".encode()).hexdigest()[:16]
        for hashed in (hashlib.sha256, hashlib.sha1, hashlib.md5)
        for salt in salts
        for patient in ("p17", "p18", "17", "18")
    }
    assert not any(guess in text for guess in tried)
    assert any(guess in json.dumps(unkeyed(FACTS)) for guess in tried)  # the search finds those of earlier versions


def test_a_split_of_an_earlier_version_is_read_and_keyed_when_it_is_carried_on(tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    (old / "split.json").write_text(json.dumps(unkeyed(FACTS)))
    assert seen_patients(old, "manifest", ["p17", "p19"]) == {"p17"}
    later = keep(tmp_path / "later", facts_of("p30", digest="d2", before=inherited_split(old)))
    assert not set(unkeyed(FACTS)["patients"]) & set(
        json.loads((later / "split.json").read_text())["before"]["patients"]
    )
    assert seen_patients(later, "manifest", ["p17", "p30", "p99"]) == {"p17", "p30"}


def test_a_run_of_an_earlier_version_is_resumed(tmp_path):
    keep(tmp_path, facts_of("p17", before=FACTS))
    path = tmp_path / "split.json"
    path.write_text(json.dumps({**unkeyed(FACTS), "before": unkeyed(FACTS)}))
    keep(tmp_path, facts_of("p17", "p18", before=FACTS))
    with pytest.raises(ConfigError, match="training data changed: digest 'd1'"):
        keep(tmp_path, facts_of("p17", "p18", digest="d9", before=FACTS))


def test_a_run_of_another_user_is_resumed_and_its_patients_are_unknown_unless_the_split_is_the_same(
    tmp_path, monkeypatch
):
    run = keep(tmp_path / "run")
    monkeypatch.setenv("CLEFT_USER_DIR", str(tmp_path / "other"))
    keep(run, facts_of("p17", "p18"))
    with pytest.raises(ConfigError, match="data changed: captions"):
        keep(run, facts_of("p17", "p18", captions="c"))
    with pytest.raises(DataError, match="written by another user or on another machine") as refused:
        seen_patients(run, "manifest", ["p17", "p19"], splits={"d7": {"p17"}})
    assert refused.value.reason == "unknown-training"
    assert seen_patients(run, "manifest", ["p17", "p19"], splits={"d1": {"p17", "p18"}}) == {"p17"}
    assert seen_patients(run, "chexpert", ["p17", "p19"]) == set()


def test_a_run_that_starts_from_another_knows_the_patients_of_both(tmp_path):
    later = {"people": "manifest", "recipe": "patients", "digest": "d2", "counts": {}, "patients": ["p30"]}
    for name, before in (("known", FACTS), ("unknown", None)):
        with open_run(tmp_path / name, SETTINGS, "context") as run:
            run.record_split(split_record(**later, before=before))
    assert seen_patients(tmp_path / "known", "manifest", ["p17", "p30", "p99"]) == {"p17", "p30"}
    with pytest.raises(DataError, match="does not say"):
        seen_patients(tmp_path / "unknown", "manifest", ["p30"])


def test_a_run_without_a_step_accepts_new_settings(tmp_path):
    with open_run(tmp_path, SETTINGS, "context") as run:
        run.record_split(FACTS)
    with open_run(tmp_path, replace(SETTINGS, classes=("Edema", "Fracture")), "context") as run:
        run.record_split({**FACTS, "digest": "d2"})
        assert load_settings(tmp_path).classes == ("Edema", "Fracture")


def test_a_refused_command_leaves_no_folder(tmp_path):
    folder = tmp_path / "runs" / "first"

    def refused():
        with open_run(folder, SETTINGS, "pretrain") as run:
            run.record_split(FACTS)
            (folder / "states").mkdir()
            raise DataError("there is no table")

    with pytest.raises(DataError):
        refused()
    assert not (tmp_path / "runs").exists()


def test_a_refused_command_leaves_what_was_there_before(tmp_path):
    mine = tmp_path / "runs" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("notes")
    with pytest.raises(DataError), open_run(tmp_path / "runs" / "first", SETTINGS, "pretrain"):
        raise DataError("there is no table")
    assert [path.name for path in mine.parent.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("trace", ["logs", "summary.json", "states/step-00000010.0000000000000000.ckpt"])
def test_a_run_with_steps_is_kept_when_it_fails(tmp_path, trace):
    folder = tmp_path / "first"

    def failed():
        with open_run(folder, SETTINGS, "pretrain"):
            (folder / trace).parent.mkdir(exist_ok=True)
            (folder / trace).touch() if "." in trace else (folder / trace).mkdir()
            raise DataError("an image is gone")

    with pytest.raises(DataError):
        failed()
    assert load_settings(folder) == SETTINGS


def test_a_run_that_is_resumed_and_refused_stays(tmp_path):
    with open_run(tmp_path / "first", SETTINGS, "pretrain"):
        pass
    with pytest.raises(DataError), open_run(tmp_path / "first", SETTINGS, "pretrain"):
        raise DataError("there is no table")
    assert load_settings(tmp_path / "first") == SETTINGS


@pytest.mark.parametrize("name", ["lock", ".probe", ".probe.tmp", "config.yaml", "environment.json"])
def test_a_link_in_a_run_folder_is_never_written_through(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "thesis.txt").write_text("three years")
    (tmp_path / "run" / name).symlink_to(tmp_path / "thesis.txt")
    with suppress(ConfigError, DataError), open_run(tmp_path / "run", SETTINGS, "pretrain"):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "three years"


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A cache; and a run that is finished and was evaluated, and one that is not, each with a training state."""
    place = tmp_path_factory.mktemp("purge")
    write_untrained_runs(place)
    evaluate_zero_shot(place / "plain", progress=False)
    for name in ("plain", "run"):
        store = StateStore(place / name / "states")
        store.save({"step": 3}, 3)
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


def test_o7_nothing_is_removed_without_yes_and_everything_is_listed(home, capsys):
    before = tree(home)
    assert main(["purge", str(home / "plain"), str(home / "cache")]) == 0
    said = capsys.readouterr().out
    assert tree(home) == before
    assert "would remove" in said
    assert "states: 1 file" in said
    assert "left: model, settings and logs" in said
    assert said.splitlines()[-1] == "nothing was removed yet; repeat the command with --yes to remove these files"


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
    assert "left: states: the run is not finished, and these are its only weights" in capsys.readouterr().out


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
            find_purges([home / name])


def test_o7_runs_are_found_in_a_folder_of_runs_and_a_run_in_use_is_left(home, capsys):
    assert {purge.place.name for purge in find_purges([home])} == {"plain", "run"}
    with open_run(home / "plain", load_settings(home / "plain"), "pretrain"):
        child = os.fork()
        if child == 0:
            os._exit(main(["purge", str(home / "plain"), "--yes"]))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert list((home / "plain" / "states").glob("*.ckpt"))
