"""Values of study cells: means, deviations, reasons, and refused studies."""

import dataclasses
import json

import pytest
from tests.fakes.fake_runs import evaluation, result
from tests.fakes.fake_studies import small_study

from cleft.errors import DataError
from cleft.report.study_table import read_study
from cleft.results import StudyCell, StudyLine, to_json

CELL = ("cleft-lora", "chexpert/zero-shot")


def numbers(folder, metric="accuracy", cell=CELL):
    grid = read_study(folder)
    row = next(row for row in grid.study.rows if row.key == cell[0])
    column = next(column for column in grid.study.columns if column.key == cell[1])
    return grid.summary(row, column, metric)


def with_values(*values, **more):
    return [evaluation(checkpoint=str(value), results=(result("accuracy", value, **more),)) for value in values]


def test_value_is_mean_over_seeds_with_sample_deviation(tmp_path):
    found = numbers(small_study(tmp_path, {CELL: with_values(0.5, 0.6, 0.7)}))
    assert found.value == pytest.approx(0.6)
    assert found.spread == pytest.approx(0.1)  # n - 1, not n
    assert found.interval_range == pytest.approx((0.47, 0.73))
    assert found.reason is None


def test_one_seed_has_no_deviation(tmp_path):
    found = numbers(small_study(tmp_path, {CELL: with_values(0.5)}))
    assert (found.value, found.spread) == (0.5, None)


def test_seeds_with_equal_weights_have_no_deviation(tmp_path):
    found = numbers(small_study(tmp_path, {CELL: [*with_values(0.5), *with_values(0.5)]}))
    assert (found.value, found.spread) == (0.5, None)
    assert found.reason == "all seeds have the same weights: no standard deviation"


def test_missing_interval_leaves_no_interval_range(tmp_path):
    found = numbers(small_study(tmp_path, {CELL: [*with_values(0.5), *with_values(0.6, interval=None)]}))
    assert found.interval_range is None


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        ("planned", "not run yet", "not run yet"),
        ("missing", "give --data rsna=…", "missing data or weights: give --data rsna=…"),
        ("failed", "the loss is not finite", "failed: the loss is not finite"),
        ("impossible", "it has no text tower", "not applicable: it has no text tower"),
        ("failed", None, "failed"),
    ],
)
def test_missing_value_has_the_reason_of_its_state(tmp_path, state, reason, expected):
    cell = StudyCell(row=CELL[0], column=CELL[1], state=state, reason=reason)
    found = numbers(small_study(tmp_path, {}, cells=(cell,)))
    assert (found.value, found.reason) == (None, expected)


def test_finished_seeds_are_averaged_while_others_run(tmp_path):
    folder = small_study(tmp_path, {CELL: with_values(0.5, 0.7)}, state="planned", reason="2 of 3 seeds are done")
    found = numbers(folder)
    assert (found.value, found.reason) == (0.6, "not run yet: 2 of 3 seeds are done")


def test_unplanned_cell_has_a_reason(tmp_path):
    assert numbers(small_study(tmp_path, {}, cells=())).reason == "not part of this study"


def test_metric_missing_from_a_file_has_a_reason(tmp_path):
    folder = small_study(tmp_path, {CELL: with_values(0.5)})
    assert numbers(folder, "auprc").reason == "not in the result file"


def test_damaged_file_loses_its_seed_only(tmp_path):
    folder = small_study(tmp_path, {CELL: with_values(0.5, 0.7)})
    next(folder.rglob("seed-1.json")).write_text("{")
    found = numbers(folder)
    assert found.value == 0.5
    assert found.reason.startswith("1 of 2 seeds; seed-1.json is not valid JSON")
    next(folder.rglob("seed-0.json")).unlink()
    assert "chexpert-zero-shot/seed-0.json is missing" in numbers(folder).reason


@pytest.mark.parametrize("place", ["/home/somebody/secret/x.json", "C:\\secret\\x.json"])
def test_absolute_path_is_not_read_or_shown(tmp_path, place):
    cell = StudyCell(row=CELL[0], column=CELL[1], state="done", results=(place,))
    assert numbers(small_study(tmp_path, {}, cells=(cell,))).reason == ("a result file has an absolute path")


def test_missing_value_keeps_its_reason(tmp_path):
    gone = evaluation(results=(result("accuracy", None, reason="no image shows Edema"),))
    assert numbers(small_study(tmp_path, {CELL: [gone]})).reason == "no image shows Edema"


def test_result_of_few_patients_is_suppressed(tmp_path):
    few = evaluation(results=(result("accuracy", 0.5, patients=4),), synthetic=False)
    found = numbers(small_study(tmp_path, {CELL: [few]}))
    assert (found.value, found.reason) == (None, "fewer than 5 patients")


def test_baselines_come_from_their_column(tmp_path):
    grid = read_study(small_study(tmp_path, {CELL: [evaluation(0.6)]}))
    assert grid.baseline("majority-class", grid.study.columns[0], "accuracy").value == 0.2
    assert grid.baseline("majority-class", grid.study.columns[0], "ece") is None


@pytest.mark.parametrize(("field", "what"), [("split_digest", "splits"), ("ids_digest", "images")])
def test_column_with_two_splits_is_refused(tmp_path, field, what):
    one, other = evaluation(0.5), evaluation(0.6, **{field: "e" * 16})
    folder = small_study(tmp_path, {CELL: [one], ("clip-vit", CELL[1]): [other]})
    named = rf"{what}: .*seed-0.json on ({'e' * 16}|{getattr(one, field)}), .*seed-0.json on"
    with pytest.raises(DataError, match=named) as caught:
        read_study(folder)
    assert {"e" * 16, getattr(one, field)} <= set(str(caught.value).replace(",", "").replace(";", "").split())
    assert "'CheXpert-5×200, zero-shot'" in str(caught.value)


def test_columns_may_have_different_splits(tmp_path):
    other = evaluation(0.6, split_digest="e" * 16)
    read_study(small_study(tmp_path, {CELL: [evaluation(0.5)], (CELL[0], "rsna/zero-shot"): [other]}))


def test_folder_without_study_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"study\.json is missing; give the folder of a study, or run folders"):
        read_study(tmp_path)


def test_study_of_another_schema_is_refused(tmp_path):
    folder = small_study(tmp_path, {})
    tree = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps({**tree, "schema": 99}))
    with pytest.raises(DataError, match=r"schema 99.*run cleft reproduce again"):
        read_study(folder)


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        ((("cleft-lora", "nih/zero-shot"),), r"has a cell \('cleft-lora', 'nih/zero-shot'\) without its row or column"),
        ((CELL, CELL), "names 'cleft-lora, chexpert/zero-shot' twice"),
    ],
)
def test_inconsistent_study_is_refused(tmp_path, cells, fault):
    made = tuple(StudyCell(row=row, column=column, state="planned") for row, column in cells)
    with pytest.raises(DataError, match=fault):
        read_study(small_study(tmp_path, {}, cells=made))


def test_repeated_row_is_refused(tmp_path):
    folder = small_study(tmp_path, {})
    study = read_study(folder).study
    (folder / "study.json").write_text(to_json(dataclasses.replace(study, rows=(*study.rows, study.rows[0]))))
    with pytest.raises(DataError, match="names 'clip-vit' twice"):
        read_study(folder)


def test_facts_of_an_earlier_version_are_renamed(tmp_path):
    rows = (StudyLine(key=CELL[0], label="CLEFT", facts={"moving": 2e6, "moving_text": 1e6, "frozen": 3e6}),)
    facts = read_study(small_study(tmp_path, {}, rows=rows, cells=())).study.rows[0].facts
    assert facts == {"trainable": 2e6, "trainable_text": 1e6, "frozen": 3e6}
