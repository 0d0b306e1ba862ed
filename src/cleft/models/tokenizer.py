"""Tokenisation: special tokens, truncation, loading a tokenizer, and training one for a model from scratch.

The EOS token is appended here. GPT-2 style tokenizers add none, so in a padded batch the first EOS token would be
padding, and a text that fills the window would have none. Texts are truncated first, then EOS is appended.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cleft.errors import CheckpointError, ConfigError
from cleft.grammar import share, verb
from cleft.models.hub import check_tokenizer_files, is_available, quiet_transformers

LOG = logging.getLogger(__name__)
END = "<|endoftext|>"
_FRAME = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt")
"""A folder with a tokenizer contains at least one of these."""
_PACKAGES = {
    **{name: name for name in ("sacremoses", "sentencepiece", "tiktoken", "jieba", "rjieba", "fugashi", "sudachipy")},
    **{name: name for name in ("rhoknp", "nltk", "phonemizer", "uroman", "pythainlp", "emoji", "spacy", "ftfy")},
    **{"protobuf": "google", "mistral-common": "mistral_common", "g2p-en": "g2p_en", "ipadic": "ipadic"},
    **{"unidic": "unidic", "unidic_lite": "unidic_lite", "blobfile": "blobfile", "levenshtein": "Levenshtein"},
}
"""Packages that some tokenizers of transformers need, and the modules they install."""
_WARN_SHARE = 0.2
"""Share of truncated texts above which a warning is logged."""


class TextTokenizer:
    """A Hugging Face tokenizer with truncation and special tokens.

    Args:
        hf_tokenizer: Any tokenizer.
        max_tokens: Maximum length, special tokens included.
        eos: EOS token of a causal model, appended to every text. None for a masked model, whose tokenizer adds special
            tokens itself.

    Raises:
        CheckpointError: If there is neither a padding nor an EOS token.
    """

    seen = 0
    """Distinct texts seen so far."""
    truncated = 0
    """Distinct texts that were longer than `max_tokens`."""
    longest_text = 0
    """Tokens of the longest text, special tokens included, before truncation."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int, eos: int | None) -> None:
        self.hf_tokenizer = tokenizer
        self.vocabulary = len(tokenizer)
        self.max_tokens = max_tokens
        bare, complete = self._plain(["a"])[0], cast("list[int]", tokenizer("a")["input_ids"])
        start = next((i for i in range(len(complete)) if complete[i : i + len(bare)] == bare), 0)
        self.prefix_ids = tuple(complete[:start])
        self.suffix_ids = tuple(complete[start + len(bare) :]) if eos is None else (eos,)
        self.eos = eos
        pad = cast("int | None", tokenizer.pad_token_id)
        pad = eos if pad is None else pad
        if pad is None:
            raise CheckpointError("the tokenizer has neither a padding nor an end token; set its pad_token and save it")
        self.pad = pad

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns token ids of texts, truncated to `max_tokens`, with special tokens."""
        available = self.max_tokens - len(self.prefix_ids) - len(self.suffix_ids)
        plain = self._plain(texts)
        self.seen += len(plain)
        self.truncated += sum(len(ids) > available for ids in plain)
        self.longest_text = max([self.longest_text, *(len(ids) + self.max_tokens - available for ids in plain)])
        return [[*self.prefix_ids, *ids[:available], *self.suffix_ids] for ids in plain]

    def word_slots(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the word slot of each token, special tokens included.

        0 is the token before the text, words count from 1, and the token after the text has the next number.

        Raises:
            CheckpointError: If it does not add exactly one token before and after a text, or records no words.
        """
        if not self.hf_tokenizer.is_fast:
            raise CheckpointError(
                f"the tokenizer ({type(self.hf_tokenizer).__name__}) does not record which word a token is part of; "
                f"use one saved with tokenizer.json"
            )
        if (len(self.prefix_ids), len(self.suffix_ids)) != (1, 1):
            raise CheckpointError("the tokenizer does not add one token before and one after a text; use another")
        batch: Any = self.hf_tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
        slots: list[list[int]] = []
        for number in range(len(texts)):
            pieces = [word + 1 for word in batch.word_ids(number)[: self.max_tokens - 2]]
            slots.append([0, *pieces, max(pieces, default=0) + 1])
        return slots

    def encode_class_names(self, names: Sequence[str]) -> list[list[int]]:
        """Returns token ids of class names as inside a sentence: truncated, with the tokens after a text, not before.

        Byte-level and sentence-piece vocabularies have different tokens for a word with and without a leading space.
        As in the authors' code, "X <name>" is tokenised and "X" removed.

        Raises:
            CheckpointError: If the tokenizer joins "X" with the name.
        """
        head, *plain = self._plain(["X", *(f"X {name.strip()}" for name in names)])
        if any(ids[: len(head)] != head for ids in plain):
            raise CheckpointError("the tokenizer joins words, so class names cannot follow a context; use another")
        available = self.max_tokens - len(self.prefix_ids) - len(self.suffix_ids)
        return [[*ids[len(head) :][:available], *self.suffix_ids] for ids in plain]

    def encode_prompt(self, text: str) -> list[int]:
        """Returns token ids of a prompt without special tokens."""
        return self._plain([text.strip()])[0]

    def used_tokens(self, texts: Sequence[str]) -> list[int]:
        """Returns the distinct tokens of texts, special tokens included, ascending."""
        ids = self._plain(list(dict.fromkeys(texts)))
        return sorted({*self.prefix_ids, *self.suffix_ids, *(token for text in ids for token in text)})

    def decode_token(self, token: int) -> str:
        """Returns the text of a token; a partial UTF-8 character in the vocabulary's own notation."""
        text = str(self.hf_tokenizer.decode([token]))
        return str(self.hf_tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in text or not text else text

    def log_truncation(self) -> None:
        """Logs how many texts were truncated; above 20 % a warning with the setting to change."""
        texts = share(self.truncated, self.seen, "distinct text")
        if self.truncated > _WARN_SHARE * self.seen:
            are, were = verb(self.truncated, "is", "are"), verb(self.truncated, "was", "were")
            LOG.warning(
                "%s %s longer than text.max_tokens=%d and %s truncated; increase it", texts, are, self.max_tokens, were
            )
        elif self.truncated:
            LOG.info(
                "%s %s truncated to text.max_tokens=%d", texts, verb(self.truncated, "was", "were"), self.max_tokens
            )

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files into a folder."""
        self.hf_tokenizer.save_pretrained(folder)

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        # A special token written in a text stays plain text; otherwise it would change the pooled position.
        batch = self.hf_tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
        return cast("list[list[int]]", batch["input_ids"])


def eos_token_of(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int:
    """Returns the EOS token of a causal model from its tokenizer, or else from its configuration.

    Raises:
        CheckpointError: If neither does.
    """
    eos: Any = tokenizer.eos_token_id
    if eos is None:
        eos = getattr(config, "eos_token_id", None)
    eos = eos[0] if isinstance(eos, list) and eos else eos
    if not isinstance(eos, int):
        raise CheckpointError("the tokenizer of a causal model has no EOS token; set its eos_token and save it")
    return eos


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Loads a tokenizer by hub name or folder.

    Raises:
        CheckpointError: If it is missing, damaged, or needs a Python package that is not installed.
    """
    place = Path(source).expanduser()
    if place.is_file():
        raise CheckpointError(f"the tokenizer {str(source)!r} is a file; give the folder with its tokenizer.json")
    if place.is_dir() and not any(path.name in TOKENIZER_FILES or path.suffix == ".model" for path in place.iterdir()):
        raise CheckpointError(f"no tokenizer at {str(source)!r}: it contains none of {', '.join(TOKENIZER_FILES)}")
    if not place.is_dir() and not is_available(str(source), TOKENIZER_FILES):
        raise CheckpointError(
            f"no tokenizer at {str(source)!r}: it is neither a folder, nor in the local cache, nor can it be "
            f"downloaded; give the folder with its tokenizer.json"
        )
    check_tokenizer_files(place if place.is_dir() else source)
    try:
        with quiet_transformers():
            tokenizer: Any = AutoTokenizer.from_pretrained(place if place.is_dir() else source, trust_remote_code=False)
    except Exception as error:  # each family raises exceptions of other libraries
        missing = _missing_packages(error)
        if missing:
            raise CheckpointError(
                f"the tokenizer at {str(source)!r} cannot be read without {' and '.join(missing)}; install with: "
                f"pip install {' '.join(missing)}"
            ) from error
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"no tokenizer at {str(source)!r} ({why}); give the folder with a complete tokenizer.json"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise CheckpointError(f"the tokenizer at {str(source)!r} is a {type(tokenizer).__name__}; use another")
    return tokenizer


def _missing_packages(error: BaseException) -> list[str]:
    """Returns packages named by an exception of `transformers`, or its causes, that are not installed."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or following.__context__
    direct = [it.name.partition(".")[0] for it in chain if isinstance(it, ModuleNotFoundError) and it.name]
    message = " ".join(str(it) for it in chain).casefold()
    named = [package for package in _PACKAGES if re.search(rf"(?<![\w-]){re.escape(package)}(?![\w-])", message)]
    modules = {_PACKAGES.get(package, package): package for package in (*named, *map(_package_of, direct))}
    return [package for module, package in modules.items() if not _is_installed(module)]


def _package_of(module: str) -> str:
    return next((package for package, name in _PACKAGES.items() if name == module), module)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # already imported, without a file
        return True


def train_tokenizer(captions: Sequence[str], *, causal: bool, vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer on captions; anything else is encoded in bytes.

    Depends only on the set of captions, not on their order or frequency.

    Args:
        captions: Training texts.
        causal: Whether to use an EOS token, as in GPT-2, or [CLS] and [SEP], as in BERT.
        vocab_size: Maximum number of tokens, 256 bytes included; fewer with few captions.

    Raises:
        ConfigError: If there is no caption, or `vocab_size` is too small for all bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = [END] if causal else list(_FRAME.values())
    if not captions:
        raise ConfigError("text.scratch trains its tokenizer on captions, but there are none; use data with captions")
    if vocab_size < 256 + len(special):
        raise ConfigError(
            f"text.scratch vocab_size={vocab_size} must be at least {256 + len(special)}: every byte needs a token"
        )
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(sorted(set(captions)), trainer)
    if causal:
        return PreTrainedTokenizerFast(tokenizer_object=trained, eos_token=END, pad_token=END)
    ends = [(token, trained.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    trained.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=trained, **_FRAME)


class TokenIdTokenizer(TextTokenizer):
    """Converts texts such as `"17 4 23"` to the token ids they list.

    An imported checkpoint has weights but no tokenizer. Its embeddings can still be compared, with token ids as texts;
    sentences are refused with a message on how to add a tokenizer.

    Args:
        vocabulary: Size of the model's vocabulary.
        max_tokens: Maximum length, EOS token included.
        eos: EOS token, appended to every text.
    """

    def __init__(self, *, vocabulary: int, max_tokens: int, eos: int) -> None:  # no tokenizer to pass on
        self.vocabulary = vocabulary
        self.max_tokens = max_tokens
        self.prefix_ids = ()
        self.suffix_ids = (eos,)
        self.eos = eos
        self.pad = eos

    def encode_class_names(self, names: Sequence[str]) -> list[list[int]]:
        """Returns token ids of class names, truncated, with the EOS token."""
        return [[*ids[: self.max_tokens - 1], *self.suffix_ids] for ids in self._plain(names)]

    def save(self, folder: Path) -> None:
        """Does nothing: there is no tokenizer to save."""

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        return [[self._id(word) for word in text.split()] for text in texts]

    def _id(self, word: str) -> int:
        if not (word.isascii() and word.isdigit() and int(word) < self.vocabulary):
            raise CheckpointError(
                "this model was imported without a tokenizer and takes only token ids; import it again with "
                "`--tokenizer <folder>`, the tokenizer its language model was trained with"
            )
        return int(word)
