"""A protocol: measures on one model, each run once for given weights, data and settings, then checked for reasons to doubt them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from composer.atomic import write_json
from composer.errors import ComposerError
from composer.evaluate.draws import Draws
from composer.evaluate.fold import folded
from composer.evaluate.guard import Judge, undisturbed
from composer.evaluate.memory import Fit
from composer.evaluate.options import resolve_options
from composer.evaluate.results import Evaluation, Measured, Run
from composer.evaluate.store import Slot, data_digest, digest
from composer.evaluate.trust import Verdict, judge_trust
from composer.evaluate.trust_probe import Probe, probe
from composer.options import Ref, plain
from composer.recipe.types import MeasureSpec, Threat
from composer.registry import REGISTRY, Primitive
from composer.shapes import Tensor

Progress = Callable[[str, int, int], None]
PROBED = 100        # images that the trust checks ask about, at least: a batch size of one must not blind them


def evaluate(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, measures: Sequence[MeasureSpec], *, threat: Threat, seed: int,
             store: Path | str | None = None, batch_size: int = 250, progress: Progress | None = None,
             subject_digest: str = "", run: Run | None = None, as_trained: bool = False) -> Evaluation:
    """Run the measures on the first n images each asks for.

    model     images [N,C,H,W] -> float32 logits [N,K]; a module is put into eval mode for the time and left as it was
    x, y      float images in [0,1], class indices
    measures  in printed order; options left out are the threat's
    store     folder that belongs to these weights, this normalisation and this data; a result found there is not computed again,
              an AutoAttack that was killed goes on where it was
    progress  called as (name, done, total); name is "aa/apgd-t" inside AutoAttack, which before each call tells `progress.left`, where there
              is one, the seconds it will still take
    subject_digest  of weights, model and judged output, if the caller knows it: enters the keys of the stored results
    run       what is known of the run that made the model; measures of other images than x, of radii or of times need it
    as_trained  the model is given its images as in training: no trust check guesses at their normalisation

    Errors: ComposerError for images outside [0,1], doubled names, unknown options, a measure whose library or run is missing.
    """
    from composer.plugins import load_catalogue

    load_catalogue()
    _check(x, y, measures, batch_size)
    began = time.perf_counter()
    settled = [resolve_options(spec, threat) for spec in measures]          # all of them before the first attack
    verdicts: list[Verdict] = []
    hashes: dict[tuple[str, int], str] = {}
    with undisturbed(model) as judge:
        first = max(batch_size, PROBED)
        seen = _seen(judge, x[:first], y[:first], measures, threat, store, subject_digest)
        for spec, options in zip(measures, settled, strict=True):
            primitive = REGISTRY.get("measure", spec.use)
            xs, ys, part = _images(spec, options, x, y, run)
            if store and part not in hashes:
                hashes[part] = data_digest(xs, ys)
            about = _about(primitive, options, hashes.get(part, ""), seed, batch_size, subject_digest, run)
            slot = _slot(None if primitive.flags.get("record") else store, about)
            result = _once(spec, options, judge, xs, ys, seed, batch_size, slot, about, progress, run)
            verdicts.append(Verdict(spec.name, spec.use, options, result, primitive.flags))
    return Evaluation(
        metrics={v.name: v.result.metric for v in verdicts}, n={v.name: len(v.result.counted) for v in verdicts},
        flags={v.name: v.result.values for v in verdicts}, trust=judge_trust(verdicts, seen, as_trained), seconds=time.perf_counter() - began,
        details={v.name: v.result.details for v in verdicts}, units={v.name: v.unit for v in verdicts if v.unit},
        extra={v.name: v.result.extra for v in verdicts}, seen=seen.record())


def _seen(judge: Judge, x: Tensor, y: Tensor, measures: Sequence[MeasureSpec], threat: Threat, store: Path | str | None, subject: str) -> Probe:
    """What the trust checks ask of the model itself; attacked only where the protocol attacks, and asked once for these weights and images."""
    attacked = any(REGISTRY.get("measure", spec.use).flags.get("attack") for spec in measures)
    about = {"data": data_digest(x, y) if store else "", "subject": subject, "threat": plain([threat.norm, threat.eps]) if attacked else None}
    path = Path(store) / f"trust-{digest(about)}.seen" if store else None
    if path and (held := Probe.read(path)):
        return held
    fit = Fit(len(x))           # fewer images where so many exceed the memory
    found = fit(lambda size: probe(judge, _move(judge, x[:size]), _move(judge, y[:size]), threat if attacked else None))
    if path:
        write_json(path, found.record())
    return found


def attack_accuracy(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, spec: MeasureSpec, threat: Threat, seed: int, epoch: int,
                    batch_size: int = 250) -> tuple[float, float]:
    """(clean, robust) accuracy under one attack, for validation inside training; its noise is that of `select/<epoch>`.

    Nothing is stored and no trust is judged; the clean accuracy is a by-product of the attack.

    Errors: ComposerError for a diagnostic, whose value is no accuracy.
    """
    from composer.plugins import load_catalogue

    load_catalogue()
    if unit := REGISTRY.get("measure", spec.use).flags.get("unit"):
        raise ComposerError(f"the measure '{spec.use}' cannot select", why=f"its value is in {unit} and no accuracy", fix='say attack = { use = "pgd" }')
    options = resolve_options(spec, threat, selects=True)
    n = min(spec.n or len(y), len(y))
    with undisturbed(model) as plain_one:
        judge = folded(plain_one, x[:8])[0] if x.device.type == "cpu" else plain_one        # the same numbers but for rounding, in two thirds of the time
        result = run_measure(spec, options, judge, x[:n], y[:n], Draws(seed, f"select/{epoch}"), batch_size, lambda *_: None, Slot(None, ""))
    clean = result.extra.get("clean", result.values)
    return float(clean.double().mean()), result.metric


def run_measure(spec: MeasureSpec, options: dict[str, Any], judge: Judge, x: Tensor, y: Tensor, draws: Draws, batch_size: int,
                report: Callable[..., None], slot: Slot, run: Run | None = None) -> Measured:
    """Call the measure with what it asks for by name."""
    primitive = REGISTRY.get("measure", spec.use)
    offered = {"model": judge, "x": x, "y": y, "draws": draws, "batch_size": batch_size, "report": report, "slot": slot, "run": run}
    if run is None and any(need.name == "run" and need.default is ... for need in primitive.needs):
        raise ComposerError(f"the measure '{spec.name}' asks for the run that trained the model", why="a bare model is judged",
                            fix="leave the measure out, or judge a finished run")
    unknown = [need.name for need in primitive.needs if need.name not in offered]
    if unknown:
        raise ComposerError(f"measure '{spec.use}' asks for '{unknown[0]}'", where=primitive.origin, fix=f"a measure may ask for {', '.join(offered)}")
    result = primitive.fn(**{need.name: offered[need.name] for need in primitive.needs}, **options)
    _check_values(result, primitive, len(y))
    return result


def _check_values(result: Measured, primitive: Primitive, n: int) -> None:
    """A verdict is bool, one an image. A diagnostic says its unit; it is of other things than these images where it asks for the run alone."""
    unit, shape = primitive.flags.get("unit"), tuple(result.values.shape)
    of_images = not unit or any(need.name == "x" for need in primitive.needs)
    if len(shape) != 1 or of_images and shape != (n,):
        raise ComposerError(f"measure '{primitive.name}' returned values of shape {shape}", where=primitive.origin,
                            fix=f"return one value for each of the {n} images")
    if result.values.is_floating_point() != bool(unit):
        raise ComposerError(f"measure '{primitive.name}' returned values of type {result.values.dtype}", where=primitive.origin,
                            why=f"its unit is {unit}: a float diagnostic" if unit else "it names no unit: a verdict, True where the model withstood",
                            fix="return bool values, or register it as a diagnostic: @measure(unit=\"pixels\")")


def _images(spec: MeasureSpec, options: dict[str, Any], x: Tensor, y: Tensor, run: Run | None) -> tuple[Tensor, Tensor, tuple[str, int]]:
    """The first n images the measure is given, and their name: those of the caller, or of the split that the measure's option names."""
    split = options.get("split", "test")
    if split != "test":
        if run is None:
            raise ComposerError(f"the measure '{spec.name}' asks for the {split} images of the run", why="a bare model is judged",
                                fix="leave the measure out, or judge a finished run")
        x, y = run.images(split, spec.n)
        _check(x, y, (), 1)
    n = min(spec.n or len(y), len(y))
    return x[:n], y[:n], (split, n)


def _about(primitive: Primitive, options: dict[str, Any], data: str, seed: int, batch_size: int, subject: str, run: Run | None) -> dict[str, Any]:
    """All that can change the flags; the printed name is not part of it."""
    about = {"use": primitive.name, "options": plain(options), "data": data, "seed": seed, "subject": subject}
    if run is not None and any(need.name == "run" for need in primitive.needs):
        about["run"] = run.key
    about |= _key("key", primitive, options, run)
    for name, value in options.items():
        if isinstance(value, Ref) and value.kind == "measure":
            about |= _key(f"key.{name}", REGISTRY.get("measure", value.use), {**options, **value.options}, run)
    if primitive.flags.get("partition"):
        about["batch_size"] = batch_size           # its random numbers depend on how the images are cut into batches
    if library := primitive.flags.get("library"):
        about["library"] = f"{library} {_version(library)}"
    return about


def _key(name: str, primitive: Primitive, options: dict[str, Any], run: Run | None) -> dict[str, Any]:
    """What else its numbers hang on, if anything: a second network's weights, another formula than before."""
    key = primitive.flags.get("key")
    found = key(options, run) if key else None
    return {} if found is None else {name: found}


def _version(library: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(library)
    except PackageNotFoundError:
        return "absent"


def _slot(store: Path | str | None, about: dict[str, Any]) -> Slot:
    return Slot(Path(store) if store else None, f"{about['use']}-{digest(about)}")


def _once(spec: MeasureSpec, options: dict[str, Any], judge: Judge, x: Tensor, y: Tensor, seed: int, batch_size: int, slot: Slot,
          about: dict[str, Any], progress: Progress | None, run: Run | None) -> Measured:
    held = slot.load()
    if held:
        return held

    def report(done: int, total: int, stage: str = "", left: float | None = None) -> None:
        if left is not None and hasattr(progress, "left"):
            progress.left(left)
        if progress:
            progress(f"{spec.name}/{stage}" if stage else spec.name, done, total)

    began = time.perf_counter()
    result = run_measure(spec, options, judge, x, y, Draws(seed, f"evaluate/{spec.use}"), batch_size, report, slot, run)
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
