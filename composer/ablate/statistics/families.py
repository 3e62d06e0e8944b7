"""Many contrasts at once: Holm within one declared family on the primary metric, simultaneous intervals, false discovery rate outside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from composer.ablate.statistics.inputs import Settings
from composer.ablate.statistics.intervals import t_interval, t_p
from composer.ablate.statistics.types import MIN_TEST_SEEDS, Contrast
from composer.errors import ComposerError, suggest

Key = tuple[str, str]                           # ("delta", cell) or ("effect", term): a cell may bear the name of a toggle


def key(c: Contrast) -> Key:
    return ("delta" if c.kind == "delta" else "effect", c.term)


def resolve(settings: Settings, contrasts: Sequence[Contrast], estimand: str) -> tuple[Key, ...]:
    """The family's contrasts. Default: every effect there is (full and fractional designs), else every delta.

    A declared name is an effect's term ("ema", "margin:ema" in any order, with or without "given ...") or a cell; where both bear the name,
    the design's own kind is meant.
    """
    if settings.family is None:
        return tuple(key(c) for c in contrasts if key(c)[0] == estimand and c.status in ("ok", "not estimable"))
    ordered = sorted(contrasts, key=lambda c: key(c)[0] == estimand)
    named = {spelling: c for c in ordered for spelling in _spellings(c)}
    chosen = []
    for name in settings.family:
        if name not in named:
            raise ComposerError(f"family names {name!r}", where="[analysis]", why="it is no contrast of this design",
                                fix=suggest(name, [c.term for c in contrasts], "contrasts"))
        if named[name].status in ("aliased", "not defined"):
            raise ComposerError(f"family names {name!r}", where="[analysis]", why=f"{named[name].status}: {named[name].why}", fix="take it out")
        chosen.append(key(named[name]))
    return tuple(dict.fromkeys(chosen))


def _spellings(c: Contrast) -> set[str]:
    if c.kind == "delta":
        return {c.term}
    short, given, rest = c.term.partition(" given ")
    turned = ":".join(reversed(short.split(":")))
    return {c.term, short, turned, turned + given + rest}


def adjust(contrasts: Sequence[Contrast], family: Sequence[Key], settings: Settings) -> list[Contrast]:
    """Holm's p and the Bonferroni-t interval for the members of the family.

    The size of the family is what was declared: a member without a p (not estimable, ties, under five seeds) counts as p = 1.
    """
    from statsmodels.stats.multitest import multipletests

    if not family:
        return list(contrasts)
    members = {key(c): c for c in contrasts}
    raw = [_p(members.get(k)) for k in family]
    holm = multipletests([1.0 if p is None else p for p in raw], alpha=settings.alpha, method="holm")[1]
    p_holm = {k: None if p is None else float(h) for k, p, h in zip(family, raw, holm, strict=True)}
    level = 1 - settings.alpha / len(family)
    return [replace(c, in_family=True, p_holm=p_holm[key(c)], ci_simultaneous=t_interval(list(c.values.values()), level))
            if key(c) in p_holm else c for c in contrasts]


def exploratory(contrasts: Sequence[Contrast], settings: Settings) -> list[Contrast]:
    """Benjamini-Hochberg over the effects outside the family, where `[analysis] exploratory = "bh"` asks for it."""
    from scipy.stats import false_discovery_control

    p = {c.term: _p(c) for c in contrasts if not c.in_family and c.kind not in ("simple", "delta")}
    tested = [name for name, value in p.items() if value is not None]
    if settings.exploratory != "bh" or not tested:
        return list(contrasts)
    q = dict(zip(tested, false_discovery_control([p[name] for name in tested], method="bh"), strict=True))
    return [replace(c, q_bh=float(q[c.term])) if c.term in q else c for c in contrasts]


def _p(c: Contrast | None) -> float | None:
    return None if c is None or c.n < MIN_TEST_SEEDS else t_p(list(c.values.values()))
