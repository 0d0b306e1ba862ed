"""Two towers, two projections and one temperature: the model that is trained.

Shapes: `B` images, `T` texts, `C` classes, `D` width of a tower, `E` joint dimension, `L` context vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cleft.config import ContextConfig, LossConfig
from cleft.errors import CheckpointError, ConfigError
from cleft.models.image_tower import ImageTower
from cleft.models.text_tower import TextTower, external_base_weights
from cleft.text_rules import Texts
from cleft.types import ImageSpec


class PairEmbeddings(NamedTuple):
    """Images and their texts after both towers, row by row."""

    image_embeds: Tensor
    """Unit length, `[B, E]`."""
    text_embeds: Tensor
    """Unit length, `[B, E]`."""


class DualEncoder(nn.Module):
    """Images and sentences in one space, where what belongs together lies close.

    Args:
        image_tower: Reads images.
        text_tower: Reads sentences.
        config: Width of the joint space, and where the temperature starts.

    Attributes:
        image_spec: How images must be prepared.
        logit_scale: Logarithm of the inverse temperature, a scalar parameter.
        logit_bias: What the sigmoid loss adds to every logit, a scalar parameter; None with every other loss. It moves
            all scores alike, so that no answer depends on it.
        context: The learned prompt context `[L, E]`, as wide as a token's embedding; None until stage two.
        base_weights: Names of the weights that stay where they came from when the model is saved: those of a language
            model that was taken by name and does not move. Fixed when built, whatever is frozen later.

    Source:
        CLEFT, section 2.1: a linear projection each, unit length, learnable temperature. The projections have a bias,
        as in the authors' release. CLIP, ConVIRT and MedCLIP are the same with other towers and projections.
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
        """Returns unit-length embeddings `[B, E]` float32 of gray images `[B, 1, H, W]` uint8."""
        return l2_normalise(self.image_projection(self.image_tower.encode(images)))

    def encode_image_features(self, images: Tensor) -> Tensor:
        """Returns features `[B, D]` float32 of gray images `[B, 1, H, W]` uint8, before the projection."""
        return self.image_tower.encode(images).float()

    def encode_text(self, texts: Texts) -> Tensor:
        """Returns unit-length embeddings `[T, E]` float32 of one text or several.

        Texts are normalised as they were in training (`text.normalisation`), so that case and punctuation count only
        where the model was trained with them.

        Raises:
            DataError: If a text has no letter or digit, is too long, or holds an invisible character.
        """
        return l2_normalise(self.text_projection(self.text_tower(texts)))

    def encode_pairs(self, images: Tensor, texts: Sequence[str]) -> PairEmbeddings:
        """Reads images and the text of each: all that the losses of this model compare."""
        return PairEmbeddings(self.encode_image(images), self.encode_text(texts))

    def encode_class_names(self, names: Texts) -> Tensor:
        """Returns unit-length embeddings `[C, E]` float32 of one class name or several behind the learned context.

        Raises:
            DataError: If a name has no letter or digit, is too long, holds an invisible character, or occurs twice.
            CheckpointError: If there is no context yet.
        """
        if self.context is None:
            raise CheckpointError("this model has no learned context; run `cleft learn-context` on it first")
        return l2_normalise(self.text_projection(self.text_tower.encode_after_context(names, self.context)))

    def set_context(self, context: Tensor | None) -> None:
        """Puts a prompt context `[L, E]` in place as a float32 parameter, or takes it away.

        Raises:
            ValueError: If its vectors have another width than the token embeddings.
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
        """Keeps the inverse temperature in [1, `max_logit_scale`]."""
        self.logit_scale.clamp_(0.0, math.log(self.max_logit_scale))

    def constrain_parameters_(self) -> None:
        """Brings parameters back into their range; call it after every optimiser step."""
        self.clamp_logit_scale_()


def build_projection(width: int, config: LossConfig, *, text: bool = False) -> nn.Module:
    """Builds what leads features `[N, D]` of a tower into the joint space, `[N, E]`, not yet of unit length.

    Names and order of the weights of `mlp-norm` are those of MGCA's heads.

    Args:
        width: Of the features, `D`.
        config: The joint space.
        text: Whether they are features of texts.

    Raises:
        ConfigError: If texts are to stay in the space of their tower and that has another width.
    """
    kind = config.text_projection if text and config.text_projection != "same" else config.projection
    if kind == "to-text" and text:
        return _stay(width, config)
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


def _stay(width: int, config: LossConfig) -> nn.Module:
    if config.embed_dim != width:
        raise ConfigError(
            f"loss.projection=to-text leads images into the space of the text tower, which has {width} dimensions; "
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
    """Returns rows of unit length, float32."""
    # Half precision makes equal logits of far pairs; lengths and similarities are computed in float32.
    return F.normalize(embeds.float(), dim=-1)


def initial_context(text_tower: TextTower, opening: str, config: ContextConfig, seed: int) -> Tensor:
    """Returns the context vectors that stage two starts from.

    With `init: opening` the token embeddings of the opening come last, next to the class name, and further vectors
    are random in front. Of an opening longer than the context the last tokens are kept. With `init: random` all
    are random. Random vectors are uniform in ±√3 times the standard deviation of the opening's embeddings, and so
    spread as far as those do.

    Args:
        text_tower: Whose token embeddings to start from.
        opening: The sentence's beginning, such as `data.captions.OPENING`.
        config: `length` L and `init`.
        seed: Of the random vectors.

    Returns:
        `[L, D]` float32 on the CPU, without gradient.

    Source:
        CLEFT, section 2.2, which names no range (docs/decisions/0034).
    """
    written = text_tower.embed_prompt(opening).cpu()[-config.length :]
    spread = float(written.std()) * 3**0.5
    generator = torch.Generator().manual_seed(seed)
    random = (torch.rand(config.length, written.shape[1], generator=generator) * 2 - 1) * spread
    if config.init == "prompt":
        random[config.length - len(written) :] = written
    return random
