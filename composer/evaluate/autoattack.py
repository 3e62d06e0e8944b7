"""AutoAttack behind a ledger: the library's attacks one by one on the images that still stand, flags on disk after each batch.

The library's own loop cannot resume (its state file does not survive a reload), reseeds the global generators, replaces the tracer and fails
below ten classes. Here each attack object is called directly, with the library's settings of the chosen version, under a seed that belongs to
(attack, batch): a killed evaluation goes on with the next batch and ends with the flags of one that was never stopped.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from composer.errors import ComposerError
from composer.evaluate.attack import _to, correct_flags
from composer.evaluate.draws import Draws
from composer.evaluate.guard import Judge
from composer.evaluate.results import Measured
from composer.evaluate.store import Slot
from composer.options import Ref
from composer.shapes import Tensor

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
SLACK = 1e-6


@dataclass
class Ledger:
    """How far the evaluation is: `robust` now, `pending` when the current attack began, and the next (attack, batch)."""

    clean: Tensor
    robust: Tensor
    pending: Tensor
    attack: int = 0
    batch: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, slot: Slot) -> None:
        slot.save_part({"clean": self.clean, "robust": self.robust, "pending": self.pending},
                       {"attack": self.attack, "batch": self.batch, "facts": self.facts})

    @classmethod
    def load(cls, slot: Slot) -> Ledger | None:
        part = slot.load_part()
        return cls(**part[0], **part[1]) if part else None


def load_library() -> Any:
    """pyautoattack's AutoAttack, or one clear sentence."""
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise ComposerError("AutoAttack needs the package pyautoattack, which cannot be imported", why=str(error),
                            fix="pip install 'pyautoattack>=0.2,<0.3', or choose a protocol without aa (evaluate.use = \"quick\")") from None
    return AutoAttack


def run_autoattack(judge: Judge, x: Tensor, y: Tensor, draws: Draws, batch_size: int, report: Callable[..., None], slot: Slot, *,
                   version: str, eps: float, norm: Ref, only: str = "", **settings: Any) -> Measured:
    """The version's attacks in order, or the one named by `only` with `settings` put onto the library's object."""
    library = load_library()
    if norm.use not in NORMS:
        raise ComposerError(f"AutoAttack has no norm '{norm.use}'", fix=f"evaluate with one of {', '.join(NORMS)}")
    began = time.perf_counter()
    ledger = Ledger.load(slot) or _open(judge, x, y, batch_size)
    spent = ledger.facts["seconds"]
    with quiet_library() as warnings:
        names, note = ([only], "") if only else attacks_of(library, judge, eps, NORMS[norm.use], version, ledger.facts["classes"])
        ledger.facts.update({"attacks": names} | ({"note": note} if note else {}))
        while ledger.attack < len(names):
            attack = make_attack(library, judge, eps, NORMS[norm.use], version, names[ledger.attack], ledger.facts["classes"], **settings)
            for done, total in _attack_rest(attack, names[ledger.attack], judge, x, y, draws, batch_size, eps, norm.use, ledger):
                ledger.facts["seconds"] = spent + time.perf_counter() - began
                ledger.facts["warnings"] = sorted(set(ledger.facts["warnings"]) | set(warnings))
                ledger.save(slot)
                report(done, total, names[ledger.attack])
            ledger.facts["robust_after"][names[ledger.attack]] = int(ledger.robust.sum())
            ledger.attack, ledger.batch, ledger.pending = ledger.attack + 1, 0, ledger.robust.clone()
    return Measured(ledger.robust, {"clean": ledger.clean}, {**ledger.facts, "version": version})


def _open(judge: Judge, x: Tensor, y: Tensor, batch_size: int) -> Ledger:
    clean = correct_flags(judge, x, y, batch_size)
    classes = judge(_to(judge, x[:1], y[:1])[0]).shape[1]
    if classes < 2:
        raise ComposerError(f"AutoAttack needs at least two classes, the model has {classes}")
    return Ledger(clean, clean.clone(), clean.clone(),
                  facts={"classes": classes, "seconds": 0.0, "wrong_answers": 0, "robust_after": {}, "warnings": [], "seconds_of": {}})


def _attack_rest(attack: Callable[[Tensor, Tensor, int], Tensor], name: str, judge: Judge, x: Tensor, y: Tensor, draws: Draws, batch_size: int,
                 eps: float, norm: str, ledger: Ledger) -> Iterator[tuple[int, int]]:
    """The attack's remaining batches of images that stood when it began; yields (batches done, batches) after each."""
    rows = ledger.pending.nonzero().flatten()
    total = -(-len(rows) // batch_size)
    while ledger.batch < total:
        began = time.perf_counter()
        mine = rows[ledger.batch * batch_size:(ledger.batch + 1) * batch_size]
        xb, yb = _to(judge, x[mine.to(x.device)].contiguous(), y[mine.to(y.device)])
        found = attack(xb.clone(), yb.clone(), batch_seed(draws, name, ledger.batch))
        broken, wrong = verify(judge, xb, found.detach(), yb, eps, norm)
        ledger.robust[mine] = ~broken.cpu()
        ledger.facts["wrong_answers"] += int(wrong.sum())
        ledger.facts["seconds_of"][name] = ledger.facts["seconds_of"].get(name, 0.0) + time.perf_counter() - began
        ledger.batch += 1
        yield ledger.batch, total


def batch_seed(draws: Draws, attack: str, batch: int) -> int:
    return draws.seed(attack, batch)


def verify(judge: Judge, x: Tensor, found: Tensor, y: Tensor, eps: float, norm: str) -> tuple[Tensor, Tensor]:
    """([N] truly broken, [N] claimed but not so). A claim is any moved image; it must lie in the ball and in [0,1] and be misclassified."""
    delta = (found.double() - x.double()).flatten(1)
    size = {"linf": delta.abs().amax(1), "l2": delta.norm(dim=1), "l1": delta.abs().sum(1)}[norm]
    flat = found.flatten(1)
    inside = (size <= eps + SLACK * max(1.0, eps)) & (flat.amin(1) >= 0) & (flat.amax(1) <= 1)
    claimed = ~(delta == 0).all(1)
    broken = claimed & inside & ~judge.correct(found, y)
    return broken, claimed & ~broken


def attacks_of(library: Any, judge: Judge, eps: float, norm: str, version: str, classes: int) -> tuple[list[str], str]:
    """The version's attacks in its order, without those that do not exist for so few classes; and a note where they differ."""
    names = list(library(judge, eps=eps, norm=norm, version=version).attacks_to_run)
    if classes >= 4:
        return names, f"{classes - 1} target classes instead of 9, all there are" if classes < 10 and "fab-t" in names else ""
    replaced = ["apgd-dlr" if name == "apgd-t" and "apgd-dlr" not in names else name for name in names]
    kept = [name for name in replaced if name != "apgd-t" and (classes > 2 or name != "apgd-dlr")]
    why = "the targeted DLR loss needs 4 classes" + (", DLR needs 3" if classes < 3 else "")
    return kept, f"{classes} classes: {why}; ran {', '.join(kept)}"


def make_attack(library: Any, judge: Judge, eps: float, norm: str, version: str, name: str, classes: int,
                **settings: Any) -> Callable[[Tensor, Tensor, int], Tensor]:
    """One attack of the version with the library's settings, as (x, y, seed) -> adversarial images (unbroken ones unmoved)."""
    suite = library(judge, eps=eps, norm=norm, version=version, seed=0, device=judge.device or "cpu")
    if name in ("apgd-ce", "apgd-dlr"):
        attack = suite.apgd
        attack.loss = name.removeprefix("apgd-")
    elif name == "apgd-t":
        attack = suite.apgd_targeted
        attack.n_target_classes = min(attack.n_target_classes, classes - 1)
    elif name in ("fab", "fab-t"):
        attack = suite.fab
        attack.targeted = name == "fab-t"
        attack.n_target_classes = min(attack.n_target_classes, classes - 1)
        attack.n_restarts = 1 if attack.targeted else attack.n_restarts
    else:
        attack = suite.square

    for key, value in settings.items():
        setattr(attack, key, value)

    def run(x: Tensor, y: Tensor, seed: int) -> Tensor:
        attack.seed, attack.device = seed, x.device
        with torch.no_grad():
            return attack.perturb(x, y)

    return run


class _Collect(logging.Handler):
    def __init__(self, into: list[str]):
        super().__init__(logging.WARNING)
        self.into = into

    def emit(self, record: logging.LogRecord) -> None:
        self.into.append(record.getMessage())


@contextlib.contextmanager
def quiet_library() -> Iterator[list[str]]:
    """The library's log goes nowhere; its warnings are handed out as data. The logger is afterwards as it was."""
    logger = logging.getLogger("auto-attack")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    warnings: list[str] = []
    logger.handlers, logger.propagate = [_Collect(warnings)], False
    logger.setLevel(logging.WARNING)
    try:
        yield warnings
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
