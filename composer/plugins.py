"""The doors primitives come in by, in this order: the own catalogue; shipped plugins; entry points of the group `composer.plugins`;
COMPOSER_PLUGINS (files or folders, separated as PATH is); `[tool.composer] plugins` in the working folder's pyproject.toml; `--plugin`.

Nothing is ever loaded from a folder nobody named. A file that somebody named stands in for the shipped plugin of the same file name.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from composer.errors import ComposerError, Errors
from composer.lazytorch import lazy_torch
from composer.registry import REGISTRY
from composer.shipped import plugins_dir

ROOMS = ("losses", "views", "gains", "inner", "parts", "phases", "schedules", "optim", "models", "data", "evaluate")
GROUP = "composer.plugins"
VARIABLE = "COMPOSER_PLUGINS"


@dataclass(frozen=True)
class Loaded:
    """One plugin that was loaded.

    door        "shipped", "entry point", "COMPOSER_PLUGINS", "pyproject.toml" or "--plugin"
    primitives  what it registered, as "kind/name"
    stands_for  the shipped file it stands in for
    """

    name: str
    path: Path | None
    door: str
    primitives: tuple[str, ...]
    stands_for: Path | None = None


_loaded: dict[Path | str, Loaded] = {}      # by resolved file, or by name of the entry point


def load_catalogue() -> None:
    """Register composer's own primitives. Does not import torch; a room imported before stays as it is."""
    with lazy_torch():
        for room in ROOMS:
            importlib.import_module(f"composer.{room}")


def load_all(files: Iterable[str | Path] = (), cwd: str | Path | None = None, *, exact: bool = False) -> list[Loaded]:
    """Open every door, then freeze the registry; returns all plugins in order of loading.

    files   what `--plugin` named; cwd: the working folder (its pyproject.toml is read, relative names start there)
    exact   only the catalogue, shipped plugins, entry points and `files`: what a worker is given by `for_workers`

    Calling it again loads only what is new, which a frozen registry refuses: plugins come before the first recipe.
    Errors: everything wrong with the named places and the plugins at once.
    """
    load_catalogue()
    named = _named(files, Path(cwd or Path.cwd()), exact)
    shipped = {path.name: path for path in files_of(plugins_dir())}
    replaced = {path.name for path, _ in named if shipped.get(path.name) != path}
    replaced |= {each.stands_for.name for each in _loaded.values() if each.stands_for}
    errors: list[ComposerError] = []
    for path in shipped.values():
        if path.name not in replaced:
            _try(errors, lambda path=path: _load(path, "shipped"))
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: point.name):
        _try(errors, lambda point=point: _load_entry_point(point))
    for path, door in named:
        _try(errors, lambda path=path, door=door: _load(path, door))
    if errors:
        raise errors[0] if len(errors) == 1 else Errors(errors)
    REGISTRY.frozen = True
    return list(_loaded.values())


def load_shipped(without: Iterable[Path] = ()) -> None:
    """Load the shipped plugins whose file names are not those of `without`."""
    names = {path.name for path in without}
    for path in files_of(plugins_dir()):
        if path.name not in names:
            _load(path, "shipped")


def loaded() -> list[Loaded]:
    """The plugins loaded so far."""
    return list(_loaded.values())


def for_workers() -> tuple[str, ...]:
    """Absolute files a worker hands to `load_all(files, exact=True)` to have this process's primitives; the rest it finds by itself."""
    return tuple(str(key) for key, each in _loaded.items() if isinstance(key, Path) and each.door != "shipped")


def load_file(path: str | Path, door: str = "--plugin") -> ModuleType:
    """Load one plugin file (once) and return its module."""
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise ComposerError(f"there is no plugin file '{path}'", where=door, fix="check the name")
    _load(path, door)
    return sys.modules[_module_name(path)]


def _try(errors: list[ComposerError], work: Callable[[], None]) -> None:
    try:
        work()
    except ComposerError as error:
        errors.extend(error.all)


def _named(files: Iterable[str | Path], cwd: Path, exact: bool) -> list[tuple[Path, str]]:
    """Every plugin file somebody named, resolved, each once, with the door it was first named at."""
    places: list[tuple[Path, str, str]] = []
    if not exact:
        places += [(cwd / Path(p).expanduser(), VARIABLE, VARIABLE) for p in os.environ.get(VARIABLE, "").split(os.pathsep) if p.strip()]
        places += [(cwd / Path(p).expanduser(), "pyproject.toml", str(cwd / "pyproject.toml") + "  [tool.composer] plugins") for p in _project(cwd)]
    places += [(cwd / Path(p).expanduser(), "--plugin", f"--plugin {p}") for p in files]
    found: dict[Path, str] = {}
    errors: list[ComposerError] = []
    for place, door, where in places:
        if not place.exists():
            errors.append(ComposerError(f"there is no plugin file or folder '{place}'", where=where, fix="check the name, or take it out"))
        for path in files_of(place) if place.is_dir() else [place.resolve()] if place.exists() else []:
            found.setdefault(path, door)
    if errors:
        raise errors[0] if len(errors) == 1 else Errors(errors)
    return list(found.items())


def files_of(folder: Path) -> list[Path]:
    """The plugins of a folder, sorted: its .py files, without tests (test_*.py, conftest.py) and private files (_*.py)."""
    return [path.resolve() for path in sorted(folder.glob("*.py")) if not path.name.startswith(("test_", "_")) and path.name != "conftest.py"]


def _project(cwd: Path) -> list[str]:
    """`[tool.composer] plugins` of the working folder itself; folders above it were not named."""
    file = cwd / "pyproject.toml"
    if not file.is_file():
        return []
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ComposerError("pyproject.toml cannot be read", where=str(file), why=str(error), fix="mend the file") from None
    named = table.get("tool", {}).get("composer", {}).get("plugins", [])
    if not isinstance(named, list) or not all(isinstance(each, str) for each in named):
        raise ComposerError(f"[tool.composer] plugins = {named!r}", where=str(file), why="a list of files or folders is needed",
                            fix='plugins = ["plugins"]')
    return named


def _module_name(path: Path) -> str:
    """One module for each file: two folders may each hold a `mine.py`."""
    import hashlib

    return f"composer_plugin_{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"


def _load(path: Path, door: str) -> None:
    if path in _loaded:
        return
    original = plugins_dir() / path.name
    stands_for = original if original.is_file() and original != path else None
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ComposerError(f"'{path}' is no Python file", where=door, fix="a plugin is a file that ends in .py, or a folder of them")
    if stands_for in _loaded and not REGISTRY.frozen:
        REGISTRY.remove_file(stands_for)
        del _loaded[stands_for]
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        with lazy_torch():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        REGISTRY.remove_file(path)
        raise _located(path.stem, error, path, door) from error
    made = tuple(f"{p.kind}/{p.name}" for p in REGISTRY.all() if p.file and p.file.resolve() == path)
    _loaded[path] = Loaded(path.stem, path, door, made, stands_for)


def _load_entry_point(point: importlib.metadata.EntryPoint) -> None:
    if point.name in _loaded:
        return
    before = {(p.kind, p.name) for p in REGISTRY.all()}
    try:
        with lazy_torch():
            module = importlib.import_module(point.module)
            if point.attr:
                point.load()
    except (Exception, SystemExit) as error:
        raise _located(point.name, error, None, f"entry point {point.value}") from error
    made = tuple(f"{p.kind}/{p.name}" for p in REGISTRY.all() if (p.kind, p.name) not in before)
    file = getattr(module, "__file__", None)
    _loaded[point.name] = Loaded(point.name, Path(file) if file else None, "entry point", made)


def _located(name: str, error: BaseException, path: Path | None, door: str) -> ComposerError:
    """The author's own line, not ours: the last frame of the traceback that lies in the plugin."""
    if isinstance(error, ComposerError):
        return error
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}:{error.lineno}"
    else:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if path is None or Path(f.filename) == path]
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else str(path or door)
    return ComposerError(f"plugin '{name}' cannot be loaded: {type(error).__name__}: {error}", where=where, why=f"it was named by {door}",
                         fix="mend the plugin, or leave it out")
