"""MRM: model and loss. Reconstructs hidden image patches at twice the resolution and hidden words of the report.

Images and texts are not embedded in a joint space. Settings: `cleft.config.MrmConfig`.

Shapes: `B` pairs, `P` patches, `V` visible patches or values of a patch, `L` tokens, `N` scored tokens, `K` entries of
the vocabulary, `D` width of a tower.

Source: Zhou et al. 2023 (Masked Record Modeling) and the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cleft.config import MrmConfig, Settings
from cleft.errors import ConfigError
from cleft.models.dual_encoder import refuse_causal
from cleft.models.image_tower import ImageTower, grid_of
from cleft.models.layers import PatchDecoder
from cleft.models.methods.losses import PairInfo, to_float32
from cleft.models.text_tower import TextTower, external_base_weights
from cleft.types import ImageSpec

VARIANCE = 1e-6
"""Added to the variance of a patch before its values are divided by the root."""


class MrmFeatures(NamedTuple):
    """Predictions of hidden patches and tokens, with what they are compared with."""

    pixel_values: Tensor
    """Normalised images at full size, `[B, 1 or 3, H, W]`."""
    predicted_patches: Tensor
    """`[B, P, values of a patch]`."""
    patch_mask: Tensor
    """True where a patch was hidden, `[B, P]` bool."""
    logits: Tensor
    """Over the vocabulary, for the scored tokens, `[1, N, K]`."""
    ids: Tensor
    """The scored tokens, `[1, N]`."""


class Mrm(nn.Module):
    """MRM's model: an image tower, a patch decoder, and a masked language model conditioned on the image.

    Args:
        image_tower: A model with one token per patch, such as a ViT.
        text_tower: Masked language model, trained from scratch in the paper; predicts the hidden words.
        config: Masking ratios and decoder.

    Raises:
        ConfigError: If the image tower has no token for each patch, or the text tower is causal.
    """

    context: None = None

    def __init__(self, image_tower: ImageTower, text_tower: TextTower, config: MrmConfig) -> None:
        super().__init__()
        refuse_causal(text_tower, "mrm")
        side = image_tower.config.resize or image_tower.spec.size[0]
        grid = grid_of(image_tower.model.config, (side, side))
        family = image_tower.model.config.model_type
        if grid is None or not image_tower.has_patch_tokens or not hasattr(image_tower.model, "embeddings"):
            raise ConfigError(
                f"method=mrm hides patches, but a {family} has no token for each patch; set image.model to a ViT or a "
                f"relative"
            )
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.config = config
        self.patch_size = image_tower.spec.size[0] // grid[0]
        width = image_tower.region_width if config.decoder_dim is None else config.decoder_dim
        self.painter = PatchDecoder(
            image_tower.region_width, width, grid, config.decoder_blocks, config.decoder_positions
        )
        self.mask_token = nn.Parameter(0.02 * torch.randn(width))
        self.paint = nn.Linear(width, 3 * self.patch_size**2)
        # The output layer is tied to the token embedding, which may be narrower than a state (ELECTRA, ALBERT).
        embedding_width = text_tower.lm.embedding_width
        self.report_condition = nn.Linear(image_tower.region_width, text_tower.lm.block_input_width)
        self.report_dense = nn.Linear(text_tower.width, embedding_width)
        self.report_norm = nn.LayerNorm(embedding_width, eps=1e-12)
        self.report_bias = nn.Parameter(torch.zeros(len(self._token_embedding)))
        self.base_weights = frozenset(f"text_tower.{name}" for name in external_base_weights(text_tower))

    @property
    def _token_embedding(self) -> Tensor:
        """Weight `[K, D]` of the token embedding, shared with the output layer as in BERT."""
        return cast("Tensor", self.text_tower.lm.model.get_input_embeddings().weight)

    @property
    def image_spec(self) -> ImageSpec:
        """How images must be prepared."""
        return self.image_tower.spec

    def encode_image_features(self, images: Tensor) -> Tensor:
        """Returns features `[B, D]` float32 of gray images `[B, 1, H, W]` uint8."""
        return self.image_tower.encode(images).float()

    def encode_pairs(self, images: Tensor, texts: Sequence[str]) -> MrmFeatures:
        """Masks each image and its text at random (torch's generator) and predicts the hidden parts."""
        pixel_values = self.image_tower.normalise(images)
        patches = self.painter.positions.shape[0]
        order = torch.rand(len(images), patches, device=images.device).argsort(dim=1)
        kept = order[:, : max(1, round(patches * (1 - self.config.mask_ratio)))]
        hidden = torch.ones(len(images), patches, dtype=torch.bool, device=images.device).scatter(1, kept, value=False)
        visible = self.image_tower.encode_visible(self.image_tower.resize(pixel_values), kept)  # [B, V, D]
        logits, ids = self._predict_tokens(visible.mean(dim=1), texts)
        return MrmFeatures(pixel_values, self._predict_patches(visible, kept, hidden), hidden, logits, ids)

    def constrain_parameters_(self) -> None:
        """Does nothing: no parameter has a range."""

    def _predict_patches(self, visible: Tensor, kept: Tensor, hidden: Tensor) -> Tensor:
        embedded = self.painter.embed(visible)
        tokens = self.mask_token.to(embedded.dtype).expand(*hidden.shape, -1)
        tokens = tokens.scatter(1, kept[..., None].expand_as(embedded), embedded)
        return self.paint(self.painter(tokens[:, :0], tokens))

    def _predict_tokens(self, image: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns logits of the scored tokens, and the tokens."""
        tokens = self.text_tower.encode_masked(
            texts,
            share=self.config.text_mask_ratio,
            condition=self.report_condition(image),
            pad_to_max=self.config.text_loss == "all",
        )
        scored = torch.ones_like(tokens.hidden) if self.config.text_loss == "all" else tokens.hidden
        states = self.report_norm(F.gelu(self.report_dense(tokens.states[scored])))
        logits = states @ self._token_embedding.T.to(states.dtype) + self.report_bias
        return logits[None], tokens.ids[scored][None]


def mrm_loss(model: Mrm, features: MrmFeatures, _pairs: PairInfo, settings: Settings) -> Tensor:
    """Weighted sum of the reconstruction losses of images and reports."""
    config = settings.mrm
    target = target_patches(features.pixel_values, patch_size=model.patch_size)
    of_image, of_report = config.weights
    image = image_reconstruction(
        features.predicted_patches, target, features.patch_mask, standardise=config.normalise_patches
    )
    scored = torch.ones_like(features.ids, dtype=torch.bool)
    return of_image * image + of_report * report_reconstruction(features.logits, features.ids, scored)


def target_patches(images: Tensor, *, patch_size: int = 32) -> Tensor:
    """Splits images into the patches to be reconstructed.

    Args:
        images: `[B, 3, S, S]`, or one channel for all three; 448 pixels where the model gets 224.
        patch_size: Side in pixels, twice that of an input patch.

    Returns:
        `[B, P, patch_size * patch_size * 3]`: patches row by row, in each pixels row by row, channels of a pixel
        together, the order of published decoders.

    Raises:
        ValueError: If an image is not a square of complete patches, or has neither one channel nor three.

    Source:
        The released code, and He et al., Masked Autoencoders.
    """
    count, channels, height, width = images.shape
    if height != width or height % patch_size or channels not in (1, 3):
        raise ValueError(
            f"images {tuple(images.shape)} must be [images, 1 or 3, size, size] with a size that is a multiple of "
            f"{patch_size}"
        )
    blocks = images.expand(-1, 3, -1, -1).unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    return blocks.permute(0, 2, 4, 3, 5, 1).reshape(count, (height // patch_size) ** 2, -1)


def image_reconstruction(pred: Tensor, target: Tensor, masked: Tensor, *, standardise: bool = True) -> Tensor:
    """Mean squared error of the hidden patches.

    Args:
        pred: Predicted patches, `[B, P, V]`.
        target: True patches, `[B, P, V]`; see `target_patches`.
        masked: Whether a patch was hidden, `[B, P]` bool.
        standardise: Whether each target patch is first standardised to mean 0 and deviation 1; a constant one becomes
            zeros.

    Returns:
        Mean over the hidden patches of the batch; 0 if there are none. With standardised targets (unbiased variance),
        zeros get (V - 1) / V: the starting value of an untrained decoder.

    Raises:
        ValueError: If shapes differ.

    Source:
        The released code with `--norm_pix_loss`, as in its script.
    """
    if pred.shape != target.shape or masked.shape != pred.shape[:2]:
        raise ValueError(
            f"pred {tuple(pred.shape)} and target {tuple(target.shape)} must be equal in shape, "
            f"and masked {tuple(masked.shape)} must have one value per patch"
        )
    with torch.autocast(pred.device.type, enabled=False):
        target = to_float32(target)
        if standardise:
            variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
            target = (target - mean) / (variance + VARIANCE).sqrt()
        error = (to_float32(pred) - target).square().mean(dim=-1)
        return _mean_where(error, masked)


def report_reconstruction(
    logits: Tensor, ids: Tensor, masked: Tensor, *, where: Literal["masked", "all"] = "masked"
) -> Tensor:
    """Cross-entropy of the tokens of a report.

    Args:
        logits: Over the vocabulary, `[B, L, K]`.
        ids: Original tokens, `[B, L]`.
        masked: Whether a token was hidden, `[B, L]` bool.
        where: `masked` scores the hidden tokens, as in the paper; `all` scores every position, including padding, as in
            the released code.

    Returns:
        Mean over the scored tokens of the batch, in nats: log(K) when all logits are equal, 0 if no token was hidden.

    Raises:
        ValueError: If shapes differ.

    Source:
        Zhou et al., Masked Record Modeling, and the released code.
    """
    if logits.shape[:2] != ids.shape or masked.shape != ids.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)}, ids {tuple(ids.shape)} and masked {tuple(masked.shape)} must have the same "
            f"reports and positions"
        )
    if where == "all":
        masked = torch.ones_like(masked)
    with torch.autocast(logits.device.type, enabled=False):
        loss = F.cross_entropy(to_float32(logits).flatten(0, 1), ids.flatten(), reduction="none")
    return _mean_where(loss.view(ids.shape), masked)


def _mean_where(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of the counted values; the others may be anything. 0 if none is counted."""
    return values.where(counted, 0).sum() / counted.sum().clamp_min(1)
