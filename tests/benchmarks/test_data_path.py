import cv2
import pytest
import torch
from benchmarks.data_path import GAINS, LIMIT_MB, LIMIT_MS, Costs, broken, compare, is_busy
from benchmarks.radiographs import Files


def costs(name, *, long, ours, megabytes=3.6, yardstick=2.5e-3):
    files = Files(name, [], (320, 390), 0.02)
    rounds = {key: [0.0] for key in ("uncached", "bytes", "read", "preparing", "opening")}
    rounds["yardstick"] = [yardstick]
    return Costs(files=files, long=long, ours=ours, again=ours, megabytes=megabytes, **rounds)


SMALL, FULL = "small release, drawn", "full size, JPEG"


def test_a_limit_that_does_not_hold_is_told():
    assert broken([costs(SMALL, long=[2e-3], ours=[1e-4]), costs(FULL, long=[0.02], ours=[1e-4])], busy=False) == []
    assert "0.400 ms per image" in broken([costs(SMALL, long=[8e-3], ours=[4e-4])], busy=False)[0]
    assert "9.0 times faster, less than 10" in broken([costs(SMALL, long=[9e-4], ours=[1e-4])], busy=False)[0]
    assert "50.0 times faster, less than 60" in broken([costs(FULL, long=[5e-3], ours=[1e-4])], busy=False)[0]
    assert "5.0 MB per batch" in broken([costs(SMALL, long=[2e-3], ours=[1e-4], megabytes=5)], busy=False)[0]
    assert (set(GAINS.values()), GAINS["small release"], LIMIT_MS, LIMIT_MB) == ({10, 60}, 10, 0.3, 4)


def test_noise_breaks_no_limit():
    assert broken([costs(SMALL, long=[4e-3] * 3, ours=[2e-4, 2e-4, 9e-4])], busy=False) == []
    assert broken([costs(SMALL, long=[8e-3], ours=[4e-4])], busy=True) == []
    assert broken([costs(SMALL, long=[8.5e-4], ours=[1e-4])], busy=True) == []
    assert "7.0 times faster, less than 8" in broken([costs(SMALL, long=[7e-4], ours=[1e-4])], busy=True)[0]


def test_a_slow_core_may_take_as_much_longer_and_a_fast_one_no_less():
    slow = {"long": [8e-3], "ours": [4e-4]}
    assert broken([costs(SMALL, **slow, yardstick=3.5e-3)], busy=False) == []
    assert "0.400 ms per image, more than 0.36" in broken([costs(SMALL, **slow, yardstick=3e-3)], busy=False)[0]
    assert "more than 0.3" in broken([costs(SMALL, **slow, yardstick=1e-3)], busy=False)[0]


@pytest.mark.slow
def test_g6_the_data_path_keeps_its_limits(tmp_path):
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    try:
        assert broken(compare(tmp_path, rounds=5, images=None), busy=is_busy()) == []
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])
