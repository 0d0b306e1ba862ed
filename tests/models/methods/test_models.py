"""Features of each method equal features computed by hand."""

from dataclasses import replace

import pytest
import torch
from tests.fakes.families import FAMILIES
from tests.tools.tiny_methods import RESNET, SWIN, VIT, method_settings
from torch.nn import functional

from cleft.errors import ConfigError
from cleft.models.methods import build_model

TEXTS = ["an edema", "fractures of two ribs", "an edema"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("nowhere") / "data"


def model_of(method, root, *more):
    return build_model(method_settings(method, root, "--text.base_dropout=0", *more), TEXTS)


def images_of(side=56):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (len(TEXTS), 1, side, side), dtype=torch.uint8, generator=generator)


def layers_of(model, text):
    """Tokens of one text, and the states of every layer `[layers, tokens, D]`."""
    tower = model.text_tower
    ids = torch.tensor(tower.tokenizer.encode([text]))
    output = tower.lm.model(input_ids=ids, output_hidden_states=True)
    return tower.tokenizer.hf_tokenizer.convert_ids_to_tokens(ids[0]), torch.stack(output.hidden_states)[:, 0]


def words_by_hand(model, text, layers):
    """Sums of pieces and layers, word by word: the class token, the words, the end."""
    tokens, states = layers_of(model, text)
    states, slots = states[layers].sum(dim=0), []
    for place, token in enumerate(tokens):
        # A byte-level word begins with the space in front of it.
        if place in (0, 1, len(tokens) - 1) or token.startswith("Ġ"):
            slots.append(states[place])
        else:
            slots[-1] = slots[-1] + states[place]
    return torch.stack(slots)


def test_gloria_encodes_regions_and_sums_of_pieces_and_layers(root):
    model = model_of("gloria", root).eval()
    assert model.text_tower.encode_words(TEXTS).words.shape[1] == max(len(text.split()) for text in TEXTS) + 2
    read = model.encode_pairs(images_of(), TEXTS)
    for row, text in enumerate(TEXTS):
        words = words_by_hand(model, text, [-1, -2, -3, -4])
        assert read.word_mask[row].tolist() == [slot < len(text.split()) + 1 for slot in range(read.words.shape[1])]
        torch.testing.assert_close(read.words[row, : len(words)], words)
        assert not read.words[row, len(words) :].any()
        # The release's text is the mean over all slots of the words' sum, whose direction is that of their sum.
        torch.testing.assert_close(read.text_embeds[row], functional.normalize(words.sum(dim=0), dim=0))
    seen = model.image_tower.encode_regions(images_of())
    torch.testing.assert_close(read.regions, seen.regions @ model.region_projection.weight.T)
    torch.testing.assert_close(read.image_embeds, model.encode_image(images_of()))
    torch.testing.assert_close(read.text_embeds, model.encode_text(TEXTS))


def test_mgca_projects_words_and_the_end_and_leaves_padding_out_of_the_norms(root):
    model = model_of("mgca", root)
    read = model.encode_pairs(images_of(), TEXTS)
    model.text_tower.eval()
    words = [words_by_hand(model, text, [-1])[1:] for text in TEXTS]
    assert read.word_mask.sum(dim=1).tolist() == [len(each) for each in words] == [3, 5, 3]
    projected = model.word_projection(torch.cat(words))
    torch.testing.assert_close(read.words[read.word_mask], projected, atol=1e-5, rtol=1e-4)
    assert not read.words[~read.word_mask].any()
    assert read.slot_of_token.shape == read.token_attention.shape
    torch.testing.assert_close(read.token_attention.sum(dim=1), torch.ones(3))


def test_mgcas_release_projects_padding_too(root):
    model = model_of("mgca", root, "--mgca.padding=released", "--text.max_tokens=20").eval()
    read = model.encode_pairs(images_of(), TEXTS)
    assert read.words.shape[1] == 20 - 1
    constant = model.word_projection(torch.zeros(1, 16))[0]
    torch.testing.assert_close(read.words[~read.word_mask], constant.expand(int((~read.word_mask).sum()), -1))


def test_mgcas_prototypes_are_normalised_after_a_step(root):
    model = model_of("mgca", root)
    torch.testing.assert_close(model.prototypes.norm(dim=1), torch.ones(7))
    model.prototypes.data.mul_(3)
    model.constrain_parameters_()
    torch.testing.assert_close(model.prototypes.norm(dim=1), torch.ones(7))


def test_mrm_encodes_only_the_patches_it_does_not_hide(root):
    model = model_of("mrm", root).eval()
    tower = model.image_tower
    pixels = tower.resize(tower.normalise(images_of(112)))
    assert pixels.shape[-1] == 56
    kept = torch.tensor([[0, 5], [3, 2], [15, 14]])
    read = tower.encode_visible(pixels, kept)
    for row in range(3):
        embedded = tower.model.embeddings(pixels[row : row + 1])
        states = embedded[:, [0, *(kept[row] + 1).tolist()]]
        for block in tower.model.layers:
            states = block(states)
        torch.testing.assert_close(read[row], tower.model.layernorm(states)[0, 1:])
    every = torch.arange(16).expand(3, -1)
    torch.testing.assert_close(
        tower.encode_visible(pixels, every).mean(dim=1), model.encode_image_features(images_of(112))
    )


def test_mrm_predicts_every_patch_and_only_hidden_words(root):
    model = model_of("mrm", root).eval()
    torch.manual_seed(3)
    read = model.encode_pairs(images_of(112), TEXTS)
    assert read.patch_mask.sum(dim=1).tolist() == [12, 12, 12]
    assert read.predicted_patches.shape == (3, 16, 3 * 28 * 28)  # 112 pixels in 4 rows of patches
    assert read.logits.shape[1] == read.ids.shape[1] > 0
    special = set(model.text_tower.tokenizer.hf_tokenizer.all_special_ids)
    assert not special & set(read.ids[0].tolist())
    torch.manual_seed(3)
    assert torch.equal(model.encode_pairs(images_of(112), TEXTS).logits, read.logits)


@pytest.mark.parametrize("method", ["mrm", "mgca", "gloria"])
@pytest.mark.parametrize("family", ["electra", "albert", "mobilebert"])
def test_token_embeddings_may_be_narrower_than_states(root, method, family):
    settings = method_settings(method, root)
    text = replace(
        settings.text, scratch=FAMILIES[family], pooled_layers=(-1,), depth=None, positions="counted", max_tokens=64
    )
    loss = replace(settings.loss, embed_dim=32) if method == "gloria" else settings.loss
    model = build_model(replace(settings, text=text, loss=loss), TEXTS).eval()
    read = model.encode_pairs(images_of(112 if method == "mrm" else 56), TEXTS)
    assert model.text_tower.lm.embedding_width == 16
    assert torch.cat([part.flatten() for part in read if part is not None]).isfinite().all()


def test_mrms_release_scores_every_position(root):
    model = model_of("mrm", root, "--mrm.text_loss=all", "--text.max_tokens=20").eval()
    assert model.encode_pairs(images_of(112), TEXTS).ids.shape == (1, 3 * 20)


def test_words_are_masked_with_all_their_pieces_and_the_image_condition_is_used(root):
    tower = model_of("mrm", root).eval().text_tower
    text = "unheardof edema"  # of many pieces, since no caption has the first word
    torch.manual_seed(0)
    none = torch.zeros(64, 16)
    read = tower.encode_masked([text] * 64, none, share=0.5)
    assert read.ids.shape == (64, len(tower.tokenizer.encode([text])[0]))
    assert tower.stats[:2] == (64, 1)
    slots = torch.tensor(tower.tokenizer.word_slots([text])[0])
    for row in range(64):
        by_word = [read.hidden[row, slots == slot] for slot in slots.unique()]
        assert all(len(set(word.tolist())) == 1 for word in by_word)
        assert not by_word[0].any()
        assert not by_word[-1].any()
    assert 0.3 < read.hidden[:, 1:-1].float().mean() < 0.7
    torch.manual_seed(0)
    conditioned = tower.encode_masked([text] * 64, none + 1, share=0.5)
    assert torch.equal(conditioned.hidden, read.hidden)
    shown = read.ids.masked_fill(read.hidden, tower.tokenizer.hf_tokenizer.mask_token_id)
    bert = tower.lm.model
    states = bert.encoder(bert.embeddings(shown) + 1).last_hidden_state
    torch.testing.assert_close(conditioned.states, states)


@pytest.mark.parametrize("method", ["gloria", "mgca", "mrm"])
def test_words_need_a_masked_model(root, method):
    causal = "--text.scratch={model_type: gpt2, n_layer: 4, n_head: 2, n_embd: 16, n_positions: 128}"
    with pytest.raises(ConfigError, match=f"method={method} needs word features that depend on the complete text"):
        model_of(method, root, causal, "--text.pooling=mean", "--text.depth=null")


def test_glorias_words_are_not_projected(root):
    with pytest.raises(ConfigError, match=r"set loss\.projection=to-text, not linear"):
        model_of("gloria", root, "--loss.projection=linear")


@pytest.mark.parametrize("scratch", [RESNET, SWIN])
def test_mrm_needs_a_model_of_patches(root, scratch):
    import json

    with pytest.raises(ConfigError, match=r"method=mrm hides patches, but a (resnet|swin) has no token for each patch"):
        model_of("mrm", root, f"--image.scratch={json.dumps(scratch)}", "--image.pooling=mean")


def test_a_vocabulary_without_a_mask_token_is_refused(root):
    model = model_of("mrm", root)
    model.text_tower.tokenizer.hf_tokenizer.mask_token = None
    with pytest.raises(ConfigError, match="cannot predict masked words: its tokenizer has no mask token"):
        model.encode_pairs(images_of(112), TEXTS)


@pytest.mark.parametrize(("method", "vision"), [("mgca", RESNET), ("mgca", SWIN), ("gloria", VIT), ("gloria", SWIN)])
def test_regions_of_any_tower_can_be_compared_with_words(root, method, vision):
    import json

    more = [f"--image.scratch={json.dumps(vision)}", "--image.pooling=mean", "--image.resize=null"]
    read = model_of(method, root, *more).encode_pairs(images_of(), TEXTS)
    assert read.regions.ndim == 3
    assert read.regions.shape[2] == read.words.shape[2]
