"""Each image once, independent of its neighbours, and never from a store of something else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from cleft.errors import DataError, NumericsError
from cleft.training.features import encode_features, encode_images
from cleft.types import Batch, Record

FINDINGS = ("Edema", "Pneumonia")


class Model(nn.Module):
    """A linear map with dropout, and a count of the images it saw."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(16, 4)
        self.dropout = nn.Dropout(0.5)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.images = 0

    def encode_image(self, images):
        return nn.functional.normalize(self.encode_image_features(images), dim=1)

    def encode_image_features(self, images):
        self.images += len(images)
        return self.dropout(self.map(images.flatten(1).float() / 255))


def records(count=7):
    return [
        Record(id=f"r{i}", image=Path(f"{i}.png"), labels={"Edema": i % 2}, patient=f"p{i // 2}", view="AP")
        for i in range(count)
    ]


def batches(size, count=7, order=None):
    torch.manual_seed(1)
    images = torch.randint(0, 256, (count, 1, 4, 4), dtype=torch.uint8)
    for rows in torch.tensor(order or range(count)).split(size):
        yield Batch(images[rows], [""] * len(rows), torch.zeros(len(rows), 2), rows)


@pytest.mark.parametrize("size", [1, 3, 16])
def test_h8_batch_size_changes_nothing(size):
    once = encode_images(Model(), batches(7), records(), FINDINGS).image_embeds
    torch.testing.assert_close(
        encode_images(Model(), batches(size), records(), FINDINGS).image_embeds, once, atol=1e-5, rtol=0
    )


def test_h8_order_of_the_batches_changes_nothing():
    forth = encode_images(Model(), batches(3), records(), FINDINGS).image_embeds
    back = encode_images(Model(), batches(3, order=[6, 5, 4, 3, 2, 1, 0]), records(), FINDINGS).image_embeds
    torch.testing.assert_close(back, forth, atol=1e-5, rtol=0)


def test_h8_dropout_is_off_and_the_mode_comes_back():
    model = Model().train()
    first, second = (encode_images(model, batches(3), records(), FINDINGS).image_embeds for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert model.training


def test_labels_are_in_the_order_of_their_images():
    embeddings = encode_images(Model(), batches(2), records(), FINDINGS)
    assert embeddings.labels[:, 0].tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert embeddings.labels[:, 1].isnan().all()
    assert embeddings.ids[3] == "r3"
    assert embeddings.patients[3] == "p1"


@pytest.mark.parametrize(("order", "left", "twice"), [([0, 1, 2, 3, 4, 5], 1, 0), ([0, 1, 2, 3, 4, 5, 6, 6], 0, 1)])
def test_h4_an_image_left_out_or_shown_twice_is_refused(order, left, twice):
    with pytest.raises(DataError, match=f"left out {left} and repeated {twice}"):
        encode_images(Model(), batches(3, order=order), records(), FINDINGS)


def test_an_empty_loader_is_refused():
    with pytest.raises(DataError, match="left out 7"):
        encode_images(Model(), [], records(), FINDINGS)


def test_weights_that_are_not_finite_are_refused():
    model = Model()
    model.map.bias.data[0] = float("nan")
    with pytest.raises(NumericsError, match="all 7 image embeddings are not finite"):
        encode_images(model, batches(3), records(), FINDINGS)


def stored(folder, model, key="w0", who=None):
    who = who or records()
    return encode_images(model, batches(3, len(who)), who, FINDINGS, folder=folder, key={"weights": key})


def test_the_second_pass_reads_what_the_first_left(tmp_path):
    model = Model()
    first, second = stored(tmp_path, model), stored(tmp_path, model)
    assert model.images == 7
    assert torch.equal(first.image_embeds, second.image_embeds)
    assert first.ids == second.ids


def test_features_and_embeddings_are_cached_separately(tmp_path):
    model = Model()
    embeds = stored(tmp_path, model).image_embeds
    first, second = (
        encode_features(model, batches(3), records(), folder=tmp_path, key={"weights": "w0"}) for _ in range(2)
    )
    assert model.images == 14
    assert torch.equal(first, second)
    torch.testing.assert_close(nn.functional.normalize(first, dim=1), embeds)
    assert not torch.allclose(first, embeds)


def test_other_weights_encode_again(tmp_path):
    model = Model()
    stored(tmp_path, model, "w0")
    stored(tmp_path, model, "w1")
    assert model.images == 14


def test_another_order_of_the_records_encodes_again(tmp_path):
    model = Model()
    stored(tmp_path, model)
    stored(tmp_path, model, who=records()[::-1])
    assert model.images == 14


@pytest.mark.parametrize("damage", ["no manifest", "flipped bit", "cut", "no embeddings", "fewer rows", "manifest cut"])
def test_h11_what_is_incomplete_or_damaged_is_never_used(tmp_path, damage):
    model = Model()
    good = stored(tmp_path, model).image_embeds
    (place,) = tmp_path.iterdir()
    embeds, manifest = place / "image_embeds.safetensors", place / "manifest.json"
    data = bytearray(embeds.read_bytes())
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "flipped bit":
        data[-1] ^= 1
        embeds.write_bytes(data)
    elif damage == "cut":
        embeds.write_bytes(data[:-8])
    elif damage == "no embeddings":
        embeds.unlink()
    elif damage == "fewer rows":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "images": 6}))
    else:
        manifest.write_text(manifest.read_text()[:20])
    assert torch.equal(stored(tmp_path, model).image_embeds, good)
    assert model.images == 14
    stored(tmp_path, model)
    assert model.images == 14  # and the damage is mended


def test_h11_killed_before_the_manifest_leaves_nothing_to_use(tmp_path, monkeypatch):
    model = Model()

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cleft.training.features._manifest", dies)
    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path, model)
    monkeypatch.undo()
    stored(tmp_path, model)
    assert model.images == 14


def test_o7_the_store_is_for_its_owner_and_names_no_patient(tmp_path):
    stored(tmp_path, Model())
    (place,) = tmp_path.iterdir()
    assert place.stat().st_mode & 0o077 == 0
    for file in place.iterdir():
        assert file.stat().st_mode & 0o077 == 0
        assert b"p1" not in file.read_bytes()
        assert b"r3" not in file.read_bytes()


def test_evaluation_and_reports_do_not_load_lightning():
    code = (
        "import importlib, pkgutil, sys, cleft.evaluation, cleft.report\n"
        "for package in (cleft.evaluation, cleft.report):\n"
        "    for module in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
        "import cleft.training.features, cleft.training.provenance, cleft.training.run_folder\n"
        "print('cleft.training.features' in sys.modules, 'lightning' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["True", "False"]
