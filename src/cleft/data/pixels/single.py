"""One image from a file, as a model that was trained here wants it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cleft.arguments import as_path
from cleft.config import ImagesConfig
from cleft.data.pixels.augment import centre_crop
from cleft.data.pixels.images import prepare_image, read_gray

if TYPE_CHECKING:
    from torch import Tensor


def load_image(path: str | Path, config: ImagesConfig) -> Tensor:
    """Reads one image the way evaluation reads each: decoded, prepared, its centre cut out.

    Args:
        path: A PNG, JPEG or DICOM file; its content decides, not its name.
        config: The `images` settings of the run whose model will see it.

    Returns:
        A batch of one gray image, `[1, 1, H, W]` uint8, for `encode_image`.

    Raises:
        DataError: If the file is not a readable image.
    """
    import torch

    pixels = prepare_image(read_gray(as_path(path, "path"), images=config), config)
    return torch.from_numpy(centre_crop(pixels, config.size).copy())[None, None]
