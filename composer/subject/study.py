"""A row of a study that is somebody else's checkpoint: judged as the study's own runs are, and told in the shape of a run's result."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from composer.engine.session import Settings, set_numerics
from composer.errors import ComposerError
from composer.recipe.studies import Row
from composer.subject import asked as words
from composer.subject.door import attack, check_measures, probe, summed
from composer.subject.files import from_file
from composer.subject.record import WORST, keep
from composer.subject.types import Asked, Subject


def checkpoint_of(row: Row) -> Path | None:
    """The row's file, below the working folder or beside the study; None where it is in neither."""
    study = Path(re.sub(r":\d+.*$", "", row.where))
    return next((root / row.checkpoint for root in (Path(), study.parent) if row.checkpoint and (root / row.checkpoint).is_file()), None)


def evaluate_external(row: Row, settings: Settings, *, say: Callable[[str], None] = lambda line: None) -> dict[str, Any] | None:
    """The result of an external row in the shape of composer.engine.run's, without training; None where its checkpoint is not here.

    Its recipe says network, normalisation (of the row; never looked for), data and protocol. `evaluated` names the folder below evaluations/.

    Errors: ComposerError where the file does not fit, or the probe sees that it cannot be judged so.
    """
    file = checkpoint_of(row)
    if file is None or row.recipe is None:
        return None
    began = time.monotonic()
    set_numerics(settings)
    asked = Asked(str(file), normalise="" if row.recipe.model.mean is not None else "none", settings=settings)
    bench = words.bench(row.recipe, asked)
    subject = from_file(asked, file, bench, name=row.name, kind="external")
    measures = words.measures(row.recipe, None)
    measures = [m for m in measures if not _of_run(m, subject)]
    check_measures(measures, subject)
    probe(subject, bench, asked)
    for line in subject.notes:
        say(f"{row.name}: {line}")
    judged = attack(subject, bench, asked, measures)
    result, columns = summed(subject, bench, asked, measures, judged)
    kept = keep(settings.out, asked.target, {**result, "seconds": round(time.monotonic() - began, 2)}, columns)
    return as_run(row, result, time.monotonic() - began) | {"evaluated": [subject.digest], "stored": str(kept)}


def _of_run(measure: Any, subject: Subject) -> bool:
    """Measures of training images, radii and times: a stranger's checkpoint has none, so its row shows none."""
    try:
        check_measures([measure], subject)
    except ComposerError as error:
        if "asks for the run" in error.what:
            return True
        raise
    return False


def as_run(row: Row, result: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The keys of a run's result, with nothing trained. The worst case is no measure of the protocol and stays with the evaluation."""
    def measured(values: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in values.items() if k != WORST}

    recipe = row.recipe
    assert recipe is not None
    return {"run": f"external-{row.name}", "recipe": recipe.name, "setting": recipe.setting, "seed": 0, "experiment_id": recipe.experiment_id,
            "prefix_key": "", "weights_sha256": result["weights_sha256"], "epochs": 0, "steps": 0, "seconds": round(seconds, 2), "train_seconds": 0.0,
            "passes": {"forward": 0, "dgrad": 0, "wgrad": 0}, "protocol": recipe.evaluate.protocol, "classes": result["classes"],
            "n": measured(result["n"]), "selected": "last", "selected_epoch": 0, "metrics": measured(result["metrics"]), "metrics_other": {},
            "trust": result["trust"], "out": result["out"], "mlflow_run_id": None, "external": row.checkpoint, "notes": result["notes"],
            "precision": "fp32", "backend": "", "selection": None, "peak_memory_bytes": None, "peak_memory": "",
            **({"units": result["units"]} if "units" in result else {})}


__all__ = ["as_run", "checkpoint_of", "evaluate_external"]
