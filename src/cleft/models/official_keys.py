"""Names in the authors' checkpoints and what they are called here.

Their image tower is DINOv2 from the hub with query, key and value in one matrix. Their text tower is a GPT-2 wrapped
by peft 0.6.2, whose names differ with the adapter. Two projections, `local_embed`, are trained and never used. The file
of the second stage wraps the adapted model once more, by prompt tuning: one more `base_model.` in front of every name
of the language model, the learned context as `prompt_encoder.default.embedding.weight`, and the token embedding again.

Source: released code, `backbones/encoder_cleft.py`, and checkpoints of its three kinds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

_IMAGE = "img_encoder_q.model."
_TEXT = "text_encoder_q.model."
_UNUSED = re.compile(r"(img|text)_encoder_q\.local_embed\.")
_PROJECTIONS = {
    "img_encoder_q.global_embed.weight": "image_projection.weight",
    "img_encoder_q.global_embed.bias": "image_projection.bias",
    "text_encoder_q.global_embed.weight": "text_projection.weight",
    "text_encoder_q.global_embed.bias": "text_projection.bias",
    "logit_scale": "logit_scale",
}
HUB_VISION = {
    r"(cls_token|mask_token|register_tokens)": r"embeddings.\1",
    r"pos_embed": r"embeddings.position_embeddings",
    r"patch_embed\.proj\.(weight|bias)": r"embeddings.patch_embeddings.projection.\1",
    r"blocks\.(\d+)\.(norm1|norm2|mlp\.fc1|mlp\.fc2)\.(weight|bias)": r"encoder.layer.\1.\2.\3",
    r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)": r"encoder.layer.\1.attention.attention.{}.\2",
    r"blocks\.(\d+)\.attn\.proj\.(weight|bias)": r"encoder.layer.\1.attention.output.dense.\2",
    r"blocks\.(\d+)\.ls([12])\.gamma": r"encoder.layer.\1.layer_scale\2.lambda1",
    r"norm\.(weight|bias)": r"layernorm.\1",
}
"""Hub name of a DINOv2's weight -> name in files of `Dinov2WithRegistersModel`, which transformers turns into its own;
`{}` stands for query, key and value, which the hub has in one."""
_VISION = [(re.compile(pattern), target) for pattern, target in HUB_VISION.items()]
_WRAPPERS = re.compile(r"^(base_model\.model\.transformer|base_model\.transformer|transformer)\.")
_TUNED = "base_model."
"""What prompt tuning adds to the names of the model that it wraps."""
_PREFIX = "prompt_encoder.default.embedding.weight"
_COPY = "word_embeddings.weight"
"""Prefix tuning keeps the token embedding under a second name."""
_LANGUAGE = re.compile(
    r"(wte|wpe)\.weight|ln_f\.(weight|bias)"
    r"|h\.\d+\.(ln_1|ln_2|attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.(weight|bias)"
)
_ADAPTER = re.compile(
    r"(?P<module>h\.\d+\.(attn\.c_attn|mlp\.c_proj))\.(lora_A\.default\.weight|lora_B\.default\.weight|ia3_l\.default)"
)


class OfficialWeights(NamedTuple):
    """A checkpoint of the authors, taken apart and renamed."""

    vision: dict[str, Tensor]
    """Image tower, as in files of `Dinov2WithRegistersModel`."""
    language: dict[str, Tensor]
    """The language model without its adapter, as in `GPT2Model`; empty if the checkpoint holds none."""
    adapter: dict[str, Tensor]
    """LoRA, IA3 or prefix, as in a text tower's language model."""
    rest: dict[str, Tensor]
    """Projections and temperature, as in `DualEncoder`."""
    left_over: list[str]
    """Names nobody knows."""
    context: Tensor | None = None
    """Learned prompt context of the second stage, `[L, E]`."""

    def own_text(self) -> dict[str, Tensor]:
        """Language model and adapter under a text tower's names, where PEFT sets what it wraps one level down."""
        wrapped = {match["module"] for name in self.adapter if (match := _ADAPTER.fullmatch(name))}
        named: dict[str, Tensor] = {}
        for name, tensor in self.language.items():
            module, _, kind = name.rpartition(".")
            named[f"model.{module}.base_layer.{kind}" if module in wrapped else f"model.{name}"] = tensor
        for name, tensor in self.adapter.items():
            named["prefix.encoder.embedding.weight" if name == _PREFIX else f"model.{name}"] = tensor
        return named


def take_apart(state: Mapping[str, Tensor]) -> OfficialWeights:
    """Sorts and renames the weights of an authors' checkpoint, of either stage."""
    parts = OfficialWeights({}, {}, {}, {}, [])
    texts = {name.removeprefix(_TEXT): tensor for name, tensor in state.items() if name.startswith(_TEXT)}
    context = _pop_context(texts, parts.left_over)
    for name, tensor in texts.items():
        _add_text(parts, name, tensor)
    for name, tensor in state.items():
        if name in _PROJECTIONS:
            parts.rest[_PROJECTIONS[name]] = tensor
        elif name.startswith(_IMAGE):
            _add_vision(parts, name, tensor)
        elif not _UNUSED.match(name) and not name.startswith(_TEXT):
            parts.left_over.append(name)
    copy = parts.adapter.pop(_COPY, None)
    if copy is not None and not _is_embedding(copy, parts.language):
        parts.left_over.append(_TEXT + _COPY)
    return parts._replace(context=context)


def _is_embedding(copy: Tensor, language: Mapping[str, Tensor]) -> bool:
    return "wte.weight" in language and copy.equal(language["wte.weight"])


def _pop_context(texts: dict[str, Tensor], left_over: list[str]) -> Tensor | None:
    """Takes the layer of prompt tuning off the names of a text tower, if it has one, and returns its context.

    Prefix tuning has weights of the same names; its vectors are as wide as all keys and values of all blocks.
    """
    table = next((tensor for name, tensor in texts.items() if name.endswith("wte.weight")), None)
    wide = [name for name in texts if name.startswith(f"{_TUNED}{_TUNED}") or name == f"{_TUNED}{_PREFIX}"]
    context = texts.get(_PREFIX)
    if context is None or not (wide or (table is not None and context.shape[1:] == table.shape[1:])):
        return None
    del texts[_PREFIX]
    copy = texts.pop(_COPY, None)
    if copy is not None and (table is None or not copy.equal(table)):
        left_over.append(_TEXT + _COPY)
    for name in list(texts):
        bare = name.removeprefix(_TUNED) if name.startswith(_TUNED) else name
        texts[bare] = texts.pop(name)
    return context


def _add_vision(parts: OfficialWeights, name: str, tensor: Tensor) -> None:
    for pattern, target in _VISION:
        match = pattern.fullmatch(name.removeprefix(_IMAGE))
        if match and "{}" in target and tensor.ndim and len(tensor) % 3 == 0:
            for kind, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                parts.vision[match.expand(target).format(kind)] = third
            return
        if match and "{}" not in target:
            parts.vision[match.expand(target)] = tensor
            return
    parts.left_over.append(name)


def _add_text(parts: OfficialWeights, name: str, tensor: Tensor) -> None:
    inner = _WRAPPERS.sub("", name, count=1).replace(".base_layer", "")
    if _LANGUAGE.fullmatch(inner):
        parts.language[inner] = tensor
    elif _ADAPTER.fullmatch(inner) or inner in (_PREFIX, _COPY):
        parts.adapter[inner] = tensor
    else:
        parts.left_over.append(_TEXT + name)
