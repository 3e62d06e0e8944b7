"""The registered measures. Each takes by name what it needs of: model, x, y, draws, batch_size, report, slot; its options come from the recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from composer.evaluate.results import Measured
from composer.options import Ref
from composer.registry import measure
from composer.shapes import Ge, Images, Labels, LossSpec, Module, Norm, Pixels, Start, ThreatPixels, ThreatSteps

Report = Callable[..., None]
Mode = Literal["exact", "fast"]


@measure
def clean(model: Module, x: Images, y: Labels, batch_size: int = 250, *, split: Literal["test", "val", "train"] = "test") -> Measured:
    """Accuracy on the images as they are.

    split   test, or of the run that is judged: val, the images held out for selection; train, those trained on, without augmentation

    Formula: mean_i [argmax_k f(x_i)_k = y_i]   [share of images]
    Paper:   standard
    """
    from composer.evaluate.attack import correct_flags

    return Measured(correct_flags(model, x, y, batch_size))


@measure(attack=True)
def fgsm(model: Module, x: Images, y: Labels, draws: Any, batch_size: int, report: Report, *, loss: LossSpec = "ce", eps: ThreatPixels,
         step: Pixels = "eps", start: Start = "zero", norm: Norm) -> Measured:
    """Accuracy under one step of steepest ascent; by default a full step of eps from the image itself.

    An image withstands if it is correct as it stands and correct at the final point.

    Formula: mean_i [correct(x_i) and correct(P(s_i + step·steepest(grad loss(s_i))))], s the start   [share of images]
    Paper:   Goodfellow et al., ICLR 2015
    """
    from composer.evaluate.attack import Attack, run_attack

    attack = Attack("fgsm", loss, eps, norm, start, {"step": step})
    return run_attack(attack, model, x, y, draws, batch_size, report)


@measure(attack=True)
def pgd(model: Module, x: Images, y: Labels, draws: Any, batch_size: int, report: Report, *, loss: LossSpec = "ce", eps: ThreatPixels,
        step: ThreatPixels, steps: ThreatSteps, restarts: Annotated[int, Ge(1)] = 1, start: Start, norm: Norm,
        keep: Literal["last", "any"] = "last") -> Measured:
    """Accuracy under projected gradient ascent on a loss.

    An image withstands if it is correct as it stands and, in every restart, correct at the final point; with keep = "any" at every point
    that the ascent visits.

    Formula: mean_i [correct(x_i) and correct(x_i^S)], x^(s+1) = P(x^s + step·steepest(grad loss(x^s)))   [share of images]
    Paper:   Madry et al., ICLR 2018
    """
    from composer.evaluate.attack import Attack, run_attack

    attack = Attack("pgd", loss, eps, norm, start, {"step": step, "steps": steps}, restarts, keep)
    return run_attack(attack, model, x, y, draws, batch_size, report)


@measure(attack=True)
def mim(model: Module, x: Images, y: Labels, draws: Any, batch_size: int, report: Report, *, loss: LossSpec = "ce", eps: ThreatPixels,
        step: ThreatPixels, steps: ThreatSteps, mu: Annotated[float, Ge(0)] = 1.0, restarts: Annotated[int, Ge(1)] = 1, start: Start, norm: Norm,
        keep: Literal["last", "any"] = "last") -> Measured:
    """Accuracy under the momentum iterative method: ascent along the decayed sum of gradients of length 1 in l1.

    The verdict is that of `pgd`. Start and step are the threat's; Dong et al. start at the image and step by eps / steps.

    Formula: mean_i [correct(x_i) and correct(x_i^S)], x^S the point of the inner maximum `mim`   [share of images]
    Paper:   Dong et al., CVPR 2018
    """
    from composer.evaluate.attack import Attack, run_attack

    attack = Attack("mim", loss, eps, norm, start, {"step": step, "steps": steps, "mu": mu}, restarts, keep)
    return run_attack(attack, model, x, y, draws, batch_size, report)


@measure(attack=True)
def cw(model: Module, x: Images, y: Labels, draws: Any, batch_size: int, report: Report, *, confidence: Annotated[float, Ge(0)] = 50.0,
       eps: ThreatPixels, step: ThreatPixels, steps: ThreatSteps, restarts: Annotated[int, Ge(1)] = 1, start: Start, norm: Norm,
       keep: Literal["last", "any"] = "last") -> Measured:
    """Accuracy under projected gradient ascent on the margin loss of Carlini and Wagner.

    The verdict is that of `pgd`: correct as it stands and at the final point of every restart.

    Formula: pgd climbing max(max_{k != y} z_k - z_y, -confidence) by the loss `cw`   [share of images]
    Paper:   Carlini and Wagner, S&P 2017; as PGD since Zhang and Wang, NeurIPS 2019
    """
    from composer.evaluate.attack import Attack, run_attack

    attack = Attack("pgd", Ref("loss", "cw", {"confidence": confidence}), eps, norm, start, {"step": step, "steps": steps}, restarts, keep)
    return run_attack(attack, model, x, y, draws, batch_size, report)


@measure(attack=True, partition=True, costly=True, library="pyautoattack")
def aa(model: Module, x: Images, y: Labels, draws: Any, batch_size: int, report: Report, slot: Any, *,
       version: Literal["standard", "plus", "rand", "custom"] = "standard", attacks: tuple[str, ...] = (), mode: Mode = "exact", eps: ThreatPixels,
       norm: Norm) -> Measured:
    """Accuracy under AutoAttack, attack by attack on the images that still stand, resumable at every batch.

    Every broken image is checked again: inside the ball, inside [0,1], and misclassified by the model. Fewer classes than ten lower the
    number of targets to K-1; below four classes the targeted DLR attack does not exist, and the details say what ran instead.

    version   custom runs `attacks`, of apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square, in that order and with the library's own settings (5 restarts)
    mode      exact: the library itself, its flags for the evaluation's seed and batch size. fast: the same algorithms arranged for speed, with the
              random numbers that the library draws in its own batches of 250 (the batch size here changes nothing); rand is always exact

    Formula: mean_i [correct(x_i) and no attack of the version breaks x_i]   [share of images]
    Paper:   Croce and Hein, ICML 2020
    """
    from composer.evaluate.autoattack import run_autoattack

    return run_autoattack(model, x, y, draws, batch_size, report, slot, version=version, attacks=attacks, mode=mode, eps=eps, norm=norm)


@measure(attack=True, partition=True, library="pyautoattack")
def apgd_ce(model: Module, x: Images, y: Labels, draws: Any, batch_size: int, report: Report, slot: Any, *, steps: Annotated[int, Ge(1)] = 100,
            mode: Mode = "exact", eps: ThreatPixels, norm: Norm) -> Measured:
    """Accuracy under AutoPGD on cross entropy alone: the first attack of AutoAttack, 100 iterations, one restart (in l1 five).

    Formula: mean_i [correct(x_i) and apgd-ce does not break x_i]   [share of images]
    Paper:   Croce and Hein, ICML 2020
    """
    from composer.evaluate.autoattack import run_autoattack

    return run_autoattack(model, x, y, draws, batch_size, report, slot, version="standard", mode=mode, eps=eps, norm=norm, only="apgd-ce", n_iter=steps)


@measure(attack=True, partition=True, costly=True, library="pyautoattack")
def apgd_t(model: Module, x: Images, y: Labels, draws: Any, batch_size: int, report: Report, slot: Any, *, steps: Annotated[int, Ge(1)] = 100,
           mode: Mode = "exact", eps: ThreatPixels, norm: Norm) -> Measured:
    """Accuracy under AutoPGD on the targeted DLR loss alone: up to 9 targets (in l1 up to 5), 100 iterations each. Needs four classes.

    Formula: mean_i [correct(x_i) and apgd-t does not break x_i]   [share of images]
    Paper:   Croce and Hein, ICML 2020
    """
    from composer.evaluate.autoattack import run_autoattack

    return run_autoattack(model, x, y, draws, batch_size, report, slot, version="standard", mode=mode, eps=eps, norm=norm, only="apgd-t", n_iter=steps)


@measure(attack=True, partition=True, costly=True, library="pyautoattack")
def fab(model: Module, x: Images, y: Labels, draws: Any, batch_size: int, report: Report, slot: Any, *, steps: Annotated[int, Ge(1)] = 100,
        mode: Mode = "exact", eps: ThreatPixels, norm: Norm) -> Measured:
    """Accuracy under the targeted Fast Adaptive Boundary attack alone, as AutoAttack runs it: 100 iterations for each of up to 9 targets.

    Formula: mean_i [correct(x_i) and fab-t finds nothing within eps of x_i]   [share of images]
    Paper:   Croce and Hein, ICML 2020 (FAB)
    """
    from composer.evaluate.autoattack import run_autoattack

    return run_autoattack(model, x, y, draws, batch_size, report, slot, version="standard", mode=mode, eps=eps, norm=norm, only="fab-t", n_iter=steps)


@measure(attack=True, partition=True, costly=True, blind=True, library="pyautoattack")
def square(model: Module, x: Images, y: Labels, draws: Any, batch_size: int, report: Report, slot: Any, *,
           queries: Annotated[int, Ge(1)] = 5000, mode: Mode = "exact", eps: ThreatPixels, norm: Norm) -> Measured:
    """Accuracy under the Square attack alone: random squares, kept where the margin falls; no gradient.

    The library's squares never come to the last row and column (only those of the image's size do). In fast mode a twentieth more queries follow there.

    Formula: mean_i [correct(x_i) and no query breaks x_i]   [share of images]
    Paper:   Andriushchenko et al., ECCV 2020
    """
    from composer.evaluate.autoattack import run_autoattack

    return run_autoattack(model, x, y, draws, batch_size, report, slot, version="standard", mode=mode, eps=eps, norm=norm, only="square", n_queries=queries)
