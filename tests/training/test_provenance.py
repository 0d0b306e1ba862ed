"""The commands in unusual environments; none of them uses the network."""

import json
import os
import resource
import subprocess
import sys

import pytest
from tests.tools.tiny_runs import CLASSES, write_drawings

SPY = """
import os, socket

def record(kind, address):
    if not str(address).startswith(("/", "(b'", "b'")) and "127.0.0.1" not in str(address):
        with open(os.environ["SPY_FILE"], "a") as file:
            file.write(f"{kind} {address}\\n")

def spied(name, kind):
    original = getattr(socket.socket, name)
    def call(self, address, *rest):
        record(kind, address)
        return original(self, address, *rest)
    setattr(socket.socket, name, call)

spied("connect", "connect")
spied("connect_ex", "connect")
find = socket.getaddrinfo
def getaddrinfo(host, *rest, **more):
    record("look up", host)
    return find(host, *rest, **more)
socket.getaddrinfo = getaddrinfo
"""


def cleft(*words, limits=None, **variables):
    """Runs the command; `limits` is called in its process before."""
    return subprocess.run(
        [sys.executable, "-m", "cleft", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, **variables},
        preexec_fn=limits,
    )


def training(root, run, *more):
    """Words of a short stage one."""
    data = ["--data.dataset=manifest", f"--data.root={root}", f"--data.cache={run.parent / 'cache'}"]
    steps = "--optim.steps=4 --optim.warmup_steps=1 --train.val_every=2 --train.accelerator=cpu --data.val_fraction=0.3"
    return ["pretrain", "tiny", "--run", run, *data, *steps.split(), f"--classes=[{', '.join(CLASSES)}]", *more]


def test_o6_switches_of_other_libraries_are_set_before_they_are_imported():
    code = "import sys, os, cleft; names = ('HF_HUB_DISABLE_TELEMETRY', 'DISABLE_TELEMETRY', 'DO_NOT_TRACK'); "
    more = "print([os.environ[name] for name in names], 'huggingface_hub' in sys.modules, 'torch' in sys.modules)"
    clean = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name and name != "DO_NOT_TRACK"}
    seen = subprocess.run(
        [sys.executable, "-c", code + more], capture_output=True, text=True, check=True, env=clean
    ).stdout
    assert seen == "['1', '1', '1'] False False\n"


def test_o6_a_switch_that_the_user_has_set_stays():
    code = "import os, cleft; print(os.environ['DO_NOT_TRACK'])"
    words = [sys.executable, "-c", code]
    seen = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, "DO_NOT_TRACK": "0"})
    assert seen.stdout == "0\n"


@pytest.mark.slow
def test_o6_no_command_contacts_the_network(tmp_path):
    (tmp_path / "spy").mkdir()
    (tmp_path / "spy" / "sitecustomize.py").write_text(SPY)
    requests = tmp_path / "requests.txt"
    path = os.pathsep.join([str(tmp_path / "spy"), os.environ.get("PYTHONPATH", "")])
    offline = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE",)}
    spied = {**offline, "PYTHONPATH": path, "SPY_FILE": str(requests), "HF_HOME": str(tmp_path / "hf")}
    probe = "import socket; socket.getaddrinfo('localhost', 1)"
    subprocess.run([sys.executable, "-c", probe], env=spied, check=True)
    assert requests.read_text() == "look up localhost\n", "the spy works"
    requests.write_text("")
    root, runs = tmp_path / "phantoms", tmp_path / "runs"
    cache = f"--data.cache={tmp_path / 'cache'}"
    small = ["--optim.steps=4", "--optim.warmup_steps=1", "--train.val_every=2", "--train.accelerator=cpu"]
    tiny = [f"--data.root={root}", cache, *small]
    for words in (
        ["data", "phantoms", root, "--patients", "60", "--size", "64"],
        ["data", "template", tmp_path / "template"],
        ["data", "check", "chexpert", root, "--page", tmp_path / "check.html"],
        ["data", "split", "chexpert", root, "--out", tmp_path / "split.json"],
        ["data", "prepare", "tiny", *tiny],
        ["pretrain", "tiny", "--run", runs / "one", *tiny, "--data.workers=1"],
        ["learn-context", runs / "one", "--context.optim.steps=4", "--context.optim.warmup_steps=1"],
        ["classify", runs / "one"],
        ["evaluate", runs / "one"],
        ["evaluate", runs / "one", "--task", "retrieval"],
        ["evaluate", runs / "one-context", "--task", "prompts"],
        ["report", runs, "--out", tmp_path / "report.html"],
        ["reproduce", "table1", "--plan", "--scale", "tiny", "--data", f"chexpert={root}"],
        ["sizes", "tiny"],
        ["presets"],
        ["doctor"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "cleft", *map(str, words)], env=spied, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or words[0] == "doctor", (words, done.stderr)
        # Rows of the study start from published weights by their hub names; whether these can be had is looked up.
        allowed = {"look up huggingface.co"} if words[0] == "reproduce" else set()
        assert set(requests.read_text().splitlines()) <= allowed, words
        requests.write_text("")


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [
        {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "de_DE.UTF-8", "LC_NUMERIC": "de_DE.UTF-8"},
        {"HOME": "/nonexistent", "XDG_CACHE_HOME": "", "HF_HOME": ""},
    ],
    ids=["c-locale", "decimal-comma", "no-home"],
)
def test_n6_it_works_in_another_locale_and_without_a_home(tmp_path, variables):
    root = write_drawings(tmp_path / "data")
    result = cleft(*training(root, tmp_path / "run"), **variables)
    assert result.returncode == 0, result.stderr
    losses = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert losses["best_loss"] > 0


@pytest.mark.slow
def test_n6_long_and_accented_paths_with_spaces_work(tmp_path):
    deep = tmp_path / ("Röntgenbilder der Größe 1 " + "ä" * 80) / ("日本語 " * 20).strip()
    root = write_drawings(deep / "data")
    result = cleft(*training(root, deep / "läufe" / "erster lauf", "--data.workers=1"), LC_ALL="C")
    assert result.returncode == 0, result.stderr
    assert cleft("evaluate", deep / "läufe" / "erster lauf").returncode == 0


@pytest.mark.slow
def test_n6_few_file_handles_are_enough_or_named(tmp_path):
    root = write_drawings(tmp_path / "data")

    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    result = cleft(*training(root, tmp_path / "run", "--data.workers=2"), limits=few)
    assert result.returncode == 0 or (result.returncode == 6 and "error: " in result.stderr), result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_n6_a_temporary_folder_that_cannot_be_written_is_enough_or_named(tmp_path):
    root = write_drawings(tmp_path / "data")
    result = cleft(*training(root, tmp_path / "run", "--data.workers=2"), TMPDIR=str(tmp_path / "absent"))
    assert result.returncode == 0 or (result.returncode == 6 and "error: " in result.stderr), result.stderr
    assert "Traceback" not in result.stderr
