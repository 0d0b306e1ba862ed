"""Import of the checkpoints released by CLEFT's authors.

Their image tower is DINOv2 from the hub with a fused query, key and value. Their text tower is a GPT-2 wrapped by peft
0.6.2, with names that depend on the adapter. Two projections, `local_embed`, are trained and never used. The file of
the second stage wraps the adapted model again for prompt tuning: another `base_model.` before every name of the
language model, the learned context as `prompt_encoder.default.embedding.weight`, and a copy of the token embedding.

Shapes do not give the number of heads or the EOS token. Both are known for published models and must be given for
others, except test models below any published width: 16-wide heads and EOS token 0, as in the reference files of the
authors' format (docs/decisions/0140). Every weight must have a target; anything left over is refused.

Source: released code, `backbones/encoder_cleft.py`, and checkpoints of its three kinds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from cleft.config import (
    ContextConfig,
    ImagesConfig,
    ImageTowerConfig,
    LossConfig,
    Settings,
    TextTowerConfig,
    dump_settings,
)
from cleft.errors import CheckpointError, ConfigError
from cleft.files import write_whole
from cleft.models.adapters import adapt
from cleft.models.checkpoint import save_model, saved_weights
from cleft.models.dual_encoder import DualEncoder
from cleft.models.hub import skip_weight_init
from cleft.models.image_tower import build_image_tower
from cleft.models.importing.key_maps import HUB_VISION, blocks_of, dinov2_config, heads_of, shape_of
from cleft.models.importing.layouts import scale_of
from cleft.models.importing.safe_load import ForeignCheckpoint, read_weights
from cleft.models.language_model import build_language_model
from cleft.models.model_folder import STAGE, check_place, digest_of, peek_description
from cleft.models.state_dict import assign_weights, describe_mismatch, format_names, match_forms, to_current_names
from cleft.models.text_tower import TextTower, build_text_tower
from cleft.models.tokenizer import TextTokenizer, TokenIdTokenizer, load_tokenizer

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
_VISION = [(re.compile(pattern), target) for pattern, target in HUB_VISION.items()]
_WRAPPERS = re.compile(r"^(base_model\.model\.transformer|base_model\.transformer|transformer)\.")
_TUNED = "base_model."
"""Prefix that prompt tuning adds to names of the wrapped model."""
_PREFIX = "prompt_encoder.default.embedding.weight"
_EMBEDDING_COPY = "word_embeddings.weight"
"""Copy of the token embedding in prefix tuning."""
_LANGUAGE = re.compile(
    r"(wte|wpe)\.weight|ln_f\.(weight|bias)"
    r"|h\.\d+\.(ln_1|ln_2|attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.(weight|bias)"
)
_ADAPTER = re.compile(
    r"(?P<module>h\.\d+\.(attn\.c_attn|mlp\.c_proj))\.(lora_A\.default\.weight|lora_B\.default\.weight|ia3_l\.default)"
)


class AuthorsWeights(NamedTuple):
    """A checkpoint of the authors, sorted and renamed."""

    vision: dict[str, Tensor]
    """Image tower, as in files of `Dinov2WithRegistersModel`."""
    language: dict[str, Tensor]
    """The language model without its adapter, as in `GPT2Model`; empty if the checkpoint has none."""
    adapter: dict[str, Tensor]
    """LoRA, IA3 or prefix, as in a text tower's language model."""
    rest: dict[str, Tensor]
    """Projections and temperature, as in `DualEncoder`."""
    left_over: list[str]
    """Names without a target."""
    context: Tensor | None = None
    """Learned prompt context of the second stage, `[L, E]`."""

    def own_text(self) -> dict[str, Tensor]:
        """Returns language model and adapter under a text tower's names; PEFT moves what it wraps one level down."""
        wrapped = {match["module"] for name in self.adapter if (match := _ADAPTER.fullmatch(name))}
        named: dict[str, Tensor] = {}
        for name, tensor in self.language.items():
            module, _, kind = name.rpartition(".")
            named[f"model.{module}.base_layer.{kind}" if module in wrapped else f"model.{name}"] = tensor
        for name, tensor in self.adapter.items():
            named["prefix.encoder.embedding.weight" if name == _PREFIX else f"model.{name}"] = tensor
        return named


def sort_weights(state: Mapping[str, Tensor]) -> AuthorsWeights:
    """Sorts and renames the weights of an authors' checkpoint of either stage."""
    parts = AuthorsWeights({}, {}, {}, {}, [])
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
    copy = parts.adapter.pop(_EMBEDDING_COPY, None)
    if copy is not None and not _is_embedding(copy, parts.language):
        parts.left_over.append(_TEXT + _EMBEDDING_COPY)
    return parts._replace(context=context)


def _is_embedding(copy: Tensor, language: Mapping[str, Tensor]) -> bool:
    return "wte.weight" in language and copy.equal(language["wte.weight"])


def _pop_context(texts: dict[str, Tensor], left_over: list[str]) -> Tensor | None:
    """Removes the names added by prompt tuning from a text tower, if there are any, and returns its context.

    Prefix tuning has weights of the same names, but its vectors are as wide as all keys and values of all blocks.
    """
    table = next((tensor for name, tensor in texts.items() if name.endswith("wte.weight")), None)
    wide = [name for name in texts if name.startswith(f"{_TUNED}{_TUNED}") or name == f"{_TUNED}{_PREFIX}"]
    context = texts.get(_PREFIX)
    if context is None or not (wide or (table is not None and context.shape[1:] == table.shape[1:])):
        return None
    del texts[_PREFIX]
    copy = texts.pop(_EMBEDDING_COPY, None)
    if copy is not None and (table is None or not copy.equal(table)):
        left_over.append(_TEXT + _EMBEDDING_COPY)
    for name in list(texts):
        bare = name.removeprefix(_TUNED) if name.startswith(_TUNED) else name
        texts[bare] = texts.pop(name)
    return context


def _add_vision(parts: AuthorsWeights, name: str, tensor: Tensor) -> None:
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


def _add_text(parts: AuthorsWeights, name: str, tensor: Tensor) -> None:
    inner = _WRAPPERS.sub("", name, count=1).replace(".base_layer", "")
    if _LANGUAGE.fullmatch(inner):
        parts.language[inner] = tensor
    elif _ADAPTER.fullmatch(inner) or inner in (_PREFIX, _EMBEDDING_COPY):
        parts.adapter[inner] = tensor
    else:
        parts.left_over.append(_TEXT + name)


_LANGUAGE_HEADS = {768: 12, 1024: 16, 1280: 20, 1600: 25, 2560: 20}
_BIOMEDLM = (28896, 2560)
"""Vocabulary and width of BioMedLM, which scales attention by the block index; its EOS token is the last."""


def language_config(weights: AuthorsWeights, heads: int | None = None, end: int | None = None) -> dict[str, Any]:
    """Returns the configuration of the GPT-2 in a checkpoint as for `text.scratch`.

    Raises:
        CheckpointError: If its shapes contradict each other, or heads or the EOS token must be given.
    """
    tokens, width = shape_of(weights.language, "wte.weight", 2)
    biomedlm = (tokens, width) == _BIOMEDLM
    if end is None and not biomedlm and width >= min(_LANGUAGE_HEADS):
        raise CheckpointError(f"its EOS token is unknown ({tokens} tokens); give the tokenizer of its language model")
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


def adapter_options(weights: AuthorsWeights) -> dict[str, Any]:
    """Returns the text settings that follow from names and shapes of the adapter's weights."""
    for name, tensor in weights.adapter.items():
        if "lora_A" in name:
            return {"adapt": "lora", "rank": len(tensor)}
        if "ia3_l" in name:
            return {"adapt": "ia3"}
        if "prompt_encoder" in name:
            return {"adapt": "prefix", "prefix_length": len(tensor)}
    return {"adapt": "frozen"}


_FACTS = (
    *("peft", "img_encoder", "llm_type", "emb_dim", "batch_size", "learning_rate", "weight_decay", "max_steps"),
    *("prompt_ft", "ctx_length", "ctx_init"),
)
"""Hyper-parameters that are saved as information; others may contain folders and machine names."""


def import_authors(
    path: Path | str,
    out: Path | str,
    *,
    tokenizer: Path | str | None = None,
    text_model: str | None = None,
    image_heads: int | None = None,
    text_heads: int | None = None,
    size: int = 224,
    read: ForeignCheckpoint | None = None,
) -> Path:
    """Converts a checkpoint of the authors' release to a model folder; LoRA, IA3, prefix or none, of either stage.

    Args:
        path: The `.ckpt` file.
        out: The model folder to write.
        tokenizer: Folder or hub name of the language model's tokenizer, which the checkpoint lacks. Without it the
            model takes token ids as texts, such as `"17 4 23"`.
        text_model: Hub name or folder of the language model, if the checkpoint lacks it.
        image_heads: Attention heads of the image tower; known for published widths.
        text_heads: Attention heads of the language model; known for published widths.
        size: Side of the images in pixels.
        read: Content of the file, if already loaded.

    Returns:
        `out`.

    Raises:
        CheckpointError: If the file is damaged, may run code, is not such a checkpoint, or has weights without a
            target.
        ConfigError: If `out` contains anything but an earlier import, `size` does not fit the patches, or `text_model`
            cannot be found.
        ResourceError: If the folder cannot be written.
    """
    path, out = Path(path), Path(out)
    check_out(out)
    foreign = read_weights(path) if read is None else read
    facts = foreign.facts
    try:
        weights = _sort_and_check(foreign.weights)
        settings = _settings(weights, facts, size, image_heads, text_heads, tokenizer, text_model)
        model = _build(weights, settings, tokenizer)
        _set_context(model, weights.context)
        _fill(model, weights)
    except CheckpointError as error:
        raise error if str(path) in str(error) else CheckpointError(f"{path}: {error}") from error
    origin = {"file": path.name, "sha256": digest_of(path), **{name: facts[name] for name in _FACTS if name in facts}}
    if tokenizer is None and text_model is None:
        origin["texts"] = "token ids; import again with `--tokenizer <folder>` to use text"
    save_model(model, settings, out, extra={"imported": origin})
    write_whole(out / "config.yaml", dump_settings(settings), mode=None)  # so that it can be evaluated like a run
    return out


def check_out(out: Path) -> None:
    """Checks that a folder is new, empty or an earlier import, so that a trained run cannot lose its weights.

    Raises:
        ConfigError: If it is not, or a save would follow a link in it or replace a file that cleft did not write.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; choose another folder for the model")
    if out.is_dir() and not {path.name for path in out.iterdir()} <= {STAGE}:
        try:
            earlier = "imported" in peek_description(out).get("extra", {})
        except CheckpointError:
            earlier = False
        if not earlier:
            raise ConfigError(f"{out} is not empty and not an imported model; choose another folder with --out")
    check_place(out)


def _sort_and_check(state: Mapping[str, Tensor]) -> AuthorsWeights:
    weights = sort_weights(state)
    if not weights.vision or not weights.rest:
        raise CheckpointError(
            f"it is not a checkpoint of the authors' release, whose weights are named img_encoder_q.model.… and "
            f"text_encoder_q.model.…; found {', '.join(sorted(state)[:3])}"
        )
    if weights.left_over:
        raise CheckpointError(
            f"{format_names('[weight has|weights have] no target in these towers', sorted(weights.left_over))}; "
            f"only a DINOv2 and a GPT-2 with LoRA, IA3, prefix or no adapter and linear projections are supported"
        )
    return weights


def _settings(
    weights: AuthorsWeights,
    facts: Mapping[str, Any],
    size: int,
    image_heads: int | None,
    text_heads: int | None,
    tokenizer: Path | str | None,
    text_model: str | None,
) -> Settings:
    if facts.get("agg_tokens"):
        raise CheckpointError("it was trained with agg_tokens, which pools words; only the EOS state is supported")
    # The released code uses the normalised class token unless `pool_feat` selects the paper's mean.
    pooling = "mean-before-norm" if facts.get("pool_feat", True) else "cls"
    source: dict[str, Any] = {"model": text_model}
    if weights.language and text_model is not None:
        raise ConfigError(f"--text-model {text_model}: the checkpoint contains its language model; leave it out")
    if weights.language:
        end = None if tokenizer is None else cast("int | None", load_tokenizer(tokenizer).eos_token_id)
        source = {"model": None, "scratch": language_config(weights, text_heads, end)}
    elif text_model is None:
        raise CheckpointError("it lacks its language model; give it with `--text-model <folder or hub name>`")
    return Settings(
        images=ImagesConfig(size=size, stored_size=max(size, ImagesConfig.stored_size)),
        image=ImageTowerConfig(model=None, scratch=dinov2_config(weights.vision, image_heads), pooling=pooling),
        text=TextTowerConfig(normalisation="release-2", **source, **adapter_options(weights), train_embeddings=False),
        loss=LossConfig(embed_dim=_width(weights), temperature=math.exp(-scale_of(weights.rest))),
        context=ContextConfig() if weights.context is None else ContextConfig(length=len(weights.context)),
    )


def _width(weights: AuthorsWeights) -> int:
    bias = weights.rest.get("image_projection.bias")
    if bias is None or bias.ndim != 1:
        raise CheckpointError("it needs img_encoder_q.global_embed.bias, the bias of a linear projection")
    return len(bias)


def _build(weights: AuthorsWeights, settings: Settings, tokenizer: Path | str | None) -> DualEncoder:
    with torch.random.fork_rng(devices=[]):
        text_tower = _build_text(settings.text, tokenizer)
        with skip_weight_init():
            return DualEncoder(build_image_tower(settings.image, settings.images), text_tower, settings.loss)


def _build_text(config: TextTowerConfig, tokenizer: Path | str | None) -> TextTower:
    if config.scratch is None:
        return build_text_tower(config, [], tokenizer=None if tokenizer is None else Path(tokenizer), trained_tokens=[])
    vocabulary, end = int(config.scratch["vocab_size"]), int(config.scratch["eos_token_id"])
    tokens: TextTokenizer = TokenIdTokenizer(vocabulary=vocabulary, max_tokens=config.max_tokens, eos=end)
    if tokenizer is not None:
        learned = load_tokenizer(tokenizer)
        if len(learned) > vocabulary:
            raise CheckpointError(
                f"the tokenizer {str(tokenizer)!r} has {len(learned)} tokens and the language model {vocabulary}; "
                f"give the one it was trained with"
            )
        tokens = TextTokenizer(learned, max_tokens=config.max_tokens, eos=end)
    with skip_weight_init():
        lm = build_language_model(config, vocabulary=vocabulary, pad=end, eos=end)
        return TextTower(adapt(lm, config), tokens, config)


def _set_context(model: DualEncoder, context: Tensor | None) -> None:
    if context is None:
        return
    width = model.text_tower.lm.embedding_width
    if context.ndim != 2 or context.shape[1] != width:
        raise CheckpointError(
            f"its learned context has the shape {tuple(context.shape)}, and the token embeddings are {width} wide"
        )
    model.set_context(torch.zeros(context.shape))


def _fill(model: DualEncoder, weights: AuthorsWeights) -> None:
    vision = to_current_names(model.image_tower.model, weights.vision)
    named = {
        **{f"image_tower.model.{name}": tensor for name, tensor in vision.items()},
        **{f"text_tower.lm.{name}": tensor for name, tensor in weights.own_text().items()},
        **weights.rest,
        **({} if weights.context is None else {"context": weights.context}),
    }
    expected = saved_weights(model)
    given = match_forms(named, expected)
    faults = describe_mismatch(given, expected)
    if faults:
        raise CheckpointError(f"its weights do not fit the towers inferred from their shapes: {faults}")
    assign_weights(model, given, expected)
