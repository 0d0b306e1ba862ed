"""Pages of docs/decisions: every reference leads to one, and the index lists them all."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
NUMBERS = {page.name[:4] for page in PAGES}
REFERENCE = re.compile(r"(?:docs/decisions/|\.\./decisions/|\(decisions/|\b[Dd]ecisions?\]? )(\d{4})")
LINK = re.compile(r"decisions/(\d{4}-[a-z0-9-]+\.md)")


def texts():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "src", "tests", "benchmarks", "docs", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [ROOT / name for name in listed.stdout.split("\n") if name.endswith((".py", ".md", ".yaml", ".txt"))]
    return {path: path.read_text(encoding="utf-8") for path in paths if path.is_file()}


def test_every_reference_names_a_decision_that_exists():
    missing = {
        f"{path.relative_to(ROOT)}: {number}"
        for path, text in texts().items()
        for number in REFERENCE.findall(text)
        if number not in NUMBERS
    }
    assert not missing


def test_every_link_names_a_file_that_exists():
    names = {page.name for page in PAGES}
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path, text in texts().items()
        for name in LINK.findall(text)
        if name not in names
    }
    assert not missing


def test_the_index_lists_every_page_with_its_title():
    index = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\d{4})\]\(([^)]+)\) \| (.+?) \| (.+?) \|$", index, re.MULTILINE)
    assert sorted((name, f"# {number} {title}") for number, name, title, _ in rows) == [
        (page.name, page.read_text(encoding="utf-8").split("\n")[0]) for page in PAGES
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name[:4])
def test_a_page_has_context_decision_and_consequences(page):
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
