"""Runs of tiny towers with random weights on images that show nothing: everything of a run but what was learned."""

from pathlib import Path

import torch
from tests.fakes.chexpert import chexpert_row, write_fake_chexpert

from cleft.config import Settings, load_settings
from cleft.models.checkpoint import save_model
from cleft.models.methods import build_model
from cleft.training.dataset import read_training_data
from cleft.training.run_folder import open_run

CLASSES = ("Atelectasis", "Edema", "Cardiomegaly", "Pleural Effusion", "Consolidation")


def untrained_rows(patients: int = 70) -> list[dict[str, str]]:
    """Each patient has two images; most show one class, every seventh none and every eighth two."""
    made = []
    for patient in range(1, patients + 1):
        labels = {CLASSES[patient % 5]: "1.0", "Fracture": "0.0"}
        if patient % 7 == 0:
            labels = {"No Finding": "1.0"}
        if patient % 8 == 0:
            labels = {"Edema": "1.0", "Consolidation": "1.0", "Fracture": "1.0"}
        for study in (1, 2):
            name = f"patient{patient:05d}/study{study}/view1_frontal.jpg"
            made.append(chexpert_row(name, labels, view="AP" if patient % 3 else "PA"))
    return made


def write_untrained_runs(folder: Path) -> Path:
    """Writes `data`, a run `plain`, and a run `run` of the same towers with a context, into one folder."""
    data = write_fake_chexpert(folder / "data", untrained_rows())
    words = [f"--data.root={data}", f"--data.cache={folder / 'cache'}", "--data.test_fraction=0.5"]
    settings = load_settings("tiny", words)
    write_untrained_run(folder / "plain", settings)
    write_untrained_run(folder / "run", settings, context=4)
    return folder


def write_untrained_run(folder: Path, settings: Settings, *, context: int = 0) -> Path:
    """Writes a run of the towers that settings describe, as they are before training; returns its folder."""
    material = read_training_data(settings, progress=False)
    model = build_model(settings, [record.caption or "" for record in material.train])
    if context:
        model.set_context(torch.randn(context, model.text_tower.width))
    with open_run(folder, settings, "pretrain") as run:
        run.record_split(material.facts())
        save_model(model, settings, folder)
    return folder
