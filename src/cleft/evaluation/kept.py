"""What a model answered image by image, kept beside its result, so that two models can be compared later.

No id, name or patient stands in it: images are in the order of a hash of their ids, which is the same for the same
images, and patients are numbered in the order in which they come up.

Shapes: `N` images, `C` classes or findings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save

from cleft.data.splits.subsets import order_key
from cleft.errors import DataError
from cleft.evaluation.scoring import Scored
from cleft.files import write_whole
from cleft.results import Evaluation

SALT = "cleft-answers-v1"
"""A new salt is a new order, and files of the old one no longer fit: never change it."""


class Kept(NamedTuple):
    """Answers in the order of the hash of their images' ids."""

    scores: NDArray[np.float32]
    """As `Scored.scores`, `[N, C]`."""
    truth: NDArray[np.float32]
    """As `Scored.truth`, `[N]` or `[N, C]`."""
    patients: NDArray[np.int32]
    """Number of each image's patient, from 0, `[N]`."""

    def scored(self) -> Scored:
        """The answers as the metrics want them."""
        return Scored(self.scores.astype(np.float64), self.truth.astype(np.float64), [str(p) for p in self.patients])


def keep(scored: Scored, ids: Sequence[str]) -> Kept:
    """Puts answers in the order that equal images have everywhere, and forgets who they are.

    Args:
        scored: The answers.
        ids: Record id of each image, in the same order.
    """
    order = sorted(range(len(ids)), key=lambda place: order_key(SALT, ids[place]))
    numbers: dict[str, int] = {}
    patients = [numbers.setdefault(scored.patients[place], len(numbers)) for place in order]
    return Kept(
        scores=scored.scores[order].astype(np.float32),
        truth=scored.truth[order].astype(np.float32),
        patients=np.array(patients, dtype=np.int32),
    )


def kept_beside(result: Path) -> Path:
    """The file of answers that belongs to a result file."""
    return result.with_suffix(".safetensors")


def write_kept(kept: Kept, result: Path, evaluation: Evaluation) -> None:
    """Writes answers beside the file of their result; only their owner may read those of patients."""
    data = save({name: np.ascontiguousarray(values) for name, values in kept._asdict().items()}, _marks(evaluation))
    write_whole(kept_beside(result), data, mode=0o644 if evaluation.synthetic else 0o600)


def read_kept(result: Path, evaluation: Evaluation) -> Kept:
    """Reads the answers of a result.

    Args:
        result: The result file.
        evaluation: What stands in it.

    Raises:
        DataError: If there are none, or they are damaged or of another evaluation.
    """
    path = kept_beside(result)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            marks = file.metadata()
            kept = Kept(*(file.get_tensor(name) for name in Kept._fields))
    except FileNotFoundError as error:
        raise DataError(
            f"{result.name} has no answers image by image beside it ({path.name}); evaluate that run again",
            reason="missing",
        ) from error
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path} cannot be read ({error}); evaluate that run again", reason="damaged") from error
    if marks != _marks(evaluation):
        raise DataError(
            f"{path} holds the answers of another evaluation than {result.name}; evaluate that run again",
            reason="damaged",
        )
    return kept


def _marks(evaluation: Evaluation) -> dict[str, str]:
    return {"schema": "1", "ids_digest": evaluation.ids_digest, "checkpoint": evaluation.checkpoint}
