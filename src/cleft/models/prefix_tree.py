"""A prefix tree of texts, so that every shared beginning is computed once.

In a causal model the state of a token depends on what stands before it and on nothing else. Texts that share
a beginning therefore share its states, and a batch can be computed as one sequence that holds every distinct
beginning once, with a mask in which a node sees its ancestors and with depths as positions. This is exact for
values and gradients, and it is wrong for models that look to the right.

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
    """A prefix tree, flattened so that every parent stands before its children."""

    input_ids: Tensor
    """Token of each node, `[P]`."""
    position_ids: Tensor
    """Depth of each node, which is its position in every text through it, `[P]`."""
    visible: Tensor
    """Whether the row's node may attend to the column's node, `[P, P]` bool."""
    last: Tensor
    """Node at which each text ends, `[T]`."""

    def to(self, device: torch.device | str) -> PackedTexts:
        """Returns the tree on another device."""
        return PackedTexts(*(tensor.to(device, non_blocking=True) for tensor in self))


def pack_texts(texts: Sequence[Sequence[int]], *, mask_eos_self: bool = False) -> PackedTexts:
    """Merges token sequences into one prefix tree.

    Args:
        texts: Token ids of each text, without padding.
        mask_eos_self: Whether the node at which a text ends attends to its ancestors but not to itself. A text of a
            single token still sees itself, for a row without anything visible has no attention. Only for texts
            that end in a token of their own, such as end-of-text; else one text may end inside another.

    Returns:
        The tree. `P` is at most the total number of tokens, and equals it only when
        no two texts share their first token.

    Raises:
        ValueError: If a text is empty, because it would end nowhere.
    """
    keys = [str(index) for index in range(len(texts))]
    tree = PrefixTree(lambda chosen: [list(texts[int(key)]) for key in chosen], mask_eos_self=mask_eos_self)
    return tree.subtree(keys)


def prepend_chain(packed: PackedTexts, roots: int) -> PackedTexts:
    """Puts a chain of nodes in front of a tree, so that every text reads it first.

    Args:
        packed: The tree.
        roots: Length of the chain. Its nodes come first, in order; their tokens are 0 and mean nothing, since
            the caller hands in their vectors.
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
    """Adds nodes that see only themselves, so that kernels and graphs meet fewer shapes.

    Args:
        packed: The tree.
        multiple: What the number of keys is rounded up to.
        extra_keys: Keys that attention sees besides the nodes, such as the virtual tokens of prefix tuning.
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
    """All texts met so far as one tree; the tree of a batch is cut out of it without a loop over tokens.

    A known text costs one look-up. The tree only grows, until `capacity` nodes; then it starts anew, because
    free text would otherwise fill the memory with texts that never come back.

    Args:
        tokenise: Turns new texts into token ids; asked once per text.
        mask_eos_self: As in `pack_texts`.
        capacity: Nodes to remember, about 120 bytes each.
    """

    def __init__(self, tokenise: Tokenise, *, mask_eos_self: bool = False, capacity: int = 2_000_000) -> None:
        self._tokenise = tokenise
        self._blind_end = mask_eos_self
        self._capacity = capacity
        self._forget()

    def _forget(self) -> None:
        self.nodes = 0
        self._row_of: dict[str, int] = {}
        self._child_of: dict[int, int] = {}  # parent and token in one number -> node
        self._token = np.zeros(64, np.int64)
        self._depth = np.zeros(64, np.int64)
        self._owner = np.zeros(64, np.int64)  # a text through the node; all have the same ancestors
        self._here = np.zeros(65, np.int64)  # scratch: place of each node in the tree of a batch; one past the end
        self._paths = np.full((64, 8), -1, np.int64)  # nodes of each text in order, then -1
        self._length = np.zeros(64, np.int64)

    def __len__(self) -> int:
        """Number of texts remembered."""
        return len(self._row_of)

    def __contains__(self, text: str) -> bool:
        """Whether a text is remembered."""
        return text in self._row_of

    def rows(self, texts: Sequence[str]) -> Integers:
        """Returns the row of each text, `[T]`, adding those that are new.

        Rows stay valid until the next call that adds texts.

        Raises:
            ValueError: If a text has no tokens, because it would end nowhere.
        """
        if any(text not in self._row_of for text in texts):
            if self.nodes > self._capacity:
                self._forget()
            new = [text for text in dict.fromkeys(texts) if text not in self._row_of]
            for text, tokens in zip(new, self._tokenise(new), strict=True):
                self._add(text, tokens)
        return np.fromiter(map(self._row_of.__getitem__, texts), np.int64, len(texts))

    def _add(self, text: str, tokens: Sequence[int]) -> None:
        if not tokens:
            raise ValueError(f"text {len(self)} has no tokens; encode at least its end-of-text token")
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
        """Returns the token ids of some texts, padded on the right to the longest, `[R, L]`, and their lengths."""
        lengths = self._length[rows]
        paths = self._paths[rows, : lengths.max()]
        return np.where(paths >= 0, self._token[paths], pad), lengths

    def subtree(self, texts: Sequence[str]) -> PackedTexts:
        """Returns the tree of a batch: every distinct beginning once, in the order they were first met."""
        return self._cut(self.rows(texts))

    def subtrees(self, texts: Sequence[str], max_nodes: int) -> Iterator[tuple[Integers, PackedTexts]]:
        """Returns a batch as trees of at most `max_nodes` nodes each, or one text if that alone is longer.

        The mask grows with the square of the nodes, so a batch of long free texts is better cut.

        Yields:
            Positions in `texts`, and their tree. Positions of all trees together are every position once.
        """
        rows = self.rows(texts)
        if len(texts) * int(self._length[rows].max(initial=0)) <= max_nodes:
            yield np.arange(len(texts)), self._cut(rows)
            return
        nodes = self._mark(np.unique(rows))
        if len(nodes) <= max_nodes:
            yield np.arange(len(texts)), self._cut(rows)
            return
        for positions in self._groups(rows, max_nodes):
            yield positions, self._cut(rows[positions])

    def _groups(self, rows: Integers, max_nodes: int) -> Iterator[Integers]:
        order = np.lexsort(self._paths[rows].T[::-1])  # neighbours share the longest beginnings
        paths = self._paths[rows[order]]
        same = np.logical_and.accumulate(paths[1:] == paths[:-1], axis=1) & (paths[1:] >= 0)
        lengths = self._length[rows[order]]
        fresh = lengths - np.concatenate([[0], same.sum(axis=1)])  # nodes a text adds to those of its neighbour
        start, nodes = 0, 0
        for place in range(len(order)):
            nodes += int(fresh[place])
            if nodes > max_nodes and place > start:
                yield order[start:place]
                start, nodes = place, int(lengths[place])
        yield order[start:]

    def _mark(self, rows: Integers) -> Integers:
        here = self._here
        here[self._paths[rows]] = 1  # -1 marks the one past the end
        here[-1] = 0
        nodes = np.flatnonzero(here[: self.nodes])
        here[nodes] = 0
        return nodes

    def _cut(self, rows: Integers) -> PackedTexts:
        nodes = self._mark(np.unique(rows))
        self._here[nodes] = np.arange(len(nodes))
        depth = self._depth[nodes]
        above = self._paths[self._owner[nodes], : depth.max(initial=-1) + 1]
        node, level = np.nonzero(np.arange(above.shape[1]) <= depth[:, None])
        visible = np.zeros((len(nodes), len(nodes)), np.bool_)
        visible[node, self._here[above[node, level]]] = True
        last = self._here[self._paths[rows, self._length[rows] - 1]]
        if self._blind_end:
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
    """Returns an array of at least this shape with the same beginning; doubling keeps the cost per text constant."""
    if all(have >= want for have, want in zip(array.shape, shape, strict=True)):
        return array
    new = [max(2 * have, want) if want > have else have for have, want in zip(array.shape, shape, strict=True)]
    larger = np.full(new, -1, array.dtype)
    larger[tuple(slice(have) for have in array.shape)] = array
    return larger
