"""A few images with their answers for the page, picked by a hash: neither the best nor the worst."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cleft.data.images.prepared import PreparedImages
from cleft.data.splits.subsets import order_key
from cleft.evaluation.predictions import Answers

SALT = "cleft-examples-v1"
SIDE = 192
"""Longest side of an example in pixels."""
TOP = 3


def pick_examples(
    answers: Answers, ids: Sequence[str], classes: Sequence[str], prepared: PreparedImages, count: int
) -> tuple[dict[str, Any], ...]:
    """Takes images in the order of a hash of their ids, each truth in turn.

    Args:
        answers: What was asked and answered.
        ids: Record id of each row of the embeddings.
        classes: Names of the columns of the probabilities.
        prepared: Where the pixels are.
        count: How many to take at most.

    Returns:
        For each: `image` (PNG as base64), `truth`, `answers` (the three likeliest classes, each with
        its probability). No id.
    """
    order = sorted(range(len(answers.rows)), key=lambda place: order_key(SALT, ids[answers.rows[place]]))
    waiting: dict[str, list[int]] = {}
    for place in order:
        waiting.setdefault(answers.truths[place], []).append(place)
    rounds = max(map(len, waiting.values()), default=0)
    in_turn = [places[turn] for turn in range(rounds) for places in waiting.values() if turn < len(places)]
    return tuple(
        {
            "image": as_png(prepared.pixels(ids[answers.rows[place]])),
            "truth": answers.truths[place] or "none of these",
            "answers": _likeliest(answers.probabilities[place], classes),
        }
        for place in in_turn[:count]
    )


def as_png(pixels: NDArray[np.uint8]) -> str:
    """A gray image, made smaller where it is large, as a base64 PNG."""
    scale = min(1.0, SIDE / max(pixels.shape))
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    _, data = cv2.imencode(".png", cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA))
    return base64.b64encode(data.tobytes()).decode()


def _likeliest(probabilities: NDArray[np.float64], classes: Sequence[str]) -> tuple[tuple[str, float], ...]:
    best = np.argsort(-probabilities, kind="stable")[:TOP]
    return tuple((classes[int(c)], round(float(probabilities[c]), 4)) for c in best)
