"""From texts to token ids: how a text is framed, cut and refused, and a tokenizer learned where there is none.

The end of a text is ours to mark. GPT-2 style tokenizers add no end token, so that the first one in a padded batch
is padding, and a text that fills the window has none. We cut first and then append it ourselves.
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
"""Of which a folder with a tokenizer holds at least one."""
_PACKAGES = {
    **{name: name for name in ("sacremoses", "sentencepiece", "tiktoken", "jieba", "rjieba", "fugashi", "sudachipy")},
    **{name: name for name in ("rhoknp", "nltk", "phonemizer", "uroman", "pythainlp", "emoji", "spacy", "ftfy")},
    **{"protobuf": "google", "mistral-common": "mistral_common", "g2p-en": "g2p_en", "ipadic": "ipadic"},
    **{"unidic": "unidic", "unidic_lite": "unidic_lite", "blobfile": "blobfile", "levenshtein": "Levenshtein"},
}
"""Packages that tokenizers of transformers read their files with, and the modules they install."""
_MANY = 0.2
"""Share of cut texts above which a warning is due."""


class TextTokenizer:
    """A tokenizer and the frame it puts around a text.

    Args:
        tokenizer: Any tokenizer.
        max_tokens: Longest text, frame included.
        end: End-of-text token for a causal model, appended to every text. None for a masked model: its tokenizer
            frames the text by itself.

    Raises:
        CheckpointError: If there is nothing to pad with.
    """

    seen = 0
    """Distinct texts seen so far."""
    truncated = 0
    """How many of them were longer than `max_tokens`."""
    longest_text = 0
    """Tokens of the longest of them, frame included and nothing cut."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int, eos: int | None) -> None:
        self.hf_tokenizer = tokenizer
        self.vocabulary = len(tokenizer)
        self.max_tokens = max_tokens
        bare, framed = self._plain(["a"])[0], cast("list[int]", tokenizer("a")["input_ids"])
        start = next((i for i in range(len(framed)) if framed[i : i + len(bare)] == bare), 0)
        self.prefix_ids = tuple(framed[:start])
        self.suffix_ids = tuple(framed[start + len(bare) :]) if eos is None else (eos,)
        self.eos = eos
        pad = cast("int | None", tokenizer.pad_token_id)
        pad = eos if pad is None else pad
        if pad is None:
            raise CheckpointError("the tokenizer has neither a padding nor an end token; set its pad_token and save it")
        self.pad = pad

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of new texts, cut to `max_tokens` and framed."""
        room = self.max_tokens - len(self.prefix_ids) - len(self.suffix_ids)
        plain = self._plain(texts)
        self.seen += len(plain)
        self.truncated += sum(len(ids) > room for ids in plain)
        self.longest_text = max([self.longest_text, *(len(ids) + self.max_tokens - room for ids in plain)])
        return [[*self.prefix_ids, *ids[:room], *self.suffix_ids] for ids in plain]

    def word_slots(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns which word each token of a framed text is a piece of.

        0 is what opens the text, words count from 1, and what closes it comes behind the last word.

        Raises:
            CheckpointError: If the tokenizer does not frame a text by one token on each side, or does not keep words.
        """
        if not self.hf_tokenizer.is_fast:
            raise CheckpointError(
                f"the tokenizer ({type(self.hf_tokenizer).__name__}) does not record which word a token is part of; "
                f"use one saved with tokenizer.json"
            )
        if (len(self.prefix_ids), len(self.suffix_ids)) != (1, 1):
            raise CheckpointError("the tokenizer does not put one token in front of a text and one behind; use another")
        batch: Any = self.hf_tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
        slots: list[list[int]] = []
        for number in range(len(texts)):
            pieces = [word + 1 for word in batch.word_ids(number)[: self.max_tokens - 2]]
            slots.append([0, *pieces, max(pieces, default=0) + 1])
        return slots

    def encode_class_names(self, names: Sequence[str]) -> list[list[int]]:
        """Returns class names as they stand inside a sentence, cut and closed, but without what opens a text.

        Byte-level and sentence-piece vocabularies hold a word with the space before it and without as two tokens.
        Like the authors we read "X <name>" and take "X" away.

        Raises:
            CheckpointError: If the tokenizer does not keep "X" apart.
        """
        head, *plain = self._plain(["X", *(f"X {name.strip()}" for name in names)])
        if any(ids[: len(head)] != head for ids in plain):
            raise CheckpointError(
                "the tokenizer joins words, so class names cannot be read behind a context; use another"
            )
        room = self.max_tokens - len(self.prefix_ids) - len(self.suffix_ids)
        return [[*ids[len(head) :][:room], *self.suffix_ids] for ids in plain]

    def encode_prompt(self, text: str) -> list[int]:
        """Returns the tokens of a sentence's beginning, without a frame."""
        return self._plain([text.strip()])[0]

    def used_tokens(self, texts: Sequence[str]) -> list[int]:
        """Returns the distinct tokens of some texts, frame included, in ascending order."""
        ids = self._plain(list(dict.fromkeys(texts)))
        return sorted({*self.prefix_ids, *self.suffix_ids, *(token for text in ids for token in text)})

    def decode_token(self, token: int) -> str:
        """Returns how a token reads inside a sentence; half a letter is told as the vocabulary writes it."""
        text = str(self.hf_tokenizer.decode([token]))
        return str(self.hf_tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in text or not text else text

    def log_truncation(self) -> None:
        """Logs how many texts were cut, and from a fifth on what to set."""
        texts = share(self.truncated, self.seen, "distinct text")
        if self.truncated > _MANY * self.seen:
            are, were = verb(self.truncated, "is", "are"), verb(self.truncated, "was", "were")
            LOG.warning(
                "%s %s longer than text.max_tokens=%d and %s cut; set it higher", texts, are, self.max_tokens, were
            )
        elif self.truncated:
            LOG.info("%s %s cut to text.max_tokens=%d", texts, verb(self.truncated, "was", "were"), self.max_tokens)

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files into a folder."""
        self.hf_tokenizer.save_pretrained(folder)

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        # A special token spelled out by a user stays plain text; else it would move the pooled position.
        batch = self.hf_tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
        return cast("list[list[int]]", batch["input_ids"])


def eos_token_of(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int:
    """Returns the end-of-text token of a causal model, as its tokenizer or else its configuration names it.

    Raises:
        CheckpointError: If neither does.
    """
    named: Any = tokenizer.eos_token_id
    if named is None:
        named = getattr(config, "eos_token_id", None)
    named = named[0] if isinstance(named, list) and named else named
    if not isinstance(named, int):
        raise CheckpointError(
            "the tokenizer of a causal model names no end-of-text token; set its eos_token and save it"
        )
    return named


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Loads a tokenizer by hub name or folder.

    Raises:
        CheckpointError: If it is not there, is damaged, or needs a Python package that is not installed.
    """
    place = Path(source).expanduser()
    if place.is_file():
        raise CheckpointError(f"the tokenizer {str(source)!r} is a file; give the folder that holds its tokenizer.json")
    if place.is_dir() and not any(path.name in TOKENIZER_FILES or path.suffix == ".model" for path in place.iterdir()):
        raise CheckpointError(f"no tokenizer at {str(source)!r}: it holds none of {', '.join(TOKENIZER_FILES)}")
    if not place.is_dir() and not is_available(str(source), TOKENIZER_FILES):
        raise CheckpointError(
            f"no tokenizer at {str(source)!r}: it is neither a folder, nor in the local cache, nor can it be "
            f"downloaded; give the folder that holds its tokenizer.json"
        )
    check_tokenizer_files(place if place.is_dir() else source)
    try:
        with quiet_transformers():
            tokenizer: Any = AutoTokenizer.from_pretrained(place if place.is_dir() else source, trust_remote_code=False)
    except Exception as error:  # each family reads its files its own way, with the exceptions of what it reads with
        missing = _missing_packages(error)
        if missing:
            raise CheckpointError(
                f"the tokenizer at {str(source)!r} cannot be read without {' and '.join(missing)}; install with: "
                f"pip install {' '.join(missing)}"
            ) from error
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"no tokenizer at {str(source)!r} ({why}); give the folder that holds its tokenizer.json, whole"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise CheckpointError(f"the tokenizer at {str(source)!r} is a {type(tokenizer).__name__}; use another")
    return tokenizer


def _missing_packages(error: BaseException) -> list[str]:
    """Packages that are not installed and that an exception of `transformers`, or its cause, names."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or following.__context__
    direct = [it.name.partition(".")[0] for it in chain if isinstance(it, ModuleNotFoundError) and it.name]
    said = " ".join(str(it) for it in chain).casefold()
    named = [package for package in _PACKAGES if re.search(rf"(?<![\w-]){re.escape(package)}(?![\w-])", said)]
    modules = {_PACKAGES.get(package, package): package for package in (*named, *map(_package_of, direct))}
    return [package for module, package in modules.items() if not _is_installed(module)]


def _package_of(module: str) -> str:
    return next((package for package, name in _PACKAGES.items() if name == module), module)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # already imported, and made without a file
        return True


def train_tokenizer(captions: Sequence[str], *, causal: bool, vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """Learns a byte-level vocabulary from captions; what they do not hold is spelled in bytes.

    Depends on the set of captions only, not on their order or number.

    Args:
        captions: What to learn from.
        causal: Whether to have an end-of-text token, as GPT-2, or to frame texts in [CLS] and [SEP], as BERT.
        vocab_size: Most tokens, 256 bytes included. Few captions make fewer.

    Raises:
        ConfigError: If there is no caption, or no room for the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = [END] if causal else list(_FRAME.values())
    if not captions:
        raise ConfigError("text.scratch learns its tokenizer from captions, but there is none; give records captions")
    if vocab_size < 256 + len(special):
        raise ConfigError(
            f"text.scratch vocab_size={vocab_size} must be at least {256 + len(special)}: every byte needs one"
        )
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learned.train_from_iterator(sorted(set(captions)), trainer)
    if causal:
        return PreTrainedTokenizerFast(tokenizer_object=learned, eos_token=END, pad_token=END)
    ends = [(token, learned.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    learned.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=learned, **_FRAME)


class TokenIdTokenizer(TextTokenizer):
    """Reads texts such as `"17 4 23"` as the ids they spell.

    An imported checkpoint holds weights and no tokenizer. So that its embeddings can be compared all the same, its
    texts are ids; a sentence is refused with the way to a tokenizer.

    Args:
        vocabulary: Tokens the model knows.
        max_tokens: Longest text, its end token included.
        end: End-of-text token, appended to every text.
    """

    def __init__(self, *, vocabulary: int, max_tokens: int, eos: int) -> None:  # no tokenizer to hand to Tokens
        self.vocabulary = vocabulary
        self.max_tokens = max_tokens
        self.prefix_ids = ()
        self.suffix_ids = (eos,)
        self.eos = eos
        self.pad = eos

    def encode_class_names(self, names: Sequence[str]) -> list[list[int]]:
        """Returns the ids of class names, cut and closed."""
        return [[*ids[: self.max_tokens - 1], *self.suffix_ids] for ids in self._plain(names)]

    def save(self, folder: Path) -> None:
        """Writes nothing: there is no tokenizer."""

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        return [[self._id(word) for word in text.split()] for text in texts]

    def _id(self, word: str) -> int:
        if not (word.isascii() and word.isdigit() and int(word) < self.vocabulary):
            raise CheckpointError(
                "this model was imported without a tokenizer and reads token ids alone; import it again with "
                "`--tokenizer <folder>`, the folder of the tokenizer its language model was trained with"
            )
        return int(word)
