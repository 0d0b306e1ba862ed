"""A token embedding of which only the rows that occur may move."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TrainedRows(nn.Module):
    """A frozen token embedding under trained rows for some tokens.

    Captions of a data set use a few hundred of some ten thousand tokens. Training the whole table would store and
    update the rest for nothing, and weight decay would shrink it. The rows are float32 whatever the table is
    (docs/decisions/0032).

    Args:
        table: The model's own embedding.
        tokens: Which tokens may move, ascending.
    """

    slot: Tensor

    def __init__(self, table: nn.Module, tokens: Sequence[int]) -> None:
        super().__init__()
        weight = next(table.parameters())
        ids = torch.tensor(tokens, device=weight.device)
        self.table = table.requires_grad_(False)
        with torch.no_grad():
            self.rows = nn.Parameter(table(ids).float())
        slot = torch.full((len(weight),), -1, device=weight.device)
        slot[ids] = torch.arange(len(tokens), device=weight.device)
        self.register_buffer("slot", slot, persistent=False)
        self.tokens = tuple(tokens)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Returns the vector of each token, one axis more than `input_ids`, in the table's type."""
        frozen = self.table(input_ids)
        slot = self.slot[input_ids]
        # A lookup as embedding, not by index: its gradient is the same on every run of a GPU.
        moving = nn.functional.embedding(slot.clamp(min=0), self.rows).to(frozen.dtype)
        return torch.where((slot >= 0)[..., None], moving, frozen)
