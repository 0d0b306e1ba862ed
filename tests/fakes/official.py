"""Checkpoints in the format of the authors' release, with tiny random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WIDTH, BLOCKS, TOKENS, JOINT = 32, 2, 48, 8


def official_state(kind: str = "lora", *, vision_width: int = 32, tokens: int = TOKENS) -> dict[str, Tensor]:
    """Weights under the authors' names: a DINOv2 of two blocks, a GPT-2 of two blocks, two projections."""
    shapes = _vision(vision_width) | _language(kind, tokens)
    for tower, width in (("img", vision_width), ("text", WIDTH)):
        shapes[f"{tower}_encoder_q.global_embed.weight"] = (JOINT, width)
        shapes[f"{tower}_encoder_q.global_embed.bias"] = (JOINT,)
        shapes[f"{tower}_encoder_q.local_embed.head.0.weight"] = (16, width, 1)
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if kind == "prefix":
        state["text_encoder_q.model.word_embeddings.weight"] = state[
            "text_encoder_q.model.base_model.transformer.wte.weight"
        ]
    return {"logit_scale": torch.tensor(2.6), **state}


def prompt_tuned(state: dict[str, Tensor], length: int = 6) -> dict[str, Tensor]:
    """The same weights as the authors' second stage saves them: wrapped once more, with a learned context."""
    text = "text_encoder_q.model."
    table = next(tensor for name, tensor in state.items() if name.endswith("wte.weight"))
    wrapped = {
        name.replace(text, f"{text}base_model.") if name.startswith(text) else name: state[name] for name in state
    }
    context = 0.1 * torch.randn(length, table.shape[1], generator=torch.Generator().manual_seed(1))
    return {
        **wrapped,
        f"{text}prompt_encoder.default.embedding.weight": context,
        f"{text}word_embeddings.weight": table,
    }


def write_official(path: Path, state: dict[str, Tensor] | None = None, **hyper_parameters: Any) -> Path:
    """A checkpoint file as Lightning 2.1 writes it."""
    torch.save(
        {
            "epoch": 0,
            "global_step": 40_000,
            "pytorch-lightning_version": "2.1.2",
            "state_dict": official_state() if state is None else state,
            "hyper_parameters": {"emb_dim": JOINT, "experiment_name": "secret", "pool_feat": True, **hyper_parameters},
        },
        path,
    )
    return path


def _vision(width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 26, width),
        "register_tokens": (1, 4, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for block in range(BLOCKS):
        for name, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            shapes |= {f"blocks.{block}.{name}.weight": (rows, columns), f"blocks.{block}.{name}.bias": (rows,)}
        names = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma")
        shapes |= {f"blocks.{block}.{name}": (width,) for name in names}
    return {f"img_encoder_q.model.{name}": shape for name, shape in shapes.items()}


def _language(kind: str, tokens: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (tokens, WIDTH), "wpe.weight": (128, WIDTH)}
    shapes |= {f"ln_f.{part}": (WIDTH,) for part in ("weight", "bias")}
    for block in (f"h.{number}" for number in range(BLOCKS)):
        for name, rows, columns in (
            ("attn.c_attn", WIDTH, 3 * WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", WIDTH, 4 * WIDTH),
            ("mlp.c_proj", 4 * WIDTH, WIDTH),
        ):
            shapes |= {f"{block}.{name}.weight": (rows, columns), f"{block}.{name}.bias": (columns,)}
        shapes |= {f"{block}.{norm}.{part}": (WIDTH,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
        if kind == "lora":
            shapes[f"{block}.attn.c_attn.lora_A.default.weight"] = (4, WIDTH)
            shapes[f"{block}.attn.c_attn.lora_B.default.weight"] = (3 * WIDTH, 4)
        if kind == "ia3":
            shapes[f"{block}.attn.c_attn.ia3_l.default"] = (3 * WIDTH, 1)
            shapes[f"{block}.mlp.c_proj.ia3_l.default"] = (1, 4 * WIDTH)
    wrapper = {"lora": "base_model.model.transformer", "ia3": "base_model.model.transformer", "none": "transformer"}
    named = {f"{wrapper.get(kind, 'base_model.transformer')}.{name}": shape for name, shape in shapes.items()}
    if kind == "prefix":
        named["prompt_encoder.default.embedding.weight"] = (5, BLOCKS * 2 * WIDTH)
    return {f"text_encoder_q.model.{name}": shape for name, shape in named.items()}
