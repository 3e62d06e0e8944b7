"""Components of a recipe: a table that names a primitive, checked against that primitive's options."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import cache
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from composer.errors import suggest
from composer.options import FRACTION, Option, Ref, fraction, options_model, pixel_word, plain, split
from composer.recipe import fixed
from composer.recipe.paths import Dotted, assign, show
from composer.recipe.problems import Problems, closest, option_text
from composer.recipe.refusals import refused
from composer.recipe.source import short
from composer.recipe.types import Threat
from composer.recipe.write import quote
from composer.registry import TERMLIKE, Primitive, Registry

BAD: Any = type("Bad", (), {"__repr__": lambda self: "bad"})()      # stands for a value that was wrong and has been told
UNSAID: Any = type("Unsaid", (), {"__repr__": lambda self: "unsaid"})()      # left out


@cache
def rebindable(primitive: Primitive) -> list[str]:
    """The needs a recipe may give another tensor."""
    if primitive.kind in TERMLIKE:
        return [n.name for n in primitive.needs if not n.draw and not (primitive.kind == "radius" and n.name == "eps")]
    if primitive.kind == "inner":
        return [n.name for n in primitive.needs if n.name not in ("climb", "eps", "draws")]
    if primitive.kind == "part":
        moments = [n.name for moment in ("after_step", "epoch_end", "phase_end") for n in primitive.method_needs(moment)]
        return [n for n in dict.fromkeys([*(n.name for n in primitive.needs), *moments]) if n not in ("model", "point")]
    return []


class Components:
    """Reads component tables. What it accepts, with defaults filled in, is written to `full` (as TOML would say it).

    A mistake is told and read past: a wrong value stands as its default, a misspelt primitive as the one of the closest name, so that the
    rest of the table is checked as well.
    """

    def __init__(self, registry: Registry, problems: Problems):
        self.registry, self.problems = registry, problems
        self.full: dict[str, Any] = {}
        self.threat: Threat | None = None
        self.threat_text = ""                                  # the threat as `remembered` tells it from others
        self.followed: list[tuple[Dotted, str]] = []           # schedules that follow another path: where, which

    # -- primitives ----------------------------------------------------------------------------------------------------------------

    def primitive(self, kinds: tuple[str, ...], use: Any, path: Dotted, why: str = "") -> Primitive | None:
        """The primitive of that name, or of the closest one (told, and noted as a guess); None where there is none near."""
        if not isinstance(use, str):
            self.problems.add((*path, "use"), f"use = {quote(use)}", why=f"the name of a {' or '.join(kinds)} is needed, in quotes")
            self.problems.unread.pieces.add(path)
            return None
        for kind in kinds:
            if self.registry.has(kind, use):
                return self.registry.get(kind, use)
        known = {name: kind for kind in reversed(kinds) for name in self.registry.names(kind)}
        also = [kind for kind in ("loss", "view", "gain", "radius", "inner", "part", "schedule", "measure") if self.registry.has(kind, use)]
        why = f"'{use}' is of kind {' and '.join(also)}" if also else why
        self.problems.add((*path, "use"), f"there is no {' or '.join(kinds)} '{use}'", why=why,
                          fix=suggest(use, known, f"names of kind {' or '.join(kinds)}"))
        meant = closest(use, known)
        if meant is None:
            self.problems.unread.pieces.add(path)
            return None
        self.problems.unread.guessed.add(path)
        return self.registry.get(known[meant], meant)

    def guessed(self, path: Dotted) -> bool:
        return path in self.problems.unread.guessed

    def ref(self, kinds: tuple[str, ...], value: Any, path: Dotted, default: str | None = None) -> Any:
        """A nested table (or bare name) as a checked Ref; BAD where it is none."""
        given = {"use": value} if isinstance(value, str) else value
        noun = " or ".join(kinds)
        if not isinstance(given, dict):
            self.problems.add(path, f"{path[-1]} = {quote(value)}", why=f"a {noun} is needed", fix='write its name, or { use = "name", … }')
            return BAD
        if "use" not in given and default is None:
            self.problems.add(path, f"{path[-1]} = {quote(value)}", why="the table does not say what it uses",
                              fix=f"add use = one of {', '.join(n for k in kinds for n in self.registry.names(k)) or 'none registered'}")
            return BAD
        primitive = self.primitive(kinds, given.get("use", default), path)
        if primitive is None:
            return BAD
        extra: dict[str, Any] = {}
        rest = {key: item for key, item in given.items() if key != "use"}
        if primitive.kind == "model" and "head" in rest:
            head = self.ref(("head",), rest.pop("head"), (*path, "head"), "linear")
            extra = {} if head is BAD else {"head": head}
        options = self.options(primitive, rest, path)
        if any(n.name == "ratio" for n in primitive.needs) and isinstance(given.get("path"), str):
            self.followed.append(((*path, "path"), options["path"]))
        return Ref(primitive.kind, primitive.name, {**options, **extra})

    # -- options -------------------------------------------------------------------------------------------------------------------

    def options(self, primitive: Primitive, given: dict[str, Any], path: Dotted, legal: tuple[str, ...] = ()) -> dict[str, Any]:
        """Checked options with defaults filled in; those of the threat are absent where left out."""
        noun = f"{primitive.kind} '{primitive.name}'"
        known = {o.name: o for o in primitive.options}
        names = (*known, *legal, *rebindable(primitive))
        strange = [key for key in given if key not in known]
        for key in strange:
            if not self.guessed(path) or closest(key, names):
                self.unknown(path, key, noun, primitive.options, (*legal, *rebindable(primitive)), primitive.origin)
        meant = {closest(key, names) for key in strange}
        told = len(self.problems)
        checked = self.check(noun, primitive.options, lenient(primitive), {k: v for k, v in given.items() if k in known}, path, meant)
        if len(self.problems) == told:
            refused(self, primitive, self.settle(primitive, checked), path)
        return checked

    def unknown(self, path: Dotted, key: str, noun: str, options: tuple[Option, ...], legal: tuple[str, ...], origin: str = "") -> None:
        """A key that is none: the closest one, or else all there are, one a line."""
        close = suggest(key, [*(o.name for o in options), *legal], "")
        fix = [close] if close.startswith("did you mean") else []
        if noun and (options or not fix):
            fix.append(f"options of {noun}:{'' if options else ' none'}")
            fix += [f"  {option_text(o)}" for o in options]
        if legal and not (fix and fix[0] == close):
            fix.append(f"{'further' if noun else 'known'} keys: {', '.join(dict.fromkeys(legal))}")
        self.problems.add((*path, key), f"{noun or 'the table'} has no option '{key}'", why=f"defined at {short(origin)}" if origin else "",
                          fix="\n".join(fix))

    def check(self, noun: str, options: tuple[Option, ...], model: Any, given: dict[str, Any], path: Dotted,
              meant: Collection[str | None] = ()) -> dict[str, Any]:
        """All values, checked; what is wrong is told and stands as its default. `meant`: options that misspelt keys stand for."""
        values: dict[str, Any] = {}
        for option in options:
            if option.name in given:
                value = given[option.name]
            elif option.threat or not (isinstance(option.default, (str, dict)) and option.unit in ("nested", "pixels")):
                continue
            else:
                value = option.default                     # a default written as a recipe would write it
            value = self.nested(option, value, (*path, option.name))
            if value is BAD:
                value = self.fallback(option, path)
            if value is not UNSAID:
                values[option.name] = value
        try:
            checked = model(**values)
        except ValidationError as error:
            wrong = self._explain(error, noun, options, given, values, path, meant)
            values = {k: v for k, v in values.items() if k not in wrong}
            stands = {o.name: self.fallback(o, path) for o in options if o.name in wrong}
            values |= {name: value for name, value in stands.items() if value is not UNSAID}
            try:
                checked = model(**values)
            except ValidationError:                        # a stand-in out of bounds: no number is computed from it
                checked = model.model_construct(**values)
        return {o.name: getattr(checked, o.name) for o in options if o.name in values or not o.threat}

    def fallback(self, option: Option, path: Dotted) -> Any:
        """What a wrong value is read as, so that the rest can be checked. It never reaches a run."""
        if option.required or option.threat:
            return stand_in(option)
        return self.nested(option, option.default, (*path, option.name))

    def nested(self, option: Option, value: Any, path: Dotted) -> Any:
        if isinstance(value, Ref) or value is None:
            return value
        named = isinstance(value, str) and option.accepts and option.accepts != ("schedule",)
        if option.accepts and (isinstance(value, dict) or named):
            return self.ref(option.accepts, value, path, "linear" if option.accepts == ("head",) else None)
        if option.accepts and option.accepts != ("schedule",):
            self.problems.add(path, f"{option.name} = {quote(value)}", why=f"{option.type_text} is needed")
            return BAD
        return value

    def _explain(self, error: ValidationError, noun: str, options: tuple[Option, ...], given: dict[str, Any], values: dict[str, Any],
                 path: Dotted, meant: Collection[str | None]) -> set[str]:
        """One problem an option, in the user's words, at the item's line where an item of a list is wrong. The options that are wrong."""
        by_name = {o.name: o for o in options}
        wrong = set()
        for item in error.errors():
            name = str(item["loc"][0])
            option = by_name[name]
            if item["type"] == "missing":
                if name not in meant and not self.problems.unread.lost and not self.guessed(path):
                    self.problems.add((*path, name), f"{noun} needs the option '{name}'", fix=f"add {name}: {option.type_text}")
            elif name not in wrong:
                said = str(item.get("ctx", {}).get("error", "")) if item["type"] == "value_error" else ""
                place = next((part for part in item["loc"][1:] if isinstance(part, int)), None)
                value = given.get(name, values.get(name))
                listed = place is not None and isinstance(value, list) and place < len(value)
                text = f"{name}[{place}] = {quote(value[place])}" if listed else f"{name} = {quote(value)}"
                close = closest(value, [a for a in get_args(option.annotation) if isinstance(a, str)]) if isinstance(value, str) else None
                self.problems.add((*path, name), text, why=said or f"{noun} takes {name}: {option.type_text}", item=place if listed else None,
                                  fix=f"did you mean {quote(close)}?" if close else option_text(option))
            wrong.add(name)
        return wrong

    # -- threat and pixels ---------------------------------------------------------------------------------------------------------

    def settle(self, primitive: Primitive, options: dict[str, Any]) -> dict[str, Any]:
        """What was left to the threat filled in, and the threat's pixel words made numbers; words of eps stay for the plan."""
        threat = self.threat
        full: dict[str, Any] = {}
        for option in primitive.options:
            if option.name in options:
                full[option.name] = options[option.name]
            elif option.threat and threat is not None and hasattr(threat, option.name):
                full[option.name] = getattr(threat, option.name)
            elif not option.required:
                full[option.name] = option.default
        units = {o.name: o.unit for o in primitive.options}
        full = {name: self.number(name, value) if units[name] == "pixels" or isinstance(value, Ref) else value for name, value in full.items()}
        step = full.get("step")
        if isinstance(step, float):                        # words of the component's own step
            full = {n: _times(v, "step", step) if units[n] == "pixels" and n != "step" else v for n, v in full.items()}
        return full

    def number(self, name: str, value: Any) -> Any:
        if isinstance(value, Ref):
            if not self.registry.has(value.kind, value.use):
                return value
            units = {o.name: o.unit for o in self.registry.get(value.kind, value.use).options}
            return Ref(value.kind, value.use, {k: self.number(k, v) if units.get(k) == "pixels" or isinstance(v, Ref) else v
                                               for k, v in value.options.items()})
        if isinstance(value, str):
            if FRACTION.match(value):
                return fraction(value)
            if self.threat is None:                        # it is wrong and has been told; nothing that refers to it is wrong as well
                return _times(value, "threat", 1.0)
            return _times(value, "threat", self.threat.step if name == "step" else self.threat.eps)
        return value

    def keep(self, path: Dotted, value: Any) -> None:
        """Remember a checked value for the filled recipe."""
        assign(self.full, path, plain(value))


def _times(value: Any, word: str, size: float) -> Any:
    """'threat/2' as a number where it is a word of `word`."""
    found = pixel_word(value) if isinstance(value, str) else None
    return found.factor * size if found and found.of == word else value


def fixed_table(components: Components, name: str, given: Any, path: Dotted) -> dict[str, Any]:
    """A table of fixed.FIELDS, checked; what is wrong is told and stands as its default."""
    if not isinstance(given, dict):
        components.problems.add(path, f"{path[-1]} = {quote(given)}", why="a table is needed")
        given = {}
    known = set(fixed.names(name))
    strange = [key for key in given if key not in known]
    for key in strange:
        close = suggest(key, known, "keys")
        components.problems.add((*path, key), f"[{name}] has no key '{key}'" if len(path) == 1 else f"there is no key '{key}' here", fix=close)
    return components.check(f"[{show(path)}]", fixed.OPTIONS[name], fixed.model(name), {k: v for k, v in given.items() if k in known}, path,
                            {closest(key, known) for key in strange})


def stand_in(option: Option) -> Any:
    """A value of an option that has no default."""
    if option.threat:
        return UNSAID
    base, _ = split(option.annotation)
    if get_origin(base) is Literal:
        return get_args(base)[0]
    return {float: 1.0, int: 1, str: "", bool: False}.get(base, () if get_origin(base) in (list, tuple) else UNSAID)


@cache
def lenient(primitive: Primitive) -> type[BaseModel]:
    """A primitive's Options, except that what [threat] supplies may be left out."""
    if not any(o.threat and o.required for o in primitive.options):
        return primitive.Options
    options = tuple(replace(o, default=None) if o.threat and o.required else o for o in primitive.options)
    return options_model(f"{primitive.kind}_{primitive.name}", options)
