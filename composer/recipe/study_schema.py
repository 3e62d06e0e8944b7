"""JSON Schema (draft 7) of study files, so that editors complete and underline: the keys that the reader of studies knows, and no others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from composer.recipe.jsonschema import EDIT, Writer
from composer.recipe.study_rows import CELL, HEAD, KINDS, NEEDED
from composer.recipe.terms import ID
from composer.registry import REGISTRY, Registry

TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
NAMES = {"type": "array", "items": TEXT, "minItems": 1, "uniqueItems": True}
PIXEL = {"anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}, "minItems": 1}]}
PRINTED = {"anyOf": [
    {"const": False}, TEXT,
    {"type": "object", "properties": {"row": TEXT, "column": TEXT}, "additionalProperties": {"type": "number"}}]}
SHARED = {
    "about": {**TEXT, "description": "one line on what it is"},
    "recipe": {**TEXT, "description": "the recipe that rows edit: a file, or the name of a shipped one"},
    "setting": {**TEXT, "description": "what rows run on: a shipped setting or a file"},
    "settings": {**NAMES, "description": "several: every row stands on each of them"},
    **EDIT["properties"],
}
OF_STUDY = {
    "kind": {"enum": ["train", "bench"], "default": "train", "description": "bench: columns are times of a step, nothing is trained to the end"},
    "seeds": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "array", "items": COUNT, "minItems": 1, "uniqueItems": True}], "default": 1,
              "description": "how many, from 0 on, or a list"},
    "groups": {"type": "object", "additionalProperties": TEXT,
               "description": "setting, or selector of a sweep = the group of rows in the printed table"},
}
OF_ROW = {
    "printed": {**PRINTED, "description": "the printed row beside: its name (default the id), { row, column, <column> = value }, or false"},
    "kind": {"enum": list(KINDS), "default": "cell", "description": "cell: a run a seed; sweep: a grid of runs with winners; external: a network "
                                                                    "from a file is judged; printed: stands in print only"},
    "grid": {"type": "object", "minProperties": 1, "additionalProperties": {"type": "array", "minItems": 1},
             "description": "path = values; every combination is a run"},
    "select": {**NAMES, "description": "measures on held-out images; each picks a winner of its own"},
    "rungs": {"type": "array", "items": COUNT, "minItems": 1, "uniqueItems": True,
              "description": "epochs of the run after which runs are dropped, ever larger; the last is its end"},
    "keep": {"type": "integer", "minimum": 1, "description": "how many runs go on after the first rung: the best by the last of select"},
    "checkpoint": {**TEXT, "description": "the file of the network's weights"},
    "normalisation": {"anyOf": [{"const": "none"}, {"type": "object", "required": ["mean", "std"], "additionalProperties": False,
                                                     "properties": {"mean": PIXEL, "std": PIXEL}}],
                      "description": "how the network expects its pixels"},
}
ONE_SETTING = {"not": {"required": ["setting", "settings"]}}


def study_schema(tables: Iterable[str] = (), registry: Registry = REGISTRY) -> dict[str, Any]:
    """The schema of a study. `tables`: ids of the printed tables it may name (none: any)."""
    writer = Writer(registry)
    ids = sorted(tables)
    own = {**SHARED, **OF_STUDY, "table": {**({"enum": ids} if ids else TEXT), "description": "the printed table that stands beside"},
           "analysis": {**writer.fixed("analysis", "what claims are made on, and by which tests"), "additionalProperties": True},
           "cells": {"type": "object", "minProperties": 1, "propertyNames": {"pattern": f"^(?:{ID.pattern})$"}, "additionalProperties": _row(writer),
                     "description": "the rows, by id"}}
    whose = {"anyOf": [{"required": ["recipe"]}, {"properties": {"cells": {"additionalProperties": {"anyOf": [
        {"required": ["recipe"]}, {"required": ["kind"], "properties": {"kind": {"const": "printed"}}}]}}}}]}
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "composer study", "type": "object", "required": ["cells"],
            "additionalProperties": False, "properties": {key: own[key] for key in HEAD}, "allOf": [ONE_SETTING, whose], "definitions": writer.defs}


def _row(writer: Writer) -> dict[str, Any]:
    """A row: the keys of its kind, a cell's where none is named."""
    model = {"description": "the network: a model's name, or its table", "anyOf": [TEXT, {"allOf": [writer.ref("model"), {"required": ["use"]}]}]}
    every = {**SHARED, **OF_ROW, "model": model}
    kinds = [{"if": {"properties": {"kind": {"const": kind}}, **({} if kind == "cell" else {"required": ["kind"]})},
              "then": {"properties": dict.fromkeys((*CELL, *keys), True), "additionalProperties": False, "required": list(NEEDED.get(kind, ()))}}
             for kind, keys in KINDS.items()]
    together = {"dependencies": {"rungs": ["keep"], "keep": ["rungs"]}}
    known = [*CELL, *(key for keys in KINDS.values() for key in keys)]
    return {"type": "object", "properties": {key: every[key] for key in known}, "additionalProperties": False, "allOf": [ONE_SETTING, together, *kinds]}
