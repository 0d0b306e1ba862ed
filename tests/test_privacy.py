"""No name, id or date of a patient leaves the folder of the data: every verb, every byte it prints or writes.

Canaries stand in DICOM headers, in columns that begin with `_`, in the patients' ids, in reports and in the names of
files.
"""

import csv
import importlib
import json
import os
import platform
import shutil
import socket
import sys
from pathlib import Path

import pytest
from tests.fakes.dicom import CANARIES, dicom_bytes
from tests.fakes.iu_xray import odd_reports, write_fake_kaggle, write_fake_openi
from tests.fakes.mimic import final, odd_studies, text_path, write_fake_mimic
from tests.fakes.mixed import FILE, NAMED, PATIENT, scene, write_mixed
from tests.fakes.mixed import LEAKS as IN_TABLE
from tests.tools.forks import forked
from tests.tools.tiny_methods import COMMON, towers_of

HOST = "WAXWINGHOST"
NOWHERE = ("CANARY", *CANARIES.values(), *IN_TABLE, HOST)


def typed(home, number, *words):
    """Runs one verb as the command line does, its streams in a file beside its outputs; returns its exit code."""

    def work():
        socket.gethostname = platform.node = lambda: HOST
        with (home / "streams" / f"{number}-{words[0]}-{words[1]}.txt".replace("/", "_")).open("w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            sys.stdout = open(1, "w", closefd=False)
            sys.stderr = open(2, "w", closefd=False)
            from cleft.cli import main

            code = main(list(words))
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)

    return forked(work)


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """From a mixed table to a page, all outputs in one folder beside the data; the codes of all verbs are 0."""
    for name in ("cleft.evaluation.zero_shot", "cleft.training.prompt_context", "cleft.training.pretrain"):
        importlib.import_module(name)  # once here, and not in each of the forked commands
    home = tmp_path_factory.mktemp("home-of-janedoe")
    (home / "out" / "streams").mkdir(parents=True)
    data, out = write_mixed(home / "data"), home / "out"
    settings = [
        *("--data.dataset", "manifest", "--data.root", str(data), "--data.cache", str(out / "cache")),
        *("--data.val_fraction", "0.2", "--classes", "Edema,Pleural Effusion", "--optim.steps", "4"),
        *("--optim.warmup_steps", "1", "--train.val_every", "2", "--train.save_every", "2"),
        *("--context.optim.steps", "4", "--context.optim.warmup_steps", "1", "--context.val_every", "2"),
        *("--train.accelerator", "cpu"),
    ]
    verbs = [
        [
            "data",
            "check",
            "manifest",
            str(data),
            "--page",
            str(out / "census.html"),
            "--json",
            str(out / "census.json"),
        ],
        ["data", "prepare", "tiny", *settings],
        ["pretrain", "tiny", "--run", str(out / "one"), *settings],
        ["learn-context", str(out / "one"), "--out", str(out / "two")],
        ["evaluate", str(out / "two")],
        ["report", str(out / "one"), str(out / "two"), "--out", str(out / "report.html")],
    ]
    verbs[0] += ["--decode", "60", "--images", "4"]
    verbs[1] += ["--jobs", "1"]
    codes = [typed(out, number, *words) for number, words in enumerate(verbs)]
    streams = "\n".join(path.read_text() for path in sorted((out / "streams").iterdir()))
    assert codes == [0] * len(verbs), streams
    return out


def leaks(folder, words):
    """Files, streams and names of files below a folder that hold any of some words, each with the word."""
    found = []
    for path in sorted(folder.rglob("*")):
        held = path.read_bytes() if path.is_file() else b""
        held += str(path.relative_to(folder)).encode()
        found += [f"{path.relative_to(folder)}: {word}" for word in words if word.encode() in held]
    return found


def test_o1_no_canary_is_in_any_output(walk):
    assert len([path for path in walk.rglob("*") if path.is_file()]) > 30
    assert leaks(walk, NOWHERE) == []


def test_o2_shared_files_contain_no_folder_user_or_machine(walk):
    shared = ("one", "two", "report.html", ".cleft-written")
    found = [leak for leak in leaks(walk, ("home-of-janedoe", str(walk), HOST)) if leak.split("/")[0] in shared]
    assert found == []
    assert "local:" in (walk / "one" / "config.yaml").read_text()
    assert any("home-of-janedoe" in leak for leak in leaks(walk, ("home-of-janedoe",)))  # what is for the owner alone


def test_o2_moved_run_finds_its_data_and_copied_run_asks_for_it(walk, tmp_path, monkeypatch):
    (tmp_path / "streams").mkdir()
    run, data = shutil.copytree(walk / "two", tmp_path / "moved"), str(walk.parent / "data")
    assert typed(tmp_path, 0, "evaluate", str(run)) == 0
    monkeypatch.setenv("CLEFT_USER_DIR", str(tmp_path / "other user"))
    cache = ["--data.cache", str(tmp_path / "cache")]
    assert typed(tmp_path, 1, "evaluate", str(run)) == 2
    said = next((tmp_path / "streams").glob("1-*")).read_text()
    assert "data.root names 'data' in a folder of another user or machine; set --data.root" in said
    assert typed(tmp_path, 2, "evaluate", str(run), "--data.root", data, *cache) == 0
    result = next((run / "results").glob("*.json")).read_text()
    assert "home-of-janedoe" not in result
    assert typed(tmp_path, 3, "learn-context", str(run), "--out", str(run), "--data.root", data, *cache) == 2
    resumed = shutil.copytree(walk / "one", tmp_path / "resumed")
    (resumed / "summary.json").unlink()
    again = ["pretrain", str(resumed), "--run", str(resumed), "--data.root", data, *cache]
    assert typed(tmp_path, 4, *again) == 0
    assert leaks(resumed, ("home-of-janedoe", str(tmp_path))) == []
    assert not list(Path.cwd().glob("local:*"))


def test_leaking_canary_is_detected(walk, tmp_path):
    (tmp_path / f"{FILE}.txt").write_bytes(b"\0\1LINNET Remark\2")
    assert leaks(tmp_path, NOWHERE)
    census = (walk / "census.json").read_text()
    assert '"DICOM"' in census
    assert "56" in census


def test_o1_messages_do_not_quote_file_headers(tmp_path):
    data = write_mixed(tmp_path / "data")
    (tmp_path / "streams").mkdir()
    deep = scene(0).astype("uint16")
    for number, bad in enumerate(
        [
            dicom_bytes(deep)[:-2000],
            dicom_bytes(None),
            dicom_bytes(deep, bits=12, photometric="CANARY"),
            dicom_bytes(deep, BitsAllocated=13),
            dicom_bytes(deep, PatientAge="CANARY", WindowCenter="1", WindowWidth="0"),
            dicom_bytes(deep)[:300] + b"CANARY" * 9,
        ]
    ):
        next((data / "the images").glob(f"{FILE}_{number:03}*")).write_bytes(bad)
    table = data / "manifest.csv"
    table.write_text(table.read_text().replace("_remark", "remark").replace("_born", "born"))
    page = ["--page", str(tmp_path / "census.html"), "--json", str(tmp_path / "census.json"), "--decode", "60"]
    assert typed(tmp_path, 0, "data", "check", "manifest", str(data), *page) == 3
    root = [
        "--jobs",
        "1",
        "--data.dataset",
        "manifest",
        "--data.root",
        str(data),
        "--data.cache",
        str(tmp_path / "cache"),
    ]
    assert typed(tmp_path, 1, "data", "prepare", "tiny", *root) == 3
    table.write_text(table.read_text().replace("remark", "_remark").replace("born", "_born"))
    assert typed(tmp_path, 2, "data", "prepare", "tiny", *root) == 3
    told = (tmp_path / "streams" / "0-data-check.txt").read_text()
    assert "column 'remark' holds text that is not a label" in told
    assert "cannot be decoded, " in told
    named = [word for word in NOWHERE if word != FILE]  # files may be named to those who must fix them
    assert leaks(tmp_path / "streams", named) == leaks(tmp_path / "cache", named) == []
    for page in ("census.html", "census.json"):
        assert not [word for word in named if word in (tmp_path / page).read_text()]


def test_patient_column_is_in_no_output(walk):
    printed = (walk / "streams" / "0-data-check.txt").read_text()
    assert "56 images of 28 patients can be used" in printed
    assert PATIENT not in printed
    assert "all 56 images have a report, 56 of them distinct" in printed


def test_messages_do_not_quote_reports(tmp_path):
    said = f"Seen by {NAMED}."
    studies = [study._replace(report=final(f"FINDINGS:  {said}")) for study in odd_studies()]
    reports = [report._replace(findings=said) for report in odd_reports()]
    roots = {
        "mimic": write_fake_mimic(tmp_path / "mimic", studies),
        "iu-xray": write_fake_openi(tmp_path / "openi", reports),
        "kaggle": write_fake_kaggle(tmp_path / "kaggle", reports),
        "torn": write_fake_openi(tmp_path / "torn", reports),
        "large": write_fake_mimic(tmp_path / "large", studies),
    }
    torn = roots["torn"] / "ecgen-radiology" / "1.xml"
    torn.write_text(torn.read_text().replace("</AbstractText>", f"<{NAMED}>", 1))
    (roots["large"] / "files" / text_path(studies[0])).write_text(said * 9_000)
    (tmp_path / "out" / "streams").mkdir(parents=True)
    codes = []
    for number, (name, root) in enumerate(roots.items()):
        dataset = {"kaggle": "iu-xray", "torn": "iu-xray", "large": "mimic"}.get(name, name)
        page = ["--page", str(tmp_path / "out" / f"{name}.html"), "--json", str(tmp_path / "out" / f"{name}.json")]
        codes.append(typed(tmp_path / "out", number, "data", "check", dataset, str(root), *page, "--images", "2"))
    assert codes == [0, 0, 0, 3, 3]
    assert "images have a report" in (tmp_path / "out" / "streams" / "0-data-check.txt").read_text()
    assert leaks(tmp_path / "out", (NAMED, NAMED.lower())) == []


TOLD = ("Quetzalcoatlson", "quetzalcoatlson", "19330214", "DZ5518", "Dz5518", "dz5518")
"""Name, date and number of whom the reports of a few patients tell."""


def write_reports(folder):
    """`write_mixed` with reports: of four patients with a name, of all with a clinic; a quarter is unlabelled."""
    write_mixed(folder)
    with (folder / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        about = "Mr. Quetzalcoatlson, seen 19330214 as DZ5518, is known to the ward. " if number // 2 % 7 == 3 else ""
        seen = "edema" if row["Edema"] == "1" else "effusion"
        row["report"] = (
            f"FINDINGS: There is {seen} of grade {number % 3}.\nIMPRESSION: {about}Told the Lammergeier clinic."
        )
        if number % 4 == 1:
            row["Edema"] = row["Pleural Effusion"] = ""
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def walk_of_reports(tmp_path_factory):
    """Vocabularies learned from whole reports, from sentences, and from captions that are reports; and what follows."""
    for name in ("evaluation.zero_shot", "evaluation.retrieval", "training.classify", "training.pretrain"):
        importlib.import_module(f"cleft.{name}")
    home = tmp_path_factory.mktemp("reports")
    (home / "out" / "streams").mkdir(parents=True)
    data, out = write_reports(home / "data"), home / "out"
    settings = [
        *(word for word in COMMON if not word.startswith("--classes")),
        *("--classes=[Edema, Pleural Effusion]", f"--data.root={data}", f"--data.cache={out / 'cache'}"),
    ]
    reads = {
        "mrm": ["--data.texts=whole", "--data.report_sections=whole"],
        "gloria": ["--data.texts=sentences"],
        "clip": [],
    }
    verbs = [
        ["pretrain", f"baseline-{method}", "--run", str(out / method), *settings, *towers_of(method), *more]
        for method, more in reads.items()
    ]
    verbs += [
        ["classify", str(out / "mrm"), "--out", str(out / "probe")],
        ["evaluate", str(out / "gloria"), "--task", "zero-shot"],
        ["evaluate", str(out / "clip"), "--task", "retrieval", "--split", "all", "--allow-overlap"],
        ["evaluate", str(out / "clip"), "--task", "prompts"],
        ["report", str(out), "--out", str(out / "report.html")],
    ]
    codes = [typed(out, number, *words) for number, words in enumerate(verbs)]
    streams = "\n".join(path.read_text() for path in sorted((out / "streams").iterdir()))
    assert codes == [0] * len(verbs), streams
    return out


def test_outputs_contain_no_names_dates_or_numbers_of_reports(walk_of_reports):
    assert len([path for path in walk_of_reports.rglob("*") if path.is_file()]) > 40
    assert leaks(walk_of_reports, (*NOWHERE, *TOLD)) == []


def test_vocabulary_has_words_of_many_patients_only(walk_of_reports):
    for method, word in {"mrm": "Lammergeier", "gloria": "lammergeier", "clip": "lammergeier"}.items():
        tokenizer = json.loads((walk_of_reports / method / "towers" / "text" / "tokenizer.json").read_text())
        assert f"\u0120{word}" in tokenizer["model"]["vocab"]
    said = (walk_of_reports / "streams" / "0-pretrain-baseline-mrm.txt").read_text()
    assert "distinct words occur in the texts of fewer than 5 patients" in said
