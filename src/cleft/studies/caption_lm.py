"""Train a small language model on captions, for studies at the tiny scale.

Adapters need a pretrained language model: on random weights they cannot be compared. So one model of the preset's
configuration is trained on the training captions once per study, and every row starts from it: a causal model by
next-token prediction, a masked one by masked-token prediction (docs/decisions/0111).

Shapes: `B` windows or texts per step, `L` tokens, `V` vocabulary.
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
"""Windows per step of a causal model."""
_TEXTS = 48
"""Texts per step of a masked model: about as many tokens."""
_LR = 1e-3


def train_caption_lm(
    captions: Sequence[str],
    config: TextTowerConfig,
    folder: Path,
    *,
    tokenizer_texts: Sequence[str] | None = None,
    seed: int = 0,
    steps: int = STEPS,
) -> Path:
    """Train a language model on captions, unless the folder has it already.

    Args:
        captions: Captions of the training split, with repetitions.
        config: `scratch` is the model configuration.
        folder: Output folder in Hugging Face layout: configuration, weights, tokenizer. Written atomically.
        tokenizer_texts: Texts to train the tokenizer on; by default the captions.
        seed: Seed of initial weights and order.
        steps: AdamW steps of 8 windows, or of 48 captions for a masked model.

    Returns:
        The folder.

    Raises:
        ConfigError: If `scratch` is missing, or the folder was trained on other captions.
        NumericsError: If the loss is not finite.
    """
    facts = {
        "shape": dict(config.scratch or {}),
        "captions": texts_digest(sorted(captions)),
        "seed": seed,
        "steps": steps,
    }
    stored = find_json(folder / "learned.json", remedy="remove the folder, so that it is trained again")
    if stored is not None:
        if {key: stored.get(key) for key in facts} != json.loads(json.dumps(facts)):
            raise ConfigError(
                f"{folder} was trained on other captions or with another configuration; choose another folder for the "
                f"study"
            )
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} has no caption language model; move it away, or give another --out")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model, tokens = _build(captions if tokenizer_texts is None else tokenizer_texts, config)
        loss = _train(model, tokens, captions, seed, steps)
    with draft_folder(folder) as draft:
        with quiet_transformers():
            cast("Any", model).base_model.save_pretrained(draft)
        tokens.save(draft)
        write_json(draft / "learned.json", {**facts, "loss": loss})
    return folder


def _build(tokenizer_texts: Sequence[str], config: TextTowerConfig) -> tuple[torch.nn.Module, TextTokenizer]:
    if config.scratch is None:
        raise ConfigError("a caption language model needs text.scratch: give its model configuration")
    causal = is_causal(read_text_config(config))
    tokenizer = train_tokenizer(tokenizer_texts, causal=causal, vocab_size=int(config.scratch.get("vocab_size", 4096)))
    shape = read_text_config(config)
    end = eos_token_of(tokenizer, shape) if causal else None
    tokens = TextTokenizer(tokenizer, max_tokens=config.max_tokens, eos=end)
    shape = read_text_config(config, vocabulary=len(tokenizer), pad=tokens.pad, eos=end)
    return (AutoModelForCausalLM if causal else AutoModelForMaskedLM).from_config(shape), tokens


def _train(model: torch.nn.Module, tokens: TextTokenizer, captions: Sequence[str], seed: int, steps: int) -> float:
    """Train on next or masked tokens; returns the cross-entropy of the last step, in nats per token."""
    encoded = tokens.encode(list(captions))
    generator = torch.Generator().manual_seed(seed)
    window = int(getattr(cast("Any", model).config, "max_position_embeddings", tokens.max_tokens))
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LR, weight_decay=0.01)
    masking = None if tokens.hf_tokenizer.mask_token is None else DataCollatorForLanguageModeling(tokens.hf_tokenizer)
    last = float("nan")
    model.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = _LR * (1 - step / steps)
        if masking is None:
            ids = draw_windows(encoded, _BATCH, window, generator)
            logits = model(input_ids=ids).logits[:, :-1]  # [B, L - 1, V]
            loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        else:
            rows = torch.randint(len(encoded), (_TEXTS,), generator=generator).tolist()
            loss = model(**masking([{"input_ids": encoded[row]} for row in rows])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        last = loss.item()
        if not torch.isfinite(loss):
            raise NumericsError(f"step {step + 1} of the caption language model: the loss is {last}")
        if (step + 1) % 100 == 0:
            log.info("caption language model, step %d of %d: %.3f nats per token", step + 1, steps, last)
    model.eval()
    return last


def draw_windows(captions: Sequence[Sequence[int]], batch: int, window: int, generator: torch.Generator) -> Tensor:
    """Draw captions and concatenate them into a batch of full windows, `[batch, window]`.

    Full windows train every position embedding: a prefix or a prompt context moves captions to positions that no
    caption alone would reach.

    Args:
        captions: Token ids, with the end-of-text token.
        batch: Number of windows.
        window: Tokens per window.
        generator: Draws the captions.
    """
    stream: list[int] = []
    while len(stream) < batch * window:
        stream += captions[int(torch.randint(len(captions), (1,), generator=generator))]
    return torch.tensor(stream[: batch * window]).reshape(batch, window)
