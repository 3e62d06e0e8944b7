"""What a few cheap questions show about a model before its numbers are believed: forward passes, and two short attacks on a few images."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from composer.evaluate.attack import Attack, Climb, _to, attack_points
from composer.evaluate.draws import Draws
from composer.evaluate.guard import Judge
from composer.options import Ref
from composer.shapes import Tensor

CHANGES = 1e-4          # relative change of the logits between two answers to one question
COMPANY = 1e-3          # median relative change of the logits when the same images come in two halves: rounding and TF32 stay below
LARGE, FEW = 1.0, 16    # a radius at which every image is within reach, and how many images are tried
PLAIN = (0.5, 30.0)     # median lead of the first logit over the second in which cross entropy attacks well; else rescaled logits are attacked too
LEAD, TRIED = 4.0, 32   # the median lead of the rescaled logits, and how many images are tried


@dataclass(frozen=True)
class Probe:
    """What was seen.

    company    the answer to an image depends on the images beside it (batch norm in train mode)
    large      (still correct, correct before) of a few images at radius 1 in linf, where nothing is out of reach
    lead       median lead of the first logit over the second
    rescaled   (broken only on rescaled logits, broken only on the logits as they are) under one short attack at the threat's radius
    twice, missing   (right only so, right only as given): images de-normalised, and normalised, by their own mean and standard deviation
    """

    classes: int
    changes: bool           # the second answer differed
    finite: bool
    probabilities: bool     # rows look like softmax output
    company: bool = False
    large: tuple[int, int] | None = None
    lead: float | None = None
    rescaled: tuple[int, int] | None = None
    twice: tuple[int, int] | None = None
    missing: tuple[int, int] | None = None
    images: int = 0
    spread: float | None = None     # standard deviation of what the first layer with weights is given

    def record(self) -> dict[str, Any]:
        """JSON-able, for the report."""
        return asdict(self)

    @classmethod
    def read(cls, path: Path) -> Probe | None:
        """What was recorded, or None where nothing readable lies."""
        try:
            record = json.loads(path.read_text())
            return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in record.items()})
        except (OSError, ValueError, TypeError):
            return None


def probe(judge: Judge, x: Tensor, y: Tensor | None = None, threat: Any = None) -> Probe:
    """Ask the model about the images x; with labels also about normalisation, with a threat also under attack."""
    first, second = judge(x), judge(x)
    size = first.norm(dim=1, keepdim=True).clamp_min(1e-10)
    moved = ((first - second).norm(dim=1, keepdim=True) / size > CHANGES).any() | (first.argmax(1) != second.argmax(1)).any()
    simplex = (first.min() > -1e-5) & (first.max() < 1 + 1e-5) & ((first.sum(1) - 1).abs() < 1e-5).all()
    changes, finite, probabilities = torch.stack((moved, first.isfinite().all(), simplex)).tolist()
    changes = changes and finite
    found: dict[str, Any] = {"company": finite and not changes and _company(judge, x, first)}
    found["spread"] = _spread(judge, x)
    if y is not None and finite:
        found |= _normalised(judge, x, y)
        if threat is not None:
            found |= _attacked(judge, x, y, threat, first)
    return Probe(first.shape[1], changes, finite, probabilities, **found)


def _company(judge: Judge, x: Tensor, whole: Tensor) -> bool:
    """Two halves of at least two images each must be answered as the whole."""
    if len(x) < 4:
        return False
    half = len(x) // 2
    parts = torch.cat((judge(x[:half]), judge(x[half:])))
    return bool(((parts - whole).norm(dim=1) / whole.norm(dim=1).clamp_min(1e-10)).median() > COMPANY)


def _spread(judge: Judge, x: Tensor) -> float | None:
    """None for a function, or where the first layer is none of the usual ones."""
    layers = [m for m in judge.module.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))] if judge.module is not None else []
    given: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].detach()) if not given else None) for layer in layers]
    try:
        judge(x)
    finally:
        for hook in hooks:
            hook.remove()
    return float(given[0].double().std()) if given else None


def _normalised(judge: Judge, x: Tensor, y: Tensor) -> dict[str, Any]:
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True).clamp_min(1e-3)
    given = judge.correct(x, y)

    def against(other: Tensor) -> tuple[int, int]:
        right = judge.correct(other, y)
        return int((right & ~given).sum()), int((given & ~right).sum())

    return {"images": len(y), "twice": against(x * std + mean), "missing": against((x - mean) / std)}


def _attacked(judge: Judge, x: Tensor, y: Tensor, threat: Any, logits: Tensor) -> dict[str, Any]:
    right = (logits.argmax(1) == y).nonzero().flatten()
    if not len(right) or logits.shape[1] < 2:
        return {}
    top = logits[right].topk(2, dim=1).values
    lead = float((top[:, 0] - top[:, 1]).median())
    few, tried = right[:FEW], right[:TRIED]
    stands = _stands(judge, x[few], y[few], Ref("ball", "linf"), LARGE, 0.1, 20)
    found: dict[str, Any] = {"lead": lead, "large": (int(stands.sum()), len(few))}
    if not PLAIN[0] <= lead <= PLAIN[1] and lead > 0:
        plain, other = (_stands(one, x[tried], y[tried], threat.norm, threat.eps, threat.eps / 4, 10) for one in (judge, _scaled(judge, LEAD / lead)))
        found["rescaled"] = (int((plain & ~other).sum()), int((other & ~plain).sum()))
    return found


def _scaled(judge: Judge, factor: float) -> Any:
    """The judge with its logits times a factor."""
    return _Times(judge, lambda z: z * factor)


class _Times(Judge):
    def __init__(self, judge: Judge, change: Callable[[Tensor], Tensor]):
        super().__init__(judge.model, judge.meter)
        self.change = change

    def raw(self, x: Tensor) -> Tensor:
        return self.change(super().raw(x))


def _stands(judge: Judge, x: Tensor, y: Tensor, norm: Ref, eps: float, step: float, steps: int) -> Tensor:
    """[n] bool: correct at every point of an ascent on cross entropy from the image."""
    attack = Attack("pgd", Ref("loss", "ce"), float(eps), norm, Ref("start", "zero"), {"step": float(step), "steps": steps})
    climb = Climb(judge, *_to(judge, x, y), attack.loss)
    end = attack_points(attack, judge, climb.x, climb.y, torch.arange(len(y)), Draws(0, "trust"), climb=climb)
    return judge.correct(end, climb.y) & ~climb.missed
