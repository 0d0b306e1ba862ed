"""Texts of a model whose tokenizer is not at hand: token ids, written as words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cleft.errors import CheckpointError
from cleft.models.tokens import Tokens


class TokenIds(Tokens):
    """Reads texts such as `"17 4 23"` as the ids they spell.

    An imported checkpoint holds weights and no tokenizer. So that its embeddings can be compared all the same, its
    texts are ids; a sentence is refused with the way to a tokenizer.

    Args:
        vocabulary: Tokens the model knows.
        max_tokens: Longest text, its end token included.
        end: End-of-text token, appended to every text.
    """

    def __init__(self, *, vocabulary: int, max_tokens: int, end: int) -> None:  # no tokenizer to hand to Tokens
        self.vocabulary = vocabulary
        self.max_tokens = max_tokens
        self.front = ()
        self.back = (end,)
        self.end = end
        self.pad = end

    def names(self, names: Sequence[str]) -> list[list[int]]:
        """Returns the ids of class names, cut and closed."""
        return [[*ids[: self.max_tokens - 1], *self.back] for ids in self._plain(names)]

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
