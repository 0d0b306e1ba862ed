"""Floors by hand: the same images as the model's, and nothing but counts and views."""

import numpy as np
import pytest

from cleft.evaluation.floors import majority_scores, positive_class, view_rule
from cleft.evaluation.scoring import class_floors, finding_floors

PATIENTS = [str(i) for i in range(10)]


def values(results):
    return {result.metric: result.value for result in results}


def test_the_majority_answers_the_most_frequent_class():
    assert majority_scores([1, 1, 0], 3)[0] == pytest.approx([1 / 3, 2 / 3, 0])


def test_the_majority_of_six_in_ten_scores_six_tenths_and_ranks_nothing():
    floors = values(class_floors(np.array([0] * 6 + [1] * 4), ["AP"] * 10, ("Edema", "Pneumonia"), PATIENTS))
    assert floors["majority-class/accuracy"] == 0.6
    assert floors["majority-class/auc"] == 0.5


def test_ap_means_the_finding_where_the_other_class_is_none():
    truth = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])  # pneumonia, then no finding
    views = ["AP", "AP", "AP", "PA", "AP", "PA", "PA", "PA", "PA", "PA"]
    floors = values(class_floors(truth, views, ("Pneumonia", "No Finding"), PATIENTS))
    assert floors["ap-view/accuracy"] == 0.8
    assert floors["ap-view/auc"] == pytest.approx((3 / 4 + 5 / 6) / 2)


def test_where_ap_is_rarer_among_the_sick_the_rule_is_turned_round_and_says_so():
    truth = np.array([0] * 5 + [1] * 5)  # pneumonia, then no finding
    views = ["PA", "PA", "PA", "PA", "AP", "AP", "AP", "AP", "PA", "PA"]
    floors = class_floors(truth, views, ("Pneumonia", "No Finding"), PATIENTS)
    assert values(floors)["ap-view/accuracy"] == 0.7
    assert values(floors)["ap-view/auc/Pneumonia"] == 0.7
    reasons = {floor.reason.split(";")[0] for floor in floors if floor.metric.startswith("ap-view")}
    assert reasons == {"turned round: AP is rarer among images that show Pneumonia"}


def test_each_finding_turns_its_own_rule():
    labels = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    floors = finding_floors(labels, ["AP", "AP", "PA", "PA"], ("Edema", "Nodule"), PATIENTS[:4])
    found = {floor.metric: floor for floor in floors}
    assert found["ap-view/auc/Edema"].value == found["ap-view/auc/Nodule"].value == 1.0
    assert not found["ap-view/auc/Edema"].reason.startswith("turned")
    assert found["ap-view/auc/Nodule"].reason.startswith("turned round")


def test_images_whose_finding_is_not_known_turn_no_rule():
    # Among the known, AP is more common with edema; the unknown ones are all AP.
    labels = np.array([[1.0], [1.0], [0.0], [0.0]] + [[np.nan]] * 4)
    views = ["AP", "PA", "PA", "PA"] + ["AP"] * 4
    found = {floor.metric: floor for floor in finding_floors(labels, views, ("Edema",), PATIENTS[:8])}
    assert found["ap-view/auc/Edema"].value == 0.75
    assert not found["ap-view/auc/Edema"].reason.startswith("turned")


def test_the_order_of_the_two_classes_does_not_matter():
    views = ["AP", "PA"] * 5
    truth = np.array([0, 1, 0, 1, 1, 1, 0, 0, 1, 1])
    one = values(class_floors(truth, views, ("Pneumonia", "No Finding"), PATIENTS))
    other = values(class_floors(1 - truth, views, ("No Finding", "Pneumonia"), PATIENTS))
    assert one == other


def test_of_many_classes_each_view_answers_its_most_frequent_one():
    truth = [0, 0, 1, 2, 2]
    scores, _ = view_rule(truth, ["AP", "AP", "AP", "PA", "PA"], ("Edema", "Atelectasis", "Cardiomegaly"))
    assert scores[0] == pytest.approx([2 / 3, 1 / 3, 0])
    assert scores.argmax(axis=1).tolist() == [0, 0, 0, 2, 2]


@pytest.mark.parametrize(
    ("views", "reason"), [([None] * 10, "the table names no view"), (["PA"] * 10, "every image is PA")]
)
def test_views_that_tell_nothing_apart_leave_a_dash_with_its_reason(views, reason):
    classes = class_floors(np.array([0, 1] * 5), views, ("Edema", "Pneumonia"), PATIENTS)
    findings = finding_floors(np.array([[0.0], [1.0]] * 5), views, ("Edema",), PATIENTS)
    for floors in (classes, findings):
        by_view = [floor for floor in floors if floor.metric.startswith("ap-view/")]
        assert [(floor.value, floor.reason) for floor in by_view] == [(None, reason)] * 5


def test_floors_of_a_finding_by_hand():
    labels = np.array([[1.0], [1.0], [0.0], [0.0], [0.0], [np.nan]])
    views = ["AP", "PA", "AP", "PA", "PA", "AP"]
    floors = values(finding_floors(labels, views, ("Edema",), PATIENTS[:6]))
    assert floors["majority-class/accuracy/Edema"] == 0.6
    assert floors["ap-view/accuracy/Edema"] == 0.6
    assert floors["ap-view/auc/Edema"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_neither_of_two_findings_is_the_absence():
    assert positive_class(["Edema", "Pneumonia"]) is None
    assert positive_class(["Normal", "No Finding"]) is None


def test_the_ap_rule_on_the_real_rsna_table_is_seventy_percent(shared):
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
    sick = [name for name, value in target.items() if value == 1]
    well = [name for name, value in target.items() if value == 0][: len(sick)]
    names = [*sick, *well]
    scores, _ = view_rule(
        [0] * len(sick) + [1] * len(well), [views[name] for name in names], ("Pneumonia", "No Finding")
    )
    right = (scores.argmax(axis=1) == np.array([0] * len(sick) + [1] * len(well))).mean()
    assert right == pytest.approx(0.70, abs=0.015)
