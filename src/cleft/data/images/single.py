"""One image from a file, as a model that was trained here wants it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cleft.config import ImagesConfig
from cleft.data.images.augment import centre_crop
from cleft.data.images.decoding import preparing
from cleft.errors import DataError
from cleft.files import as_path

if TYPE_CHECKING:
    from torch import Tensor


def load_image(path: str | Path, config: ImagesConfig) -> Tensor:
    """Reads one image the way evaluation reads each: decoded, prepared, its centre cut out.

    A child process decodes it, which a damaged file may end without harm; it is kept for the next call.

    Args:
        path: A PNG, JPEG or DICOM file; its content decides, not its name.
        config: The `images` settings of the run whose model will see it.

    Returns:
        A batch of one gray image, `[1, 1, H, W]` uint8, for `encode_image`.

    Raises:
        DataError: If the file is not a readable image; `reason` says why, also where it ended the decoder.
        ResourceError: If the child process cannot start.
    """
    import torch

    with preparing(config, frozenset(), 1) as prepare:
        (outcome,) = prepare([as_path(path, "path")])
    if outcome.pixels is None:
        raise DataError(outcome.message, reason=outcome.reason)
    return torch.from_numpy(centre_crop(outcome.pixels, config.size).copy())[None, None]
