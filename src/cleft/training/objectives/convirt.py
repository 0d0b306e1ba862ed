"""ConVIRT: InfoNCE that asks more of finding the text of an image than of the reverse."""

from __future__ import annotations

from torch import Tensor

from cleft.training.objectives.pairs import both_directions, cosines


def convirt_loss(
    image_embeds: Tensor, text_embeds: Tensor, *, temperature: float | Tensor = 0.1, image_to_text: float = 0.75
) -> Tensor:
    """Weighted InfoNCE over the pairs of a batch.

    Row i of both inputs belongs together; every other row is a negative, also when it carries the same caption.

    Args:
        image_embeds: Image embeddings of any length, `[B, E]`.
        text_embeds: Text embeddings of any length, `[B, E]`.
        temperature: Divides the cosines, positive.
        image_to_text: Share of the direction from image to text, in [0, 1]; the other direction has the rest.

    Returns:
        Mean loss per pair, in nats: log(B) when all embeddings are equal, 0 for a single pair.

    Raises:
        ValueError: If the inputs differ in shape or are empty.

    Source:
        Zhang et al., Contrastive Learning of Medical Visual Representations from Paired Images and Text. There is no
        official code.
    """
    loss_i2t, loss_t2i = both_directions(cosines(image_embeds, text_embeds) / temperature)
    return image_to_text * loss_i2t + (1 - image_to_text) * loss_t2i
