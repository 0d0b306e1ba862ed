"""A local hub that interrupts downloads, and hub models whose files change."""

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import BertConfig, BertModel

from cleft.config import Settings
from cleft.errors import ConfigError
from cleft.models.hub import read_config, resolved_commit
from cleft.training.provenance import record_commits, write_environment

SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 999,
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Serves the files of one model; while `breaks` is positive, downloads of weights stop half way."""

    folder: Path
    breaks = 0

    def log_message(self, *args):
        """Logs nothing."""

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer(head=False)

    def answer(self, *, head):
        _, _, name = self.path.partition("/resolve/")
        file = self.folder / name.partition("/")[2].partition("?")[0]
        if self.path == "/":
            return self.reply(200, b"", {}, head)
        if not name or not file.is_file():
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"}, head)
        data = file.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if not head and file.suffix == ".safetensors" and type(self).breaks > 0:
            type(self).breaks -= 1
            return self.reply(206 if start else 200, data[start:], headers, head, cut=(len(data) - start) // 2)
        return self.reply(206 if start else 200, data[start:], headers, head)

    def reply(self, code, data, headers, head, cut=None):
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not head:
            self.wfile.write(data[:cut])
            if cut is not None:
                self.wfile.flush()
                self.connection.close()


@pytest.fixture
def hub(tmp_path):
    torch.manual_seed(0)
    BertModel(BertConfig(**SHAPE)).save_pretrained(tmp_path / "served")
    handler = type("OneHub", (Hub,), {"folder": tmp_path / "served"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


LOAD = """
import sys
from cleft.errors import CleftError
from cleft.models.hub import pretrained_model, read_config, resolved_commit
try:
    model, missing = pretrained_model("some/bert", read_config("some/bert", "text.model"), "text.model")
except CleftError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(resolved_commit("some/bert"), sum(weight.double().sum().item() for weight in model.parameters()))
"""


def load_from(address, home):
    variables = {
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
    }
    return subprocess.run(
        [sys.executable, "-c", LOAD],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**{k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}, **variables},
    )


@pytest.mark.slow
def test_n3_a_hub_that_breaks_off_leaves_no_half_model_and_the_next_try_gets_a_whole_one(hub, tmp_path):
    handler, address = hub
    handler.breaks = 1000
    broken = load_from(address, tmp_path / "home")
    assert broken.returncode == 1, broken.stderr
    assert "Error: text.model='some/bert'" in broken.stderr
    assert "run the same command again" in broken.stderr
    snapshots = tmp_path / "home" / "hub" / "models--some--bert" / "snapshots"
    assert not list(snapshots.rglob("*.safetensors"))
    handler.breaks = 0
    whole = load_from(address, tmp_path / "home")
    assert whole.returncode == 0, whole.stderr
    expected = sum(w.double().sum().item() for w in BertModel.from_pretrained(handler.folder).parameters())
    commit, total = whole.stdout.split()
    assert (commit, float(total)) == (COMMIT, pytest.approx(expected))


def cached(folder, name, commit):
    """A hub name in the local cache, at a commit."""
    place = folder / f"models--{name.replace('/', '--')}"
    (place / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
    (place / "snapshots" / commit / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text(commit)


def test_n4_the_commit_of_a_hub_name_is_recorded_and_a_floating_name_warns(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    settings = replace(Settings(), text=replace(Settings().text, model="some/bert"))
    cached(tmp_path / "hub", "some/bert", COMMIT)
    path = tmp_path / "environment.json"
    write_environment(path, "pretrain")
    record_commits(path, settings)
    recorded = json.loads(path.read_text())["models"]["text.model"]
    assert recorded == {"name": "some/bert", "commit": COMMIT}
    assert caplog.text.count("some/bert may change on the hub") == 1
    caplog.clear()
    write_environment(path, "pretrain")
    record_commits(path, settings)
    assert not caplog.records
    cached(tmp_path / "hub", "some/bert", "f" * 40)
    write_environment(path, "pretrain")
    record_commits(path, settings)
    assert f"no longer bitwise reproducible: text.model some/bert has changed, commit {COMMIT}" in caplog.text


def test_n4_a_folder_is_at_no_commit(tmp_path):
    assert resolved_commit(str(tmp_path)) is None
    assert resolved_commit("not/in/any/cache/../x") is None


def test_n2_a_hub_name_without_a_network_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ConfigError, match=r"text\.model='some/bert' is neither a folder.*text\.model=<folder>"):
        read_config("some/bert", "text.model")
