"""AutoAttack behind a ledger: attack by attack on the images that still stand, flags on disk after each batch.

The library's own loop cannot resume (its state file does not survive a reload), replaces the tracer and fails below ten classes. Here each
attack is called directly: in the mode `exact` the library's object, with its settings and seed, on the library's batches; in the mode `fast`
our arrangement of the same algorithms (`quick`). A killed evaluation goes on with the next batch and ends with the flags of one that was
never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from composer.errors import ComposerError
from composer.evaluate.attack import _to, correct_flags, lead
from composer.evaluate.draws import Draws
from composer.evaluate.guard import Judge
from composer.evaluate.library import NORMS, attacks_of, load_library, make_attack, quiet_library
from composer.evaluate.luck import GROUP
from composer.evaluate.memory import Fit
from composer.evaluate.pace import seconds_left
from composer.evaluate.quick import make_quick
from composer.evaluate.results import Measured
from composer.evaluate.store import Slot
from composer.options import Ref
from composer.shapes import Tensor

SLACK = 1e-6            # rounding of float32 in sums over an image; the library's l1 points leave [0,1] by 1e-7
WIDE = 1000             # searches at once on a device, at least, in the fast mode
Attack = Callable[[Tensor, Tensor, Tensor, int], Tensor]      # (images, labels, their places in the whole, searches at once) -> adversarial images


TENSORS = ("clean", "robust", "pending", "margin", "norm")


@dataclass
class Ledger:
    """How far the evaluation is: `robust` now, `pending` when the current attack began, how many of those are done, and how many images or searches
    are at work at once."""

    clean: Tensor
    robust: Tensor
    pending: Tensor
    margin: Tensor          # label's lead at the adversarial image found, and its distance; NaN where none was found
    norm: Tensor
    attack: int = 0
    done: int = 0
    size: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, slot: Slot) -> None:
        slot.save_part({name: getattr(self, name) for name in TENSORS},
                       {"attack": self.attack, "done": self.done, "size": self.size, "facts": self.facts})

    @classmethod
    def load(cls, slot: Slot) -> Ledger | None:
        part = slot.load_part()
        return cls(**part[0], **part[1]) if part and set(part[0]) == set(TENSORS) else None


def run_autoattack(judge: Judge, x: Tensor, y: Tensor, draws: Draws, batch_size: int, report: Callable[..., None], slot: Slot, *,
                   version: str, eps: float, norm: Ref, only: str = "", attacks: tuple[str, ...] = (), mode: str = "exact", **settings: Any) -> Measured:
    """The version's attacks in order, or the one named by `only` with `settings` put onto the library's object.

    Details: attacks, classes, robust_after and seconds_of each attack, forwards (calls of the model inside attacks and checks), wrong_answers,
    warnings of the library, batch_halved (sizes that did not fit the memory), mode, and in fast mode what was folded.
    """
    library = load_library()
    if norm.use not in NORMS:
        raise ComposerError(f"AutoAttack has no norm '{norm.use}'", fix=f"evaluate with one of {', '.join(NORMS)}")
    began = time.perf_counter()
    fast = mode == "fast" and version != "rand"         # a random model answers no question twice alike: only the library averages over it
    ledger = Ledger.load(slot) or _open(judge, x, y, batch_size, WIDE if fast and _cuda(judge, x) and batch_size < WIDE else batch_size)
    facts, spent = ledger.facts, ledger.facts["seconds"]
    calls = facts["forwards"] - judge.calls
    with quiet_library() as warnings:
        names, note = ([only], "") if only else attacks_of(library, judge, eps, NORMS[norm.use], version, facts["classes"], attacks)
        facts.update({"attacks": names, "mode": mode if fast or mode == "exact" else "exact"} | ({"note": note} if note else {}))
        while ledger.attack < len(names):
            name = names[ledger.attack]
            attack = _attack(library, judge, x, y, draws, eps, norm.use, version, name, fast, bool(only), facts, settings)
            for done, total in _attack_rest(attack, name, judge, x, y, eps, norm.use, ledger, GROUP if fast else 0):
                facts["seconds"] = spent + time.perf_counter() - began
                facts["warnings"] = sorted(set(facts["warnings"]) | set(warnings))
                facts["forwards"] = calls + judge.calls
                ledger.save(slot)
                report(done, total, name, seconds_left(facts["seconds_of"], facts["attacked"], names, name, int(ledger.pending.sum()) - ledger.done, int(ledger.robust.sum())))
            facts["robust_after"][name] = int(ledger.robust.sum())
            ledger.attack, ledger.done, ledger.pending = ledger.attack + 1, 0, ledger.robust.clone()
    return Measured(ledger.robust, {"clean": ledger.clean, "margin": ledger.margin, "norm": ledger.norm}, {**facts, "version": version})


def _open(judge: Judge, x: Tensor, y: Tensor, batch_size: int, size: int) -> Ledger:
    clean = correct_flags(judge, x, y, batch_size)
    classes = judge(_to(judge, x[:1], y[:1])[0]).shape[1]
    if classes < 2:
        raise ComposerError(f"AutoAttack needs at least two classes, the model has {classes}")
    none = torch.full((len(y),), torch.nan)
    return Ledger(clean, clean.clone(), clean.clone(), none, none.clone(), size=size,
                  facts={"classes": classes, "seconds": 0.0, "forwards": 0, "wrong_answers": 0, "robust_after": {}, "warnings": [], "seconds_of": {},
                         "attacked": {}, "batch_halved": []})


def _cuda(judge: Judge, x: Tensor) -> bool:
    return (judge.device or x.device).type == "cuda"


def _attack(library: Any, judge: Judge, x: Tensor, y: Tensor, draws: Draws, eps: float, norm: str, version: str, name: str, fast: bool, alone: bool,
            facts: dict[str, Any], settings: dict[str, Any]) -> Attack:
    if fast:
        run, facts["folded"] = make_quick(library, judge, _to(judge, x[:8], y[:8])[0], draws, eps, norm, version, name, facts["classes"], alone, **settings)
        return run
    exact = make_attack(library, judge, eps, NORMS[norm], version, name, facts["classes"], **settings)
    return lambda xb, yb, rows, width: exact(xb, yb, batch_seed(draws))


def _attack_rest(attack: Attack, name: str, judge: Judge, x: Tensor, y: Tensor, eps: float, norm: str, ledger: Ledger,
                 group: int) -> Iterator[tuple[int, int]]:
    """The attack's remaining batches of images that stood when it began; yields (batches done, batches) after each.

    group   0, or a number of which every batch is a multiple whatever the memory: those images share a generator
    """
    rows, facts = ledger.pending.nonzero().flatten(), ledger.facts
    fit = Fit(ledger.size, facts["batch_halved"])
    while ledger.done < len(rows):
        began = time.perf_counter()

        def one(size: int) -> tuple[Tensor, ...]:
            mine = rows[ledger.done:ledger.done + _block(size, group)]
            xb, yb = _to(judge, x[mine.to(x.device)].contiguous(), y[mine.to(y.device)])
            found = attack(xb.clone(), yb.clone(), mine, size)
            checked = [verify(judge, *some, eps, norm) for some in zip(xb.split(size), found.detach().split(size), yb.split(size), strict=True)]
            return mine, *(torch.cat(column) for column in zip(*checked, strict=True))

        mine, broken, wrong, margin, away = fit(one)
        broken = broken.cpu()
        ledger.robust[mine] = ~broken
        ledger.margin[mine[broken]], ledger.norm[mine[broken]] = margin.cpu()[broken], away.cpu()[broken]
        ledger.size, ledger.done = fit.size, ledger.done + len(mine)
        facts["wrong_answers"] += int(wrong.sum())
        facts["seconds_of"][name] = facts["seconds_of"].get(name, 0.0) + time.perf_counter() - began
        facts["attacked"][name] = ledger.done
        block = _block(fit.size, group)
        yield -(-ledger.done // block), -(-len(rows) // block)


def _block(size: int, group: int) -> int:
    return -(-size // group) * group if group else size


def batch_seed(draws: Draws) -> int:
    """The library reseeds its generator with one seed for every batch of every attack: the evaluation's."""
    return draws.base


def verify(judge: Judge, x: Tensor, found: Tensor, y: Tensor, eps: float, norm: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """([N] truly broken, [N] claimed but not so, [N] label's lead there, [N] distance). A claim is any moved image; it must lie in the ball and in
    [0,1] and be misclassified."""
    delta = (found.double() - x.double()).flatten(1)
    size = {"linf": delta.abs().amax(1), "l2": delta.norm(dim=1), "l1": delta.abs().sum(1)}[norm]
    flat = found.flatten(1)
    inside = (size <= eps + SLACK * max(1.0, eps)) & (flat.amin(1) >= -SLACK) & (flat.amax(1) <= 1 + SLACK)
    claimed = ~(delta == 0).all(1)
    logits = judge.verdict(found)
    broken = claimed & inside & ((logits.argmax(1) != y) | ~logits.isfinite().all(1))
    return broken, claimed & ~broken, lead(logits, y), size.float()
