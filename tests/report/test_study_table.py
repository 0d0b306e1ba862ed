"""What a study's cells hold: means, spreads, reasons, and what is refused."""

import dataclasses
import json

import pytest
from tests.fakes.fake_runs import evaluation, result
from tests.fakes.fake_studies import small_study

from cleft.errors import DataError
from cleft.report.study_table import read_study
from cleft.results import StudyCell, to_json

CELL = ("cleft-lora", "chexpert/zero-shot")


def numbers(folder, metric="accuracy", cell=CELL):
    grid = read_study(folder)
    row = next(row for row in grid.study.rows if row.key == cell[0])
    column = next(column for column in grid.study.columns if column.key == cell[1])
    return grid.summary(row, column, metric)


def with_values(*values, **more):
    return [evaluation(checkpoint=str(value), results=(result("accuracy", value, **more),)) for value in values]


def test_a_number_is_the_mean_over_seeds_with_its_sample_deviation(tmp_path):
    found = numbers(small_study(tmp_path, {CELL: with_values(0.5, 0.6, 0.7)}))
    assert found.value == pytest.approx(0.6)
    assert found.spread == pytest.approx(0.1)  # n - 1, not n
    assert found.interval_range == pytest.approx((0.47, 0.73))
    assert found.reason is None


def test_one_seed_has_no_spread(tmp_path):
    found = numbers(small_study(tmp_path, {CELL: with_values(0.5)}))
    assert (found.value, found.spread) == (0.5, None)


def test_seeds_with_the_same_weights_have_no_spread(tmp_path):
    found = numbers(small_study(tmp_path, {CELL: [*with_values(0.5), *with_values(0.5)]}))
    assert (found.value, found.spread) == (0.5, None)
    assert found.reason == "every seed ended in the same weights: no spread"


def test_a_seed_without_an_interval_takes_the_reach(tmp_path):
    found = numbers(small_study(tmp_path, {CELL: [*with_values(0.5), *with_values(0.6, interval=None)]}))
    assert found.interval_range is None


@pytest.mark.parametrize(
    ("state", "reason", "told"),
    [
        ("planned", "not run yet", "not run yet"),
        ("missing", "give --data rsna=…", "data or weights were not given: give --data rsna=…"),
        ("failed", "the loss is not finite", "failed: the loss is not finite"),
        ("impossible", "it has no text tower", "cannot be asked: it has no text tower"),
        ("failed", None, "failed"),
    ],
)
def test_a_dash_has_the_reason_of_its_state(tmp_path, state, reason, told):
    cell = StudyCell(row=CELL[0], column=CELL[1], state=state, reason=reason)
    found = numbers(small_study(tmp_path, {}, cells=(cell,)))
    assert (found.value, found.reason) == (None, told)


def test_seeds_that_are_done_are_told_while_others_are_not(tmp_path):
    folder = small_study(tmp_path, {CELL: with_values(0.5, 0.7)}, state="planned", reason="2 of 3 seeds are done")
    found = numbers(folder)
    assert (found.value, found.reason) == (0.6, "not run yet: 2 of 3 seeds are done")


def test_a_cell_that_nobody_planned_says_so(tmp_path):
    assert numbers(small_study(tmp_path, {}, cells=())).reason == "not part of this study"


def test_a_number_that_a_file_lacks_has_a_reason(tmp_path):
    folder = small_study(tmp_path, {CELL: with_values(0.5)})
    assert numbers(folder, "auprc").reason == "the result file does not hold this number"


def test_a_damaged_file_costs_its_seed_and_says_so(tmp_path):
    folder = small_study(tmp_path, {CELL: with_values(0.5, 0.7)})
    next(folder.rglob("seed-1.json")).write_text("{")
    found = numbers(folder)
    assert found.value == 0.5
    assert found.reason.startswith("1 of 2 seeds; seed-1.json is not valid JSON")
    next(folder.rglob("seed-0.json")).unlink()
    assert "chexpert-zero-shot/seed-0.json is missing" in numbers(folder).reason


@pytest.mark.parametrize("place", ["/home/somebody/secret/x.json", "C:\\secret\\x.json"])
def test_a_file_named_by_its_place_on_a_machine_is_not_read_and_not_told(tmp_path, place):
    cell = StudyCell(row=CELL[0], column=CELL[1], state="done", results=(place,))
    assert numbers(small_study(tmp_path, {}, cells=(cell,))).reason == (
        "a result file is named by its place on another machine"
    )


def test_a_number_that_was_not_measured_keeps_its_reason(tmp_path):
    gone = evaluation(results=(result("accuracy", None, reason="no image shows Edema"),))
    assert numbers(small_study(tmp_path, {CELL: [gone]})).reason == "no image shows Edema"


def test_a_number_of_few_patients_is_a_dash(tmp_path):
    few = evaluation(results=(result("accuracy", 0.5, patients=4),), synthetic=False)
    found = numbers(small_study(tmp_path, {CELL: [few]}))
    assert (found.value, found.reason) == (None, "fewer than 5 patients")


def test_floors_come_from_the_images_of_their_column(tmp_path):
    grid = read_study(small_study(tmp_path, {CELL: [evaluation(0.6)]}))
    assert grid.baseline("majority-class", grid.study.columns[0], "accuracy").value == 0.2
    assert grid.baseline("majority-class", grid.study.columns[0], "ece") is None


@pytest.mark.parametrize(("field", "what"), [("split_digest", "splits"), ("ids_digest", "images")])
def test_results_of_two_splits_under_one_heading_are_refused_with_both_digests(tmp_path, field, what):
    one, other = evaluation(0.5), evaluation(0.6, **{field: "e" * 16})
    folder = small_study(tmp_path, {CELL: [one], ("clip-vit", CELL[1]): [other]})
    named = rf"{what}: .*seed-0.json on ({'e' * 16}|{getattr(one, field)}), .*seed-0.json on"
    with pytest.raises(DataError, match=named) as caught:
        read_study(folder)
    assert {"e" * 16, getattr(one, field)} <= set(str(caught.value).replace(",", "").replace(";", "").split())
    assert "'CheXpert-5×200, zero-shot'" in str(caught.value)


def test_two_headings_may_rest_on_two_splits(tmp_path):
    other = evaluation(0.6, split_digest="e" * 16)
    read_study(small_study(tmp_path, {CELL: [evaluation(0.5)], (CELL[0], "rsna/zero-shot"): [other]}))


def test_a_folder_without_a_study_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match=r"study\.json is missing; give the folder of a study, or run folders"):
        read_study(tmp_path)


def test_a_study_of_another_version_is_a_sentence(tmp_path):
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
def test_a_study_that_contradicts_itself_is_refused(tmp_path, cells, fault):
    made = tuple(StudyCell(row=row, column=column, state="planned") for row, column in cells)
    with pytest.raises(DataError, match=fault):
        read_study(small_study(tmp_path, {}, cells=made))


def test_a_row_named_twice_is_refused(tmp_path):
    folder = small_study(tmp_path, {})
    study = read_study(folder).study
    (folder / "study.json").write_text(to_json(dataclasses.replace(study, rows=(*study.rows, study.rows[0]))))
    with pytest.raises(DataError, match="names 'clip-vit' twice"):
        read_study(folder)
