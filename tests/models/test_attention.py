import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, Dinov2WithRegistersConfig, Dinov2WithRegistersModel, ViTConfig, ViTModel

from cleft.errors import ConfigError
from cleft.models.layers import watch_attention

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def slow_row(output):
    """The first token's attention in the last block, by the kernel that keeps all of it."""
    return output.attentions[-1].mean(dim=1)[:, 0]


@pytest.mark.parametrize(
    "model",
    [
        lambda: ViTModel(ViTConfig(**SMALL, image_size=28, patch_size=14, attn_implementation="eager")),
        lambda: Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**SMALL, image_size=28, patch_size=14, attn_implementation="eager")
        ),
    ],
)
def test_it_is_the_attention_of_the_class_token_in_the_last_block(model):
    torch.manual_seed(0)
    vision = model().eval()
    with watch_attention(vision, "image") as watched:
        output = vision(pixel_values=torch.randn(3, 3, 28, 28), output_attentions=True)
    torch.testing.assert_close(watched.first_row(), slow_row(output))


def test_padding_of_a_text_gets_none():
    torch.manual_seed(0)
    bert = BertModel(BertConfig(**SMALL, vocab_size=20, attn_implementation="eager")).eval()
    visible = torch.tensor([[True] * 5, [True, True, True, False, False]])
    with watch_attention(bert, "text") as watched:
        output = bert(input_ids=torch.randint(0, 20, (2, 5)), attention_mask=visible.long(), output_attentions=True)
    row = watched.first_row(visible)
    torch.testing.assert_close(row, slow_row(output))
    assert row[1, 3:].tolist() == [0, 0]
    assert not row.requires_grad


def test_a_model_without_attention_is_refused():
    with (
        pytest.raises(ConfigError, match="image: a Linear has no attention"),
        watch_attention(nn.Linear(1, 1), "image"),
    ):
        pass
