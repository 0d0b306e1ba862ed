"""CLIP by the names of its own code gives what its weights give, step by step."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tests.fakes import by_hand
from tests.fakes.published import (
    SIZE,
    TEXTS,
    biomedclip_state,
    jit_numbers,
    native_clip_state,
    write_jit_archive,
    write_merges,
    write_open_clip,
    write_openai_clip,
)
from torch.nn import functional

from cleft.errors import CheckpointError, ConfigError
from cleft.models.checkpoint import load_model
from cleft.models.importing.importing import import_checkpoint

CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CHEXZERO = ([101.48761 / 255] * 3, [83.43944 / 255] * 3)


def images():
    """At twice the size at which CLIP reads."""
    shape = (2, 1, 2 * SIZE, 2 * SIZE)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def pixels(mean, std):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    return functional.interpolate((images() / 255 - mean) / std, (SIZE, SIZE), mode="bicubic", antialias=True)


def same(ours, theirs):
    torch.testing.assert_close(ours.detach(), theirs, atol=1e-5, rtol=1e-5)


def embeds_alike(folder, weights, pixels, *, quick=True, heads=(2, 3), at=""):
    """Whether a model folder embeds images and texts as the weights do, computed step by step."""
    model = load_model(folder)
    same(
        model.encode_image(images()),
        functional.normalize(by_hand.clip_image(pixels, weights, quick=quick, heads=heads[0])),
    )
    every = model.text_tower.tokens.encode(TEXTS)
    texts = [by_hand.clip_text(ids, weights, quick=quick, heads=heads[1], at=at) for ids in every]
    same(model.encode_text(TEXTS), functional.normalize(torch.stack(texts)))
    same(model.logit_scale, weights["logit_scale"].float())


@pytest.fixture
def merges(tmp_path):
    return write_merges(tmp_path / "bpe_simple_vocab_16e6.txt.gz")


def test_openais_archive_gives_what_its_halves_give(tmp_path, merges):
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
def test_what_was_fine_tuned_from_openais_weights_is_named(tmp_path, merges, method, statistics):
    state = native_clip_state()
    torch.save(state, tmp_path / "best_64_0.0001_original_17000_0.863.pt")
    path = tmp_path / "best_64_0.0001_original_17000_0.863.pt"
    embeds_alike(
        import_checkpoint(path, tmp_path / "ours", method=method, tokenizer=merges), state, pixels(*statistics)
    )


def test_half_precision_of_pubmedclips_training_is_read(tmp_path, merges):
    state = {name: tensor.half() for name, tensor in native_clip_state().items()}
    torch.save({"best_epoch": 3, "state_dict": state, "best_loss": 0.5}, tmp_path / "best_model.pth")
    ours = import_checkpoint(tmp_path / "best_model.pth", tmp_path / "ours", method="pubmedclip", tokenizer=merges)
    embeds_alike(ours, {name: tensor.float() for name, tensor in state.items()}, pixels(*IMAGENET))


def test_a_checkpoint_of_open_clips_training_is_read_without_the_prefix_of_many_devices(tmp_path, merges):
    state = native_clip_state()
    masked = {**state, "attn_mask": torch.full((24, 24), -torch.inf).triu(1)}
    content = {"epoch": 3, "name": "mine", "state_dict": {f"module.{name}": masked[name] for name in masked}}
    torch.save({**content, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-5}]}}, tmp_path / "epoch_3.pt")
    ours = import_checkpoint(tmp_path / "epoch_3.pt", tmp_path / "ours", method="open-clip", tokenizer=merges)
    embeds_alike(ours, state, pixels(*CLIP), quick=False)


@pytest.mark.parametrize("at", ["", "text."])
@pytest.mark.parametrize("quick", [True, False])
def test_a_configuration_of_open_clip_decides(tmp_path, merges, at, quick):
    folder = write_open_clip(tmp_path / "theirs", text=at, **({"quick_gelu": True} if quick else {}))
    ours = import_checkpoint(folder, tmp_path / "ours", tokenizer=merges)
    statistics = ([0.48, 0.46, 0.41], [0.27, 0.26, 0.28])
    embeds_alike(ours, native_clip_state(at), pixels(*statistics), quick=quick, heads=(4, 6), at=at)


def test_a_configuration_may_tell_the_activation_and_the_pixels_alone(tmp_path, merges):
    folder = write_open_clip(tmp_path / "theirs")
    said = {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": {"mean": [0.4] * 3, "std": [0.3] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(said))
    ours = import_checkpoint(folder, tmp_path / "ours", tokenizer=merges)
    embeds_alike(ours, native_clip_state(), pixels([0.4] * 3, [0.3] * 3))


def test_safetensors_of_open_clip_and_a_tokenizer_beside_them_are_read(tmp_path, merges):
    state = native_clip_state()
    folder = write_open_clip(tmp_path / "theirs")
    (folder / "open_clip_pytorch_model.bin").unlink()
    save_file(state, folder / "open_clip_model.safetensors")
    first = import_checkpoint(folder, tmp_path / "first", tokenizer=merges)
    load_model(first).text_tower.tokens.save(folder)
    embeds_alike(
        import_checkpoint(folder, tmp_path / "second"),
        state,
        pixels([0.48, 0.46, 0.41], [0.27, 0.26, 0.28]),
        quick=False,
        heads=(4, 6),
    )


def test_the_three_numbers_of_the_archive_may_lie_among_the_weights(tmp_path, merges):
    state = native_clip_state()
    torch.save({**state, **jit_numbers()}, tmp_path / "clip.pt")
    embeds_alike(import_checkpoint(tmp_path / "clip.pt", tmp_path / "ours", tokenizer=merges), state, pixels(*CLIP))


def test_padding_and_what_else_follows_an_end_does_not_change_a_text():
    state = native_clip_state()
    last = len(state["token_embedding.weight"]) - 1
    features = by_hand.clip_text([last - 1, 5, last], state, quick=True, heads=3)
    same(by_hand.clip_text([last - 1, 5, last, last, last, 7], state, quick=True, heads=3), features)


def test_an_activation_is_never_guessed(tmp_path, merges):
    torch.save(native_clip_state(), tmp_path / "clip.pt")
    with pytest.raises(
        CheckpointError,
        match=r"clip.pt should lie beside open_clip_config.json, which says how open_clip reads images and texts; "
        r"download the whole folder, or name whose it is: --method openai-clip, chexzero or .* or --method open-clip",
    ):
        import_checkpoint(tmp_path / "clip.pt", tmp_path / "ours", tokenizer=merges)
    folder = write_open_clip(tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="its activation is gelu, where this method has quick_gelu; leave --meth"):
        import_checkpoint(folder, tmp_path / "ours", method="chexzero", tokenizer=merges)


def test_a_tokenizer_is_asked_for(tmp_path):
    path = write_jit_archive(tmp_path / "ViT-B-32.pt", native_clip_state())
    with pytest.raises(ConfigError, match=r"holds no tokenizer; .* or CLIP's bpe_simple_vocab_16e6.txt.gz"):
        import_checkpoint(path, tmp_path / "ours")


@pytest.mark.parametrize(
    ("part", "name", "value", "sentence"),
    [
        ("vision_cfg", "no_ln_pre", True, "says no_ln_pre: True, and only open_clip's usual ViT"),
        ("vision_cfg", "pool_type", "avg", "says pool_type: 'avg', and only"),
        ("text_cfg", "no_causal_mask", True, "says no_causal_mask: True, and only"),
        ("text_cfg", "hf_model_name", "roberta-base", "says hf_model_name: 'roberta-base', and only"),
        ("text_cfg", "hf_tokenizer_name", "xlm", "says hf_tokenizer_name: 'xlm', and only"),
        ("text_cfg", "width", 512, "says width: 512, and its weights are 192 wide; is it of another model"),
        ("text_cfg", "heads", 7, "says that 7 heads share a width of 192, which they cannot"),
        ("vision_cfg", "head_width", "x", "says head_width: 'x', which should be a whole number"),
    ],
)
def test_other_ways_of_open_clip_are_refused(tmp_path, merges, part, name, value, sentence):
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
        (lambda s: {**s, "logit_bias": torch.ones(1)}, "1 weight has no place: logit_bias"),
        (lambda s: {**s, "visual.attn_pool.probe": torch.ones(1)}, "1 weight has no place: visual.attn_pool.probe"),
        (lambda s: without(s, "text_projection"), "1 missing: text_projection.weight"),
        (lambda s: without(s, "visual.ln_pre.bias"), "1 missing weight of the image tower: pre_layrnorm.bias"),
        (
            lambda s: without(s, "visual.conv1.weight"),
            "should hold image_tower.model.embeddings.patch_embedding.weight",
        ),
        (lambda s: {**s, "ln_final.bias": torch.ones(9)}, "1 of another shape or type: text_tower"),
        (lambda s: {**s, "visual.proj": torch.ones(9)}, "2 of another shape or type: image_projection.weight, te"),
        (lambda s: {**s, "visual.positional_embedding": torch.ones(12, 128)}, "its 11 image positions are not a squa"),
        (
            lambda s: {**s, "transformer.resblocks.0.attn.in_proj_bias": torch.ones(7)},
            "1 weight has no place: transf",
        ),
        (lambda s: without(s, "logit_scale"), "should hold logit_scale, one number"),
        (wide, "how many heads share its width 120 is not written in it; put its open_clip_config.json beside it"),
    ],
)
def test_weights_that_do_not_find_their_place_are_listed(tmp_path, merges, change, sentence):
    torch.save(change(native_clip_state()), tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match=rf"read as a checkpoint of OpenAI's CLIP: .*{sentence}"):
        import_checkpoint(tmp_path / "clip.pt", tmp_path / "ours", method="openai-clip", tokenizer=merges)


def without(state, name):
    return {other: tensor for other, tensor in state.items() if other != name}


def test_a_clip_with_a_resnet_is_named(tmp_path):
    state = {"visual.attnpool.q_proj.weight": torch.ones(2), "visual.layer1.0.conv1.weight": torch.ones(2)}
    torch.save(state, tmp_path / "RN50.pt")
    with pytest.raises(CheckpointError, match=r"RN50.pt is a CLIP with a ResNet \(RN50 .* give one with a ViT"):
        import_checkpoint(tmp_path / "RN50.pt", tmp_path / "ours", method="openai-clip")
    with pytest.raises(CheckpointError, match="is a CLIP with a ResNet"):
        import_checkpoint(write_jit_archive(tmp_path / "RN101.pt", state), tmp_path / "ours")


def test_a_clip_given_as_another_is_named(tmp_path):
    archive = write_jit_archive(tmp_path / "ViT-B-32.pt", native_clip_state())
    for method in ("chexzero", "open-clip", "mgca"):
        with pytest.raises(CheckpointError, match=f"checkpoint of OpenAI's CLIP, not of {method}: it holds input_reso"):
            import_checkpoint(archive, tmp_path / "ours", method=method)
    torch.save(native_clip_state(), tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match=r"is a checkpoint of open_clip, not of gloria: it holds visual.class_em"):
        import_checkpoint(tmp_path / "clip.pt", tmp_path / "ours", method="gloria")
    write_openai_clip(tmp_path / "folder")
    with pytest.raises(CheckpointError, match="is a checkpoint of OpenAI's CLIP, not of chexzero: it holds vision_mod"):
        import_checkpoint(tmp_path / "folder", tmp_path / "ours", method="chexzero")
    torch.save(biomedclip_state(), tmp_path / "biomed.bin")
    with pytest.raises(CheckpointError, match=r"is a checkpoint of BiomedCLIP, not of open-clip: it holds visual.tru"):
        import_checkpoint(tmp_path / "biomed.bin", tmp_path / "ours", method="open-clip")
