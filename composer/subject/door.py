"""`composer evaluate`: any model by a declared protocol. What was measured on the same weights, images and settings is not measured again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from composer.engine.checkpoint import weights_digest
from composer.engine.judge import _installed, evaluation_folder
from composer.engine.run import writable
from composer.engine.session import Settings, set_numerics
from composer.errors import ComposerError
from composer.evaluate.guard import undisturbed
from composer.evaluate.memory import Fit
from composer.evaluate.probe import look_at
from composer.evaluate.protocol import evaluate as judge
from composer.evaluate.results import Evaluation
from composer.evaluate.store import data_digest
from composer.registry import REGISTRY
from composer.report.figures import keep_run
from composer.subject import asked as words
from composer.subject import find, record
from composer.subject.beside import Beside
from composer.subject.normalise import readings
from composer.subject.types import Asked, Bench, Subject

Say = Callable[[str], None]


def evaluate(asked: Asked, *, say: Say = lambda line: None, export: Path | None = None) -> dict[str, Any]:
    """Judge what was asked for; the result as design's JSON, with where its rows were kept.

    {"model", "protocol", "n", "metrics", "trust", "seconds"} and kind, setting, threat, normalisation, notes, worst_of, weights_sha256, out, stored

    Errors: ComposerError as composer.subject.find.subject; where the probe sees that the model cannot be judged so; where a measure's
    library or run is missing.
    """
    began = time.perf_counter()
    writable(asked.settings.out)
    if export is not None:
        record.exportable(export)
    set_numerics(asked.settings)
    subject, bench = find.subject(asked)
    measures = words.measures(bench.recipe, asked.n, len(bench.y))
    words.batch_of(subject.model, asked)
    check_measures(measures, subject)
    if subject.kind not in ("run", "checkpoint"):
        probe(subject, bench, asked)
    for line in subject.notes:
        say(line)
    judged = attack(subject, bench, asked, measures)
    result, columns = summed(subject, bench, asked, measures, judged)
    result["seconds"] = round(time.perf_counter() - began, 2)
    kept = record.keep(asked.settings.out, asked.target, result, columns)
    result["stored"] = str(kept)
    if pictures := keep_run(kept, judged, measures, subject.name):
        result["figures"] = [str(path) for path in pictures]
        say(f"{len(pictures)} picture{'s' if len(pictures) > 1 else ''} in {pictures[0].parent}")
    if export is not None:
        result["export"] = str(record.export_flags(export, result, columns))
    return result


def check_measures(measures: list[Any], subject: Subject) -> None:
    """Before hours of attacks: libraries are there, and a bare model is not asked about its training."""
    if not measures:
        raise ComposerError("nothing is measured", fix="--protocol quick, or --set evaluate.<name>")
    for m in measures:
        primitive = REGISTRY.get("measure", m.use)
        library = primitive.flags.get("library")
        if library and not _installed(library):
            raise ComposerError(f"the measure '{m.name}' needs the package {library}, which is not installed", fix=f"pip install {library}")
        of_run = any(need.name == "run" and need.default is ... for need in primitive.needs) or m.options.get("split", "test") != "test"
        if of_run and subject.run is None:
            raise ComposerError(f"the measure '{m.name}' asks for the run that trained the model", where=f"protocol, {m.name}",
                                why="the run is not in the store as it was" if subject.facts else "a bare model does not know its training",
                                fix=f"a --protocol without {m.name}")


def probe(subject: Subject, bench: Bench, asked: Asked) -> None:
    """A few forward passes: the model takes the images, answers with logits of these classes, and is not at chance for a reason that shows."""
    device = device_of(subject)
    n = min(100, len(bench.y))
    said = asked.normalise
    look = look_at(subject.model, bench.x[:n].to(device), bench.y[:n].to(device), bench.dataset.classes, subject.name,
                   readings(bench.dataset, said) if asked.probe else ())
    subject.notes += [note for note in look.notes if note not in subject.notes]
    subject.doubts += look.doubts
    subject.notes.append(f"probe: right on {round(look.accuracy * look.n)} of {look.n} images")
    if look.wrong is None:
        return
    if asked.probe:
        raise look.wrong
    subject.doubts.append(f"the probe was not believed: {look.wrong.what}; {look.wrong.why}")


def device_of(subject: Subject) -> torch.device:
    found = next(iter(subject.model.parameters()), None) if isinstance(subject.model, torch.nn.Module) else None
    return found.device if found is not None else torch.device("cpu")


def attack(subject: Subject, bench: Bench, asked: Asked, measures: list[Any]) -> Evaluation:
    """The protocol's measures, with progress on stderr; results from the store where they lie there."""
    from composer.report.live import Live

    device = device_of(subject)
    run = subject.run
    if run is None and any(m.use == "transfer" for m in measures):
        run = Beside(asked, bench)
    # the whole test split once, not once a measure; a device too small for it is a matter of --n
    x, y = bench.x.to(device), bench.y.to(device)
    with Live(1, 1, f"judging {subject.name}", quiet=asked.settings.quiet) as live:
        return judge(subject.model, x, y, measures, threat=bench.recipe.threat, seed=subject.seed, store=folder(subject, bench, asked.settings),
                     batch_size=words.batch_of(subject.model, asked), progress=live.progress, subject_digest=subject.digest, run=run,
                     as_trained=subject.kind in ("run", "checkpoint"))


def folder(subject: Subject, bench: Bench, settings: Settings) -> Path:
    """evaluations/<subject>/<threat and data>/, the very folder that a run of these weights would have."""
    session = SimpleNamespace(recipe=bench.recipe, dataset=bench.dataset, settings=settings)
    return settings.out / "evaluations" / subject.digest / evaluation_folder(session, subject.weights)[0].name      # type: ignore[arg-type]


def summed(subject: Subject, bench: Bench, asked: Asked, measures: list[Any], judged: Evaluation) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The result, and the rows of the images."""
    recipe, threat = bench.recipe, bench.recipe.threat
    of_test = {m.name for m in measures if m.options.get("split", "test") == "test" and not REGISTRY.get("measure", m.use).flags.get("record")}
    names = record.worst_of(measures, threat)
    joined = record.worst(judged.flags, names) if len(names) > 1 else None
    metrics, n = dict(judged.metrics), dict(judged.n)
    if joined is not None and record.WORST not in metrics:
        metrics[record.WORST], n[record.WORST] = float(joined.double().mean()), len(joined)
    seen = max((len(judged.flags[name]) for name in of_test), default=0)
    shown = replace(judged, flags={k: v for k, v in judged.flags.items() if k in of_test})
    columns = record.per_image(shown, logits_of(subject, bench.x[:seen]), bench.y, joined) if seen else {}
    doubts = [d for d in subject.doubts if not _told(d, judged.trust["flags"])]
    trust = {**judged.trust, "ok": judged.trust["ok"] and not doubts, "flags": [*judged.trust["flags"], *doubts]}
    result = {
        "model": subject.name, "kind": subject.kind, "protocol": recipe.evaluate.protocol, "setting": subject.facts.get("setting") or recipe.setting,
        "n": n, "metrics": metrics, "trust": trust, "seconds": 0.0, **({"units": judged.units} if judged.units else {}),
        "worst_of": names if joined is not None else [], "classes": bench.dataset.classes, "seed": subject.seed,
        "threat": record.plain({"norm": threat.norm, "eps": threat.eps}), "measures": record.settings_of(measures, threat),
        "data": {"name": bench.dataset.name, "digest": bench.dataset.digest, "images": {k: data_digest(bench.x[:v], bench.y[:v]) for k, v in
                                                                                       {name: len(judged.flags[name]) for name in of_test}.items()}},
        "weights_sha256": weights_digest(subject.weights), "subject": subject.digest, "normalisation": subject.normalisation,
        "mean": subject.mean, "std": subject.std, "notes": subject.notes, "out": str(asked.settings.out), **subject.facts}
    return result, columns


def _told(doubt: str, flags: list[str]) -> bool:
    """The trust checks have said it in other words."""
    pairs = (("probabilities", "probabilities"), ("not finite", "not finite"), ("batch norm in train mode", "batch norm"))
    return any(mine in doubt and any(theirs in flag for flag in flags) for mine, theirs in pairs)


def logits_of(subject: Subject, x: Tensor) -> Tensor:
    """[n, K] on the CPU."""
    device = device_of(subject)
    with undisturbed(subject.model) as judged, torch.no_grad():
        return torch.cat(Fit(250).slices(len(x), lambda i, j: judged(x[i:j].to(device)).cpu()))
