"""A run of a method that trains nothing: its tower as it is, and a sentence from every verb that needs more."""

import json
import logging

import pytest
import torch
from tests.tools.tiny_runs import tiny_settings, write_drawings

from cleft.errors import CheckpointError, ConfigError
from cleft.evaluation.zero_shot import evaluate_zero_shot
from cleft.models.checkpoint import weights_digest
from cleft.models.image_classifier import build_image_classifier, load_image_classifier
from cleft.training.pretrain import pretrain
from cleft.training.prompt_context import learn_context
from cleft.training.provenance import seen_patients


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return tiny_settings(write_drawings(tmp_path_factory.mktemp("drawings") / "data"), "--method=image-only")


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    return pretrain(settings, tmp_path_factory.mktemp("runs") / "random")


def test_it_holds_the_tower_as_it_was_built_and_knows_no_patient(run, settings):
    kept, built = load_image_classifier(run).state_dict(), build_image_classifier(settings).state_dict()
    assert kept.keys() == built.keys()
    assert all(torch.equal(kept[name], built[name]) for name in built)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["weights"]) == (0, weights_digest(run))
    assert seen_patients(run, "manifest", [f"p{number:03}" for number in range(60)]) == set()


def test_an_untrained_run_is_reported_and_done_once(settings, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run = pretrain(settings, tmp_path / "random")
    assert "nothing is trained; the image tower is kept as it is" in caplog.text
    before = (run / "model.safetensors").stat().st_mtime_ns
    pretrain(settings, run)
    assert (run / "model.safetensors").stat().st_mtime_ns == before


def test_a_method_cannot_change_in_its_folder(run, settings):
    with pytest.raises(ConfigError, match="method 'image-only' → 'cleft'"):
        pretrain(tiny_settings(settings.data.root), run)


def test_there_is_no_context_and_no_zero_shot_without_texts(run, settings):
    with pytest.raises(CheckpointError, match=r"no zero-shot classification and no prompt context; cleft classify"):
        learn_context(run, settings)
    with pytest.raises(CheckpointError, match=r"no zero-shot classification"):
        evaluate_zero_shot(run)
