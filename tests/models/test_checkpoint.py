"""Saving and loading a model folder; folders that were damaged, edited, or claim a larger model than their weights."""

import dataclasses
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.fakes.models import CAPTIONS, edit_description, fake_images, fake_model, fake_settings, write_language_model
from tests.tools.replacing import replace_keeping_size_and_time
from tests.tools.snapshots import snapshot

from cleft.config import TextTowerConfig
from cleft.errors import CheckpointError, NumericsError, ResourceError
from cleft.models.checkpoint import check_base, describe_base, load_model, save_model, weights_digest
from cleft.models.image_classifier import load_image_classifier
from cleft.models.model_folder import digest_of

NAMES = ["edema", "pleural effusion"]


def saved(folder, settings=None, **options):
    settings = settings or fake_settings()
    model = fake_model(settings)
    save_model(model, settings, folder, **options)
    return model


@pytest.fixture
def folder(tmp_path):
    saved(tmp_path / "model")
    return tmp_path / "model"


def edit(folder, change):
    """Changes `model.json` in the form of schema 1, in which only the fields are checked."""
    edit_description(folder, change, sealed=False)


def replace_weights(folder, change):
    """Replaces the weights of a folder, with a matching digest."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    facts = {"bytes": path.stat().st_size, "sha256": digest_of(path)}
    edit(folder, lambda tree: tree["files"].update({"model.safetensors": facts}))


def assert_same(one, other):
    assert torch.equal(one.encode_image(fake_images()), other.encode_image(fake_images()))
    assert torch.equal(one.encode_text(CAPTIONS), other.encode_text(CAPTIONS))
    assert torch.equal(one.logit_scale, other.logit_scale)
    assert one.image_spec == other.image_spec


@pytest.mark.parametrize("adapt", ["lora", "ia3", "prefix", "full", "frozen"])
def test_a_loaded_model_gives_the_same_bits_with_every_adapter(tmp_path, adapt):
    model = saved(tmp_path, fake_settings("dinov2", "gpt2", adapt=adapt))
    assert_same(load_model(tmp_path), model)


@pytest.mark.parametrize("image", ["vit", "swin", "resnet"])
@pytest.mark.parametrize("text", ["gpt2", "bert"])
def test_a_loaded_model_gives_the_same_bits_in_every_family(tmp_path, image, text):
    model = saved(tmp_path, fake_settings(image, text))
    assert_same(load_model(tmp_path), model)


def test_running_statistics_are_saved(tmp_path):
    settings = fake_settings()
    model = fake_model(settings).train()
    model.encode_image(fake_images())
    save_model(model, settings, tmp_path)
    assert_same(load_model(tmp_path), model.eval())


def test_a_frozen_image_tower_is_loaded_frozen(tmp_path):
    settings = fake_settings()
    object.__setattr__(settings.image, "train", False)
    model = saved(tmp_path, settings)
    loaded = load_model(tmp_path)
    assert_same(loaded, model)
    assert not any(weight.requires_grad for weight in loaded.image_tower.parameters())


def test_a_learned_context_is_saved(tmp_path):
    settings = fake_settings()
    model = fake_model(settings)
    model.set_context(torch.randn(5, 24, generator=torch.Generator().manual_seed(0)))
    save_model(model, settings, tmp_path)
    loaded = load_model(tmp_path)
    assert torch.equal(loaded.encode_class_names(NAMES), model.encode_class_names(NAMES))
    assert json.loads((tmp_path / "model.json").read_text())["context_length"] == 5


HEADS, FAULT = {"projection": "mlp-norm", "hidden_dim": 20}, "projections do not have loss"


@pytest.mark.parametrize("loss", [{"projection": "mlp"}, HEADS, {"projection": "to-text", "embed_dim": 24}], ids=str)
def test_every_projection_is_saved(tmp_path, loss):
    settings = fake_settings(text="bert", adapt="full")
    model = saved(tmp_path, dataclasses.replace(settings, loss=dataclasses.replace(settings.loss, **loss)))
    assert_same(load_model(tmp_path), model)


@pytest.mark.parametrize(("name", "width"), [("hidden_dim", 10**9), ("embed_dim", 10**9)])
def test_heads_of_another_width_are_refused_before_they_are_made(tmp_path, name, width):
    settings = fake_settings(text="bert", adapt="full")
    saved(tmp_path, dataclasses.replace(settings, loss=dataclasses.replace(settings.loss, **HEADS)))
    edit(tmp_path, lambda tree: tree["settings"]["loss"].update({name: width}))
    with pytest.raises(CheckpointError, match=rf"{FAULT}\.{name}=1000000000"):
        load_model(tmp_path)


def test_folders_of_schema_one_are_loaded_with_an_equal_digest(folder):
    model, digest = load_model(folder), weights_digest(folder)
    edit(folder, lambda tree: None)
    assert_same(load_model(folder), model)
    assert weights_digest(folder) == digest


def test_folders_without_a_method_are_of_cleft(tmp_path):
    model = saved(tmp_path)
    edit(tmp_path, lambda tree: tree.pop("method"))
    assert_same(load_model(tmp_path), model)


@pytest.mark.parametrize("adapt", ["lora", "ia3", "prefix", "frozen"])
def test_only_trainable_weights_of_a_named_language_model_are_saved(tmp_path, adapt):
    base = write_language_model(tmp_path / "base")
    settings = fake_settings(base=base, adapt=adapt)
    model = saved(tmp_path / "model", settings)
    tensors = load_file(tmp_path / "model/model.safetensors")
    lm = {name: tensor for name, tensor in tensors.items() if name.startswith("text_tower.")}
    moving = {name for name, weight in model.text_tower.named_parameters("text_tower") if weight.requires_grad}
    assert set(lm) == moving
    numbers = sum(tensor.numel() for tensor in tensors.values())
    assert numbers < 0.6 * sum(weight.numel() for weight in model.parameters())
    assert (tmp_path / "model/model.safetensors").stat().st_size < 4 * numbers + 10_000
    assert_same(load_model(tmp_path / "model"), model)


def test_a_trainable_named_language_model_is_saved_completely(tmp_path):
    base = write_language_model(tmp_path / "base")
    model = saved(tmp_path / "model", fake_settings(base=base, adapt="full"))
    shutil.rmtree(base)
    assert_same(load_model(tmp_path / "model"), model)


def test_weights_frozen_later_are_still_saved(tmp_path):
    base = write_language_model(tmp_path / "base")
    settings = fake_settings(base=base)
    model = fake_model(settings).requires_grad_(False)
    save_model(model, settings, tmp_path / "model")
    assert_same(load_model(tmp_path / "model"), model)


def test_a_loaded_model_can_be_saved_again(tmp_path):
    base = write_language_model(tmp_path / "base")
    settings = fake_settings(base=base)
    saved(tmp_path / "one", settings)
    save_model(load_model(tmp_path / "one"), settings, tmp_path / "two")
    assert weights_digest(tmp_path / "one") == weights_digest(tmp_path / "two")


def test_random_weights_of_a_named_model_are_saved_completely(tmp_path):
    base = write_language_model(tmp_path / "base")
    model = saved(tmp_path / "model", fake_settings(base=base, random_weights=True))
    shutil.rmtree(base)
    assert_same(load_model(tmp_path / "model"), model)


def test_another_base_under_the_same_name_is_refused(tmp_path):
    base = write_language_model(tmp_path / "base")
    saved(tmp_path / "model", fake_settings(base=base))
    write_language_model(base, seed=1)
    with pytest.raises(CheckpointError, match=r"but .* has other weights"):
        load_model(tmp_path / "model")


def test_a_moved_base_can_be_given(tmp_path):
    base = write_language_model(tmp_path / "base")
    model = saved(tmp_path / "model", fake_settings(base=base))
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"load_model\(folder, text_model=<folder>\)"):
        load_model(tmp_path / "model")
    assert_same(load_model(tmp_path / "model", text_model=str(tmp_path / "elsewhere")), model)


def test_a_base_moved_together_with_its_models_is_found(tmp_path):
    base = write_language_model(tmp_path / "study/base")
    model = saved(tmp_path / "study/row/seed-0/stage-one", fake_settings(base=base))
    (tmp_path / "study").rename(tmp_path / "moved")
    assert_same(load_model(tmp_path / "moved/row/seed-0/stage-one"), model)
    write_language_model(tmp_path / "moved/base", seed=1)
    with pytest.raises(CheckpointError, match=r"but '.*moved/base' has other weights"):
        load_model(tmp_path / "moved/row/seed-0/stage-one")


def test_the_digest_depends_on_weights_and_settings(tmp_path):
    model = saved(tmp_path / "one")
    save_model(model, fake_settings(), tmp_path / "same", extra={"run": "other"})
    save_model(model, fake_settings(max_tokens=15), tmp_path / "settings")
    with torch.no_grad():
        model.logit_scale += 1e-6
    save_model(model, fake_settings(), tmp_path / "weights")
    digests = {name: weights_digest(tmp_path / name) for name in ("one", "same", "settings", "weights")}
    assert digests["one"] == digests["same"]
    assert len(set(digests.values())) == 3
    assert len(digests["one"]) == 16


def test_other_files_of_a_run_folder_are_kept(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0")
    saved(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.yaml", "model.json", "model.safetensors", "towers"]


def test_a_second_save_replaces_the_first_with_all_its_files(tmp_path):
    saved(tmp_path, fake_settings(text="bert"))
    model = saved(tmp_path, fake_settings())
    assert_same(load_model(tmp_path), model)


@pytest.mark.parametrize("kept", range(16))
@pytest.mark.parametrize("links", [True, False])
def test_a_save_killed_at_any_step_leaves_the_old_model_or_the_new_one(tmp_path, monkeypatch, kept, links):
    old = saved(tmp_path, fake_settings("resnet"))
    new = fake_model(fake_settings("vit"))
    done, originals = [], {name: getattr(os, name) for name in ("link", "replace", "unlink")}

    def dies(name):
        def step(*args, **options):
            if len(done) == kept:
                raise KeyboardInterrupt
            done.append(name)
            if name == "link" and not links:
                raise PermissionError(1, "no links here")
            return originals[name](*args, **options)

        return step

    with monkeypatch.context() as patched:
        for name in originals:
            patched.setattr(f"os.{name}", dies(name))
        with pytest.raises(KeyboardInterrupt):
            save_model(new, fake_settings("vit"), tmp_path)
    before = snapshot(tmp_path)
    assert_same(load_model(tmp_path), old if "replace" not in done else new)
    assert snapshot(tmp_path) == before
    save_model(new, fake_settings("vit"), tmp_path)
    assert_same(load_model(tmp_path), new)
    assert sorted(os.listdir(tmp_path)) == ["model.json", "model.safetensors", "towers"]


def test_a_full_disk_leaves_the_old_model(folder, monkeypatch):
    before = weights_digest(folder)

    def full(tensors, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cleft.models.state_dict.save_file", full)
    with pytest.raises(ResourceError, match=r"could not be written .* free disk space"):
        save_model(fake_model(fake_settings("vit")), fake_settings("vit"), folder)
    assert weights_digest(folder) == before
    assert not (folder / ".saving").exists()


def test_weights_that_are_not_finite_are_not_saved(folder):
    before = weights_digest(folder)
    model = load_model(folder)
    model.image_projection.bias.data[0] = torch.nan
    with pytest.raises(NumericsError, match=r"1 weight: image_projection.bias holds NaN"):
        save_model(model, fake_settings(), folder)
    assert weights_digest(folder) == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("logit_scale"), "1 missing: logit_scale"),
        (lambda t: t.update(extra=torch.ones(1)), "1 unexpected: extra"),
        (
            lambda t: t.update({"text_projection.weight": torch.ones(1)}),
            "1 with another shape or dtype: text_projection.weight",
        ),
        (lambda t: t.update({"logit_scale": torch.tensor(1.0).double()}), "1 with another shape or dtype: logit_scale"),
        (lambda t: [t.pop(name) for name in sorted(t)[:7]], "7 missing: .*, .*, .*, .*, .*, …"),
        (lambda t: t["text_projection.bias"].fill_(torch.inf), "1 with NaN or infinity: text_projection.bias"),
        (lambda t: t.update({"module.logit_scale": t.pop("logit_scale")}), r"1 missing: .*1 unexpected: module.logit"),
    ],
)
def test_weights_that_do_not_fit_are_listed(folder, change, sentence):
    replace_weights(folder, change)
    with pytest.raises(CheckpointError, match=sentence):
        load_model(folder)


def test_a_flipped_bit_is_detected(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.safetensors was altered: its digest differs"):
        load_model(folder)


def test_a_truncated_file_is_detected(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model.safetensors has [\d,]+ bytes, not the \d+ that were saved"):
        load_model(folder)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, (10**12).to_bytes(8, "little") + b"{}", b"\2\0\0\0\0\0\0\0{}x"])
def test_an_invalid_header_names_the_file(folder, content):
    path = folder / "model.safetensors"
    path.write_bytes(content)
    facts = {"bytes": len(content), "sha256": digest_of(path)}
    edit(folder, lambda tree: tree["files"].update({"model.safetensors": facts}))
    with pytest.raises(
        CheckpointError,
        match=r"model.safetensors is a truncated or corrupt safetensors file|do not have loss.embed_dim",
    ):
        load_model(folder)


FACTS = {"bytes": 0, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.update(schema=3), "has schema 3, this version of cleft supports 2; upgrade cleft"),
        (lambda t: t.update(schema=2), "does not end with its digest"),
        (lambda t: t.pop("schema"), "has schema None"),
        (lambda t: t.pop("files"), "does not list model.safetensors among its files"),
        (lambda t: t["files"].update({"../x": FACTS}), "lists the file '../x'.* not a plain name; refused"),
        (lambda t: t["files"].update({"towers/text/y": FACTS}), "towers/text/y is missing"),
        (lambda t: t["settings"].pop("loss"), "needed to rebuild the model"),
        (lambda t: t["settings"]["text"].update(rnk=1), "unknown setting text.rnk; did you mean text.rank"),
        (lambda t: t["settings"]["text"].update(rank="x"), "text.rank='x' is not a number"),
        (lambda t: t["settings"]["loss"].update(embed_dim=10**9), "do not have loss.embed_dim=1000000000"),
        (lambda t: t.update(method="clop"), "names the method 'clop', which this version of cleft does not have"),
    ],
)
def test_an_edited_description_is_refused(folder, change, sentence):
    edit(folder, change)
    with pytest.raises(CheckpointError, match=sentence):
        load_model(folder)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '"model"', "[]"])
def test_an_invalid_description_is_refused(folder, text):
    (folder / "model.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model.json(: more than 64|: an object expected| is not valid JSON)"):
        load_model(folder)


def test_a_missing_weights_file_is_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing"):
        load_model(folder)


def test_an_unlisted_file_next_to_the_tokenizer_is_refused(folder):
    (folder / "towers/text/tokenization.py").write_text("raise SystemExit")
    with pytest.raises(CheckpointError, match=r"tokenization.py'\] were not saved with the model"):
        load_model(folder)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "it does not exist"),
        (lambda path: path.mkdir(), "it has no model.json"),
        (lambda path: (path.mkdir(), (path / "a.ckpt").touch()), "import the authors' checkpoints"),
        (lambda path: path.touch(), "it is a file; import the authors' checkpoints with `cleft import"),
    ],
)
def test_folders_that_are_no_model_have_their_own_messages(tmp_path, make, sentence):
    make(tmp_path / "x")
    with pytest.raises(CheckpointError, match=sentence):
        load_model(tmp_path / "x")
    with pytest.raises(CheckpointError, match=sentence):
        weights_digest(tmp_path / "x")


def test_loading_does_not_change_the_callers_random_state(folder):
    before = torch.get_rng_state()
    load_model(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_extra_facts_are_saved(tmp_path):
    saved(tmp_path, extra={"best_step": 400})
    assert json.loads((tmp_path / "model.json").read_text())["extra"] == {"best_step": 400}


def test_no_data_folder_is_saved(tmp_path):
    settings = fake_settings()
    object.__setattr__(settings.data, "root", tmp_path / "patients")
    saved(tmp_path / "model", settings)
    assert "patients" not in (tmp_path / "model/model.json").read_text().replace(str(tmp_path / "model"), "")


@pytest.mark.parametrize("how", ["in place", "renamed over"])
def test_a_language_model_replaced_with_its_size_and_time_kept_is_another(tmp_path, how):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights of one model")
    saved = describe_base(TextTowerConfig(model=str(tmp_path)))
    check_base(tmp_path / "run", saved, str(tmp_path))
    replace_keeping_size_and_time(weights, b"weights of another.", how)
    with pytest.raises(CheckpointError, match="has other weights"):
        check_base(tmp_path / "run", saved, str(tmp_path))


@pytest.fixture
def vit_folder(tmp_path):
    saved(tmp_path / "vit", fake_settings("vit", "gpt2"))
    return tmp_path / "vit"


def rewrite(folder, name, **changes):
    """Changes a file of a tower, with matching digests."""
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    facts = {"bytes": path.stat().st_size, "sha256": digest_of(path)}
    edit_description(folder, lambda tree: tree["files"].update({name: facts}))


@pytest.mark.parametrize("value", [10**5, 10**9, -3, 0, "x", None, [], 1.5, True, {}])
@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"])
def test_invalid_sizes_of_the_image_tower_are_reported(vit_folder, name, value):
    rewrite(vit_folder, "towers/image/config.json", **{name: value})
    for load in (load_model, load_image_classifier):
        with pytest.raises(CheckpointError, match=r"model"):
            load(vit_folder)


@pytest.mark.parametrize("value", [10**5, 10**9, -3, 0, "x", None, [], 1.5, {}])
@pytest.mark.parametrize("name", ["n_embd", "n_layer", "n_head", "vocab_size"])
def test_invalid_sizes_of_the_text_tower_are_reported(folder, name, value):
    rewrite(folder, "towers/text/config.json", **{name: value})
    with pytest.raises(CheckpointError, match=r"model"):
        load_model(folder)


@pytest.mark.parametrize("name", ["rank", "prefix_length", "depth", "frozen_layers"])
def test_settings_larger_than_the_weights_are_named(folder, name):
    edit_description(folder, lambda tree: tree["settings"]["text"].update({name: 10**9}))
    with pytest.raises(CheckpointError, match=rf"text\.{name}"):
        load_model(folder)


@pytest.mark.parametrize(
    "change", [{"model": None}, {"model": {"type": "BPE", "vocab": {}, "merges": [[3]]}}, {"added_tokens": 3}]
)
def test_an_invalid_tokenizer_is_reported(folder, change):
    rewrite(folder, "towers/text/tokenizer.json", **change)
    with pytest.raises(CheckpointError):
        load_model(folder)


def test_a_panic_of_a_library_is_reported(folder, monkeypatch):
    class PanicException(BaseException):
        pass

    def panics(*_arguments, **_options):
        raise PanicException("index out of bounds\nat lib.rs")

    monkeypatch.setattr("cleft.models.checkpoint.read_header", panics)
    with pytest.raises(CheckpointError, match=r"PanicException: index out of bounds\); copy"):
        load_model(folder)
