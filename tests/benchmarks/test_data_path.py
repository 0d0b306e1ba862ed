import re

import cv2
import pytest
import torch
from benchmarks.data_path import compare


@pytest.mark.slow
def test_g6_the_data_path_keeps_its_limits(tmp_path, capsys):
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    assert compare(tmp_path, rounds=3) == 0
    cv2.setNumThreads(threads[0])
    torch.set_num_threads(threads[1])
    ratio = re.search(r"the long way.* ([\d.]+) +43\.4\n", capsys.readouterr().out)
    assert float(ratio[1]) > 4
