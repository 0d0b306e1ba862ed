"""The user's folder: the secret that keys digests, and the paths that files name by a token."""

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cleft.errors import ConfigError
from cleft.privacy import (
    _passing_secret,
    _warn_once,
    expand_user,
    find_path,
    hide_path,
    is_hidden,
    key_id,
    path_from,
    protect,
    user_folder,
)


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A user's folder that does not exist yet."""
    monkeypatch.setenv("CLEFT_USER_DIR", str(tmp_path / "user" / "cleft"))
    _warn_once.cache_clear()
    return tmp_path / "user" / "cleft"


def test_user_folder_precedence(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "/xdg")
    monkeypatch.setenv("CLEFT_USER_DIR", "~/mine")
    assert user_folder() == tmp_path / "mine"
    monkeypatch.delenv("CLEFT_USER_DIR")
    assert user_folder() == Path("/xdg/cleft")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert user_folder() == tmp_path / ".local" / "share" / "cleft"


def test_secret_is_created_once_with_private_permissions(user):
    first = protect("a"), key_id()
    assert (protect("a"), key_id()) == first
    assert stat.S_IMODE((user / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE(user.stat().st_mode) == 0o700
    assert [path.name for path in user.iterdir()] == ["secret"]
    (user / "secret").unlink()
    assert protect("a") != first[0]
    assert key_id() != first[1]


def test_concurrent_processes_share_one_secret(user):
    code = "from cleft.privacy import key_id; print(key_id())"
    children = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(6)]
    assert len({child.communicate()[0] for child in children}) == 1
    assert [path.name for path in user.iterdir()] == ["secret"]


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 64, b"0" * 63, b"g" * 64])
def test_a_damaged_secret_is_reported_and_never_replaced(user, content):
    user.mkdir(parents=True)
    (user / "secret").write_bytes(content)
    with pytest.raises(ConfigError, match=r"is damaged: .* restore it from a backup, or move it away"):
        protect("a")
    assert (user / "secret").read_bytes() == content


def test_readable_secret_gives_a_warning(user, caplog):
    protect("a")
    (user / "secret").chmod(0o644)
    with caplog.at_level(logging.WARNING, logger="cleft"):
        protect("a")
    assert f"chmod 600 {user / 'secret'}" in caplog.text


def test_secret_of_the_process_is_used_without_a_user_folder(user, caplog):
    user.parent.mkdir(parents=True)
    user.write_text("a file")
    _passing_secret.cache_clear()
    with caplog.at_level(logging.WARNING, logger="cleft"):
        assert protect("a") == protect("a")
    assert "set CLEFT_USER_DIR to a permanent folder" in caplog.text
    first = protect("a")
    _passing_secret.cache_clear()
    assert protect("a") != first


def test_without_a_home_folder_the_variable_is_named(monkeypatch, caplog):
    monkeypatch.delenv("CLEFT_USER_DIR")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    _warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="cleft"):
        key_id()
    assert "there is no home folder; set CLEFT_USER_DIR" in caplog.text


@pytest.mark.parametrize("path", ["/data/jane/CheXpert", "../CheXpert", "~/CheXpert", "/", "sub/../../x", "/a/b c é"])
def test_private_path_is_hidden_and_resolved(user, path):
    hidden = hide_path(path)
    assert hidden.startswith("local:")
    assert "jane" not in hidden
    assert is_hidden(hidden)
    assert find_path(hidden) == path
    assert hide_path(path) == hidden


def test_plain_relative_path_is_unchanged(user):
    assert [hide_path(path) for path in ("phantoms", "data/images")] == ["phantoms", "data/images"]
    assert not is_hidden("phantoms")


def test_a_relative_path_with_the_name_of_user_or_machine_is_hidden(user, monkeypatch):
    monkeypatch.setattr("cleft.privacy.names_here", lambda: ("janedoe", "wkst77"))
    assert hide_path("data/JaneDoe-CheXpert").endswith("/folder")
    assert hide_path("wkst77/CheXpert").endswith("/CheXpert")


def test_path_of_another_user_is_not_resolved(user, monkeypatch, tmp_path):
    hidden = hide_path("/data/CheXpert")
    monkeypatch.setenv("CLEFT_USER_DIR", str(tmp_path / "other"))
    assert find_path(hidden) == hidden
    assert find_path("local:../../etc/passwd/x") == "local:../../etc/passwd/x"


def test_tilde_is_expanded_and_unknown_user_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_user("~/a") == f"{tmp_path}{os.sep}a"
    assert expand_user("a/~b") == "a/~b"
    with pytest.raises(ConfigError, match="no home folder is known for it"):
        expand_user("~nosuchuser/a")


def test_path_to_another_run_is_relative_unless_private(user, monkeypatch, tmp_path):
    (tmp_path / "runs").mkdir()
    assert path_from(tmp_path / "runs" / "probe", tmp_path / "runs" / "one") == "../one"
    far = path_from(Path("/scratch/probe"), Path("/data/jane/one"))
    assert far.startswith("local:")
    assert far.endswith("/one")
    assert find_path(far) == "/data/jane/one"
    monkeypatch.setattr("cleft.privacy.names_here", lambda: ("janedoe",))
    assert path_from(tmp_path / "runs", tmp_path / "janedoe" / "one").startswith("local:")
