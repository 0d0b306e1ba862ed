"""The drawing of the rooms is a test, so it cannot go stale."""

import ast
import functools
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import cleft

ROOT = Path(cleft.__file__).parent
ROOMS = ["data", "models", "training", "evaluation", "report", "studies"]
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
    *ROOMS,
    "cli",
]
INSIDE_DATA = ["tables", "text", "images", "readers", "phantoms", "splits", "census"]
STRANGERS = [
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
def modules():
    return [
        (path, path.relative_to(ROOT).parts[0].removesuffix(".py"), ast.parse(path.read_text()))
        for path in sorted(ROOT.rglob("*.py"))
    ]


def imports():
    found = {(room, name.split(".")[1]) for _, room, name in imported()}
    return {(a, b) for a, b in found if a != b}


@functools.cache
def everything_imported():
    found = []
    for path, room, tree in modules():
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, "imports are absolute"
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            found += [(path, room, name) for name in names]
    return found


def imported():
    return [(path, room, name) for path, room, name in everything_imported() if name.startswith("cleft.")]


def test_every_module_is_in_a_room_that_the_drawing_knows():
    assert {room for _, room, _ in modules()} - {"__init__", "__main__"} == set(ORDER)


def test_no_room_imports_one_to_its_right():
    upward = {(a, b) for a, b in imports() if a in ORDER and ORDER.index(b) > ORDER.index(a)}
    assert not upward, f"imports against the flow: {sorted(upward)}"


def test_inside_data_imports_point_one_way_too():
    found = {
        (path.relative_to(ROOT).parts[1], name.split(".")[2])
        for path, room, name in imported()
        if room == "data" and name.startswith("cleft.data.")
    }
    folders = {(a, b) for a, b in found if a in INSIDE_DATA and b in INSIDE_DATA}
    assert {path.name for path in (ROOT / "data").iterdir() if (path / "__init__.py").is_file()} == set(INSIDE_DATA)
    assert not {(a, b) for a, b in folders if INSIDE_DATA.index(b) > INSIDE_DATA.index(a)}


def test_strangers_do_not_meet():
    assert not imports() & set(STRANGERS)


def test_only_adapters_imports_peft_and_only_learning_imports_lightning():
    top = {(path, room, name.split(".")[0]) for path, room, name in everything_imported()}
    assert {path.name for path, _, name in top if name == "peft"} == {"adapters.py"}
    assert {room for _, room, name in top if name == "lightning"} == {"training"}


def test_nothing_that_runs_code_from_data_is_used():
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path, _, _ in modules()
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
