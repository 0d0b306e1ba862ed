"""All commands with the same settings use the same split, by its digest."""

import json
import re
import shlex
from pathlib import Path

import pytest
from tests.fakes.rsna import rsna_row, write_fake_rsna

from cleft.cli import main
from cleft.data.splits import recipes
from cleft.evaluation.result_files import read_evaluation

README = Path(__file__).parents[1] / "README.md"
SHORT = ["--optim.steps=2", "--optim.warmup_steps=1", "--train.batch_size=4", "--context.batch_size=4"]
SHORTER = [*SHORT, "--context.optim.steps=2", "--context.optim.warmup_steps=1", "--train.accelerator=cpu"]
DIGEST = re.compile(r"digest ([0-9a-f]{16})")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms") / "drawn"
    assert main(["data", "phantoms", str(root), "--patients", "70", "--size", "64"]) == 0
    return root


def printed(words, capsys):
    """Runs a command and returns the only split digest it prints."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    out = capsys.readouterr()
    [digest] = set(DIGEST.findall(out.out + out.err))
    return digest


def test_the_commands_of_the_readme_use_one_split(phantoms, tmp_path, monkeypatch, capsys):
    block = (
        README.read_text(encoding="utf-8")
        .partition("Without data, make synthetic")[2]
        .partition("`cleft pretrain cleft")[0]
    )
    lines = re.findall(r"^    (cleft .*?)(?: +#.*)?$", block, re.MULTILINE)
    typed = [shlex.split(line.replace("<folder>", str(phantoms)))[1:] for line in lines]
    check, split, train, context, ask, head, page = typed[:7]
    assert [words[0] for words in typed[:7]] == [
        *("data", "data", "pretrain", "learn-context", "evaluate", "classify", "report")
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    digests = [printed(check, capsys), printed(split, capsys), printed([*train, *SHORTER], capsys)]
    assert main(context) == 0
    assert main(ask) == 0
    assert main(head) == 0
    assert main(page) == 0
    digests.append(json.loads(Path("split.json").read_text())["digest"])
    results = []
    for run in ("runs/first", "runs/first-context", "runs/first-linear-probe"):
        digests.append(json.loads(Path(run, "split.json").read_text())["digest"])
        results += sorted(Path(run, "results").glob("*.json"))
    assert len(results) == 2
    digests += [read_evaluation(path).split_digest for path in results]
    assert len(set(digests)) == 1
    assert digests[0] in Path("report.html").read_text(encoding="utf-8")


CASES = {
    "overrides": ["--data.test_fraction=0.3", "--data.val_fraction=0.2"],
    "views": ["--data.views=PA"],
    "uncertain and captions": ["--data.uncertain=mixed", "--data.empty_caption=drop"],
    "test list": ["--data.test_list=LIST"],
    "5x200": ["--data.split=5x200-strict"],
    "5x200 by image": ["--data.split=5x200-images", "--data.val_fraction=0.1"],
    "5x200 list": ["--data.split=5x200-paper", "--data.test_list=LIST"],
    "excluded": ["--data.exclude_patients=PEOPLE"],
}


def some(cases, quick):
    """Cases, all but the quick one marked as slow."""
    return [case if case == quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize("case", some(CASES, "5x200 list"))
def test_settings_behind_a_preset_give_every_command_the_same_split(case, phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipes, "PER_CLASS", 1)
    [table] = phantoms.rglob("train.csv")
    rows = table.read_text().splitlines()[1:]
    paths = [row.split(",")[0] for row in rows if "frontal" in row][::9]
    (tmp_path / "LIST").write_text("\n".join(["Path", *paths]) + "\n")
    (tmp_path / "PEOPLE").write_text("patient\n" + paths[0].split("/")[2] + "\n")
    monkeypatch.chdir(tmp_path)
    check_all("chexpert", phantoms, CASES[case], capsys)


@pytest.mark.parametrize("dataset", some(["rsna", "embed"], "rsna"))
def test_other_datasets_are_split_the_same_by_every_command(dataset, tmp_path, monkeypatch, capsys):
    if dataset == "rsna":
        root = write_fake_rsna(tmp_path / "rsna", [rsna_row(n, str(n % 2)) for n in range(40)])
    else:
        root = tmp_path / "embed"
        assert main(["data", "phantoms", str(root), "--kind", "mammogram", "--patients", "12", "--size", "64"]) == 0
    monkeypatch.chdir(tmp_path)
    check_all(dataset, root, ["--data.max_invalid=0.2"], capsys)


def check_all(dataset, root, more, capsys):
    """Runs check, split and training with the same options, and then with the run in place of the preset."""
    words = [f"--data.dataset={dataset}", f"--data.root={root}", "--data.cache=cache", *more]
    train = ["pretrain", "tiny", *words, *SHORTER, "--classes=[No Finding, Edema]", "--run=run"]
    digests = [
        printed(["data", "check", "tiny", *words], capsys),
        printed(["data", "split", "tiny", *words, "--out=split.json"], capsys),
        printed(train, capsys),
        printed(["data", "check", "run", "--decode=0"], capsys),
        printed(["data", "split", "run"], capsys),
        printed(["data", "split", "run", str(root)], capsys),
        json.loads(Path("split.json").read_text())["digest"],
        json.loads(Path("run/split.json").read_text())["digest"],
    ]
    assert len(set(digests)) == 1, digests


def test_command_without_preset_reports_its_settings(phantoms, capsys):
    plain = printed(["data", "split", "chexpert", phantoms], capsys)
    assert main(["data", "split", "chexpert", str(phantoms)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(
        "settings: the defaults for chexpert, as no preset or run is named; for the split that a run"
    )
    assert printed(["data", "split", "small", phantoms], capsys) != plain
    assert main(["data", "split", "small", str(phantoms)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "settings: small"


@pytest.mark.parametrize("action", ["check", "split", "prepare"])
def test_a_folder_or_dataset_given_twice_is_refused(action, phantoms, capsys):
    assert main(["data", action, "small", str(phantoms), "--data.root", str(phantoms)]) == 2
    assert "both name the folder" in capsys.readouterr().err
    assert main(["data", action, "chexpert", str(phantoms), "--data.dataset", "nih"]) == 2
    assert "both name the dataset" in capsys.readouterr().err


def test_a_dataset_that_is_also_a_preset_is_the_preset_without_a_folder(tmp_path, capsys):
    assert main(["data", "split", "embed", str(tmp_path)]) == 3
    assert main(["data", "split", "embed", "--data.root", str(tmp_path), "--text.max_tokens", "80"]) == 3
    assert main(["data", "split", "nowhere", str(tmp_path)]) == 2
    assert "no preset or dataset 'nowhere'" in capsys.readouterr().err


@pytest.mark.parametrize("dataset", ["chexpert", "embed"])
def test_synthetic_images_are_not_compared_with_published_counts(dataset, phantoms, tmp_path, capsys):
    root = phantoms
    if dataset == "embed":
        root = tmp_path / "embed"
        assert main(["data", "phantoms", str(root), "--kind", "mammogram", "--patients", "4", "--size", "64"]) == 0
    main(["data", "check", dataset, str(root), "--decode", "0", "--data.max_invalid", "0.5"])
    out = capsys.readouterr().out
    assert "(synthetic images)" in out
    assert "published" not in out
    assert "paper:" not in out
