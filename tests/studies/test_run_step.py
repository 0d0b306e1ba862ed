"""Training of caption language models."""

import json
import shutil

import pytest
import torch
from transformers import AutoModel

from cleft.config import TextTowerConfig
from cleft.errors import ConfigError
from cleft.models.text_tower import build_text_tower
from cleft.studies.run_step import draw_windows, train_caption_lm

SHAPE = TextTowerConfig(
    model=None,
    scratch={"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32},
    max_tokens=32,
)
CAPTIONS = ["a chest with edema", "a chest with fracture", "a chest with edema"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    return train_caption_lm(CAPTIONS, SHAPE, tmp_path_factory.mktemp("study") / "base-lm", steps=150)


def test_caption_lm_loads_like_a_published_model(learned):
    tower = build_text_tower(TextTowerConfig(model=str(learned), adapt="frozen", max_tokens=32), CAPTIONS)
    weights = AutoModel.from_pretrained(learned).state_dict()
    assert torch.equal(tower.lm.model.state_dict()["wpe.weight"], weights["wpe.weight"])
    assert not any(weight.requires_grad for name, weight in tower.named_parameters() if not name.endswith(".rows"))


def test_caption_lm_fits_the_captions_without_progress_bars(learned, tmp_path, capfd):
    first = train_caption_lm(CAPTIONS, SHAPE, tmp_path / "first", steps=1)
    build_text_tower(TextTowerConfig(model=str(first), adapt="frozen", max_tokens=32), CAPTIONS)
    assert "it/s" not in capfd.readouterr().err
    losses = [json.loads((folder / "learned.json").read_text())["loss"] for folder in (first, learned)]
    assert losses[1] < 0.7 * losses[0]


def test_caption_lm_is_trained_once_and_reproducibly(learned, tmp_path):
    before = (learned / "model.safetensors").stat().st_mtime_ns
    assert train_caption_lm(CAPTIONS[::-1], SHAPE, learned, steps=150) == learned
    assert (learned / "model.safetensors").stat().st_mtime_ns == before
    again = train_caption_lm(CAPTIONS, SHAPE, tmp_path / "again", steps=150)
    assert (again / "model.safetensors").read_bytes() == (learned / "model.safetensors").read_bytes()


def test_unfinished_folder_is_rewritten(learned, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(learned, tmp_path / ".half.draft")
    (tmp_path / ".half.draft" / ".cleft-draft").touch()
    half.mkdir()
    assert (train_caption_lm(CAPTIONS, SHAPE, half, steps=1) / "learned.json").is_file()
    assert not (tmp_path / ".half.draft").exists()


def test_other_captions_are_refused(learned):
    with pytest.raises(ConfigError, match="trained on other captions"):
        train_caption_lm(CAPTIONS[:2], SHAPE, learned, steps=150)


BERT = {
    "model_type": "bert",
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


def test_masked_model_is_trained_on_masked_tokens(tmp_path):
    shape = TextTowerConfig(model=None, scratch=BERT, max_tokens=32)
    folders = [train_caption_lm(CAPTIONS, shape, tmp_path / f"{steps}", steps=steps) for steps in (1, 200)]
    losses = [json.loads((folder / "learned.json").read_text())["loss"] for folder in folders]
    assert losses[1] < 0.7 * losses[0]
    config = TextTowerConfig(model=str(folders[1]), adapt="full", pooling="cls", max_tokens=32)
    weights = build_text_tower(config, CAPTIONS).lm.model.state_dict()
    kept = AutoModel.from_pretrained(folders[1]).state_dict()
    assert torch.equal(weights["encoder.layer.0.output.dense.weight"], kept["encoder.layer.0.output.dense.weight"])


def test_missing_configuration_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"needs text\.scratch"):
        train_caption_lm(CAPTIONS, TextTowerConfig(model="gpt2"), tmp_path / "base-lm", steps=1)


def test_tokenizer_is_trained_on_given_texts_only(tmp_path):
    captions = ["a chest of Quartermaine", *CAPTIONS]
    folder = train_caption_lm(captions, SHAPE, tmp_path / "base-lm", tokenizer_texts=CAPTIONS, steps=1)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert "\u0120chest" in vocabulary
    assert not [token for token in vocabulary if "uart" in token]


def test_windows_are_filled_with_concatenated_captions():
    captions = [[5, 6, 7, 0], [8, 0]]
    windows = draw_windows(captions, 3, 11, torch.Generator().manual_seed(0))
    assert windows.shape == (3, 11)
    assert set(windows.flatten().tolist()) == {0, 5, 6, 7, 8}
    stream = windows.flatten().tolist()
    begun = [stream[place + 1] for place, token in enumerate(stream[:-1]) if token == 0]
    assert set(begun) == {5, 8}
