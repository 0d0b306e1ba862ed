"""Run folders with invented results."""

from pathlib import Path

import pytest
from tests.fakes.fake_runs import evaluation, write_run


@pytest.fixture
def two_stages(tmp_path) -> list[Path]:
    return [
        write_run(tmp_path / "first", evaluation(0.58)),
        write_run(tmp_path / "first-context", evaluation(0.64, prompts="context"), stage="context"),
    ]
