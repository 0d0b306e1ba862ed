"""Measures the structure of the package: size, imports, duplicate names, parameters, files on the main paths.

python -m tests.tools.structure            # prints the figures
python -m tests.tools.structure --paths    # also runs a small evaluation and a training step and lists their files
"""

from __future__ import annotations

import argparse
import ast
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import cleft

ROOT = Path(cleft.__file__).parent
PLUG_INS = ("data/readers/", "models/methods/", "models/importing/")
"""Modules that a registry names: one importer each is right."""
MAX_PARAMETERS = 8


def module_name(path: Path) -> str:
    """Returns the dotted name of a file of the package."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def trees() -> dict[str, ast.Module]:
    """Returns the syntax tree of every module by dotted name."""
    return {module_name(path): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


@cache
def paths() -> dict[str, Path]:
    """Returns the file of every module by dotted name."""
    return {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


@cache
def imports() -> dict[str, frozenset[str]]:
    """Returns, for every module, the modules of the package that it names in an import, wherever that stands."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    found[module].add(full if full in trees() else node.module)
            elif isinstance(node, ast.Import):
                found[module].update(alias.name for alias in node.names)
    return {module: frozenset(found[module] & trees().keys()) - {module} for module in trees()}


def circles() -> list[list[str]]:
    """Returns the groups of modules that import each other, directly or through others (Tarjan's components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(imports()[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            at = stack.index(module)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                groups.append(sorted(group))

    for module in trees():
        if module not in index:
            visit(module)
    return groups


def single_importers() -> list[str]:
    """Returns the modules that exactly one other imports, apart from plug-ins and package files."""
    users = Counter(other for targets in imports().values() for other in targets)
    return [
        module
        for module, path in paths().items()
        if users[module] == 1 and path.name != "__init__.py" and not str(path.relative_to(ROOT)).startswith(PLUG_INS)
    ]


def repeated_names() -> dict[str, list[str]]:
    """Returns the file names that stand for several modules, except `__init__`."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for module, path in paths().items():
        if path.name != "__init__.py":
            by_name[path.name].append(module)
    return {name: modules for name, modules in by_name.items() if len(modules) > 1}


def many_parameters() -> dict[str, int]:
    """Returns the functions with more than `MAX_PARAMETERS` parameters, `self` and `cls` not counted."""
    found: dict[str, int] = {}
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                number = len(names) - (names[:1] in (["self"], ["cls"]))
                if number > MAX_PARAMETERS:
                    found[f"{module}.{node.name}"] = number
    return found


def lines() -> dict[str, int]:
    """Returns the number of lines of every module."""
    return {module: len(path.read_text().splitlines()) for module, path in paths().items()}


def files_of(action: Callable[[], object]) -> list[str]:
    """Returns the modules of which a function runs during the action, in the order of the first call."""
    seen: dict[str, None] = {}
    package = f"{ROOT}/"

    def notice(frame: object, event: str, _: object) -> None:
        code = frame.f_code  # pyright: ignore[reportAttributeAccessIssue]
        if event == "call" and code.co_filename.startswith(package) and code.co_name != "<module>":
            seen.setdefault(code.co_filename.removeprefix(package))

    sys.setprofile(notice)
    try:
        action()
    finally:
        sys.setprofile(None)
    return list(seen)


def on_the_way_of_an_evaluation(folder: Path) -> list[str]:
    """Returns the files that a second `cleft evaluate` of a tiny run passes through: images are cached by then."""
    from cleft.cli import main

    data, run = folder / "data", folder / "run"
    for words in (
        f"data phantoms {data} --patients 120",
        f"pretrain tiny --data.root {data} --data.cache {folder}/cache --run {run}",
        f"evaluate {run}",
    ):
        assert main(words.split()) == 0, words
    return files_of(lambda: main(["evaluate", str(run)]))


def on_the_way_of_a_training_step(folder: Path) -> list[str]:
    """Returns the files that one training step passes through, from the batch of the loader to the updated weights."""
    from tests.tools.tiny_learner import one_step

    step = one_step(folder)
    step()
    return files_of(step)


def figures() -> Iterator[tuple[str, object]]:
    """Yields each figure with its name."""
    yield "modules", len(trees())
    yield "lines", sum(lines().values())
    yield "longest module", max((number, module) for module, number in lines().items())
    yield "circles", len(circles())
    single = single_importers()
    yield "modules with a single importer", f"{len(single)} ({len(single) / len(trees()):.0%})"
    yield "file names used more than once", len(repeated_names())
    yield f"functions with more than {MAX_PARAMETERS} parameters", len(many_parameters())


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", action="store_true", help="list the files of an evaluation and a step")
    parser.add_argument("--details", action="store_true", help="list what is behind each figure")
    options = parser.parse_args()
    for name, value in figures():
        print(f"{name:45} {value}")
    if options.details:
        for group in circles():
            print("circle:", *group)
        print("single importer:", *single_importers(), sep="\n  ")
        print(
            "names used more than once:",
            *(f"{name}: {', '.join(at)}" for name, at in repeated_names().items()),
            sep="\n  ",
        )
        print("many parameters:", *(f"{name}: {n}" for name, n in sorted(many_parameters().items())), sep="\n  ")
        print("over 500 lines:", *(f"{name}: {n}" for name, n in lines().items() if n > 500), sep="\n  ")
    if options.paths:
        with tempfile.TemporaryDirectory() as folder:
            files = on_the_way_of_an_evaluation(Path(folder))
            print(f"files of an evaluation of cached images: {len(files)}", *files, sep="\n  ")
        with tempfile.TemporaryDirectory() as folder:
            files = on_the_way_of_a_training_step(Path(folder))
            print(f"files of a training step: {len(files)}", *files, sep="\n  ")


if __name__ == "__main__":
    main()
