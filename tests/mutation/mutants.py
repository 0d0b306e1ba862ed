"""Mutations of a module's source: one comparison, sign, constant, condition or statement changed at a time."""

from __future__ import annotations

import ast
import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.MatMult: None,
}
_SWAPPED_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "amax": "amin", "zeros": "ones"}
_DROPPED_CALLS = {"detach", "clamp", "float", "exp", "log", "abs", "unique", "cumsum"}
_LOGGERS = {"log", "LOG", "warnings"}


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    module: str
    """Dotted name of the module."""
    function: str
    """Qualified name of the function it is in."""
    before: str
    """The expression or statement as written."""
    after: str
    """Its replacement."""
    number: int
    """Distinguishes equal changes in one function, from 0."""
    source: str
    """Source of the mutated module."""

    @property
    def key(self) -> str:
        """Name of the mutation, independent of edits elsewhere in the file."""
        count = f" #{self.number}" if self.number else ""
        return f"{self.module}.{self.function}: {self.before} -> {self.after}{count}"

    @property
    def order(self) -> str:
        """Digest for sampling: an edit of one function does not change the rest of a sample."""
        return hashlib.sha256(self.key.encode()).hexdigest()


def mutants_of(module: str, path: Path) -> list[Mutant]:
    """Returns every fault of a module, in the order of its source."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    seen: Counter[tuple[str, str, str]] = Counter()
    found: list[Mutant] = []
    for function, name in _functions(tree):
        for node in _mutable(function):
            for change in _changes(node):
                before = _text(node)
                kept = copy.copy(node)
                change()
                after = _text(node)
                ast.fix_missing_locations(tree)
                source = ast.unparse(tree)
                node.__dict__.clear()
                node.__dict__.update(kept.__dict__)
                if node.__class__ is not kept.__class__:
                    node.__class__ = kept.__class__
                if before != after:
                    number = seen[name, before, after]
                    seen[name, before, after] += 1
                    found.append(Mutant(module, name, before, after, number, source))
    return found


def _functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, str]]:
    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[ast.FunctionDef, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.FunctionDef):
                yield child, f"{prefix}{child.name}"

    yield from walk(tree, "")


def _mutable(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Nodes of a function's body and defaults, without messages, annotations, docstrings and logging."""
    pending: list[ast.AST] = [*function.args.defaults, *[d for d in function.args.kw_defaults if d], *function.body]
    while pending:
        node = pending.pop(0)
        if isinstance(node, ast.keyword) and node.arg == "strict":
            continue  # of zip: it guards what is equally long
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Expr) and (isinstance(node.value, ast.Constant) or _logs(node.value)):
            continue
        yield node
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns", "decorator_list"):
                children = value if isinstance(value, list) else [value]
                pending += [child for child in children if isinstance(child, ast.AST)]


def _logs(node: ast.AST) -> bool:
    called = node.func if isinstance(node, ast.Call) else None
    return isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id in _LOGGERS


def _changes(node: ast.AST) -> Iterator[Callable[[], None]]:
    """Yields changes of one node in place; the caller reverts each."""

    def becomes(other: ast.AST) -> Callable[[], None]:
        def change() -> None:
            node.__class__ = other.__class__
            node.__dict__.clear()
            node.__dict__.update(copy.copy(other).__dict__)

        return change

    def sets(**values: object) -> Callable[[], None]:
        return lambda: node.__dict__.update(values)

    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        yield sets(ops=[_COMPARISONS[type(node.ops[0])](), *node.ops[1:]])
    elif isinstance(node, ast.BinOp | ast.AugAssign) and _ARITHMETIC.get(type(node.op)):
        yield sets(op=_ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield sets(op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield becomes(node.operand)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield sets(value=not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield sets(value=node.value + 1)
        if node.value:
            yield sets(value=node.value - 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, float):
        yield sets(value=node.value * 2 + 0.5)
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield sets(test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Call):
        yield from _changes_of_call(node, becomes, sets)
    elif isinstance(node, ast.Expr):
        yield becomes(ast.Pass())


def _changes_of_call(
    node: ast.Call, becomes: Callable[[ast.AST], Callable[[], None]], sets: Callable[..., Callable[[], None]]
) -> Iterator[Callable[[], None]]:
    called = node.func
    if isinstance(called, ast.Attribute):
        if called.attr in _SWAPPED_CALLS:
            yield sets(func=ast.Attribute(called.value, _SWAPPED_CALLS[called.attr], ast.Load()))
        if called.attr in _DROPPED_CALLS and not isinstance(called.value, ast.Name):
            yield becomes(called.value)
    elif isinstance(called, ast.Name) and called.id in _SWAPPED_CALLS:
        yield sets(func=ast.Name(_SWAPPED_CALLS[called.id], ast.Load()))
    symmetric = isinstance(called, ast.Name) and called.id in ("min", "max")
    if len(node.args) == 2 and not symmetric and not any(isinstance(each, ast.Starred) for each in node.args):
        yield sets(args=[node.args[1], node.args[0]])


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.If | ast.While):
        return f"{type(node).__name__.lower()} {ast.unparse(node.test)}"
    return " ".join(ast.unparse(node).split())[:120]
