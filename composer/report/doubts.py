"""Doubts for a reader: one line a kind, where several measures give the same reason. The record keeps every sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NUMBER = re.compile(r"\d[\d.,]*(?:e[+-]?\d+)?%?")


def by_kind(flags: Iterable[str], names: Sequence[str]) -> list[str]:
    """The first sentence of each kind in full, and the further measures that it is true of.

    Two sentences are of one kind where they differ in numbers and names of measures alone.
    """
    known = re.compile("|".join(rf"(?<![\w.-]){re.escape(name)}(?![\w-])" for name in sorted(names, key=len, reverse=True)) or r"(?!)")
    kinds: dict[str, tuple[str, list[str], int]] = {}
    for flag in map(str, flags):
        mentioned = list(dict.fromkeys(known.findall(flag)))
        first, others, count = kinds.setdefault(NUMBER.sub("…", known.sub("·", flag)), (flag, [], 0))
        others += [name for name in mentioned if name not in others and name not in known.findall(first)]
        kinds[NUMBER.sub("…", known.sub("·", flag))] = (first, others, count + 1)
    return [f"{first}{_more(others, count - 1)}" for first, others, count in kinds.values()]


def _more(names: list[str], count: int) -> str:
    if not count:
        return ""
    return f" (likewise {', '.join(names)})" if names else f" ({count} more like it)"
