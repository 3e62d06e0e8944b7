"""Which rows may stand in one table: those judged by one protocol, under one threat, on one data split, at one choice of checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from composer.ablate.bench import MEASURE, is_bench
from composer.ablate.types import Cell, Grid, Outcome
from composer.options import plain
from composer.recipe.recipe import Recipe

TIMES = [{"name": MEASURE, "use": MEASURE, "options": {}, "n": None}]        # of a study of kind bench: nothing is judged
Found = Mapping[int, dict[str, Any]]                          # seed -> result of a run


@dataclass(frozen=True)
class Block:
    """Cells of one table, in the order of the grid."""

    protocol: Mapping[str, Any]
    checkpoint: str
    cells: tuple[Cell, ...]


def found_of(outcome: Outcome, cell: str) -> Found:
    """Results of a cell, seeds in order."""
    return {seed: result for (name, seed), result in sorted(outcome.results.items(), key=lambda item: item[0][1]) if name == cell}


def protocol_of(recipe: Recipe) -> dict[str, Any]:
    """How a recipe is judged: measures with their options, threat, data, held-out images, and a digest of all of it.

    The threat's norm and eps belong to it; its step, steps and start only through the measures that take them from it.
    """
    said = {"measures": [{"name": m.name, "use": m.use, "options": options_of(m, recipe), "n": m.n} for m in recipe.evaluate.measures],
            "threat": plain({"norm": recipe.threat.norm, "eps": recipe.threat.eps}), "data": {"use": recipe.data.use, "options": plain(recipe.data.options)},
            "logits": recipe.evaluate.logits, "held_out": [recipe.select.held_out, recipe.select.stratified]}
    text = json.dumps(said, default=str, sort_keys=True)
    return {"digest": hashlib.blake2b(text.encode(), digest_size=6).hexdigest(), "name": recipe.evaluate.protocol, **json.loads(text)}


def options_of(measure: Any, recipe: Recipe) -> dict[str, Any]:
    """The measure's options with what it takes from the threat. A step in words of the threat's step says so by that number beside it."""
    from composer.registry import REGISTRY

    found = dict(plain(measure.options))
    for option in REGISTRY.get("measure", measure.use).options:
        if option.threat and found.get(option.name) is None:
            found[option.name] = plain(getattr(recipe.threat, option.name))
    worded = isinstance(found.get("step"), str) and "threat" in found["step"]
    return found | ({"threat_step": plain(recipe.threat.step)} if worded else {})


def checkpoint_of(cell: Cell, found: Found) -> str:
    """Which checkpoint the cell's results are of: what the runs say, else what the recipe asks for."""
    for result in found.values():
        if result.get("selected"):
            return str(result["selected"])
    return "last" if cell.recipe.select.report == "last" or not cell.recipe.select.held_out else "best"


def blocks_of(grid: Grid, outcome: Outcome) -> list[Block]:
    """The grid's cells by table. A cell without a result stands where its recipe would put it."""
    protocols: dict[str, dict[str, Any]] = {}
    places: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in grid.cells:
        if cell.recipe is None:
            continue
        protocol = protocol_of(cell.recipe) | ({"measures": TIMES} if is_bench(grid) else {})
        protocols[protocol["digest"]] = protocol
        key = (protocol["digest"], checkpoint_of(cell, found_of(outcome, cell.same_as or cell.name)), cell.row.group if cell.row else "")
        places.setdefault(key, []).append(cell)
    return [Block(protocols[digest], checkpoint, tuple(cells)) for (digest, checkpoint, _), cells in places.items()]


def title_of(block: Block, grid: Grid) -> str:
    """`digits, linf 0.2, protocol quick, best checkpoint`"""
    recipes = [cell.recipe for cell in block.cells]
    settings = ", ".join(dict.fromkeys(r.setting for r in recipes))
    group = next((c.row.group for c in block.cells if c.row and c.row.group), "")
    threat = block.protocol["threat"]
    own = block.protocol["name"]
    return ", ".join(filter(None, [group, settings, f"{threat['norm']['use'] if isinstance(threat['norm'], dict) else threat['norm']} {radius(threat['eps'])}",
                                   f"protocol {own}" if own else "a protocol of its own", f"{block.checkpoint} checkpoint"]))


def radius(eps: Any) -> str:
    """Multiples of 1/255 as papers write them."""
    if not isinstance(eps, (int, float)):
        return str(eps)
    whole = eps * 255
    return f"{round(whole)}/255" if abs(whole - round(whole)) < 1e-6 and abs(eps * 100 - round(eps * 100)) > 1e-9 else f"{eps:g}"
