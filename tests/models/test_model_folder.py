"""Loading never writes inside or outside a model folder, even a hostile one; saving follows no link."""

import json
import os
import shutil

import pytest
from tests.fakes.models import edit_description, fake_model, fake_settings
from tests.tools.snapshots import snapshot

from cleft.cli import main
from cleft.errors import CheckpointError, ConfigError
from cleft.models.checkpoint import load_model, save_model, weights_digest
from cleft.models.model_folder import (
    check_place,
    digest_of,
    name_fault,
    parse_description,
    peek_description,
    read_folder,
    seal,
    write_folder,
)

FACTS = {"bytes": 0, "sha256": "0" * 64}
WEIGHTS = {"model.safetensors": FACTS}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(fake_model(fake_settings()), fake_settings(), folder)
    return folder


@pytest.fixture
def place(saved, tmp_path):
    """A user's documents next to a model folder."""
    home = tmp_path / "home"
    (home / "documents/notes").mkdir(parents=True)
    (home / "documents/thesis.txt").write_text("three years")
    (home / "documents/notes/a.txt").write_text("a")
    (home / ".bashrc").write_text("alias ll='ls -l'")
    shutil.copytree(saved, home / "model")
    return home


def stage(model, files, **content):
    """An interrupted save written by an attacker."""
    (model / ".saving").mkdir()
    for name, text in content.items():
        (model / ".saving" / name).write_text(text)
    tree = {"made_by": {}, "settings": {}, "trained_tokens": []}
    (model / ".saving/model.json").write_text(seal(tree, files))
    return model / ".saving"


def towers_is_a_link(model):
    shutil.rmtree(model / "towers")
    (model / "towers").symlink_to(model.parent / "documents")
    stage(model, {})


def old_form_and_towers_is_a_link(model):
    towers_is_a_link(model)
    (model / ".saving/model.json").write_text('{"schema": 1, "files": {}}')


def a_name_leads_out(model):
    stage(model, {**WEIGHTS, "../payload": FACTS})
    (model / "payload").write_text("payload")


def a_name_leads_out_of_towers(model):
    stage(model, {**WEIGHTS, "towers/../../.bashrc": FACTS}, payload="curl | sh")


def a_link_below_the_stage(model):
    folder = stage(model, {**WEIGHTS, "link/.bashrc": FACTS})
    (model / "link").symlink_to(model.parent)
    (folder / "link").mkdir()
    (folder / "link/.bashrc").write_text("curl | sh")


def the_stage_is_a_link(model):
    stage(model, {"model.safetensors": FACTS}).rename(model.parent / "elsewhere")
    (model / ".saving").symlink_to(model.parent / "elsewhere")


def the_staged_description_is_a_link(model):
    path = stage(model, {}) / "model.json"
    path.unlink()
    path.symlink_to(model / "model.json")


def an_absolute_name(model):
    stage(model, {**WEIGHTS, str(model.parent / ".bashrc"): FACTS})


def the_stage_lists_the_description(model):
    stage(model, {**WEIGHTS, "model.json": FACTS})


def a_pipe_in_the_stage(model):
    os.mkfifo(stage(model, {"model.safetensors": FACTS}) / "model.safetensors")


def the_staged_description_is_a_pipe(model):
    (stage(model, {}) / "model.json").unlink()
    os.mkfifo(model / ".saving/model.json")


def the_staged_description_is_a_folder(model):
    (stage(model, {}) / "model.json").unlink()
    (model / ".saving/model.json").mkdir()


def an_empty_stage_lists_files(model):
    stage(model, {"model.safetensors": FACTS, "towers/text/tokenizer.json": FACTS})


def the_weights_are_a_link(model):
    (model / "model.safetensors").rename(model.parent / "weights")
    (model / "model.safetensors").symlink_to(model.parent / "weights")


def the_description_is_a_link(model):
    (model / "model.json").rename(model.parent / "description")
    (model / "model.json").symlink_to(model.parent / "description")


def the_tokenizer_is_a_link(model):
    (model / "towers/text").rename(model.parent / "tokenizer")
    (model / "towers/text").symlink_to(model.parent / "tokenizer")


def the_weights_are_a_pipe(model):
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")


def the_description_is_a_pipe(model):
    (model / "model.json").unlink()
    os.mkfifo(model / "model.json")


def an_unlisted_link(model):
    (model / "towers/text/more").symlink_to(model.parent / "documents")


def an_unlisted_pipe(model):
    os.mkfifo(model / "towers/text/chat_template.jinja")


ATTACKS = [
    towers_is_a_link,
    old_form_and_towers_is_a_link,
    a_name_leads_out,
    a_name_leads_out_of_towers,
    a_link_below_the_stage,
    the_stage_is_a_link,
    the_staged_description_is_a_link,
    an_absolute_name,
    the_stage_lists_the_description,
    a_pipe_in_the_stage,
    the_staged_description_is_a_pipe,
    the_staged_description_is_a_folder,
    an_empty_stage_lists_files,
    the_weights_are_a_link,
    the_description_is_a_link,
    the_tokenizer_is_a_link,
    the_weights_are_a_pipe,
    the_description_is_a_pipe,
    an_unlisted_link,
    an_unlisted_pipe,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_hostile_folder_is_refused_and_unchanged(place, attack):
    attack(place / "model")
    before = snapshot(place)
    for read in (load_model, weights_digest, read_folder):
        with pytest.raises(CheckpointError):
            read(place / "model")
    assert snapshot(place) == before


@pytest.mark.parametrize("attack", ATTACKS[:6], ids=lambda attack: attack.__name__)
def test_evaluate_refuses_a_hostile_folder_and_leaves_it_unchanged(place, capsys, attack):
    attack(place / "model")
    (place / "model/config.yaml").write_text("seed: 0\n")
    before = snapshot(place)
    assert main(["evaluate", str(place / "model"), "--data", f"chexpert:{place}"]) in (2, 4)
    assert "Traceback" not in capsys.readouterr().err
    assert snapshot(place) == before


@pytest.mark.parametrize(
    "attack",
    [towers_is_a_link, the_stage_is_a_link, the_weights_are_a_link, the_description_is_a_link, the_tokenizer_is_a_link],
    ids=lambda attack: attack.__name__,
)
def test_a_save_follows_no_link(place, attack):
    attack(place / "model")
    before = snapshot(place)
    with pytest.raises(ConfigError, match="is a symbolic link"):
        save_model(fake_model(fake_settings()), fake_settings(), place / "model")
    assert snapshot(place) == before


@pytest.mark.parametrize(
    "attack", [a_name_leads_out, a_name_leads_out_of_towers, a_link_below_the_stage, an_absolute_name]
)
def test_a_save_does_not_finish_a_hostile_save(place, attack):
    attack(place / "model")
    before = snapshot(place)
    with pytest.raises(ConfigError, match="lists the file"):
        save_model(fake_model(fake_settings()), fake_settings(), place / "model")
    assert snapshot(place) == before


def test_a_save_replaces_and_removes_nothing_that_cleft_did_not_write(place):
    for name in ("model.safetensors", "towers/text/mine.txt", "towers/mine.txt"):
        folder = place / f"of {name.replace('/', ' ')}"
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("mine")
        with pytest.raises(ConfigError, match=rf"{name} was not written by cleft and is not replaced"):
            save_model(fake_model(fake_settings()), fake_settings(), folder)
        assert (folder / name).read_text() == "mine"
        assert os.listdir(folder) == [name.split("/")[0]]


@pytest.mark.parametrize("content", ["{}", '{"name": "my web app"}', "{"])
def test_a_save_does_not_replace_the_model_json_of_another_program(tmp_path, content):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(ConfigError, match=r"model\.json that is not of a model"):
        check_place(tmp_path)
    assert (tmp_path / "model.json").read_text() == content


def test_an_interrupted_complete_save_is_loaded_from_its_staging_folder(saved, tmp_path, monkeypatch):
    shutil.copytree(saved, tmp_path / "model")
    other = fake_settings("vit")
    with monkeypatch.context() as patched:
        patched.setattr("os.link", stop)
        with pytest.raises(KeyboardInterrupt):
            save_model(fake_model(other), other, tmp_path / "model")
    before = snapshot(tmp_path)
    assert load_model(tmp_path / "model").image_tower.config.scratch == other.image.scratch
    assert peek_description(tmp_path / "model")["settings"]["image"]["scratch"]["model_type"] == "vit"
    assert snapshot(tmp_path) == before
    save_model(fake_model(fake_settings()), fake_settings(), tmp_path / "model")
    assert weights_digest(tmp_path / "model") == weights_digest(saved)


def stop(*_):
    raise KeyboardInterrupt


def test_an_interrupted_save_of_an_earlier_version_is_reported_with_a_fix(place):
    shutil.copytree(place / "model", place / "model/.saving")
    (place / "model/.saving/model.safetensors").unlink()  # moved into its place already
    with pytest.raises(CheckpointError, match="its last save was interrupted; save it again"):
        load_model(place / "model")
    save_model(fake_model(fake_settings()), fake_settings(), place / "model")
    load_model(place / "model")


OUTSIDE = [
    *"../x /x towers/../x towers//x towers/text/.. towers/text/. ./model.safetensors towers/text/ towers".split(),
    *"towers/text towers/other/x towers\\text\\x C:/x towers/text/C: towers/text/nul towers/text/COM1.json".split(),
    *("x", "model.json"),
    *".saving/x towers/text/a/b/c towers/text/.hidden Towers/text/x MODEL.SAFETENSORS towers/text/x.".split(),
    *("", "towers/text/a b", "towers/text/a\0", "towers/text/a\n", "model.safetensors ", "towers/text/" + "x" * 101),
    *("towers/text/\N{LATIN SMALL LETTER E WITH ACUTE}", "towers/text/x\N{FULLWIDTH SOLIDUS}y"),
]


@pytest.mark.parametrize("name", OUTSIDE, ids=ascii)
def test_invalid_file_names(place, name):
    assert name_fault(name)
    edit_description(place / "model", lambda tree: tree["files"].update({name: FACTS}))
    with pytest.raises(CheckpointError, match="lists the file"):
        load_model(place / "model")


@pytest.mark.parametrize(
    "name",
    "model.safetensors towers/image/config.json towers/text/vocab.txt towers/text/spiece.model "
    "towers/text/additional_chat_templates/rag.jinja towers/text/special_tokens_map.json".split(),
)
def test_valid_file_names(name):
    assert name_fault(name) is None


def test_names_that_differ_only_in_case_are_refused(place):
    facts = peek_description(place / "model")["files"]["towers/text/tokenizer.json"]
    edit_description(place / "model", lambda tree: tree["files"].update({"towers/text/Tokenizer.json": facts}))
    with pytest.raises(CheckpointError, match="twice, in different letter case"):
        load_model(place / "model")


def test_every_one_byte_change_of_the_description_is_refused(saved):
    content = (saved / "model.json").read_bytes()
    parse_description(content, "model.json")
    for place in range(len(content)):
        old = content[place]
        digit = old + 1 if chr(old) in "012345678" else old ^ 1
        for new in (bytes([digit]), bytes([old ^ 0x20]), bytes([old ^ 0x80]), b"", b" " + bytes([old])):
            with pytest.raises(CheckpointError):
                parse_description(content[:place] + new + content[place + 1 :], "model.json")
    for changed in (content + b"\n", content[:-1], content.replace(b"\n", b"\r\n"), b""):
        with pytest.raises(CheckpointError):
            parse_description(changed, "model.json")


def test_a_description_that_claims_the_old_schema_is_still_checked(place):
    path = place / "model/model.json"
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 1'))
    with pytest.raises(CheckpointError, match="its digest differs"):
        load_model(place / "model")


VALUES = [None, [], {}, "x", 0, -1, 1.5, 10**30, True, [None], {"x": None}, [[1]], "", [10**30], {"name": 1}]
FIELDS = {
    "schema": (),
    "made_by": ({},),
    "method": (),
    "settings": (),
    "embed_dim": (0,),
    "context_length": (0,),
    "base": (None,),
    "trained_tokens": ([],),
    "token_ids": (None,),
    "weights": (0,),
    "extra": ({}, {"x": None}, {"name": 1}),
    "head": (None,),
    "tower": ("x", ""),
    "tower_weights": (),
    "files": (),
}


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_the_wrong_type_is_named(place, field, sealed):
    content = (place / "model/model.json").read_text()
    for value in VALUES:
        if any(value == good and type(value) is type(good) for good in FIELDS[field]):
            continue
        (place / "model/model.json").write_text(content)
        if field in ("schema", "files"):
            tree = json.loads(content)
            tree[field] = value
            (place / "model/model.json").write_text(json.dumps(tree))
            words = "schema|digest|files"
        else:
            edit_description(place / "model", lambda tree, value=value: tree.update({field: value}), sealed=sealed)
            words = field
        with pytest.raises(CheckpointError, match=words):
            load_model(place / "model")


@pytest.mark.parametrize("facts", [None, [], {}, "x", {"bytes": 1}, {"bytes": "1", "sha256": "0" * 64}, 3])
def test_file_facts_of_the_wrong_type_are_reported(place, facts):
    edit_description(place / "model", lambda tree: tree["files"].update({"model.safetensors": facts}))
    with pytest.raises(CheckpointError, match=r"files must be an object in which 'model.safetensors' is an object"):
        load_model(place / "model")


def test_a_tokenizer_file_that_cannot_be_read_back_is_not_saved(tmp_path):
    def write(folder):
        (folder / "towers/text").mkdir(parents=True)
        (folder / "towers/text/a b").write_text("")

    with pytest.raises(ConfigError, match="has a file 'towers/text/a b'"):
        write_folder(tmp_path / "model", {}, write)


def test_digests_are_those_of_sha256sum(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert digest_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
