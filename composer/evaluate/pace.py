"""How long an AutoAttack still takes, from the seconds its images have cost so far. No torch."""

from __future__ import annotations

# Forward passes an image costs in an attack of the standard version, a backward pass counted as one: iterations times targets times passes.
COST = {"apgd-ce": 200, "apgd-dlr": 200, "apgd-t": 1800, "fab": 1100, "fab-t": 2700, "square": 5000}


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
