"""The order of dependencies, as drawn in CONTRIBUTING.md, and what no module may use."""

import ast
import functools
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from tests.tools import structure

import cleft

ROOT = Path(cleft.__file__).parent
PACKAGES = ["data", "models", "training", "evaluation", "report", "studies"]
ORDER = [
    *(
        "version",
        "errors",
        "grammar",
        "launch",
        "files",
        "strict_json",
        "text_rules",
        "types",
        "privacy",
        "config",
        "results",
    ),
    *PACKAGES,
    "cli",
]
INSIDE_DATA = ["tables", "text", "images", "readers", "phantoms", "splits", "census"]
INDEPENDENT = [
    ("models", "data"),
    ("data", "models"),
    ("report", "data"),
    ("report", "models"),
    ("report", "training"),
    ("report", "evaluation"),
    ("report", "studies"),
]
BANNED = re.compile(
    r"\bpickle\b|torch\.hub|trust_remote_code\s*=\s*True|(?<![.\w])(?:eval|exec)\(|yaml\.load\(|allow_pickle\s*=\s*True"
    r"|weights_only\s*=\s*False|extractall|shell\s*=\s*True|except\s*:|\btorchvision\.|import torchvision|import timm"
)


@functools.cache
def imported_names():
    """Module of the package and the dotted name that it imports, for every import statement."""
    found = []
    for module, tree in structure.trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, "imports are absolute"
                found.append((module, node.module or ""))
            elif isinstance(node, ast.Import):
                found += [(module, alias.name) for alias in node.names]
    return found


def dependencies(depth):
    """Pairs of different packages, named by the given number of parts, of which the first imports the second."""
    pairs = {
        (".".join(module.split(".")[1 : 1 + depth]), ".".join(other.split(".")[1 : 1 + depth]))
        for module, others in structure.imports().items()
        for other in others
    }
    return {(a, b) for a, b in pairs if a != b and a and b}


def upward(pairs, order):
    return {(a, b) for a, b in pairs if a in order and b in order and order.index(b) > order.index(a)}


def test_the_order_names_every_package_and_top_level_module():
    names = {module.split(".")[1] for module in structure.trees() if "." in module}
    assert names - {"__main__"} == set(ORDER)


def test_no_package_imports_a_later_one():
    assert upward(dependencies(1), ORDER) == set()


def test_no_subpackage_of_data_imports_a_later_one():
    subpackages = {path.parent.name for path in (ROOT / "data").glob("*/__init__.py")}
    assert subpackages == set(INSIDE_DATA)
    assert upward(dependencies(2), [f"data.{name}" for name in INSIDE_DATA]) == set()


def test_packages_that_exchange_types_only_do_not_import_each_other():
    assert not dependencies(1) & set(INDEPENDENT)


def test_only_adapters_imports_peft_and_only_training_imports_lightning():
    users = {(module, name.split(".")[0]) for module, name in imported_names()}
    assert {module for module, name in users if name == "peft"} == {"cleft.models.adapters"}
    assert {module.split(".")[1] for module, name in users if name == "lightning"} == {"training"}


def test_nothing_that_runs_code_from_data_is_used():
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in structure.paths().values()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if BANNED.search(line.partition("#")[0]) and '"' not in line.partition("import")[0]
    ]
    assert not hits


def test_torchvision_is_not_installed():
    assert importlib.util.find_spec("torchvision") is None


def test_importing_the_package_brings_nothing_heavy():
    heavy = "torch,lightning,transformers,peft,cv2,pyarrow".split(",")
    code = f"import sys, cleft.cli, cleft.config; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_can_be_imported():
    assert all(getattr(cleft, name) is not None for name in cleft.__all__)


def test_contributing_draws_the_order():
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [drawing] = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    assert drawing.split() == ORDER[::-1], "CONTRIBUTING.md, Structure: draw the order of ORDER, last one first"
