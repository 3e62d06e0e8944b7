"""All that is laid over each other before toggles and phases: settings, parents, recipe, [on], [for], command line."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from composer.errors import ComposerError, Errors, suggest
from composer.recipe import find
from composer.recipe import merge as layer
from composer.recipe.edit import Edit, Editor, Known, read_edit
from composer.recipe.keys import ROOTS
from composer.recipe.merge import Origins
from composer.recipe.paths import MISSING, Dotted, assign, clone, get, key_text, show, split
from composer.recipe.source import Doc, read
from composer.recipe.write import quote

HEADS = {"extends", "setting", "drop", "on", "for"}                 # say how layers are laid, and are no values themselves
OWN = {"about", "version", "expect"}                                 # of one file; a child does not take them over
RECIPE_HEADS = {"extends", "setting", "drop", "on"}
SETTING_HEADS = {"extends", "for"}
DEFAULT = "digits"
METHOD = {"inner", "outer", "terms", "views", "parts", "phase", "toggle", "search"}


@dataclass
class Stack:
    """The tables of a recipe after the command line, and where each value comes from."""

    name: str
    setting: str
    tables: dict[str, Any] = field(default_factory=dict)
    origins: Origins = field(default_factory=Origins)
    chain: tuple[str, ...] = ()                                      # recipe's name and all it extends, eldest first
    settings: tuple[str, ...] = ()                                   # bench, then the more specific
    files: tuple[Path, ...] = ()
    recipes: tuple[Path, ...] = ()                                   # those that are recipes, no settings
    commanded: frozenset[Dotted] = frozenset()                       # paths of the command line
    others: dict[str, Edit] = field(default_factory=dict)            # [on] tables of settings it does not run on now
    own: bool = True                                                 # it runs on the setting its file names, as the file says
    lost: bool = False                                               # a parent is missing: what it says is not known
    protocols: Doc | None = None
    beneath: dict[str, Any] = field(default_factory=dict)            # what the settings alone say
    toggles: dict[str, Edit] = field(default_factory=dict)           # edits of toggles that have been read

    def start_evaluate(self, tables: dict[str, Any], name: Any, origins: Origins, place: str) -> None:
        """A new protocol: its table is the lowest layer of [evaluate]. An unknown one is left for the schema to name."""
        table = self.protocols.table.get(name) if self.protocols and isinstance(name, str) else None
        protocol = table if isinstance(table, dict) else {}
        doc = self.protocols
        layer.write(tables, ("evaluate",), protocol, origins, lambda path: doc.place((name, *path[1:])) if doc and protocol else place)
        origins.tables[("evaluate",)] = place
        layer.write(tables, ("evaluate", "use"), name, origins, lambda _: place)


def assemble(path: str | Path, *, setting: str | None, sets: Sequence[str], drops: Sequence[str], root: Path | None, known: Known,
             errors: list[ComposerError]) -> Stack:
    """Errors that leave nothing to read on with are raised; all others are added to `errors`."""
    root = Path(root) if root is not None else find.shipped()
    docs, whole = find.chain(find.find_recipe(path, root), root, {*ROOTS, *RECIPE_HEADS}, errors)
    name, benches, found = _benches(docs, setting, root, errors)
    names = [find.setting_name(doc.path, root) for doc in benches[:-1]] + [name]
    stack = Stack(docs[-1].path.stem, name, chain=tuple(dict.fromkeys(doc.path.stem for doc in docs)), settings=tuple(names),
                  files=tuple(doc.path for doc in (*benches, *docs)), recipes=tuple(doc.path for doc in docs), own=found and not setting,
                  lost=not whole)
    stack.origins.home = docs[-1].place(())
    file = root / "protocols.toml"
    stack.protocols = read(file) if file.is_file() else None
    for doc in benches:
        _check_heads(doc, SETTING_HEADS, errors)
        _lay(stack, {k: v for k, v in doc.table.items() if k not in HEADS | OWN | {"paper"}}, doc)
    stack.beneath = clone(stack.tables)
    for doc in docs:
        _check_heads(doc, RECIPE_HEADS, errors)
        _drop_parents(stack, doc, errors)
        _lay(stack, {k: v for k, v in doc.table.items() if k not in HEADS and (k not in OWN or doc is docs[-1])}, doc)
    _edits(stack, docs, benches, root, known, errors)
    _command_line(stack, sets, drops, known, errors)
    return stack


def _benches(docs: list[Doc], setting: str | None, root: Path, errors: list[ComposerError]) -> tuple[str, list[Doc], bool]:
    """(name, files, found) of the setting. One that is missing or unreadable is told, and the default stands in for it."""
    asked, where = (setting, "--setting") if setting else _setting(docs, errors)
    beside = docs[-1].path.parent
    try:
        name, file = find.find_setting(asked, root, beside, where)
        files, whole = find.chain(file, root, {*ROOTS, *SETTING_HEADS}, errors)
        if whole:
            return name, files, True
    except ComposerError as error:
        errors += error.all
    try:
        name, file = find.find_setting(DEFAULT, root, beside)
        return name, find.chain(file, root, {*ROOTS, *SETTING_HEADS}, [])[0], False
    except ComposerError:
        raise Errors(errors) from None


def _setting(docs: list[Doc], errors: list[ComposerError]) -> tuple[str, str]:
    for doc in reversed(docs):
        if "setting" in doc.table:
            name, where = doc.table["setting"], f"{doc.place(('setting',))}  setting"
            if isinstance(name, str):
                return name, where
            errors.append(ComposerError(f"setting = {quote(name)}", where=where, why="a setting is named by a string",
                                        fix='write setting = "digits"'))
            break
    return DEFAULT, ""


def _check_heads(doc: Doc, allowed: set[str], errors: list[ComposerError]) -> None:
    for key in HEADS & set(doc.table) - allowed:
        kind, other = ("a setting", "recipes") if "for" in allowed else ("a recipe", "settings")
        errors.append(ComposerError(f"[{key}]", where=f"{doc.place((key,))}  {key}", why=f"{kind} has none; it belongs into {other}"))


def _lay(stack: Stack, body: dict[str, Any], doc: Doc) -> None:
    evaluate = body.get("evaluate")
    if isinstance(evaluate, dict) and "use" in evaluate and evaluate["use"] != get(stack.tables, ("evaluate", "use")):
        stack.start_evaluate(stack.tables, evaluate["use"], stack.origins, doc.place(("evaluate", "use")))
    layer.merge(stack.tables, body, stack.origins, doc.place)


def _drop_parents(stack: Stack, doc: Doc, errors: list[ComposerError]) -> None:
    edit = read_edit("drop", {"drop": doc.table.get("drop", [])}, doc.place(("drop",)), lambda path: f"{doc.place(path)}  drop", errors)
    Editor(stack.tables, clone(stack.tables), stack.origins, lambda *_: False, errors, lost=stack.lost).apply([edit])


def _edits(stack: Stack, docs: list[Doc], benches: list[Doc], root: Path, known: Known, errors: list[ComposerError]) -> None:
    """[on] of parent and child merged, general before special; then [for], eldest name first."""
    on = _collect("on", docs, errors)
    shipped = find.setting_names(root) if on else []
    for name, edit in on.items():
        beside = docs[-1].path.parent / "settings" / f"{name}.toml"
        if name not in stack.settings and name not in shipped and not beside.is_file():
            errors.append(ComposerError(f"[on.{key_text(name)}]", where=edit.where, why=f"there is no setting '{name}'",
                                        fix=suggest(name, [*shipped, *stack.settings], "settings")))
    stack.others = {name: edit for name, edit in on.items() if name not in stack.settings}
    carried = _collect("for", benches, errors)
    ordered = [on[name] for name in stack.settings if name in on] + [carried[name] for name in stack.chain if name in carried]
    for edit in ordered:
        Editor(stack.tables, past(stack.origins), stack.origins, known, errors, stack.start_evaluate, lost=stack.lost).apply([edit])


def past(origins: Origins) -> dict[str, Any]:
    """Everything ever said: what a parent or a setting edits and the child has dropped or swapped is void, not an error."""
    tables: dict[str, Any] = {}
    for path, said in sorted(origins.said.items(), key=lambda item: -len(item[0])):
        value = next((v for _, v in reversed(said) if v is not layer.REMOVED), MISSING)
        free = get(tables, path) is MISSING and all(isinstance(get(tables, path[:end], {}), dict) for end in range(1, len(path)))
        if value is not MISSING and free:
            assign(tables, path, clone(value))
    return tables


def _collect(head: str, docs: list[Doc], errors: list[ComposerError]) -> dict[str, Edit]:
    found: dict[str, Edit] = {}
    for doc in docs:
        tables = doc.table.get(head, {})
        if not isinstance(tables, dict):
            errors.append(ComposerError(f"{head} = {quote(tables)}", where=f"{doc.place((head,))}  {head}", why="a table of edits is needed"))
            continue
        for name, table in tables.items():
            place = _below(doc, (head, name))
            edit = read_edit(f"{head}.{name}", table, place(()), place, errors)
            found[name] = edit.over(found[name]) if name in found else edit
    return found


def _below(doc: Doc, prefix: Dotted) -> layer.Place:
    return lambda path: f"{doc.place((*prefix, *path))}  {show(prefix)}"


def _editor(stack: Stack, known: Known, errors: list[ComposerError]) -> Editor:
    return Editor(stack.tables, clone(stack.tables), stack.origins, known, errors, stack.start_evaluate, lost=stack.lost)


def _command_line(stack: Stack, sets: Sequence[str], drops: Sequence[str], known: Known, errors: list[ComposerError]) -> None:
    """The protocol first, wherever it stands among the others: what they say of measures is said of its measures."""
    said = _assignments(sets, errors)
    protocol = Edit("the command line", "")
    protocol.set.update((path, (value, where)) for path, value, where in said if path == ("evaluate", "use"))
    if protocol.set:
        _editor(stack, known, errors).apply([protocol])
    edit = Edit("the command line", "")
    for path, value, where in said:
        if path in protocol.set:
            continue
        new = isinstance(value, dict) and path[:-1] in ADDABLE and get(stack.tables, path) is MISSING
        (edit.put if new else edit.set)[path] = (value, where)
    for number, text in enumerate(drops, 1):
        try:
            edit.drop[split(text)] = f"--drop #{number}"
        except ValueError as error:
            errors.append(ComposerError(f"--drop {text}", where=f"--drop #{number}", why=str(error)))
    stack.commanded = frozenset({*protocol.paths(), *edit.paths()})
    _editor(stack, known, errors).apply([edit])


def _assignments(sets: Sequence[str], errors: list[ComposerError]) -> list[tuple[Dotted, Any, str]]:
    """(path, value, place) of each --set."""
    found = []
    for number, text in enumerate(sets, 1):
        try:
            found.append((*assignment(text), f"--set #{number}"))
        except ValueError as error:
            errors.append(ComposerError(f"--set {text}", where=f"--set #{number}", why=str(error), fix="write --set path=value, as in --set terms.kl.weight=6"))
    return found


ADDABLE = {(name,) for name in ("terms", "views", "parts", "inner", "augment", "evaluate", "trace", "phase")}


def assignment(text: str) -> tuple[Dotted, Any]:
    """`path=value`; the value is TOML, or else a string. Errors: ValueError."""
    path, sign, value = text.partition("=")
    if not sign:
        raise ValueError("there is no '=' in it")
    try:
        return split(path), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return split(path), value.strip()
