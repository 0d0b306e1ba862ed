"""Folders of transformers' CLIP give the embeddings that transformers gives."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.fakes.published import SIZE, TEXTS, write_openai_clip, write_tokenizer
from torch.nn import functional
from transformers import AutoTokenizer, CLIPImageProcessorPil

from cleft.errors import CheckpointError, ConfigError
from cleft.models.checkpoint import load_model
from cleft.models.importing.importing import import_checkpoint


def images():
    """At twice the size at which CLIP reads."""
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
    assert ours.text_tower.tokens.encode([long]) == words
    with torch.no_grad():
        features = theirs.get_text_features(torch.tensor(words)).pooler_output
    same(ours.encode_text([long]), functional.normalize(features))


def test_a_learned_context_stands_in_front_of_class_names(folder, tmp_path):
    write_openai_clip(folder)
    ours = load_model(import_checkpoint(folder, tmp_path / "ours"))
    tower = ours.text_tower
    opening, name = (torch.tensor(ids) for ids in (tower.tokens.opening("a"), tower.tokens.names(["edema"])[0]))
    written = tower.embed_opening("a")
    start = torch.tensor(tower.tokens.front)
    with torch.no_grad():
        states = tower.lm.model(torch.cat([start, opening, name])[None]).last_hidden_state
    same(tower.encode_behind_context(["edema"], written), states[:, -1])
    context = written.clone().requires_grad_()
    tower.encode_behind_context(["edema"], context).sum().backward()
    assert context.grad is not None
    assert context.grad.abs().sum() > 0


def test_older_weights_files_and_their_buffers_are_read_too(folder, tmp_path):
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


def test_size_and_tokenizer_may_be_others_than_the_folders(folder, tmp_path):
    write_openai_clip(folder, tokenizer=False)
    with pytest.raises(ConfigError, match=r"OpenAI's CLIP holds no tokenizer; .* such as openai/clip-vit-base-patch16"):
        import_checkpoint(folder, tmp_path / "ours")
    write_openai_clip(tmp_path / "whole")
    path = folder / "model.safetensors"
    ours = load_model(import_checkpoint(path, tmp_path / "ours", size=28, tokenizer=tmp_path / "whole"))
    assert ours.image_spec.size == (56, 56)
    with pytest.raises(
        CheckpointError, match="bert' names no end-of-text token, as that of OpenAI's CLIP does; give the"
    ):
        import_checkpoint(folder, tmp_path / "ours", tokenizer=write_tokenizer(tmp_path / "bert"))


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("config.json", {"model_type": "chinese_clip"}, "says it is a 'chinese_clip' model, whose towers are not"),
        ("config.json", {"vision_config": 3}, "says vision_config: '3', which should be names and values"),
        ("config.json", {"vision_config": {"image_size": "x"}}, "says image_size: 'x', which should be a whole number"),
        ("preprocessor_config.json", {"image_mean": [1, 2]}, r"says image_mean: \[1, 2\], which should be three num"),
        ("preprocessor_config.json", {"image_std": "abc"}, "says image_std: 'abc', which should be three num"),
    ],
)
def test_what_is_said_beside_the_weights_is_checked(folder, tmp_path, name, changes, sentence):
    write_openai_clip(folder)
    edit(folder / name, **changes)
    with pytest.raises(CheckpointError, match=sentence):
        import_checkpoint(folder, tmp_path / "ours")


def test_weights_alone_do_not_tell_how_clip_reads(folder, tmp_path):
    write_openai_clip(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config.json: an object expected, found a list"):
        import_checkpoint(folder, tmp_path / "ours")
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json is not valid JSON"):
        import_checkpoint(folder, tmp_path / "ours")
    (folder / "config.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"should lie beside config.json, .* OpenAI's CLIP reads .*; download the"
    ):
        import_checkpoint(folder, tmp_path / "ours")
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="is a truncated or corrupt safetensors file"):
        import_checkpoint(folder, tmp_path / "ours")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds none of model.safetensors, .*; give the file"):
        import_checkpoint(folder, tmp_path / "ours")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.update({"text_model.head.weight": torch.ones(1)}), "1 weight has no place: text_model.head.wei"),
        (lambda s: s.pop("text_projection.weight"), "1 missing: text_projection.weight"),
        (lambda s: s.pop("vision_model.pre_layrnorm.bias"), "1 missing weight of the image tower: pre_layrnorm.bias"),
        (lambda s: s.update({"text_model.final_layer_norm.bias": torch.ones(9)}), "1 of another shape or type"),
        (lambda s: s.update({"logit_scale": torch.ones(2)}), "should hold logit_scale, one number"),
    ],
)
def test_weights_of_clip_that_do_not_find_their_place_are_listed(folder, tmp_path, change, sentence):
    write_openai_clip(folder)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"read as a checkpoint of OpenAI's CLIP: .*{sentence}"):
        import_checkpoint(folder, tmp_path / "ours")


def test_openais_clip_is_not_the_authors(folder, tmp_path):
    write_openai_clip(folder)
    with pytest.raises(CheckpointError, match="is a checkpoint of OpenAI's CLIP, not of clip: it holds vision_model"):
        import_checkpoint(folder, tmp_path / "ours", method="clip")
