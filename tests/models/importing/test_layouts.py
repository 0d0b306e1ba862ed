import zipfile

import pytest
import torch
from tests.fakes import by_hand
from tests.fakes.official import official_state, write_official
from tests.fakes.published import (
    SIZE,
    TEXTS,
    clip_state,
    convirt_edreismd_state,
    convirt_mgca_state,
    convirt_state,
    dinov2_state,
    gloria_state,
    medclip_state,
    mgca_state,
    mrm_state,
    native_clip_state,
    token_count,
    write_gloria,
    write_jit_archive,
    write_lightning,
    write_merges,
    write_tokenizer,
    write_zip,
)
from torch.nn import functional

from cleft.config import load_run_settings
from cleft.errors import CheckpointError, ConfigError
from cleft.models.checkpoint import load_model
from cleft.models.image_classifier import load_image_classifier
from cleft.models.importing.importing import describe_reading, import_checkpoint
from cleft.models.importing.safe_load import Unread, load_foreign
from cleft.models.tokenizer import train_tokenizer


def images():
    return torch.randint(0, 256, (2, 1, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def pixels(mean=0.5, std=0.5):
    return ((images() / 255 - mean) / std).expand(-1, 3, -1, -1)


def brought(tmp_path, path, **options):
    """Imports a checkpoint and returns its folder."""
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    return import_checkpoint(path, tmp_path / "ours", size=SIZE, tokenizer=tokenizer, **options)


def mgca(tmp_path, state=None, **options):
    return brought(
        tmp_path, write_lightning(tmp_path / "vit_base.ckpt", mgca_state() if state is None else state), **options
    )


def ids_of(model):
    return model.text_tower.tokenizer.encode(TEXTS)


def same(ours, theirs):
    torch.testing.assert_close(ours.detach(), theirs, atol=1e-5, rtol=1e-5)


def test_mgca_is_a_vit_and_a_bert_without_positions(tmp_path):
    model, w = load_model(mgca(tmp_path)), mgca_state()
    tokens = by_hand.vit_tokens(pixels(), w, "img_encoder_q.model.")
    same(model.encode_image_features(images()), tokens[:, 0])
    image_embeds = by_hand.norm_head(tokens[:, 0], w, "img_encoder_q.global_embed.")
    same(model.encode_image(images()), functional.normalize(image_embeds))
    states = [by_hand.bert_layers(ids, w, "text_encoder_q.model.", ordered=False)[-1] for ids in ids_of(model)]
    first = torch.stack([state[0] for state in states])
    text_embeds = by_hand.norm_head(first, w, "text_encoder_q.global_embed.")
    same(model.encode_text(TEXTS), functional.normalize(text_embeds))


def test_mgcas_regions_words_and_prototypes_are_imported(tmp_path):
    model, w = load_model(mgca(tmp_path)), mgca_state()
    parts = model.encode_pairs(images(), TEXTS[:2])
    patches = by_hand.vit_tokens(pixels(), w, "img_encoder_q.model.")[:, 1:]
    same(parts.regions[1], by_hand.norm_head(patches[1], w, "img_encoder_q.local_embed."))
    states = by_hand.bert_layers(ids_of(model)[1], w, "text_encoder_q.model.", ordered=False)[-1]
    slots = torch.tensor(model.text_tower.tokenizer.word_slots(TEXTS[1:2])[0])
    words = torch.stack([states[slots == slot].sum(dim=0) for slot in range(1, int(slots.max()) + 1)])
    same(parts.words[1, : len(words)], by_hand.norm_head(words, w, "text_encoder_q.local_embed."))
    same(model.prototypes, w["prototype_layer.weight"])


def test_gloria_is_a_resnet_on_upsampled_images_and_words_of_four_layers(tmp_path):
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
    parts = model.encode_pairs(images(), TEXTS[:2])
    local = functional.conv2d(maps[-2], w["gloria.img_encoder.local_embedder.weight"])
    same(parts.regions, local.flatten(2).mT)
    same(parts.words[1, 0], words[1][0])


def test_glorias_smaller_resnet_is_imported(tmp_path):
    w = gloria_state(deep=False)
    model = load_model(brought(tmp_path, write_gloria(tmp_path / "chexpert_resnet18.ckpt", w)))
    large = functional.interpolate(pixels(), (74, 74), mode="bilinear", align_corners=True)
    maps = by_hand.resnet_maps(large, w, "gloria.img_encoder.model.")
    embeds = by_hand.linear(maps[-1].mean(dim=(2, 3)), w, "gloria.img_encoder.global_embedder")
    same(model.encode_image(images()), functional.normalize(embeds))
    local = functional.conv2d(maps[-2], w["gloria.img_encoder.local_embedder.weight"])
    same(model.encode_pairs(images(), TEXTS[:2]).regions, local.flatten(2).mT)


def test_mgcas_resnet_upsamples_images_and_weights_regions_equally(tmp_path):
    w = mgca_state("resnet")
    model = load_model(mgca(tmp_path, w))
    large = functional.interpolate(pixels(), (74, 74), mode="bilinear", align_corners=True)  # as 224 to 299
    maps = by_hand.resnet_maps(large, w, "img_encoder_q.model.")
    embeds = by_hand.norm_head(maps[-1].mean(dim=(2, 3)), w, "img_encoder_q.global_embed.")
    same(model.encode_image(images()), functional.normalize(embeds))
    parts = model.encode_pairs(images(), TEXTS[:2])
    same(parts.regions[1], by_hand.norm_head(maps[-2].flatten(2).mT[1], w, "img_encoder_q.local_embed."))
    same(parts.region_attention, torch.full((2, 19 * 19), 1 / 361))


def medclip(tmp_path, state):
    return load_model(brought(tmp_path, write_zip(tmp_path / "medclip-vit-pretrained.zip", state)))


def test_medclip_is_a_swin_and_three_layers_including_padding(tmp_path):
    w = medclip_state()
    model = medclip(tmp_path, w)
    features = by_hand.swin_tokens(pixels(0.58628, 0.2795), w, "vision_model.model.").mean(dim=1)
    same(model.encode_image_features(images()), features)
    same(
        model.encode_image(images()),
        functional.normalize(by_hand.linear(features, w, "vision_model.projection_head")),
    )
    every = ids_of(model)
    longest = max(map(len, every))
    means = []
    for ids in every:
        padding = longest - len(ids)
        filled = [*ids, *[model.text_tower.tokenizer.pad] * padding]
        layers = by_hand.bert_layers(filled, w, "text_model.model.", padding=padding)
        means.append(torch.stack([layers[number] for number in (1, 2, -1)]).mean(dim=(0, 1)))
    texts = by_hand.linear(torch.stack(means), w, "text_model.projection_head")
    same(model.encode_text(TEXTS), functional.normalize(texts))
    same(model.logit_scale, w["logit_scale"])


def test_medclip_with_a_resnet_and_a_biased_head_of_texts(tmp_path):
    w = medclip_state("resnet") | {"text_model.projection_head.bias": torch.ones(8)}
    model = medclip(tmp_path, w)
    features = by_hand.resnet_maps(pixels(0.58628, 0.2795), w, "vision_model.model.")[-1].mean(dim=(2, 3))
    same(model.encode_image(images()), functional.normalize(by_hand.linear(features, w, "vision_model.model.fc")))
    same(model.text_projection.bias, torch.ones(8))


def test_the_authors_clip_pools_patches_after_two_decoder_blocks(tmp_path):
    w = clip_state()
    model = load_model(brought(tmp_path, write_lightning(tmp_path / "last.ckpt", w)))
    at = "img_encoder_q.model."
    tokens = by_hand.linear(by_hand.vit_tokens(pixels(), w, at), w, f"{at}decoder_embed")
    tokens = tokens + w[f"{at}decoder_pos_embed"]
    for block in range(2):
        tokens = by_hand.vit_block(tokens, w, f"{at}decoder_blocks_feature.{block}.", heads=1)
    features = by_hand.layer_norm(tokens, w, f"{at}decoder_norm_feat", 1e-6)[:, 1:].mean(dim=1)
    same(model.encode_image_features(images()), features)
    image_embeds = by_hand.norm_head(features, w, "img_encoder_q.global_embed.")
    same(model.encode_image(images()), functional.normalize(image_embeds))
    first = [by_hand.bert_layers(ids, w, "text_encoder_q.model.", ordered=False)[-1][0] for ids in ids_of(model)]
    text_embeds = by_hand.norm_head(torch.stack(first), w, "text_encoder_q.global_embed.")
    same(model.encode_text(TEXTS), functional.normalize(text_embeds))
    same(model.logit_scale, w["logit_scale"])


def test_convirt_of_medclips_repository_uses_the_pooler(tmp_path):
    w = convirt_state()
    path = tmp_path / "pytorch_model.bin"
    torch.save(w, path)
    model = load_model(brought(tmp_path, path))
    features = by_hand.resnet_maps(pixels(0.58628, 0.2795), w, "image_model.")[-1].mean(dim=(2, 3))
    same(model.encode_image_features(images()), features)
    same(model.encode_image(images()), functional.normalize(by_hand.linear(features, w, "image_model.fc")))
    first = torch.stack([by_hand.bert_layers(ids, w, "text_model.")[-1][0] for ids in ids_of(model)])
    pooled = by_hand.linear(first, w, "text_model.pooler.dense").tanh()
    same(model.encode_text(TEXTS), functional.normalize(by_hand.linear(pooled, w, "text_projection_head")))


def test_convirt_of_edreismd_uses_the_mean_of_tokens(tmp_path):
    w = convirt_edreismd_state()
    path = tmp_path / "model.pth"
    torch.save(w, path)
    model = load_model(brought(tmp_path, path, method="convirt"))
    names = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2"}
    theirs = {name.removeprefix("res_features."): tensor for name, tensor in w.items()}
    resnet = {
        ".".join([names.get(name.partition(".")[0], ""), name.partition(".")[2]]): theirs[name] for name in theirs
    }
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    features = by_hand.resnet_maps((images() / 255 - mean) / std, resnet, "")[-1].mean(dim=(2, 3))
    image_embeds = by_hand.linear(by_hand.linear(features, w, "res_l1").relu(), w, "res_l2")
    same(model.encode_image(images()), functional.normalize(image_embeds))
    means = torch.stack([by_hand.bert_layers(ids, w, "bert_model.")[-1].mean(dim=0) for ids in ids_of(model)])
    text_embeds = by_hand.linear(by_hand.linear(means, w, "bert_l1").relu(), w, "bert_l2")
    same(model.encode_text(TEXTS), functional.normalize(text_embeds))


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_convirt_of_mgcas_repository_has_its_towers_and_heads(tmp_path, tower):
    w = convirt_mgca_state(tower)
    model = load_model(brought(tmp_path, write_lightning(tmp_path / "last.ckpt", w), method="convirt"))
    if tower == "vit":
        features = by_hand.vit_tokens(pixels(), w, "img_encoder.model.")[:, 0]
    else:
        large = functional.interpolate(pixels(), (74, 74), mode="bilinear", align_corners=True)
        features = by_hand.resnet_maps(large, w, "img_encoder.model.")[-1].mean(dim=(2, 3))
    image_embeds = by_hand.norm_head(features, w, "img_encoder.global_embed.")
    same(model.encode_image(images()), functional.normalize(image_embeds))
    first = [by_hand.bert_layers(ids, w, "text_encoder.model.", ordered=False)[-1][0] for ids in ids_of(model)]
    text_embeds = by_hand.norm_head(torch.stack(first), w, "text_encoder.global_embed.")
    same(model.encode_text(TEXTS), functional.normalize(text_embeds))


def write_mrm(tmp_path, **options):
    path = tmp_path / "MRM.pth"
    torch.save({"model": mrm_state(**options), "epoch": 199}, path)
    return path


@pytest.mark.parametrize("whole", [True, False])
def test_mrm_is_the_mean_of_the_patches_of_an_image_at_half_its_size(tmp_path, whole):
    w = mrm_state(whole=whole)
    path = write_mrm(tmp_path, whole=whole)
    model = load_image_classifier(import_checkpoint(path, tmp_path / "ours", size=SIZE, method="mrm"))
    large = torch.randint(0, 256, (2, 1, 112, 112), dtype=torch.uint8)
    seen = functional.interpolate(
        ((large / 255 - 0.4978) / 0.2449).expand(-1, 3, -1, -1), (SIZE, SIZE), mode="bicubic", antialias=True
    )
    same(model.encode_image_features(large), by_hand.vit_tokens(seen, w, "")[:, 1:].mean(dim=1))
    with pytest.raises(CheckpointError, match="no text tower, so there is no zero-shot"):
        load_model(tmp_path / "ours")


def test_a_vit_without_decoders_is_imported_as_mrm_only_if_named(tmp_path):
    torch.save({"model": mrm_state(whole=False)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="is not a known checkpoint"):
        import_checkpoint(tmp_path / "x.pth", tmp_path / "ours", size=SIZE)


def test_dinov2_of_the_hub_is_the_mean_of_all_tokens_before_the_norm(tmp_path):
    w = dinov2_state()
    torch.save(w, tmp_path / "dinov2_vitb14_reg4_pretrain.pth")
    folder = import_checkpoint(tmp_path / "dinov2_vitb14_reg4_pretrain.pth", tmp_path / "ours", size=70)
    model = load_image_classifier(folder)
    large = torch.randint(0, 256, (2, 1, 70, 70), dtype=torch.uint8)
    seen = ((large / 255 - 0.5) / 0.5).expand(-1, 3, -1, -1)
    same(model.encode_image_features(large), by_hand.vit_tokens(seen, w, "", norm=False).mean(dim=1))


@pytest.mark.parametrize("size", [70, 42])
def test_dinov2_without_registers_interpolates_positions_as_on_the_hub(tmp_path, size):
    w = dinov2_state(registers=False)
    torch.save(w, tmp_path / "dinov2_vitb14_pretrain.pth")
    folder = import_checkpoint(tmp_path / "dinov2_vitb14_pretrain.pth", tmp_path / "ours", size=size)
    large = torch.randint(0, 256, (2, 1, size, size), dtype=torch.uint8)
    seen = ((large / 255 - 0.5) / 0.5).expand(-1, 3, -1, -1)
    side = size // 14
    if size != 70:  # the hub asks for 0.1 patches more than there are
        grid = w["pos_embed"][:, 1:].unflatten(1, (5, 5)).permute(0, 3, 1, 2)
        grid = functional.interpolate(grid, scale_factor=((side + 0.1) / 5, (side + 0.1) / 5), mode="bicubic")
        w["pos_embed"] = torch.cat([w["pos_embed"][:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    same(
        load_image_classifier(folder).encode_image_features(large),
        by_hand.vit_tokens(seen, w, "", norm=False).mean(dim=1),
    )


def test_importing_a_vit_logs_nothing_about_its_pooler(tmp_path, caplog, capfd):
    import_checkpoint(write_mrm(tmp_path), tmp_path / "ours", size=SIZE)
    output = caplog.text + capfd.readouterr().err
    assert output == ""  # no progress bar of transformers either


def test_a_zip_with_several_checkpoints_or_a_bomb_is_refused(tmp_path):
    path = write_zip(tmp_path / "two.zip", {"a": torch.randn(100)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other.bin", b"x")
    with pytest.raises(CheckpointError, match=r"has 2 checkpoints: pytorch_model.bin, other.bin; unzip it"):
        import_checkpoint(path, tmp_path / "ours")
    with pytest.raises(
        CheckpointError, match=r"claims that pytorch_model.bin has .* weights do not compress that much"
    ):
        import_checkpoint(write_zip(tmp_path / "bomb.zip", {"a": torch.zeros(10**6)}), tmp_path / "ours")


def test_the_temperature_must_be_a_single_number(tmp_path):
    w = medclip_state()
    del w["logit_scale"]
    with pytest.raises(CheckpointError, match="it needs logit_scale, a single number"):
        medclip(tmp_path, w)


def test_objects_of_other_libraries_are_ignored_only_if_allowed(tmp_path):
    path = write_gloria(tmp_path / "theirs.ckpt")
    with pytest.raises(CheckpointError, match=r"names omegaconf_of_old.\w+, not only tensors"):
        load_foreign(path)
    assert isinstance(load_foreign(path, foreign=True)["hyper_parameters"], Unread)


def test_a_zip_without_a_torch_checkpoint_is_refused_under_its_own_name(tmp_path):
    path = tmp_path / "theirs.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(
        CheckpointError, match=r"theirs\.zip is a zip without a torch checkpoint, it contains readme\.txt"
    ):
        import_checkpoint(path, tmp_path / "ours")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inner/weights.bin", "torn")
    with pytest.raises(CheckpointError, match=r"^\S+/theirs\.zip \(weights\.bin\) is not a checkpoint of torch"):
        import_checkpoint(path, tmp_path / "ours")


def test_method_names_ignore_case_and_typos_get_a_suggestion(tmp_path):
    path = write_mrm(tmp_path)
    assert import_checkpoint(path, tmp_path / "ours", size=SIZE, method="MRM").is_dir()
    with pytest.raises(ConfigError, match=r"--method 'mcga' is unknown; did you mean 'mgca'\?; known"):
        import_checkpoint(path, tmp_path / "theirs", method="mcga")


def test_preprocessing_is_described_in_one_line(tmp_path):
    of_mrm = import_checkpoint(write_mrm(tmp_path), tmp_path / "ours", size=SIZE)
    assert describe_reading(load_run_settings(of_mrm)) == (
        "reads images of 112 pixels, brought to 56 (mean 0.498, deviation 0.245)"
    )
    path = write_jit_archive(tmp_path / "ViT.pt", native_clip_state())
    merges = write_merges(tmp_path / "bpe_simple_vocab_16e6.txt.gz")
    of_clip = import_checkpoint(path, tmp_path / "clip", tokenizer=merges)
    said = describe_reading(load_run_settings(of_clip))
    assert "(mean 0.481 0.458 0.408, deviation 0.269 0.261 0.276); texts of up to 24 tokens; temperature 0.0143" in said
    assert said.endswith("activation quick_gelu")


def test_a_file_given_as_another_method_is_recognised(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a checkpoint of MGCA, not of gloria: it has prototype_layer.weight"):
        mgca(tmp_path, method="gloria")
    with pytest.raises(CheckpointError, match="is a checkpoint of the authors' CLEFT, not of mgca"):
        brought(tmp_path, write_official(tmp_path / "theirs.ckpt"), method="mgca")


def test_an_unknown_file_is_refused_with_its_weight_names(tmp_path):
    path = write_lightning(tmp_path / "x.ckpt", {"fc.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"is not a known checkpoint .*MGCA.* are named fc.weight"):
        brought(tmp_path, path)


def test_the_authors_own_checkpoints_are_imported(tmp_path):
    path = write_official(tmp_path / "theirs.ckpt")
    model = load_model(import_checkpoint(path, tmp_path / "ours", size=SIZE))
    assert model.encode_text(["1 2"]).shape == (1, 8)


def test_a_bert_needs_a_tokenizer(tmp_path):
    path = write_lightning(tmp_path / "vit_base.ckpt", mgca_state())
    with pytest.raises(ConfigError, match=r"this checkpoint of MGCA has no tokenizer; name the one .*: --tokenizer"):
        import_checkpoint(path, tmp_path / "ours", size=SIZE)
    with pytest.raises(ConfigError, match=r"--text-model x is for the authors' own .*, but this is one of MGCA; le"):
        mgca(tmp_path, text_model="x")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.update(queue=torch.ones(1)), "1 weight has no target: queue"),
        (lambda s: s.pop("img_encoder_q.model.blocks.1.norm2.bias"), "1 missing weight of the image tower"),
        (
            lambda s: s.update({"img_encoder_q.model.norm.bias": torch.ones(9)}),
            "1 mismatched weight of the image tower",
        ),
        (lambda s: s.pop("text_encoder_q.model.encoder.layer.1.output.dense.bias"), "1 missing: text_tower.lm.model"),
        (lambda s: s.update({"img_encoder_q.model.pos_embed": torch.ones(1, 8, 32)}), "7 image positions are not a sq"),
        (
            lambda s: s.update({"text_encoder_q.global_embed.head.3.bias": torch.ones(9)}),
            "1 with another shape or dtype",
        ),
        (lambda s: s.pop("img_encoder_q.global_embed.head.3.weight"), "lacks the weight of image_projection.3.weight"),
        (lambda s: s.update({"img_encoder_q.model.blocks.0.attn.qkv.bias": torch.ones(2)}), "1 weight has no target"),
    ],
)
def test_weights_without_a_target_are_listed(tmp_path, change, sentence):
    state = mgca_state()
    change(state)
    with pytest.raises(CheckpointError, match=rf"vit_base.ckpt, read as a checkpoint of MGCA: .*{sentence}"):
        mgca(tmp_path, state)
    assert not (tmp_path / "ours").exists()


def test_an_invalid_tokenizer_is_refused(tmp_path):
    path = write_lightning(tmp_path / "theirs.ckpt", mgca_state())
    causal = train_tokenizer(TEXTS, causal=True)
    causal.save_pretrained(tmp_path / "causal")
    (tmp_path / "empty").mkdir()
    for tokenizer, sentence in {
        path: r"the tokenizer '\S+theirs\.ckpt' is a file; give the folder with its tokenizer\.json",
        tmp_path / "empty": r"no tokenizer at '\S+empty': it contains none of tokenizer\.json, ",
        tmp_path
        / "nowhere": "it is neither a folder, nor in the local cache, nor can it be downloaded; give the folder",
        tmp_path / "causal": "adds no token before a text, unlike that of MGCA; give .* such as emilyalsentzer/Bio",
    }.items():
        with pytest.raises(CheckpointError, match=sentence):
            import_checkpoint(path, tmp_path / "ours", tokenizer=tokenizer)
    assert not (tmp_path / "ours").exists()


def test_a_smaller_tokenizer_gives_a_warning(tmp_path, caplog):
    smaller = train_tokenizer(TEXTS[1:2], causal=False)
    smaller.save_pretrained(tmp_path / "small")
    path = write_lightning(tmp_path / "theirs.ckpt", mgca_state())
    import_checkpoint(path, tmp_path / "ours", size=SIZE, tokenizer=tmp_path / "small")
    assert f"small' has {len(smaller)} tokens and the language model {token_count()}; make sure" in caplog.text


def test_a_larger_tokenizer_is_refused(tmp_path):
    state = mgca_state()
    table = "text_encoder_q.model.embeddings.word_embeddings.weight"
    state[table] = state[table][:5]
    with pytest.raises(CheckpointError, match="tokens and the language model 5; give the one it was trained with"):
        mgca(tmp_path, state)


@pytest.mark.parametrize(
    ("state", "method"),
    [
        (mgca_state, None),
        (gloria_state, None),
        (medclip_state, None),
        (clip_state, None),
        (convirt_state, None),
        (convirt_edreismd_state, None),
        (convirt_mgca_state, "convirt"),
        (mrm_state, "mrm"),
        (dinov2_state, None),
        (official_state, None),
    ],
)
def test_wrapper_names_are_removed_for_every_method(tmp_path, state, method):
    plain = state()
    wrapped = {f"module._orig_mod.{name.replace('.', '._orig_mod.', 1)}": tensor for name, tensor in plain.items()}
    folders = []
    for name, weights in (("plain", plain), ("wrapped", wrapped)):
        (tmp_path / name).mkdir()
        tokenizer = {} if state is official_state else {"tokenizer": write_tokenizer(tmp_path / name / "tokenizer")}
        path = write_lightning(tmp_path / name / "file.ckpt", weights)
        folders.append(import_checkpoint(path, tmp_path / name / "ours", size=SIZE, method=method, **tokenizer))
    one, other = (folder / "model.safetensors" for folder in folders)
    assert one.read_bytes() == other.read_bytes()


def test_one_weight_under_two_names_is_refused(tmp_path):
    state = mgca_state()
    name = "img_encoder_q.model.cls_token"
    with pytest.raises(CheckpointError, match=rf"has .*{name}.* and '_orig_mod.{name}', which are the same weight"):
        mgca(tmp_path, {**state, f"_orig_mod.{name}": state[name]})
