"""Files are replaced in one step, and JSON is read only where it has one meaning."""

import ast
import os
import stat
from functools import partial
from pathlib import Path

import pytest

import cleft
from cleft.errors import CheckpointError, DataError
from cleft.files import read_limited, write_whole
from cleft.strict_json import DEEPEST, find_json, parse_json, read_json, write_json

REFUSED = {
    "nan": ('{"a": {"b": [1, NaN]}}', r"a\.b\[1\] is not a finite number"),
    "infinity": ('{"a": -Infinity}', "a is not a finite number"),
    "too large for a float": ('{"a": 1e999}', "a is not a finite number"),
    "too large a whole number": ('{"a": 1' + "0" * 400 + "}", "a is a number too large to use"),
    "too many digits": ('{"a":\n ' + "1" * 5000 + "}", "line 2: a number of more than 4300 digits"),
    "same key twice": ('{"a": [{"b": 1, "c": 2, "b": 3}]}', r"a\[0\] holds the key b twice"),
    "same key twice on top": ('{"a": 1, "a": 1}', "the file holds the key a twice"),
    "nested lists": ("[" * 10_000 + "]" * 10_000, f"more than {DEEPEST} lists"),
    "nested objects": ('{"a":' * 100 + "1" + "}" * 100, f"more than {DEEPEST} lists"),
    "half a character": ('{"a": "\\ud800"}', "a holds half a character"),
    "half a character as a key": ('{"\\udfff": {}}', "is half a character"),
    "latin-1": (b'{"a": "\xe9"}', "byte 7 is not UTF-8"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "byte 0 is not UTF-8"),
    "cut": ('{"a":\n [1, 2', "line 2 column 7: expecting ',' delimiter"),
    "nothing": ("", "line 1 column 1: expecting value"),
    "two values": ("{} {}", "line 1 column 4: extra data"),
    "a list": ("[]", "an object expected, found a list"),
    "a number": ("3", "an object expected, found a whole number"),
    "null": ("null", "an object expected, found null"),
    "a comment": ('{"a": 1} // one', "extra data"),
    "a control character": ('{"a": "\n"}', "invalid control character"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_json_is_refused_with_its_place(tmp_path, case):
    content, message = REFUSED[case]
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=message) as caught:
        read_json(path, error=CheckpointError, remedy="download it again")
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).endswith("; download it again")


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ('{"a": [1, 2.5, "x", true, null, {}]}', {"a": [1, 2.5, "x", True, None, {}]}),
        ('\ufeff{"a": 1}', {"a": 1}),
        ('{"a": "\\ud83d\\ude00"}', {"a": "\U0001f600"}),
        ('{"model_max_length": 1000000000000000019884624838656}', {"model_max_length": int(1e30)}),
        ('{"a":' * DEEPEST + "1" + "}" * DEEPEST, None),
    ],
)
def test_strict_json_is_read(tmp_path, text, tree):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert tree is None or read_json(tmp_path / "a.json") == tree


def test_top_level_list_is_read_on_request():
    assert parse_json("[1]", "a.json", top=list) == [1]
    with pytest.raises(DataError, match="a list expected, found an object"):
        parse_json("{}", "a.json", top=list)


def test_special_files_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, message in (("pipe", "not a regular file"), ("folder", "is a folder"), ("none", "is missing")):
        with pytest.raises(DataError, match=message):
            read_json(tmp_path / name)
    with pytest.raises(DataError, match="not a regular file"):
        read_json(Path("/dev/zero"))
    with pytest.raises(DataError, match="cannot be read"):
        read_json(tmp_path / "nul\0")


def test_a_large_file_is_refused(tmp_path):
    write_whole(tmp_path / "a", b"12345")
    assert read_limited(tmp_path / "a", limit=5) == b"12345"
    with pytest.raises(DataError, match="more than 4 bytes") as caught:
        read_limited(tmp_path / "a", limit=4, error=partial(DataError, reason="size"))
    assert caught.value.reason == "size"


def test_find_json_returns_none_only_for_a_missing_file(tmp_path):
    assert find_json(tmp_path / "a.json") is None
    (tmp_path / "a.json").symlink_to("nowhere")
    with pytest.raises(DataError, match="is missing"):
        find_json(tmp_path / "a.json")


def test_replaced_file_has_the_requested_permissions(tmp_path):
    for mode, found in ((0o600, 0o600), (0o644, 0o644), (None, 0o666 & ~umask())):
        write_whole(tmp_path / "a", "é", mode=mode)
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == found
    assert (tmp_path / "a").read_bytes() == "é".encode()
    assert os.listdir(tmp_path) == ["a"]


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"a": 1})
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="disk"):
        write_json(tmp_path / "a.json", {"a": 2})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_link_is_replaced_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "a").symlink_to("mine")
    write_whole(tmp_path / "a", "new")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "a").read_text() == "new"


def test_json_from_files_is_read_in_one_place():
    root = Path(cleft.__file__).parent
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("json.loads", "json.load")
        # What was written a line before is not read from a file.
        and not ast.unparse(node.args[0]).startswith("json.dumps(")
    }
    assert found <= {"strict_json.py"}


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def refuse(handle):
    raise OSError("the disk is gone")
