"""Loading tokenizers: those without a Rust backend, and those that need a package."""

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from tests.fakes.families import FAMILIES
from transformers import AutoConfig, AutoModel, AutoTokenizer

from cleft.config import TextTowerConfig
from cleft.errors import CheckpointError
from cleft.models.text_tower import build_text_tower
from cleft.models.tokenizer import TextTokenizer, load_tokenizer

TEXTS = ["chest x ray with edema", "chest x ray with pleural effusion"]


def write_biogpt(folder: Path) -> Path:
    """BioGPT as published: with vocabulary and merges, without tokenizer.json."""
    letters = sorted({letter for text in TEXTS for letter in text if letter != " "} | {"X"})
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *letters, *(f"{letter}</w>" for letter in letters), "ed", "ema</w>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("e d 2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BioGptTokenizer"}))
    options = {name: value for name, value in FAMILIES["biogpt"].items() if name != "model_type"}
    config = AutoConfig.for_model("biogpt", vocab_size=len(tokens), pad_token_id=1, eos_token_id=2, **options)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


def moses() -> types.ModuleType:
    """The part of sacremoses that BioGPT's tokenizer calls: splits at spaces."""
    module = types.ModuleType("sacremoses")

    class Moses:
        def __init__(self, lang: str) -> None:
            assert lang == "en"

        def tokenize(self, text: str, **_options: object) -> list[str]:
            return text.split()

        def detokenize(self, tokens: list[str]) -> str:
            return " ".join(tokens)

    module.MosesTokenizer = module.MosesDetokenizer = Moses
    return module


def test_loading_biogpt_names_the_package_its_tokenizer_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    folder = write_biogpt(tmp_path / "biogpt")
    with pytest.raises(CheckpointError, match=r"cannot be read without sacremoses; install with: pip install sacremo"):
        build_text_tower(TextTowerConfig(model=str(folder)), TEXTS)
    assert CheckpointError.exit_code == 4


def test_a_slow_tokenizer_encodes_texts_and_is_saved(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacremoses", moses())
    folder = write_biogpt(tmp_path / "biogpt")
    tower = build_text_tower(TextTowerConfig(model=str(folder), max_tokens=40, adapt="prefix"), TEXTS).eval()
    assert tower.encode(TEXTS).shape == (2, 32)
    assert tower.encode_after_context(["edema", "pleural effusion"], torch.zeros(3, 32)).shape == (2, 32)
    tower.tokenizer.save(tmp_path / "saved")
    again = TextTokenizer(load_tokenizer(tmp_path / "saved"), max_tokens=40, eos=2)
    assert again.encode(TEXTS) == tower.tokenizer.encode(TEXTS)
    with pytest.raises(CheckpointError, match="does not record which word a token is part of"):
        again.word_slots(TEXTS)


def _chained() -> Exception:
    error = ValueError("the file could not be read")
    error.__cause__ = ModuleNotFoundError("No module named 'cutter.words'", name="cutter.words")
    return error


@pytest.mark.parametrize(
    ("error", "package"),
    [
        (ImportError("You need to install rjieba to use CpmTokenizer."), "rjieba"),
        (ImportError("requires the SentencePiece library but it was not found in your environment."), "sentencepiece"),
        (ValueError("You need to have sentencepiece or tiktoken installed to convert a slow tokenizer"), "tiktoken"),
        (
            ImportError("`tiktoken` is required to read a `tiktoken` file. Install it with `pip install tiktoken`."),
            "tiktoken",
        ),
        (ImportError("T5Tokenizer requires the protobuf library but it was not found"), "protobuf"),
        (ModuleNotFoundError("No module named 'Levenshtein'", name="Levenshtein"), "levenshtein"),
        (_chained(), "cutter"),
    ],
)
def test_a_missing_package_of_a_tokenizer_is_named(tmp_path, monkeypatch, error, package):
    (tmp_path / "vocab.json").write_text("{}")
    monkeypatch.setattr("cleft.models.tokenizer.importlib.util.find_spec", lambda _module: None)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", _raise(error))
    with pytest.raises(CheckpointError, match=rf"cannot be read without .*\b{package}\b.*pip install .*\b{package}\b"):
        load_tokenizer(tmp_path)


def test_a_damaged_tokenizer_is_not_reported_as_a_missing_package(tmp_path, monkeypatch):
    (tmp_path / "vocab.json").write_text("{}")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", _raise(RuntimeError("unexpected end of file")))
    with pytest.raises(CheckpointError, match=r"no tokenizer at .*unexpected end of file"):
        load_tokenizer(tmp_path)


def _raise(error: Exception):
    def raising(*_arguments: object, **_options: object) -> None:
        raise error

    return raising
