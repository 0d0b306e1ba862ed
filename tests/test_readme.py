"""Commands, Python and links of the README run; commands and links of the other pages are valid."""

import dataclasses
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from tests.tools.tiny_runs import copy_drawings, tiny_settings, write_drawings

from cleft import evaluate_zero_shot, learn_context, pretrain
from cleft.cli import build_parser
from cleft.cli.options import COMMANDS, split_settings
from cleft.config import Settings, load_settings, merge_overrides, preset_summaries
from cleft.data import read_dataset
from cleft.data.splits.recipes import split_records
from cleft.data.splits.subsets import order_key
from cleft.evaluation.result_files import ORDER_SALT, read_evaluation, read_predictions

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted([README, *ROOT.glob("docs/*.md"), *ROOT.glob("docs/how-to/*.md"), *ROOT.glob("docs/datasets/*.md")])


def commands(page: Path) -> list[str]:
    """Returns the commands in code blocks and inline code that begin with `cleft`, split at `&&`, without comments."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^(?: {4}| {7})?(cleft [a-z].*)$", text, re.MULTILINE)
    inline = re.findall(r"`(cleft [a-z-][^`]*)`", text)
    return [part.strip() for line in [*blocks, *inline] for part in line.partition(" #")[0].split("&&")]


def documented_commands() -> list[object]:
    return [pytest.param(line, id=f"{page.name}: {line}") for page in PAGES for line in dict.fromkeys(commands(page))]


def test_the_python_example_gives_the_scores_of_the_command_line(tmp_path, monkeypatch):
    spelled = {"Edema": "No Finding", "Fracture": "Pneumonia"}
    drawings = copy_drawings(
        write_drawings(tmp_path / "drawings", patients=40),
        tmp_path / "data",
        lambda row: {spelled.get(name, name): value for name, value in row.items()},
    )
    classes = ("No Finding", "Pneumonia")
    settings = dataclasses.replace(
        tiny_settings(drawings, "--optim.steps=4", "--context.optim.steps=4"), classes=classes
    )
    learn_context(pretrain(settings, tmp_path / "runs" / "first", progress=False), progress=False)
    result = evaluate_zero_shot(tmp_path / "runs" / "first-context", progress=False)
    scores = read_predictions(
        result, read_evaluation(result)
    ).scores  # logits, images in the order of a hash of their ids
    shown = [
        record
        for record in split_records(read_dataset(settings.data), settings.data).test
        if sum(record.labels[name] == 1 for name in classes) == 1
    ]
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for record, expected in zip(sorted(shown, key=lambda each: order_key(ORDER_SALT, each.id)), scores, strict=True):
        shutil.copy(record.image, tmp_path / "chest.png")
        names = {}
        exec(code, names)
        assert list(names["image"].shape) == [1, 1, settings.images.size, settings.images.size]
        assert not names["probabilities"].requires_grad
        wanted = torch.from_numpy(expected).double().softmax(dim=-1)
        assert names["probabilities"][0].tolist() == pytest.approx(wanted.tolist(), abs=1e-5)


@pytest.mark.parametrize("line", documented_commands())
def test_every_documented_command_parses(line):
    words = [word for word in shlex.split(line)[1:] if word != "…"]
    words, settings = split_settings(words)
    if words[-1:] in (["--help"], ["--help-all"]):
        with pytest.raises(SystemExit) as ended:
            build_parser().parse_args(words)
        assert ended.value.code == 0
        return
    try:
        options, more = build_parser().parse_known_args(words)
    except SystemExit:  # a command that is only mentioned in a sentence
        with pytest.raises(SystemExit) as ended:
            build_parser().parse_args([*words, "--help"])
        assert ended.value.code == 0
        assert not words[1:] or words[0] == "data"
        return
    given = [*more, *settings]
    assert not given or COMMANDS[options.command].settings is not None
    if options.command == "pretrain" and not options.preset.startswith("<"):
        load_settings(options.preset, given) if options.preset in preset_summaries() else pytest.fail(options.preset)
    else:
        merge_overrides(Settings(), given)


def test_the_readme_has_commands():
    assert len(commands(README)) >= 10


def test_every_preset_the_readme_names_exists():
    named = re.findall(r"cleft pretrain ([a-z0-9-]+)", README.read_text(encoding="utf-8"))
    assert set(named) - {"--help-all"} <= set(preset_summaries())
    assert {"small", "cleft-paper"} <= set(named)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_link_has_a_target(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_every_make_target_of_the_readme_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^ {4}make ([a-z]+)", README.read_text(encoding="utf-8"), re.MULTILINE)) <= targets


def switches() -> list[object]:
    """Returns the settings in the tables of docs/baselines.md, each with the preset of its section."""
    found = []
    for section in (ROOT / "docs" / "baselines.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        for preset in re.findall(r"cleft pretrain (baseline-\S+)", section)[:1]:
            found += [(preset, switch) for switch in re.findall(r"`(--[a-z_]+\.[a-z_]+ [^`<]+)`", section)]
    return [pytest.param(preset, switch, id=f"{preset} {switch}") for preset, switch in dict.fromkeys(found)]


@pytest.mark.parametrize(("preset", "switch"), switches())
def test_every_setting_in_the_baselines_page_changes_its_preset(preset, switch):
    assert load_settings(preset, shlex.split(switch)) != load_settings(preset)


def test_every_baseline_has_a_section():
    page = (ROOT / "docs" / "baselines.md").read_text(encoding="utf-8")
    presets = [name for name in preset_summaries() if name.startswith("baseline-")]
    assert len(presets) == 8
    assert [name for name in presets if f"cleft pretrain {name} " not in page] == []
