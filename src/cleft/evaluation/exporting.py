"""Embeddings as a table that joins a user's own by the paths of its images.

What a run keeps of embeddings names no image, because a run may be shared. This table is written where the user says.

Shapes: `N` images, `E` joint dimension.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from cleft.evaluation.task import Question, embed_images
from cleft.files import Output, csv_text
from cleft.models.checkpoint import check_reads_texts, load_model, weights_digest
from cleft.training.surroundings import device_of


def write_embeddings(run: Path, question: Question, out: Output, *, progress: bool = True) -> Path:
    """Writes the embedding of each selected image: a column `image` and `e0` to `e<E-1>`, unit length.

    Args:
        run: Run folder of either stage; embeddings that an evaluation left in it are not computed again.
        question: Which images.
        out: A CSV table.
        progress: Whether to show a bar.

    Returns:
        The table. `image` is the image's path in the user's table, without a `./` or the folder of a release in front.

    Raises:
        CheckpointError: If the run reads no texts, or its weights are damaged.
        DataError: If images cannot be read, or patients were trained on.
    """
    check_reads_texts(run)
    settings = question.run_settings(run)
    images = question.images(run, settings, progress=progress)
    model = load_model(run).to(device_of(settings)).eval()
    found = embed_images(run, model, images, settings, weights_digest(run), progress=progress)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", *(f"e{column}" for column in range(found.image_embeds.shape[1]))])
    for name, row in zip(found.ids, found.image_embeds.tolist(), strict=True):
        table.writerow([csv_text(name), *(f"{value:.9g}" for value in row)])
    return out.write(text.getvalue())
