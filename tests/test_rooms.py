"""Who may import what: the walls of the rooms, read from the source with `ast`.

`ROOMS` says for each room (a module or package of composer) which others it may import. A new room needs a line here. A line of code finds
its room by four questions: does it name a method of a paper? the catalogue. Does it know TOML? recipe. Does it order calls? plan. Does it
touch a device? engine.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from composer.registry import KINDS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "composer"

BASE = {"errors", "options", "registry", "shapes", "seeds"}
CATALOGUE = BASE | {"callmodule"}
# A name with a dot opens one module of a room: a door that docs/architecture.md describes.
DOORS = {"models.build", "models.weights", "data.sets", "data.augment", "evaluate.protocol", "inner.ascent", "inner.balls", "optim", "report.live",
         "report.table", "report.plots", "report.figures"}
EVERYTHING = {"*"}
ROOMS: dict[str, set[str]] = {
    "__init__": {"registry", "errors", "*"},            # the Python door: verbs are imported where they are called
    "__main__": {"cli"},
    "errors": set(), "shapes": set(), "seeds": set(), "callmodule": set(), "lazytorch": set(),
    "atomic": {"errors"}, "rayhost": set(),
    "options": {"shapes", "errors"},
    "registry": {"errors", "options", "shapes"},
    "shipped": {"errors"},
    "plugins": {"errors", "registry", "lazytorch", "shipped", "options"},
    "recipe": BASE | {"plugins", "shipped"},
    "plan": BASE | {"recipe"},
    **{room: CATALOGUE for room in ("losses", "views", "gains", "inner", "parts", "phases", "schedules", "optim", "data")},
    "models": CATALOGUE | {"recipe.types"},
    "data": CATALOGUE | {"atomic"},
    "evaluate": CATALOGUE | {"recipe.types", "engine.streams", "models.packed", "atomic", "plugins"},
    "engine": BASE | DOORS | {"recipe", "plan", "atomic", "rayhost", "callmodule", "plugins", "track", "evaluate", "data", "models"},
    "ablate": BASE | {"recipe", "plan", "engine", "atomic", "rayhost", "callmodule", "plugins", "shipped", "track", "track_*", "report.table", "report.store",
                           "report.ablation.write", "search", "subject.study"},
    "search": BASE | {"recipe", "plan", "engine", "ablate", "atomic", "plugins", "shipped", "track", "track_grid", "evaluate.protocol"},
    "track": {"errors", "atomic", "track_*"}, "track_journal": {"errors", "atomic", "track_*"}, "track_mlflow": {"errors", "atomic", "track_*"},
    "track_names": {"errors"}, "track_grid": {"track", "track_*"},
    "report": BASE | {"recipe", "plan", "ablate", "atomic", "track", "shipped", "plugins", "evaluate", "engine"},
    "subject": BASE | {"recipe", "engine", "evaluate", "data", "models", "atomic", "plugins", "shipped", "report.live", "report.figures"},
    "compare": BASE | {"subject.record", "ablate.statistics", "report.table"},
    "export": BASE | {"subject", "recipe", "engine", "models", "atomic"},
    "bench": BASE | DOORS | {"recipe", "plan", "engine", "evaluate", "models.packed", "atomic", "plugins", "shipped", "ablate.statistics"},
    "doctor": BASE | {"plugins", "shipped", "track"},
    "scaffold": BASE | {"plugins", "atomic", "testing", "_testing"},
    "ui": {"errors", "track", "track_*"},
    "testing": EVERYTHING, "_testing": EVERYTHING,
    "cli": EVERYTHING, "cli_run": EVERYTHING, "cli_ablate": EVERYTHING, "cli_bench": EVERYTHING, "cli_evaluate": EVERYTHING, "api": EVERYTHING, "verbs": EVERYTHING,
}
NO_TORCH = {"errors", "shapes", "seeds", "callmodule", "atomic", "options", "registry", "shipped", "plugins", "recipe", "plan", "track",
            "track_journal", "track_mlflow", "track_names", "track_grid"}                   # not even inside a function
NO_TORCH_FILES = ("ablate/cells.py", "ablate/tree.py", "ablate/statistics/", "ablate/table.py", "ablate/design.py")       # beginnings of names
ONLY = {"mlflow": ("track",), "optuna": ("search",), "ray": ("search", "ablate/launch", "engine/fleet")}          # beginnings of file names
HEAVY = {"mlflow", "ray", "sklearn", "scipy", "matplotlib", "pyautoattack", "optuna", "statsmodels", "pandas", "torchvision", "timm"}
COMPILERS = ("engine/backend", "bench/", "_testing", "testing")
PLUGIN_MAY = {"composer", "composer.shapes", "composer.errors", "composer.options"}


def sources(folder: Path = PACKAGE) -> list[Path]:
    return sorted(p for p in folder.rglob("*.py") if "_shipped" not in p.parts)


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(node: ast.AST, package: str, inside: bool = True) -> Iterator[tuple[str, int]]:
    """Every module imported below `node` with its line; without `inside` only at the top of the module. Imports for type checkers are none."""
    for child in ast.iter_child_nodes(node):
        if typing_only(child):
            yield from imports(ast.Module(child.orelse, []), package, inside)
        elif isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            start = ".".join(package.split(".")[: len(package.split(".")) - child.level + 1]) if child.level else ""
            module = ".".join(filter(None, (start, child.module)))
            yield module, child.lineno
            if module.startswith("composer"):
                yield from ((f"{module}.{alias.name}", child.lineno) for alias in child.names if is_module(f"{module}.{alias.name}"))
        elif inside or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from imports(child, package, inside)


def is_module(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def allowed(target: str, may: set[str]) -> bool:
    """`target` without 'composer.': may hold its room, one of its modules, a beginning with '*', or everything."""
    room = target.split(".")[0]
    return any(m in ("*", room) or target == m or target.startswith(m + ".") or (m.endswith("*") and room.startswith(m[:-1])) for m in may)


def trespasses(path: Path, room: str, may: set[str]) -> list[str]:
    result = []
    for module, line in imports(tree_of(path), package_of(path)):
        if not module.startswith("composer.") or not is_module(module):
            continue
        target = module.removeprefix("composer.")
        opens_door = any(m.startswith(target + ".") for m in may)                # `from composer.recipe import types` names both
        if target.split(".")[0] != room and not allowed(target, may) and not opens_door:
            result.append(f"{name_of(path)}:{line} imports {module}")
    return result


def test_every_room_is_known():
    unknown = {room_of(p) for p in sources()} - set(ROOMS)
    assert not unknown, f"no wall around {sorted(unknown)}: add them to ROOMS in tests/test_rooms.py"


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_rooms_import_only_what_they_may(room):
    found = [line for p in sources() if room_of(p) == room for line in trespasses(p, room, ROOMS[room])]
    assert not found, "\n".join(found)


def test_no_torch_where_none_is_needed():
    found = [f"{name_of(p)}:{line} imports {module}" for p in sources() if room_of(p) in NO_TORCH or name_of(p).startswith(NO_TORCH_FILES)
             for module, line in imports(tree_of(p), package_of(p)) if module.split(".")[0] == "torch"]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("library", sorted(ONLY))
def test_libraries_with_one_door(library):
    found = [f"{name_of(p)}:{line}" for p in sources() if not name_of(p).startswith(ONLY[library])
             for module, line in imports(tree_of(p), package_of(p)) if module.split(".")[0] == library]
    assert not found, f"{library} is imported outside {ONLY[library]}: {found}"


def test_heavy_libraries_are_imported_where_they_are_used():
    """At the top of a module they would make every command slow; only a private module of the catalogue, itself imported late, may."""
    found = [f"{p.relative_to(ROOT)}:{line} imports {module} at the top" for p in sources() + sources(ROOT / "plugins")
             for module, line in imports(tree_of(p), package_of(p), inside=False) if module.split(".")[0] in HEAVY]
    assert not found, "\n".join(found)


def compiles(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        owner = ast.unparse(node.value)
        return (node.attr == "compile" and owner == "torch") or node.attr in ("CUDAGraph", "make_graphed_callables") or (
            node.attr == "graph" and owner == "torch.cuda")
    return isinstance(node, ast.ImportFrom) and node.module in ("torch", "torch.cuda") and any(
        alias.name in ("compile", "CUDAGraph", "graph") for alias in node.names)


def test_only_the_backend_compiles():
    found = [f"{name_of(p)}:{node.lineno}" for p in sources() if not name_of(p).startswith(COMPILERS) for node in ast.walk(tree_of(p))
             if compiles(node)]
    assert not found, f"torch.compile or a CUDA graph outside engine/backend: {found}"


def decorators(tree: ast.Module) -> set[int]:
    """Lines of `from composer import inner, loss`: the package's decorators, some of which share their name with a room."""
    return {n.lineno for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "composer" and {a.name for a in n.names} <= set(KINDS)}


def test_shipped_plugins_use_the_door_of_strangers():
    tests = {p for p in sources(ROOT / "plugins") if p.name.startswith(("test_", "conftest")) or "tests" in p.parts}
    found = [f"{p.relative_to(ROOT)}:{line} imports {module}" for p in sources(ROOT / "plugins") if p not in tests
             for module, line in imports(tree_of(p), package_of(p))
             if module.split(".")[0] == "composer" and is_module(module) and module not in PLUGIN_MAY and line not in decorators(tree_of(p))]
    assert not found, "\n".join(found)


def test_reading_the_catalogue_and_a_recipe_needs_no_torch():
    code = ("import sys; import composer.recipe, composer.plan; from composer.plugins import load_all; load_all(); "
            "assert 'torch' not in sys.modules, 'torch was imported'; assert 'mlflow' not in sys.modules and 'ray' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("code", "expected"), [
    ("import ray", ["ray"]), ("from ray import tune", ["ray"]), ("def f():\n    import ray", []), ("class A:\n    import ray", ["ray"]),
    ("try:\n    import ray\nexcept ImportError:\n    ray = None", ["ray"]), ("if TYPE_CHECKING:\n    import ray\nelse:\n    import os", ["os"])])
def test_the_reader_of_imports_itself(code, expected):
    assert [module for module, _ in imports(ast.parse(code), "composer", inside=False)] == expected


def test_the_walls_themselves():
    assert decorators(ast.parse("from composer import inner, loss")) == {1} and not decorators(ast.parse("from composer.inner import balls"))
    assert allowed("recipe.types", {"recipe"}) and allowed("recipe.types", {"recipe.types"}) and allowed("track_names", {"track_*"})
    assert not allowed("engine.run", {"engine.streams"}) and not allowed("losses.margins", CATALOGUE)
    assert compiles(ast.parse("torch.compile").body[0].value) and not compiles(ast.parse("re.compile").body[0].value)
