"""The bits of a run on paper: a chain of keys, one an epoch. Two runs have the same key after an epoch exactly if their weights are equal there.

key_e = hash(key_{e-1}, what the stretch is made of, what is special in epoch e). So neither where a run is cut nor how long it goes on matters:
a prefix is recognised whoever trained it. A part that nothing reads yet stays out of the key; the node says which such parts it carries, each by
its past (what it is, since when, and the dials that moved it), and the key takes the past in where the part is first read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from composer.engine import keys
from composer.options import plain
from composer.plan.explain import as_plain
from composer.plan.types import PartPlan, Plan
from composer.plan.whole import plans_of, scheduled
from composer.recipe.types import Segment
from composer.registry import REGISTRY

ASIDE = ("parent", "epochs", "each")        # of a node's content: not what its epochs are made of


@dataclass(frozen=True)
class Ground:
    """What keys need to know of data, network and machine.

    rows       training images that are not held out;  steps  (batch size, keep the last) -> steps of an epoch
    stochastic the network draws in its forward: none of its passes are shared
    init       digest of the weights the run starts from, None where they come from the seed
    file       a checkpoint some part asks for -> its digest
    """

    data: str
    steps: Callable[[int, bool], int]
    stochastic: bool
    init: str | None
    file: Callable[[str, str], str]
    machine: dict[str, Any]


@dataclass
class Node:
    """A stretch of epochs: its plan, its key, its folder.

    chain    the key after each of its epochs, the last is `key`
    pasts    for each epoch, the parts that nothing reads yet: id -> past
    ends     the phase ends with it: parts hear of it
    """

    segment: Segment
    plan: Plan
    content: dict[str, Any]
    key: str
    folder: Path
    adopted: str = ""        # what had changed when another node's state was taken over
    heir_of: str = ""        # the key of that node
    heir_folder: str = ""    # and its folder's name
    plain_key: str = ""      # the key this node would have had
    chain: list[str] = field(default_factory=list)
    pasts: list[dict[str, str]] = field(default_factory=list)
    ends: bool = True

    @property
    def carries(self) -> dict[str, str]:
        """Parts that nothing here reads, by their past at the end."""
        return self.pasts[-1] if self.pasts else {}

    def place(self, nodes: Path, mark: str = "") -> None:
        """Its folder: the key, and what is carried along."""
        carried = sorted(self.carries.values())
        self.folder = nodes / (self.key + (f"+{keys.digest(carried)[:8]}" if carried else "") + (f"-{mark}" if mark else ""))


def key_chain(content: dict[str, Any]) -> list[str]:
    """The key after each epoch of a stretch."""
    base, key, chain = keys.digest({k: v for k, v in content.items() if k not in ASIDE}), content["parent"], []
    for special in content["each"]:
        key = keys.text_digest(f'["{key}", "{base}", {keys.item_text(tuple(special.items()))}]')        # digest([key, base, special])
        chain.append(key)
    return chain


def root(seed: int, init: str | None) -> str:
    return keys.digest({"init": init, "seed": seed})


def stretches(recipe: Any, ground: Ground, out: Path) -> list[Node]:
    """The nodes of a run before any seed: contents and pasts, no keys. `grow` gives them theirs."""
    found = plans_of(recipe, share=not ground.stochastic)
    points = points_of([plan for _, plan in found])
    pasts: dict[str, tuple[Any, str]] = {}
    nodes: list[Node] = []
    for segment, plan, ends in _pieces(recipe, found):
        aside = idle(plan, read_by_judges(recipe, segment, found[-1][0].first))
        content = _content(recipe, segment, plan, aside, ground, found[-1][0].first, ends)
        before = {p.id: pasts[p.id][1] for p in plan.parts if p.id in pasts and pasts[p.id][0] == _stays(p)}
        content["past"] = {p.id: before[p.id] for p in plan.parts if p.id not in aside and p.id in before}
        content["points"] = {p.id: points[p.id] for p in plan.parts if p.id not in aside}
        node = Node(segment, plan, content, "", out, ends=ends)
        node.pasts, pasts = _pasts(node, aside, before, points, ground)
        nodes.append(node)
    return nodes


def grow(nodes: list[Node], parent: str, nodes_folder: Path, mark: str = "") -> list[Node]:
    """Keys, one after the other, from the run's root or another parent on."""
    for node in nodes:
        rekey(node, parent, nodes_folder, mark)
        parent = node.key
    return nodes


def rekey(node: Node, parent: str, nodes_folder: Path, mark: str = "", **more: Any) -> None:
    """Put a node behind another parent, and `more` into what its key is made of."""
    node.content = {key: keys.as_json(value, once=key == "plan") for key, value in {**node.content, "parent": parent, **more}.items()}   # as it reads from disk
    node.chain = key_chain(node.content)
    node.key = node.chain[-1]
    node.place(nodes_folder, mark)


def cut(node: Node, epoch: int, nodes_folder: Path, mark: str = "") -> tuple[Node, Node]:
    """A node in two, after an epoch within it. The second has the key of the whole."""
    at = epoch - node.segment.first + 1
    each = node.content["each"]
    first = replace(node, segment=replace(node.segment, last=epoch), chain=node.chain[:at], key=node.chain[at - 1], pasts=node.pasts[:at], ends=False,
                    content={**node.content, "epochs": [node.segment.first, epoch], "each": each[:at]})
    second = replace(node, segment=replace(node.segment, first=epoch + 1, fresh=False), chain=node.chain[at:], pasts=node.pasts[at:],
                     content={**node.content, "epochs": [epoch + 1, node.segment.last], "parent": first.key, "each": each[at:]})
    for half in (first, second):
        half.place(nodes_folder, mark)
    return first, second


def _pieces(recipe: Any, found: list[tuple[Segment, Plan]]) -> list[tuple[Segment, Plan, bool]]:
    """The stretches, and whether their phase ends with them: one is cut before its first epoch whose best weights would be a part's."""
    pieces = []
    first = keys.first_selected(recipe, found[-1][0].first)
    for segment, plan in found:
        if recipe.evaluate.weights != "live" and keys.kept(recipe, segment.last, found[-1][0].first) and segment.first < first:
            pieces += [(replace(segment, last=first - 1), plan, False), (replace(segment, first=first, fresh=False), plan, True)]
        else:
            pieces.append((segment, plan, True))
    return pieces


def read_by_judges(recipe: Any, segment: Segment, last_phase: int) -> set[str]:
    """The parts at whose weights validation or selection looks in these epochs."""
    selects = recipe.select.held_out > 0 and recipe.select.attack is not None
    read = {recipe.select.weights} if selects or recipe.trace.every else set()
    if selects and keys.first_selected(recipe, last_phase) <= segment.last:
        read.add(recipe.evaluate.weights)
    return read - {"live"}


def idle(plan: Plan, judged: set[str]) -> set[str]:
    """Parts whose state decides nothing in this stretch; one that trains a network of its own is never idle, for the optimiser holds it."""
    return {p.id for p in plan.parts if not (p.active or p.id in judged or hasattr(REGISTRY.get("part", p.use).fn, "network"))}


def points_of(plans: list[Plan]) -> dict[str, list[str]]:
    """Part -> the points it is read at, anywhere in the run: they shape its memory."""
    found: dict[str, list[str]] = {}
    for plan in plans:
        for part in plan.parts:
            known = found.setdefault(part.id, [])
            known += [p for p in part.points if p not in known]
    return found


def _stays(part: PartPlan) -> Any:
    """A part goes on into the next stretch if this is the same there."""
    return part.use, repr({k: (0.0 if hasattr(v, "ref") else v) for k, v in part.options.items()})


def _pasts(node: Node, aside: set[str], before: dict[str, str], points: dict[str, list[str]],
           ground: Ground) -> tuple[list[dict[str, str]], dict[str, tuple[Any, str]]]:
    """The idle parts' pasts after each epoch, and every part's at the end with what it must stay."""
    segment, plan = node.segment, node.plan
    steps = ground.steps(segment.recipe.train.batch_size, segment.recipe.train.last == "keep")
    values = {**{d.path: d.ref for d in plan.dials}, **scheduled(segment.recipe)}
    rows: list[dict[str, str]] = [{} for _ in range(segment.first, segment.last + 1)]
    at_end: dict[str, tuple[Any, str]] = {}
    for part in plan.parts:
        moments = as_plain([m for m in plan.moments if m.part == part.id])
        spec = keys.digest([as_plain(part.options), part.use, points[part.id], moments])
        past = before.get(part.id, "")
        own = {path: value for path, value in values.items() if path.startswith(f"parts.{part.id}.")}
        moved = keys.dial_rows(own, values, segment.first, segment.last, segment.clock, segment.epochs, steps, REGISTRY)
        for n, epoch in enumerate(range(segment.first, segment.last + 1)):
            ends = node.ends and epoch == segment.last and any(m["when"] == "phase_end" for m in moments)
            past = keys.text_digest(f'["{past}", "{spec}", "{moved[n]}", {"true" if ends else "false"}]')    # digest of these four
            if part.id in aside:
                rows[n][part.id] = past
        at_end[part.id] = (_stays(part), past)
    return rows, at_end


def _content(recipe: Any, segment: Segment, plan: Plan, aside: set[str], ground: Ground, last_phase: int, ends: bool) -> dict[str, Any]:
    own = segment.recipe
    steps = ground.steps(own.train.batch_size, own.train.last == "keep")
    uses = [("model", own.model.use), ("head", own.model.head.use), ("data", own.data.use), ("optim", own.optim.use),
            *(("augment", a.use) for a in own.augment), *keys.judges(recipe)]
    values = {**{d.path: d.ref for d in plan.dials}, **scheduled(own)}
    moving = {path: value for path, value in values.items() if not any(path.startswith(f"parts.{id}.") for id in aside)}
    given = {p.id: ground.file(p.options["checkpoint"], f"parts.{p.id}.checkpoint") for p in plan.parts if p.id not in aside and p.options.get("checkpoint")}
    rows = keys.dial_rows(moving, values, segment.first, segment.last, segment.clock, segment.epochs, steps, REGISTRY)
    each: list[dict[str, Any]] = [{"dials": row, "kept": keys.kept(recipe, epoch, last_phase)} for epoch, row in enumerate(rows, segment.first)]
    planned = keys.plan_content(plan, aside)
    if segment.fresh:
        each[0]["fresh"] = True
    if ends and any(m.when == "phase_end" and m.part not in aside for m in plan.moments):
        each[-1]["ends"] = True
    return ({"checkpoints": given} if given else {}) | {
        "epochs": [segment.first, segment.last], "each": each,
        "plan": planned,
        "train": {"batch_size": own.train.batch_size, "last": own.train.last},
        "optim": {"use": own.optim.use, "options": sorted(own.optim.options), "clip": own.optim.clip,
                  "decay_exclude": list(own.optim.decay_exclude), "decay_at": own.optim.decay_at},
        "threat": plain({"eps": own.threat.eps}), "judging": keys.judging(recipe),
        "model": {"use": own.model.use, "options": plain(own.model.options), "head": plain(own.model.head), "mean": own.model.mean, "std": own.model.std},
        "data": {"use": own.data.use, "digest": ground.data, "held_out": [own.select.held_out, own.select.stratified],
                 "augment": [[a.id, a.use, plain(a.options)] for a in own.augment]},
        "machine": ground.machine, "versions": keys.versions(), "sources": keys.sources(planned, uses, REGISTRY), "engine": keys.engine_digest(),
    }
