"""Imported CLIP checkpoints give the embeddings of their original implementation."""

import gzip
import json
import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.fakes import by_hand
from tests.fakes.published import (
    MERGES,
    SIZE,
    TEXTS,
    biomedclip_state,
    jit_numbers,
    native_clip_state,
    write_biomedclip,
    write_jit_archive,
    write_merges,
    write_open_clip,
    write_openai_clip,
    write_tokenizer,
)
from torch.nn import functional
from transformers import AutoTokenizer, CLIPImageProcessorPil

from cleft.errors import CheckpointError, ConfigError
from cleft.models.checkpoint import load_model
from cleft.models.importing.clip import load_merges
from cleft.models.importing.importing import import_checkpoint
from cleft.models.tokenizer import load_tokenizer


def images():
    """Images of twice the input size of CLIP."""
    shape = (2, 1, 2 * SIZE, 2 * SIZE)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def same(ours, theirs):
    torch.testing.assert_close(ours.detach(), theirs.detach(), atol=1e-5, rtol=1e-5)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "clip-vit-tiny"


def test_embeddings_are_those_of_transformers(folder, tmp_path):
    theirs = write_openai_clip(folder)
    ours = load_model(import_checkpoint(folder, tmp_path / "ours"))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    pixels = functional.interpolate((images() / 255 - mean) / std, (SIZE, SIZE), mode="bicubic", antialias=True)
    same(ours.encode_image(images()), functional.normalize(theirs.get_image_features(pixels).pooler_output))
    words = AutoTokenizer.from_pretrained(folder)(TEXTS, padding="max_length", max_length=24, truncation=True)
    ids, mask = torch.tensor(words["input_ids"]), torch.tensor(words["attention_mask"])
    same(ours.encode_text(TEXTS), functional.normalize(theirs.get_text_features(ids, mask).pooler_output))
    same(ours.logit_scale, theirs.logit_scale)


def test_pixels_are_those_of_its_processor_but_for_rounding(folder, tmp_path):
    write_openai_clip(folder)
    tower = load_model(import_checkpoint(folder, tmp_path / "ours")).image_tower
    smooth = functional.avg_pool2d(images().float(), 9, stride=1, padding=4).round().to(torch.uint8)
    pictures = [Image.fromarray(np.repeat(image[0, :, :, None].numpy(), 3, axis=2)) for image in smooth]
    theirs = CLIPImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")["pixel_values"]
    ours = tower.resize(tower.normalise(smooth))
    assert (ours - theirs).abs().max() < 1.01 / 255 / 0.2613  # one step of gray


def test_a_text_longer_than_the_positions_ends_in_its_end_token(folder, tmp_path):
    theirs = write_openai_clip(folder)
    ours = load_model(import_checkpoint(folder, tmp_path / "ours"))
    long = "pneumothorax of the left side and edema"
    words = AutoTokenizer.from_pretrained(folder)([long], max_length=24, truncation=True)["input_ids"]
    assert ours.text_tower.tokenizer.encode([long]) == words
    with torch.no_grad():
        features = theirs.get_text_features(torch.tensor(words)).pooler_output
    same(ours.encode_text([long]), functional.normalize(features))


def test_a_learned_context_precedes_class_names(folder, tmp_path):
    write_openai_clip(folder)
    ours = load_model(import_checkpoint(folder, tmp_path / "ours"))
    tower = ours.text_tower
    opening = torch.tensor(tower.tokenizer.encode_prompt("a"))
    name = torch.tensor(tower.tokenizer.encode_class_names(["edema"])[0])
    written = tower.embed_prompt("a")
    start = torch.tensor(tower.tokenizer.prefix_ids)
    with torch.no_grad():
        states = tower.lm.model(torch.cat([start, opening, name])[None]).last_hidden_state
    same(tower.encode_after_context(["edema"], written), states[:, -1])
    context = written.clone().requires_grad_()
    tower.encode_after_context(["edema"], context).sum().backward()
    assert context.grad is not None
    assert context.grad.abs().sum() > 0


def test_older_weights_files_with_buffers_are_imported(folder, tmp_path):
    theirs = write_openai_clip(folder, pixels=False)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for tower, count in (("vision", 17), ("text", 24)):
        state[f"{tower}_model.embeddings.position_ids"] = torch.arange(count)[None]
    torch.save(state, folder / "pytorch_model.bin")
    ours = load_model(import_checkpoint(folder, tmp_path / "ours"))
    same(ours.image_projection.weight, theirs.visual_projection.weight)
    assert ours.image_spec.mean == (0.48145466, 0.4578275, 0.40821073)
    assert ours.logit_scale.item() == pytest.approx(theirs.logit_scale.item())
    assert math.isfinite(ours.encode_image(images()).sum().item())


def test_size_and_tokenizer_may_differ_from_the_folder(folder, tmp_path):
    write_openai_clip(folder, tokenizer=False)
    with pytest.raises(ConfigError, match=r"OpenAI's CLIP has no tokenizer; .* such as openai/clip-vit-base-patch16"):
        import_checkpoint(folder, tmp_path / "ours")
    write_openai_clip(tmp_path / "whole")
    path = folder / "model.safetensors"
    ours = load_model(import_checkpoint(path, tmp_path / "ours", size=28, tokenizer=tmp_path / "whole"))
    assert ours.image_spec.size == (56, 56)
    with pytest.raises(CheckpointError, match="bert' has no EOS token, unlike that of OpenAI's CLIP; give the"):
        import_checkpoint(folder, tmp_path / "ours", tokenizer=write_tokenizer(tmp_path / "bert"))


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("config.json", {"model_type": "chinese_clip"}, "is of a 'chinese_clip' model, not of CLIP"),
        ("config.json", {"vision_config": 3}, "has vision_config: '3', which must be an object"),
        ("config.json", {"vision_config": {"image_size": "x"}}, "has image_size: 'x', which must be an integer"),
        ("preprocessor_config.json", {"image_mean": [1, 2]}, r"has image_mean: \[1, 2\], which must be three num"),
        ("preprocessor_config.json", {"image_std": "abc"}, "has image_std: 'abc', which must be three num"),
    ],
)
def test_configurations_next_to_the_weights_are_checked(folder, tmp_path, name, changes, sentence):
    write_openai_clip(folder)
    edit(folder / name, **changes)
    with pytest.raises(CheckpointError, match=sentence):
        import_checkpoint(folder, tmp_path / "ours")


def test_clip_weights_need_their_configuration(folder, tmp_path):
    write_openai_clip(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config.json: an object expected, found a list"):
        import_checkpoint(folder, tmp_path / "ours")
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json is not valid JSON"):
        import_checkpoint(folder, tmp_path / "ours")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"must be next to config.json, .* OpenAI's CLIP; download the complete"):
        import_checkpoint(folder, tmp_path / "ours")
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="is a truncated or corrupt safetensors file"):
        import_checkpoint(folder, tmp_path / "ours")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has none of model.safetensors, .*; give its weights file"):
        import_checkpoint(folder, tmp_path / "ours")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.update({"text_model.head.weight": torch.ones(1)}), "1 weight has no target: text_model.head.wei"),
        (lambda s: s.pop("text_projection.weight"), "1 missing: text_projection.weight"),
        (lambda s: s.pop("vision_model.pre_layrnorm.bias"), "1 missing weight of the image tower: pre_layrnorm.bias"),
        (lambda s: s.update({"text_model.final_layer_norm.bias": torch.ones(9)}), "1 with another shape or dtype"),
        (lambda s: s.update({"logit_scale": torch.ones(2)}), "needs logit_scale, a single number"),
    ],
)
def test_clip_weights_without_a_target_are_listed(folder, tmp_path, change, sentence):
    write_openai_clip(folder)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"read as a checkpoint of OpenAI's CLIP: .*{sentence}"):
        import_checkpoint(folder, tmp_path / "ours")


def test_openais_clip_is_not_the_authors_clip(folder, tmp_path):
    write_openai_clip(folder)
    with pytest.raises(CheckpointError, match="is a checkpoint of OpenAI's CLIP, not of clip: it has vision_model"):
        import_checkpoint(folder, tmp_path / "ours", method="clip")


CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CHEXZERO = ([101.48761 / 255] * 3, [83.43944 / 255] * 3)


def pixels(mean, std):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    return functional.interpolate((images() / 255 - mean) / std, (SIZE, SIZE), mode="bicubic", antialias=True)


def embeds_alike(folder, weights, pixels, *, quick=True, heads=(2, 3), at=""):
    """Checks the embeddings of a model folder against the weights, computed step by step."""
    model = load_model(folder)
    same(
        model.encode_image(images()),
        functional.normalize(by_hand.clip_image(pixels, weights, quick=quick, heads=heads[0])),
    )
    every = model.text_tower.tokenizer.encode(TEXTS)
    texts = [by_hand.clip_text(ids, weights, quick=quick, heads=heads[1], at=at) for ids in every]
    same(model.encode_text(TEXTS), functional.normalize(torch.stack(texts)))
    same(model.logit_scale, weights["logit_scale"].float())


@pytest.fixture
def merges(tmp_path):
    return write_merges(tmp_path / "bpe_simple_vocab_16e6.txt.gz")


def test_openais_archive_gives_the_embeddings_of_its_weights(tmp_path, merges):
    state = native_clip_state()
    path = write_jit_archive(tmp_path / "ViT-B-32.pt", state)
    ours = import_checkpoint(path, tmp_path / "ours", tokenizer=merges)
    halves = {name: tensor.half().float() for name, tensor in state.items()}
    embeds_alike(ours, halves, pixels(*CLIP))
    assert load_model(ours).image_projection.weight.dtype == torch.float16
    assert load_model(ours, float32=True).image_projection.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("method", "statistics"), [("openai-clip", CLIP), ("chexzero", CHEXZERO), ("pubmedclip", IMAGENET)]
)
def test_models_fine_tuned_from_openais_weights_need_a_method(tmp_path, merges, method, statistics):
    state = native_clip_state()
    torch.save(state, tmp_path / "best_64_0.0001_original_17000_0.863.pt")
    path = tmp_path / "best_64_0.0001_original_17000_0.863.pt"
    embeds_alike(
        import_checkpoint(path, tmp_path / "ours", method=method, tokenizer=merges), state, pixels(*statistics)
    )


def test_half_precision_checkpoints_of_pubmedclip_are_imported(tmp_path, merges):
    state = {name: tensor.half() for name, tensor in native_clip_state().items()}
    torch.save({"best_epoch": 3, "state_dict": state, "best_loss": 0.5}, tmp_path / "best_model.pth")
    ours = import_checkpoint(tmp_path / "best_model.pth", tmp_path / "ours", method="pubmedclip", tokenizer=merges)
    embeds_alike(ours, {name: tensor.float() for name, tensor in state.items()}, pixels(*IMAGENET))


def test_training_checkpoints_of_open_clip_are_imported(tmp_path, merges):
    state = native_clip_state()
    masked = {**state, "attn_mask": torch.full((24, 24), -torch.inf).triu(1)}
    content = {"epoch": 3, "name": "mine", "state_dict": {f"module.{name}": masked[name] for name in masked}}
    torch.save({**content, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-5}]}}, tmp_path / "epoch_3.pt")
    ours = import_checkpoint(tmp_path / "epoch_3.pt", tmp_path / "ours", method="open-clip", tokenizer=merges)
    embeds_alike(ours, state, pixels(*CLIP), quick=False)


@pytest.mark.parametrize("at", ["", "text."])
@pytest.mark.parametrize("quick", [True, False])
def test_a_configuration_of_open_clip_is_used(tmp_path, merges, at, quick):
    folder = write_open_clip(tmp_path / "theirs", text=at, **({"quick_gelu": True} if quick else {}))
    ours = import_checkpoint(folder, tmp_path / "ours", tokenizer=merges)
    statistics = ([0.48, 0.46, 0.41], [0.27, 0.26, 0.28])
    embeds_alike(ours, native_clip_state(at), pixels(*statistics), quick=quick, heads=(4, 6), at=at)


def test_a_configuration_may_have_only_activation_and_normalisation(tmp_path, merges):
    folder = write_open_clip(tmp_path / "theirs")
    said = {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": {"mean": [0.4] * 3, "std": [0.3] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(said))
    ours = import_checkpoint(folder, tmp_path / "ours", tokenizer=merges)
    embeds_alike(ours, native_clip_state(), pixels([0.4] * 3, [0.3] * 3))


def test_safetensors_of_open_clip_with_a_tokenizer_are_imported(tmp_path, merges):
    state = native_clip_state()
    folder = write_open_clip(tmp_path / "theirs")
    (folder / "open_clip_pytorch_model.bin").unlink()
    save_file(state, folder / "open_clip_model.safetensors")
    first = import_checkpoint(folder, tmp_path / "first", tokenizer=merges)
    load_model(first).text_tower.tokenizer.save(folder)
    embeds_alike(
        import_checkpoint(folder, tmp_path / "second"),
        state,
        pixels([0.48, 0.46, 0.41], [0.27, 0.26, 0.28]),
        quick=False,
        heads=(4, 6),
    )


def test_numbers_of_the_archive_among_the_weights_are_ignored(tmp_path, merges):
    state = native_clip_state()
    torch.save({**state, **jit_numbers()}, tmp_path / "clip.pt")
    embeds_alike(import_checkpoint(tmp_path / "clip.pt", tmp_path / "ours", tokenizer=merges), state, pixels(*CLIP))


def test_tokens_after_the_end_do_not_change_a_text():
    state = native_clip_state()
    last = len(state["token_embedding.weight"]) - 1
    features = by_hand.clip_text([last - 1, 5, last], state, quick=True, heads=3)
    same(by_hand.clip_text([last - 1, 5, last, last, last, 7], state, quick=True, heads=3), features)


def test_an_unknown_activation_is_refused(tmp_path, merges):
    torch.save(native_clip_state(), tmp_path / "clip.pt")
    with pytest.raises(
        CheckpointError,
        match=r"clip.pt must be next to open_clip_config.json, which defines the preprocessing of open_clip; "
        r"download the complete folder, or name the method: --method openai-clip, chexzero or .* or --method open-clip",
    ):
        import_checkpoint(tmp_path / "clip.pt", tmp_path / "ours", tokenizer=merges)
    folder = write_open_clip(tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="has the activation gelu, but this method quick_gelu; leave --meth"):
        import_checkpoint(folder, tmp_path / "ours", method="chexzero", tokenizer=merges)


def test_a_missing_tokenizer_is_reported(tmp_path):
    path = write_jit_archive(tmp_path / "ViT-B-32.pt", native_clip_state())
    with pytest.raises(ConfigError, match=r"has no tokenizer; .* or CLIP's bpe_simple_vocab_16e6.txt.gz"):
        import_checkpoint(path, tmp_path / "ours")


@pytest.mark.parametrize(
    ("part", "name", "value", "sentence"),
    [
        ("vision_cfg", "no_ln_pre", True, "has no_ln_pre: True, but only open_clip's usual ViT"),
        ("vision_cfg", "pool_type", "avg", "has pool_type: 'avg', but only"),
        ("text_cfg", "no_causal_mask", True, "has no_causal_mask: True, but only"),
        ("text_cfg", "hf_model_name", "roberta-base", "has hf_model_name: 'roberta-base', but only"),
        ("text_cfg", "hf_tokenizer_name", "xlm", "has hf_tokenizer_name: 'xlm', but only"),
        ("text_cfg", "width", 512, "has width: 512, but its weights are 192 wide; is it of another model"),
        ("text_cfg", "heads", 7, "has 7 heads, which do not divide the width 192"),
        ("vision_cfg", "head_width", "x", "has head_width: 'x', which must be an integer"),
    ],
)
def test_unsupported_options_of_open_clip_are_refused(tmp_path, merges, part, name, value, sentence):
    folder = write_open_clip(tmp_path / "theirs")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"][part][name] = value
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"read as a checkpoint of open_clip: .*{sentence}"):
        import_checkpoint(folder, tmp_path / "ours", tokenizer=merges)


def wide(state):
    """A ViT of an unusual width."""
    return {name: tensor[..., :120] if name.startswith("visual.pos") else tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: {**s, "logit_bias": torch.ones(1)}, "1 weight has no target: logit_bias"),
        (lambda s: {**s, "visual.attn_pool.probe": torch.ones(1)}, "1 weight has no target: visual.attn_pool.probe"),
        (lambda s: without(s, "text_projection"), "1 missing: text_projection.weight"),
        (lambda s: without(s, "visual.ln_pre.bias"), "1 missing weight of the image tower: pre_layrnorm.bias"),
        (
            lambda s: without(s, "visual.conv1.weight"),
            "needs image_tower.model.embeddings.patch_embedding.weight",
        ),
        (lambda s: {**s, "ln_final.bias": torch.ones(9)}, "1 with another shape or dtype: text_tower"),
        (lambda s: {**s, "visual.proj": torch.ones(9)}, "2 with another shape or dtype: image_projection.weight, te"),
        (lambda s: {**s, "visual.positional_embedding": torch.ones(12, 128)}, "its 11 image positions are not a squa"),
        (
            lambda s: {**s, "transformer.resblocks.0.attn.in_proj_bias": torch.ones(7)},
            "1 weight has no target: transf",
        ),
        (lambda s: without(s, "logit_scale"), "needs logit_scale, a single number"),
        (wide, "number of attention heads is unknown for width 120; put its open_clip_config.json next to it"),
    ],
)
def test_weights_without_a_target_are_listed(tmp_path, merges, change, sentence):
    torch.save(change(native_clip_state()), tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match=rf"read as a checkpoint of OpenAI's CLIP: .*{sentence}"):
        import_checkpoint(tmp_path / "clip.pt", tmp_path / "ours", method="openai-clip", tokenizer=merges)


def without(state, name):
    return {other: tensor for other, tensor in state.items() if other != name}


def test_a_clip_with_a_resnet_is_named(tmp_path):
    state = {"visual.attnpool.q_proj.weight": torch.ones(2), "visual.layer1.0.conv1.weight": torch.ones(2)}
    torch.save(state, tmp_path / "RN50.pt")
    with pytest.raises(
        CheckpointError, match=r"RN50.pt is a CLIP with a ResNet \(such as RN50: .* give one with a ViT"
    ):
        import_checkpoint(tmp_path / "RN50.pt", tmp_path / "ours", method="openai-clip")
    with pytest.raises(CheckpointError, match="is a CLIP with a ResNet"):
        import_checkpoint(write_jit_archive(tmp_path / "RN101.pt", state), tmp_path / "ours")


def test_a_clip_given_as_another_is_named(tmp_path):
    archive = write_jit_archive(tmp_path / "ViT-B-32.pt", native_clip_state())
    for method in ("chexzero", "open-clip", "mgca"):
        with pytest.raises(CheckpointError, match=f"checkpoint of OpenAI's CLIP, not of {method}: it has input_reso"):
            import_checkpoint(archive, tmp_path / "ours", method=method)
    torch.save(native_clip_state(), tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match=r"is a checkpoint of open_clip, not of gloria: it has visual.class_em"):
        import_checkpoint(tmp_path / "clip.pt", tmp_path / "ours", method="gloria")
    write_openai_clip(tmp_path / "folder")
    with pytest.raises(CheckpointError, match="is a checkpoint of OpenAI's CLIP, not of chexzero: it has vision_mod"):
        import_checkpoint(tmp_path / "folder", tmp_path / "ours", method="chexzero")
    torch.save(biomedclip_state(), tmp_path / "biomed.bin")
    with pytest.raises(CheckpointError, match=r"is a checkpoint of BiomedCLIP, not of open-clip: it has visual.tru"):
        import_checkpoint(tmp_path / "biomed.bin", tmp_path / "ours", method="open-clip")


def test_biomedclip_is_a_vit_and_a_bert_with_class_tokens(tmp_path):
    w = biomedclip_state()
    model = load_model(import_checkpoint(write_biomedclip(tmp_path / "theirs"), tmp_path / "ours"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.48, 0.46, 0.41], [0.27, 0.26, 0.28]))
    pixels = functional.interpolate((images() / 255 - mean) / std, (SIZE, SIZE), mode="bicubic", antialias=True)
    features = by_hand.vit_tokens(pixels, w, "visual.trunk.")[:, 0]
    same(model.encode_image_features(images()), features)
    same(model.encode_image(images()), functional.normalize(by_hand.linear(features, w, "visual.head.proj")))
    every = model.text_tower.tokenizer.encode(TEXTS)
    first = torch.stack([by_hand.bert_layers(ids, w, "text.transformer.")[-1][0] for ids in every])
    hidden = functional.gelu(by_hand.linear(first, w, "text.proj.0"))
    same(model.encode_text(TEXTS), functional.normalize(by_hand.linear(hidden, w, "text.proj.2")))
    same(model.logit_scale, w["logit_scale"])
    assert model.text_tower.config.max_tokens == 40


def test_safetensors_of_biomedclip_are_imported(tmp_path):
    folder = write_biomedclip(tmp_path / "theirs")
    (folder / "open_clip_pytorch_model.bin").unlink()
    save_file(biomedclip_state(), folder / "open_clip_model.safetensors")
    model = load_model(import_checkpoint(folder, tmp_path / "ours", method="biomedclip"))
    same(model.image_projection.weight, biomedclip_state()["visual.head.proj.weight"])


@pytest.mark.parametrize(
    ("tower", "name", "value", "sentence"),
    [
        ("vision_cfg", "timm_pool", "avg", r"has timm_pool: 'avg', but only '' or 'token' is supported"),
        ("vision_cfg", "timm_proj", "mlp", r"has timm_proj: 'mlp', but only 'linear' is supported"),
        ("text_cfg", "hf_pooler_type", "mean_pooler", r"has hf_pooler_type: 'mean_pooler', but only 'cls_last"),
        ("text_cfg", "hf_proj_type", None, r"has hf_proj_type: None, but only 'mlp' is supported"),
        ("text_cfg", "context_length", "long", r"has context_length: 'long', which must be an integer"),
    ],
)
def test_unsupported_options_of_biomedclip_are_refused(tmp_path, tower, name, value, sentence):
    folder = write_biomedclip(tmp_path / "theirs")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"][tower][name] = value
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"read as a checkpoint of BiomedCLIP: .*{sentence}"):
        import_checkpoint(folder, tmp_path / "ours")


def test_biomedclip_needs_its_configuration(tmp_path):
    folder = write_biomedclip(tmp_path / "theirs")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ConfigError, match=r"BiomedCLIP has no tokenizer; .* such as microsoft/BiomedNLP-BiomedBERT"):
        import_checkpoint(folder, tmp_path / "ours")
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"must be next to open_clip_config.json, .* BiomedCLIP;"):
        import_checkpoint(folder / "open_clip_pytorch_model.bin", tmp_path / "ours")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.update({"text.proj.1.weight": torch.ones(1)}), "1 weight has no target: text.proj.1.weight"),
        (lambda s: s.pop("visual.trunk.norm.bias"), "1 missing weight of the image tower"),
        (lambda s: s.pop("text.transformer.encoder.layer.1.output.dense.bias"), "1 missing: text_tower.lm.model"),
        (
            lambda s: s.update({"text.proj.2.weight": torch.ones(9, 20)}),
            "1 with another shape or dtype: text_projection",
        ),
    ],
)
def test_biomedclip_weights_without_a_target_are_listed(tmp_path, change, sentence):
    state = biomedclip_state()
    change(state)
    folder = write_biomedclip(tmp_path / "theirs", state)
    with pytest.raises(CheckpointError, match=rf"read as a checkpoint of BiomedCLIP: .*{sentence}"):
        import_checkpoint(folder, tmp_path / "ours")


WHOLE = 512 + len(MERGES) + 2
SPELLINGS = [
    "Chest X-ray: a chest   x ray\twith edema.",
    "edema",
    "EDEMA, it's 12 ribs (3rd)!?",
    "the patient's ribs; don't",
    "37°C – œdème",
    "ch che ches chest",
]


def letters():
    """A character for each byte: its own if it is printable, otherwise one above 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    order = {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(rest)}
    return order


def bpe_by_hand(text):
    """Words, then bytes, then the earliest merge of two neighbours until none is left."""
    ranks = {tuple(merge.split()): rank for rank, merge in enumerate(MERGES)}
    vocabulary = [*letters().values(), *(f"{letter}</w>" for letter in letters().values())]
    vocabulary += ["".join(pair) for pair in ranks]
    ids = []
    for word in re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+", " ".join(text.split()).lower()):
        parts = [letters()[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while pairs := [pair for pair in pairwise(parts) if pair in ranks]:
            first = min(pairs, key=ranks.__getitem__)
            at = next(i for i in range(len(parts) - 1) if (parts[i], parts[i + 1]) == first)
            parts[at : at + 2] = ["".join(first)]
        ids += [vocabulary.index(part) for part in parts]
    return ids


def test_texts_are_tokenised_as_by_hand(merges):
    tokenizer = load_merges(merges, WHOLE)
    assert tokenizer(SPELLINGS, add_special_tokens=False)["input_ids"] == [bpe_by_hand(text) for text in SPELLINGS]
    assert bpe_by_hand("chest") == [512 + MERGES.index("che s"), 256 + ord("t") - 33]


def test_a_text_is_enclosed_in_the_two_last_tokens(merges):
    tokenizer = load_merges(merges, WHOLE)
    assert len(tokenizer) == WHOLE
    assert tokenizer("a")["input_ids"] == [WHOLE - 2, 256 + ord("a") - 33, WHOLE - 1]
    assert tokenizer.eos_token_id == WHOLE - 1


def test_the_tokenizer_is_unchanged_when_saved_and_loaded(merges, tmp_path):
    load_merges(merges, WHOLE).save_pretrained(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again(SPELLINGS)["input_ids"] == load_merges(merges, WHOLE)(SPELLINGS)["input_ids"]
    assert len(again) == WHOLE


def test_the_vocabulary_size_decides_the_number_of_merges(merges):
    fewer = load_merges(merges, WHOLE - 8)
    assert fewer("ede", add_special_tokens=False)["input_ids"] == [513 - 1, 256 + ord("e") - 33]
    with pytest.raises(CheckpointError, match=r"has 13 merges but the text tower has 528 tokens, 14 of them merges"):
        load_merges(merges, 528)
    with pytest.raises(CheckpointError, match="has 13 merges but the text tower has 100 tokens"):
        load_merges(merges, 100)


@pytest.mark.parametrize(
    "content",
    [b"#version: 0.2\ne d\n", gzip.compress(b"\xff\xfe"), gzip.compress(b"e d\n" * 99)[:20]],
    ids=["plain", "no text", "cut off"],
)
def test_invalid_merges_files_are_refused(tmp_path, content):
    (tmp_path / "merges.gz").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is not a gzip file of merges .*; give CLIP's bpe_simple_vocab"):
        load_merges(tmp_path / "merges.gz", WHOLE)
