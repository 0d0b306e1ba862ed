"""Dual encoder: image tower, text tower, two projections into a joint space, and a temperature.

Shapes: `B` images, `T` texts, `C` classes, `D` width of a tower, `E` joint dimension, `L` context vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cleft.config import ContextConfig, LossConfig
from cleft.errors import CheckpointError, ConfigError
from cleft.models.image_tower import ImageTower
from cleft.models.text_tower import TextTower, external_base_weights
from cleft.text_rules import Texts
from cleft.types import Batch, ImageSpec


class PairEmbeddings(NamedTuple):
    """Joint embeddings of images and their texts, row by row."""

    image_embeds: Tensor
    """L2-normalised, `[B, E]`."""
    text_embeds: Tensor
    """L2-normalised, `[B, E]`."""


class DualEncoder(nn.Module):
    """CLIP-like model: embeds images and texts in one space, where matching pairs have a high cosine.

    Args:
        image_tower: Image encoder.
        text_tower: Text encoder.
        config: Dimension of the joint space, projections and initial temperature.

    Attributes:
        image_spec: How images must be prepared.
        logit_scale: Logarithm of the inverse temperature, a scalar parameter.
        logit_bias: Bias of the sigmoid loss, a scalar parameter; None with other losses. It shifts all scores equally,
            so predictions do not depend on it.
        context: Learned prompt context `[L, E]`, as wide as a token embedding; None before stage two.
        base_weights: Names of weights that are not saved with the model: those of a frozen language model that was
            loaded by name. Fixed when built, whatever is frozen later.

    Source:
        CLEFT, section 2.1: one linear projection each, L2 normalisation, learnable temperature. The projections have a
        bias, as in the authors' release. CLIP, ConVIRT and MedCLIP are the same with other towers and projections.
    """

    context: nn.Parameter | None
    logit_bias: nn.Parameter | None

    def __init__(self, image_tower: ImageTower, text_tower: TextTower, config: LossConfig) -> None:
        super().__init__()
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.image_projection = build_projection(image_tower.width, config)
        self.text_projection = build_projection(text_tower.width, config, text=True)
        scale = torch.tensor(math.log(1 / config.temperature))
        self.logit_scale = nn.Parameter(scale, requires_grad=config.train_temperature)
        self.max_logit_scale = config.max_logit_scale
        bias = nn.Parameter(torch.tensor(config.bias)) if config.name == "sigmoid" else None
        self.register_parameter("logit_bias", bias)
        self.register_parameter("context", None)
        self.base_weights = frozenset(f"text_tower.{name}" for name in external_base_weights(text_tower))

    @property
    def image_spec(self) -> ImageSpec:
        """How images must be prepared."""
        return self.image_tower.spec

    @property
    def temperature(self) -> Tensor:
        """Divisor of the cosines, a positive scalar."""
        return (-self.logit_scale).exp()

    def encode_image(self, images: Tensor) -> Tensor:
        """Returns L2-normalised embeddings `[B, E]` float32 of gray images `[B, 1, H, W]` uint8."""
        return l2_normalise(self.image_projection(self.image_tower.encode(images)))

    def encode_image_features(self, images: Tensor) -> Tensor:
        """Returns features `[B, D]` float32 of gray images `[B, 1, H, W]` uint8, before the projection."""
        return self.image_tower.encode(images).float()

    def encode_text(self, texts: Texts) -> Tensor:
        """Returns L2-normalised embeddings `[T, E]` float32 of one text or several.

        Texts are normalised as in training (`text.normalisation`), so case and punctuation matter only where the model
        was trained with them.

        Raises:
            DataError: If a text has no letter or digit, is too long, or contains an invisible character.
        """
        return l2_normalise(self.text_projection(self.text_tower(texts)))

    def encode_pairs(self, images: Tensor, texts: Sequence[str]) -> PairEmbeddings:
        """Encodes images and their texts: the features that the losses of this model compare."""
        return PairEmbeddings(self.encode_image(images), self.encode_text(texts))

    def encode_class_names(self, names: Texts) -> Tensor:
        """Returns L2-normalised embeddings `[C, E]` float32 of one class name or several after the learned context.

        Raises:
            DataError: If a name has no letter or digit, is too long, contains an invisible character, or occurs twice.
            CheckpointError: If there is no learned context.
        """
        if self.context is None:
            raise CheckpointError("this model has no learned context; run `cleft learn-context` on it first")
        return l2_normalise(self.text_projection(self.text_tower.encode_after_context(names, self.context)))

    def set_context(self, context: Tensor | None) -> None:
        """Sets a prompt context `[L, E]` as a float32 parameter, or removes it.

        Raises:
            ValueError: If its vectors do not have the width of the token embeddings.
        """
        if context is None:
            self.context = None
            return
        width = self.text_tower.lm.embedding_width
        if context.ndim != 2 or context.shape[1] != width:
            raise ValueError(f"context is {tuple(context.shape)}; the text tower expects [L, {width}]")
        device = self.logit_scale.device
        self.context = nn.Parameter(context.detach().to(device, torch.float32, copy=True))

    @torch.no_grad()
    def clamp_logit_scale_(self) -> None:
        """Clamps the inverse temperature to [1, `max_logit_scale`]."""
        self.logit_scale.clamp_(0.0, math.log(self.max_logit_scale))

    def constrain_parameters_(self) -> None:
        """Brings parameters back into their range; call it after every optimiser step."""
        self.clamp_logit_scale_()


def build_projection(width: int, config: LossConfig, *, text: bool = False) -> nn.Module:
    """Builds a projection of tower features `[N, D]` into the joint space `[N, E]`, before L2 normalisation.

    Names and order of the weights of `mlp-norm` are those of MGCA's heads.

    Args:
        width: Width of the features, `D`.
        config: Joint space.
        text: Whether the features are of texts.

    Raises:
        ConfigError: If texts are to stay in the space of their tower and that has another width.
    """
    kind = config.text_projection if text and config.text_projection != "same" else config.projection
    if kind == "to-text" and text:
        return _identity(width, config)
    hidden = width if config.hidden_dim is None else config.hidden_dim
    if kind == "mlp":
        return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, config.embed_dim))
    if kind == "mlp-gelu":
        return nn.Sequential(
            nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, config.embed_dim, bias=False)
        )
    if kind == "mlp-norm":
        return nn.Sequential(
            nn.Linear(width, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, config.embed_dim),
            nn.BatchNorm1d(config.embed_dim, affine=False),
        )
    return nn.Linear(width, config.embed_dim, bias=kind != "linear-no-bias")


def _identity(width: int, config: LossConfig) -> nn.Module:
    if config.embed_dim != width:
        raise ConfigError(
            f"loss.projection=to-text projects images into the space of the text tower, which has {width} dimensions; "
            f"set loss.embed_dim={width}, not {config.embed_dim}"
        )
    return nn.Identity()


def refuse_causal(text_tower: TextTower, method: str) -> None:
    """Raises a ConfigError if the text tower is causal: its word states do not depend on the words that follow."""
    if text_tower.lm.causal:
        raise ConfigError(
            f"method={method} needs word features that depend on the complete text; set text.model to a masked model, "
            f"such as a BERT"
        )


def l2_normalise(embeds: Tensor) -> Tensor:
    """Returns L2-normalised rows, float32."""
    # In half precision distant pairs get equal logits; norms and similarities are computed in float32.
    return F.normalize(embeds.float(), dim=-1)


def initial_context(text_tower: TextTower, opening: str, config: ContextConfig, seed: int) -> Tensor:
    """Returns the initial context vectors of stage two: the embeddings of a handwritten prompt, or random vectors.

    With `init: prompt` the prompt's token embeddings come last, next to the class name, after random vectors if the
    context is longer. Of a longer prompt the last tokens are kept. With `init: random` all vectors are random. Random
    vectors are uniform in ±√3 times the standard deviation of the prompt's embeddings, and so have the same standard
    deviation.

    Args:
        text_tower: Provides the token embeddings.
        opening: The prompt before the class name, such as `data.captions.OPENING`.
        config: `length` L and `init`.
        seed: Seed of the random vectors.

    Returns:
        `[L, D]` float32 on the CPU, without gradient.

    Source:
        CLEFT, section 2.2, which gives no range (docs/decisions/0034).
    """
    written = text_tower.embed_prompt(opening).cpu()[-config.length :]
    spread = float(written.std()) * 3**0.5
    generator = torch.Generator().manual_seed(seed)
    random = (torch.rand(config.length, written.shape[1], generator=generator) * 2 - 1) * spread
    if config.init == "prompt":
        random[config.length - len(written) :] = written
    return random


def encode_batch(model: Any, batch: Batch) -> Any:
    """Returns the features of the pairs of a batch: a named tuple of tensors with one row per pair."""
    return model.encode_pairs(batch.images, batch.captions)
