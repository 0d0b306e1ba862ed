"""Mutations are generated and reverted; the tests detect most of a sample."""

import pytest
from tests.mutation.mutants import mutants_of
from tests.mutation.run import SAMPLE, TARGETS, reasons, run, sample, source_of

SOURCE = '''
def clip(value, low=0, high=1.5):
    """Docstring 3."""
    if value < low and not high:
        raise ValueError("below 0")
    return min(value, high) + 1 + round(value, 2)
'''


def test_every_kind_of_mutation_is_made_once_and_reverted(tmp_path):
    path = tmp_path / "clip.py"
    path.write_text(SOURCE)
    changes = [f"{mutant.before} -> {mutant.after}" for mutant in mutants_of("clip", path)]
    assert sorted(changes) == sorted(
        [
            "0 -> 1",
            "1.5 -> 3.5",
            "if value < low and (not high) -> if not (value < low and (not high))",
            "value < low and (not high) -> value < low or not high",
            "min(value, high) + 1 + round(value, 2) -> min(value, high) + 1 - round(value, 2)",
            "min(value, high) + 1 -> min(value, high) - 1",
            "value < low -> value <= low",
            "not high -> high",
            "min(value, high) -> max(value, high)",
            "round(value, 2) -> round(2, value)",
            "1 -> 2",
            "1 -> 0",
            "2 -> 3",
            "2 -> 1",
        ]
    )
    assert all("Docstring 3" in mutant.source for mutant in mutants_of("clip", path))


def test_a_sample_has_each_mutation_once():
    keys = [mutant.key for mutant in sample()]
    assert len(keys) == len(set(keys)) == SAMPLE
    assert {mutant.module for mutant in sample()} <= set(TARGETS)
    assert all(source_of(module).is_file() for module in TARGETS)


@pytest.mark.slow
def test_nine_of_ten_mutations_are_detected_and_the_others_have_a_reason():
    outcomes = run(sample())
    survived = [outcome.mutant.key for outcome in outcomes if not outcome.caught]
    assert len(survived) <= len(outcomes) / 10, survived
    assert sorted(set(survived) - set(reasons())) == []
