"""Any Hugging Face language model as text tower: sentences in, one feature vector per sentence out.

Texts enter as strings; tokenising, packing and pooling are private matters of this file and those it uses. Causal
models read a batch as one prefix tree (`packing.py`), masked models read every distinct text once; both give the
values and gradients of reading every text alone. With dropout on, the texts through a node of the tree share one
draw: each is as noisy as before, but their noise is no longer independent (docs/decisions/0033).

Shapes: `T` texts, `R` distinct texts, `L` tokens, `P` nodes of a packed tree, `C` classes, `D` width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cleft.config import TextTowerConfig
from cleft.errors import ConfigError
from cleft.towers.adapt import adapt
from cleft.towers.exactness import find_fault, why_no_tree
from cleft.towers.graphs import MOST_NODES, Recordings, node_multiple
from cleft.towers.language_model import LanguageModel, build_language_model, is_causal, read_text_config
from cleft.towers.packing import PackedTexts, PrefixTree, pack_texts, pad_nodes, put_behind
from cleft.towers.tokens import Tokens, end_token, learn_tokenizer, load_tokenizer, refuse_unreadable

LOG = logging.getLogger(__name__)
MAX_NODES = 4096
"""Largest tree computed at once: its mask has this many rows and columns."""


class TextStats(NamedTuple):
    """What the last call computed."""

    texts: int
    distinct: int
    nodes: int
    """Tokens the model read: nodes of the tree, or tokens of the padded texts."""
    padded_tokens: int
    """Tokens it would have read had every text been padded to `max_tokens`, as the authors do."""


class TextTower(nn.Module):
    """A language model, its tokenizer, and how its states become one feature per text.

    Args:
        lm: The language model, adapted.
        tokens: Its tokenizer.
        config: How to pack and pool.

    Attributes:
        width: Width `D` of a feature.
        packing: `tree`, `distinct` or `padded`; what `auto` stands for once resolved. May be set.
        stats: What the last call computed.

    Raises:
        ConfigError: If the model cannot do what is asked, such as a tree in a masked model.
    """

    def __init__(self, lm: LanguageModel, tokens: Tokens, config: TextTowerConfig) -> None:
        super().__init__()
        self.lm = lm
        self.tokens = tokens
        self.config = config
        self.width = lm.width
        self.blind_end = lm.causal and not config.end_token_attends_itself
        self.pooling = _resolve_pooling(lm, config)
        self.packing = _resolve_packing(lm, config)
        self.stats = TextStats(0, 0, 0, 0)
        self._tree = PrefixTree(tokens.encode, blind_end=self.blind_end)
        self._names: dict[tuple[str, ...], list[list[int]]] = {}
        self._verified: set[str] = set()
        self._recordings = Recordings(lm)
        self._refuse_length(config.max_tokens, "text.max_tokens")

    @property
    def trained_tokens(self) -> tuple[int, ...]:
        """Tokens whose rows of the embedding move, ascending; empty if none or all do."""
        return getattr(self.lm.model.get_input_embeddings(), "tokens", ())

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Returns the features of texts, `[T, D]` float32.

        Raises:
            DataError: If a text says nothing.
            ConfigError: If the model turns out not to fit the prefix tree.
        """
        self.remember(texts)
        if self._takes_tree():
            return self._encode_tree(texts)
        rows = self._tree.rows(texts)
        distinct, place = np.unique(rows, return_inverse=True)
        self._count(len(texts), len(distinct))
        if self.packing == "padded":
            return self.read_padded(*self._padded(rows, self.config.max_tokens))
        features = self.read_padded(*self._padded(distinct))
        return features[torch.from_numpy(place).to(features.device)]

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Returns the features of texts, `[T, D]` float32; see `forward`."""
        return self(texts)

    def encode_behind_context(self, names: Sequence[str], context: Tensor) -> Tensor:
        """Returns features `[C, D]` float32 of class names that continue a learned context.

        Args:
            names: Class names; they are read in the form they have inside a sentence.
            context: Vectors in the place of token embeddings, `[L, D]`, shared by all names. In the tree they are
                one chain in front of all names and cost `L` nodes for any number of classes.

        Raises:
            DataError: If a name says nothing.
            ConfigError: If context and name together are longer than the model has positions for.
        """
        ids = self._read_names(tuple(names))
        front = self.lm.embed(self._tensor(self.tokens.front))  # what the tokenizer opens every text with
        roots = torch.cat([front, context.to(front.dtype)])
        longest = len(roots) + max(map(len, ids))
        self._refuse_length(longest, "context and class name together")
        self._count(len(ids), len(set(names)))
        window = self.lm.window()
        if self._takes_tree() and (window is None or longest + self.lm.virtual <= window):
            return self.read_tree(put_behind(pack_texts(ids, blind_end=self.blind_end), len(roots)), roots)
        lengths = torch.tensor([len(name) for name in ids])
        rows = [
            functional.pad(self._tensor(name), (0, longest), value=self.tokens.pad)[: lengths.max()] for name in ids
        ]
        behind = self.lm.embed(torch.stack(rows))  # [C, L, D]
        return self.read_padded(torch.cat([roots.expand(len(ids), -1, -1), behind], dim=1), lengths + len(roots))

    @torch.no_grad()
    def embed_opening(self, text: str) -> Tensor:
        """Returns the token embeddings of a sentence's beginning, `[n, D]` float32, without a gradient."""
        return self.lm.embed(self._tensor(self.tokens.opening(text))).float().detach()

    def remember(self, texts: Sequence[str]) -> None:
        """Tokenises texts that are new; batches of known ones cost a look-up each.

        Raises:
            DataError: If a text says nothing.
        """
        if any(text not in self._tree for text in texts):
            refuse_unreadable(texts)
            self._tree.rows(texts)

    def verify_packing(self) -> None:
        """Reads a few made-up texts as a tree and padded, without gradient, and compares.

        Models differ in what they do with a mask and positions of our own: some count positions for themselves, some
        bias attention by distance in the sequence, some have no attention at all. With `text.packing=auto` a model
        that fails is read text by text from then on. Done once per kind of device before the first tree, because
        kernels have been wrong with masks before.

        Raises:
            ConfigError: If they differ and `text.packing=tree` was asked for.
        """
        fault = find_fault(self)
        if fault is None:
            self._verified.add(self._device.type)
        elif self.config.packing == "auto":
            LOG.warning("%s; every distinct text is read by itself", fault)
            self.packing = "distinct"
        else:
            raise ConfigError(f"{fault}; set text.packing=distinct")

    def read_tree(self, packed: PackedTexts, roots: Tensor | None = None) -> Tensor:
        """Returns the features of the texts of a tree, `[T, D]` float32.

        Args:
            packed: The tree.
            roots: Vectors of its first nodes, where they are not those of tokens.
        """
        nodes = len(packed.input_ids)
        records = self._records(nodes)
        if records:
            packed = pad_nodes(packed, node_multiple(nodes), beside=self.lm.virtual)
        packed = packed.to(self._device)
        tokens = packed.input_ids
        if roots is not None:
            tokens = torch.cat([roots, self.lm.embed(tokens[len(roots) :])])
        read = self._recordings if records else self.lm
        states = read(tokens[None], packed.visible[None], packed.position_ids[None])[0]  # [P, D]
        self._read(nodes)
        if self.pooling == "mean":
            member = packed.visible[packed.last].to(states.dtype)  # [T, P]
            return (member @ states / member.sum(dim=1, keepdim=True)).float()
        return states[packed.last].float()

    def read_padded(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Returns the features of padded texts, `[R, D]` float32.

        Args:
            tokens: Token ids `[R, L]` or vectors `[R, L, D]`, padded on the right with anything.
            lengths: Tokens of each text, `[R]`.
        """
        tokens, lengths = tokens.to(self._device), lengths.to(self._device)
        place = torch.arange(tokens.shape[1], device=self._device)
        seen = (lengths - 1).clamp(min=1) if self.blind_end else lengths
        visible = place < seen[:, None]  # [R, L]
        states, pooled = self.lm.read(tokens, visible, place[None])  # [R, L, D], [R, D]
        self._read(visible.numel())
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
        self._count(len(texts), len(set(texts)))
        pieces = [(place, self.read_tree(packed)) for place, packed in self._tree.subtrees(texts, MAX_NODES)]
        if len(pieces) == 1:
            return pieces[0][1]
        back = torch.from_numpy(np.argsort(np.concatenate([place for place, _ in pieces])))
        return torch.cat([features for _, features in pieces])[back.to(self._device)]

    def _records(self, nodes: int) -> bool:
        """Whether the pass through a tree is played back from a recording."""
        wanted = self.config.graphs and not self.config.gradient_checkpointing
        return wanted and self._device.type == "cuda" and torch.is_grad_enabled() and nodes <= MOST_NODES

    def _takes_tree(self) -> bool:
        if self.packing == "tree" and self._device.type not in (*self._verified, "meta"):
            self.verify_packing()
        return self.packing == "tree"

    def _padded(self, rows: np.ndarray[tuple[int], np.dtype[np.int64]], width: int = 0) -> tuple[Tensor, Tensor]:
        ids, lengths = self._tree.tokens(rows, self.tokens.pad)
        ids = np.pad(ids, ((0, 0), (0, max(0, width - ids.shape[1]))), constant_values=self.tokens.pad)
        return torch.from_numpy(ids), torch.from_numpy(lengths)

    def _read_names(self, names: tuple[str, ...]) -> list[list[int]]:
        if names not in self._names:
            refuse_unreadable(names)
            self._names[names] = self.tokens.names(names)
        return self._names[names]

    def _refuse_length(self, length: int, what: str) -> None:
        limit = self.lm.longest()
        if limit is not None and length + self.lm.virtual > limit:
            virtual = f" behind {self.lm.virtual} virtual tokens" if self.lm.virtual else ""
            raise ConfigError(
                f"{what} of {length} tokens{virtual} exceed the {limit} positions of the model; shorten it"
            )

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.int64, device=self._device)

    def _count(self, texts: int, distinct: int) -> None:
        self.stats = TextStats(texts, distinct, 0, texts * self.config.max_tokens)

    def _read(self, nodes: int) -> None:
        self.stats = self.stats._replace(nodes=self.stats.nodes + nodes)


def build_text_tower(
    config: TextTowerConfig,
    captions: Sequence[str],
    *,
    tokenizer: Path | None = None,
    trained_tokens: Sequence[int] | None = None,
) -> TextTower:
    """Builds a text tower. Random weights come from torch's global generator; callers fork it.

    Args:
        config: Which model, adapted how.
        captions: What will be read. A tower from scratch learns its tokenizer from them, and only tokens that occur
            in them get rows that move.
        tokenizer: Folder of a saved tokenizer to take in place of the model's own or of learning one.
        trained_tokens: Tokens whose rows move, in place of those of `captions`; what a saved tower had.

    Raises:
        ConfigError: If the model cannot be had, is neither causal nor masked, or a setting contradicts another.
        CheckpointError: If its files do not fit each other.
        DataError: If a caption says nothing.
    """
    description = read_text_config(config)
    causal = is_causal(description)
    if tokenizer is not None:
        learned = load_tokenizer(tokenizer)
    elif config.model is not None:
        learned = load_tokenizer(config.model)
    else:
        learned = learn_tokenizer(captions, causal=causal, vocab_size=(config.scratch or {}).get("vocab_size", 4096))
    tokens = Tokens(learned, max_tokens=config.max_tokens, end=end_token(learned, description) if causal else None)
    lm = build_language_model(config, vocabulary=len(learned), pad=tokens.pad, end=tokens.end)
    tower = TextTower(
        adapt(lm, config, tokens.occurring(captions) if trained_tokens is None else trained_tokens), tokens, config
    )
    tower.remember(captions)
    tokens.warn_of_cuts()
    if tower.packing == "tree" and next(lm.parameters()).device.type != "meta":
        tower.verify_packing()
    return tower


def _resolve_packing(lm: LanguageModel, config: TextTowerConfig) -> str:
    if config.packing in ("distinct", "padded"):
        return config.packing
    fault = why_no_tree(lm, config.max_tokens)
    if fault is None:
        return "tree"
    if config.packing == "tree":
        raise ConfigError(f"{fault}; set text.packing=distinct")
    if lm.causal:
        LOG.warning("%s; every distinct text is read by itself", fault)
    return "distinct"


def _resolve_pooling(lm: LanguageModel, config: TextTowerConfig) -> str:
    if config.pooling == "cls" and lm.causal:
        raise ConfigError("text.pooling=cls: the first token of a causal model has read nothing else; set end-token")
    if config.pooling in _OF_MASKED and lm.causal:
        raise ConfigError(f"text.pooling={config.pooling} is for masked models; set end-token or mean")
    if config.pooling == "auto":
        return "end-token" if lm.causal else "mean"
    return config.pooling


_OF_MASKED = ("max", "mean-padded", "pooler")
