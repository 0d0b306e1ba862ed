"""Heights of weights, in models as they are and in families with blocks, stages, and things in front and behind."""

import pytest
from tests.fakes.models import IMAGE
from torch import nn
from transformers import AutoConfig

from cleft.models.hub import meta_model
from cleft.models.layers import weight_heights

FAMILIES = {
    **{name: {key: value for key, value in options.items() if key != "model_type"} for name, options in IMAGE.items()},
    "convnext": {},
    "clip_vision_model": {},
    "efficientnet": {},
    "pvt": {},
}
BLOCKS = {
    "dinov2": 2,
    "vit": 1,
    "swin": 2,
    "resnet": 2,
    "convnext": 4,
    "clip_vision_model": 12,
    "efficientnet": 55,
    "pvt": 4,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_every_family_has_a_height_between_pixels_and_head(family):
    kind = IMAGE[family]["model_type"] if family in IMAGE else family
    model = meta_model(AutoConfig.for_model(kind, **FAMILIES[family]))
    heights, top = weight_heights(model)
    assert heights.keys() == {name for name, _ in model.named_parameters()}
    assert top == BLOCKS[family] + 1
    assert min(heights.values()) == 0
    assert set(heights.values()) >= set(range(1, top))
    embeddings = [name for name in heights if name.startswith(("embeddings.", "embedder."))]
    assert {heights[name] for name in embeddings} <= {0}
    assert all(heights[name] == top for name in heights if name.startswith(("layernorm.", "post_layernorm.")))


def test_a_model_without_blocks_is_of_one_height():
    assert weight_heights(nn.Linear(2, 2)) == ({"weight": 0, "bias": 0}, 0)


def test_lists_inside_a_block_are_part_of_it():
    inner = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 9))})
    model = nn.ModuleDict({"small": nn.Sequential(nn.Linear(1, 1)), "stages": nn.ModuleList([inner, nn.Linear(9, 9)])})
    heights, top = weight_heights(model)
    assert top == 3
    assert heights["small.0.weight"] == 0
    assert heights["stages.0.layers.2.weight"] == 1
    assert heights["stages.1.weight"] == 2
