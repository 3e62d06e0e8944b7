"""One idea of a registered primitive: a function (or a class with state) of one kind, its needs and options read from its signature.

The decorator returns what it decorates untouched, so `boosted_ce(logits, y)` works in a notebook.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from composer.errors import ComposerError, suggest
from composer.options import Option, options_model, read_option, split
from composer.shapes import Shape

KINDS = ("loss", "view", "gain", "radius", "inner", "start", "ball", "part", "phase", "schedule", "head", "model", "data", "augment", "optim",
         "measure")
RESERVED = {"use", "at", "bn", "weight", "gain", "detach", "begin"}      # keys of a term or view; no option and no need may take them
TERMLIKE = ("loss", "view", "gain", "radius")
SCHEDULED = ("loss", "view", "gain", "radius", "inner", "start", "part", "optim")    # their float options may be schedules


@dataclass(frozen=True)
class Need:
    """A tensor a primitive asks for, by name."""

    name: str
    shape: Shape | None = None
    default: Any = ...

    @property
    def leaf(self) -> bool:
        return bool(self.shape and self.shape.leaf)

    @property
    def draw(self) -> str:
        return self.shape.draw if self.shape else ""


@dataclass(frozen=True)
class Card:
    """What a docstring says: one sentence, the formula with its unit, the papers."""

    summary: str
    formula: str
    paper: str
    text: str


def read_card(doc: str | None) -> Card:
    text = inspect.cleandoc(doc or "")
    summary = " ".join(text.split("\n\n")[0].split())

    def section(title: str) -> str:
        match = re.search(rf"^{title}:[ \t]*(.*(?:\n[ \t]+.*)*)", text, re.MULTILINE)
        return " ".join(match[1].split()) if match else ""

    return Card(summary, section("Formula"), section("Paper"), text)


@dataclass(frozen=True, eq=False)
class Primitive:
    """A registered function or class: kind, name, flags given to the decorator, and what its signature says."""

    kind: str
    name: str
    fn: Callable[..., Any]
    flags: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def origin(self) -> str:
        """file:line of its definition."""
        try:
            return f"{inspect.getsourcefile(self.fn)}:{inspect.getsourcelines(self.fn)[1]}"
        except (OSError, TypeError):
            return f"<{self.fn.__module__}>"

    @cached_property
    def file(self) -> Path | None:
        found = inspect.getsourcefile(self.fn)
        return Path(found) if found else None

    @cached_property
    def card(self) -> Card:
        return read_card(self.fn.__doc__)

    @cached_property
    def _signatures(self) -> tuple[tuple[Need, ...], tuple[Option, ...]]:
        """A class takes its options from __init__ and its needs from `read` (or else the moments that have needs)."""
        if not inspect.isclass(self.fn):
            return self._parse(self.fn)
        options = self._parse(self.fn.__init__)[1]
        read = getattr(self.fn, "read", None)
        return (self._parse(read)[0] if read else (), options)

    def _parse(self, fn: Callable[..., Any]) -> tuple[tuple[Need, ...], tuple[Option, ...]]:
        try:
            hints = typing.get_type_hints(fn, include_extras=True)
        except NameError as error:
            raise ComposerError(f"{self.kind} '{self.name}': an annotation cannot be read: {error}", where=self.origin,
                                fix="import the name at the top of the file (not under TYPE_CHECKING)") from None
        needs, options = [], []
        for p in inspect.signature(fn).parameters.values():
            if p.name == "self" or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                continue
            annotation = hints.get(p.name, Any)
            default = ... if p.default is p.empty else p.default
            if p.kind is p.KEYWORD_ONLY:
                options.append(read_option(p.name, annotation, default, self.kind in SCHEDULED))
            else:
                shape = next((m for m in split(annotation)[1] if isinstance(m, Shape)), None)
                needs.append(Need(p.name, shape, default))
        return tuple(needs), tuple(options)

    @cached_property
    def _moments(self) -> dict[str, tuple[Need, ...]]:
        return {}

    def method_needs(self, method: str) -> tuple[Need, ...]:
        """The needs of one moment of a class (`after_step`, `epoch_end`, …)."""
        if method not in self._moments:
            fn = getattr(self.fn, method, None)
            self._moments[method] = self._parse(fn)[0] if fn else ()
        return self._moments[method]

    @property
    def needs(self) -> tuple[Need, ...]:
        return self._signatures[0]

    @property
    def options(self) -> tuple[Option, ...]:
        return self._signatures[1]

    def option(self, name: str) -> Option | None:
        return next((o for o in self.options if o.name == name), None)

    @cached_property
    def Options(self) -> type[BaseModel]:
        """The Pydantic model of its options."""
        return options_model(f"{self.kind}_{self.name}", self.options)

    def check_names(self) -> None:
        """Reserved keys and clashes, at registration, where the author sees them."""
        if self.kind not in TERMLIKE:
            return
        needs, options = {n.name for n in self.needs}, {o.name for o in self.options}
        for bad in sorted((needs | options) & RESERVED):
            raise ComposerError(f"{self.kind} '{self.name}' has a parameter '{bad}', which is a reserved key of a term",
                                where=self.origin, fix=f"rename it; reserved are {', '.join(sorted(RESERVED))}")


class Registry:
    """All primitives by kind and name. Frozen once a recipe has been read, so that what was checked is what runs."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, Primitive]] = {kind: {} for kind in KINDS}
        self.frozen = False
        self.memory: dict[Any, Any] = {}                   # what has been read of recipes with these primitives

    def add(self, primitive: Primitive) -> None:
        if self.frozen:
            raise ComposerError(f"{primitive.kind} '{primitive.name}' is registered after a recipe was read", where=primitive.origin,
                                fix="load the plugin before the first recipe (--plugin FILE, COMPOSER_PLUGINS)")
        held = self._of[primitive.kind].get(primitive.name)
        if held and (held.file != primitive.file or held.fn.__qualname__ != primitive.fn.__qualname__):
            raise ComposerError(f"{primitive.kind} '{primitive.name}' is registered twice: {held.origin} and {primitive.origin}",
                                fix="rename one of them")
        self._of[primitive.kind][primitive.name] = primitive
        self.memory.clear()

    def get(self, kind: str, name: str) -> Primitive:
        if kind not in self._of:
            raise ComposerError(f"there is no kind '{kind}'", fix=suggest(kind, KINDS, "kinds"))
        try:
            return self._of[kind][name]
        except KeyError:
            raise ComposerError(f"there is no {kind} '{name}'", fix=suggest(name, self._of[kind], f"names of kind {kind}")) from None

    def has(self, kind: str, name: str) -> bool:
        return name in self._of.get(kind, {})

    def names(self, kind: str) -> list[str]:
        return sorted(self._of[kind])

    def all(self, kind: str | None = None) -> Iterator[Primitive]:
        for each in KINDS if kind is None else (kind,):
            yield from (self._of[each][name] for name in sorted(self._of[each]))

    def remove_file(self, file: Path) -> None:
        """Forget what a file registered: a plugin named by the user stands in for the shipped one of the same name."""
        for table in self._of.values():
            for name in [n for n, p in table.items() if p.file == file]:
                del table[name]
        self.memory.clear()


REGISTRY = Registry()


def _decorator(kind: str) -> Callable[..., Any]:
    def decorate(fn: Callable[..., Any] | None = None, /, **flags: Any) -> Any:
        def register(f: Callable[..., Any]) -> Callable[..., Any]:
            primitive = Primitive(kind, f.__name__, f, flags)
            REGISTRY.add(primitive)
            primitive.check_names()
            return f

        return register if fn is None else register(fn)

    decorate.__name__ = kind
    decorate.__doc__ = f"Register a primitive of kind {kind}; the function is returned untouched."
    return decorate


loss, view, gain, radius, inner, start, ball, part, phase, schedule, head, model, data, augment, optim, measure = map(_decorator, KINDS)
