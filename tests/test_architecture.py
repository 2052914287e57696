"""The architecture as a test: who may import whom, sizes, and what importing costs.

Imports are read from the syntax tree, so one hidden in a function counts like any other, and so
does one under TYPE_CHECKING. ``mlpot/__init__.py`` is left out: its lazy table and its
TYPE_CHECKING block name the public objects of every layer and import nothing when they are read
(see test_importing_mlpot_imports_no_torch, and test_the_lazy_table_matches_what_mypy_sees).
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60

# The arrows. Left: a module or sub-package of mlpot (its own modules are always allowed). Right:
# what else of mlpot it may import; a dotted name allows that one module only.
_BASE = ("units", "errors", "graph", "neighbors")
_USER = (*_BASE, "deploy", "zoo", "__version__")
ARROWS: dict[str, tuple[str, ...]] = {
    "units": (),
    "errors": (),
    "graph": ("units", "errors"),
    "neighbors": ("units", "errors", "graph"),
    "models": (*_BASE, "__version__"),
    "data": (*_BASE, "__version__"),
    "train": (*_BASE, "models", "data", "__version__"),
    "zoo": ("units", "errors", "models.checkpoint", "__version__"),
    "deploy": (*_BASE, "models", "zoo", "__version__"),
    "calculator": _USER,
    "md": (*_USER, "calculator"),
    "analysis": (*_USER, "md", "data", "models.checkpoint", "models.potential"),
    "active": (*_USER, "md", "data", "train", "models"),
    "testing": (*_BASE, "models", "deploy"),
    "cli": ("*",),
    "plugins": (
        "graph",
        "deploy",
        "zoo",
        "units",
        "errors",
        "__version__",
        "",
    ),  # "": bare `import mlpot`
}


# --- the checker: source text in, complaints out ---------------------------------------------


def imported_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import; ``from a import b`` gives ``a.b``, relative ones ``.``.

    ``import_module("a.b")`` and ``__import__("a.b")`` with a literal name count too.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            literal = node.args[0]
            if called in ("import_module", "__import__") and isinstance(literal, ast.Constant):
                yield node.lineno, str(literal.value)


def layer_of(module: str) -> str:
    package, _, rest = module.partition(".")
    return rest.split(".")[0] if package == "mlpot" else "plugins"


def forbidden_imports(module: str, source: str, public: dict[str, str]) -> list[str]:
    """Complaints about the imports of one module. ``public``: lazy names of mlpot -> module."""
    layer = layer_of(module)
    if layer not in ARROWS:
        return [f"{module}: '{layer}' has no line in ARROWS; add one"]
    own = module.split(".")[0] if layer == "plugins" else f"mlpot.{layer}"
    plugins = {path.parent.name for path in ROOT.glob("plugins/*/__init__.py")}
    complaints = []
    for line, name in imported_names(ast.parse(source)):
        top, _, rest = name.partition(".")
        if name.startswith("."):
            complaints.append(f"{module}:{line}: relative import")
        elif top == own or name == own or name.startswith(f"{own}."):
            continue
        elif top in plugins:
            complaints.append(f"{module}:{line}: imports the plugin {top}")
        elif top == "mlpot":
            if rest in public:  # `from mlpot import load` is an import of mlpot.deploy.load
                rest = public[rest].removeprefix("mlpot.")
            if not any(a == "*" or rest == a or rest.startswith(f"{a}.") for a in ARROWS[layer]):
                complaints.append(f"{module}:{line}: {layer} may not import {name}")
    return complaints


def find_cycle(sources: dict[str, str]) -> list[str]:
    """Modules that import each other in a ring, or nothing. Keys: dotted module names."""
    edges = {
        module: {
            target
            for _, name in imported_names(ast.parse(source))
            if (target := name if name in sources else name.rpartition(".")[0]) in sources
            and target != module
        }
        for module, source in sources.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in done:
            return []
        for target in sorted(edges[module]):
            if cycle := visit(target, [*trail, module]):
                return cycle
        done.add(module)
        return []

    return next((cycle for module in sorted(edges) if (cycle := visit(module, []))), [])


def too_long(module: str, source: str) -> list[str]:
    complaints = []
    lines = len(source.splitlines())
    if lines > MAX_MODULE_LINES:
        complaints.append(f"{module}: {lines} lines, at most {MAX_MODULE_LINES}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                complaints.append(
                    f"{module}:{node.lineno}: {node.name} has {length} lines, "
                    f"at most {MAX_FUNCTION_LINES}"
                )
    return complaints


def import_time_imports(source: str) -> set[str]:
    """Top-level names of packages imported when the module is, TYPE_CHECKING blocks aside."""

    def body(node: ast.AST) -> Iterator[ast.AST]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from body(child)
            return
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        for child in ast.iter_child_nodes(node):
            yield from body(child)

    statements = ast.Module(body=list(body(ast.parse(source))), type_ignores=[])
    return {name.split(".")[0] for _, name in imported_names(statements)}


# --- the checker checked ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mlpot.models.visnet", "from . import layers"),
        ("mlpot.models.visnet", "from ..graph import Graph"),
        ("mlpot.models.visnet", "def f():\n    from mlpot.data.record import Record"),
        ("mlpot.models.visnet", "import mlpot.train.losses"),
        ("mlpot.deploy.load", "def f():\n    import mlpot.train.finetune as t"),
        ("mlpot.data.label", "if TYPE_CHECKING:\n    from mlpot.models.potential import Potential"),
        ("mlpot.data.label", "from mlpot import Potential"),  # through the lazy table
        ("mlpot.data.label", "from mlpot import models"),
        ("mlpot.graph", "from mlpot.neighbors import build"),
        ("mlpot.units", "from mlpot import __version__"),
        ("mlpot.md.simulate", "import mlpot"),
        ("mlpot.md.simulate", "from mlpot_openmm.factory import MLPotFactory"),
        ("mlpot.md.simulate", "import_module('mlpot.models.visnet')"),
        ("mlpot.zoo", "from mlpot.models.visnet import ViSNet"),
        ("mlpot_openmm.force", "from mlpot.models.potential import Potential"),
        ("mlpot_openmm.force", "def f():\n    from mlpot.md import simulate"),
        ("mlpot.unheard_of", ""),
    ],
)
def test_the_checker_refuses(module: str, source: str) -> None:
    assert forbidden_imports(module, source, {"Potential": "mlpot.models.potential"})


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mlpot.models.visnet", "import torch\nfrom mlpot.models.layers import a"),
        ("mlpot.models.checkpoint", "from mlpot import __version__"),
        ("mlpot.zoo", "from mlpot.models.checkpoint import read"),
        ("mlpot.analysis.embed", "from mlpot import load"),
        ("mlpot.cli", "import mlpot\nfrom mlpot.train.finetune import finetune"),
        (
            "mlpot_openmm.force",
            "def f():\n    import mlpot\n    from mlpot.deploy.load import load",
        ),
        ("mlpot_openmm.factory", "from mlpot_openmm.force import add"),
        ("mlpot.data.label", "import mlpotato"),
    ],
)
def test_the_checker_accepts(module: str, source: str) -> None:
    assert forbidden_imports(module, source, {"load": "mlpot.deploy.load"}) == []


def test_the_checker_finds_a_cycle() -> None:
    ring = {
        "p.a": "import p.b",
        "p.b": "def f():\n    from p import c",
        "p.c": "from p.a import x",
        "p.d": "import p.a",
    }
    assert find_cycle(ring) == ["p.a", "p.b", "p.c", "p.a"]
    assert find_cycle({**ring, "p.c": ""}) == []


def test_the_checker_finds_what_is_too_long() -> None:
    assert too_long("m", "x = 1\n" * MAX_MODULE_LINES) == []
    assert too_long("m", "x = 1\n" * (MAX_MODULE_LINES + 1))
    assert too_long("m", "def f():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES - 1)) == []
    assert too_long("m", "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES)


def test_the_checker_tells_import_time_from_later() -> None:
    source = "try:\n    import a.b\nexcept ImportError:\n    pass\ndef f():\n    import c\n"
    source += "if TYPE_CHECKING:\n    import d\nelse:\n    import e\nclass K:\n    import g\n"
    assert import_time_imports(source) == {"a", "e", "g"}


# --- mlpot checked ---------------------------------------------------------------------------


def module_sources() -> dict[str, str]:
    roots = [(ROOT, "mlpot")]
    roots += [(ROOT / "plugins", path.parent.name) for path in ROOT.glob("plugins/*/__init__.py")]
    sources = {}
    for base, package in roots:
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            sources[name] = path.read_text(encoding="utf-8")
    return sources


SOURCES = module_sources()
LAYERED = {name: source for name, source in SOURCES.items() if name != "mlpot"}


def lazy_table() -> dict[str, str]:
    """``_PUBLIC`` of mlpot/__init__.py: public name -> module."""
    for node in ast.parse(SOURCES["mlpot"]).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_PUBLIC":
            return ast.literal_eval(node.value)
    raise AssertionError("mlpot/__init__.py has no _PUBLIC table")


@pytest.mark.parametrize("module", LAYERED)
def test_imports_follow_the_arrows(module: str) -> None:
    assert forbidden_imports(module, LAYERED[module], lazy_table()) == []


def test_no_import_cycles() -> None:
    assert find_cycle(LAYERED) == []


@pytest.mark.parametrize("module", SOURCES)
def test_modules_and_functions_stay_short(module: str) -> None:
    assert too_long(module, SOURCES[module]) == []


def test_the_lazy_table_matches_what_mypy_sees() -> None:
    blocks = [node for node in ast.parse(SOURCES["mlpot"]).body if isinstance(node, ast.If)]
    seen = {name for block in blocks for _, name in imported_names(block)}
    assert seen == {f"{module}.{name}" for name, module in lazy_table().items()}


# What `import openmmml` loads: package and factory. Other modules load when forces are added.
PLUGIN_MODULES = sorted(
    name
    for name in SOURCES
    if layer_of(name) == "plugins" and (name.endswith(".factory") or "." not in name)
)


@pytest.mark.parametrize("module", PLUGIN_MODULES)
def test_plugins_import_neither_torch_nor_mlpot_at_module_level(module: str) -> None:
    assert import_time_imports(SOURCES[module]).isdisjoint({"torch", "mlpot"})


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import mlpot", ["torch", "numpy", "openmm"]),
        ("import mlpot_openmm.factory", ["torch", "mlpot"]),
        ("import openmmml", ["torch", "mlpot"]),
        ("import openmmml, mlpot_openmm.factory", ["torch", "mlpot"]),
    ],
)
def test_importing_is_cheap(statement: str, absent: list[str]) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "plugins")])
    run = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys\nprint(*sys.modules)"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(run.stdout.split()).isdisjoint(absent)


# --- the repository checked ------------------------------------------------------------------

PRIVATE = re.compile(r"https?://[^\s]+/simple\b|(?<![\w.~])/(?:root|home/[^/\s]+|Users/[^/\s]+)/")


def test_the_pattern_for_private_paths_works() -> None:
    index, home, root = (
        "/".join(["https://a.b", "simple"]),
        "/".join(["", "home", "me", ""]),
        "root",
    )
    assert all(
        PRIVATE.search(text) for text in (f"pip -i {index}/x", f"cd {home}x", f"'/{root}/x'")
    )
    assert not PRIVATE.search("/rooted ~/home/me/x see home/me/x")


def test_no_index_hosts_or_machine_paths_in_the_repository() -> None:
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, files.stdout.split("\0")):
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        if b"\0" in content[:4096]:  # not text
            continue
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            if hit := PRIVATE.search(line):
                found.append(f"{name}:{number}: {hit.group()}")
    assert found == []
