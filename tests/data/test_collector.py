import gc

import pytest

from cleft.data.collector import collector_paused


def test_it_is_off_inside_and_as_before_afterwards_even_after_an_error():
    seen = []

    @collector_paused()
    def fail():
        seen.append(gc.isenabled())
        raise KeyError

    assert gc.isenabled()
    with pytest.raises(KeyError):
        fail()
    assert seen == [False]
    assert gc.isenabled()


def test_who_paused_it_before_keeps_it_paused():
    with collector_paused():
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_function_runs_under_it_every_time():
    states = collector_paused()(gc.isenabled)
    assert [states(), states()] == [False, False]
    assert gc.isenabled()
