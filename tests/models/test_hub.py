"""Loading weights with transformers prints nothing, starts no thread and asks no web service."""

import json
import logging
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BertConfig, BertForMaskedLM, modeling_utils

from cleft.models.hub import config_from, describe, pretrained_model, quiet_transformers, random_model, read_config

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 32}


@pytest.fixture
def published(tmp_path) -> Path:
    """A BERT with its head for masked tokens and without a pooler: one has no place here, the other is missing."""
    BertForMaskedLM(BertConfig(**SHAPE)).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def records():
    """What transformers logs."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def test_loading_reports_nothing_and_logging_is_as_before(published, records, capfd):
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


def test_configurations_with_tokens_beyond_the_vocabulary_are_read_in_silence(tmp_path, records):
    BertConfig(**SHAPE).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "eos_token_id": 50_256}))
    read_config(str(tmp_path), "text.model")
    config_from({"model_type": "gpt2", "vocab_size": 99, "eos_token_id": 50_256}, "text.scratch")
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
            """Would ask the web service."""

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


def test_what_is_switched_off_is_on_again_after_an_error():
    level = logging.getLogger("transformers").level
    with pytest.raises(ValueError, match="stop"), quiet_transformers():
        raise ValueError("stop")
    assert logging.getLogger("transformers").level == level


def test_a_described_configuration_names_no_folder(published):
    described = describe(read_config(str(published), "text.model"))
    assert str(published) not in json.dumps(described)
    again = config_from(described, "text.scratch")
    assert {**describe(again)} == described
