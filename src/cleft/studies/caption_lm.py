"""A small language model for studies without a published one: it learns the sentences that captions are made of.

Adapters are small changes of a model that knows language. Put into random weights they would compare nothing, so at the
tiny scale one model of the preset's shape first learns the training captions, once per study, and every row starts from
it: a causal model by predicting the next token, a masked one by restoring hidden tokens (docs/decisions/0111).

Shapes: `B` windows or texts of a step, `L` tokens, `V` vocabulary.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, DataCollatorForLanguageModeling

from cleft.config import TextTowerConfig
from cleft.errors import ConfigError, NumericsError
from cleft.files import draft_folder
from cleft.models.hub import quiet_transformers
from cleft.models.language_model import is_causal, read_text_config
from cleft.models.tokenizer import TextTokenizer, eos_token_of, train_tokenizer
from cleft.strict_json import find_json, write_json
from cleft.training.provenance import texts_digest

log = logging.getLogger(__name__)

STEPS = 400
_BATCH = 8
"""Windows of a causal model."""
_TEXTS = 48
"""Texts of a masked one: about as many tokens."""
_LR = 1e-3


def learn_language_model(
    captions: Sequence[str],
    config: TextTowerConfig,
    folder: Path,
    *,
    learnable: Sequence[str] | None = None,
    seed: int = 0,
    steps: int = STEPS,
) -> Path:
    """Trains a language model of a described shape on captions, unless the folder holds it already.

    Args:
        captions: Of the training split; each counts as often as it occurs.
        config: `scratch` is the shape.
        folder: As a language model is published: configuration, weights, tokenizer. Whole or not there.
        learnable: What its tokenizer is learned from; by default the captions.
        seed: Of the weights and the order.
        steps: Of AdamW, with 8 windows full of captions each, or 48 captions for a masked model.

    Returns:
        The folder.

    Raises:
        ConfigError: If no shape is given, or the folder was learned from other captions.
        NumericsError: If the loss is not finite.
    """
    facts = {
        "shape": dict(config.scratch or {}),
        "captions": texts_digest(sorted(captions)),
        "seed": seed,
        "steps": steps,
    }
    known = find_json(folder / "learned.json", remedy="remove the folder, so that it is trained again")
    if known is not None:
        if {key: known.get(key) for key in facts} != json.loads(json.dumps(facts)):
            raise ConfigError(
                f"{folder} was learned from other captions or in another shape; choose another folder for the study"
            )
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is in the way of the study's language model; move it away, or give another --out")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model, tokens = _build(captions if learnable is None else learnable, config)
        loss = _train(model, tokens, captions, seed, steps)
    with draft_folder(folder) as draft:
        with quiet_transformers():
            cast("Any", model).base_model.save_pretrained(draft)
        tokens.save(draft)
        write_json(draft / "learned.json", {**facts, "loss": loss})
    return folder


def _build(learnable: Sequence[str], config: TextTowerConfig) -> tuple[torch.nn.Module, TextTokenizer]:
    if config.scratch is None:
        raise ConfigError("a study's own language model is one that text.scratch describes; give its shape")
    causal = is_causal(read_text_config(config))
    tokenizer = train_tokenizer(learnable, causal=causal, vocab_size=int(config.scratch.get("vocab_size", 4096)))
    shape = read_text_config(config)
    end = eos_token_of(tokenizer, shape) if causal else None
    tokens = TextTokenizer(tokenizer, max_tokens=config.max_tokens, eos=end)
    shape = read_text_config(config, vocabulary=len(tokenizer), pad=tokens.pad, eos=end)
    return (AutoModelForCausalLM if causal else AutoModelForMaskedLM).from_config(shape), tokens


def _train(model: torch.nn.Module, tokens: TextTokenizer, captions: Sequence[str], seed: int, steps: int) -> float:
    """Cross-entropy of what comes next or was hidden; returns that of the last step, in nats per token."""
    encoded = tokens.encode(list(captions))
    order = torch.Generator().manual_seed(seed)
    window = int(getattr(cast("Any", model).config, "max_position_embeddings", tokens.max_tokens))
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LR, weight_decay=0.01)
    hide = None if tokens.hf_tokenizer.mask_token is None else DataCollatorForLanguageModeling(tokens.hf_tokenizer)
    last = float("nan")
    model.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = _LR * (1 - step / steps)
        if hide is None:
            ids = draw_windows(encoded, _BATCH, window, order)
            logits = model(input_ids=ids).logits[:, :-1]  # [B, L - 1, V]
            loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        else:
            drawn = torch.randint(len(encoded), (_TEXTS,), generator=order).tolist()
            loss = model(**hide([{"input_ids": encoded[row]} for row in drawn])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        last = loss.item()
        if not torch.isfinite(loss):
            raise NumericsError(f"step {step + 1} of a study's language model: the loss is {last}")
        if (step + 1) % 100 == 0:
            log.info("language model, step %d of %d: %.3f nats per token", step + 1, steps, last)
    model.eval()
    return last


def draw_windows(captions: Sequence[Sequence[int]], batch: int, window: int, order: torch.Generator) -> Tensor:
    """Captions drawn one behind the other until a batch of windows is full, `[batch, window]`.

    So every position is learned, as published models know theirs. A prefix and a prompt context stand in front of what
    is read, and move it to positions that no caption by itself would reach.

    Args:
        captions: Token ids, end of text included.
        batch: Windows.
        window: Tokens of each.
        order: Draws.
    """
    stream: list[int] = []
    while len(stream) < batch * window:
        stream += captions[int(torch.randint(len(captions), (1,), generator=order))]
    return torch.tensor(stream[: batch * window]).reshape(batch, window)
