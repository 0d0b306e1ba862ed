"""Numbers and their nouns and verbs in generated sentences."""

import numpy as np
import pytest
import torch

from cleft.data.splits.leaks import Leak
from cleft.evaluation.questions import answer_multi_class, answer_present_absent
from cleft.evaluation.scoring import Draws
from cleft.grammar import count, share, verb
from cleft.types import LabelledImages

FEW = Draws(resamples=10)


@pytest.mark.parametrize(
    ("number", "total", "sentence"),
    [
        (0, 5, "0 of 5 images are"),
        (1, 5, "1 of 5 images is"),
        (4, 5, "4 of 5 images are"),
        (5, 5, "all 5 images are"),
        (2, 2, "both images are"),
        (0, 1, "0 of 1 image are"),
        (1, 1, "the only image is"),
        (1_000, 2_000, "1,000 of 2,000 images are"),
    ],
)
def test_a_share_agrees_with_its_verb(number, total, sentence):
    assert f"{share(number, total, 'image')} {verb(number, 'is', 'are')}" == sentence


def test_nouns_agree_with_their_numbers():
    assert [count(n, "class", "classes") for n in (0, 1, 2)] == ["0 classes", "1 class", "2 classes"]


def images(labels):
    codes = torch.tensor(labels, dtype=torch.float32)
    names = [f"p{row}" for row in range(len(codes))]
    return LabelledImages(codes, ("Edema", "Mass"), names, names, [None] * len(codes))


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        ([[1, 0]], "Scored: 1 image with exactly one of the classes (0 of 1 image show none of them, 0 several)."),
        (
            [[1, 0], [0, 0]],
            "Scored: 1 image with exactly one of the classes (1 of 2 images shows none of them, 0 several).",
        ),
        (
            [[1, 0], [0, 1], [1, 1]],
            "Scored: 2 images with exactly one of the classes (0 of 3 images show none of them, 1 several).",
        ),
    ],
)
def test_what_was_scored_is_a_sentence_for_one_image_and_for_many(labels, note):
    logits = np.ones((len(labels), 2), np.float32)
    assert answer_multi_class(logits, images(labels), ("Edema", "Mass"), FEW).notes[0] == note


def test_blank_labels_are_a_sentence_whether_none_one_or_all_are():
    logits = np.ones((2, 1), np.float32)
    said = [
        answer_present_absent(logits, logits, images(labels), ("Edema",), FEW, blank="absent")
        .notes[0]
        .partition("; ")[2]
        for labels in ([[1, 0], [0, 0]], [[1, 0], [-1, 0]], [[-1, 0], [-1, 0]])
    ]
    assert said == [
        "0 of 2 labels are blank or uncertain and count as absent.",
        "1 of 2 labels is blank or uncertain and counts as absent.",
        "both labels are blank or uncertain and count as absent.",
    ]


def test_shared_patients_are_a_sentence():
    leak = Leak(part="test", into="train", patients=1, of_patients=1, images=1, same_study=0)
    assert leak.sentence() == "the only test patient is also in train, with 1 other image"
