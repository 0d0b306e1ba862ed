"""docs/reference.md lists the public names with their signatures, and its examples run."""

import re
from pathlib import Path

import pytest
from tests.tools.reference import MODEL_METHODS, page, signature

import cleft
from cleft.cli import main
from cleft.models.dual_encoder import DualEncoder

PAGE = (Path(__file__).parents[1] / "docs" / "reference.md").read_text(encoding="utf-8")


def test_every_public_name_has_a_section():
    sections = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)
    assert sorted(sections) == sorted(
        [*(f"cleft.{name}" for name in cleft.__all__), *(f"model.{name}" for name in MODEL_METHODS)]
    )


@pytest.mark.parametrize("name", [name for name in cleft.__all__ if not isinstance(getattr(cleft, name), type)])
def test_signatures_are_those_of_the_functions(name):
    assert signature(f"cleft.{name}", getattr(cleft, name)) in PAGE


@pytest.mark.parametrize("name", MODEL_METHODS)
def test_signatures_of_methods_are_those_of_the_model(name):
    assert signature(f"model.{name}", getattr(DualEncoder, name)) in PAGE


def test_the_page_can_be_generated():
    assert "### `cleft.load_settings`" in page()


def test_the_examples_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "phantoms", "phantoms", "--patients", "60"]) == 0
    steps = '"--optim.steps", "2", "--optim.warmup_steps", "0", "--context.optim.steps", "2", "--data.cache", "cache", '
    small = steps + '"--context.optim.warmup_steps", "0", "--classify.protocol", "standard"'
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    assert code.count('"demo", [') == 1
    names = {}
    exec(code.replace('"demo", [', f'"tiny", [{small}, '), names)
    assert names["page"].is_file()
    assert names["probabilities"].shape == (1, 2)
    assert names["settings"] != names["other_seed"]
