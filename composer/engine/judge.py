"""Which weights are judged, by what: validation inside training, the best model so far, the protocol at the end."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from composer.engine.checkpoint import weights_digest
from composer.engine.facts import Facts, check_asked
from composer.engine.session import Session
from composer.errors import ComposerError, Errors
from composer.options import plain
from composer.plan.whole import place, unjudged
from composer.registry import REGISTRY

ERROR = "val-se/"       # of the record's keys: the standard error of the accuracy that selects


class Overlaid(nn.Module):
    """The network at a part's weights; its own stay untouched."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]):
        super().__init__()
        self.inner = model
        self._weights = {f"{k}": v for k, v in weights.items()}

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.functional_call(self.inner, self._weights, (x,))


class Cosines(nn.Module):
    """A network whose head multiplies cosines by a scale, without that scale: logits in [-1, 1], as HE's own scripts evaluate."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.inner = model

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) / self.inner.head.scale


def judged_weights(session: Session, parts: dict[str, Any], which: str, path: str) -> dict[str, Tensor]:
    """The live weights and buffers, or those a part offers."""
    if which == "live":
        return session.net.model.state_dict()
    part = parts.get(which)
    if part is None or not hasattr(part, "weights"):
        offering = sorted(k for k, v in parts.items() if hasattr(v, "weights"))
        raise ComposerError(f"{path} = \"{which}\", and no part of that name offers weights", fix=f"live{''.join(', ' + o for o in offering)}")
    return session.net.projected(part.weights())


def validation_model(session: Session, parts: dict[str, Any], which: str) -> nn.Module:
    return session.net.model if which == "live" else Overlaid(session.net.model, judged_weights(session, parts, which, "select.weights"))


def check_judging(session: Session) -> None:
    """Before hours of training: weights that are to be judged exist in every stretch that may be judged, every measure's options mean something, and
    its library is there."""
    recipe = session.recipe
    errors = unjudged(recipe, [(node.segment, node.plan) for node in session.nodes])
    if errors:
        raise Errors(errors)
    check_asked(session)
    if recipe.evaluate.logits == "cosine" and not hasattr(getattr(session.net.model, "head", None), "scale"):
        raise ComposerError('evaluate.logits = "cosine"', where=place(recipe)("evaluate.logits"),
                            why=f"the head '{recipe.model.head.use}' has no scale: its logits are no cosines", fix='"scaled", or model.head.use = "hypersphere"')
    for spec in recipe.evaluate.measures:
        _check_measure(spec, recipe, f"evaluate.{spec.name}", 'choose measures without it (evaluate.use = "cheap")')
    for spec in recipe.trace.measures if recipe.trace.every else ():
        _check_measure(spec, recipe, f"trace.{spec.name}", "trace measures without it")
    if recipe.select.held_out > 0 and recipe.select.attack is not None:
        _check_measure(recipe.select.attack, recipe, "select.attack", "select by an attack without it", selects=True)


def _check_measure(spec: Any, recipe: Any, path: str, otherwise: str, selects: bool = False) -> None:
    from composer.evaluate.options import resolve_options

    try:
        resolve_options(spec, recipe.threat, selects)
    except ComposerError as error:
        raise ComposerError(error.what, where=place(recipe)(path), why=error.why, fix=error.fix) from None
    library = REGISTRY.get("measure", spec.use).flags.get("library")
    if library and not _installed(library):
        raise ComposerError(f"the measure '{spec.name}' needs the package {library}, which is not installed", where=place(recipe)(path),
                            fix=f"pip install {library}, or {otherwise}")


def _installed(library: str) -> bool:
    try:
        return sys.modules.get(library) is not None or importlib.util.find_spec(library) is not None
    except (ImportError, ValueError):
        return False


class Validator:
    """Validation after an epoch, traced measures, and the choice of the best epoch."""

    def __init__(self, session: Session, progress: Callable[[str, int, int], None]):
        self.session, self.progress = session, progress
        self.recipe = session.recipe
        self._images: dict[str, tuple[Tensor, Tensor]] = {}

    def images(self, split: str) -> tuple[Tensor, Tensor]:
        if split not in self._images:
            x, y = self.session.images(split)
            self._images[split] = (x.to(self.session.device), y.to(self.session.device))
        return self._images[split]

    @property
    def selects(self) -> bool:
        return self.recipe.select.held_out > 0 and self.recipe.select.attack is not None

    def first_epoch(self) -> int:
        """The first epoch that may be selected."""
        from_ = self.recipe.select.from_
        return self.session.nodes[-1].segment.first if from_ == "last_phase" else int(from_)

    def __call__(self, epoch: int, parts: dict[str, Any]) -> dict[str, float]:
        from composer.evaluate.protocol import attack_accuracy

        found: dict[str, float] = {}
        select, threat = self.recipe.select, self.recipe.threat
        if self.selects:
            model = validation_model(self.session, parts, select.weights)
            x, y = self.images("val")
            n = min(select.n or len(y), len(y))
            clean, robust = attack_accuracy(model, x[:n], y[:n], select.attack, threat, self.session.seed, epoch, batch_size=batch_of(self.session))
            found.update({"val/clean": clean, f"val/{select.attack.name}": robust, f"{ERROR}{select.attack.name}": standard_error(robust, n)})
        trace = self.recipe.trace
        if trace.every and epoch % trace.every == 0:
            found.update(self._trace(epoch, parts))
        return found

    def _trace(self, epoch: int, parts: dict[str, Any]) -> dict[str, float]:
        """Curves; those on the test split are marked, and nothing selects by them. Diagnostics stand apart: they are no accuracies."""
        from composer.evaluate.protocol import evaluate

        trace = self.recipe.trace
        x, y = self.images(trace.on)
        model = validation_model(self.session, parts, self.recipe.select.weights)
        run = Facts(self.session, judged_weights(self.session, parts, self.recipe.select.weights, "select.weights"), parts, epoch)
        result = evaluate(model, x, y, trace.measures, threat=self.recipe.threat, seed=self.session.seed, batch_size=batch_of(self.session), run=run)
        return {f"{'diagnostic' if name in result.units else 'trace'}-{trace.on}/{name}": value for name, value in result.metrics.items()}

    def errors(self, metrics: dict[str, float]) -> dict[str, tuple[float, int]]:
        """Of the accuracy that selects: its standard error over images and their number."""
        select = self.recipe.select
        if not self.selects or (error := metrics.get(f"{ERROR}{select.attack.name}")) is None:
            return {}
        return {select.attack.name: (error, min(select.n or select.held_out, select.held_out))}

    def score(self, epoch: int, metrics: dict[str, float]) -> float | None:
        """What the best epoch is chosen by; None where this epoch may not be chosen."""
        if not self.selects or epoch < self.first_epoch():
            return None
        return metrics[f"val/{self.recipe.select.attack.name}"]


def standard_error(rate: float, n: int) -> float:
    """Of an accuracy over n images.

    Formula: sqrt(p (1 - p) / n)
    """
    return math.sqrt(rate * (1 - rate) / n)


def selection(recipe: Any, best: dict[str, Any]) -> dict[str, Any]:
    """For the result: which epoch was chosen by what, its score on held-out images with the standard error; {} where nothing selects."""
    select = recipe.select
    if not best or select.attack is None or not select.held_out:
        return {}
    n = min(select.n or select.held_out, select.held_out)
    return {"selection": {"epoch": best["epoch"], "attack": select.attack.name, "score": best["score"], "se": standard_error(best["score"], n), "n": n}}


def batch_of(session: Session) -> int:
    """Images judged at once: many for a small network, whose time is overhead, fewer for one whose activations fill a device."""
    return 1000 if sum(p.numel() for p in session.net.parameters.values()) < 2_000_000 else 250


def plain_model(session: Session, weights: dict[str, Tensor]) -> nn.Module:
    """A fresh float32, contiguous, eager network with these weights: what every attack is run on."""
    from composer.models.build import build_model

    model = build_model(session.recipe.model, session.dataset.shape, session.dataset.classes, session.seed)
    model.load_state_dict({k: v.detach().float() if v.is_floating_point() else v for k, v in weights.items()})
    model = model.to(session.device, memory_format=torch.contiguous_format).eval()
    return Cosines(model) if session.recipe.evaluate.logits == "cosine" else model


def evaluation_folder(session: Session, weights: dict[str, Tensor]) -> tuple[Path, str]:
    """evaluations/<weights, model, judged output>/<threat and data>"""
    recipe = session.recipe
    subject = subject_of(recipe, weights_digest(weights))
    protocol = _short({"threat": plain([recipe.threat.norm, recipe.threat.eps]), "data": session.dataset.digest})
    return session.settings.out / "evaluations" / subject / protocol, subject


def subject_of(recipe: Any, weights: str) -> str:
    """The folder below evaluations/ of the weights with this digest, as this recipe has them judged."""
    return _short({"weights": weights, "model": plain([recipe.model.use, recipe.model.options, recipe.model.head]),
                   "mean": recipe.model.mean, "std": recipe.model.std, "logits": recipe.evaluate.logits})


def judge(session: Session, weights: dict[str, Tensor], *, full: bool, progress: Callable[[str, int, int], None]) -> Any:
    """The recipe's protocol on these weights; when not `full`, the model is spared the measures registered as costly."""
    from composer.evaluate.protocol import evaluate

    recipe = session.recipe
    measures = [m for m in recipe.evaluate.measures if full or not REGISTRY.get("measure", m.use).flags.get("costly")]
    x, y = session.images("test")
    folder, subject = evaluation_folder(session, weights)
    model = plain_model(session, weights)
    return evaluate(model, x.to(session.device), y.to(session.device), measures, threat=recipe.threat, seed=session.seed, store=folder,
                    batch_size=batch_of(session), progress=progress, subject_digest=subject, run=Facts(session, weights), as_trained=True)


def _short(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()
