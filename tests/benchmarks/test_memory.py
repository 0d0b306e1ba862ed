"""The meter counts what lives, on the way forward and back."""

import torch

from memory import Meter, peak_of

CPU = torch.device("cpu")
KB = 4 * 250  # bytes of 250 float32 numbers


def test_what_is_freed_makes_room():
    with Meter() as meter:
        first = torch.ones(250)
        second = first + 1
        del first
        third = second + 1
    assert (meter.live, meter.peak) == (2 * KB, 2 * KB)
    del second, third
    assert meter.live == 0


def test_a_view_takes_no_memory():
    old = torch.ones(250)
    with Meter() as meter:
        views = [old.view(10, 25).T, old[3:]]
    assert meter.peak == 0
    assert len(views) == 2


def test_states_kept_for_the_way_back_count_until_it_is_gone():
    weight = torch.ones(250, requires_grad=True)

    def run(steps):
        state = weight
        for _ in range(steps):
            state = state.exp()
        state.sum().backward()

    grown = peak_of(lambda: run(9), CPU).above - peak_of(lambda: run(5), CPU).above
    assert grown == 4 * KB
