"""A run on mammograms: what their owner allows goes with the weights, and no caption loses its score."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from tests.fakes.embed import file_row, finding_row, write_fake_embed

from cleft.config import load_settings
from cleft.data.readers.embed import TERMS
from cleft.data.tables.paths import PHANTOMS_FILE
from cleft.errors import ConfigError
from cleft.report.run_page import render
from cleft.report.runs import read_runs
from cleft.training.pretrain import pretrain
from cleft.training.prompt_context import learn_context


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Ten patients with two images each, of four densities and two assessments."""
    folder, files, findings = tmp_path_factory.mktemp("embed"), [], []
    for patient in range(20):
        ids = {"patient": f"{10_000_000 + patient}", "exam": f"{patient}"}
        files += [file_row(f"{patient}{side}", side=side, **ids) for side in "LR"]
        findings.append(finding_row("NB"[patient % 2], density=f"{patient % 4 + 1}", **ids))
    write_fake_embed(folder, files, findings)
    for number, path in enumerate(sorted(folder.rglob("*.dcm"))):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(path, format="PNG")
    return folder


def settings_of(root, *more):
    fixed = [
        "--train.accelerator=cpu",
        "--classes=[BI-RADS 1, BI-RADS 2]",
        "--optim.steps=4",
        "--context.optim.steps=4",
    ]
    place = [f"--data.root={root}", f"--data.cache={root.parent / 'cache'}"]
    return load_settings("tiny", ["--data.dataset=embed", *place, *fixed, *more])


def test_what_the_owner_allows_goes_with_the_weights(root, tmp_path, caplog):
    first = pretrain(settings_of(root), tmp_path / "run", progress=False)
    assert TERMS in caplog.messages
    second = learn_context(first, progress=False)
    for run in (first, second):
        assert json.loads((run / "summary.json").read_text())["terms"] == [TERMS]
        assert json.loads((run / "model.json").read_text())["extra"] == {"terms": [TERMS]}
    page = render(read_runs([first, second]))
    assert page.count("Redistribution of these weights is restricted.") == 2


def test_a_caption_that_is_too_long_is_refused_with_the_length_needed(root, tmp_path):
    with pytest.raises(
        ConfigError, match=r"(is|are) longer than text\.max_tokens=12 .* set text\.max_tokens to \d+ or more"
    ) as told:
        pretrain(settings_of(root, "--text.max_tokens=12"), tmp_path / "short", progress=False)
    enough = int(str(told.value).partition("text.max_tokens to ")[2].split()[0])
    pretrain(settings_of(root, f"--text.max_tokens={enough}"), tmp_path / "long", progress=False)
    with pytest.raises(ConfigError, match=r"would lose (its|their) end"):
        pretrain(settings_of(root, f"--text.max_tokens={enough - 1}"), tmp_path / "shorter", progress=False)


def test_phantoms_have_no_terms_of_use(root, tmp_path, caplog):
    drawn = shutil.copytree(root, tmp_path / "drawn")
    (drawn / PHANTOMS_FILE).write_text("{}")
    run = pretrain(settings_of(drawn), tmp_path / "run", progress=False)
    assert TERMS not in caplog.messages
    assert "terms" not in json.loads((run / "summary.json").read_text())
