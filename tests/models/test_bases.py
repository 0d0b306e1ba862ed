import pytest
from tests.tools.replacing import replace_keeping_size_and_time

from cleft.config import TextTowerConfig
from cleft.errors import CheckpointError
from cleft.models.checkpoint import check_base, describe_base


@pytest.mark.parametrize("how", ["in place", "renamed over"])
def test_a_language_model_replaced_with_its_size_and_time_kept_is_another(tmp_path, how):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights of one model")
    saved = describe_base(TextTowerConfig(model=str(tmp_path)))
    check_base(tmp_path / "run", saved, str(tmp_path))
    replace_keeping_size_and_time(weights, b"weights of another.", how)
    with pytest.raises(CheckpointError, match="are others"):
        check_base(tmp_path / "run", saved, str(tmp_path))
