"""A protocol: measures on one model, each run once for given weights, data and settings, then checked for reasons to doubt them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from composer.errors import ComposerError
from composer.evaluate.draws import Draws
from composer.evaluate.guard import Judge, undisturbed
from composer.evaluate.options import resolve_options
from composer.evaluate.results import Evaluation, Measured
from composer.evaluate.store import Slot, data_digest, digest
from composer.evaluate.trust import Verdict, judge_trust, probe
from composer.options import plain
from composer.recipe.types import MeasureSpec, Threat
from composer.registry import REGISTRY, Primitive
from composer.shapes import Tensor

Progress = Callable[[str, int, int], None]


def evaluate(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, measures: Sequence[MeasureSpec], *, threat: Threat, seed: int,
             store: Path | str | None = None, batch_size: int = 250, progress: Progress | None = None,
             subject_digest: str = "") -> Evaluation:
    """Run the measures on the first n images each asks for.

    model     images [N,C,H,W] -> float32 logits [N,K]; a module is put into eval mode for the time and left as it was
    x, y      float images in [0,1], class indices
    measures  in printed order; options left out are the threat's
    store     folder that belongs to these weights, this normalisation and this data; a result found there is not computed again,
              an AutoAttack that was killed goes on where it was
    progress  called as (name, done, total); name is "aa/apgd-t" inside AutoAttack
    subject_digest  of weights, model and judged output, if the caller knows it: enters the keys of the stored results

    Errors: ComposerError for images outside [0,1], doubled names, unknown options, a measure whose library is missing.
    """
    from composer.plugins import load_catalogue

    load_catalogue()
    _check(x, y, measures, batch_size)
    began = time.perf_counter()
    verdicts: list[Verdict] = []
    hashes: dict[int, str] = {}
    with undisturbed(model) as judge:
        seen = probe(judge, _move(judge, x[:batch_size]))
        for spec in measures:
            options = resolve_options(spec, threat)
            n = min(spec.n or len(y), len(y))
            if store and n not in hashes:
                hashes[n] = data_digest(x[:n], y[:n])
            about = _about(REGISTRY.get("measure", spec.use), options, hashes.get(n, ""), seed, batch_size, subject_digest)
            result = _once(spec, options, judge, x[:n], y[:n], seed, batch_size, _slot(store, about), about, progress)
            verdicts.append(Verdict(spec.name, spec.use, options, result, bool(REGISTRY.get("measure", spec.use).flags.get("attack"))))
    return Evaluation(
        metrics={v.name: v.result.metric for v in verdicts}, n={v.name: len(v.result.values) for v in verdicts},
        flags={v.name: v.result.values for v in verdicts}, trust=judge_trust(verdicts, seen), seconds=time.perf_counter() - began,
        details={v.name: v.result.details for v in verdicts})


def attack_accuracy(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, spec: MeasureSpec, threat: Threat, seed: int, epoch: int,
                    batch_size: int = 250) -> tuple[float, float]:
    """(clean, robust) accuracy under one attack, for validation inside training; its noise is that of `select/<epoch>`.

    Nothing is stored and no trust is judged; the clean accuracy is a by-product of the attack.
    """
    from composer.plugins import load_catalogue

    load_catalogue()
    options = resolve_options(spec, threat)
    n = min(spec.n or len(y), len(y))
    with undisturbed(model) as judge:
        result = run_measure(spec, options, judge, x[:n], y[:n], Draws(seed, f"select/{epoch}"), batch_size, lambda *_: None, Slot(None, ""))
    clean = result.extra.get("clean", result.values)
    return float(clean.double().mean()), result.metric


def run_measure(spec: MeasureSpec, options: dict[str, Any], judge: Judge, x: Tensor, y: Tensor, draws: Draws, batch_size: int,
                report: Callable[..., None], slot: Slot) -> Measured:
    """Call the measure with what it asks for by name."""
    primitive = REGISTRY.get("measure", spec.use)
    offered = {"model": judge, "x": x, "y": y, "draws": draws, "batch_size": batch_size, "report": report, "slot": slot}
    unknown = [need.name for need in primitive.needs if need.name not in offered]
    if unknown:
        raise ComposerError(f"measure '{spec.use}' asks for '{unknown[0]}'", where=primitive.origin, fix=f"a measure may ask for {', '.join(offered)}")
    result = primitive.fn(**{need.name: offered[need.name] for need in primitive.needs}, **options)
    if result.values.shape != (len(y),):
        raise ComposerError(f"measure '{spec.use}' returned values of shape {tuple(result.values.shape)}", where=primitive.origin,
                            fix=f"return one value for each of the {len(y)} images")
    return result


def _about(primitive: Primitive, options: dict[str, Any], data: str, seed: int, batch_size: int, subject: str) -> dict[str, Any]:
    """All that can change the flags; the printed name is not part of it."""
    about = {"use": primitive.name, "options": plain(options), "data": data, "seed": seed, "subject": subject}
    if primitive.flags.get("partition"):
        about["batch_size"] = batch_size           # its random numbers depend on how the images are cut into batches
    if library := primitive.flags.get("library"):
        about["library"] = f"{library} {_version(library)}"
    return about


def _version(library: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(library)
    except PackageNotFoundError:
        return "absent"


def _slot(store: Path | str | None, about: dict[str, Any]) -> Slot:
    return Slot(Path(store) if store else None, f"{about['use']}-{digest(about)}")


def _once(spec: MeasureSpec, options: dict[str, Any], judge: Judge, x: Tensor, y: Tensor, seed: int, batch_size: int, slot: Slot,
          about: dict[str, Any], progress: Progress | None) -> Measured:
    held = slot.load()
    if held:
        return held

    def report(done: int, total: int, stage: str = "") -> None:
        if progress:
            progress(f"{spec.name}/{stage}" if stage else spec.name, done, total)

    began = time.perf_counter()
    result = run_measure(spec, options, judge, x, y, Draws(seed, f"evaluate/{spec.use}"), batch_size, report, slot)
    result.details.setdefault("seconds", time.perf_counter() - began)
    slot.save(result, about)
    return result


def _check(x: Tensor, y: Tensor, measures: Sequence[MeasureSpec], batch_size: int) -> None:
    if x.ndim != 4 or not x.is_floating_point() or len(x) != len(y) or len(y) == 0:
        raise ComposerError(f"images of shape {tuple(x.shape)} and type {x.dtype}, labels of shape {tuple(y.shape)}",
                            fix="pass float images [N,C,H,W] and as many labels, at least one")
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        raise ComposerError(f"the images lie in [{low:.3g}, {high:.3g}]", why="attacks clamp to [0,1] and would silently judge other images",
                            fix="give pixels in [0,1] and put the normalisation inside the model")
    names = [spec.name for spec in measures]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ComposerError(f"two measures are named '{doubled[0]}'", fix="name them apart")
    if batch_size < 1:
        raise ComposerError(f"batch size {batch_size}", fix="give a batch size of at least 1")


def _move(judge: Judge, x: Tensor) -> Tensor:
    return x if judge.device is None else x.to(judge.device)
