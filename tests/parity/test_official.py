"""The authors' checkpoints give the embeddings, loss and gradients that the authors' code gave."""

import copy
import json

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from cleft.errors import CheckpointError
from cleft.models.checkpoint import load_model
from cleft.models.importing.cleft import _fill, import_authors, sort_weights
from cleft.models.importing.safe_load import load_foreign
from cleft.models.methods.losses import info_nce

KINDS = ["lora", "ia3", "prefix"]
WAYS = ["padded", "distinct", "tree"]


class Reference:
    """One checkpoint of the authors' format, imported, and what their code made of one batch with it."""

    def __init__(self, shared, folder, kind):
        self.folder = folder
        self.path = shared / f"fixtures/official/official-{kind}.ckpt"
        self.arrays = np.load(self.path.with_suffix(".npz"))
        self.model = load_model(import_authors(self.path, folder))
        self.images = self["images"].float()
        self.texts = [as_words(ids) for ids in self.arrays["caption_ids"]]

    def __getitem__(self, name):
        return torch.from_numpy(self.arrays[name])

    def gradients(self):
        """The authors' gradients in the places of our parameters, put there by the importer itself."""
        state = load_foreign(self.path)["state_dict"]
        given = {name: self[f"grad:{name}"] for name in state if f"grad:{name}" in self.arrays.files}
        assert len(given) == sum(name.startswith("grad:") for name in self.arrays.files)
        values, marks = copy.deepcopy(self.model), copy.deepcopy(self.model)
        _fill(values, sort_weights({**state, **given}))
        _fill(marks, sort_weights({name: torch.full_like(tensor, name in given) for name, tensor in state.items()}))
        marked = {name for name, mark in marks.named_parameters() if bool(mark.bool().all())}
        return {name: value.detach() for name, value in values.named_parameters() if name in marked}


def as_words(ids):
    """The ids in front of the first end-of-text token, 0, as the tower without a tokenizer reads them."""
    return " ".join(str(token) for token in ids[: list(ids).index(0)])


@pytest.fixture(scope="module")
def references():
    return {}


@pytest.fixture(params=KINDS)
def reference(request, shared, references, tmp_path_factory):
    if request.param not in references:
        references[request.param] = Reference(shared, tmp_path_factory.mktemp("model"), request.param)
    references[request.param].model.zero_grad()
    return references[request.param]


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_images_give_their_features_and_embeddings(reference):
    features = reference.model.image_tower(reference.images)
    close(features, reference["image_prenorm_mean"])
    close(normalize(reference.model.image_projection(features), dim=1), reference["image_embeds"])


@pytest.mark.parametrize("way", WAYS)
def test_texts_give_their_states_and_embeddings(reference, way):
    reference.model.text_tower.packing = way
    close(reference.model.text_tower(reference.texts), reference["text_eos_state"])
    close(reference.model.encode_text(reference.texts), reference["text_embeds"])
    assert reference.model.text_tower.packing == way  # nothing fell back


@pytest.mark.parametrize("way", ["padded", "tree"])
def test_the_loss_is_half_of_theirs_and_so_is_every_gradient(reference, way):
    """The authors add both directions, we average them as Eq. 1 does (docs/decisions/0050)."""
    model = reference.model
    model.text_tower.packing = way
    image_embeds = normalize(model.image_projection(model.image_tower(reference.images)), dim=1)
    loss = 2 * info_nce(image_embeds, model.encode_text(reference.texts), model.logit_scale.exp())
    close(loss.double(), reference["loss"])
    loss.backward()
    theirs = reference.gradients()
    ours = {name: weight.grad for name, weight in model.named_parameters() if name in theirs}
    assert len(theirs) >= 7
    for name, gradient in theirs.items():
        close(ours[name], gradient)
        assert gradient.abs().max() > 0, name


def test_gradients_reach_exactly_what_moves(reference):
    """No weight that trains here was still in the authors' code, and none that trained there is still here."""
    moving = {name for name, weight in reference.model.named_parameters() if weight.requires_grad}
    assert reference.gradients().keys() <= moving
    adapter = {name for name in moving if name.startswith("text_tower.")}
    assert adapter == {name for name in reference.gradients() if name.startswith("text_tower.")}


def test_the_authors_settings_are_kept_and_nothing_else_of_theirs(reference):
    described = json.loads((reference.folder / "model.json").read_text())
    assert described["extra"]["imported"]["batch_size"] == 72
    assert described["settings"]["text"]["end_token_attends_itself"] is False
    assert "experiment_name" not in json.dumps(described)


def test_a_sentence_needs_a_tokenizer(reference):
    with pytest.raises(CheckpointError, match="import it again with `--tokenizer <folder>`"):
        reference.model.encode_text(["edema"])


def test_a_token_the_model_does_not_know_is_refused(reference):
    with pytest.raises(CheckpointError, match="takes only token ids"):
        reference.model.encode_text(["64"])
