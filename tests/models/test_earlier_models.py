"""A model folder written by version 0.1.0 loads and gives the same embeddings."""

import tarfile
from pathlib import Path

import pytest
import torch

from cleft.models.checkpoint import load_model
from cleft.models.image_classifier import load_image_classifier

ARCHIVE = Path(__file__).with_name("model-0.1.0.tar.xz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An MGCA model with settings that were renamed since: hidden_width, still_steps, word_weights, layers, graphs."""
    place = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(place, filter="data")
    return place / "model-0.1.0"


def test_a_model_folder_of_version_0_1_0_gives_the_same_embeddings(folder):
    model = load_model(folder)
    image = torch.arange(56 * 56, dtype=torch.uint8).reshape(1, 1, 56, 56)
    expected = torch.tensor([-0.297076, 0.02977, 0.141106, -0.119912])
    torch.testing.assert_close(model.encode_image(image)[0, :4], expected, atol=1e-5, rtol=1e-4)
    expected = torch.tensor([0.143442, 0.441914, -0.390023, -0.063742])
    torch.testing.assert_close(model.encode_text(["an edema"])[0, :4], expected, atol=1e-5, rtol=1e-4)


def test_renamed_settings_of_an_earlier_folder_keep_their_values(folder):
    text = load_model(folder).text_tower.config
    assert (text.pooled_layers, text.cuda_graphs) == ((-1,), True)
    assert load_image_classifier(folder).image_spec.size == (56, 56)
