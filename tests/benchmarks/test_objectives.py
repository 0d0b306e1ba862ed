"""The word-region terms are compared with loops that compute the same, and outrun them."""

import pytest
import torch
from benchmarks.objectives import GLORIA, LENGTHS, MGCA, OURS, gloria_inputs, main, measure, mgca_inputs


def small(inputs, *shape):
    return inputs(3, (2, 9), torch.Generator().manual_seed(0), *shape)


@pytest.mark.parametrize(("ways", "inputs"), [(GLORIA, small(gloria_inputs, 5, 8)), (MGCA, small(mgca_inputs, 6, 8))])
def test_all_ways_compute_the_same(ways, inputs):
    spreads, errors = measure(ways, inputs, rounds=1)
    assert set(errors) == set(ways) < set(spreads)


def test_ways_that_differ_are_not_timed():
    wrong = {**GLORIA, "wrong": lambda *given: 2 * GLORIA[OURS](*given)}
    with pytest.raises(SystemExit, match="nothing was timed"):
        measure(wrong, small(gloria_inputs, 5, 8), rounds=1)


def test_the_table_says_how_it_was_made(capsys):
    main(["--batch", "2", "--lengths", "short", "--rounds", "1", "--threads", "1"])
    said = capsys.readouterr().out
    assert "python benchmarks/objectives.py --batch 2" in said
    assert said.count("| batched (again) |") == 2


@pytest.mark.benchmark
def test_at_batch_48_the_batched_terms_outrun_the_loops():
    """On one thread, by its own clock: 4.2 to 6 times and 80 times were measured."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for ways, inputs, way, ratio in (
            (GLORIA, gloria_inputs, "loop over texts", 2.5),
            (MGCA, mgca_inputs, "loop over words and patches", 20),
        ):
            drawn = inputs(48, LENGTHS["short"], torch.Generator().manual_seed(0))
            spreads, _ = measure({OURS: ways[OURS], way: ways[way]}, drawn, rounds=2)
            assert spreads[way].least > ratio * spreads[OURS].least
    finally:
        torch.set_num_threads(threads)
