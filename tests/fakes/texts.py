"""Tiny language models with weights large enough for a wrong token to show, and captions that share beginnings."""

from __future__ import annotations

import torch
from hypothesis import strategies

from cleft.config import TextTowerConfig
from cleft.models.text_tower import TextTower, build_text_tower

OPENING = "this is a chest x ray of a patient with"
CAPTIONS = [
    OPENING,
    f"{OPENING} edema",
    f"{OPENING} edema fracture",
    f"{OPENING} pleural effusion",
    f"{OPENING} pleural effusion support devices",
    "pneumonia",
]
ROTARY = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16}
SCRATCH = {
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 96},
    "llama": {"model_type": "llama", "intermediate_size": 32, "max_position_embeddings": 96, **ROTARY},
    "qwen3": {"model_type": "qwen3", "intermediate_size": 32, "head_dim": 8, **ROTARY},
    "bert": {
        "model_type": "bert",
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "max_position_embeddings": 96,
    },
}
WORDS = ["this", "is", "a", "chest", "ray", "edema", "pleural", "effusion", "pneumonia", "unheard-of"]


def tower(family: str = "gpt2", **settings) -> TextTower:
    """A tower from scratch in evaluation mode, every weight moved away from where it started."""
    torch.manual_seed(0)
    options = {"model": None, "scratch": SCRATCH.get(family), "rank": 2, "dropout": 0.0, "max_tokens": 16}
    if family in SCRATCH and family != "bert":
        options["packing"] = "tree"  # not `auto`, which would hide a broken tree by reading texts one by one
    options.update(settings)
    built = build_text_tower(TextTowerConfig(**options), CAPTIONS)
    with torch.no_grad():
        for weight in built.parameters():  # LoRA starts at zero, where half of its gradients vanish
            weight.add_(0.1 * torch.randn_like(weight))
    return built.eval()


def read(tower: TextTower, packing: str, texts: list[str]) -> torch.Tensor:
    """Features of texts, read in a given way."""
    before, tower.packing = tower.packing, packing
    try:
        return tower.encode(texts)
    finally:
        tower.packing = before


def gradients(features: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """Gradients of one coordinate, each text counted differently, in one vector.

    Not of the norm: a final norm makes that constant, and a test of zero gradients would always pass.
    """
    target = features[:, 0] @ torch.arange(1.0, len(features) + 1)
    found = torch.autograd.grad(target, weights, allow_unused=True, retain_graph=True)
    return torch.cat(
        [torch.zeros(w.numel()) if g is None else g.flatten() for g, w in zip(found, weights, strict=True)]
    )


def moving(tower: TextTower) -> list[torch.Tensor]:
    """Weights that move."""
    return [weight for weight in tower.parameters() if weight.requires_grad]


def error(one: torch.Tensor, other: torch.Tensor) -> float:
    """Length of the difference, as a share of the length."""
    assert other.norm() > 0
    return float((one - other).detach().norm() / other.detach().norm())


def sentences() -> strategies.SearchStrategy[list[str]]:
    """Some sentences: duplicates, beginnings of each other, single words, and longer ones than fit."""
    sentence = strategies.lists(strategies.sampled_from(WORDS), min_size=1, max_size=20).map(" ".join)
    beginnings = sentence.flatmap(
        lambda text: strategies.lists(
            strategies.integers(1, len(text.split())).map(lambda n: " ".join(text.split()[:n])), min_size=1, max_size=3
        )
    )
    parts = strategies.lists(strategies.one_of(beginnings, sentence.map(lambda text: [text])), min_size=1, max_size=4)
    return parts.map(lambda groups: [text for group in groups for text in group])
