"""What the first token of a transformer attends to in its last block, whatever kernel computed it.

Fast kernels do not return attention, and the slow one keeps that of every block and token. Here the queries and keys of
the last block are watched as they pass, and one row is computed anew.

Shapes: `B` sequences, `L` tokens, `K` heads, `W` width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cleft.errors import ConfigError

_PAIRS = (("q_proj", "k_proj"), ("query", "key"))
"""What the families call the layers that make queries and keys."""


class Watched:
    """The queries and keys that passed last."""

    def __init__(self, heads: int) -> None:
        self._heads = heads
        self._seen: dict[str, Tensor] = {}

    def keep(self, what: str, output: Tensor) -> None:
        """Keeps queries or keys `[B, L, K * W]`."""
        self._seen[what] = output.detach()

    @torch.no_grad()
    def first_row(self, visible: Tensor | None = None) -> Tensor:
        """Returns the share of its attention that the first token gives to each, mean over the heads, `[B, L]` float32.

        Args:
            visible: Which tokens may be attended to, `[B, L]` bool; by default all.
        """
        query, key = (
            self._seen[what].float().unflatten(-1, (self._heads, -1)).transpose(1, 2) for what in ("query", "key")
        )  # [B, K, L, W]
        scores = (key @ query[:, :, :1].transpose(2, 3))[..., 0] * query.shape[-1] ** -0.5  # [B, K, L]
        if visible is not None:
            scores = scores.masked_fill(~visible[:, None], torch.finfo(scores.dtype).min)
        return scores.softmax(dim=-1).mean(dim=1)


@contextmanager
def watch_attention(model: nn.Module, what: str) -> Generator[Watched]:
    """Watches the last block of a transformer.

    Args:
        model: Any Hugging Face transformer.
        what: What it is, for messages: `image` or `text`.

    Raises:
        ConfigError: If it has no attention of a known form.
    """
    found: list[tuple[Any, nn.Module, nn.Module]] = [
        (module, getattr(module, query), getattr(module, key))
        for module in model.modules()
        for query, key in _PAIRS
        if isinstance(getattr(module, query, None), nn.Module) and isinstance(getattr(module, key, None), nn.Module)
    ]
    if not found:
        raise ConfigError(f"{what}: a {type(model).__name__} has no attention to weigh its tokens by; choose another")
    module, query, key = found[-1]
    watched = Watched(_heads(module))

    def kept_as(what: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: watched.keep(what, output)

    with query.register_forward_hook(kept_as("query")), key.register_forward_hook(kept_as("key")):
        yield watched


def _heads(module: Any) -> int:
    names = ("num_attention_heads", "num_heads", "n_heads")
    return int(next(value for name in names if (value := getattr(module, name, None)) is not None))
