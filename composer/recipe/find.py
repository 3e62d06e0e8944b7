"""Where recipes, settings and protocols are found: as a path, beside the file that names them, or among the shipped ones."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from composer.errors import ComposerError, suggest
from composer.recipe.problems import closest
from composer.recipe.source import Doc, label, read


def shipped() -> Path:
    """The folder of shipped recipes."""
    from composer.shipped import recipes_dir

    return Path(recipes_dir())


def _toml(path: Path) -> Path | None:
    """The file of that name, with or without its ending."""
    for each in (path, path.with_name(path.name + ".toml")):
        if each.suffix == ".toml" and each.is_file():
            return each
    return None


def recipe_names(root: Path) -> list[str]:
    return sorted(p.stem for p in root.glob("*.toml") if p.stem not in ("papers", "protocols"))


def setting_names(root: Path) -> list[str]:
    folder = root / "settings"
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.toml"))


def find_recipe(name: str | Path, root: Path) -> Path:
    """Errors: ComposerError with the closest names where there is no such file."""
    text = str(name)
    shipped = [] if Path(text).is_absolute() else [root / text, *([root.parent / text] if Path(text).parts[:1] == (root.name,) else [])]
    found = next(filter(None, map(_toml, [Path(text), *shipped])), None)
    if found and not (found.parent == root and found.stem in ("papers", "protocols")):
        return found
    if Path(text).is_file():
        raise ComposerError(f"'{text}' is no recipe", why="a recipe is a file ending in .toml")
    raise ComposerError(f"there is no recipe '{text}'", why="no such file, and no shipped recipe of that name",
                        fix=suggest(Path(text).stem, recipe_names(root), "recipes"))


def find_parent(child: Doc, name: object, root: Path) -> Path:
    """`extends`: beside the file, or else a shipped one. A setting's shipped parents lie in recipes/settings."""
    where = f"{child.place(('extends',))}  extends"
    if not isinstance(name, str):
        raise ComposerError(f"extends = {name!r}", where=where, why="one parent is named, by its file", fix='write extends = "mart.toml"')
    beside = _toml(child.path.parent / name)
    if beside and beside.resolve() != child.path.resolve():
        return beside
    for folder in (root, root / "settings"):
        found = _toml(folder / name)
        if found and found.resolve() != child.path.resolve():
            return found
    if beside:
        raise ComposerError(f'extends = "{name}"', where=where, why="the file extends itself")
    raise ComposerError(f'extends = "{name}"', where=where, why=f"there is no such file beside {label(child.path)}, and no shipped one",
                        fix=suggest(Path(name).stem, [*recipe_names(root), *setting_names(root)], "recipes and settings"))


def find_setting(name: str, root: Path, beside: Path, where: str = "") -> tuple[str, Path]:
    """(name, file) of a setting: a shipped one by name, one in `settings/` beside the recipe, or a path."""
    stem = name.removesuffix(".toml")
    for folder in (root / "settings", beside / "settings"):
        found = _toml(folder / stem)
        if found:
            return stem, found
    for folder in (Path("."), beside):
        found = _toml(folder / name)
        if found:
            return setting_name(found, root), found
    raise ComposerError(f"there is no setting '{name}'", where=where, why="no shipped setting of that name, and no such file",
                        fix=suggest(stem, setting_names(root), "settings"))


def setting_name(path: Path, root: Path) -> str:
    """`lma_at/cifar10-resnet18` for a file below a folder `settings`; else the file's stem."""
    full = path.resolve()
    for folder in [(root / "settings").resolve(), *(p for p in full.parents if p.name == "settings")]:
        if full.is_relative_to(folder):
            return full.relative_to(folder).with_suffix("").as_posix()
    return path.stem


def chain(path: Path, root: Path, heads: Collection[str], errors: list[ComposerError]) -> tuple[list[Doc], bool]:
    """The file and all it extends, eldest first; False where a parent is missing and what it says is not known.

    heads    legal top-level keys: one that is nearly one of them is told, and read as it was meant
    Errors: the file itself cannot be read. What is wrong with a parent, and cycles, go to `errors`; reading goes on with the closest name.
    """
    docs = [spelt(read(path), heads, errors)]
    seen = [docs[0].path.resolve()]
    while "extends" in docs[0].table:
        try:
            parent = spelt(_parent(docs, seen, root, errors), heads, errors)
        except ComposerError as error:
            errors += error.all
            return docs, False
        docs.insert(0, parent)
        seen.append(parent.path.resolve())
    return docs, True


def _parent(docs: list[Doc], seen: list[Path], root: Path, errors: list[ComposerError]) -> Doc:
    child, name = docs[0], docs[0].table["extends"]
    try:
        parent = find_parent(child, name, root)
    except ComposerError as error:
        meant = closest(Path(str(name)).stem, recipe_names(root)) if isinstance(name, str) else None
        found = _toml(root / meant) if meant else None
        if found is None or found.resolve() in seen:
            raise
        errors.append(error)
        parent = found
    if parent.resolve() in seen:
        names = " -> ".join(label(p) for p in [*(d.path for d in reversed(docs)), parent])
        raise ComposerError(f'extends = "{name}"', where=f"{child.place(('extends',))}  extends",
                            why=f"the recipes extend each other in a circle: {names}")
    return read(parent)


def spelt(doc: Doc, heads: Collection[str], errors: list[ComposerError]) -> Doc:
    """Top-level keys that are nearly legal ones are told, and read as they were meant."""
    meant: dict[str, str] = {}
    for key in doc.table:
        right = closest(key, heads) if key not in heads else None
        if right and right not in doc.table and right not in meant.values():
            meant[key] = right
            errors.append(unknown_head(key, f"{doc.place((key,))}  {key}", heads))
    return doc.respelled(meant) if meant else doc


def unknown_head(key: str, where: str, heads: Collection[str]) -> ComposerError:
    return ComposerError(f"a recipe has no table or key '{key}'", where=where, fix=suggest(key, heads, "tables and keys"))
