"""What is written where a user says: no option of any command replaces a file that the user made."""

import argparse
import gzip
import hashlib
import os
import stat
from pathlib import Path

import pytest
from tests.fakes.untrained import write_untrained_runs
from tests.tools.tiny_runs import write_drawings

from cleft import cli
from cleft.cli import options
from cleft.errors import ConfigError, ResourceError
from cleft.files import RECORD, Output, draft_folder

MINE = "image,patient,Edema\nmy.png,p1,1\n"


def paths_of(parser, verb=()):
    """Every option and argument of every command that takes a path, as (command, option)."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from paths_of(inner, (*verb, name))
        elif action.type in (options.read_path, Path):
            yield " ".join(verb), (action.option_strings or [action.dest])[0], action.type


READ = {
    *(("learn-context", "run"), ("classify", "run"), ("evaluate", "run"), ("evaluate", "--against")),
    *(("report", "folders"), ("import", "checkpoint"), ("import", "--tokenizer")),
    *(("data check", "root"), ("data split", "root"), ("data prepare", "root"), ("purge", "places")),
}
"""Paths that are read, or emptied of what this program wrote."""
FILES = {
    ("data check", "--page"): ["data", "check", "manifest", "{data}", "--decode", "3", "--page", "{out}"],
    ("data check", "--json"): ["data", "check", "manifest", "{data}", "--decode", "3", "--json", "{out}"],
    ("report", "--out"): ["report", "{runs}/plain", "--out", "{out}"],
    ("data prepare", "--rejects"): [
        *("data", "prepare", "tiny", "--data.dataset", "manifest", "--data.root", "{data}", "--jobs", "1"),
        *("--data.cache", "{tmp}/cache", "--rejects", "{out}"),
    ],
    ("data split", "--out"): ["data", "split", "manifest", "{data}", "--out", "{out}"],
    ("evaluate", "--embeddings"): ["evaluate", "{runs}/plain", "--embeddings", "{out}"],
}
"""Files that are written, each with a command that writes one."""
FOLDERS = {
    ("pretrain", "--run"): ["pretrain", "tiny", "--data.root", "{runs}/data", "--run", "{out}"],
    ("learn-context", "--out"): ["learn-context", "{runs}/plain", "--out", "{out}"],
    ("classify", "--out"): ["classify", "{runs}/plain", "--out", "{out}"],
    ("import", "--out"): ["import", "{data}/manifest.csv", "--out", "{out}"],
    ("reproduce", "--out"): ["reproduce", "table1", "--scale", "tiny", "--data=chexpert={runs}/data", "--out", "{out}"],
    ("data template", "folder"): ["data", "template", "{out}"],
    ("data phantoms", "folder"): ["data", "phantoms", "{out}", "--patients", "3", "--size", "64"],
}
"""Folders that are written, each with a command that writes one."""


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """Drawings with a table, and two runs."""
    home = tmp_path_factory.mktemp("stock")
    write_drawings(home / "drawings", patients=12)
    write_untrained_runs(home / "runs")
    return home


@pytest.fixture
def typed(stock, tmp_path, capsys):
    """Runs a command; returns its exit code and what it wrote to the error stream."""

    def run(words, out):
        fill = {"data": stock / "drawings", "runs": stock / "runs", "tmp": tmp_path, "out": out}
        code = cli.main([word.format(**fill) for word in words])
        return code, capsys.readouterr().err

    return run


def test_every_path_option_is_covered():
    found = list(paths_of(cli.build_parser()))
    assert {(verb, option) for verb, option, _ in found} == READ | set(FILES) | set(FOLDERS)
    assert not [each for each in found if each[2] is Path], "use _path, which knows ~"


@pytest.mark.parametrize("option", FILES)
def test_a_file_of_the_user_is_refused_before_anything_is_read(option, typed, tmp_path):
    out = tmp_path / "manifest.csv"
    out.write_text(MINE)
    nowhere = [word.replace("{data}", "/nowhere").replace("{runs}", "/nowhere") for word in FILES[option]]
    code, said = typed(nowhere, out)
    assert code == 2
    assert str(out) in said
    assert "exists" in said
    assert out.read_text() == MINE
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.csv"]


@pytest.mark.parametrize("option", FILES)
def test_an_earlier_output_is_replaced_unless_it_was_changed(option, typed, tmp_path):
    out = tmp_path / "a new folder" / "out put"
    for _ in range(2):
        code, said = typed(FILES[option], out)
        assert code == 0, said
    assert out.is_file()
    with out.open("ab") as file:
        file.write(b"\nmy notes")
    changed = out.read_bytes()
    assert typed(FILES[option], out)[0] == 2
    assert out.read_bytes() == changed
    if "--overwrite" in _options(option[0]):
        assert typed([*FILES[option], "--overwrite"], out)[0] == 0
        assert b"my notes" not in out.read_bytes()


@pytest.mark.parametrize("option", FILES)
def test_unwritable_outputs_are_refused(option, typed, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "mine.csv").write_text(MINE)
    (tmp_path / "link").symlink_to(tmp_path / "mine.csv")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    cases = {"folder": "is a folder", "link": "is a symbolic link", "dangling": "is a symbolic link"}
    cases |= {"pipe": "is not a regular file", "mine.csv/below": "is not a folder", "x" * 300: "cannot be a file name"}
    before = sorted(tmp_path.rglob("*"))
    for name, sentence in cases.items():
        code, said = typed(FILES[option], tmp_path / name)
        assert code in (2, 6), name
        assert sentence in said, (name, said)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "mine.csv").read_text() == MINE


@pytest.mark.parametrize("option", [("data check", "--page"), ("data check", "--json"), ("data prepare", "--rejects")])
def test_overwrite_does_not_replace_inputs(option, typed, stock, tmp_path):
    table = stock / "drawings" / "manifest.csv"
    before = table.read_bytes()
    (tmp_path / "twin.csv").hardlink_to(table)
    exclude = tmp_path / "exclude.csv"
    exclude.write_text("patient\np001\n")
    for out in (table, exclude):
        code, said = typed([*FILES[option], "--data.exclude_patients", str(exclude), "--overwrite"], out)
        assert code == 2
        assert "is among the files that this command reads" in said
    assert table.read_bytes() == before
    assert exclude.read_text() == "patient\np001\n"


def test_overwrite_does_not_replace_settings_files(typed, stock, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"extends: tiny\ndata:\n  dataset: manifest\n  root: {stock / 'drawings'}\n")
    before = mine.read_text()
    for option in ("--page", "--json"):
        code, said = typed(["data", "check", str(mine), option, "{out}", "--overwrite"], mine)
        assert code == 2
        assert "is among the files that this command reads" in said
    assert typed(["data", "prepare", str(mine), "--rejects", "{out}", "--overwrite"], mine)[0] == 2
    assert mine.read_text() == before


def test_hard_link_of_an_output_is_unchanged(tmp_path):
    (tmp_path / "mine.csv").write_text(MINE)
    (tmp_path / "out.csv").hardlink_to(tmp_path / "mine.csv")
    Output(tmp_path / "out.csv", "--out", overwrite=True).write("new")
    assert (tmp_path / "mine.csv").read_text() == MINE


def _options(verb):
    return {name for each, name in every_option(cli.build_parser()) if each == verb}


def every_option(parser, verb=()):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from every_option(inner, (*verb, name))
        for name in action.option_strings:
            yield " ".join(verb), name


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("option", FOLDERS)
def test_a_folder_of_the_user_keeps_every_byte(option, typed, tmp_path):
    out = tmp_path / "project"
    (out / "logs").mkdir(parents=True)
    (out / "logs" / "log.csv").write_text("mine")
    (out / "config.yaml").write_text("# my settings\nextends: tiny\nseed: 7\n")
    (out / "split.json").write_text("{}")
    (out / "environment.json").write_text('{"machine": "mine"}')
    for name in ("manifest.csv", "study.json", "study.html", "table1.csv"):
        (out / name).write_text(MINE)
    before = contents(out)
    code, said = typed(FOLDERS[option], out)
    assert code in (2, 3), said
    assert str(out) in said
    assert contents(out) == before


@pytest.mark.parametrize("option", FOLDERS)
def test_folder_with_user_settings_is_unchanged(option, typed, tmp_path):
    """Some commands write beside other files; none of them into these."""
    out = tmp_path / "project"
    out.mkdir()
    for name in ("config.yaml", "study.json", "manifest.csv"):
        (out / name).write_text("seed: 7\n")
    typed(FOLDERS[option], out)
    assert {name: (out / name).read_text() for name in ("config.yaml", "study.json", "manifest.csv")} == dict.fromkeys(
        ("config.yaml", "study.json", "manifest.csv"), "seed: 7\n"
    )


def test_record_has_the_format_of_sha256sum(tmp_path):
    for name, data in {"b.html": b"1", "a b.json": b"2", "new\nline\\": b"3"}.items():
        Output(tmp_path / name, "--out").write(data)
    lines = (tmp_path / RECORD).read_text().splitlines()
    assert f"{hashlib.sha256(b'2').hexdigest()}  a b.json" in lines
    assert f"\\{hashlib.sha256(b'3').hexdigest()}  new\\nline\\\\" in lines
    for name in ("b.html", "a b.json", "new\nline\\"):
        Output(tmp_path / name, "--out").write(b"again")


def test_a_file_that_only_has_the_name_of_an_output_is_not_replaced(tmp_path):
    Output(tmp_path / "page.html", "--out").write("page")
    (tmp_path / "page.html").rename(tmp_path / "kept.html")
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(ConfigError, match="was not written by cleft"):
        Output(tmp_path / "page.html", "--out").check()


@pytest.mark.parametrize("record", [b"\xff\xfe", b"0" * 64 + b"  page.html\n", b"", b"x\n" * 9])
def test_damaged_record_prevents_replacement(tmp_path, record):
    Output(tmp_path / "page.html", "--out").write("page")
    (tmp_path / RECORD).write_bytes(record)
    with pytest.raises(ConfigError, match="was not written by cleft"):
        Output(tmp_path / "page.html", "--out").check()


def test_output_is_recognised_after_a_crash(tmp_path, monkeypatch):
    Output(tmp_path / "page.html", "--out").write("old")
    from cleft import files

    write = files.write_whole

    def crash(path, data, **more):
        if path.name == "page.html":
            raise KeyboardInterrupt
        write(path, data, **more)

    monkeypatch.setattr(files, "write_whole", crash)
    with pytest.raises(KeyboardInterrupt):
        Output(tmp_path / "page.html", "--out").write("new")
    monkeypatch.undo()
    assert (tmp_path / "page.html").read_text() == "old"
    Output(tmp_path / "page.html", "--out").write("newer")


def test_a_read_only_file_is_not_replaced(tmp_path):
    Output(tmp_path / "page.html", "--out").write("page")
    (tmp_path / "page.html").chmod(0o444)
    with pytest.raises(ConfigError, match="is read-only"):
        Output(tmp_path / "page.html", "--out", overwrite=True).check()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused_at_once(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(ResourceError, match="cannot write into"):
        Output(tmp_path / "closed" / "deep" / "page.html", "--out").check()


def test_outputs_have_the_requested_permissions(tmp_path):
    Output(tmp_path / "page.html", "--page", mode=0o600).write("page")
    assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == 0o600


def test_compressed_split_is_reproducible_and_not_replaced(typed, tmp_path):
    words = FILES["data split", "--out"]
    out = tmp_path / "split.json.gz"
    assert typed(words, out)[0] == 0
    before = out.read_bytes()
    assert gzip.decompress(before)
    assert typed([*words, "--data.test_fraction", "0.4"], out)[0] == 2
    assert out.read_bytes() == before


def stopped(folder):
    with draft_folder(folder) as draft:
        (draft / "half").touch()
        raise KeyboardInterrupt


def test_a_draft_of_a_killed_process_is_removed_and_a_folder_of_the_user_in_its_place_is_not(tmp_path):
    mine = tmp_path / ".drawn.draft"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not a draft of cleft; move it away"), draft_folder(tmp_path / "drawn"):
        pass
    assert (mine / "thesis.txt").read_text() == "mine"
    (mine / "thesis.txt").unlink()
    mine.rmdir()
    mine.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="move it away"), draft_folder(tmp_path / "drawn"):
        pass
    mine.unlink()
    with pytest.raises(KeyboardInterrupt):
        stopped(tmp_path / "drawn")
    assert not list(tmp_path.iterdir())
    mine.mkdir()
    (mine / ".cleft-draft").touch()
    (mine / "half").touch()
    with draft_folder(tmp_path / "drawn") as draft:
        (draft / "whole").touch()
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["whole"]
    assert not mine.exists()
