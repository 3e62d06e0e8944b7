"""Two identities: what was meant (the recipe's experiment id), and the bits (a prefix key for every stretch of epochs)."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from composer.engine.dials import Clock, evaluate
from composer.options import plain
from composer.plan.explain import as_plain
from composer.plan.types import Plan
from composer.recipe.remember import keep
from composer.registry import REGISTRY, Registry

ENGINE = ("engine", "plan")
NESTED = (dict, list)
TEXT = frozenset({str})
SCALARS = frozenset({str, int, float, bool, type(None)})


def digest(value: Any) -> str:
    return text_digest(text_of(value))


def text_of(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)


def text_digest(text: str) -> str:
    """`digest` of what the text says as JSON: a long run's keys are written by hand where they are made of digests."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@lru_cache(maxsize=4096)
def item_text(items: tuple[tuple[str, Any], ...]) -> str:
    """The text of a small dict; the epochs of many cells have the same."""
    return text_of(dict(items))


def as_json(value: Any, once: bool = False) -> Any:
    """json.loads(json.dumps(value, default=str)): what is plain already comes back as it is. `once`: lists are looked through once, since
    `_plain_once` hands the same ones to many; nobody may change what comes back."""
    kind = type(value)
    if kind in SCALARS:
        return value
    if kind is dict and set(map(type, value)) <= TEXT:
        return {key: item if type(item) in SCALARS else as_json(item, once) for key, item in value.items()}
    if kind is not list:
        return json.loads(json.dumps(value, default=str))
    if not once or not value:
        return [item if type(item) in SCALARS else as_json(item, once) for item in value]
    key = ("json", id(value))
    held = REGISTRY.memory.get(key)
    if held is None or held[1] is not value:
        held = ([as_json(item, once) for item in value], value)
        keep(REGISTRY, key, held)
    return held[0]


@cache
def file_digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


@cache
def engine_digest() -> str:
    root = Path(__file__).resolve().parent.parent
    files = sorted(f for room in ENGINE for f in (root / room).glob("*.py"))
    return digest([(f.name, file_digest(f)) for f in files])


@cache
def versions() -> dict[str, str]:
    import torch

    found = {"python": platform.python_version(), "torch": str(torch.__version__)}       # with the build behind the +
    for name in ("torchvision", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def plan_content(plan: Plan, idle: set[str]) -> Any:
    """The plan as the key sees it: parts that decide nothing here stay out."""
    content = {"_": type(plan).__name__, **{name: _plain_once(getattr(plan, name)) for name in plan.__dataclass_fields__}}
    content["parts"] = [{k: v for k, v in p.items() if k not in ("active", "needed")} for p in content["parts"] if p["id"] not in idle]
    content["moments"] = [m for m in content["moments"] if m["part"] not in idle]
    content["dials"] = [d["path"] for d in content["dials"] if not any(d["path"].startswith(f"parts.{id}.") for id in idle)]
    return content


def _plain_once(value: Any) -> Any:
    """As `as_plain`; what cells of a grid share is written once. Nobody may change what comes back."""
    if type(value) in SCALARS:
        return value
    if isinstance(value, tuple) and value:
        key = ("plain", id(value))
        held = REGISTRY.memory.get(key)
        if held is None or held[1] is not value:
            held = ([_plain_once(v) for v in value], value)           # the memory holds the value, so that nothing else gets its id
            keep(REGISTRY, key, held)
        return held[0]
    if hasattr(value, "__dataclass_fields__"):
        return {"_": type(value).__name__, **{name: _plain_once(getattr(value, name)) for name in value.__dataclass_fields__}}
    return as_plain(value)


def dial_rows(moving: dict[str, Any], values: dict[str, Any], first: int, last: int, clock: int, epochs: int, steps: int, registry: Registry) -> list[str]:
    """`dial_values` of these epochs; equal schedules are asked once."""
    key = ("dials", repr(sorted(moving.items())), repr(sorted(values.items())) if any(map(_follows, moving.values())) else "", first, last, clock, epochs, steps)
    if key not in registry.memory:
        keep(registry, key, [dial_values(moving, values, epoch, clock, epochs, steps, registry) for epoch in range(first, last + 1)])
    return registry.memory[key]


def _follows(value: Any) -> bool:
    return "path" in getattr(value, "options", {})


def dial_values(moving: dict[str, Any], values: dict[str, Any], epoch: int, clock: int, epochs: int, steps: int, registry: Registry) -> str:
    """What the moving numbers say at every step of an epoch, as a digest: schedules that agree so far are the same prefix."""
    found: dict[str, list[float]] = {}
    at = epoch - clock
    for path, value in sorted(moving.items()):
        found[path] = [evaluate(value, Clock(at, (at - 1) * steps + k, steps, epochs), values.__getitem__, registry, path)
                       for k in range(steps if _by_step(value, registry) else 1)]
    return digest(found)


def _by_step(value: Any, registry: Registry) -> bool:
    if not hasattr(value, "use"):
        return False
    needs = {n.name for n in registry.get(value.kind, value.use).needs}
    return bool(needs & {"step", "progress", "ratio"})


def judges(recipe: Any) -> list[tuple[str, str]]:
    """The measures that validation and traces use."""
    attack = [recipe.select.attack] if recipe.select.held_out > 0 and recipe.select.attack is not None else []
    return [("measure", m.use) for m in (*attack, *(recipe.trace.measures if recipe.trace.every else ()))]


def first_selected(recipe: Any, last_phase: int) -> int:
    """The first epoch that may be chosen as the best."""
    return last_phase if recipe.select.from_ == "last_phase" else int(recipe.select.from_)


def judging(recipe: Any) -> dict[str, Any] | None:
    """What decides the validation's numbers; None where nothing is validated or traced.

    It is part of a stretch's identity: the curves and the best model so far lie beside its checkpoint.
    """
    select, trace = recipe.select, recipe.trace
    selects = select.held_out > 0 and select.attack is not None
    if not (selects or trace.every):
        return None
    return plain({
        "threat": vars(recipe.threat), "weights": select.weights, "select": selects and {"attack": vars(select.attack), "n": select.n},
        "trace": bool(trace.every) and {"every": trace.every, "on": trace.on, "measures": [vars(m) for m in trace.measures]},
    })


def kept(recipe: Any, epoch: int, last_phase: int) -> str:
    """The weights that are kept if this epoch is the best so far; "" where it cannot be chosen."""
    selects = recipe.select.held_out > 0 and recipe.select.attack is not None
    return recipe.evaluate.weights if selects and epoch >= first_selected(recipe, last_phase) else ""


def _uses(value: Any) -> set[tuple[str, str]]:
    """The primitives that plain data names. A list is looked through once: `_plain_once` hands the same one to many."""
    if isinstance(value, dict):
        own = {(value["kind"], value["use"])} if "kind" in value and "use" in value else set()
        if value.get("_") in ("InnerPlan", "PartPlan"):
            own.add(("inner" if value["_"] == "InnerPlan" else "part", value["use"]))
        return own.union(*[_uses(item) for item in value.values() if type(item) in NESTED])
    if isinstance(value, list) and value:
        key = ("uses", id(value))
        held = REGISTRY.memory.get(key)
        if held is None or held[1] is not value:
            held = (set().union(*[_uses(item) for item in value if type(item) in NESTED]), value)
            keep(REGISTRY, key, held)
        return held[0]
    return set()


def sources(content: Any, uses: list[tuple[str, str]], registry: Registry) -> dict[str, str]:
    """The file of every primitive in use, by digest. `content`: of the plan, as the key sees it."""
    named = frozenset(_uses(content).union(uses))
    key = ("files", named)
    if key not in registry.memory:
        keep(registry, key, sorted(file for kind, use in named if registry.has(kind, use) for file in _files(kind, use, registry)))
    return {label: file_digest(path) for label, path in registry.memory[key]}


def _files(kind: str, use: str, registry: Registry) -> Iterator[tuple[str, Path]]:
    primitive = registry.get(kind, use)
    if primitive.file and primitive.file.exists():
        yield f"{kind}/{use}", primitive.file
    for module in primitive.flags.get("sources", ()):                    # private modules it is made of
        spec = importlib.util.find_spec(module)
        if spec and spec.origin:
            yield f"{kind}/{use}: {module}", Path(spec.origin)


def first_difference(old: Any, new: Any, path: str = "") -> str:
    """The first place where two keys' contents part, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            if old.get(key) != new.get(key):
                return first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for k, (a, b) in enumerate(zip(old, new)):
            if a != b:
                return first_difference(a, b, f"{path}[{k}]")
    return f"{path or 'the key'} was {_short(old)} and is now {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(plain(value), default=str)
    return text if len(text) <= 60 else text[:57] + "..."
