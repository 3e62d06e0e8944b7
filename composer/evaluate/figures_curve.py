"""Robust accuracy against the radius, and accuracy class by class: any registered attack seen along an axis."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from composer.errors import ComposerError
from composer.evaluate.figures_common import AttackSpec, Placed, Report, part, refuses_attack, scaled, withstood
from composer.evaluate.results import Measured, wilson
from composer.options import FRACTION, Ref, fraction, pixel_word
from composer.recipe.types import Threat
from composer.registry import measure
from composer.shapes import Images, Labels, Module, Norm, Pixels, Start, Tensor, ThreatPixels, ThreatSteps

RADII = ("0.25*eps", "0.5*eps", "0.75*eps", "eps", "1.25*eps", "1.5*eps", "1.75*eps", "2*eps")


@measure(unit="pixels", figure="curve", partition=True, costly=True, refuses=refuses_attack)
def curve(model: Module, x: Images, y: Labels, draws: Any, batch_size: int, report: Report, slot: Any, *, attack: AttackSpec = "pgd",
          radii: tuple[Pixels, ...] = RADII, warm: bool = True, eps: ThreatPixels, step: ThreatPixels, steps: ThreatSteps, start: Start,
          norm: Norm) -> Measured:
    """Robust accuracy at a ladder of radii; its number is the area under that curve, which is the mean radius withstood.

    The accuracies, with their 95 % intervals (Wilson), are in the details; who stood at each radius is kept by image. At radius 0 stands the clean
    accuracy.

    attack   any attack that is a measure, its eps left out
    radii    of the ladder, smallest first: sizes, or words of `eps`
    warm     true: an image broken at one radius is broken at every larger one, where the same perturbation lies in the ball, and is not attacked
             again. The curve then never rises, by construction. false: every radius is attacked anew, and a rise is told in the details
    step     at radius `eps`; at the others, as a step named in `attack`, it keeps its share of the radius

    Formula: sum_j (e_{j+1} - e_j) (a_j + a_{j+1}) / 2, a_j the accuracy under the attack of radius e_j, e_0 = 0   [pixels]
    Paper:   Liu and Chan, BMVC 2022 (EMR) figure 3
    """
    from composer.evaluate.attack import correct_flags

    ladder = settled(radii, eps)
    ref = attack if isinstance(attack, Ref) else Ref("measure", str(attack))
    standing = [correct_flags(model, x, y, batch_size)]
    rises = 0
    for number, radius in enumerate(ladder):
        threat = Threat(norm, radius, step * radius / eps, steps, start)
        places = (standing[-1] if warm else standing[0]).nonzero().flatten()
        held = torch.zeros_like(standing[0])
        if len(places):
            there = places.to(x.device)
            found = withstood(scaled(ref, radius / eps), threat, model, x[there], y[there], Placed(draws, places), batch_size,
                              lambda done, total, *_, k=number: report(k * total + done, len(ladder) * total, f"radius {k + 1} of {len(ladder)}"),
                              part(slot, f"{number}"))
            held[places] = found.values
        rises += int((held & ~standing[-1]).sum())
        standing.append(held)
    return curved([0.0, *ladder], standing, warm, rises, eps)


def settled(radii: tuple[Any, ...], eps: float) -> list[float]:
    """Numbers of pixels. Errors: ComposerError where they do not grow from above 0."""
    found = []
    for value in radii:
        word = pixel_word(value) if isinstance(value, str) else None
        found.append(word.factor * eps if word else fraction(value) if isinstance(value, str) and FRACTION.match(value) else float(value))
    if not found or found[0] <= 0 or any(b <= a for a, b in itertools.pairwise(found)):
        raise ComposerError(f"radii {', '.join(f'{r:.4g}' for r in found) or 'of nothing'}", where="curve", fix="radii above 0, smallest first, each once")
    return found


def curved(ladder: list[float], standing: list[Tensor], warm: bool, rises: int, eps: float) -> Measured:
    """The answer from who stands at each radius, radius 0 first."""
    flags = torch.stack(standing, 1).double()
    widths = torch.tensor(ladder, dtype=torch.float64).diff()
    values = ((flags[:, 1:] + flags[:, :-1]) / 2 * widths).sum(1).float()
    n, counts = len(flags), [int(each.sum()) for each in standing]
    at = next((k for k, radius in enumerate(ladder) if abs(radius - eps) <= 1e-9 + 1e-6 * eps), None)
    details = {"radii": ladder, "counts": counts, "n": n, "accuracy": [count / n for count in counts], "ci95": [list(wilson(count, n)) for count in counts],
               "warm": warm, "eps": eps, "accuracy_at_eps": counts[at] / n if at is not None and n else None}
    return Measured(values, {f"at-{radius:.6g}": each for radius, each in zip(ladder, standing)}, details | ({} if warm else {"rises": rises}))


@measure(unit="share", figure="classes", partition=True, costly=True, refuses=refuses_attack)
def per_class(model: Module, x: Images, y: Labels, draws: Any, batch_size: int, report: Report, slot: Any, *, attack: AttackSpec = "pgd",
              eps: ThreatPixels, step: ThreatPixels, steps: ThreatSteps, start: Start, norm: Norm) -> Measured:
    """Robust accuracy of the worst class; all classes, clean and robust, with their counts in the details.

    Images of other classes do not count in its number, so n is that class's share of the images. It is the least of K accuracies, and so lower than
    the mean by chance alone: with n images a class, by about 1.5 standard errors for ten equal classes.

    Formula: min_k mean_{i: y_i = k} [withstood_i]   [share of the images of that class]
    Paper:   Xu et al., ICML 2021 (fairness of adversarial training)
    """
    from composer.evaluate.attack import correct_flags

    ref = attack if isinstance(attack, Ref) else Ref("measure", str(attack))
    clean = correct_flags(model, x, y, batch_size)
    held = withstood(ref, Threat(norm, eps, step, steps, start), model, x, y, draws, batch_size, report, part(slot, "all")).values
    labels = y.cpu()
    classes = [_of_class(int(k), labels == k, clean, held) for k in labels.unique()]
    worst = min(classes, key=lambda row: row["robust"])
    values = torch.where(labels == worst["class"], held.float(), float("nan"))
    gaps = {"worst_clean": min(row["clean"] for row in classes), "mean_robust": float(held.double().mean()), "mean_clean": float(clean.double().mean())}
    return Measured(values, {"clean": clean, "robust": held}, {"classes": classes, "worst": worst["class"], **gaps})


def _of_class(k: int, mine: Tensor, clean: Tensor, held: Tensor) -> dict[str, Any]:
    n, right, robust = int(mine.sum()), int((clean & mine).sum()), int((held & mine).sum())
    return {"class": k, "n": n, "clean": right / n, "robust": robust / n, "clean_ci95": list(wilson(right, n)), "robust_ci95": list(wilson(robust, n))}
