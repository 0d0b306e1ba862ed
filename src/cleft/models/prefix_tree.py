"""Prefix tree of tokenised texts, so that every shared prefix is computed once.

In a causal model the state of a token depends only on the tokens before it. Texts with a common prefix share its
states, so a batch can be encoded as one sequence that contains every distinct prefix once, with a mask in which a node
attends to its ancestors, and with depths as positions. Values and gradients are exact. It is wrong for models that
attend to later tokens.

Shapes: `T` texts, `R` distinct texts, `P` nodes of a packed tree, `L` longest text in tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Integers = NDArray[np.int64]
Tokenise = Callable[[Sequence[str]], list[list[int]]]


class PackedTexts(NamedTuple):
    """A flattened prefix tree; every parent comes before its children."""

    input_ids: Tensor
    """Token of each node, `[P]`."""
    position_ids: Tensor
    """Depth of each node: its position in every text that contains it, `[P]`."""
    visible: Tensor
    """Attention mask, `[P, P]` bool: whether the row's node attends to the column's node."""
    last: Tensor
    """Node at which each text ends, `[T]`."""

    def to(self, device: torch.device | str) -> PackedTexts:
        """Returns the tree on another device."""
        return PackedTexts(*(tensor.to(device, non_blocking=True) for tensor in self))


def pack_texts(texts: Sequence[Sequence[int]], *, mask_eos_self: bool = False) -> PackedTexts:
    """Merges token sequences into one prefix tree.

    Args:
        texts: Token ids of each text, without padding.
        mask_eos_self: Whether the last token of a text attends to its ancestors but not to itself. A text of a
            single token still attends to itself, because a row must attend to something. Only for texts that end in a
            EOS token; otherwise one text may end inside another.

    Returns:
        The tree. `P` is at most the total number of tokens; it equals it if no two texts share their first token.

    Raises:
        ValueError: If a text is empty.
    """
    keys = [str(index) for index in range(len(texts))]
    tree = PrefixTree(lambda chosen: [list(texts[int(key)]) for key in chosen], mask_eos_self=mask_eos_self)
    return tree.subtree(keys)


def prepend_chain(packed: PackedTexts, roots: int) -> PackedTexts:
    """Puts a chain of nodes in front of a tree as a prefix of every text.

    Args:
        packed: The tree.
        roots: Length of the chain. Its nodes come first, in order; their token ids are 0 and unused, because the caller
            supplies their embeddings.
    """
    below = len(packed.input_ids)
    visible = packed.visible.new_ones(roots + below, roots + below)
    visible[:roots] = torch.ones_like(visible[:roots]).tril()
    visible[roots:, roots:] = packed.visible
    chain = torch.arange(roots, device=packed.position_ids.device)
    return PackedTexts(
        input_ids=torch.cat([torch.zeros_like(chain), packed.input_ids]),
        position_ids=torch.cat([chain, packed.position_ids + roots]),
        visible=visible,
        last=packed.last + roots,
    )


def pad_nodes(packed: PackedTexts, multiple: int, *, extra_keys: int = 0) -> PackedTexts:
    """Adds padding nodes that attend only to themselves, so that fewer shapes occur.

    Args:
        packed: The tree.
        multiple: Multiple to which the number of keys is rounded up.
        extra_keys: Attention keys besides the nodes, such as the virtual tokens of prefix tuning.
    """
    nodes = len(packed.input_ids)
    extra = -(nodes + extra_keys) % multiple
    if not extra:
        return packed
    visible = torch.eye(nodes + extra, dtype=torch.bool, device=packed.visible.device)
    visible[:nodes, :nodes] = packed.visible
    return PackedTexts(
        input_ids=torch.nn.functional.pad(packed.input_ids, (0, extra)),
        position_ids=torch.nn.functional.pad(packed.position_ids, (0, extra)),
        visible=visible,
        last=packed.last,
    )


class PrefixTree:
    """Cache of all texts as one tree; the subtree of a batch is extracted without a loop over tokens.

    A cached text costs one lookup. The tree grows up to `capacity` nodes and is then cleared, because free text would
    otherwise fill the memory with texts that never occur again.

    Args:
        tokenise: Converts new texts to token ids; called once per text.
        mask_eos_self: As in `pack_texts`.
        capacity: Maximum number of nodes, about 120 bytes each.
    """

    def __init__(self, tokenise: Tokenise, *, mask_eos_self: bool = False, capacity: int = 2_000_000) -> None:
        self._tokenise = tokenise
        self._mask_eos_self = mask_eos_self
        self._capacity = capacity
        self._clear()

    def _clear(self) -> None:
        self.nodes = 0
        self._row_of: dict[str, int] = {}
        self._child_of: dict[int, int] = {}  # (parent, token) packed into one integer -> node
        self._token = np.zeros(64, np.int64)
        self._depth = np.zeros(64, np.int64)
        self._owner = np.zeros(64, np.int64)  # row of a text that contains the node; all have the same ancestors
        self._here = np.zeros(65, np.int64)  # scratch: index of each node in the subtree of a batch
        self._paths = np.full((64, 8), -1, np.int64)  # nodes of each text in order, then -1
        self._length = np.zeros(64, np.int64)

    def __len__(self) -> int:
        """Number of cached texts."""
        return len(self._row_of)

    def __contains__(self, text: str) -> bool:
        """Whether a text is cached."""
        return text in self._row_of

    def rows(self, texts: Sequence[str]) -> Integers:
        """Returns the row of each text, `[T]`, adding those that are new.

        Rows stay valid until the next call that adds texts.

        Raises:
            ValueError: If a text has no tokens.
        """
        if any(text not in self._row_of for text in texts):
            if self.nodes > self._capacity:
                self._clear()
            new = [text for text in dict.fromkeys(texts) if text not in self._row_of]
            for text, tokens in zip(new, self._tokenise(new), strict=True):
                self._add(text, tokens)
        return np.fromiter(map(self._row_of.__getitem__, texts), np.int64, len(texts))

    def _add(self, text: str, tokens: Sequence[int]) -> None:
        if not tokens:
            raise ValueError(f"text {len(self)} has no tokens; encode at least the EOS token")
        row = len(self)
        self._paths = _grown(self._paths, row + 1, len(tokens))
        self._length = _grown(self._length, row + 1)
        self._token, self._depth, self._owner = (
            _grown(column, self.nodes + len(tokens)) for column in (self._token, self._depth, self._owner)
        )
        node = -1
        for depth, token in enumerate(tokens):
            key = (node + 1) << 32 | token
            node = self._child_of.setdefault(key, self.nodes)
            if node == self.nodes:
                self._token[node], self._depth[node], self._owner[node] = token, depth, row
                self.nodes += 1
            self._paths[row, depth] = node
        self._length[row] = len(tokens)
        self._row_of[text] = row
        if len(self._here) <= len(self._token):
            self._here = np.zeros(len(self._token) + 1, np.int64)

    def tokens(self, rows: Integers, pad: int) -> tuple[Integers, Integers]:
        """Returns token ids of the texts, right-padded to the longest, `[R, L]`, and their lengths."""
        lengths = self._length[rows]
        paths = self._paths[rows, : lengths.max()]
        return np.where(paths >= 0, self._token[paths], pad), lengths

    def subtree(self, texts: Sequence[str]) -> PackedTexts:
        """Returns the tree of a batch: every distinct prefix once, in the order of first occurrence."""
        return self._extract(self.rows(texts))

    def subtrees(self, texts: Sequence[str], max_nodes: int) -> Iterator[tuple[Integers, PackedTexts]]:
        """Splits a batch into trees of at most `max_nodes` nodes each (or of one text that is longer).

        The mask grows with the square of the number of nodes, so a batch of long free texts is better split.

        Yields:
            Positions in `texts`, and their tree. Every position occurs once.
        """
        rows = self.rows(texts)
        if len(texts) * int(self._length[rows].max(initial=0)) <= max_nodes:
            yield np.arange(len(texts)), self._extract(rows)
            return
        nodes = self._mark(np.unique(rows))
        if len(nodes) <= max_nodes:
            yield np.arange(len(texts)), self._extract(rows)
            return
        for positions in self._groups(rows, max_nodes):
            yield positions, self._extract(rows[positions])

    def _groups(self, rows: Integers, max_nodes: int) -> Iterator[Integers]:
        order = np.lexsort(self._paths[rows].T[::-1])  # neighbours share the longest prefixes
        paths = self._paths[rows[order]]
        same = np.logical_and.accumulate(paths[1:] == paths[:-1], axis=1) & (paths[1:] >= 0)
        lengths = self._length[rows[order]]
        fresh = lengths - np.concatenate([[0], same.sum(axis=1)])  # nodes that a text adds to its neighbour's
        start, nodes = 0, 0
        for place in range(len(order)):
            nodes += int(fresh[place])
            if nodes > max_nodes and place > start:
                yield order[start:place]
                start, nodes = place, int(lengths[place])
        yield order[start:]

    def _mark(self, rows: Integers) -> Integers:
        here = self._here
        here[self._paths[rows]] = 1  # padding (-1) marks the entry past the end
        here[-1] = 0
        nodes = np.flatnonzero(here[: self.nodes])
        here[nodes] = 0
        return nodes

    def _extract(self, rows: Integers) -> PackedTexts:
        nodes = self._mark(np.unique(rows))
        self._here[nodes] = np.arange(len(nodes))
        depth = self._depth[nodes]
        above = self._paths[self._owner[nodes], : depth.max(initial=-1) + 1]
        node, level = np.nonzero(np.arange(above.shape[1]) <= depth[:, None])
        visible = np.zeros((len(nodes), len(nodes)), np.bool_)
        visible[node, self._here[above[node, level]]] = True
        last = self._here[self._paths[rows, self._length[rows] - 1]]
        if self._mask_eos_self:
            ends = last[depth[last] > 0]
            visible[ends, ends] = False
        self._here[nodes] = 0
        return PackedTexts(
            input_ids=torch.from_numpy(self._token[nodes]),
            position_ids=torch.from_numpy(depth),
            visible=torch.from_numpy(visible),
            last=torch.from_numpy(last),
        )


def _grown(array: NDArray[Any], *shape: int) -> NDArray[Any]:
    """Returns the array grown to at least this shape; doubling keeps the cost per text constant."""
    if all(have >= want for have, want in zip(array.shape, shape, strict=True)):
        return array
    new = [max(2 * have, want) if want > have else have for have, want in zip(array.shape, shape, strict=True)]
    larger = np.full(new, -1, array.dtype)
    larger[tuple(slice(have) for have in array.shape)] = array
    return larger
