"""Sizes of the authors' towers, read off the shapes of their weights.

Shapes do not say how many heads share a width, nor which token ends a text. Both are known for published models;
for others they must be given, but for towers below any published width, which are test models: heads 16 wide and
end-of-text 0, as in the authors' format's reference files (docs/decisions/0140).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cleft.errors import CheckpointError
from cleft.grammar import count
from cleft.models.official_keys import OfficialWeights

_VISION_HEADS = {384: 6, 768: 12, 1024: 16}
_LANGUAGE_HEADS = {768: 12, 1024: 16, 1280: 20, 1600: 25, 2560: 20}
_TINY_HEAD = 16
_BIOMEDLM = (28896, 2560)
"""Tokens and width of BioMedLM, which scales attention by the block's number and ends texts with its last token."""
_MOST_BLOCKS = 1000


def vision_config(vision: Mapping[str, Tensor], heads: int | None = None, *, registers: bool = True) -> dict[str, Any]:
    """Returns the description of the DINOv2 in a checkpoint, as `image.scratch` wants it.

    Args:
        vision: Its weights, as in files of transformers.
        heads: Attention heads; known for published widths.
        registers: Whether it has register tokens.

    Raises:
        CheckpointError: If its shapes contradict each other, or the number of heads must be given.
    """
    patches = shape_of(vision, "embeddings.patch_embeddings.projection.weight", 4)
    positions = shape_of(vision, "embeddings.position_embeddings", 3)[1] - 1
    width, side = patches[0], side_of(positions, "a DINOv2")
    more = {"num_register_tokens": shape_of(vision, "embeddings.register_tokens", 3)[1]} if registers else {}
    return {
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        "hidden_size": width,
        "num_hidden_layers": blocks_of(vision, r"encoder\.layer\.(\d+)\."),
        "num_attention_heads": heads or heads_of(width, _VISION_HEADS, "image_heads"),
        "mlp_ratio": shape_of(vision, "encoder.layer.0.mlp.fc1.weight", 2)[0] // width,
        "num_channels": patches[1],
        "patch_size": patches[3],
        "image_size": side * patches[3],
        **more,
    }


def language_config(weights: OfficialWeights, heads: int | None = None, end: int | None = None) -> dict[str, Any]:
    """Returns the description of the GPT-2 in a checkpoint, as `text.scratch` wants it.

    Raises:
        CheckpointError: If its shapes contradict each other, or heads or the end token must be given.
    """
    tokens, width = shape_of(weights.language, "wte.weight", 2)
    biomedlm = (tokens, width) == _BIOMEDLM
    if end is None and not biomedlm and width >= min(_LANGUAGE_HEADS):
        raise CheckpointError(
            f"which of the {tokens} tokens ends a text is not written in it; give the tokenizer of its language model"
        )
    last = end if end is not None else tokens - 1 if biomedlm else 0
    return {
        "model_type": "gpt2",
        "vocab_size": tokens,
        "n_positions": shape_of(weights.language, "wpe.weight", 2)[0],
        "n_embd": width,
        "n_layer": blocks_of(weights.language, r"h\.(\d+)\."),
        "n_head": heads or heads_of(width, _LANGUAGE_HEADS, "text_heads"),
        "n_inner": shape_of(weights.language, "h.0.mlp.c_fc.weight", 2)[1],
        "scale_attn_by_inverse_layer_idx": biomedlm,
        "bos_token_id": last,
        "eos_token_id": last,
        "pad_token_id": last,
    }


def adapter_options(weights: OfficialWeights) -> dict[str, Any]:
    """Returns the settings of the text tower that the names and shapes of an adapter's weights tell."""
    for name, tensor in weights.adapter.items():
        if "lora_A" in name:
            return {"adapt": "lora", "rank": len(tensor)}
        if "ia3_l" in name:
            return {"adapt": "ia3"}
        if "prompt_encoder" in name:
            return {"adapt": "prefix", "prefix_length": len(tensor)}
    return {"adapt": "frozen"}


def heads_of(width: int, known: Mapping[int, int], keyword: str) -> int:
    """Returns how many attention heads share a width.

    Raises:
        CheckpointError: If it is no published width and no test model's.
    """
    if width in known:
        return known[width]
    if width < min(known) and width % _TINY_HEAD == 0:
        return width // _TINY_HEAD
    raise CheckpointError(f"how many heads share its width {width} is not written in it; give {keyword}")


def side_of(positions: int, what: str) -> int:
    """Returns how many patches stand in a row of an image, by the positions of all of them.

    Args:
        positions: Without class token.
        what: The model it should be, for the message.

    Raises:
        CheckpointError: If they are not a square.
    """
    side = math.isqrt(max(positions, 0))
    if side * side != positions:
        raise CheckpointError(f"its {positions} image positions are not a square; is it {what}?")
    return side


def blocks_of(weights: Mapping[str, Tensor], pattern: str) -> int:
    """Returns how many blocks there are, by the numbers that a pattern finds at the beginning of names.

    Raises:
        CheckpointError: If they are not numbered 0, 1, ….
    """
    numbers = {int(match[1]) for name in weights if (match := re.match(pattern, name))}
    if not numbers or max(numbers) >= _MOST_BLOCKS or len(numbers) != max(numbers) + 1:
        raise CheckpointError(f"its blocks are not numbered 0, 1, …: found {sorted(numbers)[:5]}")
    return len(numbers)


def shape_of(weights: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    """Returns the shape of a weight.

    Raises:
        CheckpointError: If there is none, or it has another number of axes.
    """
    if name not in weights or weights[name].ndim != axes or 0 in weights[name].shape:
        found = tuple(weights[name].shape) if name in weights else "nothing"
        raise CheckpointError(f"it should hold {name} with {count(axes, 'axis', 'axes')}; found {found}")
    return tuple(weights[name].shape)
