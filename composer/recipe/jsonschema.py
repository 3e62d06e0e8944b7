"""JSON Schema (draft 7, which every editor's TOML support reads) of recipe and setting files, so that editors complete and underline.

Written from the same options the reader checks by.
"""

from __future__ import annotations

from typing import Any, Literal, Union, get_args, get_origin

from composer.options import Option, bounds, plain, split
from composer.recipe import fixed
from composer.recipe.uses import rebindable
from composer.registry import REGISTRY, Primitive, Registry
from composer.shapes import Unit

NAMED = {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}
PIXELS = {"type": "string", "pattern": r"^\s*(\d+(\.\d+)?\s*/\s*\d+(\.\d+)?|(\d+(\.\d+)?\s*\*\s*)?(threat|eps|step)\s*(/\s*\d+(\.\d+)?)?)\s*$"}
FRACTION = {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*/\s*\d+(\.\d+)?\s*$"}
EDIT = {"type": "object", "additionalProperties": False, "properties": {
    "set": {"type": "object", "description": "path = value: replaces what is there"},
    "drop": {"type": "array", "items": {"type": "string"}, "description": "paths to remove"},
    "put": {"type": "object", "description": "path = value: adds what is not there"}}}
SPACE = {"oneOf": [
    {"type": "object", "required": ["low", "high"], "additionalProperties": False,
     "properties": {"low": {"type": "number"}, "high": {"type": "number"}, "log": {"type": "boolean"},
                    "step": {"type": "number", "exclusiveMinimum": 0}}},
    {"type": "object", "required": ["choices"], "additionalProperties": False, "properties": {"choices": {"type": "array", "minItems": 1}}}]}
EXPECTED = {"anyOf": [
    {"type": ["number", "string"]},
    {"type": "object", "required": ["value"], "additionalProperties": False,
     "properties": {"value": {"type": "number"}, "within": {"type": "number", "minimum": 0}}}]}
BOUND = {">": "exclusiveMinimum", ">=": "minimum", "<": "exclusiveMaximum", "<=": "maximum"}


def json_schema(registry: Registry = REGISTRY) -> dict[str, Any]:
    """The whole schema. A recipe may leave out what its parent says, so nothing is required but what makes a table mean anything."""
    return Writer(registry).whole()


class Writer:
    def __init__(self, registry: Registry):
        self.registry = registry
        self.defs: dict[str, Any] = {}

    def whole(self) -> dict[str, Any]:
        properties = {
            "about": _text("one line on what the recipe is"), "paper": _text("a key of recipes/papers.toml"),
            "extends": _text("one parent: a file beside this one, or a shipped recipe"),
            "setting": _text("what it runs on unless --setting names another"),
            "version": {"description": "bumped when numbers change", "type": ["string", "integer", "number"]},
            "requires": {"type": "array", "items": {"type": "string"}, "description": "plugins by name"},
            "drop": {"type": "array", "items": {"type": "string"}, "description": "paths of the parent to remove"},
            "inner": self.by_id(self.kind("inner", "inner", implied=False, more=self.inner_keys()), "inner maxima, by the point they make",
                                "^(x_[A-Za-z0-9_]+|weights)$"),
            "outer": self.fixed("outer", "passes of the outer minimisation"),
            "terms": self.by_id(self.ref("term"), "what the weights minimise; keys are ids, use defaults to the key"),
            "views": self.by_id(self.kind("view", "view"), "views with options, a point or a mode of their own"),
            "parts": self.by_id(self.kind("part", "part"), "components with memory"),
            "augment": self.by_id(self.kind("augment", ""), "augmentations of the training images, in order"),
            "phase": self.by_id(self.phase(), "edits that hold on an interval of epochs"),
            "toggle": self.by_id(EDIT, "the ablation: what is off without each component"),
            "on": self.by_id(EDIT, "what changes per setting or bench"),
            "for": self.by_id(EDIT, "of settings: what a paper changes in other methods, by the recipe's name"),
            "search": {"type": "object", "additionalProperties": SPACE, "description": "path = range: the space composer sweep draws from"},
            "analysis": {**self.fixed("analysis", "what claims are made on, and by which tests"), "additionalProperties": True},
            "expect": {"type": "object", "description": "measure = fraction, or { value, within }: compared after a run, trains nothing",
                       "additionalProperties": EXPECTED},
            "data": self.kind("data", "", implied=False), "model": self.kind("model", "model", implied=False),
            "optim": self.kind("optim", "optim", implied=False), "train": self.fixed("train", "epochs, batch, learning rate"),
            "threat": self.fixed("threat", "norm, radius and steps that inner maxima and measures take"),
            "select": self.fixed("select", "validation and selection"),
            "trace": self.measured("trace", "measures every k epochs, by printed name"),
            "evaluate": self.measured("evaluate", "a protocol, and measures by printed name"),
        }
        self.ref("term")
        return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "composer recipe", "type": "object",
                "additionalProperties": False, "properties": properties, "definitions": self.defs}

    # -- tables --------------------------------------------------------------------------------------------------------------------

    def fixed(self, table: str, text: str) -> dict[str, Any]:
        return {"type": "object", "description": text, "additionalProperties": False, "properties": self.fields(table)}

    def fields(self, table: str) -> dict[str, Any]:
        return {o.name: self.option(o, fixed.TEXTS[(table, o.name)]) for o in fixed.OPTIONS[table]} if table else {}

    def measured(self, table: str, text: str) -> dict[str, Any]:
        return {**self.fixed(table, text), "additionalProperties": self.kind("measure", "measure")}

    def by_id(self, item: dict[str, Any], text: str, pattern: str = "") -> dict[str, Any]:
        names = {"propertyNames": {"pattern": pattern}} if pattern else {}
        return {"type": "object", "description": text, "additionalProperties": item, **names}

    def inner_keys(self) -> dict[str, Any]:
        radii = [self.ref("radius"), self.ref("schedule")]
        return {"terms": self.by_id(self.ref("term"), "what the ascent climbs"), "surface": {"anyOf": [NAMED, self.ref("view")]},
                "eps": {"description": "radius; default the threat's", "anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}, *radii]}}

    def phase(self) -> dict[str, Any]:
        found = self.kind("phase", "phase", implied=False)
        for branch in (found, *(b.get("then", {}) for b in found.get("allOf", []))):
            if "properties" in branch:
                branch["properties"] |= EDIT["properties"]
        return found

    # -- components ----------------------------------------------------------------------------------------------------------------

    def ref(self, name: str) -> dict[str, Any]:
        """A definition shared by name; made on first use, so that definitions may name each other."""
        if name not in self.defs:
            self.defs[name] = {}
            kind = {"term": "loss"}.get(name, name)
            more = {}
            if name == "term":
                more["gain"] = {"description": "factor of each example: an [N] tensor's name, or a gain", "anyOf": [NAMED, self.ref("gain")]}
            table = {"term": "term", "view": "view", "gain": "gain", "radius": "radius", "measure": "measure", "model": "model"}.get(name, "")
            self.defs[name] = self.kind(kind, table, implied=name in ("term", "measure"), more=more)
        return {"$ref": f"#/definitions/{name}"}

    def kind(self, kind: str, table: str, *, implied: bool = True, more: dict[str, Any] | None = None) -> dict[str, Any]:
        """A table that uses one primitive of a kind: `use` completes to the names, and each name brings its own options.

        Where `use` is left out (it is implied by the key, or a parent's), any option of the kind is accepted.
        """
        own = {**self.fields(table), **(more or {})}
        primitives = list(self.registry.all(kind))
        every: dict[str, Any] = {}
        for p in primitives:
            for key, value in self.keys(p).items():
                every[key] = value if every.get(key, value) == value else {}
        use = {"description": f"a {kind}" + ("; default the table's key" if implied else ""),
               "oneOf": [{"const": p.name, "description": self.card(p)} for p in primitives]} if primitives else {"type": "string"}
        branches = [{"if": {"properties": {"use": {"const": p.name}}, "required": ["use"]},
                     "then": {"properties": {"use": True, **own, **self.keys(p)}, "additionalProperties": False}} for p in primitives]
        table_schema = {"type": "object", "properties": {"use": use, **every, **own}, "additionalProperties": False}
        return {**table_schema, "allOf": branches} if branches else table_schema

    def keys(self, p: Primitive) -> dict[str, Any]:
        needs = {n: {**NAMED, "description": f"need '{n}': the tensor it is given instead"} for n in rebindable(p)}
        return {**needs, **{o.name: self.option(o) for o in p.options}}

    def card(self, p: Primitive) -> str:
        return "\n".join(filter(None, [p.card.summary, p.card.formula and f"Formula: {p.card.formula}", p.card.paper and f"Paper: {p.card.paper}"]))

    # -- options -------------------------------------------------------------------------------------------------------------------

    def option(self, option: Option, text: str = "") -> dict[str, Any]:
        said = ". ".join(filter(None, [text, option.type_text, "default: the threat's" if option.threat else ""]))
        found: dict[str, Any] = {"description": said}
        if not option.required and not option.threat and option.default is not None:
            found["default"] = plain(option.default)
        plainly = self.value(option.annotation)
        if not option.accepts:
            return {**found, **plainly}
        nested = [self.ref(kind) for kind in option.accepts]
        named = [] if option.accepts == ("schedule",) else [{"enum": [n for k in option.accepts for n in self.registry.names(k)]}]
        return {**found, "anyOf": [*(named or [plainly]), *nested]}

    def value(self, annotation: Any) -> dict[str, Any]:
        base, metadata = split(annotation)
        unit = next((m.name for m in metadata if isinstance(m, Unit)), "")
        limits = {BOUND[sign]: value for sign, value in bounds(metadata)}
        if base is float:
            words = {"pixels": [PIXELS], "epochs": [FRACTION]}.get(unit, [FRACTION])
            return {"anyOf": [{"type": "number", **limits}, *words]}
        if base in (int, str, bool, dict):
            return {"type": {int: "integer", str: "string", bool: "boolean", dict: "object"}[base], **limits}
        origin = get_origin(base)
        if origin is Literal:
            return {"enum": list(get_args(base))}
        if origin is Union or str(origin) == "<class 'types.UnionType'>":
            items = [self.value(a) for a in get_args(base) if a is not type(None)]
            return items[0] if len(items) == 1 else {"anyOf": items}
        if origin in (list, tuple):
            return {"type": "array", "items": self.value(next(a for a in get_args(base) if a is not ...))}
        return {"type": "object"} if origin is dict else {}


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}
