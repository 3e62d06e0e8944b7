"""Passive parts of other runs, trained along by one that shares their first epochs.

A weight average that nobody reads yet changes no weight, so it need not part two runs; but who reads it later must find it as if it had always been
there. So the run that trains the shared epochs takes the others' passive parts in, under names of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from composer.engine.chain import Node, cut
from composer.plan.types import Dial, Plan


def up_to(nodes: list[Node], epoch: int, folder: Path, mark: str = "") -> list[Node]:
    """The nodes as far as an epoch, the last one cut there."""
    found: list[Node] = []
    for node in nodes:
        if node.segment.first > epoch:
            break
        found.append(cut(node, epoch, folder, mark)[0] if node.segment.last > epoch else node)
    return found


def cut_at(nodes: list[Node], epochs: set[int], folder: Path, mark: str = "") -> list[Node]:
    """The same epochs, with borders after these as well."""
    found: list[Node] = []
    for node in nodes:
        for epoch in sorted(e for e in epochs if node.segment.first <= e < node.segment.last):
            first, node = cut(node, epoch, folder, mark)
            found.append(first)
        found.append(node)
    return found


Run = tuple[str, list[Node], dict[str, list[str]]]       # name, nodes over the shared epochs, its parts' points


def take_in(nodes: list[Node], others: Sequence[Run], folder: Path, mark: str = "") -> tuple[list[Node], dict[str, tuple[str, ...]]]:
    """The host's nodes with the guests of other runs; and the guests' points."""
    borders = {node.segment.last for _, theirs, _ in others for node in theirs}
    nodes = cut_at(nodes, borders, folder, mark)
    borders |= {node.segment.last for node in nodes}
    held = set(_histories(nodes).values())
    points: dict[str, tuple[str, ...]] = {}
    for name, theirs, at in others:
        theirs = cut_at(theirs, borders, folder, mark)
        for id, history in _histories(theirs).items():
            if history in held:
                continue
            held.add(history)
            guest = f"{id}~{name}"
            points[guest] = tuple(at[id])
            nodes = [_with(node, other, id, guest) for node, other in zip(nodes, theirs, strict=True)]
    for node in nodes:
        node.place(folder, mark)
    return nodes, points


def _histories(nodes: list[Node]) -> dict[str, tuple[str, ...]]:
    """Idle part -> its past after every epoch."""
    ids = dict.fromkeys(id for node in nodes for row in node.pasts for id in row)
    return {id: tuple(row.get(id, "") for node in nodes for row in node.pasts) for id in ids}


def _with(node: Node, other: Node, id: str, guest: str) -> Node:
    """The node with another run's idle part of the same epochs, where it has it there."""
    if not any(id in row for row in other.pasts):
        return node
    part = next(p for p in other.plan.parts if p.id == id)
    dials = [d for d in other.plan.dials if d.path.startswith(f"parts.{id}.")]
    renamed = {d.path: Dial(f"parts.{guest}.{d.path.removeprefix(f'parts.{id}.')}", d.ref) for d in dials}
    options = {k: renamed.get(v.path, v) if isinstance(v, Dial) else v for k, v in part.options.items()}
    plan: Plan = replace(
        node.plan, parts=(*node.plan.parts, replace(part, id=guest, options=options)), dials=(*node.plan.dials, *renamed.values()),
        moments=(*node.plan.moments, *(replace(m, part=guest) for m in other.plan.moments if m.part == id)))
    return replace(node, plan=plan, pasts=[{**row, guest: past[id]} if id in past else row for row, past in zip(node.pasts, other.pasts, strict=True)])


def unguestable(nodes: list[Node]) -> list[dict[str, str]]:
    """For every epoch the idle parts that cannot be taken in by another run, by past: they were read before, act at a phase's end, or follow
    another part's schedule."""
    rows: list[dict[str, str]] = []
    read: set[str] = set()
    for node in nodes:
        aside = {id for row in node.pasts for id in row}
        bound = {m.part for m in node.plan.moments if m.when == "phase_end"} | {d.path.split(".")[1] for d in node.plan.dials if _follows(d.ref)}
        rows += [{id: past for id, past in row.items() if id in read | bound} for row in node.pasts]
        read |= {p.id for p in node.plan.parts if p.id not in aside}
    return rows


def _follows(value: Any) -> bool:
    return str(getattr(value, "options", {}).get("path", "")).startswith("parts.")
