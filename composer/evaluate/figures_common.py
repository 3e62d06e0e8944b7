"""What the measures behind figures share: any verdict at a radius of its own, the points of an attack, noise that follows an image into a subset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch

from composer.errors import ComposerError
from composer.evaluate.draws import Draws
from composer.evaluate.results import Measured
from composer.evaluate.store import Slot
from composer.options import Ref
from composer.recipe.types import MeasureSpec, Threat
from composer.registry import REGISTRY
from composer.shapes import Tensor, Unit

AttackSpec = Annotated[Any, Unit("nested", kind="measure")]      # a verdict named inside an option: "pgd" or { use = "pgd", steps = 20 }
Report = Callable[..., None]


def refuses_attack(options: dict[str, Any]) -> tuple[str, str, str] | None:
    """For `refuses`: the option `attack` names an attack, and leaves its radius to the measure."""
    attack = options.get("attack")
    name = attack.use if isinstance(attack, Ref) else str(attack or "pgd")
    if not REGISTRY.has("measure", name):
        return None                                              # told where it is read
    if not REGISTRY.get("measure", name).flags.get("attack"):
        return "attack", f"'{name}' is no attack", "one of " + ", ".join(p.name for p in REGISTRY.all("measure") if p.flags.get("attack"))
    if isinstance(attack, Ref) and attack.options.get("eps") is not None:
        return "attack", "its radius is the measure's", "leave eps out of attack, and give it to the measure"
    return None


class Placed(Draws):
    """The noise of some of the images: image i of the subset has that of image `places[i]` of the whole."""

    def __init__(self, whole: Draws, places: Tensor):
        super().__init__(whole.base, whole.prefix)
        self.places = places

    def rows(self, kind: str, path: str, rows: Tensor, like: Tensor) -> Tensor:
        return super().rows(kind, path, self.places[rows], like)

    def bits(self, path: str, rows: Tensor, words: int) -> Tensor:
        return super().bits(path, self.places[rows], words)


def withstood(attack: Ref, threat: Threat, judge: Any, x: Tensor, y: Tensor, draws: Draws, batch_size: int, report: Report, slot: Slot) -> Measured:
    """The verdict of a registered attack under this threat. What it finished is kept in `slot` and found there again."""
    from composer.evaluate.options import resolve_options
    from composer.evaluate.protocol import run_measure

    if (held := slot.load()) is not None:
        return held
    spec = MeasureSpec(attack.use, attack.use, dict(attack.options))
    result = run_measure(spec, resolve_options(spec, threat), judge, x, y, draws, batch_size, report, slot)
    slot.save(result, {"use": f"part of {slot.key.split('-')[0]}"})
    return result


def part(slot: Slot, tag: str) -> Slot:
    """A place for a piece of a measure's work, beside the measure's own."""
    return Slot(slot.folder, f"{slot.key}-{tag}")


def scaled(attack: Ref, factor: float) -> Ref:
    """The attack with every length named in it times the factor: its steps keep their share of the radius."""
    lengths = [o.name for o in REGISTRY.get("measure", attack.use).options if o.unit == "pixels" and o.name == "step" and o.name in attack.options]
    return Ref(attack.kind, attack.use, {**attack.options, **{name: factor * attack.options[name] for name in lengths}})


def points(judge: Any, x: Tensor, y: Tensor, rows: Tensor, draws: Draws, at: str, *, eps: float, step: float, steps: int, start: Ref, norm: Ref,
           loss: Ref | None = None) -> tuple[Tensor, Tensor]:
    """(images, labels) of these rows on the judge's device: as they are, or at the end points of pgd on `loss` (cross entropy)."""
    from composer.evaluate.attack import Attack, _to, attack_points

    xb, yb = _to(judge, x[rows.to(x.device)], y[rows.to(y.device)])
    if at == "clean":
        return xb, yb
    attack = Attack("pgd", loss or Ref("loss", "ce"), eps, norm, start, {"step": step, "steps": steps})
    return attack_points(attack, judge, xb, yb, rows, draws), yb


def in_batches(total: int, batch_size: int, report: Report, work: Callable[[Tensor], Any]) -> tuple[list[Any], list[int]]:
    """work(rows) over all images in batches that fit the memory: the answers, and the sizes that did not fit."""
    from composer.evaluate.memory import Fit

    fit = Fit(batch_size)

    def one(begin: int, end: int) -> Any:
        answer = work(torch.arange(begin, end))
        report(end, total)
        return answer

    return fit.slices(total, one), fit.refused


def need_module(judge: Any, name: str) -> Any:
    """Errors: ComposerError for a bare function, whose weights nobody can reach."""
    if judge.module is None:
        raise ComposerError(f"the measure '{name}' moves the weights of the model", why="a function is judged, which shows none",
                            fix="give the torch.nn.Module itself")
    return judge.module
