"""Loading from hub or folder: no output, no conversion requests, no code, no files elsewhere."""

import json
import logging
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from tests.fakes.models import fake_model, fake_settings, write_language_model
from transformers import AutoModel, BertConfig, BertForMaskedLM, modeling_utils

from cleft.errors import CheckpointError, ConfigError
from cleft.models.hub import (
    config_from_dict,
    config_to_dict,
    pretrained_model,
    quiet_transformers,
    random_model,
    read_config,
)
from cleft.models.tokenizer import load_tokenizer

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 32}


@pytest.fixture
def published(tmp_path) -> Path:
    """A BERT with a masked-token head, which is unused, and without pooler, which is missing."""
    BertForMaskedLM(BertConfig(**SHAPE)).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def records():
    """Log messages of transformers."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def test_loading_prints_nothing_and_restores_logging(published, records, capfd):
    level = logging.getLogger("transformers").level
    config = read_config(str(published), "text.model")
    model, missing = pretrained_model(str(published), config, "text.model")
    random_model(config)
    assert missing == {"pooler.dense.weight", "pooler.dense.bias"}
    assert records == []
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("transformers").level == level
    AutoModel.from_pretrained(published)
    assert any("LOAD REPORT" in record for record in records)  # by itself transformers does report
    assert model.config.hidden_size == 16


def test_configurations_with_tokens_beyond_the_vocabulary_give_no_warning(tmp_path, records):
    BertConfig(**SHAPE).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "eos_token_id": 50_256}))
    read_config(str(tmp_path), "text.model")
    config_from_dict({"model_type": "gpt2", "vocab_size": 99, "eos_token_id": 50_256}, "text.scratch")
    assert records == []


@pytest.mark.parametrize("before", [None, "0"])
def test_weights_in_bin_files_start_no_conversion(published, monkeypatch, before):
    state = BertForMaskedLM.from_pretrained(published).state_dict()
    torch.save(state, published / "pytorch_model.bin")
    started: list[str] = []
    monkeypatch.setattr(modeling_utils, "is_offline_mode", lambda: False)
    monkeypatch.setattr(modeling_utils, "has_file", lambda *_names, **_options: False)
    monkeypatch.setattr(
        modeling_utils,
        "cached_file",
        lambda _model, name, **_options: str(published / name) if name == "pytorch_model.bin" else None,
    )

    class Recorded:
        def __init__(self, **options: object) -> None:
            started.append(str(options["name"]))

        def start(self) -> None:
            """Stands for a request to the web service."""

    monkeypatch.setattr(modeling_utils, "Thread", Recorded)
    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    if before is not None:
        monkeypatch.setenv("DISABLE_SAFETENSORS_CONVERSION", before)
    config = BertConfig(**SHAPE)
    pretrained_model("someone/bert", config, "text.model")
    assert started == []
    assert os.environ.get("DISABLE_SAFETENSORS_CONVERSION") == before
    AutoModel.from_pretrained("someone/bert", config=config)
    assert started == ["Thread-auto_conversion"]  # by itself transformers does


def test_settings_are_restored_after_an_error():
    level = logging.getLogger("transformers").level
    with pytest.raises(ValueError, match="stop"), quiet_transformers():
        raise ValueError("stop")
    assert logging.getLogger("transformers").level == level


def test_a_described_configuration_names_no_folder(published):
    described = config_to_dict(read_config(str(published), "text.model"))
    assert str(published) not in json.dumps(described)
    again = config_from_dict(described, "text.scratch")
    assert {**config_to_dict(again)} == described


NO_OBJECTS = ["", "[]", "null", "3", '"gpt2"', "{", '{"a": NaN}', "[" * 10_000, '{"a": 1, "a": 2}', '{"a": 1e999}']
ELSEWHERE = ["../model-1.safetensors", "{0}/model-1.safetensors", "..\\x", "C:x", "", "..", "a/b", "a\0"]


@pytest.fixture(scope="module")
def published_base(tmp_path_factory):
    return write_language_model(tmp_path_factory.mktemp("published") / "base")


@pytest.fixture
def base(published_base, tmp_path):
    return shutil.copytree(published_base, tmp_path / "base")


def load(folder):
    model, _ = pretrained_model(str(folder), read_config(str(folder), "text.model"), "text.model")
    return model


@pytest.mark.parametrize("text", NO_OBJECTS, ids=lambda text: text[:12])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_invalid_json_is_reported(base, name, text):
    (base / name).write_text(text)
    with pytest.raises(CheckpointError, match=name):
        load(base) if name == "config.json" else load_tokenizer(base)
    with pytest.raises(CheckpointError, match=name):
        fake_model(fake_settings(base=base))


def test_an_invalid_index_is_reported(base):
    for text in NO_OBJECTS:
        (base / "model.safetensors.index.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"index\.json"):
            load(base)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", ["gpt2"]),
        ("model_type", {}),
        ("model_type", 3),
        ("model_type", None),
        ("n_embd", "wide"),
        ("n_embd", []),
        ("n_layer", None),
        ("n_head", 0.5),
        ("id2label", 3),
        ("attn_pdrop", {}),
        ("vocab_size", -5),
        ("layer_norm_epsilon", "1e-5"),
    ],
)
def test_a_value_of_the_wrong_type_is_reported(base, key, value):
    content = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**content, key: value}))
    with pytest.raises((CheckpointError, ConfigError), match=re.escape(str(base))):
        load(base)


def test_code_that_a_configuration_names_is_not_run(base):
    content = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**content, "auto_map": {"AutoConfig": "code.Config"}}))
    (base / "code.py").write_text("raise SystemExit")
    load(base)


@pytest.fixture
def sharded(base):
    """A base model with an index, which lists one file."""
    (base / "model.safetensors").rename(base / "model-1.safetensors")
    write_index(base, "model-1.safetensors")
    return base


def write_index(folder, name):
    shards = dict.fromkeys(load_names(folder.parent), name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def load_names(folder):
    from safetensors import safe_open

    with safe_open(next(folder.rglob("model-1.safetensors")), "pt") as file:
        return list(file.keys())


def test_shards_in_the_folder_are_read(sharded):
    load(sharded)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_shards_elsewhere_are_refused(sharded, name):
    (sharded / "model-1.safetensors").rename(sharded.parent / "model-1.safetensors")
    write_index(sharded, name.format(sharded.parent))
    with pytest.raises(CheckpointError, match="not a file in the model's own folder"):
        load(sharded)


@pytest.mark.parametrize(
    "index", [{}, {"weight_map": []}, {"metadata": {}, "weight_map": {"a": 1}}, {"weight_map": {"a": "b"}}]
)
def test_an_index_without_weight_map_is_reported(sharded, index):
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json"):
        load(sharded)


def test_a_missing_shard_is_named(sharded):
    write_index(sharded, "model-2.safetensors")
    (sharded / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names model-2\.safetensors, which is missing"):
        load(sharded)


def test_an_adapter_does_not_load_another_model(base, published_base):
    (base / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(published_base)}))
    with pytest.raises(CheckpointError, match="an adapter for another model"):
        load(base)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("special_tokens_map.json", {"vocab_file": "/etc/passwd"}, "'vocab_file' is not a special token"),
        ("special_tokens_map.json", {"tokenizer_file": "../x.json"}, "'tokenizer_file' is not a special token"),
        ("tokenizer_config.json", {"init_inputs": ["/etc/passwd"]}, "init_inputs passes values to code"),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.4.0.json"]}, "not a file in the model's own"),
        ("tokenizer_config.json", {"fast_tokenizer_files": [3]}, "is not a file name"),
    ],
)
def test_a_tokenizer_does_not_read_files_elsewhere(base, name, content, message):
    (base / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(base)
