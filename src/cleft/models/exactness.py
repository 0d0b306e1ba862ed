"""Whether a language model may be read as a prefix tree: what its configuration says, and what a trial shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cleft.grammar import count
from cleft.models.language_model import LanguageModel, evaluating
from cleft.models.packing import pack_texts

if TYPE_CHECKING:
    from cleft.models.text import TextTower

_LONGEST_TRIAL = 128
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


def why_no_tree(lm: LanguageModel, max_tokens: int) -> str | None:
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
    window = lm.window()
    if window is not None and max_tokens + lm.virtual > window:
        return f"a {kind!r} model looks back {count(window, 'token')}, fewer than text.max_tokens={max_tokens}"
    return None


@torch.no_grad()
def find_fault(tower: TextTower) -> str | None:
    """Reads four made-up texts as a tree and padded.

    Returns:
        A sentence that says how they differ, or None if they are equal up to rounding.
    """
    try:
        with evaluating(tower):
            return _compare(tower)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"a {tower.lm.config.model_type!r} model cannot be read as a tree ({first})"


def _compare(tower: TextTower) -> str | None:
    texts = _trial_texts(tower)
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[tower.tokens.pad] * (width - len(text))] for text in texts])
    apart = tower.read_padded(ids, torch.tensor([len(text) for text in texts]))
    together = tower.read_tree(pack_texts(texts, blind_end=tower.blind_end))
    error = float((together - apart).norm() / apart.norm())
    if error <= _tolerance(apart, tower.lm.dtype):
        return None
    return (
        f"a {tower.lm.config.model_type!r} model read as a tree differs from itself read text by text "
        f"(by {error:.1e} of the length of its features)"
    )


def _trial_texts(tower: TextTower) -> list[list[int]]:
    tokens = tower.tokens
    usable = [token for token in range(tokens.vocabulary) if token not in (*tokens.front, *tokens.back, tokens.pad)]
    step = max(1, len(usable) // 7)
    a, b, c, *more = usable[::step][:7]
    room = min(tower.config.max_tokens, _LONGEST_TRIAL) - len(tokens.front) - len(tokens.back)
    bodies = [[a, b, c], [a, b], [c], [a, *more * room]]
    return [[*tokens.front, *body[: max(1, room)], *tokens.back] for body in bodies]


def _tolerance(features: Tensor, dtype: torch.dtype) -> float:
    lowered = dtype != torch.float32 or torch.is_autocast_enabled(features.device.type)
    if lowered:
        return 5e-2
    # Graphics cards may multiply float32 with ten bits of mantissa.
    return 2e-5 if features.device.type == "cpu" else 5e-3
