"""Reasons not to believe an evaluation, found without another attack: from the flags at hand and two forward passes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from composer.evaluate.guard import Judge
from composer.evaluate.results import Measured
from composer.options import plain
from composer.shapes import Tensor

MASKED_GAP = 0.15       # a gradient attack this far above AutoAttack: gradients hide the way (papers print 0 to 10 points for sound models)
ZERO_SHARE = 0.01       # images whose first input gradient is exactly zero; a float32 cross entropy needs a margin near 100 for that
SQUARE_SHARE = 0.01     # images that only the query attack of AutoAttack broke
SEVERAL = 10            # steps from which a gradient attack should beat one that sees no gradient
CHANGES = 1e-4          # relative change of the logits between two answers to one question


@dataclass
class Verdict:
    """One measure as the checks see it: its printed name, the registered one, settled options, and the flags it was registered with."""

    name: str
    use: str
    options: dict[str, Any]
    result: Measured
    flags: dict[str, Any]

    @property
    def unit(self) -> str:
        """Of a diagnostic; "" says that the values are verdicts."""
        return self.flags.get("unit", "")

    @property
    def attack(self) -> bool:
        return bool(self.flags.get("attack")) and not self.unit

    @property
    def blind(self) -> bool:
        """It sees no gradient: it may stay far above a gradient attack, and falls below one only where gradients lie."""
        return bool(self.flags.get("blind"))

    @property
    def threat(self) -> tuple[str, str]:
        return str(plain(self.options.get("norm"))), repr(self.options.get("eps"))


@dataclass(frozen=True)
class Probe:
    """What two forward passes over the first images show."""

    classes: int
    changes: bool           # the second answer differed
    finite: bool
    probabilities: bool     # rows look like softmax output


def probe(judge: Judge, x: Tensor) -> Probe:
    first, second = judge(x), judge(x)
    size = first.norm(dim=1, keepdim=True).clamp_min(1e-10)
    moved = ((first - second).norm(dim=1, keepdim=True) / size > CHANGES).any() | (first.argmax(1) != second.argmax(1)).any()
    simplex = (first.min() > -1e-5) & (first.max() < 1 + 1e-5) & ((first.sum(1) - 1).abs() < 1e-5).all()
    changes, finite, probabilities = torch.stack((moved, first.isfinite().all(), simplex)).tolist()
    return Probe(first.shape[1], changes and finite, finite, probabilities)


def judge_trust(verdicts: list[Verdict], seen: Probe) -> dict[str, Any]:
    """{"ok": bool, "flags": [str]}: one sentence with its numbers for every reason found."""
    attacks = [v for v in verdicts if v.attack]
    flags = _model_flags(seen) + _clean_flags(verdicts, attacks, seen.classes)
    for v in attacks:
        flags += _zero_flags(v) + (_autoattack_flags(v, attacks) if v.use == "aa" else [])
    flags += [flag for one in attacks for other in attacks for flag in _steps_flags(one, other) + _blind_flags(one, other)]
    return {"ok": not flags, "flags": flags}


def chance_limit(classes: int, n: int) -> float:
    """Largest accuracy that guessing explains: 1/K + 3·sqrt(1/K·(1-1/K)/n)."""
    p = 1 / classes
    return p + 3 * math.sqrt(p * (1 - p) / n)


def excess(strong: Tensor, weak: Tensor) -> tuple[int, int, bool]:
    """On their common images: how many only `strong` left standing, how many only `weak` did, and whether the first outnumber the second
    by more than noise (two standard deviations of the discordant count, as in McNemar's test; one of four out of four is noise)."""
    n = min(len(strong), len(weak))
    more = int((strong[:n] & ~weak[:n]).sum())
    less = int((weak[:n] & ~strong[:n]).sum())
    return more, less, more - less > 2 * math.sqrt(more + less)


def _model_flags(seen: Probe) -> list[str]:
    found = []
    if seen.changes:
        found.append("the model answers the same images differently twice: a randomised model needs attacks that average over its noise")
    if not seen.finite:
        found.append("some logits are not finite; such images count as misclassified")
    if seen.probabilities:
        found.append("the outputs look like probabilities, not logits: losses on logits then have nearly flat gradients")
    return found


def _clean_flags(verdicts: list[Verdict], attacks: list[Verdict], classes: int) -> list[str]:
    known = [v.result.values for v in verdicts if v.use == "clean" and v.options.get("split", "test") == "test"] + [v.result.extra["clean"] for v in attacks if "clean" in v.result.extra]
    if not known:
        return []
    clean = max(known, key=len)
    found = []
    accuracy, limit = float(clean.double().mean()), chance_limit(classes, len(clean))
    if accuracy <= limit:
        found.append(f"clean accuracy {accuracy:.3f} is at chance (at most {limit:.3f} for {classes} classes and {len(clean)} images)")
    for v in attacks:
        n = min(len(v.result.values), len(clean))
        above = int((v.result.values[:n] & ~clean[:n]).sum())
        if above:
            found.append(f"{v.name}: {above} of {n} images are robust but wrong without an attack: attacked above clean")
    return found


def _zero_flags(v: Verdict) -> list[str]:
    zero, clean = v.result.extra.get("zero_grad"), v.result.extra.get("clean")
    if zero is None or clean is None or not int(clean.sum()):
        return []
    share = int((zero & clean).sum()) / int(clean.sum())
    return [f"{v.name}: the input gradient is exactly zero on {share:.1%} of the attacked images"] if share > ZERO_SHARE else []


def _autoattack_flags(aa: Verdict, attacks: list[Verdict]) -> list[str]:
    found, details = [], aa.result.details
    rivals = [v for v in attacks if v.use != "aa" and v.threat == aa.threat]
    for v in rivals:
        more, less, real = excess(aa.result.values, v.result.values)
        if real:
            found.append(f"{aa.name} is weaker than {v.name}: {more} images stand only under {aa.name}, {less} only under {v.name}")
        n = min(len(v.result.values), len(aa.result.values))
        gap = (less - more) / n if n else 0.0
        if gap > MASKED_GAP and not v.blind:
            found.append(f"{v.name} is {100 * gap:.1f} points above {aa.name} on the same images: it overstates robustness here (masked gradients, or "
                         f"a loss that cross entropy cannot attack well); quote {aa.name}")
    n, after = len(aa.result.values), details.get("robust_after", {})
    if "apgd-ce" in after and n and (after["apgd-ce"] - int(aa.result.values.sum())) / n > MASKED_GAP:
        found.append(f"{aa.name}: apgd-ce alone leaves {after['apgd-ce']} of {n} images, all attacks {int(aa.result.values.sum())}: "
                     "gradients are probably masked")
    order = list(after)
    if "square" in order[1:]:
        broken = after[order[order.index("square") - 1]] - after["square"]
        if broken > max(2, SQUARE_SHARE * n):
            found.append(f"{aa.name}: Square, which sees no gradient, broke {broken} images that the gradient attacks left")
    if details.get("wrong_answers"):
        found.append(f"{aa.name}: {details['wrong_answers']} answers of the library did not hold up and were put back as robust")
    return found


def _blind_flags(seeing: Verdict, blind: Verdict) -> list[str]:
    """An attack without gradients that beats an iterated one with them."""
    if seeing.blind or not blind.blind or seeing.use == "aa" or seeing.options.get("steps", 0) < SEVERAL or seeing.threat != blind.threat:
        return []
    more, less, real = excess(seeing.result.values, blind.result.values)
    told = (f"{blind.name}, which sees no gradient, is stronger than {seeing.name}: {more} images stand only under {seeing.name}, {less} only under "
            f"{blind.name}: gradients are probably masked")
    return [told] if real else []


def _steps_flags(one: Verdict, other: Verdict) -> list[str]:
    """Two runs of one attack that differ in the number of steps alone, `one` the longer."""
    rest = [{key: plain(value) for key, value in v.options.items() if key != "steps"} for v in (one, other)]
    if one.use != other.use or rest[0] != rest[1] or one.options.get("steps", 0) <= other.options.get("steps", 0):
        return []
    more, less, real = excess(one.result.values, other.result.values)
    return [f"{one.name} is weaker than {other.name} despite more steps: {more} images stand only under it, {less} only under the other"] if real else []
