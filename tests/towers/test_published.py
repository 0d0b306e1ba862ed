import pytest
import torch
from tests.fakes import by_hand
from tests.fakes.official import write_official
from tests.fakes.published import (
    SIZE,
    TEXTS,
    gloria_state,
    mgca_state,
    write_gloria,
    write_lightning,
    write_tokenizer,
)
from torch.nn import functional

from cleft.errors import CheckpointError, ConfigError
from cleft.towers.checkpoint import load_model
from cleft.towers.container import Unread, read_foreign
from cleft.towers.published.importing import import_checkpoint


def images():
    return torch.randint(0, 256, (2, 1, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def pixels(mean=0.5, std=0.5):
    return ((images() / 255 - mean) / std).expand(-1, 3, -1, -1)


def brought(tmp_path, path, **options):
    """The folder of an import."""
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    return import_checkpoint(path, tmp_path / "ours", size=SIZE, tokenizer=tokenizer, **options)


def mgca(tmp_path, state=None, **options):
    return brought(
        tmp_path, write_lightning(tmp_path / "vit_base.ckpt", mgca_state() if state is None else state), **options
    )


def ids_of(model):
    return model.text_tower.tokens.encode(TEXTS)


def same(ours, theirs):
    torch.testing.assert_close(ours.detach(), theirs, atol=1e-5, rtol=1e-5)


def test_mgca_is_a_vit_and_a_bert_without_order_behind_their_heads(tmp_path):
    model, w = load_model(mgca(tmp_path)), mgca_state()
    tokens = by_hand.vit_tokens(pixels(), w, "img_encoder_q.model.")
    same(model.encode_image_features(images()), tokens[:, 0])
    image_embeds = by_hand.norm_head(tokens[:, 0], w, "img_encoder_q.global_embed.")
    same(model.encode_image(images()), functional.normalize(image_embeds))
    states = [by_hand.bert_layers(ids, w, "text_encoder_q.model.", ordered=False)[-1] for ids in ids_of(model)]
    first = torch.stack([state[0] for state in states])
    text_embeds = by_hand.norm_head(first, w, "text_encoder_q.global_embed.")
    same(model.encode_text(TEXTS), functional.normalize(text_embeds))


def test_mgcas_regions_words_and_prototypes_are_its_own(tmp_path):
    model, w = load_model(mgca(tmp_path)), mgca_state()
    parts = model.read(images(), TEXTS[:2])
    patches = by_hand.vit_tokens(pixels(), w, "img_encoder_q.model.")[:, 1:]
    same(parts.regions[1], by_hand.norm_head(patches[1], w, "img_encoder_q.local_embed."))
    states = by_hand.bert_layers(ids_of(model)[1], w, "text_encoder_q.model.", ordered=False)[-1]
    slots = torch.tensor(model.text_tower.tokens.slots(TEXTS[1:2])[0])
    words = torch.stack([states[slots == slot].sum(dim=0) for slot in range(1, int(slots.max()) + 1)])
    same(parts.words[1, : len(words)], by_hand.norm_head(words, w, "text_encoder_q.local_embed."))
    same(model.prototypes, w["prototype_layer.weight"])


def test_gloria_is_a_resnet_read_larger_and_words_of_four_layers(tmp_path):
    model, w = load_model(brought(tmp_path, write_gloria(tmp_path / "chexpert_resnet50.ckpt"))), gloria_state()
    large = functional.interpolate(pixels(), (74, 74), mode="bilinear", align_corners=True)  # as 224 to 299
    maps = by_hand.resnet_maps(large, w, "gloria.img_encoder.model.")
    features = maps[-1].mean(dim=(2, 3))
    same(model.encode_image_features(images()), features)
    same(
        model.encode_image(images()),
        functional.normalize(by_hand.linear(features, w, "gloria.img_encoder.global_embedder")),
    )
    every = [by_hand.bert_layers(ids, w, "gloria.text_encoder.model.") for ids in ids_of(model)]
    words = [torch.stack(layers[-4:]).sum(dim=0) for layers in every]
    same(model.encode_text(TEXTS), functional.normalize(torch.stack([states.sum(dim=0) for states in words])))
    parts = model.read(images(), TEXTS[:2])
    local = functional.conv2d(maps[-2], w["gloria.img_encoder.local_embedder.weight"])
    same(parts.regions, local.flatten(2).mT)
    same(parts.words[1, 0], words[1][0])


def test_foreign_settings_are_passed_over_and_no_file_without_leave(tmp_path):
    path = write_gloria(tmp_path / "theirs.ckpt")
    with pytest.raises(CheckpointError, match=r"names omegaconf_of_old.\w+, not only tensors"):
        read_foreign(path)
    assert isinstance(read_foreign(path, foreign=True)["hyper_parameters"], Unread)


def test_a_file_of_one_method_given_as_another_is_named_for_what_it_is(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"is a checkpoint of MGCA, not of gloria: it holds prototype_layer.weight"
    ):
        mgca(tmp_path, method="gloria")
    with pytest.raises(CheckpointError, match="is a checkpoint of the authors' CLEFT, not of mgca"):
        brought(tmp_path, write_official(tmp_path / "theirs.ckpt"), method="mgca")


def test_a_file_of_nobody_is_refused_with_its_names(tmp_path):
    path = write_lightning(tmp_path / "x.ckpt", {"fc.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"none of the checkpoints that are known: .*MGCA.* are called fc.weight"):
        brought(tmp_path, path)


def test_the_authors_own_checkpoints_are_brought_as_before(tmp_path):
    path = write_official(tmp_path / "theirs.ckpt")
    model = load_model(import_checkpoint(path, tmp_path / "ours", size=SIZE))
    assert model.encode_text(["1 2"]).shape == (1, 8)


def test_without_a_tokenizer_a_bert_reads_nothing(tmp_path):
    path = write_lightning(tmp_path / "vit_base.ckpt", mgca_state())
    with pytest.raises(ConfigError, match=r"MGCA's checkpoint holds no tokenizer; name the one .*: --tokenizer"):
        import_checkpoint(path, tmp_path / "ours", size=SIZE)
    with pytest.raises(ConfigError, match="--text-model x: MGCA's checkpoint holds its language model; leave it out"):
        mgca(tmp_path, text_model="x")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.update(queue=torch.ones(1)), "1 weights have no place: queue"),
        (lambda s: s.pop("img_encoder_q.model.blocks.1.norm2.bias"), "1 missing weights of the image tower"),
        (lambda s: s.pop("text_encoder_q.model.encoder.layer.1.output.dense.bias"), "1 missing: text_tower.lm.model"),
        (lambda s: s.update({"img_encoder_q.model.pos_embed": torch.ones(1, 8, 32)}), "7 image positions are not a sq"),
        (lambda s: s.update({"text_encoder_q.global_embed.head.3.bias": torch.ones(9)}), "1 of another shape or type"),
        (lambda s: s.pop("img_encoder_q.global_embed.head.3.weight"), "what is called image_projection.3.weight here"),
        (lambda s: s.update({"img_encoder_q.model.blocks.0.attn.qkv.bias": torch.ones(2)}), "1 weights have no place"),
    ],
)
def test_weights_that_do_not_find_their_place_are_listed(tmp_path, change, sentence):
    state = mgca_state()
    change(state)
    with pytest.raises(CheckpointError, match=rf"vit_base.ckpt, read as MGCA's checkpoint: .*{sentence}"):
        mgca(tmp_path, state)
    assert not (tmp_path / "ours").exists()


def test_a_larger_tokenizer_is_refused(tmp_path):
    state = mgca_state()
    table = "text_encoder_q.model.embeddings.word_embeddings.weight"
    state[table] = state[table][:5]
    with pytest.raises(CheckpointError, match="tokens and the language model 5; give the one it was trained with"):
        mgca(tmp_path, state)
