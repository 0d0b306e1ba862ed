"""Questions to embeddings laid out by hand in two dimensions."""

import math

import numpy as np
import pytest
import torch

from cleft.errors import ConfigError, DataError, NumericsError
from cleft.evaluation.predictions import answer_multi_class, answer_present_absent, class_logits
from cleft.types import Embeddings

NAN = float("nan")
FINDINGS = ("No Finding", "Edema", "Pneumonia")


def embeddings(labels, findings=FINDINGS):
    count = len(labels)
    return Embeddings(
        image_embeds=torch.ones(count, 2) / math.sqrt(2),
        labels=torch.tensor(labels),
        findings=findings,
        ids=[f"r{i}" for i in range(count)],
        patients=[f"p{i}" for i in range(count)],
        views=["AP"] * count,
    )


def values(results):
    return {result.metric: result.value for result in results}


LABELS = [[NAN, 1.0, NAN], [NAN, NAN, 1.0], [NAN, 1.0, 1.0], [1.0, NAN, NAN], [NAN, 1.0, 0.0]]
LOGITS = np.array([[9.0, 0.0], [0.0, 1.0], [5.0, 5.0], [5.0, 5.0], [0.0, 2.0]])  # Edema, Pneumonia


def test_logits_are_cosines_times_the_inverse_temperature():
    image, text = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    logits = class_logits(image, text, torch.tensor(10.0).log())
    assert logits == pytest.approx(np.array([[6.0, 10.0]]), abs=1e-5)


def test_g11_half_precision_embeddings_are_compared_in_float32():
    image, text = torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16), torch.tensor([[0.6001, 0.8], [0.6, 0.8]])
    first, second = class_logits(image, text, torch.tensor(100.0).log())[0]
    assert first > second


def test_h2_an_embedding_of_nan_is_refused():
    with pytest.raises(NumericsError):
        class_logits(torch.tensor([[NAN, 0.0]]), torch.ones(2, 2), torch.tensor(0.0))


def test_g12_only_images_with_exactly_one_of_the_classes_are_asked_about():
    answers = answer_multi_class(LOGITS, embeddings(LABELS), ("Edema", "Pneumonia"))
    assert answers.rows == [0, 1, 4]
    assert answers.truths == ["Edema", "Pneumonia", "Edema"]
    assert values(answers.results)["accuracy"] == pytest.approx(2 / 3)
    assert answers.confusion == ((1, 1), (0, 1))
    assert answers.notes == [
        "Scored: 3 images with exactly one of the classes (1 of 5 images shows none of them, 1 several)."
    ]


def test_very_sure_answers_still_rank():
    # In float64 both softmax probabilities round to 1 and would tie.
    logits = np.array([[80.0, 0.0], [90.0, 0.0]])
    answers = answer_multi_class(logits, embeddings([[NAN, 0, 1.0], [NAN, 1.0, 0]]), ("Edema", "Pneumonia"))
    assert values(answers.results)["auc/Edema"] == 1.0


def test_the_curve_of_a_class_against_none_is_drawn_once():
    labels = [[1.0, NAN, NAN], [NAN, NAN, 1.0]]
    answers = answer_multi_class(np.eye(2), embeddings(labels), ("No Finding", "Pneumonia"))
    assert list(answers.roc) == ["Pneumonia"]


def test_h3_a_class_without_images_is_named_and_can_be_answered():
    answers = answer_multi_class(
        np.array([[0.0, 9.0], [1.0, 0.0]]), embeddings([[NAN, 1.0, NAN]] * 2), ("Edema", "Pneumonia")
    )
    found = values(answers.results)
    assert found.pop("accuracy") == 0.5
    assert {"auc", "auc/Edema", "auc/Pneumonia", "auprc/Edema", "sensitivity@0.90/Pneumonia"} < set(found)
    assert set(found.values()) == {None}
    assert "No image shows Pneumonia; it could be answered all the same." in answers.notes
    assert answers.confusion == ((1, 1), (0, 0))


def test_h10_no_image_with_exactly_one_class_is_a_sentence():
    with pytest.raises(DataError, match="no image shows exactly one of Edema, Pneumonia"):
        answer_multi_class(LOGITS[:1], embeddings([[1.0, 1.0, 1.0]]), ("Edema", "Pneumonia"))


def test_one_class_cannot_be_told_apart():
    with pytest.raises(ConfigError, match="needs two"):
        answer_multi_class(LOGITS[:, :1], embeddings(LABELS), ("Edema",))


def test_a_class_the_table_lacks_is_refused():
    with pytest.raises(ConfigError, match=r"\['Fracture'\] are no findings of the table"):
        answer_multi_class(LOGITS, embeddings(LABELS), ("Edema", "Fracture"))


def test_present_absent_compares_each_finding_with_its_denial():
    labels = [[NAN, 1.0, NAN], [NAN, 0.0, NAN], [NAN, 0.0, 1.0], [NAN, -1.0, NAN]]
    present, absent = np.array([[2.0], [0.0], [3.0], [0.0]]), np.ones((4, 1))
    answers = answer_present_absent(present, absent, embeddings(labels), ("Edema",))
    found = values(answers.results)
    assert found["accuracy/Edema"] == pytest.approx(2 / 3)
    assert found["auc/Edema"] == 0.5
    assert answers.probabilities[0, 0] == pytest.approx(1 / (1 + math.exp(-1)))
    assert "1 of 4 labels is blank or uncertain and not scored" in answers.notes[0]


def test_blank_counts_as_absent_only_where_asked_for():
    labels = [[NAN, 1.0, NAN], [NAN, NAN, NAN], [NAN, NAN, NAN]]
    asked = (np.array([[1.0], [0.0], [2.0]]), np.zeros((3, 1)), embeddings(labels), ("Edema",))
    assert values(answer_present_absent(*asked).results)["auc/Edema"] is None
    answers = answer_present_absent(*asked, blank="absent")
    assert values(answers.results)["auc/Edema"] == 0.5
    assert "count as absent" in answers.notes[0]


def test_nothing_known_is_a_sentence():
    with pytest.raises(DataError, match="no image says whether Edema is there"):
        answer_present_absent(np.ones((1, 1)), np.ones((1, 1)), embeddings([[NAN, NAN, NAN]]), ("Edema",))
