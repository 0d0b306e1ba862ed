"""Two towers, two projections and one temperature: the model that is trained.

Shapes: `B` images, `T` texts, `C` classes, `D` width of a tower, `E` joint dimension, `L` context vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cleft.config import LossConfig, Settings
from cleft.errors import CheckpointError
from cleft.towers.bases import still_weights
from cleft.towers.image import ImageTower, build_image_tower
from cleft.towers.text import TextTower, build_text_tower
from cleft.types import ImageSpec


class DualEncoder(nn.Module):
    """Images and sentences in one space, where what belongs together lies close.

    Args:
        image_tower: Reads images.
        text_tower: Reads sentences.
        config: Width of the joint space, and where the temperature starts.

    Attributes:
        image_spec: How images must be prepared.
        logit_scale: Logarithm of the inverse temperature, a scalar parameter.
        context: The learned prompt context `[L, D]`; None until stage two.
        base_weights: Names of the weights that stay where they came from when the model is saved: those of a language
            model that was taken by name and does not move. Fixed when built, whatever is frozen later.

    Source:
        CLEFT, section 2.1: a linear projection each, unit length, learnable temperature. The projections have a bias,
        as in the authors' release.
    """

    context: nn.Parameter | None

    def __init__(self, image_tower: ImageTower, text_tower: TextTower, config: LossConfig) -> None:
        super().__init__()
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.image_projection = nn.Linear(image_tower.width, config.embed_dim)
        self.text_projection = nn.Linear(text_tower.width, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))
        self.max_logit_scale = config.max_logit_scale
        self.register_parameter("context", None)
        self.base_weights = frozenset(f"text_tower.{name}" for name in still_weights(text_tower))

    @property
    def image_spec(self) -> ImageSpec:
        """How images must be prepared."""
        return self.image_tower.spec

    def encode_image(self, images: Tensor) -> Tensor:
        """Returns unit-length embeddings `[B, E]` float32 of gray images `[B, 1, H, W]` uint8."""
        return _unit(self.image_projection(self.image_tower.encode(images)))

    def encode_image_features(self, images: Tensor) -> Tensor:
        """Returns features `[B, D]` float32 of gray images `[B, 1, H, W]` uint8, before the projection."""
        return self.image_tower.encode(images).float()

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Returns unit-length embeddings `[T, E]` float32."""
        return _unit(self.text_projection(self.text_tower(texts)))

    def encode_class_names(self, names: Sequence[str]) -> Tensor:
        """Returns unit-length embeddings `[C, E]` float32 of class names behind the learned context.

        Raises:
            CheckpointError: If there is no context yet.
        """
        if self.context is None:
            raise CheckpointError("this model has no learned context; run `cleft learn-context` on it first")
        return _unit(self.text_projection(self.text_tower.encode_behind_context(names, self.context)))

    def set_context(self, context: Tensor | None) -> None:
        """Puts a prompt context `[L, D]` in place as a float32 parameter, or takes it away.

        Raises:
            ValueError: If its vectors have another width than the text tower.
        """
        if context is None:
            self.context = None
            return
        if context.ndim != 2 or context.shape[1] != self.text_tower.width:
            raise ValueError(f"context is {tuple(context.shape)}; the text tower wants [L, {self.text_tower.width}]")
        device = self.logit_scale.device
        self.context = nn.Parameter(context.detach().to(device, torch.float32, copy=True))

    @torch.no_grad()
    def clamp_logit_scale_(self) -> None:
        """Keeps the inverse temperature in [1, `max_logit_scale`]; call it after every optimiser step."""
        self.logit_scale.clamp_(0.0, math.log(self.max_logit_scale))


def build_model(settings: Settings, captions: Sequence[str], seed: int | None = None) -> DualEncoder:
    """Builds the model the settings describe.

    Args:
        settings: Which towers, how adapted, and the joint space.
        captions: Training captions: a tokenizer from scratch is learned from them, and their tokens may move.
        seed: Decides all random weights; `settings.seed` if not given. Torch's global generator stays as it was.

    Raises:
        ConfigError: If a tower cannot be found or built.
        CheckpointError: If the files of a tower cannot be read or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed if seed is None else seed)  # the CPU's alone
        image_tower = build_image_tower(settings.image, settings.images)
        text_tower = build_text_tower(settings.text, captions)
        return DualEncoder(image_tower, text_tower, settings.loss)


def _unit(embeds: Tensor) -> Tensor:
    # Half precision makes equal logits of far pairs; lengths and similarities are computed in float32.
    return F.normalize(embeds.float(), dim=-1)
