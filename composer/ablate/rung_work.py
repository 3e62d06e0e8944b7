"""What a worker does for a sweep row's points: it trains them to a rung and measures them there, and a finished run at its end, on held-out images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from composer.engine.record import read_json


def judge_rung(spec: Mapping[str, Any], recipe: Any, settings: Any, watch: Any) -> dict[str, Any]:
    """Train up to the rung and measure there on held-out images: {"rung": {measure: accuracy}}. What was measured before is the answer."""
    from composer.engine.judge import judged_weights
    from composer.engine.prefix import train_prefix
    from composer.engine.walk import lineage
    from composer.search.trial import held_out, measured, validated

    held = read_json(Path(spec["record"])) or {}
    if held.get("key") == spec["key"]:
        return {"rung": held["metrics"]}

    def judge(session: Any, trainer: Any) -> dict[str, Any]:
        from composer import atomic

        rows = [row for folder in lineage(trainer.node.folder) for row in atomic.read_lines(folder / "metrics.jsonl")]
        weights = judged_weights(session, trainer.parts, recipe.evaluate.weights, "evaluate.weights")
        names = [name for name in spec["measures"] if name not in validated(recipe)]
        return {"metrics": held_out(next(row for row in rows if row["epoch"] == spec["until"])) | measured(session, weights, names),
                "nodes": [folder.name for folder in lineage(trainer.node.folder)]}

    answer = train_prefix(recipe, seed=spec["seed"], until=spec["until"], settings=settings, observer=watch, judge=judge)
    keep(spec, answer["metrics"], answer["nodes"])
    return {"rung": answer["metrics"]}


def judge_end(spec: Mapping[str, Any], recipe: Any, settings: Any, result: Mapping[str, Any]) -> None:
    """Measure a finished run's selected weights on held-out images, by what its sweep selects by."""
    from composer.engine import checkpoint
    from composer.engine.session import Session
    from composer.search.trial import measured

    if (read_json(Path(spec["record"])) or {}).get("key") == spec["key"]:
        return
    weights = checkpoint.load(settings.out / "experiments" / result["run"] / "final.safetensors").tensors
    keep(spec, measured(Session(recipe, spec["seed"], settings), weights, spec["measures"]))


def keep(spec: Mapping[str, Any], metrics: Mapping[str, float], nodes: Sequence[str] = ()) -> None:
    """nodes: folders of the store in which its epochs' records lie."""
    from composer import atomic

    atomic.write_json(Path(spec["record"]), {"key": spec["key"], "seed": spec["seed"], "metrics": dict(metrics), "nodes": list(nodes)})
