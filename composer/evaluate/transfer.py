"""Adversarial images made on another network: an attack that sees nothing of the judged one."""

from __future__ import annotations

from typing import Any

from composer.errors import ComposerError
from composer.evaluate.figures_common import AttackSpec, Report, part, refuses_attack, withstood
from composer.evaluate.guard import Judge, undisturbed
from composer.evaluate.results import Measured
from composer.options import Ref
from composer.recipe.types import Threat
from composer.registry import measure
from composer.shapes import Images, Labels, Module, Norm, Start, Tensor, ThreatPixels, ThreatSteps


class Borrowed(Judge):
    """The source as far as an attack can see; what an image counts as is the judged network's word."""

    def __init__(self, source: Judge, judged: Any):
        super().__init__(source.model)
        self.judged = judged

    def verdict(self, x: Tensor) -> Tensor:
        return self.judged(x)


def refuses(options: dict[str, Any]) -> tuple[str, str, str] | None:
    """Of `attack`: what is no attack, and an image counted at every step, where the source would be asked."""
    attack = options.get("attack")
    if isinstance(attack, Ref) and attack.options.get("keep") == "any":
        return "attack", 'keep = "any" asks the source at every step whether the image has fallen', 'keep = "last"'
    return refuses_attack(options)


@measure(attack=True, transfer=True, partition=True, costly=True, refuses=refuses,
         key=lambda options, run: run.reference_digest(options["source"]) if run is not None else "")
def transfer(model: Module, x: Images, y: Labels, draws: Any, batch_size: int, report: Report, slot: Any, run: Any = None, *, source: str,
             attack: AttackSpec = "pgd", eps: ThreatPixels, step: ThreatPixels, steps: ThreatSteps, start: Start, norm: Norm) -> Measured:
    """Accuracy on adversarial images that an attack makes on another network.

    Stronger than an attack on the network itself, it says that the network's own gradients are masked: the trust checks look for that. Only images
    that the judged network gets right are attacked. Attacks of the library leave an image unmoved that they cannot break on the source.

    source   a file of weights (of a run, or of the judged network's architecture), a finished run of the store, or the name of a recipe that was run
             on this setting with this seed
    attack   any attack that is a measure; what it leaves out is the threat's

    Formula: mean_i [f right at x_i and at x_i'], x_i' made by `attack` on the source g   [share of images]
    Paper:   standard
    """
    if run is None:
        raise ComposerError(f"the source '{source}' cannot be looked up", why="a bare model is judged, without a store beside it",
                            fix="composer evaluate, or a run's own protocol")
    ref = attack if isinstance(attack, Ref) else Ref("measure", str(attack))
    with undisturbed(run.reference(source)) as other:
        seen, own = other(x[:1].to(other.device or x.device)).shape[1], model(x[:1].to(model.device or x.device)).shape[1]
        if seen != own:
            raise ComposerError(f"the source '{source}' answers with {seen} classes, the judged network with {own}", where="transfer")
        found = withstood(ref, Threat(norm, eps, step, steps, start), Borrowed(other, model), x, y, draws, batch_size, report, part(slot, "source"))
    return Measured(found.values, found.extra, {**found.details, "source": source})
