"""Text encoder from any Hugging Face language model: strings in, one feature vector per text out.

Causal models encode a batch as one prefix tree (`prefix_tree.py`), masked models encode every distinct text once; both
give the values and gradients of encoding every text separately. With dropout, texts that share a node of the tree share
its dropout mask: the noise of each text is unchanged, but it is correlated between texts (docs/decisions/0035).

Shapes: `T` texts, `R` distinct texts, `L` tokens, `P` nodes of a packed tree, `C` classes, `D` width.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cleft.config import TextTowerConfig
from cleft.errors import ConfigError
from cleft.grammar import count
from cleft.models.adapters import adapt
from cleft.models.cuda_graphs import MAX_GRAPH_NODES, CudaGraphs, node_multiple
from cleft.models.language_model import LanguageModel, build_language_model, eval_mode, is_causal, read_text_config
from cleft.models.layers import capture_attention
from cleft.models.prefix_tree import PackedTexts, PrefixTree, pack_texts, pad_nodes, prepend_chain
from cleft.models.tokenizer import TextTokenizer, eos_token_of, load_tokenizer, train_tokenizer
from cleft.text_rules import RuleName, Texts, as_texts, class_name_rule, normalise, normalise_all, refuse_duplicates

_MAX_ARTIFICIAL_TOKENS = 128
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


def tree_obstacle(lm: LanguageModel, max_tokens: int) -> str | None:
    """Returns why a model cannot encode a prefix tree, judged by its configuration; None if it may be possible.

    Models that count positions themselves may differ only in large trees, and recurrent models hardly differ while
    their weights are small, so neither is left to `compare_tree_with_padded`.
    """
    kind = lm.config.model_type
    if not lm.causal:
        return f"text.packing=tree is wrong for {kind!r}, a masked model: its tokens also attend to later tokens"
    if not lm.takes_positions:
        return f"a {kind!r} model takes no position ids, so it cannot encode a prefix tree"
    if kind == "clip_text_model":
        return f"a {kind!r} model takes no more tokens than it has positions, so it cannot encode a prefix tree"
    others = set(getattr(lm.config, "layer_types", None) or ()) - _ATTENTION
    if others or any(isinstance(module, nn.Conv1d) for module in lm.modules()):
        return f"a {kind!r} model is recurrent or convolutional, so it cannot encode a prefix tree"
    if getattr(lm.config, "window_size", None):
        return f"a {kind!r} model attends to sequence neighbours, so it cannot encode a prefix tree"
    window = lm.attention_window()
    if window is not None and max_tokens + lm.virtual_tokens > window:
        tokens = count(window, "token")
        return f"a {kind!r} model has an attention window of {tokens}, fewer than text.max_tokens={max_tokens}"
    return None


@torch.no_grad()
def compare_tree_with_padded(tower: TextTower) -> str | None:
    """Encodes four artificial texts as a tree and padded, and compares the features.

    Returns:
        The difference as a message, or None if they are equal up to rounding.
    """
    try:
        with eval_mode(tower):
            return _compare(tower)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"a {tower.lm.config.model_type!r} model cannot encode a prefix tree ({first})"


def _compare(tower: TextTower) -> str | None:
    texts = _artificial_texts(tower)
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[tower.tokenizer.pad] * (width - len(text))] for text in texts])
    padded = tower.encode_padded(ids, torch.tensor([len(text) for text in texts]))
    tree = tower.encode_packed(pack_texts(texts, mask_eos_self=tower.mask_eos_self))
    error = float((tree - padded).norm() / padded.norm())
    if error <= _tolerance(padded, tower.lm.dtype):
        return None
    return (
        f"a {tower.lm.config.model_type!r} model gives other features for a prefix tree than for padded texts "
        f"(relative difference {error:.1e})"
    )


def _artificial_texts(tower: TextTower) -> list[list[int]]:
    tokens = tower.tokenizer
    special = {*tokens.prefix_ids, *tokens.suffix_ids, tokens.pad}
    usable = [token for token in range(tokens.vocabulary) if token not in special]
    step = max(1, len(usable) // 7)
    a, b, c, *more = usable[::step][:7]
    available = min(tower.config.max_tokens, _MAX_ARTIFICIAL_TOKENS) - len(tokens.prefix_ids) - len(tokens.suffix_ids)
    bodies = [[a, b, c], [a, b], [c], [a, *more * available]]
    return [[*tokens.prefix_ids, *body[: max(1, available)], *tokens.suffix_ids] for body in bodies]


def _tolerance(features: Tensor, dtype: torch.dtype) -> float:
    lowered = dtype != torch.float32 or torch.is_autocast_enabled(features.device.type)
    if lowered:
        return 5e-2
    # GPUs may multiply float32 with a 10-bit mantissa (TF32).
    return 2e-5 if features.device.type == "cpu" else 5e-3


LOG = logging.getLogger(__name__)
MAX_NODES = 4096
"""Largest tree encoded at once; its mask has this many rows and columns."""
_MAX_CACHED = 1_000_000
"""Texts whose normalised form is cached."""


class TextStats(NamedTuple):
    """Counts of the last call."""

    texts: int
    distinct: int
    nodes: int
    """Tokens the model encoded: nodes of the tree, or tokens of the padded texts."""
    padded_tokens: int
    """Tokens with every text padded to `max_tokens`, as in the authors' code."""


class WordFeatures(NamedTuple):
    """Features of texts and of their words: slot 0 is the class token, words follow from 1, then the end token."""

    features: Tensor
    """`[T, D]` float32, as from `TextTower.encode`."""
    words: Tensor
    """Sum of the hidden states of a slot's tokens, `[T, W, D]`; zeros after the end."""
    lengths: Tensor
    """Number of words of each text, `[T]`: slots 1 to this are words, the next one is the end token."""
    slot_of_token: Tensor
    """`[T, L]`; 0 for padding too."""
    attention: Tensor
    """Attention of the class token in the last block, `[T, L]`, without gradient; no columns if not requested."""


class MaskedTokens(NamedTuple):
    """Hidden states of texts in which some words were masked."""

    states: Tensor
    """Hidden states, `[T, L, D]`."""
    ids: Tensor
    """Original token ids, `[T, L]`."""
    hidden: Tensor
    """Whether a token was masked, `[T, L]` bool."""


class TextTower(nn.Module):
    """Text encoder: a language model, its tokenizer, and the pooling of hidden states to one feature per text.

    Args:
        lm: The language model, with its adapter.
        tokens: Its tokenizer.
        config: Packing and pooling.

    Attributes:
        width: Width `D` of a feature.
        rule: Normalisation of texts before tokenisation.
        packing: `tree`, `distinct` or `padded`; `auto` is resolved when built. May be set.
        stats: Counts of the last call.

    Raises:
        ConfigError: If the model does not support a setting, such as a prefix tree with a masked model.
    """

    def __init__(self, lm: LanguageModel, tokens: TextTokenizer, config: TextTowerConfig) -> None:
        super().__init__()
        self.lm = lm
        self.tokenizer = tokens
        self.config = config
        self.rule: RuleName = "words-2" if config.normalisation == "auto" else config.normalisation
        self.width = lm.width
        self.mask_eos_self = lm.causal and not config.end_token_attends_itself
        self.pooling = _resolve_pooling(lm, config)
        self.packing = _resolve_packing(lm, config)
        self.stats = TextStats(0, 0, 0, 0)
        self._tree = PrefixTree(tokens.encode, mask_eos_self=self.mask_eos_self)
        self._normal: dict[str, str] = {}
        self._names: dict[tuple[str, ...], list[list[int]]] = {}
        self._verified: set[str] = set()
        self._slots: dict[str, list[int]] = {}
        self._check_length(config.max_tokens, "text.max_tokens")

    @property
    def trained_tokens(self) -> tuple[int, ...]:
        """Tokens with trainable embedding rows, ascending; empty if none or all are trainable."""
        return getattr(self.lm.model.get_input_embeddings(), "tokens", ())

    def forward(self, texts: Texts) -> Tensor:
        """Returns the features of texts, `[T, D]` float32.

        Args:
            texts: One text or `T` texts; they are normalised first.

        Raises:
            DataError: If a text has no letter or digit, or is invalid.
            ConfigError: If the model cannot encode a prefix tree.
        """
        texts = self.cache_texts(texts)
        if self._uses_tree():
            return self._encode_tree(texts)
        rows = self._tree.rows(texts)
        distinct, place = np.unique(rows, return_inverse=True)
        self._start_count(len(texts), len(distinct))
        if self.packing == "padded":
            return self.encode_padded(*self._padded(rows, self.config.max_tokens))
        features = self.encode_padded(*self._padded(distinct))
        return features[torch.from_numpy(place).to(features.device)]

    def normalise(self, texts: Texts) -> list[str]:
        """Returns the normalised texts; see `text.normalisation`.

        Raises:
            DataError: If a text has no letter or digit, is too long, or contains an invisible character.
        """
        if isinstance(texts, list) and {*map(type, texts)} == {str} and self._normal.keys() >= set(texts):
            return [self._normal[text] for text in texts]
        given = as_texts(texts)
        new = [text for text in given if text not in self._normal]
        if new:
            normal = normalise_all(given, self.rule)
            if len(self._normal) > _MAX_CACHED:
                self._normal.clear()
            self._normal.update(zip(given, normal, strict=True))
        return [self._normal[text] for text in given]

    def encode(self, texts: Texts) -> Tensor:
        """Returns the features of texts, `[T, D]` float32; see `forward`."""
        return self(texts)

    def encode_words(self, texts: Texts, *, attention: bool = False, pad_to_max: bool = False) -> WordFeatures:
        """Encodes texts and their words, each distinct text once. For masked models.

        Args:
            texts: `T` texts.
            attention: Whether to return the attention of the class token.
            pad_to_max: Whether to return `max_tokens` slots instead of those the longest text needs.

        Raises:
            DataError: If a text has no letter or digit.
        """
        texts = self.cache_texts(texts)
        distinct = list(dict.fromkeys(texts))
        number = {text: place for place, text in enumerate(distinct)}
        self._start_count(len(texts), len(distinct))
        ids, lengths = (part.to(self._device) for part in self._padded(self._tree.rows(distinct)))
        slots = self._slots_of(distinct, ids.shape[1])
        with capture_attention(self.lm.model, "text") if attention else nullcontext() as captured:
            states, visible, pooled = self._hidden_states(ids, lengths)
        weights = states.new_zeros(len(distinct), 0) if captured is None else captured.first_row(visible)
        width = self.config.max_tokens if pad_to_max else int(slots.max()) + 1
        member = functional.one_hot(slots, width).to(states.dtype) * visible[..., None].to(states.dtype)  # [R, L, W]
        place = torch.tensor([number[text] for text in texts], device=self._device)
        return WordFeatures(
            features=self._pool(states, visible, lengths, pooled)[place],
            words=(member.mT @ states).float()[place],
            lengths=(slots.amax(dim=1) - 1)[place],
            slot_of_token=slots[place],
            attention=weights.float()[place],
        )

    def encode_masked(self, texts: Texts, condition: Tensor, *, share: float, pad_to_max: bool = False) -> MaskedTokens:
        """Encodes texts with words masked at random (torch's generator). For masked models.

        Args:
            texts: `T` texts.
            condition: Image condition of each text, added to the embedding of every token, `[T, D]`.
            share: Probability that a word is masked, with all its pieces.
            pad_to_max: Whether texts are padded to `max_tokens` instead of to the longest.

        Raises:
            DataError: If a text has no letter or digit.
            ConfigError: If the tokenizer has no mask token, or the model no separate embedding module.
        """
        texts = self.cache_texts(texts)
        mask: Any = self.tokenizer.hf_tokenizer.mask_token_id
        embeddings: Any = getattr(self.lm.model, "embeddings", None)
        if mask is None or embeddings is None:
            lacking = "its tokenizer has no mask token" if mask is None else "it has no separate embedding module"
            raise ConfigError(
                f"text.model: a {self.lm.config.model_type!r} model cannot predict masked words: {lacking}"
            )
        self._start_count(len(texts), len(set(texts)))
        padded = self._padded(self._tree.rows(texts), self.config.max_tokens if pad_to_max else 0)
        ids, lengths = (part.to(self._device) for part in padded)
        slots = self._slots_of(texts, ids.shape[1])
        end = slots.amax(dim=1, keepdim=True)
        drawn = torch.rand(len(ids), int(end.max()) + 1, device=self._device) < share
        hidden = drawn.gather(1, slots) & (slots > 0) & (slots < end)
        with embeddings.register_forward_hook(lambda _m, _i, output: output + condition[:, None].to(output.dtype)):
            states, _, _ = self._hidden_states(ids.masked_fill(hidden, mask), lengths)
        return MaskedTokens(states, ids, hidden)

    def encode_after_context(self, names: Texts, context: Tensor) -> Tensor:
        """Returns features `[C, D]` float32 of class names after a learned context.

        Args:
            names: One class name or several; normalised like the names in captions, and tokenised as inside a sentence.
            context: Vectors in place of token embeddings, `[L, D]`, shared by all names. In the tree they are one chain
                in front of all names and cost `L` nodes for any number of classes.

        Raises:
            DataError: If a name has no letter or digit, or two are equal.
            ConfigError: If context and name together exceed the positions of the model.
        """
        names = normalise_all(as_texts(names, "class name"), class_name_rule(self.rule))
        ids = self._name_ids(tuple(names))
        front = self.lm.embed(self._tensor(self.tokenizer.prefix_ids))  # special tokens at the start of every text
        roots = torch.cat([front, context.to(front.dtype)])
        longest = len(roots) + max(map(len, ids))
        self._check_length(longest, "context and class name together")
        self._start_count(len(ids), len(set(names)))
        window = self.lm.attention_window()
        if self._uses_tree() and (window is None or longest + self.lm.virtual_tokens <= window):
            packed = pack_texts(ids, mask_eos_self=self.mask_eos_self)
            return self.encode_packed(prepend_chain(packed, len(roots)), roots)
        lengths = torch.tensor([len(name) for name in ids])
        rows = [
            functional.pad(self._tensor(name), (0, longest), value=self.tokenizer.pad)[: lengths.max()] for name in ids
        ]
        names_embedded = self.lm.embed(torch.stack(rows))  # [C, L, D]
        return self.encode_padded(
            torch.cat([roots.expand(len(ids), -1, -1), names_embedded], dim=1), lengths + len(roots)
        )

    @torch.no_grad()
    def embed_prompt(self, text: str) -> Tensor:
        """Returns the token embeddings of a prompt without special tokens, `[n, D]` float32, without gradient."""
        return self.lm.embed(self._tensor(self.tokenizer.encode_prompt(normalise(text, self.rule)))).float()

    def cache_texts(self, texts: Texts) -> list[str]:
        """Normalises texts and tokenises new ones; cached texts cost two lookups each.

        Returns:
            The normalised texts.

        Raises:
            DataError: As `normalise`.
        """
        normal = self.normalise(texts)
        if any(text not in self._tree for text in normal):
            self._tree.rows(normal)
        return normal

    def verify_packing(self) -> None:
        """Encodes a few artificial texts as a tree and padded, without gradient, and compares the features.

        Models treat a given mask and positions differently: some count positions themselves, some bias attention by
        distance in the sequence, some have no attention. With `text.packing=auto` a model that fails uses distinct
        texts from then on. Runs once per device type before the first tree, because attention kernels have had errors
        with masks.

        Raises:
            ConfigError: If they differ and `text.packing` is `tree`.
        """
        fault = compare_tree_with_padded(self)
        if fault is None:
            self._verified.add(self._device.type)
        elif self.config.packing == "auto":
            LOG.warning("%s; every distinct text is encoded separately", fault)
            self.packing = "distinct"
        else:
            raise ConfigError(f"{fault}; set text.packing=distinct")

    def encode_packed(self, packed: PackedTexts, roots: Tensor | None = None) -> Tensor:
        """Returns the features of the texts of a tree, `[T, D]` float32.

        Args:
            packed: The tree.
            roots: Embeddings of its first nodes, if they are not tokens.
        """
        nodes = len(packed.input_ids)
        use_graph = self._uses_graph(nodes)
        if use_graph:
            packed = pad_nodes(packed, node_multiple(nodes), extra_keys=self.lm.virtual_tokens)
        packed = packed.to(self._device)
        tokens = packed.input_ids
        if roots is not None:
            tokens = torch.cat([roots, self.lm.embed(tokens[len(roots) :])])
        encode = self._graphs if use_graph else self.lm
        states = encode(tokens[None], packed.visible[None], packed.position_ids[None])[0]  # [P, D]
        self._count_nodes(nodes)
        if self.pooling == "mean":
            member = packed.visible[packed.last].to(states.dtype)  # [T, P]
            return (member @ states / member.sum(dim=1, keepdim=True)).float()
        return states[packed.last].float()

    def encode_padded(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Returns the features of padded texts, `[R, D]` float32.

        Args:
            tokens: Token ids `[R, L]` or embeddings `[R, L, D]`, right-padded with any value.
            lengths: Number of tokens of each text, `[R]`.
        """
        tokens, lengths = tokens.to(self._device), lengths.to(self._device)
        states, visible, pooled = self._hidden_states(tokens, lengths)
        return self._pool(states, visible, lengths, pooled)

    def _hidden_states(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns hidden states `[R, L, D]`, attention mask `[R, L]` and pooler output `[R, D]` of padded texts."""
        place = torch.arange(tokens.shape[1], device=self._device)
        attended = (lengths - 1).clamp(min=1) if self.mask_eos_self else lengths
        visible = place < attended[:, None]  # [R, L]
        states, pooled = self.lm.encode(tokens, visible, place[None])
        self._count_nodes(visible.numel())
        return states, visible, pooled

    def _pool(self, states: Tensor, visible: Tensor, lengths: Tensor, pooled: Tensor | None) -> Tensor:
        """Pools hidden states to features `[R, D]` float32."""
        if self.pooling == "pooler":
            assert pooled is not None
            return pooled.float()
        if self.pooling == "mean-padded":
            return states.float().mean(dim=1)
        if self.pooling == "max":
            return states.masked_fill(~visible[..., None], torch.finfo(states.dtype).min).amax(dim=1).float()
        if self.pooling == "mean":
            member = visible.to(states.dtype)[:, None]  # [R, 1, L]
            return ((member @ states)[:, 0] / member.sum(dim=2)).float()
        last = torch.zeros_like(lengths) if self.pooling == "cls" else lengths - 1
        return states[torch.arange(len(states), device=self._device), last].float()

    def _encode_tree(self, texts: Sequence[str]) -> Tensor:
        self._start_count(len(texts), len(set(texts)))
        pieces = [(place, self.encode_packed(packed)) for place, packed in self._tree.subtrees(texts, MAX_NODES)]
        if len(pieces) == 1:
            return pieces[0][1]
        back = torch.from_numpy(np.argsort(np.concatenate([place for place, _ in pieces])))
        return torch.cat([features for _, features in pieces])[back.to(self._device)]

    @functools.cached_property
    def _graphs(self) -> CudaGraphs:
        """Captured passes of the language model; made on first use, since only GPUs have them."""
        return CudaGraphs(self.lm)

    def _uses_graph(self, nodes: int) -> bool:
        """Whether a tree is encoded with a CUDA graph."""
        enabled = self.config.cuda_graphs and not self.config.gradient_checkpointing
        return enabled and self._device.type == "cuda" and torch.is_grad_enabled() and nodes <= MAX_GRAPH_NODES

    def _uses_tree(self) -> bool:
        if self.packing == "tree" and self._device.type not in (*self._verified, "meta"):
            self.verify_packing()
        return self.packing == "tree"

    def _padded(self, rows: np.ndarray[tuple[int], np.dtype[np.int64]], width: int = 0) -> tuple[Tensor, Tensor]:
        ids, lengths = self._tree.tokens(rows, self.tokenizer.pad)
        ids = np.pad(ids, ((0, 0), (0, max(0, width - ids.shape[1]))), constant_values=self.tokenizer.pad)
        return torch.from_numpy(ids), torch.from_numpy(lengths)

    def _slots_of(self, texts: Sequence[str], width: int) -> Tensor:
        """Returns the word slot of each token of padded texts, `[T, L]`."""
        new = [text for text in texts if text not in self._slots]
        self._slots.update(zip(new, self.tokenizer.word_slots(new) if new else [], strict=True))
        rows = torch.zeros(len(texts), width, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            row[: len(self._slots[text])] = torch.tensor(self._slots[text])
        return rows.to(self._device)

    def _name_ids(self, names: tuple[str, ...]) -> list[list[int]]:
        if names not in self._names:
            refuse_duplicates(names, "class names")
            self._names[names] = self.tokenizer.encode_class_names(names)
        return self._names[names]

    def _check_length(self, length: int, what: str) -> None:
        limit = self.lm.max_positions()
        if limit is not None and length + self.lm.virtual_tokens > limit:
            virtual = f" after {count(self.lm.virtual_tokens, 'virtual token')}" if self.lm.virtual_tokens else ""
            raise ConfigError(
                f"{what} of {count(length, 'token')}{virtual} exceed the {limit} positions of the model; "
                f"use fewer tokens"
            )

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.int64, device=self._device)

    def _start_count(self, texts: int, distinct: int) -> None:
        self.stats = TextStats(texts, distinct, 0, texts * self.config.max_tokens)

    def _count_nodes(self, nodes: int) -> None:
        self.stats = self.stats._replace(nodes=self.stats.nodes + nodes)


def build_text_tower(
    config: TextTowerConfig,
    captions: Sequence[str],
    *,
    learnable: Sequence[str] | None = None,
    tokenizer: Path | None = None,
    trained_tokens: Sequence[int] | None = None,
    verify: bool = True,
) -> TextTower:
    """Builds a text tower. Random weights come from torch's global generator; callers fork it.

    Args:
        config: Model and adapter.
        captions: Texts to encode. Only tokens that occur in them get trainable embedding rows.
        learnable: Texts to train the tokenizer of a model from scratch on; by default the captions.
        tokenizer: Folder of a saved tokenizer to use instead of the model's own or of training one.
        trained_tokens: Tokens with trainable rows, instead of those of `captions`; as in a saved tower.
        verify: Whether to verify the prefix tree now; otherwise before the first tree, when weights are loaded.

    Raises:
        ConfigError: If the model cannot be loaded, is neither causal nor masked, or settings contradict each other.
        CheckpointError: If its files do not fit each other.
        DataError: If a caption has no letter or digit.
    """
    rule: RuleName = "words-2" if config.normalisation == "auto" else config.normalisation
    description = read_text_config(config)
    causal = is_causal(description)
    if tokenizer is not None:
        hf_tokenizer = load_tokenizer(tokenizer)
    elif config.model is not None:
        hf_tokenizer = load_tokenizer(config.model)
    else:
        vocab_size = (config.scratch or {}).get("vocab_size", 4096)
        corpus = captions if learnable is None else learnable
        if rule.startswith("lower"):  # a sentence bank keeps words as written
            corpus = [normalise(text, rule) for text in corpus]
        hf_tokenizer = train_tokenizer(corpus, causal=causal, vocab_size=vocab_size)
    eos = eos_token_of(hf_tokenizer, description) if causal else None
    tokens = TextTokenizer(hf_tokenizer, max_tokens=config.max_tokens, eos=eos)
    lm = build_language_model(config, vocabulary=len(hf_tokenizer), pad=tokens.pad, eos=tokens.eos)
    normal = normalise_all(list(dict.fromkeys(captions)), rule)
    tower = TextTower(
        adapt(lm, config, tokens.used_tokens(normal) if trained_tokens is None else trained_tokens), tokens, config
    )
    if captions:
        tower.cache_texts(captions)
    tokens.log_truncation()
    if verify and tower.packing == "tree" and next(lm.parameters()).device.type != "meta":
        tower.verify_packing()
    return tower


def has_external_base(config: TextTowerConfig) -> bool:
    """Whether the language model is loaded by name and frozen, so that its weights need not be saved."""
    return config.model is not None and not config.random_weights and config.adapt != "full"


def external_base_weights(tower: TextTower) -> list[str]:
    """Returns names of the frozen weights of an external base model; call it before anything else is frozen."""
    if not has_external_base(tower.config):
        return []
    trainable = {name for name, weight in tower.named_parameters() if weight.requires_grad}
    return [name for name in tower.state_dict() if name not in trainable]


def _resolve_packing(lm: LanguageModel, config: TextTowerConfig) -> str:
    if config.packing in ("distinct", "padded"):
        return config.packing
    fault = tree_obstacle(lm, config.max_tokens)
    if fault is None:
        return "tree"
    if config.packing == "tree":
        raise ConfigError(f"{fault}; set text.packing=distinct")
    if lm.causal:
        LOG.warning("%s; every distinct text is encoded separately", fault)
    return "distinct"


def _resolve_pooling(lm: LanguageModel, config: TextTowerConfig) -> str:
    if config.pooling == "cls" and lm.causal:
        raise ConfigError(
            "text.pooling=cls: the first token of a causal model attends to no other token; set end-token"
        )
    if config.pooling in _MASKED_ONLY and lm.causal:
        raise ConfigError(f"text.pooling={config.pooling} is for masked models; set end-token or mean")
    if config.pooling == "auto":
        return "end-token" if lm.causal else "mean"
    return config.pooling


_MASKED_ONLY = ("max", "mean-padded", "pooler")
