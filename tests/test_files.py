import os

import pytest

from cleft.files import file_key


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "folder" / "CANARY.png"
    path.parent.mkdir()
    path.write_bytes(b"bytes")
    os.utime(path, ns=(10**18, 10**18))
    return path


def test_file_key_is_stable_and_hides_the_path(file):
    assert file_key(file) == file_key(str(file)) == file_key(file, file.stat(), {})
    assert len(file_key(file)) == 32
    assert "CANARY" not in file_key(file)


def test_every_file_attribute_changes_the_key(file):
    status = file.stat()
    seen = {file_key(file, status)}
    for name in ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns"):
        facts = {key: getattr(status, key) for key in dir(status) if key.startswith("st_")}
        facts[name] += 1
        seen.add(file_key(file, type("Status", (), facts)))
    seen.add(file_key(file.parent / "other.png", status))
    assert len(seen) == 7


@pytest.mark.parametrize("memo", [None, {}], ids=["alone", "memo"])
def test_spelling_of_a_path_does_not_change_the_key(file, monkeypatch, memo):
    (file.parent.parent / "link").symlink_to("folder")
    (file.parent / "link.png").symlink_to(file)
    monkeypatch.chdir(file.parent)
    root = file.parent.parent
    ways = [
        file.name,
        f"./{file.name}",
        f"../folder/{file.name}",
        root / "link" / file.name,
        f"../link/../folder/{file.name}",
    ]
    assert {file_key(way, folders=memo) for way in [*ways, "link.png"]} == {file_key(file)}


def test_relative_path_has_another_key_in_another_folder(file, tmp_path, monkeypatch):
    other = tmp_path / "other" / file.name
    other.parent.mkdir()
    os.link(file, other)
    keys = set()
    for folder in (file.parent, other.parent):
        monkeypatch.chdir(folder)
        keys.add(file_key(file.name, folders={}))
    assert len(keys) == 2
