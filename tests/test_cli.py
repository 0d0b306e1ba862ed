"""Every verb through the front door: from drawing to page, and every way to be turned away with a sentence."""

import json
import re
import shutil
import stat
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from tests.fakes.fake_studies import small_study
from tests.fakes.models import edit_description
from tests.fakes.published import (
    mrm_state,
    native_clip_state,
    write_gloria,
    write_jit_archive,
    write_lightning,
    write_merges,
    write_tokenizer,
)

from cleft.cli import main
from cleft.data import DATASETS
from cleft.results import StudyCell


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """Phantoms, both stages, evaluations and a page, made once by the verbs themselves."""
    home = tmp_path_factory.mktemp("walk")
    data = ["--data.cache", str(home / "cache")]
    assert main(["data", "phantoms", str(home / "phantoms"), "--patients", "40"]) == 0
    root = ["--data.root", str(home / "phantoms"), "--data.val_fraction", "0.2", *data]
    assert main(["data", "prepare", "tiny", *root]) == 0
    assert main(["pretrain", "tiny", "--run", str(home / "one"), *root]) == 0
    assert main(["learn-context", str(home / "one"), "--out", str(home / "two")]) == 0
    assert main(["evaluate", str(home / "one"), "--task", "zero-shot"]) == 0
    assert (
        main(["evaluate", str(home / "one"), "--scoring", "present-absent", "--classes", "Edema", "--blank", "absent"])
        == 0
    )
    assert main(["evaluate", str(home / "two"), "--data", f"chexpert:{home / 'phantoms'}"]) == 0
    assert main(["report", str(home / "one"), str(home / "two"), "--out", str(home / "page.html")]) == 0
    return home


def test_report_is_one_page_without_external_resources(walk):
    page = (walk / "page.html").read_text()
    assert "zero-shot" in page
    assert "not a medical device" in page.lower()
    assert 'src="http' not in page
    assert not re.search(r'<(link|script|img|iframe)[^>]+(href|src)="(?!data:)', page)


def test_folder_of_runs_gives_one_page(walk, capsys):
    assert main(["report", str(walk), "--out", str(walk / "all.html")]) == 0
    assert "one and two" in (walk / "all.html").read_text()
    assert "open it in a browser" in capsys.readouterr().out


def test_result_file_becomes_a_cell_of_a_study(walk, tmp_path, capsys):
    run = walk / "two" / "results"
    (tmp_path / "runs").mkdir()
    for path in run.glob("*.json"):
        (tmp_path / "runs" / path.name).write_bytes(path.read_bytes())
    files = sorted((tmp_path / "runs").glob("zero-shot-*.json"))
    small_study(tmp_path, {})
    cell = StudyCell(row="cleft-lora", column="chexpert/zero-shot", state="done", results=(f"runs/{files[0].name}",))
    small_study(tmp_path, {}, cells=(cell,))
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "study.html").read_text()
    assert str(tmp_path / "study.html") in capsys.readouterr().out
    assert f'href="runs/{files[0].name}"' in page
    assert "Embedding map of CLEFT-LoRA" in page


def test_both_stages_write_a_model_folder(walk):
    for run in ("one", "two"):
        names = {path.name for path in (walk / run).iterdir()}
        assert {"config.yaml", "environment.json", "model.json", "model.safetensors", "results"} <= names


def test_two_runs_are_compared(walk, capsys):
    assert main(["evaluate", str(walk / "one"), "--against", str(walk / "two")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"accuracy one \d\.\d+, two \d\.\d+: difference [+-]\d\.\d+", out)
    [path] = (walk / "one" / "comparisons").iterdir()
    command = json.loads(path.read_text())["command"]
    assert command.startswith("cleft evaluate one --task zero-shot")
    assert command.endswith(" --against two")
    results = sorted(str(path) for path in (walk / "two" / "results").glob("*.json"))
    assert main(["evaluate", results[0], "--against", results[0]]) == 0
    assert "difference +0.000" in capsys.readouterr().out


HEADS = ("--scoring", "present-absent", "--classes", "Edema", "--blank", "absent", "--fraction", "0.5", "--seeds", "2")


@pytest.fixture(scope="module")
def heads(walk):
    """Two heads on the tower of the walk, where the verb puts them."""
    assert main(["classify", str(walk / "one"), *HEADS]) == 0
    return [walk / "one-linear-probe-50-percent" / f"seed-{seed}" for seed in (0, 1)]


def test_classifiers_are_trained_on_a_fraction_with_several_seeds(walk, heads, tmp_path, capsys):
    before = (heads[0] / "model.safetensors").stat().st_mtime_ns
    assert main(["classify", str(walk / "one"), *HEADS]) == 0  # finished, and only asked again
    assert (heads[0] / "model.safetensors").stat().st_mtime_ns == before
    said = capsys.readouterr().out
    assert all(f"{run}, seed {run.name[-1]}:" in said for run in heads)
    assert re.search(
        r"^auc: mean [01]\.\d{3}, from [01]\.\d{3} to [01]\.\d{3}, standard deviation .* over seeds 0, 1$", said, re.M
    )
    assert f"next: cleft report {heads[0]} {heads[1]}" in said
    assert main(["evaluate", str(heads[0]), "--split", "all", "--drop-overlap"]) == 0
    assert "linear-probe-chexpert-all-edema-standard-50-percent-seed-0-present-absent" in capsys.readouterr().out
    assert main(["report", *map(str, heads), "--out", str(tmp_path / "page.html")]) == 0
    assert "linear-probe" in (tmp_path / "page.html").read_text().lower()


def test_fine_tuned_model_is_evaluated_like_any_run(walk, capsys):
    words = ["--mode", "fine-tune", "--classify.steps", "2", "--classes", "Edema,Cardiomegaly"]
    assert main(["classify", str(walk / "one"), *words, "--out", str(walk / "tuned")]) == 0
    said = capsys.readouterr().out
    assert f"{walk / 'tuned'}, seed 0:" in said
    assert "mean" not in said
    assert main(["evaluate", str(walk / "tuned"), "--task", "fine-tune"]) == 0
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["evaluate", "one", "--task", "linear-probe"], 4, "one has no classifier"),
        (["classify", "one", "--fraction", "2"], 2, "classify.fraction=2.0 must be above 0 and at most 1"),
        (
            ["classify", "one", "--classify.steps", "5"],
            2,
            "classify.steps=5 does nothing with classify.mode=linear-probe",
        ),
        (["classify", "one", "--classes", "Edema", "--out", "x"], 2, "multi-class scoring needs two classes or more"),
        (["classify", "one", "--seeds", "0"], 2, "--seeds 0: at least one classifier is trained"),
        (["classify", "phantoms"], 2, "phantoms"),
    ],
)
def test_invalid_classifier_options_are_refused(walk, tmp_path, monkeypatch, capsys, words, code, sentence):
    monkeypatch.chdir(tmp_path)
    assert main([words[0], str(walk / words[1]), *words[2:]]) == code
    assert sentence in capsys.readouterr().err


def test_classifier_refuses_prompt_options(heads, capsys):
    assert main(["evaluate", str(heads[0]), "--prompts", "handwritten"]) == 2
    assert "--prompts handwritten does nothing with a classifier, whose classes are fixed" in capsys.readouterr().err


def test_a_finished_run_started_again_does_nothing(walk, capsys):
    before = (walk / "one" / "model.safetensors").stat().st_mtime_ns
    words = ["--data.root", str(walk / "phantoms"), "--data.val_fraction", "0.2", "--data.cache", str(walk / "cache")]
    assert main(["pretrain", "tiny", "--run", str(walk / "one"), *words]) == 0
    assert (walk / "one" / "model.safetensors").stat().st_mtime_ns == before


def test_a_run_folder_of_other_settings_is_refused(walk, capsys):
    words = ["--data.root", str(walk / "phantoms"), "--optim.lr", "0.5"]
    assert main(["pretrain", "tiny", "--run", str(walk / "one"), *words]) == 2
    assert "optim.lr" in capsys.readouterr().err


def test_settings_may_precede_the_preset(tmp_path, capsys):
    assert main(["pretrain", "--data.root", str(tmp_path / "nowhere"), "tiny", "--run", str(tmp_path / "run")]) == 3
    assert "nowhere" in capsys.readouterr().err


def test_a_setting_without_a_group_is_not_taken_for_the_preset(tmp_path, capsys):
    root = ["--data.root", str(tmp_path / "nowhere"), "--run", str(tmp_path / "run")]
    assert main(["pretrain", "--classes", "Edema,Fracture", "tiny", *root]) == 3
    assert main(["pretrain", "--classes", "", "tiny", *root]) == 2
    assert "--classes is empty" in capsys.readouterr().err


def test_template_is_written_and_its_check_reports_missing_images(tmp_path, capsys):
    assert main(["data", "template", str(tmp_path / "mine")]) == 0
    assert main(["data", "check", "manifest", str(tmp_path / "mine")]) == 3
    assert "all 4 images are not on disk" in capsys.readouterr().out


def test_valid_dataset_passes_the_check(walk, capsys):
    assert main(["data", "check", "chexpert", str(walk / "phantoms")]) == 0
    assert "Pleural Effusion" in capsys.readouterr().out


def test_synthetic_mammograms_have_tables(tmp_path, capsys):
    words = ["--kind", "mammogram", "--patients", "1", "--size", "64"]
    assert main(["data", "phantoms", str(tmp_path / "drawn"), *words]) == 0
    assert "cleft data check embed" in capsys.readouterr().out
    assert (tmp_path / "drawn" / "tables" / "EMBED_OpenData_metadata.csv").is_file()
    assert main(["data", "phantoms", str(tmp_path / "drawn"), "--patients", "1"]) == 3
    assert "holds other synthetic images" in capsys.readouterr().err


def test_split_file_is_used_by_every_command(walk, tmp_path, capsys):
    home, out = str(walk / "phantoms"), tmp_path / "shared" / "split.json"
    assert main(["data", "split", "chexpert", home, "--data.val_fraction", "0.3", "--out", str(out), "--hashed"]) == 0
    said = capsys.readouterr().out
    digest = re.search(r"split patients \(digest (\w+)\); salts: test cleft-test-v1, val cleft-val-v1", said)[1]
    assert "SHA-256 of train.csv: " in said
    assert re.search(r"^ +train +val +test$", said, re.MULTILINE)
    assert re.search(r"^patients +\d+ +\d+ +\d+$", said, re.MULTILINE)
    assert re.search(r"^Pleural Effusion +\d+\.\d %", said, re.MULTILINE)
    assert f"{out}: digests of ids" in said
    words = ["--data.root", home, "--data.cache", str(walk / "cache"), "--data.split_file", str(out)]
    assert main(["pretrain", "tiny", "--run", str(tmp_path / "one"), *words]) == 0
    assert main(["learn-context", str(tmp_path / "one"), "--out", str(tmp_path / "two")]) == 0
    assert main(["evaluate", str(tmp_path / "two")]) == 0
    [result] = (tmp_path / "two" / "results").glob("*.json")
    assert json.loads(result.read_text())["split_digest"] == digest
    assert all(json.loads((tmp_path / run / "split.json").read_text())["digest"] == digest for run in ("one", "two"))


def test_split_without_out_is_only_printed(walk, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "split", "chexpert", str(walk / "phantoms")]) == 0
    assert "salts" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_split_of_restricted_data_contains_digests_only(walk, tmp_path, monkeypatch):
    bound = replace(DATASETS["chexpert"], license_terms="Nothing may be passed on.")
    monkeypatch.setitem(DATASETS, "chexpert", bound)
    assert main(["data", "split", "chexpert", str(walk / "phantoms"), "--out", str(tmp_path / "split.json")]) == 0
    assert "patient0" not in (tmp_path / "split.json").read_text()


def test_check_writes_private_page_and_json(walk, tmp_path, capsys):
    words = ["--page", str(tmp_path / "new/census.html"), "--json", str(tmp_path / "new/census.json"), "--decode", "3"]
    assert main(["data", "check", "chexpert", str(walk / "phantoms"), *words]) == 0
    assert "12 of " in capsys.readouterr().out
    page, census = (tmp_path / "new/census.html").read_text(), json.loads((tmp_path / "new/census.json").read_text())
    assert (census["decoded"], census["faults"], len(census["thumbnails"])) == (12, [], 12)
    assert page.count("<img ") == 12
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").glob("census.*")} == {0o600}


def test_presets_and_doctor_print_their_lists(capsys):
    assert main(["presets"]) == 0
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "cleft-paper" in out
    assert "all requirements are met" in out


def test_parameters_are_counted_without_download(capsys):
    assert main(["sizes", "tiny", "cleft-paper"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["cleft-paper", "adapters", "2,621,440", "0"] for line in lines)
    assert any(line.split() == ["cleft-paper", "each", "token", "row", "2,560"] for line in lines)
    assert "not counted in 'all'" in lines[-1]


def test_trained_token_embeddings_are_counted(walk, capsys):
    run = walk / "one"
    rows = len(json.loads((run / "model.json").read_text())["trained_tokens"])
    assert main(["sizes", str(run)]) == 0
    lines = [line.split()[1:] for line in capsys.readouterr().out.splitlines()]
    assert ["embedding", "rows", f"{rows * 16:,}", "0"] in lines
    assert not any("--tokens" in line for line in lines)
    assert main(["sizes", "cleft-paper", "--tokens", "29"]) == 0
    lines = [line.split()[1:] for line in capsys.readouterr().out.splitlines()]
    assert ["embedding", "rows", "74,240", "0"] in lines
    assert ["all", "90,981,889", "2,594,249,984"] in lines


def test_the_authors_checkpoint_is_imported(shared, tmp_path):
    source = shared / "fixtures" / "official" / "official-lora.ckpt"
    assert main(["import", str(source), "--out", str(tmp_path / "model")]) == 0
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_evaluating_an_imported_model_names_missing_options(shared, walk, tmp_path, capsys):
    source = shared / "fixtures" / "official" / "official-lora.ckpt"
    main(["import", str(source), "--out", str(tmp_path / "model")])
    data = ["--data", f"chexpert:{walk / 'phantoms'}"]
    assert main(["evaluate", str(tmp_path / "model"), *data]) == 3
    assert "--allow-overlap" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "model"), *data, "--allow-overlap"]) in (2, 4)
    assert "--tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["pretrain", "tinny"], 2, "did you mean 'tiny'"),
        (["pretrain", "tiny", "--text.rnk", "4"], 2, "did you mean text.rank"),
        (["pretrain", "tiny", "--run", "{tmp}/run"], 2, "--data.root"),
        (["pretrain", "tiny", "--data.root", "{tmp}", "--run", "{tmp}/run"], 3, "train.csv"),
        (["learn-context", "{tmp}"], 2, "is not a run folder: it holds no config.yaml"),
        (["classify", "{tmp}/nowhere"], 2, "nowhere is not a run folder"),
        (["pretrain", "mgca"], 2, "no preset 'mgca'; did you mean 'baseline-mgca'?"),
        (["pretrain", "runs/gone"], 2, "and no YAML file or run folder of that name; cleft presets lists the presets"),
        (["evaluate", "{tmp}"], 2, "config.yaml"),
        (["evaluate", "{one}", "--classes", "Oedema"], 2, "Edema"),
        (["evaluate", "{one}", "--data", "chexprt:{tmp}"], 2, "chexpert"),
        (["report", "{tmp}", "--out", "{tmp}/page.html"], 3, "config.yaml"),
        (["report", "{one}", "--bla"], 2, "--bla"),
        (["report", "{tmp}/nowhere"], 3, "is not a run folder"),
        (["import", "{tmp}/absent.ckpt", "--out", "{tmp}/model"], 4, "absent.ckpt"),
        (["data", "check", "chexprt", "{tmp}"], 2, "did you mean 'chexpert'"),
        (["data", "check", "chexpert", "{home}/phantoms", "--images", "3"], 2, "name one with --page"),
        (["data", "check", "chexpert", "{home}/phantoms", "--decode", "0", "--page", "{file}/p.html"], 6, "--page"),
        (["data", "check", "chexpert", "{home}/phantoms", "--page", "{home}"], 2, "is a folder; name a file"),
        (["data", "check", "chexpert", "{home}/phantoms", "--json", "{home}"], 2, "is a folder; name a file"),
        (["data", "phantoms", "{one}"], 3, "is not empty"),
        (["data", "phantoms", "{tmp}/drawn", "--kind", "mammogram", "--size", "8"], 3, "set at least 1 patient"),
        (["data", "prepare", "tiny", "--data.root", "{tmp}/gone"], 3, "gone"),
        (["data", "split", "chexprt", "{tmp}"], 2, "did you mean 'chexpert'"),
        (["data", "split", "chexpert", "{home}/phantoms", "--hashed"], 2, "--out"),
        (["data", "split", "chexpert", "{home}/phantoms", "--out", "{file}"], 2, "exists and is not overwritten"),
        (["data", "split", "chexpert", "{home}/phantoms", "--data.split_file", "{file}"], 3, "is not a split file"),
        (["data", "split", "chexpert", "{home}/phantoms", "--data.test_list", "{file}"], 3, "page.html"),
        (["data", "split", "chexpert", "{home}/phantoms", "--out", "{file}/below"], 6, "page.html"),
        (["data", "prepare", "tiny", "--jobs", "0"], 2, "at least one process"),
        (["data", "prepare", "tiny", "--data.root", "{home}/phantoms", "--data.cache", "{file}"], 6, "is not a folder"),
        (["data", "phantoms", "{file}/below"], 6, "Not a directory"),
        (["data", "template", "{file}/below"], 6, "page.html is not a folder"),
    ],
)
def test_invalid_input_gives_message_and_exit_code(walk, tmp_path, capsys, words, code, sentence):
    typed = [word.format(tmp=tmp_path, home=walk, one=walk / "one", file=walk / "page.html") for word in words]
    assert main(typed) == code
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("error: ")
    assert sentence in said
    assert "Traceback" not in said


def test_debug_prints_the_traceback(capsys):
    assert main(["--debug", "pretrain", "tinny"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert main(["--debug", "evaluate", "nowhere", "--classes", "Edema"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_truncated_weights_are_refused(walk, tmp_path, capsys):
    run = shutil.copytree(walk / "one", tmp_path / "run")
    with (run / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    assert main(["evaluate", str(run)]) == 4
    assert "model.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "verb", "code"),
    [
        ("split.json", {}, "evaluate", 3),
        ("split.json", {"patients": 3, "digest": "x"}, "evaluate", 3),
        ("split.json", {"patients": [], "digest": "x", "before": 7}, "evaluate", 3),
        ("split.json", {"patients": [17], "digest": "x"}, "evaluate", 3),
        ("split.json", {"patients": [], "digest": 3}, "evaluate", 3),
        ("summary.json", {}, "pretrain", 0),
        ("summary.json", {"best_loss": "x"}, "pretrain", 3),
    ],
)
def test_edited_files_of_a_run_are_named(walk, tmp_path, capsys, file, content, verb, code):
    run = shutil.copytree(walk / "one", tmp_path / "run")
    (run / file).write_text(json.dumps(content))
    words = {"evaluate": [str(run)], "pretrain": [str(run / "config.yaml"), "--run", str(run)]}
    assert main([verb, *words[verb]]) == code
    assert code == 0 or file in capsys.readouterr().err


def test_model_json_that_contradicts_config_yaml_is_refused(walk, tmp_path, capsys):
    run = shutil.copytree(walk / "one", tmp_path / "run")
    edit_description(run, lambda tree: tree["settings"]["images"].update(size=33))
    assert main(["evaluate", str(run)]) == 4
    assert "model.json and config.yaml differ" in capsys.readouterr().err


def test_sigterm_during_data_phantoms_leaves_no_draft(tmp_path):
    words = [sys.executable, "-m", "cleft", "data", "phantoms", str(tmp_path / "drawn"), "--patients", "5000"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as drawing:
        while not list(tmp_path.glob(".drawn.draft/*/train/*")):
            time.sleep(0.05)
        drawing.terminate()
        said = drawing.communicate()[1]
    assert drawing.returncode == 143
    assert said.startswith("error: stopped by SIGTERM")
    assert not list(tmp_path.iterdir())


@pytest.mark.benchmark
def test_help_is_printed_in_half_a_second():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "cleft", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5


WITH_SETTINGS = ("pretrain", "learn-context", "classify", "reproduce", "data check", "data split", "data prepare")


@pytest.mark.parametrize(
    "command", [*WITH_SETTINGS, "evaluate", "report", "import", "data", "data phantoms", "sizes", ""]
)
def test_help_is_short(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert len(out.splitlines()) <= 80
    assert ("--help-all lists all" in out) == (command in WITH_SETTINGS)


@pytest.mark.parametrize("command", WITH_SETTINGS)
def test_long_help_lists_every_setting_and_short_help_explains_some(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help-all"])
    assert ended.value.code == 0
    assert "--text.end_token_attends_itself" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    usual = capsys.readouterr().out.partition("--help-all lists all):")[2]
    listed = re.findall(r"^  --([\w.]+) +(\S.*)$", usual, re.MULTILINE)
    assert len(listed) >= 5
    assert all(len(meaning) > 3 for _, meaning in listed)


def test_openai_archive_is_imported_with_its_bpe_file(tmp_path, capsys):
    path = write_jit_archive(tmp_path / "ViT-B-32.pt", native_clip_state())
    words = ["import", str(path), "--out", str(tmp_path / "ours")]
    assert main([*words, "--tokenizer", str(write_merges(tmp_path / "bpe_simple_vocab_16e6.txt.gz"))]) == 0
    assert "ours is a model; next: cleft evaluate" in capsys.readouterr().out


def test_imported_models_refuse_unsupported_tasks(walk, tmp_path, capfd):
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    both, tower = tmp_path / "gloria", tmp_path / "mrm"
    write_gloria(tmp_path / "theirs.ckpt")
    write_lightning(tmp_path / "MRM.pth", mrm_state())
    assert main(["import", str(tmp_path / "theirs.ckpt"), "--out", str(both), "--tokenizer", str(tokenizer)]) == 0
    assert main(["import", str(tmp_path / "MRM.pth"), "--out", str(tower), "--tokenizer", str(tokenizer)]) == 0
    assert "LOAD REPORT" not in "".join(capfd.readouterr())
    for words, code, sentence in [
        (["evaluate", str(both)], 2, "no data given, and the run has none"),
        (["classify", str(tower)], 2, "no data given, and the run has none"),
        (["evaluate", str(tower)], 4, "has an image tower but no text tower"),
        (["evaluate", str(tower), "--task", "retrieval"], 4, "retrieve images by images only"),
        (["learn-context", str(tower)], 4, "has an image tower but no text tower"),
        (["evaluate", str(both), "--task", "linear-probe"], 4, "has no classifier"),
        (
            ["import", str(tmp_path / "MRM.pth"), "--method", "gloria", "--out", str(tmp_path / "x")],
            4,
            "of MRM, not of",
        ),
    ]:
        assert main(words) == code
        assert sentence in capfd.readouterr().err
    root = ["--data.root", str(walk / "phantoms"), "--data.split", "patients", "--data.cache", str(walk / "cache")]
    steps = ["--optim.steps=2", "--optim.warmup_steps=1", "--train.batch_size=4", "--train.accelerator=cpu"]
    assert main(["pretrain", str(both), "--run", str(tmp_path / "anew"), *root, *steps]) == 0
    assert "its settings are used, but not its weights" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (MemoryError(), 6, "error: out of memory; lower"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), 6, "error: out of memory; lower"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
            6,
            "error: a loader worker was killed",
        ),
        (
            RuntimeError("DataLoader timed out after 120 seconds"),
            3,
            "error: no image came from a loader worker for 120 s",
        ),
    ],
)
def test_a6_a7_out_of_memory_in_any_command_is_a_message(monkeypatch, capsys, error, code, says):
    def failing():
        raise error

    monkeypatch.setattr("cleft.config.preset_summaries", failing)
    assert main(["presets"]) == code
    assert says in capsys.readouterr().err


def test_internal_errors_are_not_hidden(monkeypatch):
    def failing():
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("cleft.config.preset_summaries", failing)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        main(["presets"])


def test_commands_report_loading_at_once(capsys):
    assert main(["pretrain", "tinny"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "loading PyTorch and the other libraries ..."
    assert second.startswith("error: no preset 'tinny'")
