"""The examples of how to add a dataset and a method run."""

import csv
import dataclasses
import re
import textwrap
from pathlib import Path

import pytest
import torch
from tests.tools.tiny_runs import CLASSES, tiny_settings, write_drawings

from cleft.data.datasets import DATASETS, Dataset, read_dataset
from cleft.models.methods import METHODS
from cleft.training.pretrain import pretrain

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "add-a-dataset-method-loss-or-metric.md"


def example(function):
    """Returns the function that a code block of the page defines."""
    blocks = re.findall(r"^ *```python\n(.*?)^ *```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    [code] = [block for block in map(textwrap.dedent, blocks) if f"def {function}(" in block]
    names = {}
    exec(code, names)
    return names[function]


@pytest.fixture
def settings(tmp_path):
    root = write_drawings(tmp_path / "drawings", patients=40)
    with (root / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = [
        ["file", "person", *CLASSES],
        *([row["image"], row["patient"], *(row[c] for c in CLASSES)] for row in rows),
    ]
    (root / "toy.csv").write_text("\n".join(",".join(line) for line in lines))
    return tiny_settings(root, "--optim.steps=2", "--optim.warmup_steps=0")


def test_the_example_of_a_dataset_reads_every_image(settings, monkeypatch):
    monkeypatch.setitem(DATASETS, "manifest", Dataset(reader=example("read_toy")))
    reading = read_dataset(settings.data)
    assert len(reading.records) == 40
    assert reading.records[0].patient == "p000"
    assert set(reading.records[0].labels) == set(CLASSES)


def test_the_example_of_a_method_trains(settings, tmp_path, monkeypatch):
    toy = METHODS["clip"]._replace(loss=example("toy_loss"))
    monkeypatch.setattr("cleft.training.pretrain.METHODS", {**METHODS, "clip": toy})
    run = pretrain(dataclasses.replace(settings, method="clip"), tmp_path / "run", progress=False)
    assert (run / "model.safetensors").is_file()


def test_the_example_of_a_loss_is_the_squared_distance():
    model = torch.nn.Module()
    model.logit_scale = torch.tensor(1.0)
    one = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert example("toy_loss")(model, (one, one.flip(1)), None, None).item() == 2.0
