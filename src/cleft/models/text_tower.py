"""Any Hugging Face language model as text tower: sentences in, one feature vector per sentence out.

Texts enter as strings; tokenising, packing and pooling are private matters of this file and those it uses. Causal
models read a batch as one prefix tree (`packing.py`), masked models read every distinct text once; both give the
values and gradients of reading every text alone. With dropout on, the texts through a node of the tree share one
draw: each is as noisy as before, but their noise is no longer independent (docs/decisions/0035).

Shapes: `T` texts, `R` distinct texts, `L` tokens, `P` nodes of a packed tree, `C` classes, `D` width.
"""

from __future__ import annotations

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

_LONGEST_TRIAL = 128
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


def tree_obstacle(lm: LanguageModel, max_tokens: int) -> str | None:
    """Says why a model cannot be read as a tree, as far as its configuration tells; None if nothing speaks against it.

    What counts tokens in the order of the sequence may show only in large trees, and what carries a state along it
    hardly shows in weights that are small at first; so neither is left to `find_fault`.
    """
    kind = lm.config.model_type
    if not lm.causal:
        return f"text.packing=tree is wrong for {kind!r}, a masked model: its tokens also see what stands behind them"
    if not lm.takes_positions:
        return f"a {kind!r} model takes no positions, so it cannot be read as a tree"
    if kind == "clip_text_model":
        return f"a {kind!r} model takes no more tokens at once than it has positions, so it cannot be read as a tree"
    others = set(getattr(lm.config, "layer_types", None) or ()) - _ATTENTION
    if others or any(isinstance(module, nn.Conv1d) for module in lm.modules()):
        return f"a {kind!r} model carries a state from token to token, so it cannot be read as a tree"
    if getattr(lm.config, "window_size", None):
        return f"a {kind!r} model attends to its neighbours in the sequence, so it cannot be read as a tree"
    window = lm.attention_window()
    if window is not None and max_tokens + lm.virtual_tokens > window:
        return f"a {kind!r} model looks back {count(window, 'token')}, fewer than text.max_tokens={max_tokens}"
    return None


@torch.no_grad()
def compare_tree_with_padded(tower: TextTower) -> str | None:
    """Reads four made-up texts as a tree and padded.

    Returns:
        A sentence that says how they differ, or None if they are equal up to rounding.
    """
    try:
        with eval_mode(tower):
            return _compare(tower)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"a {tower.lm.config.model_type!r} model cannot be read as a tree ({first})"


def _compare(tower: TextTower) -> str | None:
    texts = _random_texts(tower)
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[tower.tokenizer.pad] * (width - len(text))] for text in texts])
    apart = tower.encode_padded(ids, torch.tensor([len(text) for text in texts]))
    together = tower.encode_packed(pack_texts(texts, mask_eos_self=tower.mask_eos_self))
    error = float((together - apart).norm() / apart.norm())
    if error <= _tolerance(apart, tower.lm.dtype):
        return None
    return (
        f"a {tower.lm.config.model_type!r} model read as a tree differs from itself read text by text "
        f"(by {error:.1e} of the length of its features)"
    )


def _random_texts(tower: TextTower) -> list[list[int]]:
    tokens = tower.tokenizer
    special = {*tokens.prefix_ids, *tokens.suffix_ids, tokens.pad}
    usable = [token for token in range(tokens.vocabulary) if token not in special]
    step = max(1, len(usable) // 7)
    a, b, c, *more = usable[::step][:7]
    room = min(tower.config.max_tokens, _LONGEST_TRIAL) - len(tokens.prefix_ids) - len(tokens.suffix_ids)
    bodies = [[a, b, c], [a, b], [c], [a, *more * room]]
    return [[*tokens.prefix_ids, *body[: max(1, room)], *tokens.suffix_ids] for body in bodies]


def _tolerance(features: Tensor, dtype: torch.dtype) -> float:
    lowered = dtype != torch.float32 or torch.is_autocast_enabled(features.device.type)
    if lowered:
        return 5e-2
    # Graphics cards may multiply float32 with ten bits of mantissa.
    return 2e-5 if features.device.type == "cpu" else 5e-3


LOG = logging.getLogger(__name__)
MAX_NODES = 4096
"""Largest tree computed at once: its mask has this many rows and columns."""
_MOST_KNOWN = 1_000_000
"""Texts whose normal form is remembered."""


class TextStats(NamedTuple):
    """What the last call computed."""

    texts: int
    distinct: int
    nodes: int
    """Tokens the model read: nodes of the tree, or tokens of the padded texts."""
    padded_tokens: int
    """Tokens it would have read had every text been padded to `max_tokens`, as the authors do."""


class WordFeatures(NamedTuple):
    """Texts as local losses want them: slot 0 is the class token, words follow from 1, behind them stands the end."""

    features: Tensor
    """`[T, D]` float32, as `TextTower.encode` gives them."""
    words: Tensor
    """Sum of the states of a slot's tokens, `[T, W, D]`; zeros behind the end."""
    lengths: Tensor
    """Words of each text, `[T]`: slots 1 to this are words, the next one is the end."""
    slot_of_token: Tensor
    """`[T, L]`; 0 for padding too."""
    attention: Tensor
    """What the class token looks at in the last block, `[T, L]`, without gradient; no columns where nobody asked."""


class MaskedTokens(NamedTuple):
    """Texts of which a part was hidden."""

    states: Tensor
    """What the model made of the rest, `[T, L, D]`."""
    ids: Tensor
    """The tokens before any was hidden, `[T, L]`."""
    hidden: Tensor
    """Which were, `[T, L]` bool."""


class TextTower(nn.Module):
    """A language model, its tokenizer, and how its states become one feature per text.

    Args:
        lm: The language model, adapted.
        tokens: Its tokenizer.
        config: How to pack and pool.

    Attributes:
        width: Width `D` of a feature.
        rule: How texts are normalised before they are tokenised.
        packing: `tree`, `distinct` or `padded`; what `auto` stands for once resolved. May be set.
        stats: What the last call computed.

    Raises:
        ConfigError: If the model cannot do what is asked, such as a tree in a masked model.
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
        self._graphs = CudaGraphs(lm)
        self._slots: dict[str, list[int]] = {}
        self._refuse_length(config.max_tokens, "text.max_tokens")

    @property
    def trained_tokens(self) -> tuple[int, ...]:
        """Tokens whose rows of the embedding move, ascending; empty if none or all do."""
        return getattr(self.lm.model.get_input_embeddings(), "tokens", ())

    def forward(self, texts: Texts) -> Tensor:
        """Returns the features of texts, `[T, D]` float32.

        Args:
            texts: One, or `T` of them; they are normalised first.

        Raises:
            DataError: If a text says nothing, or cannot be read.
            ConfigError: If the model turns out not to fit the prefix tree.
        """
        texts = self.cache_texts(texts)
        if self._takes_tree():
            return self._encode_tree(texts)
        rows = self._tree.rows(texts)
        distinct, place = np.unique(rows, return_inverse=True)
        self._count(len(texts), len(distinct))
        if self.packing == "padded":
            return self.encode_padded(*self._padded(rows, self.config.max_tokens))
        features = self.encode_padded(*self._padded(distinct))
        return features[torch.from_numpy(place).to(features.device)]

    def normalise(self, texts: Texts) -> list[str]:
        """Returns texts as they are tokenised; see `text.normalisation`.

        Raises:
            DataError: If a text has no letter or digit, is too long, or holds an invisible character.
        """
        given = as_texts(texts)
        new = [text for text in given if text not in self._normal]
        if new:
            normal = normalise_all(given, self.rule)
            if len(self._normal) > _MOST_KNOWN:
                self._normal.clear()
            self._normal.update(zip(given, normal, strict=True))
        return [self._normal[text] for text in given]

    def encode(self, texts: Texts) -> Tensor:
        """Returns the features of texts, `[T, D]` float32; see `forward`."""
        return self(texts)

    def encode_words(self, texts: Texts, *, attention: bool = False, pad_to_max: bool = False) -> WordFeatures:
        """Reads texts word by word; each distinct text is read once. For masked models.

        Args:
            texts: `T` of them.
            attention: Whether to tell what the class token looks at.
            pad_to_max: Whether there shall be as many slots as `max_tokens`, in place of those the longest text needs.

        Raises:
            DataError: If a text says nothing.
        """
        texts = self.cache_texts(texts)
        distinct = list(dict.fromkeys(texts))
        number = {text: place for place, text in enumerate(distinct)}
        self._count(len(texts), len(distinct))
        ids, lengths = (part.to(self._device) for part in self._padded(self._tree.rows(distinct)))
        slots = self._slots_of(distinct, ids.shape[1])
        with capture_attention(self.lm.model, "text") if attention else nullcontext() as watched:
            states, visible, pooled = self._read_states(ids, lengths)
        looked = states.new_zeros(len(distinct), 0) if watched is None else watched.first_row(visible)
        wide = self.config.max_tokens if pad_to_max else int(slots.max()) + 1
        member = functional.one_hot(slots, wide).to(states.dtype) * visible[..., None].to(states.dtype)  # [R, L, W]
        place = torch.tensor([number[text] for text in texts], device=self._device)
        return WordFeatures(
            features=self._pool(states, visible, lengths, pooled)[place],
            words=(member.mT @ states).float()[place],
            lengths=(slots.amax(dim=1) - 1)[place],
            slot_of_token=slots[place],
            attention=looked.float()[place],
        )

    def encode_masked(self, texts: Texts, condition: Tensor, *, share: float, pad_to_max: bool = False) -> MaskedTokens:
        """Hides words of texts, drawn from torch's generator, and reads the rest. For masked models.

        Args:
            texts: `T` of them.
            condition: What each text is told of its image, added to the embedding of every token, `[T, D]`.
            share: Probability with which a word is hidden, with all its pieces.
            pad_to_max: Whether texts are padded to `max_tokens`, in place of the longest of them.

        Raises:
            DataError: If a text says nothing.
            ConfigError: If the tokenizer has no mask token, or the model no embeddings apart.
        """
        texts = self.cache_texts(texts)
        mask: Any = self.tokenizer.hf_tokenizer.mask_token_id
        embeddings: Any = getattr(self.lm.model, "embeddings", None)
        if mask is None or embeddings is None:
            lacking = "its tokenizer has no mask token" if mask is None else "it has no embeddings apart"
            raise ConfigError(f"text.model: a {self.lm.config.model_type!r} model cannot say what is hidden, {lacking}")
        self._count(len(texts), len(set(texts)))
        padded = self._padded(self._tree.rows(texts), self.config.max_tokens if pad_to_max else 0)
        ids, lengths = (part.to(self._device) for part in padded)
        slots = self._slots_of(texts, ids.shape[1])
        end = slots.amax(dim=1, keepdim=True)
        drawn = torch.rand(len(ids), int(end.max()) + 1, device=self._device) < share
        hidden = drawn.gather(1, slots) & (slots > 0) & (slots < end)
        with embeddings.register_forward_hook(lambda _m, _i, output: output + condition[:, None].to(output.dtype)):
            states, _, _ = self._read_states(ids.masked_fill(hidden, mask), lengths)
        return MaskedTokens(states, ids, hidden)

    def encode_after_context(self, names: Texts, context: Tensor) -> Tensor:
        """Returns features `[C, D]` float32 of class names that continue a learned context.

        Args:
            names: One class name or several; they are normalised as the names in captions, and read in the form they
                have inside a sentence.
            context: Vectors in the place of token embeddings, `[L, D]`, shared by all names. In the tree they are
                one chain in front of all names and cost `L` nodes for any number of classes.

        Raises:
            DataError: If a name says nothing, or two are equal.
            ConfigError: If context and name together are longer than the model has positions for.
        """
        names = normalise_all(as_texts(names, "class name"), class_name_rule(self.rule))
        ids = self._read_names(tuple(names))
        front = self.lm.embed(self._tensor(self.tokenizer.prefix_ids))  # what the tokenizer opens every text with
        roots = torch.cat([front, context.to(front.dtype)])
        longest = len(roots) + max(map(len, ids))
        self._refuse_length(longest, "context and class name together")
        self._count(len(ids), len(set(names)))
        window = self.lm.attention_window()
        if self._takes_tree() and (window is None or longest + self.lm.virtual_tokens <= window):
            packed = pack_texts(ids, mask_eos_self=self.mask_eos_self)
            return self.encode_packed(prepend_chain(packed, len(roots)), roots)
        lengths = torch.tensor([len(name) for name in ids])
        rows = [
            functional.pad(self._tensor(name), (0, longest), value=self.tokenizer.pad)[: lengths.max()] for name in ids
        ]
        behind = self.lm.embed(torch.stack(rows))  # [C, L, D]
        return self.encode_padded(torch.cat([roots.expand(len(ids), -1, -1), behind], dim=1), lengths + len(roots))

    @torch.no_grad()
    def embed_prompt(self, text: str) -> Tensor:
        """Returns the token embeddings of a sentence's beginning, `[n, D]` float32, without a gradient."""
        return self.lm.embed(self._tensor(self.tokenizer.encode_prompt(normalise(text, self.rule)))).float()

    def cache_texts(self, texts: Texts) -> list[str]:
        """Normalises texts and tokenises those that are new; batches of known ones cost two look-ups a text.

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
        """Reads a few made-up texts as a tree and padded, without gradient, and compares.

        Models differ in what they do with a mask and positions of our own: some count positions for themselves, some
        bias attention by distance in the sequence, some have no attention at all. With `text.packing=auto` a model
        that fails is read text by text from then on. Done once per kind of device before the first tree, because
        kernels have been wrong with masks before.

        Raises:
            ConfigError: If they differ and `text.packing=tree` was asked for.
        """
        fault = compare_tree_with_padded(self)
        if fault is None:
            self._verified.add(self._device.type)
        elif self.config.packing == "auto":
            LOG.warning("%s; every distinct text is read by itself", fault)
            self.packing = "distinct"
        else:
            raise ConfigError(f"{fault}; set text.packing=distinct")

    def encode_packed(self, packed: PackedTexts, roots: Tensor | None = None) -> Tensor:
        """Returns the features of the texts of a tree, `[T, D]` float32.

        Args:
            packed: The tree.
            roots: Vectors of its first nodes, where they are not those of tokens.
        """
        nodes = len(packed.input_ids)
        records = self._uses_graph(nodes)
        if records:
            packed = pad_nodes(packed, node_multiple(nodes), extra_keys=self.lm.virtual_tokens)
        packed = packed.to(self._device)
        tokens = packed.input_ids
        if roots is not None:
            tokens = torch.cat([roots, self.lm.embed(tokens[len(roots) :])])
        read = self._graphs if records else self.lm
        states = read(tokens[None], packed.visible[None], packed.position_ids[None])[0]  # [P, D]
        self._read(nodes)
        if self.pooling == "mean":
            member = packed.visible[packed.last].to(states.dtype)  # [T, P]
            return (member @ states / member.sum(dim=1, keepdim=True)).float()
        return states[packed.last].float()

    def encode_padded(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Returns the features of padded texts, `[R, D]` float32.

        Args:
            tokens: Token ids `[R, L]` or vectors `[R, L, D]`, padded on the right with anything.
            lengths: Tokens of each text, `[R]`.
        """
        tokens, lengths = tokens.to(self._device), lengths.to(self._device)
        states, visible, pooled = self._read_states(tokens, lengths)
        return self._pool(states, visible, lengths, pooled)

    def _read_states(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """States `[R, L, D]` of padded texts, which tokens are seen `[R, L]`, and the model's own pooling `[R, D]`."""
        place = torch.arange(tokens.shape[1], device=self._device)
        seen = (lengths - 1).clamp(min=1) if self.mask_eos_self else lengths
        visible = place < seen[:, None]  # [R, L]
        states, pooled = self.lm.encode(tokens, visible, place[None])
        self._read(visible.numel())
        return states, visible, pooled

    def _pool(self, states: Tensor, visible: Tensor, lengths: Tensor, pooled: Tensor | None) -> Tensor:
        """Features `[R, D]` float32."""
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
        pieces = [(place, self.encode_packed(packed)) for place, packed in self._tree.subtrees(texts, MAX_NODES)]
        if len(pieces) == 1:
            return pieces[0][1]
        back = torch.from_numpy(np.argsort(np.concatenate([place for place, _ in pieces])))
        return torch.cat([features for _, features in pieces])[back.to(self._device)]

    def _uses_graph(self, nodes: int) -> bool:
        """Whether the pass through a tree is played back from a recording."""
        wanted = self.config.cuda_graphs and not self.config.gradient_checkpointing
        return wanted and self._device.type == "cuda" and torch.is_grad_enabled() and nodes <= MAX_GRAPH_NODES

    def _takes_tree(self) -> bool:
        if self.packing == "tree" and self._device.type not in (*self._verified, "meta"):
            self.verify_packing()
        return self.packing == "tree"

    def _padded(self, rows: np.ndarray[tuple[int], np.dtype[np.int64]], width: int = 0) -> tuple[Tensor, Tensor]:
        ids, lengths = self._tree.tokens(rows, self.tokenizer.pad)
        ids = np.pad(ids, ((0, 0), (0, max(0, width - ids.shape[1]))), constant_values=self.tokenizer.pad)
        return torch.from_numpy(ids), torch.from_numpy(lengths)

    def _slots_of(self, texts: Sequence[str], width: int) -> Tensor:
        """Slot of each token of padded texts, `[T, L]`."""
        new = [text for text in texts if text not in self._slots]
        self._slots.update(zip(new, self.tokenizer.word_slots(new) if new else [], strict=True))
        rows = torch.zeros(len(texts), width, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            row[: len(self._slots[text])] = torch.tensor(self._slots[text])
        return rows.to(self._device)

    def _read_names(self, names: tuple[str, ...]) -> list[list[int]]:
        if names not in self._names:
            refuse_duplicates(names, "class names")
            self._names[names] = self.tokenizer.encode_class_names(names)
        return self._names[names]

    def _refuse_length(self, length: int, what: str) -> None:
        limit = self.lm.max_positions()
        if limit is not None and length + self.lm.virtual_tokens > limit:
            virtual = f" behind {count(self.lm.virtual_tokens, 'virtual token')}" if self.lm.virtual_tokens else ""
            raise ConfigError(
                f"{what} of {count(length, 'token')}{virtual} exceed the {limit} positions of the model; shorten it"
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
    learnable: Sequence[str] | None = None,
    tokenizer: Path | None = None,
    trained_tokens: Sequence[int] | None = None,
    verify: bool = True,
) -> TextTower:
    """Builds a text tower. Random weights come from torch's global generator; callers fork it.

    Args:
        config: Which model, adapted how.
        captions: What will be read. Only tokens that occur in them get rows that move.
        learnable: What a tower from scratch learns its tokenizer from; by default the captions.
        tokenizer: Folder of a saved tokenizer to take in place of the model's own or of learning one.
        trained_tokens: Tokens whose rows move, in place of those of `captions`; what a saved tower had.
        verify: Whether to verify now that texts may be read as a tree; otherwise before the first tree, when the
            weights have been read.

    Raises:
        ConfigError: If the model cannot be had, is neither causal nor masked, or a setting contradicts another.
        CheckpointError: If its files do not fit each other.
        DataError: If a caption says nothing.
    """
    rule: RuleName = "words-2" if config.normalisation == "auto" else config.normalisation
    description = read_text_config(config)
    causal = is_causal(description)
    if tokenizer is not None:
        learned = load_tokenizer(tokenizer)
    elif config.model is not None:
        learned = load_tokenizer(config.model)
    else:
        vocab_size = (config.scratch or {}).get("vocab_size", 4096)
        taught = captions if learnable is None else learnable
        if rule.startswith("lower"):  # words of a bank of sentences as written
            taught = [normalise(text, rule) for text in taught]
        learned = train_tokenizer(taught, causal=causal, vocab_size=vocab_size)
    eos = eos_token_of(learned, description) if causal else None
    tokens = TextTokenizer(learned, max_tokens=config.max_tokens, eos=eos)
    lm = build_language_model(config, vocabulary=len(learned), pad=tokens.pad, eos=tokens.eos)
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
    """Whether the language model is taken by name and kept still, so that its weights need not be saved."""
    return config.model is not None and not config.random_weights and config.adapt != "full"


def external_base_weights(tower: TextTower) -> list[str]:
    """Names of a tower's weights that stay where they came from; call it before anything else is frozen."""
    if not has_external_base(tower.config):
        return []
    moving = {name for name, weight in tower.named_parameters() if weight.requires_grad}
    return [name for name in tower.state_dict() if name not in moving]


def _resolve_packing(lm: LanguageModel, config: TextTowerConfig) -> str:
    if config.packing in ("distinct", "padded"):
        return config.packing
    fault = tree_obstacle(lm, config.max_tokens)
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
