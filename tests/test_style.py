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
    assert len(relative.parts) <= 2 or relative.parts[:2] == ("data", "toy"), "area/file.py, no deeper"
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


# What each room may import from the package, top to bottom: data flows one way. Inside a tier there may be arrows, but
# no circle. Imports inside functions and under TYPE_CHECKING count like all others.
TIERS = (
    ("cli",),
    ("callbacks", "report"),
    ("models", "vqgan", "data", "exact"),
    ("sampling", "codecs", "metrics", "networks", "rundir"),
    ("core",),
)
HEIGHT = {room: -i for i, tier in enumerate(TIERS) for room in tier}
FOUNDATION = {"ggm_lightning.moved", "ggm_lightning.__version__"}  # beside the rooms, and below them all


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path) for path in PACKAGE}


def imports(tree: ast.AST) -> set[str]:
    """Modules of the package that are imported anywhere in a file."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names} | (names & FOUNDATION)
    return {name for name in found if name in MODULES and name != "ggm_lightning"}


def room_of(module: str) -> str:
    return module.split(".")[1]


GRAPH = {module_of(path): imports(ast.parse(path.read_text(encoding="utf-8"))) - FOUNDATION for path in PACKAGE}
BESIDE_THE_ROOMS = {"ggm_lightning", "ggm_lightning.__main__", *FOUNDATION}


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports that lead to a higher tier."""
    return sorted(
        f"{module} imports {target}"
        for module, targets in graph.items()
        if module not in BESIDE_THE_ROOMS
        for target in targets
        if HEIGHT[room_of(target)] > HEIGHT[room_of(module)]
    )


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of nodes each of which is reached from each other one."""
    reach = {node: set(targets) for node, targets in graph.items()}
    for middle in graph:
        for node in graph:
            if middle in reach[node]:
                reach[node] |= reach[middle]
    found = [{other for other in reach[node] if node in reach.get(other, ())} for node in graph]
    return [circle for i, circle in enumerate(found) if circle and circle not in found[:i]]


def test_data_flows_one_way() -> None:
    assert {room_of(m) for m in MODULES - BESIDE_THE_ROOMS} <= HEIGHT.keys(), "a room has no place in the house"
    assert upward(GRAPH) == []


def test_the_documents_show_the_same_rooms() -> None:
    drawn = re.search(
        r"^```\n(cli .*?)^```",
        (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    assert drawn
    rows = [re.split(r"  +", line)[0].split(" | ") for line in drawn[1].splitlines()]
    rooms = {path.parent.name for path in PACKAGE if path.parent.parent.name == "ggm_lightning"}
    assert rows == [[room for room in tier if room in rooms] for tier in TIERS]


def test_no_circle() -> None:
    assert circles(GRAPH) == []
    rooms: dict[str, set[str]] = {room: set() for room in HEIGHT}
    for module in GRAPH.keys() - BESIDE_THE_ROOMS:
        rooms[room_of(module)] |= {room_of(target) for target in GRAPH[module]} - {room_of(module)}
    assert circles(rooms) == []


def annotated(function: ast.FunctionDef) -> bool:
    """Every argument and what is returned."""
    a = function.args
    given = [x for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if x is not None]
    return function.returns is not None and all(x.annotation for x in given if x.arg not in ("self", "cls"))


def test_annotations() -> None:
    known = [f for path in PACKAGE for f in functions(ast.parse(path.read_text(encoding="utf-8")))]
    share = sum(map(annotated, known)) / len(known)
    assert share >= 0.95, f"{share:.3f} of the functions are fully annotated"


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
    hidden = ast.parse(
        "def f():\n from ggm_lightning.models.base import Family\nif TYPE_CHECKING:\n import ggm_lightning.cli.main"
    )
    assert imports(hidden) == {"ggm_lightning.models.base", "ggm_lightning.cli.main"}
    assert upward({"ggm_lightning.core.noise": {"ggm_lightning.data.base"}}) != []
    assert upward({"ggm_lightning.data.base": {"ggm_lightning.core.noise"}}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [{"b", "c"}]
    bare, full = ast.parse("def f(self, a): pass\ndef g(self, a: int, *b: str) -> None: pass").body
    assert (annotated(bare), annotated(full)) == (False, True)  # type: ignore[arg-type]
