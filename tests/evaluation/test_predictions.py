"""Predictions and baselines on logits and labels made by hand."""

import math

import numpy as np
import pytest
import torch

from cleft.errors import ConfigError, DataError, NumericsError
from cleft.evaluation.predictions import (
    class_baselines,
    class_logits,
    finding_baselines,
    majority_scores,
    multi_class_results,
    positive_class,
    present_absent_results,
    view_rule,
)
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


def test_g12_only_images_with_exactly_one_class_are_scored():
    classified = multi_class_results(LOGITS, embeddings(LABELS), ("Edema", "Pneumonia"))
    assert classified.rows == [0, 1, 4]
    assert classified.truths == ["Edema", "Pneumonia", "Edema"]
    assert values(classified.results)["accuracy"] == pytest.approx(2 / 3)
    assert classified.confusion == ((1, 1), (0, 1))
    assert classified.notes == [
        "Scored: 3 images with exactly one of the classes (1 of 5 images shows none of them, 1 several)."
    ]


def test_saturated_probabilities_still_rank():
    # In float64 both softmax probabilities round to 1 and would tie.
    logits = np.array([[80.0, 0.0], [90.0, 0.0]])
    classified = multi_class_results(logits, embeddings([[NAN, 0, 1.0], [NAN, 1.0, 0]]), ("Edema", "Pneumonia"))
    assert values(classified.results)["auc/Edema"] == 1.0


def test_two_classes_with_a_negative_one_have_one_roc_curve():
    labels = [[1.0, NAN, NAN], [NAN, NAN, 1.0]]
    classified = multi_class_results(np.eye(2), embeddings(labels), ("No Finding", "Pneumonia"))
    assert list(classified.roc) == ["Pneumonia"]


def test_h3_a_class_without_images_is_noted_and_can_be_predicted():
    classified = multi_class_results(
        np.array([[0.0, 9.0], [1.0, 0.0]]), embeddings([[NAN, 1.0, NAN]] * 2), ("Edema", "Pneumonia")
    )
    found = values(classified.results)
    assert found.pop("accuracy") == 0.5
    assert {"auc", "auc/Edema", "auc/Pneumonia", "auprc/Edema", "sensitivity@0.90/Pneumonia"} < set(found)
    assert set(found.values()) == {None}
    assert "No image shows Pneumonia, but it can be predicted." in classified.notes
    assert classified.confusion == ((1, 1), (0, 0))


def test_h10_no_image_with_exactly_one_class_is_an_error():
    with pytest.raises(DataError, match="no image shows exactly one of Edema, Pneumonia"):
        multi_class_results(LOGITS[:1], embeddings([[1.0, 1.0, 1.0]]), ("Edema", "Pneumonia"))


def test_multi_class_scoring_of_one_class_is_refused():
    with pytest.raises(ConfigError, match="needs two"):
        multi_class_results(LOGITS[:, :1], embeddings(LABELS), ("Edema",))


def test_a_class_the_table_lacks_is_refused():
    with pytest.raises(ConfigError, match=r"\['Fracture'\] are no findings of the table"):
        multi_class_results(LOGITS, embeddings(LABELS), ("Edema", "Fracture"))


def test_present_absent_compares_the_prompts_for_presence_and_absence():
    labels = [[NAN, 1.0, NAN], [NAN, 0.0, NAN], [NAN, 0.0, 1.0], [NAN, -1.0, NAN]]
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 1.0]])
    classified = present_absent_results(logits, embeddings(labels), ("Edema",))
    found = values(classified.results)
    assert found["accuracy/Edema"] == pytest.approx(2 / 3)
    assert found["auc/Edema"] == 0.5
    assert classified.probabilities[0, 0] == pytest.approx(1 / (1 + math.exp(-1)))
    assert "1 of 4 labels is blank or uncertain and not scored" in classified.notes[0]


def test_blank_labels_count_as_absent_only_if_requested():
    labels = [[NAN, 1.0, NAN], [NAN, NAN, NAN], [NAN, NAN, NAN]]
    arguments = (np.array([[1.0, 0], [0.0, 0], [2.0, 0]]), embeddings(labels), ("Edema",))
    assert values(present_absent_results(*arguments).results)["auc/Edema"] is None
    classified = present_absent_results(*arguments, blank="absent")
    assert values(classified.results)["auc/Edema"] == 0.5
    assert "count as absent" in classified.notes[0]


def test_no_labelled_image_is_an_error():
    with pytest.raises(DataError, match="no image is labelled for Edema"):
        present_absent_results(np.ones((1, 2)), embeddings([[NAN, NAN, NAN]]), ("Edema",))


PATIENTS = [str(i) for i in range(10)]


def test_majority_baseline_predicts_the_most_frequent_class():
    assert majority_scores([1, 1, 0], 3)[0] == pytest.approx([1 / 3, 2 / 3, 0])


def test_majority_baseline_has_the_accuracy_of_its_class_and_auc_one_half():
    baselines = values(class_baselines(np.array([0] * 6 + [1] * 4), ["AP"] * 10, ("Edema", "Pneumonia"), PATIENTS))
    assert baselines["majority-class/accuracy"] == 0.6
    assert baselines["majority-class/auc"] == 0.5


def test_view_rule_predicts_the_finding_for_ap():
    truth = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])  # pneumonia, then no finding
    views = ["AP", "AP", "AP", "PA", "AP", "PA", "PA", "PA", "PA", "PA"]
    baselines = values(class_baselines(truth, views, ("Pneumonia", "No Finding"), PATIENTS))
    assert baselines["ap-view/accuracy"] == 0.8
    assert baselines["ap-view/auc"] == pytest.approx((3 / 4 + 5 / 6) / 2)


def test_view_rule_is_reversed_and_noted_if_ap_is_rarer_with_the_finding():
    truth = np.array([0] * 5 + [1] * 5)  # pneumonia, then no finding
    views = ["PA", "PA", "PA", "PA", "AP", "AP", "AP", "AP", "PA", "PA"]
    baselines = class_baselines(truth, views, ("Pneumonia", "No Finding"), PATIENTS)
    assert values(baselines)["ap-view/accuracy"] == 0.7
    assert values(baselines)["ap-view/auc/Pneumonia"] == 0.7
    reasons = {baseline.reason.split(";")[0] for baseline in baselines if baseline.metric.startswith("ap-view")}
    assert reasons == {"reversed: AP is rarer among images that show Pneumonia"}


def test_view_rule_is_reversed_per_finding():
    labels = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    baselines = finding_baselines(labels, ["AP", "AP", "PA", "PA"], ("Edema", "Nodule"), PATIENTS[:4])
    found = {baseline.metric: baseline for baseline in baselines}
    assert found["ap-view/auc/Edema"].value == found["ap-view/auc/Nodule"].value == 1.0
    assert not found["ap-view/auc/Edema"].reason.startswith("reversed")
    assert found["ap-view/auc/Nodule"].reason.startswith("reversed")


def test_unlabelled_images_do_not_reverse_the_view_rule():
    # Among the known, AP is more common with edema; the unknown ones are all AP.
    labels = np.array([[1.0], [1.0], [0.0], [0.0]] + [[np.nan]] * 4)
    views = ["AP", "PA", "PA", "PA"] + ["AP"] * 4
    found = {baseline.metric: baseline for baseline in finding_baselines(labels, views, ("Edema",), PATIENTS[:8])}
    assert found["ap-view/auc/Edema"].value == 0.75
    assert not found["ap-view/auc/Edema"].reason.startswith("reversed")


def test_the_order_of_the_two_classes_does_not_matter():
    views = ["AP", "PA"] * 5
    truth = np.array([0, 1, 0, 1, 1, 1, 0, 0, 1, 1])
    one = values(class_baselines(truth, views, ("Pneumonia", "No Finding"), PATIENTS))
    other = values(class_baselines(1 - truth, views, ("No Finding", "Pneumonia"), PATIENTS))
    assert one == other


def test_view_rule_of_many_classes_predicts_the_most_frequent_one_per_view():
    truth = [0, 0, 1, 2, 2]
    scores, _ = view_rule(truth, ["AP", "AP", "AP", "PA", "PA"], ("Edema", "Atelectasis", "Cardiomegaly"))
    assert scores[0] == pytest.approx([2 / 3, 1 / 3, 0])
    assert scores.argmax(axis=1).tolist() == [0, 0, 0, 2, 2]


@pytest.mark.parametrize(
    ("views", "reason"), [([None] * 10, "the table has no views"), (["PA"] * 10, "every image is PA")]
)
def test_view_rule_without_distinct_views_has_a_reason(views, reason):
    classes = class_baselines(np.array([0, 1] * 5), views, ("Edema", "Pneumonia"), PATIENTS)
    findings = finding_baselines(np.array([[0.0], [1.0]] * 5), views, ("Edema",), PATIENTS)
    for baselines in (classes, findings):
        by_view = [baseline for baseline in baselines if baseline.metric.startswith("ap-view/")]
        assert [(baseline.value, baseline.reason) for baseline in by_view] == [(None, reason)] * 5


def test_baselines_of_a_finding_by_hand():
    labels = np.array([[1.0], [1.0], [0.0], [0.0], [0.0], [np.nan]])
    views = ["AP", "PA", "AP", "PA", "PA", "AP"]
    baselines = values(finding_baselines(labels, views, ("Edema",), PATIENTS[:6]))
    assert baselines["majority-class/accuracy/Edema"] == 0.6
    assert baselines["ap-view/accuracy/Edema"] == 0.6
    assert baselines["ap-view/auc/Edema"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_two_findings_or_two_negative_classes_have_no_positive_class():
    assert positive_class(["Edema", "Pneumonia"]) is None
    assert positive_class(["Normal", "No Finding"]) is None


def test_view_rule_on_the_real_rsna_table_is_seventy_percent(shared):
    # 77.6 % of the 6,012 positives and 36.3 % of the negatives are AP; balanced, the rule scores (77.6 + 63.7) / 2.
    import csv
    import gzip

    with gzip.open(shared / "data" / "tables" / "rsna_headers.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    view_column = next(name for name in rows[0] if "view" in name.lower())
    id_column = next(name for name in rows[0] if "patient" in name.lower() and "id" in name.lower())
    with gzip.open(shared / "data" / "tables" / "rsna_stage_2_train_labels.csv.gz", "rt", newline="") as file:
        target = {row["patientId"]: int(row["Target"]) for row in csv.DictReader(file)}
    views = {row[id_column]: row[view_column] for row in rows}
    positive = [name for name, value in target.items() if value == 1]
    negative = [name for name, value in target.items() if value == 0][: len(positive)]
    names = [*positive, *negative]
    scores, _ = view_rule(
        [0] * len(positive) + [1] * len(negative), [views[name] for name in names], ("Pneumonia", "No Finding")
    )
    right = (scores.argmax(axis=1) == np.array([0] * len(positive) + [1] * len(negative))).mean()
    assert right == pytest.approx(0.70, abs=0.015)
