"""Contracts that need no tensor: cards, names, schedules and phases."""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable
from typing import Any

from composer._testing.report import need
from composer._testing.values import options_of
from composer.registry import RESERVED, TERMLIKE, Primitive

CLOCK = ("epoch", "step", "progress", "epochs", "ratio")
FACTS = {"terms": ("ce", "kl"), "inner": ("x_adv",), "soft": False}


def card(primitive: Primitive) -> None:
    """The docstring has a summary of one sentence, a formula with its unit, a paper."""
    shown = primitive.card
    need(shown.summary, "the docstring has no summary: begin with one sentence")
    need(shown.summary.endswith("."), f"the summary is no sentence: '{shown.summary}'")
    need(shown.formula, "the docstring has no line `Formula:`")
    need("[" in shown.formula and "]" in shown.formula, f"the formula names no unit in brackets, such as [nats]: '{shown.formula}'")
    need(shown.paper, "the docstring has no line `Paper:`")


def names(primitive: Primitive) -> None:
    """No reserved key, no Python keyword, no name that is both need and option."""
    needs, options = {n.name for n in primitive.needs}, {o.name for o in primitive.options}
    need(primitive.name.isidentifier() and not keyword.iskeyword(primitive.name), f"'{primitive.name}' cannot be a name")
    if primitive.kind in TERMLIKE:
        taken = sorted((needs | options) & RESERVED)
        need(not taken, f"{', '.join(taken)}: reserved keys of a term or view")
    need(not needs & options, f"{', '.join(sorted(needs & options))}: both a need and an option")
    need("use" not in options, "an option cannot be called 'use'")


def schedule_checks(primitive: Primitive, given: dict[str, Any], needs: dict[str, Any]) -> dict[str, Callable[[], None]]:
    options = options_of(primitive, given)

    def asks() -> None:
        strange = [n.name for n in primitive.needs if n.name not in CLOCK]
        need(not strange, f"it asks for {', '.join(strange)}; a schedule knows {', '.join(CLOCK)}")

    def numbers() -> None:
        for epochs in (1, 2, 10, 200):
            for epoch in range(1, epochs + 1):
                clock = {"epoch": epoch, "step": 7 * (epoch - 1), "progress": (epoch - 1) / epochs, "epochs": epochs, "ratio": 1 / epoch}
                now = [clock[n.name] for n in primitive.needs]
                value = primitive.fn(*now, **options)
                need(isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value),
                     f"at epoch {epoch} of {epochs} it gives {value!r}, a finite number is needed")
                need(value == primitive.fn(*now, **options), "a second call gives another number")

    return {"clock": asks, "number": numbers}


def phase_checks(primitive: Primitive, given: dict[str, Any], needs: dict[str, Any]) -> dict[str, Callable[[], None]]:
    def edits() -> None:
        strange = [n.name for n in primitive.needs if n.name not in FACTS]
        need(not strange, f"it asks for {', '.join(strange)}; a phase knows {', '.join(FACTS)}")
        edit = primitive.fn(*[FACTS[n.name] for n in primitive.needs], **options_of(primitive, given))
        need(isinstance(edit, dict) and set(edit) <= {"set", "drop", "put"}, f"it gives {edit!r}; set, drop and put are the keys of an edit")
        paths = [*edit.get("set", {}), *edit.get("drop", []), *edit.get("put", {})]
        need(paths, "the edit changes nothing")
        need(all(isinstance(path, str) and path for path in paths), f"paths must be strings: {paths}")

    return {"edit": edits}
