"""The table of embeddings joins the user's own."""

import csv

import numpy as np
import pytest
import torch
from tests.tools.tiny_runs import tiny_settings, write_drawings

from cleft.cli import main
from cleft.config import load_settings
from cleft.data.images.single import load_image
from cleft.models.checkpoint import load_model
from cleft.training.pretrain import pretrain


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = write_drawings(tmp_path_factory.mktemp("drawings") / "data", patients=40)
    return pretrain(tiny_settings(root, "--optim.steps=4"), tmp_path_factory.mktemp("runs") / "one", progress=False)


def test_each_row_is_the_image_that_it_names(run, tmp_path, capsys):
    out = tmp_path / "deep" / "embeddings.csv"
    assert main(["evaluate", str(run), "--split", "all", "--allow-overlap", "--embeddings", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert out.stat().st_mode & 0o077 == 0
    settings = load_settings(run)
    with (settings.data.root / "manifest.csv").open() as file:
        named = [row["image"] for row in csv.DictReader(file)]
    with out.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", *(f"e{column}" for column in range(settings.loss.embed_dim))]
    assert [row[0] for row in rows] == named
    model = load_model(run)
    with torch.no_grad():
        own = model.encode_image(load_image(settings.data.root / named[7], settings.images))[0].numpy()
    np.testing.assert_allclose(np.array(rows[7][1:], dtype=np.float64), own, atol=1e-5)


def test_what_cannot_be_written_is_refused_before_anything_is_asked(run, tmp_path, capsys):
    mine = tmp_path / "mine.csv"
    mine.write_text("image\n")
    for words, message in (
        (["--embeddings", str(mine)], "was not written by cleft"),
        (
            ["--embeddings", str(load_settings(run).data.root / "manifest.csv")],
            "was not written by cleft",
        ),
        (["--embeddings", str(tmp_path)], "is a folder; name a file"),
        (["--embeddings", str(tmp_path / "a.csv"), "--against", str(run)], "leave out --against"),
    ):
        before = sorted((run / "results").glob("*")) if (run / "results").is_dir() else []
        assert main(["evaluate", str(run), *words]) == 2
        assert message in capsys.readouterr().err
        assert (sorted((run / "results").glob("*")) if (run / "results").is_dir() else []) == before
    assert mine.read_text() == "image\n"
