"""Limits on the structure of the package; `python -m tests.tools.structure --details` lists what is behind each."""

import ast
from pathlib import Path

import pytest
from tests.tools import structure

MAX_MODULES = 150
MAX_LINES = 47_500
MAX_MODULE_LINES = 600
MAX_SINGLE_IMPORTERS = 0.15
MAX_FILES_OF_AN_EVALUATION = 52
MAX_FILES_OF_A_STEP = 14
FORMULAS = {"cleft.models.methods.mgca.mgca_loss"}
"""Functions whose parameters are the symbols of an equation."""


def test_the_package_has_few_modules_and_none_is_long():
    lines = structure.lines()
    assert len(lines) <= MAX_MODULES
    assert sum(lines.values()) <= MAX_LINES
    assert {module: number for module, number in lines.items() if number > MAX_MODULE_LINES} == {}


def test_no_modules_import_each_other_in_a_circle():
    assert structure.circles() == []


def test_few_modules_have_a_single_importer():
    assert len(structure.single_importers()) <= MAX_SINGLE_IMPORTERS * len(structure.trees())


def test_no_file_name_stands_for_two_modules():
    assert structure.repeated_names() == {}


def test_functions_have_few_parameters_except_formulas():
    assert structure.many_parameters().keys() <= FORMULAS


def test_tests_that_assert_a_time_are_marked():
    def is_marked(node):
        return any("benchmark" in ast.unparse(mark) for mark in node.decorator_list)

    unmarked = [
        f"{path}: {node.name}"
        for path in Path(__file__).parent.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and "perf_counter" in ast.unparse(node) and not is_marked(node)
        if node.name.startswith("test_") and path.parent.name != "benchmarks" and path != Path(__file__)
    ]
    assert unmarked == []


def test_the_search_for_circles_finds_one(monkeypatch):
    imports = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    monkeypatch.setattr(structure, "imports", lambda: imports)
    monkeypatch.setattr(structure, "trees", lambda: imports)
    assert structure.circles() == [["b", "c"]]


@pytest.mark.slow
def test_an_evaluation_of_cached_images_passes_through_few_files(tmp_path):
    assert len(structure.on_the_way_of_an_evaluation(tmp_path)) <= MAX_FILES_OF_AN_EVALUATION


@pytest.mark.slow
def test_a_training_step_passes_through_few_files(tmp_path):
    assert len(structure.on_the_way_of_a_training_step(tmp_path)) <= MAX_FILES_OF_A_STEP
