"""Folders of BiomedCLIP give what its weights give, step by step."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tests.fakes import by_hand
from tests.fakes.published import SIZE, TEXTS, biomedclip_state, write_biomedclip
from torch.nn import functional

from cleft.errors import CheckpointError, ConfigError
from cleft.models.checkpoint import load_model
from cleft.models.importing.importing import import_checkpoint


def images():
    """At twice the size at which it reads."""
    shape = (2, 1, 2 * SIZE, 2 * SIZE)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def same(ours, theirs):
    torch.testing.assert_close(ours.detach(), theirs, atol=1e-5, rtol=1e-5)


def test_biomedclip_is_a_vit_and_a_bert_read_by_their_first_tokens(tmp_path):
    w = biomedclip_state()
    model = load_model(import_checkpoint(write_biomedclip(tmp_path / "theirs"), tmp_path / "ours"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.48, 0.46, 0.41], [0.27, 0.26, 0.28]))
    pixels = functional.interpolate((images() / 255 - mean) / std, (SIZE, SIZE), mode="bicubic", antialias=True)
    features = by_hand.vit_tokens(pixels, w, "visual.trunk.")[:, 0]
    same(model.encode_image_features(images()), features)
    same(model.encode_image(images()), functional.normalize(by_hand.linear(features, w, "visual.head.proj")))
    every = model.text_tower.tokens.encode(TEXTS)
    first = torch.stack([by_hand.bert_layers(ids, w, "text.transformer.")[-1][0] for ids in every])
    hidden = functional.gelu(by_hand.linear(first, w, "text.proj.0"))
    same(model.encode_text(TEXTS), functional.normalize(by_hand.linear(hidden, w, "text.proj.2")))
    same(model.logit_scale, w["logit_scale"])
    assert model.text_tower.config.max_tokens == 40


def test_biomedclips_safetensors_are_read_too(tmp_path):
    folder = write_biomedclip(tmp_path / "theirs")
    (folder / "open_clip_pytorch_model.bin").unlink()
    save_file(biomedclip_state(), folder / "open_clip_model.safetensors")
    model = load_model(import_checkpoint(folder, tmp_path / "ours", method="biomedclip"))
    same(model.image_projection.weight, biomedclip_state()["visual.head.proj.weight"])


@pytest.mark.parametrize(
    ("tower", "name", "value", "sentence"),
    [
        ("vision_cfg", "timm_pool", "avg", r"says timm_pool: 'avg', and only '' or 'token' is read"),
        ("vision_cfg", "timm_proj", "mlp", r"says timm_proj: 'mlp', and only 'linear' is read"),
        ("text_cfg", "hf_pooler_type", "mean_pooler", r"says hf_pooler_type: 'mean_pooler', and only 'cls_last"),
        ("text_cfg", "hf_proj_type", None, r"says hf_proj_type: None, and only 'mlp' is read"),
        ("text_cfg", "context_length", "long", r"says context_length: 'long', which should be a whole number"),
    ],
)
def test_other_ways_of_open_clip_are_refused(tmp_path, tower, name, value, sentence):
    folder = write_biomedclip(tmp_path / "theirs")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"][tower][name] = value
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"read as a checkpoint of BiomedCLIP: .*{sentence}"):
        import_checkpoint(folder, tmp_path / "ours")


def test_biomedclip_needs_what_stands_beside_it(tmp_path):
    folder = write_biomedclip(tmp_path / "theirs")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ConfigError, match=r"BiomedCLIP holds no tokenizer; .* such as microsoft/BiomedNLP-BiomedBERT"):
        import_checkpoint(folder, tmp_path / "ours")
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"should lie beside open_clip_config.json, .* BiomedCLIP reads"):
        import_checkpoint(folder / "open_clip_pytorch_model.bin", tmp_path / "ours")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.update({"text.proj.1.weight": torch.ones(1)}), "1 weight has no place: text.proj.1.weight"),
        (lambda s: s.pop("visual.trunk.norm.bias"), "1 missing weight of the image tower"),
        (lambda s: s.pop("text.transformer.encoder.layer.1.output.dense.bias"), "1 missing: text_tower.lm.model"),
        (lambda s: s.update({"text.proj.2.weight": torch.ones(9, 20)}), "1 of another shape or type: text_projection"),
    ],
)
def test_weights_of_biomedclip_that_do_not_find_their_place_are_listed(tmp_path, change, sentence):
    state = biomedclip_state()
    change(state)
    folder = write_biomedclip(tmp_path / "theirs", state)
    with pytest.raises(CheckpointError, match=rf"read as a checkpoint of BiomedCLIP: .*{sentence}"):
        import_checkpoint(folder, tmp_path / "ours")
