"""A folder that claims a larger model than its weights is refused before memory is taken; so is what makes no model."""

import json
import shutil

import pytest
from tests.fakes.models import edit_description, fake_model, fake_settings

from cleft.errors import CheckpointError
from cleft.models.checkpoint import load_model, save_model
from cleft.models.image_classifier import load_image_only
from cleft.models.model_folder import digest_of


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(fake_model(fake_settings("vit", "gpt2")), fake_settings("vit", "gpt2"), folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def rewrite(folder, name, **changes):
    """Changes a file of a tower, and the digests with it."""
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    facts = {"bytes": path.stat().st_size, "sha256": digest_of(path)}
    edit_description(folder, lambda tree: tree["files"].update({name: facts}))


@pytest.mark.parametrize("value", [10**5, 10**9, -3, 0, "x", None, [], 1.5, True, {}])
@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"])
def test_shapes_of_the_image_tower_that_fit_nothing_are_a_message(folder, name, value):
    rewrite(folder, "towers/image/config.json", **{name: value})
    for load in (load_model, load_image_only):
        with pytest.raises(CheckpointError, match=r"model"):
            load(folder)


@pytest.mark.parametrize("value", [10**5, 10**9, -3, 0, "x", None, [], 1.5, {}])
@pytest.mark.parametrize("name", ["n_embd", "n_layer", "n_head", "vocab_size"])
def test_shapes_of_the_text_tower_that_fit_nothing_are_a_message(folder, name, value):
    rewrite(folder, "towers/text/config.json", **{name: value})
    with pytest.raises(CheckpointError, match=r"model"):
        load_model(folder)


@pytest.mark.parametrize("name", ["rank", "prefix_length", "depth", "frozen_layers"])
def test_settings_larger_than_the_weights_are_named(folder, name):
    edit_description(folder, lambda tree: tree["settings"]["text"].update({name: 10**9}))
    with pytest.raises(CheckpointError, match=rf"text\.{name}"):
        load_model(folder)


@pytest.mark.parametrize(
    "change", [{"model": None}, {"model": {"type": "BPE", "vocab": {}, "merges": [[3]]}}, {"added_tokens": 3}]
)
def test_a_tokenizer_that_is_none_is_a_message(folder, change):
    rewrite(folder, "towers/text/tokenizer.json", **change)
    with pytest.raises(CheckpointError):
        load_model(folder)


def test_a_panic_of_a_library_is_a_message(folder, monkeypatch):
    class PanicException(BaseException):
        pass

    def panics(*_arguments, **_options):
        raise PanicException("index out of bounds\nat lib.rs")

    monkeypatch.setattr("cleft.models.checkpoint.read_header", panics)
    with pytest.raises(CheckpointError, match=r"PanicException: index out of bounds\); copy"):
        load_model(folder)
