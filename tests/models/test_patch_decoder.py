import math

import pytest
import torch
from torch import nn

from cleft.models.layers import PatchDecoder, sine_positions


def test_positions_tell_the_column_first_and_then_the_row():
    table = sine_positions(8, (2, 3))
    assert table.shape == (6, 8)
    slow = 10_000**-0.5
    column, row = 2, 1
    expected = [math.sin(column), math.sin(column * slow), math.cos(column), math.cos(column * slow)]
    expected += [math.sin(row), math.sin(row * slow), math.cos(row), math.cos(row * slow)]
    torch.testing.assert_close(table[1 * 3 + 2], torch.tensor(expected))


def test_slipped_frequencies_end_at_about_a_tenth():
    rates = [torch.asin(sine_positions(768, (1, 2), kind)[1, :192])[-1].item() for kind in ("standard", "slipped")]
    assert rates == pytest.approx([1e-4, 0.1], rel=0.05)


def test_a_width_that_four_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="take a multiple of 4"):
        sine_positions(6, (2, 2))


def test_a_block_is_attention_and_two_layers_each_behind_a_norm():
    torch.manual_seed(0)
    decoder = PatchDecoder(12, 256, (1, 3), 1)
    first, patches = torch.randn(2, 1, 256), torch.randn(2, 3, 256)
    (block,) = decoder.blocks
    assert block.self_attn.num_heads == 2
    tokens = torch.cat([first, patches + sine_positions(256, (1, 3))], dim=1)
    seen = nn.functional.layer_norm(tokens, (256,), block.norm1.weight, block.norm1.bias, 1e-6)
    query, key, value = (
        part.view(2, 4, 2, 128).transpose(1, 2)
        for part in (seen @ block.self_attn.in_proj_weight.T + block.self_attn.in_proj_bias).chunk(3, dim=-1)
    )
    shares = (query @ key.transpose(2, 3) / math.sqrt(128)).softmax(dim=-1)
    tokens = tokens + block.self_attn.out_proj((shares @ value).transpose(1, 2).flatten(2))
    seen = nn.functional.layer_norm(tokens, (256,), block.norm2.weight, block.norm2.bias, 1e-6)
    tokens = tokens + block.linear2(nn.functional.gelu(block.linear1(seen)))
    torch.testing.assert_close(decoder(first, patches), decoder.norm(tokens)[:, 1:], atol=1e-5, rtol=1e-5)
