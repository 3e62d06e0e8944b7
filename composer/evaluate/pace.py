"""How long measures take: an AutoAttack from the seconds its images have cost so far, any measure from the passes it makes. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# Forward passes an image costs in an attack of the standard version, a backward pass counted as one: iterations times targets times passes.
COST = {"apgd-ce": 200, "apgd-dlr": 200, "apgd-t": 1800, "fab": 1100, "fab-t": 2700, "square": 5000}
VERSIONS = {"standard": ("apgd-ce", "apgd-t", "fab-t", "square"), "rand": ("apgd-ce", "apgd-dlr"),
            "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t")}      # in order: all images meet the first, those that stand the others
RESTARTS, AGAIN = ("apgd-ce", "apgd-dlr", "fab"), 5           # these begin so often, but for rand, and for standard outside l1
ANSWERS = 20                    # that rand averages over
L1_TARGETS = 1000               # passes of the standard version's apgd-t in l1: five targets, not nine
ITERATIONS = 100                # of which COST speaks; of square attack's queries 5,000
STANDS = 0.5                    # of the images, where nothing is known yet: adversarially trained networks come near


def seconds_left(seconds_of: dict[str, float], attacked: dict[str, int], names: list[str], name: str, rest: int, robust: int) -> float:
    """Seconds until the last attack of `names` ends; 0 at the end.

    seconds_of, attacked   by attack so far: seconds and images
    name, rest             the attack under way and its images still to come
    robust                 images that stand: as many meet the attacks after it, at most

    Formula: sum of images times seconds an image; of an attack not begun, the seconds of those begun scaled by COST
    """
    paid = sum(COST[n] * attacked[n] for n in seconds_of)
    unit = sum(seconds_of.values()) / paid if paid else 0.0
    own = seconds_of[name] / attacked[name] if attacked.get(name) else unit * COST[name]
    later = names[names.index(name) + 1:]
    return rest * own + robust * unit * sum(COST[n] for n in later)


def told(seconds: float) -> str:
    """'8 s', '3 min 20 s', '2 h 5 min'."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


# -- beforehand ------------------------------------------------------------------------------------------------------------------------


def passes(use: str, options: Mapping[str, Any]) -> float | None:
    """Passes of one image under a measure, forward or backward, half of the images withstanding; None of a measure that has no rule.

    options   settled ones: every number is there
    """
    rule = RULES.get(use)
    return rule(options) if rule else None


def _ascent(o: Mapping[str, Any]) -> float:
    return o.get("restarts", 1) * (2 * o["steps"] + 1)


def _autoattack(o: Mapping[str, Any]) -> float:
    """An attack's restarts meet what still stands, as the attacks after it do."""
    version, l1 = o.get("version", "standard"), getattr(o.get("norm"), "use", "") == "l1"
    cost = COST | ({"apgd-t": L1_TARGETS} if l1 and version == "standard" else {})
    again = 1 if version == "rand" or version == "standard" and not l1 else AGAIN
    total = 0.0
    for at, name in enumerate(o.get("attacks") or VERSIONS[version]):
        total += cost.get(name, 0) * ((STANDS if at else 1.0) + STANDS * (again - 1 if name in RESTARTS else 0))
    return total * (ANSWERS if version == "rand" else 1)


def _ladder(o: Mapping[str, Any]) -> float:
    """Every rung until the image breaks: halfway, in the mean."""
    return o["rungs"] * (2 * o["steps"] + 1) / 2 + o["halvings"]


RULES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "clean": lambda o: 1, "fgsm": lambda o: 3, "pgd": _ascent, "cw": _ascent, "mim": _ascent, "aa": _autoattack, "breaking_eps": _ladder,
    "apgd_ce": lambda o: COST["apgd-ce"] * o["steps"] / ITERATIONS, "apgd_t": lambda o: COST["apgd-t"] * o["steps"] / ITERATIONS,
    "fab": lambda o: COST["fab-t"] * o["steps"] / ITERATIONS, "square": lambda o: o["queries"], "spsa": lambda o: 2 * o["samples"] * o["steps"],
    "effective_margin": lambda o: 3, "mean_radius": lambda o: 0, "seconds_per_step": lambda o: 0}
