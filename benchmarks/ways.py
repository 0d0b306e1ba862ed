"""Six ways to encode the captions of a batch, slowest first, and the computation of each.

Four are settings of the library (`text.packing`, `text.gradient_checkpointing`). Padding to the longest caption of the
batch, with duplicates, is what an efficient trainer without this library does. Padding without a gradient is the
released command, which by a bug trains no weight of its language model. These two are implemented here only. All use
the same fused attention, so that only the encoding of texts is compared (docs/decisions/0070).

Shapes: `T` texts, `R` sequences, `L` tokens, `D` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cleft.config import ImagesConfig, ImageTowerConfig, TextTowerConfig
from cleft.models.image_tower import build_image_tower
from cleft.models.language_model import LanguageModel
from cleft.models.text_tower import TextTower, build_text_tower

CHECKPOINTED = "padded to max, checkpointed"
PADDED = "padded to max"
RELEASED = "padded to max, trains nothing"
LONGEST = "padded to longest"
DISTINCT = "distinct, padded to longest"
TREE = "prefix tree"
WAYS = (CHECKPOINTED, PADDED, RELEASED, LONGEST, DISTINCT, TREE)


class Shape(NamedTuple):
    """Input of the language model: `sequences` of `length` tokens each, padding included."""

    sequences: int
    length: int

    @property
    def tokens(self) -> int:
        """Number of tokens, padding included."""
        return self.sequences * self.length


class Reader:
    """Encodes a batch of captions in any of the six ways.

    Args:
        tower: A causal text tower in training mode, without dropout.
        texts: The captions of the batch, with repetitions.
    """

    def __init__(self, tower: TextTower, texts: Sequence[str]) -> None:
        self.tower = tower
        self.texts = list(texts)
        distinct = list(dict.fromkeys(self.texts))
        tokens = dict(zip(distinct, tower.tokenizer.encode(distinct), strict=True))
        ids = [tokens[text] for text in self.texts]
        self.lengths = torch.tensor([len(text) for text in ids])
        rows = [text + [tower.tokenizer.pad] * (int(self.lengths.max()) - len(text)) for text in ids]
        self.ids = torch.tensor(rows)
        self.distinct = {tuple(text) for text in tokens.values()}
        self.prefixes = {text[:end] for text in self.distinct for end in range(1, len(text) + 1)}

    def shape(self, way: str) -> Shape:
        """Returns the input of the model, counted from the captions and not by the library."""
        sequences = {DISTINCT: len(self.distinct), TREE: 1}.get(way, len(self.texts))
        longest = int(self.lengths.max())
        length = {LONGEST: longest, DISTINCT: longest, TREE: len(self.prefixes)}
        return Shape(sequences, length.get(way, self.tower.config.max_tokens))

    def read(self, way: str) -> Tensor:
        """Returns the features of the captions `[T, D]`, without a gradient if the way is `RELEASED`.

        Raises:
            RuntimeError: If the library processed another number of tokens than `shape`.
        """
        set_checkpointing(self.tower.lm, way == CHECKPOINTED)
        if way == LONGEST:
            return self.tower.encode_padded(self.ids, self.lengths)
        self.tower.packing = {TREE: "tree", DISTINCT: "distinct"}.get(way, "padded")
        with torch.set_grad_enabled(torch.is_grad_enabled() and way != RELEASED):
            features = self.tower(self.texts)
        shape, read = self.shape(way), self.tower.stats.nodes
        if read != shape.tokens:
            raise RuntimeError(f"{way}: the tower read {read} tokens where {shape.tokens} were counted")
        return features


def set_checkpointing(lm: LanguageModel, on: bool) -> None:
    """Switches gradient checkpointing, in the form that works behind a frozen embedding."""
    if on:
        lm.model.activation_checkpointing_enable({"use_reentrant": False})
        lm.model.disable_input_require_grads()  # each call would add a hook to the embedding
    else:
        lm.model.activation_checkpointing_disable()


class TextWork:
    """Counts the operations of a text tower on meta tensors, at any size.

    Args:
        config: The tower.
        captions: Texts that its tokenizer is learned from.
    """

    def __init__(self, config: TextTowerConfig, captions: Sequence[str]) -> None:
        with torch.device("meta"):
            self.tower = build_text_tower(config, captions).train()

    def flops(self, shape: Shape, way: str = TREE) -> int:
        """Returns the floating point operations of the forward and, unless `RELEASED`, backward pass."""
        set_checkpointing(self.tower.lm, way == CHECKPOINTED)
        tokens = torch.zeros(shape, dtype=torch.int64, device="meta")
        # A three-dimensional mask is the same work for every variant; of a two-dimensional one the content is read.
        visible = torch.ones(*shape, shape.length, dtype=torch.bool, device="meta")
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(way != RELEASED):
            states = self.tower.lm(tokens, visible, tokens)
            if way != RELEASED:
                states.sum().backward()
        return counter.get_total_flops()


def image_flops(config: ImageTowerConfig, images: ImagesConfig, batch: int) -> int:
    """Returns the floating point operations of an image tower on a batch, forward and backward."""
    with torch.device("meta"):
        tower = build_image_tower(config, images).train()
        pixels = torch.zeros(batch, 1, images.size, images.size, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        tower.encode(pixels).sum().backward()
    return counter.get_total_flops()
