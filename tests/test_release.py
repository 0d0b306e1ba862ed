"""The version is the same wherever it is written, and the changelog keeps its form."""

import re
from pathlib import Path

from cleft import __version__

ROOT = Path(__file__).parents[1]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_citation_and_changelog_name_the_version_and_its_date():
    [(version, date)] = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", CHANGELOG, re.MULTILINE)[:1]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert version == __version__
    assert f"\nversion: {version}\n" in citation
    assert f"\ndate-released: {date}\n" in citation


def test_changes_are_grouped_as_keep_a_changelog_groups_them():
    kinds = set(re.findall(r"^### (.+)$", CHANGELOG, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    entries = [line for line in CHANGELOG.splitlines() if line.startswith("- ")]
    assert len(entries) > 50
    assert not [line for line in CHANGELOG.splitlines() if line.startswith(("  ", "\t"))], "one line each"
    assert not re.search(r"[Dd]ecision 0|decisions/0", CHANGELOG)
