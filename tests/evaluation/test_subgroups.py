"""Groups of patients with answers made by hand."""

from pathlib import Path

import numpy as np
import pytest

from cleft.evaluation.scoring import Draws, Scored, measured, measures_of
from cleft.evaluation.subgroups import by_subgroup
from cleft.types import Record

FEW = Draws(resamples=100)
CLASSES = ("Edema", "Pneumonia")


def record(number, **known):
    return Record(id=f"r{number}", image=Path(f"r{number}.png"), labels={}, patient=f"p{number}", **known)


def answers(right):
    """Answers between two classes in turn; the odds say how sure."""
    truth = np.arange(len(right)) % 2
    given = np.where(right, truth, 1 - truth)
    scores = np.zeros((len(right), 2))
    scores[np.arange(len(right)), given] = 1 + np.arange(len(right)) / 100
    return Scored(scores, truth.astype(float), [f"p{i}" for i in range(len(right))])


def named(groups):
    return {group.name: group for group in groups.groups}


def test_each_sex_has_its_numbers_and_the_gap_its_names():
    # 30 women, 24 answered rightly; 30 men, 15 answered rightly; one of whom nobody knows.
    right = np.array(([1] * 4 + [0]) * 6 + [1, 1, 0, 0] * 7 + [1, 0] + [1], dtype=bool)
    records = [record(i, sex="F" if i < 30 else "M" if i < 60 else None) for i in range(61)]
    [sexes] = by_subgroup(answers(right), records, CLASSES, FEW)
    assert (sexes.by, sexes.unknown, sexes.left_out) == ("sex", 1, 0)
    women, men = named(sexes)["F"], named(sexes)["M"]
    assert (women.images, women.patients, men.images) == (30, 30, 30)
    assert [result.metric for result in women.results] == ["accuracy", "auc"]
    assert women.results[0].value == pytest.approx(24 / 30)
    assert men.results[0].value == pytest.approx(15 / 30)
    assert women.results[0].images == 30
    gap = sexes.gaps[0]
    assert gap.metric == "accuracy"
    assert gap.value == pytest.approx(9 / 30)
    assert gap.reason == "best F, worst M"
    assert gap.interval[0] < 0.3 < gap.interval[1]
    assert gap.images == 60


def test_a_group_of_four_patients_is_left_out_unless_they_are_phantoms():
    records = [record(i, view="AP" if i < 10 else "PA" if i < 20 else "LL") for i in range(24)]
    [views] = by_subgroup(answers(np.ones(24, bool)), records, CLASSES, FEW)
    assert list(named(views)) == ["AP", "PA"]
    assert views.left_out == 4
    [drawn] = by_subgroup(answers(np.ones(24, bool)), records, CLASSES, FEW, fewest=1)
    assert list(named(drawn)) == ["AP", "PA", "LL"]


def test_one_group_is_no_comparison():
    assert by_subgroup(answers(np.ones(10, bool)), [record(i, sex="F") for i in range(10)], CLASSES, FEW) == ()


def test_ages_come_in_their_order():
    ages = [85.0] * 12 + [40.0] * 6 + [59.9] * 5 + [12.0] * 7
    [bands] = by_subgroup(answers(np.ones(30, bool)), [record(i, age=age) for i, age in enumerate(ages)], CLASSES, FEW)
    assert [(group.name, group.images) for group in bands.groups] == [("<40", 7), ("40-60", 11), ("80+", 12)]


def test_groups_of_fewer_than_twenty_patients_are_told_but_not_held_against_each_other():
    records = [record(i, scanner="A" if i < 25 else "B") for i in range(40)]
    [scanners] = by_subgroup(answers(np.arange(40) % 3 > 0), records, CLASSES, FEW)
    assert len(scanners.groups) == 2
    assert [gap.value for gap in scanners.gaps] == [None, None]
    assert scanners.gaps[0].reason == "fewer than two groups have 20 patients"


def test_the_auc_of_a_group_without_a_class_is_not_held_against_one_with_all():
    truth = np.r_[np.zeros(25), np.arange(25) % 2]
    scored = Scored(np.random.default_rng(0).normal(size=(50, 2)), truth, [f"p{i}" for i in range(50)])
    records = [record(i, sex="F" if i < 25 else "M") for i in range(50)]
    [sexes] = by_subgroup(scored, records, CLASSES, FEW)
    accuracy, area = sexes.gaps
    assert accuracy.value is not None
    assert area.value is None
    assert area.reason == "fewer than two groups show every class, and deny it too"


def test_findings_are_measured_where_they_are_known():
    labels = np.array([[1.0], [0.0], [np.nan]] * 10 + [[0.0], [1.0]] * 5)
    scored = Scored(np.tile([[1.0], [-1.0], [1.0]], (14, 1))[:40], labels, [f"p{i}" for i in range(40)])
    records = [record(i, sex="F" if i < 30 else "M") for i in range(40)]
    [sexes] = by_subgroup(scored, records, ("Edema",), FEW)
    women = named(sexes)["F"]
    assert women.results[0].value == 1.0
    assert (women.images, women.results[0].images) == (30, 20)


def test_the_numbers_of_a_group_are_those_of_its_images_alone():
    generator = np.random.default_rng(3)
    patients = [f"p{i}" for i in range(60)]
    scored = Scored(generator.normal(size=(60, 3)), generator.integers(3, size=60).astype(float), patients)
    classes = ("A", "B", "C")
    [sexes] = by_subgroup(scored, [record(i, sex="F" if i < 30 else "M") for i in range(60)], classes, FEW)
    alone = Scored(scored.scores[:30], scored.truth[:30], patients[:30])
    expected = {result.metric: result for result in measured(measures_of(alone, classes), alone.patients, FEW)}
    for result in named(sexes)["F"].results:
        assert result == expected[result.metric]
