"""House style, checked on the tree (the design's section on style)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "ggm_lightning").rglob("*.py"))
FILES = [*PACKAGE, *sorted((ROOT / "tests").rglob("*.py"))]
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
NESTING = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.AsyncFor, ast.AsyncWith, ast.Match)
HEAVY = {"datasets", "wandb", "transformers", "tensorboard", "pandas", "torchvision"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def depth(node: ast.AST) -> int:
    """Deepest nesting of blocks; `elif` is no deeper than its `if`."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        is_elif = (
            isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse and len(node.orelse) == 1
        )
        counts = isinstance(child, NESTING) and not is_elif
        deepest = max(deepest, depth(child) + counts)
    return deepest


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 400, "files stay below 400 lines"
    assert path.stem not in BANNED_NAMES, "a function lives where its concept lives"
    if text.strip():
        assert ast.get_docstring(tree) or path.name == "__init__.py", "a module says what it is for"
    for function in functions(tree):
        length = function.end_lineno - function.lineno + 1
        assert length <= 60, f"{function.name} has {length} lines"
        assert depth(function) <= 3, f"{function.name} nests {depth(function)} deep"
    for number, line in enumerate(text.splitlines(), 1):
        assert not re.search(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b", line), f"line {number}: finish it"
        assert not re.match(r"\s*#\s*[-=*#]{5,}\s*$", line), f"line {number}: banner comment"


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_package_file(path: Path) -> None:
    relative = path.relative_to(ROOT / "ggm_lightning")
    assert len(relative.parts) <= 2, "area/file.py, no deeper"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        bare = isinstance(node, ast.ExceptHandler) and node.type is None
        assert not bare, f"line {node.lineno}: bare except" if bare else ""
    for node in tree.body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        heavy = HEAVY & {imported.split(".")[0] for imported in names}
        assert not heavy, f"{heavy} is imported at the top; import it where it is used"


LAYERS = {
    # what each room may import from the package: data flows one way
    "core": {"core"},
    "networks": {"networks", "core"},
    "metrics": {"metrics", "core"},
    "data": {"data", "core", "metrics"},
    "sampling": {"sampling", "core"},
    "models": {"models", "core", "metrics", "sampling"},
    "rundir": {"rundir"},
    "callbacks": {"callbacks", "rundir", "sampling"},
}


@pytest.mark.parametrize("room", LAYERS)
def test_nothing_on_the_right_knows_its_left(room: str) -> None:
    for path in (ROOT / "ggm_lightning" / room).glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:  # lazy imports inside functions are not counted
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ggm_lightning."):
                target = node.module.split(".")[1]
                assert target in LAYERS[room], f"{name(path)} imports {node.module}"


def test_core_knows_no_lightning() -> None:
    for path in (ROOT / "ggm_lightning" / "core").glob("*.py"):
        assert "lightning.pytorch" not in path.read_text(encoding="utf-8"), name(path)


@pytest.mark.parametrize("path", sorted((ROOT / "ggm_lightning" / "models").glob("*.py")), ids=name)
def test_models_and_maths_name_their_source(path: Path) -> None:
    if path.name in ("__init__.py", "base.py"):
        return
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert re.search(r"arXiv \d{4}\.\d{5}", docstring)


def test_the_checks_can_fail() -> None:
    """Controls: each rule above catches what it is for."""
    deep = ast.parse("def f():\n for a in b:\n  if a:\n   while a:\n    with a:\n     pass")
    assert depth(functions(deep)[0]) == 4
    flat = ast.parse("def f():\n if a:\n  pass\n elif b:\n  pass\n elif c:\n  pass")
    assert depth(functions(flat)[0]) == 1
