import cv2
import pytest
import torch
from benchmarks.data_path import GAINS, LIMIT_MB, LIMIT_MS, Costs, compare, exceeded_limits, is_busy
from benchmarks.radiographs import Files


def costs(name, *, released, cleft, megabytes=3.6, yardstick=2.5e-3):
    files = Files(name, [], (320, 390), 0.02)
    rounds = {key: [0.0] for key in ("uncached", "bytes", "read", "preparing", "opening")}
    rounds["yardstick"] = [yardstick]
    return Costs(files=files, released=released, cleft=cleft, again=cleft, megabytes=megabytes, **rounds)


SMALL, FULL = "small release, synthetic", "full size, JPEG"


def test_an_exceeded_limit_is_reported():
    assert (
        exceeded_limits(
            [costs(SMALL, released=[2e-3], cleft=[1e-4]), costs(FULL, released=[0.02], cleft=[1e-4])], busy=False
        )
        == []
    )
    assert "0.400 ms per image" in exceeded_limits([costs(SMALL, released=[8e-3], cleft=[4e-4])], busy=False)[0]
    assert (
        "9.0 times faster, less than 10"
        in exceeded_limits([costs(SMALL, released=[9e-4], cleft=[1e-4])], busy=False)[0]
    )
    assert (
        "50.0 times faster, less than 60"
        in exceeded_limits([costs(FULL, released=[5e-3], cleft=[1e-4])], busy=False)[0]
    )
    assert (
        "5.0 MB per batch" in exceeded_limits([costs(SMALL, released=[2e-3], cleft=[1e-4], megabytes=5)], busy=False)[0]
    )
    assert (set(GAINS.values()), GAINS["small release"], LIMIT_MS, LIMIT_MB) == ({10, 60}, 10, 0.3, 4)


def test_noise_exceeds_no_limit():
    assert exceeded_limits([costs(SMALL, released=[4e-3] * 3, cleft=[2e-4, 2e-4, 9e-4])], busy=False) == []
    assert exceeded_limits([costs(SMALL, released=[8e-3], cleft=[4e-4])], busy=True) == []
    assert exceeded_limits([costs(SMALL, released=[8.5e-4], cleft=[1e-4])], busy=True) == []
    assert (
        "7.0 times faster, less than 8" in exceeded_limits([costs(SMALL, released=[7e-4], cleft=[1e-4])], busy=True)[0]
    )


def test_limits_scale_with_a_slow_core_but_not_with_a_fast_one():
    slow = {"released": [8e-3], "cleft": [4e-4]}
    assert exceeded_limits([costs(SMALL, **slow, yardstick=3.5e-3)], busy=False) == []
    assert (
        "0.400 ms per image, more than 0.36" in exceeded_limits([costs(SMALL, **slow, yardstick=3e-3)], busy=False)[0]
    )
    assert "more than 0.3" in exceeded_limits([costs(SMALL, **slow, yardstick=1e-3)], busy=False)[0]


@pytest.mark.benchmark
def test_g6_the_data_path_keeps_its_limits(tmp_path):
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    try:
        assert exceeded_limits(compare(tmp_path, rounds=5, images=None), busy=is_busy()) == []
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])
