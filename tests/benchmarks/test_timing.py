"""Variants take turns, and the clock is the process's own."""

import time

import torch

from timing import interleave, seconds, spread

CPU = torch.device("cpu")


def test_variants_take_turns_after_their_warm_up():
    turns = []
    works = {name: lambda name=name: turns.append(name) for name in "ab"}
    spreads = interleave(works, CPU, rounds=2, warm_up=1, repeat=2)
    assert "".join(turns) == "ab" + "aabb" * 2
    assert set(spreads) == {"a", "b"}


def test_waiting_is_not_work():
    assert seconds(lambda: time.sleep(0.05), CPU) < 0.04


def test_a_spread_by_hand():
    assert spread([3.0, 1.0, 2.0]) == (1.0, 2.0, 3.0)
