"""What the torch-free verbs print for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from composer.recipe.write import quote
from composer.verbs import Checked


def checked_text(found: Iterable[Checked]) -> str:
    """One line a good recipe, all errors of a bad one, and the count."""
    lines, bad = [], 0
    for each in found:
        if each.ok:
            phases = "" if len(each.segments) < 2 else f", {len(each.segments)} stretches of epochs"
            lines.append(f"ok    {each.recipe} on {each.setting}{phases}")
        else:
            bad += len(each.errors)
            lines += [f"wrong {each.recipe}", *("  " + line for error in each.errors for line in error.text().splitlines())]
    if bad:
        lines.append(f"{bad} error{'s' if bad > 1 else ''}.")
    return "\n".join(lines)


def diff_text(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "no difference"
    lines = []
    for row in rows:
        lines.append(row["path"])
        lines += [f"  {key}: {quote(row[key])}  {row[f'where_{key}']}" if key in row else f"  {key}: -" for key in ("a", "b")]
    return "\n".join(lines)


def why_text(rows: list[dict[str, Any]]) -> str:
    """`composer show --why PATH`: the line that won, and what it won over."""
    lines = []
    for row in rows:
        mark = "->" if row["wins"] else "  "
        lines.append(f"{mark} {row['path']} = {'(removed)' if row['removed'] else quote(row['value'])}  {row['where']}")
    return "\n".join(lines)


def list_text(rows: list[dict[str, Any]], cards: bool = False) -> str:
    """Names by kind; with cards also formula, paper, needs and options."""
    lines: list[str] = []
    kind = ""
    for row in rows:
        if row["kind"] != kind and not cards:
            kind = row["kind"]
            lines += ["" if not lines else "", kind]
        if cards:
            lines += [*([""] if lines else []), *card_lines(row)]
        else:
            lines.append(f"  {row['name']:<20} {row['summary']}")
    return "\n".join(lines).strip("\n")


def card_lines(row: dict[str, Any]) -> list[str]:
    lines = [f"{row['kind']}/{row['name']}: {row['summary']}"]
    lines += [f"  {label:<9}{row[key]}" for key, label in (("formula", "Formula:"), ("paper", "Paper:")) if row[key]]
    if row["needs"]:
        lines.append(f"  {'Needs:':<9}" + ", ".join(f"{n['name']} {n['shape']}".strip() for n in row["needs"]))
    for number, option in enumerate(row["options"]):
        default = "required" if option["required"] else "the threat's" if option["default"] == "threat" else f"default {_default(option['default'])}"
        lines.append(f"  {'Options:' if number == 0 else '':<9}{option['name']}: {option['type']}, {default}")
    return [*lines, f"  {'At:':<9}{row['origin']}"]


def _default(value: Any) -> str:
    return "none" if value is None else quote(value)
