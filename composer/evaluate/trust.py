"""Reasons not to believe an evaluation: from the flags at hand, and from what `trust_probe` saw of the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from composer.evaluate.results import Measured
from composer.evaluate.trust_probe import PLAIN, Probe, probe
from composer.options import plain
from composer.shapes import Tensor

MASKED_GAP = 0.15       # a gradient attack this far above AutoAttack: gradients hide the way (papers print 0 to 10 points for sound models)
ZERO_SHARE = 0.01       # images whose first input gradient is exactly zero; a float32 cross entropy needs a margin near 100 for that
SQUARE_SHARE = 0.01     # images that only the query attack of AutoAttack broke
SEVERAL = 10            # steps from which a gradient attack should beat one that sees no gradient
CE_GAP = 0.10           # APGD on cross entropy above APGD on DLR or AutoAttack: the loss stops pulling before the boundary
CW_GAP = 0.10           # the margin attack below PGD: the method has made cross entropy hard to climb, as re-weighting methods do
SHOWS = 40              # images on which such a gap is more than noise: 4 / CW_GAP
REACHED = 0.1           # of a few images, still correct where every image is within reach
WIDE = (2.0, 20.0)      # standard deviation of pixels normalised twice; a network that counts in 0 to 255 lies above
NORMALISED = 0.05       # accuracy gained by undoing a normalisation, or by adding one


MARGINS = ("cw", "dlr", "margin")
EFFORTS = ("steps", "restarts", "queries", "samples")
__all__ = ["Probe", "Verdict", "chance_limit", "excess", "judge_trust", "probe"]


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
    def of_margin(self) -> bool:
        """It climbs differences of logits: `cw`, or another on such a loss, as papers also have it."""
        loss = self.options.get("loss")
        return self.use == "cw" or getattr(loss, "use", loss) in MARGINS

    @property
    def of_no_scale(self) -> bool:
        """Multiplying all logits by a number changes nothing of what it finds: it climbs their differences or the ratio of two."""
        return self.of_margin or self.use == "apgd_t" or self.use == "aa" and self.options.get("version") != "custom"

    @property
    def of_scale(self) -> bool:
        """It climbs a loss on this model that flattens where logits are small, as cross entropy does."""
        return not (self.of_no_scale or self.blind or self.use == "fab" or self.flags.get("transfer"))

    def answers(self, other: Verdict) -> bool:
        """It knows no scale, and would show that `other` has climbed badly: one threat, steps enough, images enough."""
        steps, images = min(other.options.get("steps", 1), SEVERAL), min(len(other.result.values), SHOWS)
        return self.of_no_scale and self.threat == other.threat and self.options.get("steps", SEVERAL) >= steps and len(self.result.values) >= images

    @property
    def threat(self) -> tuple[str, str]:
        return str(plain(self.options.get("norm"))), repr(self.options.get("eps"))


def judge_trust(verdicts: list[Verdict], seen: Probe, as_trained: bool = False) -> dict[str, Any]:
    """{"ok": bool, "flags": [str]}: one sentence with its numbers for every reason found. A model that is given its images as in training cannot have
    them normalised wrongly, however it answers others."""
    attacks, small = [v for v in verdicts if v.attack], seen.lead is not None and seen.lead < PLAIN[0]
    flags = _model_flags(seen, small and _answered(attacks)) + ([] if as_trained else _normalised_flags(seen)) + _clean_flags(verdicts, attacks, seen.classes)
    for v in attacks:
        flags += _zero_flags(v) + (_autoattack_flags(v, attacks, small) if v.use == "aa" else [])
    flags += [flag for one in attacks for other in attacks for flag in _effort_flags(one, other) + _blind_flags(one, other) + _pair_flags(one, other, small)]
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
    return more, less, _more(more, less)


def _answered(attacks: list[Verdict]) -> bool:
    """Whether every attack that knows the logits' scale has one beside it that does not."""
    return any(v.of_no_scale for v in attacks) and all(any(v.answers(one) for v in attacks) for one in attacks if one.of_scale)


def _model_flags(seen: Probe, answered: bool) -> list[str]:
    found = []
    if seen.changes:
        found.append("the model answers the same images differently twice: a randomised model needs attacks that average over its noise")
    if not seen.finite:
        found.append("some logits are not finite; such images count as misclassified")
    if seen.probabilities:
        found.append("the outputs look like probabilities, not logits: losses on logits then have nearly flat gradients")
    if seen.company:
        found.append("the answer to an image depends on the images beside it: batch norm in train mode, or a model that keeps a state")
    return found + _attacked_flags(seen, answered)


def _attacked_flags(seen: Probe, answered: bool) -> list[str]:
    """Small logits (cosine heads, unsure networks) are no doubt where attacks that know no scale were run beside the others (`answered`): cross entropy
    climbs badly there, and if it stays far above them the pairs tell. Large ones are: gradients that have vanished are nobody's."""
    found = []
    if seen.large and seen.large[0] > max(1, REACHED * seen.large[1]):
        found.append(f"{seen.large[0]} of {seen.large[1]} images stand an attack of radius 1, which can reach any image: its gradients lead nowhere")
    if seen.rescaled and not answered and _more(*seen.rescaled):
        found.append(f"the logits' scale hides gradients (median lead {seen.lead:.3g}): one short attack breaks {seen.rescaled[0]} images only on rescaled "
                     f"logits, {seen.rescaled[1]} only on the logits as they are; attack rescaled logits, or add cw or aa")
    return found


def _normalised_flags(seen: Probe) -> list[str]:
    found = []
    if seen.spread is not None and WIDE[0] < seen.spread < WIDE[1]:
        found.append(f"the first layer is given values of standard deviation {seen.spread:.3g}, normalised ones have 1: the images are probably normalised twice")
    for pair, words in ((seen.twice, "normalised twice: de-normalised images are answered better"),
                        (seen.missing, "not normalised, although the model wants it: normalised images are answered better")):
        if pair and seen.images and (pair[0] - pair[1]) / seen.images > NORMALISED and _more(*pair):
            found.append(f"the images are probably {words} ({pair[0]} right only so, {pair[1]} only as given)")
    return found


def _more(one: int, other: int) -> bool:
    """More than noise: two standard deviations of the discordant count."""
    return one - other > 2 * math.sqrt(one + other)


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


def _autoattack_flags(aa: Verdict, attacks: list[Verdict], small: bool) -> list[str]:
    found, details = [], aa.result.details
    rivals = [v for v in attacks if v.use != "aa" and v.threat == aa.threat]
    for v in rivals:
        more, less, real = excess(aa.result.values, v.result.values)
        if real:
            found.append(f"{aa.name} is weaker than {v.name}: {more} images stand only under {aa.name}, {less} only under {v.name}")
        n = min(len(v.result.values), len(aa.result.values))
        gap = (less - more) / n if n else 0.0
        if gap > (CE_GAP if v.use == "apgd_ce" else MASKED_GAP) and (small or v.options.get("steps", 0) >= SEVERAL) and not v.blind:
            found.append(f"{v.name} is {100 * gap:.1f} points above {aa.name} on the same images: it overstates robustness here (masked gradients, or "
                         f"a loss that cross entropy cannot attack well); quote {aa.name}")
    n, after = len(aa.result.values), details.get("robust_after", {})
    if "apgd-ce" in after and n and (after["apgd-ce"] - int(aa.result.values.sum())) / n > CE_GAP:
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


def _pair_flags(one: Verdict, other: Verdict, small: bool) -> list[str]:
    """Two attacks at one threat, `one` leaving many more images than `other`. Where logits are small, any attack that knows their scale may climb badly,
    and steps are no excuse; elsewhere fewer steps are weaker anyway."""
    if one.threat != other.threat:
        return []
    more, less, real = excess(one.result.values, other.result.values)
    n = min(len(one.result.values), len(other.result.values))
    points = 100 * (more - less) / n if n else 0.0
    if not real:
        return []
    if (one.use, other.use) == ("apgd_ce", "apgd_t") and points > 100 * CE_GAP:
        return [f"{one.name} is {points:.1f} points above {other.name} on the same images: cross entropy does not find the way; quote the lower"]
    climbs_badly = small and one.of_scale and other.of_no_scale and other.use != "aa"
    margin_lower = one.use == "pgd" and not one.of_margin and other.of_margin and one.options.get("steps", 0) >= other.options.get("steps", 0)
    if (climbs_badly or margin_lower) and points > 100 * CW_GAP:
        return [f"{other.name} is {points:.1f} points below {one.name} on the same images: {one.name} overstates robustness; quote AutoAttack"]
    if other.flags.get("transfer") and not (one.flags.get("transfer") or one.blind):
        return [(f"{other.name}, made on another model, is stronger than {one.name}: {more} images stand only under {one.name}, {less} only under "
                f"{other.name}: gradients are probably masked")]
    return []


def _blind_flags(seeing: Verdict, blind: Verdict) -> list[str]:
    """An attack without gradients that beats an iterated one with them."""
    weak = seeing.blind or seeing.use in ("aa", "fab") or bool(seeing.flags.get("transfer")) or seeing.options.get("steps", 0) < SEVERAL
    if weak or not blind.blind or seeing.threat != blind.threat:
        return []
    more, less, real = excess(seeing.result.values, blind.result.values)
    told = (f"{blind.name}, which sees no gradient, is stronger than {seeing.name}: {more} images stand only under {seeing.name}, {less} only under "
            f"{blind.name}: gradients are probably masked")
    return [told] if real else []


def _effort_flags(one: Verdict, other: Verdict) -> list[str]:
    """Two runs of one attack that differ in one effort alone, `one` with more of it."""
    for effort in EFFORTS:
        rest = [{key: plain(value) for key, value in v.options.items() if key != effort} for v in (one, other)]
        if one.use != other.use or rest[0] != rest[1] or one.options.get(effort, 0) <= other.options.get(effort, 0):
            continue
        more, less, real = excess(one.result.values, other.result.values)
        if real:
            return [f"{one.name} is weaker than {other.name} despite more {effort}: {more} images stand only under it, {less} only under the other"]
    return []
