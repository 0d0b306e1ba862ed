"""Python and the command line give the same answers, for the spelling of tables and for that of people."""

import copy
import csv
import dataclasses
import json
import pickle
import unicodedata

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score
from tests.tools.tiny_methods import TOWERS, method_settings
from tests.tools.tiny_runs import copy_drawings, tiny_settings, write_drawings

import cleft
from cleft.cli import main
from cleft.data import read_dataset
from cleft.data.splits.recipes import split_records
from cleft.errors import DataError
from cleft.evaluation.result_files import read_evaluation
from cleft.evaluation.scoring import log_odds
from cleft.models.checkpoint import _rule_before, load_model
from cleft.models.image_classifier import build_image_classifier
from cleft.models.methods import build_model

CLASSES = ("Pleural Effusion", "Pleural_Thickening", "No Finding")
OPENING = "this is a chest x ray of a patient with"
TABLE = list(CLASSES)
PEOPLE = {
    "small letters and a full stop": ["pleural effusion.", "pleural thickening.", "no finding."],
    "capitals": ["PLEURAL EFFUSION", "PLEURAL THICKENING", "NO FINDING"],
    "white space": ["  pleural   effusion\n", "pleural\u00a0thickening", "no\tfinding "],
    "quotation marks": ["\u201cpleural effusion\u201d", "\u2018pleural thickening\u2019", "\u00abno finding\u00bb"],
    "hyphens": ["pleural\u2011effusion", "pleural-thickening", "no\u2010finding"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of both stages; its table spells findings as NIH and CheXpert do."""
    home = tmp_path_factory.mktemp("same-texts")
    spelled = dict(zip(("Edema", "Fracture", "Cardiomegaly"), CLASSES, strict=True))
    drawings = write_drawings(home / "drawings", patients=60)
    renamed = copy_drawings(drawings, home / "data", lambda row: {spelled.get(k, k): v for k, v in row.items()})
    settings = dataclasses.replace(tiny_settings(renamed, "--optim.steps=30", "--optim.lr=3e-3"), classes=CLASSES)
    cleft.pretrain(settings, str(home / "run"), progress=False)
    return cleft.learn_context(str(home / "run"), progress=False)


@pytest.fixture(scope="module")
def model(run):
    return cleft.load(run)


@pytest.fixture(scope="module")
def pictures(run, model):
    """Embeddings of the test images that show one class, and which: as a Python user makes them."""
    settings = cleft.load_settings(run)
    shown = []
    for record in split_records(read_dataset(settings.data), settings.data).test:
        present = [place for place, name in enumerate(CLASSES) if record.labels.get(name) == 1]
        if len(present) == 1:
            shown.append((cleft.load_image(record.image, settings.images), present[0]))
    with torch.no_grad():
        return torch.cat([model.encode_image(image) for image, _ in shown]), np.array([place for _, place in shown])


def typed(run, *options):
    """AUC of each class, as the command line writes it."""
    before = set((run / "results").glob("*.json"))
    assert main(["evaluate", str(run), "--task", "zero-shot", *options]) == 0
    [path] = set((run / "results").glob("*.json")) - before or {max(before, key=lambda path: path.stat().st_mtime)}
    found = {result.metric: result.value for result in read_evaluation(path).results}
    return [found[f"auc/{name}"] for name in CLASSES]


def aucs(model, pictures, texts):
    embeds, truth = pictures
    logits = (model.logit_scale.exp() * embeds @ texts.T).detach().double().numpy()
    return [roc_auc_score(truth == place, log_odds(logits)[:, place]) for place in range(len(CLASSES))]


@pytest.mark.parametrize("names", [TABLE, *PEOPLE.values()], ids=["table", *PEOPLE])
def test_class_names_after_context_give_the_auc_of_the_command_line(run, model, pictures, names):
    with torch.no_grad():
        embeds = model.encode_class_names(names)
    assert torch.equal(embeds, model.encode_class_names(TABLE))
    assert aucs(model, pictures, embeds) == pytest.approx(typed(run), abs=1e-6)


@pytest.mark.parametrize("opening", [OPENING, "This is a Chest X-ray of a patient with", f"{OPENING}:\n"])
@pytest.mark.parametrize("names", [TABLE, *PEOPLE.values()], ids=["table", *PEOPLE])
def test_handwritten_prompts_give_the_auc_of_the_command_line(run, model, pictures, opening, names):
    with torch.no_grad():
        embeds = model.encode_text([f"{opening} {name}" for name in names])
    assert torch.equal(embeds, model.encode_text([f"{OPENING} {name}" for name in TABLE]))
    assert aucs(model, pictures, embeds) == pytest.approx(typed(run, "--prompts", "handwritten"), abs=1e-6)


def test_accents_composed_and_decomposed_are_one_text(model):
    text = "\u00c9panchement pleural \u00e0 droite"
    assert torch.equal(model.encode_text(text), model.encode_text(unicodedata.normalize("NFD", text)))


def test_a_str_is_one_text_or_one_class_name(model):
    assert model.encode_text("edema").shape == (1, 16)
    assert torch.equal(model.encode_text("edema"), model.encode_text(["edema"]))
    assert torch.equal(model.encode_class_names("edema"), model.encode_class_names(np.array(["edema"])))
    assert model.text_tower("edema").shape == (1, 16)


@pytest.mark.parametrize("texts", [b"edema", None, [None], {"edema"}, [], ["edema\u202e"], ["e" * 1_000_000], ["..."]])
def test_invalid_texts_are_refused_everywhere(model, texts):
    for public in (model.encode_text, model.encode_class_names, model.text_tower):
        with pytest.raises(DataError):
            public(texts)


def test_equal_class_names_are_refused(model):
    with pytest.raises(DataError, match="class names at positions 0 and 2 are equal after normalisation"):
        model.encode_class_names(["Edema", "Mass", "edema."])


def test_the_model_folder_names_its_rule(run):
    description = json.loads((run / "model.json").read_text())
    assert description["settings"]["text"]["normalisation"] == "words-2"
    assert load_model(run).text_tower.rule == "words-2"


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({}, "words-1"),
        ({"texts": "mgca"}, "release-1"),
        ({"texts": "whole"}, "nfc-1"),
        ({"texts": "medclip"}, "nfc-1"),
        ({"prompt_prefix": "This is an X-ray of"}, "nfc-1"),
        ({"prompt_prefix": "an ultrasound with"}, "words-1"),
    ],
)
def test_old_runs_get_the_rule_of_their_training(run, tmp_path, changed, rule):
    tree = yaml.safe_load((run / "config.yaml").read_text())
    del tree["text"]["normalisation"]
    tree["data"] |= changed
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert cleft.load_settings(tmp_path).text.normalisation == rule


def test_retrieval_and_classification_name_the_same_classes(run):
    assert main(["evaluate", str(run), "--task", "retrieval"]) == 0
    assert main(["evaluate", str(run), "--task", "prompts"]) == 0
    found = read_evaluation(next((run / "results").glob("*prompts*.json")))
    assert found.class_prompts == tuple(
        f"{OPENING} {name}" for name in ("pleural effusion", "pleural thickening", "no finding")
    )


def test_a_caption_with_an_invisible_character_is_refused_with_its_line(tmp_path):
    write_drawings(tmp_path / "data", patients=8)
    table = tmp_path / "data" / "manifest.csv"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    for number, row in enumerate(rows):
        row["caption"] = "edema" if number != 3 else "ede\u200bma"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    settings = tiny_settings(tmp_path / "data")
    with pytest.raises(
        DataError, match=r"line 5: a caption holds U\+200B \(zero width space\) at character 3; remove it"
    ):
        read_dataset(settings.data)


@pytest.mark.parametrize(
    "option", ["--data.prompt_prefix=a chest\u202e x ray of", "--data.prompt_prefix=" + "x " * 600_000]
)
def test_invalid_prompt_prefix_is_refused(tmp_path, option):
    write_drawings(tmp_path / "data", patients=24)
    with pytest.raises(DataError, match=r"the caption or report of .* (holds U\+202E|has 1,200,0)"):
        cleft.pretrain(tiny_settings(tmp_path / "data", option), tmp_path / "run", progress=False)


def _answers(model):
    """All that a model says of a few texts and images, without gradients."""
    texts = ["no finding", "pleural effusion", "this is a chest x ray of a patient with edema"]
    found = []
    with torch.no_grad():
        if hasattr(model, "text_tower"):
            found.append(model.text_tower(texts))
        if hasattr(model, "encode_text"):
            found.append(model.encode_text(texts))
        if hasattr(model, "encode_words"):
            found.append(model.encode_words(texts).words)
        if getattr(model, "context", None) is not None:
            found.append(model.encode_class_names(texts[:2]))
        pixels = torch.arange(model.image_spec.size[0] ** 2).reshape(1, 1, *model.image_spec.size).remainder(251)
        found.append(model.encode_image_features(pixels.to(torch.uint8)))
    return found


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}  # noqa: S301 our own
KINDS = [
    *TOWERS,
    *(f"--text.adapt={adapt}" for adapt in ("lora", "ia3", "prefix", "full", "frozen")),
    "--text.packing=padded",
    "--text.gradient_checkpointing=true",
    '--text.scratch={"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, '
    '"intermediate_size": 32}',
    "context",
    "images alone",
]


@pytest.mark.parametrize("kind", KINDS)
def test_models_can_be_pickled_and_copied(tmp_path, kind):
    captions = ["no finding", "pleural effusion", "this is a chest x ray of a patient with edema"]
    settings = method_settings(kind, tmp_path) if kind in TOWERS else tiny_settings(tmp_path)
    if kind == "images alone":
        built = build_image_classifier(dataclasses.replace(settings, method="image-only"))
    else:
        settings = tiny_settings(tmp_path, kind) if kind.startswith("--") else settings
        built = build_model(settings, captions)
    if kind == "context":
        built.set_context(torch.ones(4, built.text_tower.width))
    for state in ("fresh", "used", "trained"):
        if state == "trained" and kind != "images alone":
            built.train()
            built.text_tower(captions).sum().backward()
        built.eval()
        for name, make in COPIES.items():
            copied = make(built)
            for mine, other in zip(_answers(built), _answers(copied), strict=True):
                assert torch.equal(mine, other), (state, name)
            with torch.no_grad():
                for weight in copied.parameters():
                    weight.add_(1)
            assert not torch.equal(_answers(built)[-1], _answers(copied)[-1])  # nothing is shared


def test_a_loaded_model_with_its_context_is_pickled_and_copied(model):
    names = model.encode_class_names(TABLE)
    for make in COPIES.values():
        assert torch.equal(make(model).encode_class_names(PEOPLE["capitals"]), names)


@pytest.mark.parametrize(
    ("extra", "rule"),
    [
        ({"imported": {"file": "a.ckpt", "sha256": ""}}, "release-1"),  # the authors' own
        ({"imported": {"method": "GLoRIA"}}, "release-1"),
        ({"imported": {"method": "MGCA"}}, "release-1"),
        ({"imported": {"method": "BiomedCLIP"}}, "nfc-1"),
        ({"imported": {"method": "OpenAI's CLIP"}}, "nfc-1"),
        ({}, "words-1"),
    ],
)
def test_old_model_folders_get_the_rule_of_their_training(tmp_path, extra, rule):
    assert _rule_before(tmp_path, {"extra": extra}) == rule


@pytest.mark.slow
def test_real_radiographs_score_equally_in_python_and_on_the_command_line(shared, tmp_path):
    root = shared / "data" / "chexpert-mini" / "CheXpert-v1.0-small"
    overrides = [f"--data.root={root}", f"--data.cache={tmp_path / 'cache'}", "--optim.steps=100"]
    settings = cleft.load_settings("small", [*overrides, "--context.optim.steps=200"])
    run = cleft.learn_context(cleft.pretrain(settings, tmp_path / "run", progress=False), progress=False)
    model, classes = cleft.load(run), ("No Finding", "Pneumonia")
    images, truth = [], []
    for record in split_records(read_dataset(settings.data), settings.data).test:
        present = [place for place, name in enumerate(classes) if record.labels.get(name) == 1]
        if len(present) == 1:
            images.append(cleft.load_image(record.image, settings.images))
            truth.append(present[0])
    with torch.no_grad():
        embeds = torch.cat([model.encode_image(image) for image in images])
        for options, encode, front in (
            (("--prompts", "context"), model.encode_class_names, ("", "")),
            (
                ("--prompts", "handwritten"),
                model.encode_text,
                (f"{OPENING} ", "This is a chest X-ray of a patient with "),
            ),
        ):
            assert main(["evaluate", str(run), "--task", "zero-shot", *options]) == 0
            newest = max((run / "results").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
            [auc] = [result.value for result in read_evaluation(newest).results if result.metric == "auc"]
            for names in (classes, ("no finding", "pneumonia"), ("NO FINDING.", "Pneumonia ")):
                for opening in front:
                    texts = encode([f"{opening}{name}" for name in names])
                    logits = (model.logit_scale.exp() * embeds @ texts.T).double().numpy()
                    assert roc_auc_score(truth, log_odds(logits)[:, 1]) == pytest.approx(auc, abs=1e-6)
