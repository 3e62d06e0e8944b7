"""What the torch-free verbs print for people."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

from composer.recipe.write import quote
from composer.verbs import Checked


def checked_text(found: Iterable[Checked]) -> str:
    """One line a good recipe, all errors of a bad one, and the count."""
    lines, bad = [], 0
    for each in found:
        if each.ok and each.study is not None:
            lines.append(f"ok    {each.recipe}: {_study_text(each.study)}")
        elif each.ok:
            phases = "" if len(each.segments) < 2 else f", {len(each.segments)} stretches of epochs"
            lines.append(f"ok    {each.recipe} on {each.setting}{phases}")
        else:
            bad += len(each.errors)
            lines += [f"wrong {each.recipe}", *("  " + line for error in each.errors for line in error.text().splitlines())]
    if bad:
        lines.append(f"{bad} error{'s' if bad > 1 else ''}.")
    return "\n".join(lines)


def _study_text(study: dict[str, Any]) -> str:
    """Rows and runs; cells that say the same are one run."""
    seeds = len(study["seeds"])
    text = f"{study['rows']} rows, {study['runs']} runs" + (f" x {seeds} seeds" if seeds > 1 else "") + (f", beside {study['table']}" if study["table"] else "")
    return text + "".join(f"; one run: {', '.join(names)}" for names in study["same"])


def diff_text(rows: list[dict[str, Any]], names: tuple[str, str] = ("a", "b")) -> str:
    """A block a path: what each side says, and the line that says it."""
    if not rows:
        return "no difference"
    wide = max(map(len, names))
    lines = []
    for row in rows:
        lines.append(row["path"])
        for key, name in zip("ab", names, strict=True):
            said = fit(quote(_spare(row[key])), row[f"where_{key}"], indent=wide + 4) if key in row else ["not there"]
            lines += [f"  {name if number == 0 else '':<{wide}}  {line}" for number, line in enumerate(said)]
    return "\n".join(lines)


def _spare(value: Any) -> Any:
    """A table as one would write it: its use first, no empty lists."""
    if not isinstance(value, dict):
        return value
    return {key: _spare(value[key]) for key in sorted(value, key=lambda key: key != "use") if value[key] != []}


def why_text(rows: list[dict[str, Any]]) -> str:
    """`composer show --why PATH`: the line that won, and what it won over."""
    lines = []
    for row in rows:
        first, *rest = fit(f"{row['path']} = {'(removed)' if row['removed'] else quote(row['value'])}", row["where"], indent=3)
        lines += [f"{'->' if row['wins'] else '  '} {first}", *(f"   {line}" for line in rest)]
    return "\n".join(lines)


def fit(text: str, where: str, indent: int) -> list[str]:
    """A value and its place in one line where the screen is wide enough, else below each other, the value broken at spaces."""
    width = shutil.get_terminal_size((120, 24)).columns - indent
    if len(text) + 2 + len(where) <= width:
        return [f"{text}  {where}"]
    whole = text.replace(" }", "\0}").replace(" = ", "\0=\0")      # no brace alone on a line, no key without its value
    rows = textwrap.wrap(whole, max(width, 40), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return [*(row.replace("\0", " ") for row in rows), f"  {where}"]


def list_text(rows: list[dict[str, Any]], cards: bool = False) -> str:
    """Names by kind; with cards also formula, paper, needs and options."""
    lines: list[str] = []
    kind = ""
    for row in rows:
        if row["kind"] != kind and not cards:
            kind = row["kind"]
            lines += ["", kind]
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
