"""The authors' released checkpoints as model folders.

A checkpoint is opened as data alone (`container.py`), taken apart by name (`official_keys.py`), and put into towers
whose sizes follow from its shapes (`official_sizes.py`). Every weight must find its place: what is left over is
refused, not skipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

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
from cleft.models.checkpoint import own_weights, save_model
from cleft.models.dual_encoder import DualEncoder
from cleft.models.hub import without_initial_weights
from cleft.models.image_tower import build_image_tower
from cleft.models.importing.files import Foreign, read_weights
from cleft.models.importing.layout import scale_of
from cleft.models.language_model import build_language_model
from cleft.models.model_folder import STAGE, check_place, digest_of, peek_description
from cleft.models.official_keys import OfficialWeights, take_apart
from cleft.models.official_sizes import adapter_options, language_config, vision_config
from cleft.models.state_dict import conformed, in_current_names, listed, misfits, put
from cleft.models.text_tower import TextTower, build_text_tower
from cleft.models.tokenizer import TokenIds, Tokens, load_tokenizer

_FACTS = (
    *("peft", "img_encoder", "llm_type", "emb_dim", "batch_size", "learning_rate", "weight_decay", "max_steps"),
    *("prompt_ft", "ctx_length", "ctx_init"),
)
"""Hyper-parameters that are kept for people to read; the rest may name folders and machines."""


def import_official(
    path: Path | str,
    out: Path | str,
    *,
    tokenizer: Path | str | None = None,
    text_model: str | None = None,
    image_heads: int | None = None,
    text_heads: int | None = None,
    size: int = 224,
    read: Foreign | None = None,
) -> Path:
    """Makes a model folder of a checkpoint of the authors' release; LoRA, IA3, prefix or none, of either stage.

    Args:
        path: The `.ckpt` file.
        out: The model folder to write.
        tokenizer: Folder or hub name of the language model's tokenizer, which the checkpoint does not hold. Without
            it the model reads texts as token ids, such as `"17 4 23"`.
        text_model: Hub name or folder of the language model, where the checkpoint does not hold it.
        image_heads: Attention heads of the image tower; known for published widths.
        text_heads: Attention heads of the language model; known for published widths.
        size: Side in pixels of the images the model is to read.
        read: What is in the file, where it has been read already.

    Returns:
        `out`.

    Raises:
        CheckpointError: If the file is damaged, may run code, is no such checkpoint, or holds weights with no place.
        ConfigError: If `out` holds anything but an earlier import, `size` does not fit the patches, or `text_model`
            cannot be found.
        ResourceError: If the folder cannot be written.
    """
    path, out = Path(path), Path(out)
    check_out(out)
    foreign = read_weights(path) if read is None else read
    facts = foreign.facts
    try:
        weights = _sorted(foreign.weights)
        settings = _settings(weights, facts, size, image_heads, text_heads, tokenizer, text_model)
        model = _build(weights, settings, tokenizer)
        _set_context(model, weights.context)
        _fill(model, weights)
    except CheckpointError as error:
        raise error if str(path) in str(error) else CheckpointError(f"{path}: {error}") from error
    origin = {"file": path.name, "sha256": digest_of(path), **{name: facts[name] for name in _FACTS if name in facts}}
    if tokenizer is None and text_model is None:
        origin["texts"] = "token ids; import again with `--tokenizer <folder>` to read sentences"
    save_model(model, settings, out, extra={"imported": origin})
    write_whole(out / "config.yaml", dump_settings(settings), mode=None)  # so that it can be evaluated like a run
    return out


def check_out(out: Path) -> None:
    """Makes sure that a folder is new, empty or an earlier import: a trained run must not lose its weights.

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
            raise ConfigError(f"{out} is not empty and holds no imported model; choose another folder with --out")
    check_place(out)


def _sorted(state: Mapping[str, Tensor]) -> OfficialWeights:
    weights = take_apart(state)
    if not weights.vision or not weights.rest:
        raise CheckpointError(
            f"it is no checkpoint of the authors' release, whose weights are called img_encoder_q.model.… and "
            f"text_encoder_q.model.…; found {', '.join(sorted(state)[:3])}"
        )
    if weights.left_over:
        raise CheckpointError(
            f"{listed('[weight has|weights have] no place in towers of this kind', sorted(weights.left_over))}; "
            f"only a DINOv2 and a GPT-2 with LoRA, IA3, prefix or nothing, each with a linear projection, are read"
        )
    return weights


def _settings(
    weights: OfficialWeights,
    facts: Mapping[str, Any],
    size: int,
    image_heads: int | None,
    text_heads: int | None,
    tokenizer: Path | str | None,
    text_model: str | None,
) -> Settings:
    if facts.get("agg_tokens"):
        raise CheckpointError("it was trained with agg_tokens, which pools words; only the end-of-text state is read")
    # The released code reads the normalised class token unless `pool_feat` asks for the paper's mean.
    pooling = "mean-before-norm" if facts.get("pool_feat", True) else "cls"
    source: dict[str, Any] = {"model": text_model}
    if weights.language and text_model is not None:
        raise ConfigError(f"--text-model {text_model}: the checkpoint holds its language model; leave it out")
    if weights.language:
        end = None if tokenizer is None else cast("int | None", load_tokenizer(tokenizer).eos_token_id)
        source = {"model": None, "scratch": language_config(weights, text_heads, end)}
    elif text_model is None:
        raise CheckpointError("it does not hold its language model; name it: `--text-model <folder or hub name>`")
    return Settings(
        images=ImagesConfig(size=size, stored_size=max(size, ImagesConfig.stored_size)),
        image=ImageTowerConfig(model=None, scratch=vision_config(weights.vision, image_heads), pooling=pooling),
        text=TextTowerConfig(normalisation="release-2", **source, **adapter_options(weights), train_embeddings=False),
        loss=LossConfig(embed_dim=_width(weights), temperature=math.exp(-scale_of(weights.rest))),
        context=ContextConfig() if weights.context is None else ContextConfig(length=len(weights.context)),
    )


def _width(weights: OfficialWeights) -> int:
    bias = weights.rest.get("image_projection.bias")
    if bias is None or bias.ndim != 1:
        raise CheckpointError("it should hold img_encoder_q.global_embed.bias, the bias of a linear projection")
    return len(bias)


def _build(weights: OfficialWeights, settings: Settings, tokenizer: Path | str | None) -> DualEncoder:
    with torch.random.fork_rng(devices=[]):
        text_tower = _build_text(settings.text, tokenizer)
        with without_initial_weights():
            return DualEncoder(build_image_tower(settings.image, settings.images), text_tower, settings.loss)


def _build_text(config: TextTowerConfig, tokenizer: Path | str | None) -> TextTower:
    if config.scratch is None:
        return build_text_tower(config, [], tokenizer=None if tokenizer is None else Path(tokenizer), trained_tokens=[])
    vocabulary, end = int(config.scratch["vocab_size"]), int(config.scratch["eos_token_id"])
    tokens: Tokens = TokenIds(vocabulary=vocabulary, max_tokens=config.max_tokens, end=end)
    if tokenizer is not None:
        learned = load_tokenizer(tokenizer)
        if len(learned) > vocabulary:
            raise CheckpointError(
                f"the tokenizer {str(tokenizer)!r} has {len(learned)} tokens and the language model {vocabulary}; "
                f"give the one it was trained with"
            )
        tokens = Tokens(learned, max_tokens=config.max_tokens, end=end)
    with without_initial_weights():
        lm = build_language_model(config, vocabulary=vocabulary, pad=end, end=end)
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


def _fill(model: DualEncoder, weights: OfficialWeights) -> None:
    vision = in_current_names(model.image_tower.model, weights.vision)
    named = {
        **{f"image_tower.model.{name}": tensor for name, tensor in vision.items()},
        **{f"text_tower.lm.{name}": tensor for name, tensor in weights.own_text().items()},
        **weights.rest,
        **({} if weights.context is None else {"context": weights.context}),
    }
    expected = own_weights(model)
    given = conformed(named, expected)
    faults = misfits(given, expected)
    if faults:
        raise CheckpointError(f"its weights do not fit the towers their shapes tell of: {faults}")
    put(model, given, expected)
