"""The attack library: one attack object with the settings of a version, called as (images, labels, seed) -> adversarial images."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from composer.errors import ComposerError
from composer.evaluate.guard import Judge
from composer.shapes import Tensor

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
NAMES = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
SQUARE_ROWS = 5         # the library's first pattern in l2 and l1 is five squares a side


def load_library() -> Any:
    """pyautoattack's AutoAttack, or one clear sentence."""
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise ComposerError("AutoAttack needs the package pyautoattack, which cannot be imported", why=str(error),
                            fix="pip install 'pyautoattack>=0.2,<0.3', or choose a protocol without aa (evaluate.use = \"quick\")") from None
    return AutoAttack


def attacks_of(library: Any, judge: Judge, eps: float, norm: str, version: str, classes: int, attacks: tuple[str, ...] = ()) -> tuple[list[str], str]:
    """The version's attacks in its order, without those that do not exist for so few classes; and a note where they differ.

    Errors: ComposerError for an unknown attack, a list with another version than custom, a custom version without one.
    """
    if (version == "custom") != bool(attacks):
        raise ComposerError(f'AutoAttack with version = "{version}" and attacks = {list(attacks)}', why="a list of attacks belongs to the version custom, and only to it",
                            fix='version = "custom", attacks = ["apgd-ce", "apgd-t"]')
    if wrong := [name for name in attacks if name not in NAMES]:
        raise ComposerError(f"AutoAttack has no attack '{wrong[0]}'", fix=f"one of {', '.join(NAMES)}")
    names = list(attacks) or list(library(judge, eps=eps, norm=norm, version=version).attacks_to_run)
    if classes >= 4:
        fewer = classes < 10 and {"fab-t", "apgd-t"} & set(names)
        return names, f"{classes - 1} target classes instead of 9, all there are" if fewer else ""
    replaced = ["apgd-dlr" if name == "apgd-t" and "apgd-dlr" not in names else name for name in names]
    kept = [name for name in replaced if name != "apgd-t" and (classes > 2 or name != "apgd-dlr")]
    if kept == names:
        return names, f"{classes - 1} target classes instead of 9, all there are" if "fab-t" in names else ""
    if not kept:
        raise ComposerError(f"{classes} classes, and none of {', '.join(names)} exists for so few", why="DLR needs 3 classes, its targeted form 4",
                            fix="apgd-ce, fab or square")
    why = "the targeted DLR loss needs 4 classes" + (", DLR needs 3" if classes < 3 else "")
    return kept, f"{classes} classes: {why}; ran {', '.join(kept)}"


def tuned(library: Any, judge: Judge, eps: float, norm: str, version: str, name: str, classes: int, **settings: Any) -> Any:
    """The library's object of one attack with the version's settings, targets no more than there are, and `settings` put on top.

    Errors: ComposerError where the library cannot run it: the targeted DLR loss below 4 classes, DLR below 3, Square in l2 and l1 on
    fewer than 5 rows of pixels (found when it runs).
    """
    if classes < {"apgd-t": 4, "apgd-dlr": 3}.get(name, 2):
        raise ComposerError(f"{name} on {classes} classes", why="DLR needs 3 classes, its targeted form 4", fix="apgd_ce, fab, square, or aa, which leaves it out and says so")
    suite = library(judge, eps=eps, norm=norm, version=version, seed=0, device=judge.device or "cpu", **({"attacks": [name]} if version == "custom" else {}))
    attack = {"a": suite.apgd_targeted if name == "apgd-t" else suite.apgd, "f": suite.fab, "s": suite.square}[name[0]]
    if name in ("apgd-ce", "apgd-dlr"):
        attack.loss = name.removeprefix("apgd-")
    if name.startswith("fab"):
        attack.targeted = name == "fab-t"
        attack.n_restarts = 1 if attack.targeted else attack.n_restarts
    for key, value in settings.items():
        setattr(attack, key, value)
    if hasattr(attack, "n_target_classes"):
        attack.n_target_classes = min(attack.n_target_classes, classes - 1)
    if name.startswith("apgd"):
        _rescale(attack)
    return attack


def _rescale(attack: Any) -> None:
    """Checkpoints follow the number of iterations, as the library's constructor sets them."""
    n = attack.n_iter_orig = attack.n_iter
    attack.n_iter_2, attack.n_iter_min, attack.size_decr = max(int(0.22 * n), 1), max(int(0.06 * n), 1), max(int(0.03 * n), 1)


def make_attack(library: Any, judge: Judge, eps: float, norm: str, version: str, name: str, classes: int,
                **settings: Any) -> Callable[[Tensor, Tensor, int], Tensor]:
    """One attack of the version as (x, y, seed) -> adversarial images (unbroken ones unmoved)."""
    attack = tuned(library, judge, eps, norm, version, name, classes, **settings)

    def run(x: Tensor, y: Tensor, seed: int) -> Tensor:
        if name == "square" and norm != "Linf" and x.shape[2] < SQUARE_ROWS:
            raise ComposerError(f"Square in {norm} on images of {x.shape[2]} rows", why="the library's first pattern is five squares a side",
                                fix='mode = "fast", or the norm linf')
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
