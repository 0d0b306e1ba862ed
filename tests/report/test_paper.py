"""Results quoted from the paper."""

import pytest

from cleft.report.paper import MARKS, QUOTED, quoted


@pytest.mark.parametrize(
    ("place", "printed", "marks"),
    [
        (("table1", "cleft-lora", "chexpert/zero-shot", "accuracy"), "66.74", ""),
        (("table1", "cleft-lora", "rsna/fine-tune", "auc"), "88.72", ""),
        (("table1", "medclip-swin", "rsna/zero-shot", "accuracy"), "74.47", "*†"),
        (("table1", "convirt-r50", "rsna/linear-probe", "accuracy"), "78.46", "*"),
        (("table1", "mgca-vit", "chexpert/linear-probe", "auc"), "63.94", "†"),
        (("table2", "clip-vit", "embed-density/zero-shot", "accuracy"), "70.45", ""),
        (("table2", "cleft-lora", "embed-birads/fine-tune", "accuracy"), "23.79", ""),
        (("table3", "cleft-lora", "rsna/zero-shot", "accuracy"), "64.63", ""),
    ],
)
def test_paper_values_are_quoted_with_their_marks(place, printed, marks):
    found = quoted(*place)
    assert (found.printed, found.marks) == (printed, marks)
    assert found.value == pytest.approx(float(printed) / 100)
    assert found.notes == [MARKS[mark] for mark in marks]


@pytest.mark.parametrize(
    "place",
    [
        ("table1", "random-vit", "chexpert/zero-shot", "accuracy"),
        ("table1", "cleft-lora", "chexpert/zero-shot", "auc"),
        ("table1", "convirt-r50", "rsna/fine-tune", "accuracy"),
        ("table3", "frozen-lm", "chexpert/zero-shot", "accuracy"),
        ("tableS1", "cleft-lora", "chexpert/linear-probe/0.01", "accuracy"),
        ("my-grid", "cleft-lora", "chexpert/zero-shot", "accuracy"),
    ],
)
def test_missing_paper_value_is_none(place):
    assert quoted(*place) is None


def test_tables_1_and_2_are_complete():
    assert len(QUOTED["table1"]) == 11 * 10 - 2 * 3 - 6  # two zero-shot each of three rows, and six of ConVIRT
    assert len(QUOTED["table2"]) == 4 * 6 - 4
