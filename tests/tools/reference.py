"""Writes docs/reference.md from the signatures and docstrings of the public names and the examples below.

python -m tests.tools.reference
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
import typing
from pathlib import Path
from typing import Any

import cleft
from cleft.models.dual_encoder import DualEncoder

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"
INTRODUCTION = """# Reference of the Python API

All public names of `cleft`, in the order in which a script uses them. Everything else may change without notice. The
command line offers the same functions (`cleft --help`). Functions that train or evaluate return the path of what they
wrote. Tensors are on the CPU unless you move the model.

Each example continues the one before; together they are a script that runs on synthetic images
(`cleft data phantoms phantoms`). This page is generated: `python -m tests.tools.reference`.
"""
EXAMPLES: dict[str, str] = {
    "load_settings": """
        import cleft

        settings = cleft.load_settings("demo", ["--data.root", "phantoms", "--seed", "1"])
        settings.text.rank  # LoRA rank
        """,
    "Settings": """
        import dataclasses

        other_seed = dataclasses.replace(settings, seed=2)  # settings are frozen dataclasses
        """,
    "pretrain": """
        run = cleft.pretrain(settings, "runs/first", progress=False)  # call it again to resume
        """,
    "learn_context": """
        context_run = cleft.learn_context(run, progress=False)  # runs/first-context
        """,
    "classify": """
        probe = cleft.classify(run, cleft.load_settings(run / "config.yaml"), "runs/first-probe", progress=False)
        """,
    "evaluate_zero_shot": """
        result = cleft.evaluate_zero_shot(context_run, progress=False)  # runs/first-context/results/….json
        """,
    "ZeroShotOptions": """
        options = cleft.ZeroShotOptions(prompts="handwritten", bootstrap=cleft.Bootstrap(resamples=2_000))
        handwritten = cleft.evaluate_zero_shot(context_run, options, progress=False)
        """,
    "evaluate_retrieval": """
        retrieval = cleft.evaluate_retrieval(
            run, cleft.RetrievalOptions(directions="image-to-text"), progress=False
        )
        """,
    "read_evaluation": """
        for metric in cleft.read_evaluation(result).results:
            print(metric.metric, metric.value, metric.interval)
        """,
    "compare": """
        for difference in cleft.compare(result, handwritten).differences:
            print(difference.metric, difference.difference, difference.p_value)
        """,
    "evaluate_classifier": """
        probe_result = cleft.evaluate_classifier(probe, progress=False)
        """,
    "write_report": """
        page = cleft.write_report([run, context_run, probe], "report.html", images=False)
        """,
    "load": """
        model = cleft.load(context_run)  # evaluation mode, on the CPU
        """,
    "load_image": """
        from pathlib import Path

        image = cleft.load_image(next(Path("phantoms").rglob("*.jpg")), settings.images)  # [1, 1, H, W] uint8
        """,
    "encode_image": """
        import torch

        with torch.inference_mode():
            image_embeds = model.encode_image(image)  # [1, E]
        """,
    "encode_text": """
        with torch.inference_mode():
            text_embeds = model.encode_text(["this is a chest x ray of a patient with edema"])  # [1, E]
        similarity = image_embeds @ text_embeds.T  # cosine
        """,
    "encode_class_names": """
        with torch.inference_mode():
            classes = model.encode_class_names(["Edema", "Pleural Effusion"])  # [2, E]
            probabilities = (model.logit_scale.exp() * image_embeds @ classes.T).softmax(dim=-1)
        """,
}
GROUPS = {
    "Settings": ("load_settings", "Settings"),
    "Train": ("pretrain", "learn_context", "classify"),
    "Evaluate": (
        *("evaluate_zero_shot", "ZeroShotOptions", "evaluate_classifier", "ClassifierOptions"),
        *("evaluate_retrieval", "RetrievalOptions", "Bootstrap", "read_evaluation", "compare", "write_report"),
    ),
    "Use a model": ("load", "load_image"),
}
"""Heading to names, in order; names of `cleft.__all__` that are not listed come last."""
MODEL_METHODS = ("encode_image", "encode_text", "encode_class_names")


def page() -> str:
    """Returns the text of docs/reference.md."""
    listed = [name for names in GROUPS.values() for name in names]
    others = tuple(name for name in cleft.__all__ if name not in listed)
    parts = [INTRODUCTION]
    for heading, names in {**GROUPS, "Other names": others}.items():
        present = [name for name in names if name in cleft.__all__]
        if present:
            parts.append(f"## {heading}\n")
            parts += [section(f"cleft.{name}", name, getattr(cleft, name)) for name in present]
        if "load" in present:
            parts.append("### Methods of a model\n\n`cleft.load` returns a `torch.nn.Module` with these methods.\n")
            parts += [section(f"model.{name}", name, getattr(DualEncoder, name)) for name in MODEL_METHODS]
    return "\n".join(parts)


def section(title: str, name: str, thing: Any) -> str:
    """Returns the section of one name: signature, meaning, arguments, errors, example."""
    summary, groups = split_docstring(inspect.getdoc(thing) or "")
    lines = [f"### `{title}`\n"]
    if not inspect.isclass(thing):
        lines.append(f"```text\n{signature(title, thing)}\n```\n")
    lines.append(summary + "\n")
    fields = field_docs(thing) if dataclasses.is_dataclass(thing) else {}
    if fields and name != "Settings":
        lines.append("| field | default | meaning |\n|---|---|---|")
        lines += [f"| `{field}` | `{default}` | {text} |" for field, (default, text) in fields.items()]
        lines.append("")
    elif fields:
        lines.append("| group | meaning |\n|---|---|")
        hints = typing.get_type_hints(thing)
        for field in dataclasses.fields(thing):
            kind = hints[field.name]
            text = first_line(kind) if dataclasses.is_dataclass(kind) else fields[field.name][1].split(". ")[0]
            lines.append(f"| `{field.name}` | {text.rstrip('.')} |")
        lines.append("\n`cleft pretrain --help-all` lists every setting with its default and meaning.\n")
    if groups.get("Args"):
        lines.append("| argument | meaning |\n|---|---|")
        lines += [f"| `{argument}` | {text} |" for argument, text in groups["Args"].items()]
        lines.append("")
    if groups.get("Returns"):
        lines.append(f"**Returns:** {' '.join(groups['Returns'].values())}\n")
    if groups.get("Raises"):
        lines += ["**Raises:**\n", *(f"- `{error}`: {text}" for error, text in groups["Raises"].items()), ""]
    if name in EXAMPLES:
        lines.append(f"```python\n{textwrap.dedent(EXAMPLES[name]).strip()}\n```\n")
    return "\n".join(lines)


def first_line(thing: Any) -> str:
    """Returns the first line of a docstring."""
    return (inspect.getdoc(thing) or "").split("\n")[0]


def signature(title: str, thing: Any) -> str:
    """Returns the signature with types, one parameter per line where it is long."""
    found = inspect.signature(thing)
    parameters = [parameter for parameter in found.parameters.values() if parameter.name != "self"]
    shown = [str(parameter).replace("'", "") for parameter in parameters]
    keyword = next((n for n, parameter in enumerate(parameters) if parameter.kind is parameter.KEYWORD_ONLY), None)
    if keyword is not None:
        shown.insert(keyword, "*")
    returns = str(found.return_annotation).replace("'", "")
    line = f"{title}({', '.join(shown)}) -> {returns}"
    return line if len(line) <= 110 else f"{title}(\n    " + ",\n    ".join(shown) + f",\n) -> {returns}"


def split_docstring(text: str) -> tuple[str, dict[str, dict[str, str]]]:
    """Returns the description and the Google sections, each name to its text."""
    head, *rest = re.split(r"^(Args|Returns|Raises|Source|Attributes|Yields):\n", text, flags=re.MULTILINE)
    groups: dict[str, dict[str, str]] = {}
    for title, body in zip(rest[::2], rest[1::2], strict=True):
        entries: dict[str, str] = {}
        for entry in re.split(r"\n(?=\S)", textwrap.dedent(body).strip()):
            flat = " ".join(entry.split())
            name, colon, meaning = flat.partition(": ")
            if title in {"Args", "Raises"} and colon:
                entries[name] = meaning
            else:
                entries[str(len(entries))] = flat
        groups[title] = entries
    return head.strip(), groups


def field_docs(thing: Any) -> dict[str, tuple[str, str]]:
    """Returns the fields of a dataclass, inherited ones first: default and first paragraph of the docstring."""
    found: dict[str, tuple[str, str]] = {}
    for kind in reversed(inspect.getmro(thing)):
        if not dataclasses.is_dataclass(kind):
            continue
        [body] = [
            node.body
            for node in ast.parse(textwrap.dedent(inspect.getsource(kind))).body
            if isinstance(node, ast.ClassDef)
        ]
        for node, after in itertools.pairwise(body):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
                default = ast.unparse(default_of(node.value)) if node.value else "required"
                text = " ".join(str(ast.literal_eval(after.value)).split())
                found[node.target.id] = (default.replace("|", "\\|"), text.replace("|", "\\|"))
    return found


def default_of(value: ast.expr) -> ast.expr:
    """Returns the default of a field, without the `field` call around it."""
    inside = {each.arg: each.value for each in value.keywords} if isinstance(value, ast.Call) else {}
    return inside.get("default", value)


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
