"""What a method costs over the one it builds on: its step's time, held against the passes that its plan adds.

over = (time of the method's step / time of the base's) / (passes of the one / passes of the other). 1.00: nothing but the passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from composer.bench.machine import machine
from composer.bench.subject import numerics, subject
from composer.bench.timer import interleave
from composer.plan.cost import plan_cost

LIMIT = 1.05
BATCHES = {"small_cnn": 128, "cnn28": 32, "resnet18": 4}
PAIRS = (("mwpb_at", "at"), ("mwpb_mart", "mart"), ("mwpb_trades", "trades"), ("at_ours", "at"), ("trades_ours", "trades"), ("mart_ours", "mart"),
         ("at_nmse", "at"), ("piat", "at"), ("piat_nmse", "at"), ("mail_at", "at"), ("mail_trades", "trades"), ("gairat", "at"), ("seat", "at"),
         ("approx_emr_at", "at"))


def overheads(pairs: Sequence[tuple[str, str]] = PAIRS, *, net: str = "small_cnn", batch: int = 128, rounds: int = 9, threads: int = 1,
              say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Interleaved, one pair after the other; a timing that is noisy is taken again once, and then judged by processor time."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    found = []
    try:
        say(f"{'method':15} {'over':12} {'units':>9} {'by passes':>9} {'by time':>8} {'over':>6}")
        for method, base in pairs:
            with numerics("fp32"):
                found.append(_pair(method, base, net, batch, rounds))
            say(_text(found[-1]))
    finally:
        torch.set_num_threads(before)
    return {"machine": machine("cpu"), "net": net, "batch": batch, "rounds": rounds, "limit": LIMIT, "methods": found}


def _pair(method: str, base: str, net: str, batch: int, rounds: int) -> dict[str, Any]:
    steps = {"base": subject(base, net, n=batch), "method": subject(method, net, n=batch)}
    units = {name: plan_cost(step.plan).at(10).units for name, step in steps.items()}
    timing = interleave(steps, rounds=rounds, base="base")
    time = timing.over("method", "base", processor=timing.noisy)
    expected = units["method"] / units["base"]
    return {"method": method, "base": base, "units": [units["method"], units["base"]], "by_passes": expected, "by_time": time, "over": time / expected,
            "judged_by": "processor time" if timing.noisy else "the clock", "timing": timing.as_dict()}


def _text(row: dict[str, Any]) -> str:
    ours, theirs = row["units"]
    return (f"{row['method']:15} {row['base']:12} {f'{ours}/{theirs}':>9} {row['by_passes']:>9.3f} {row['by_time']:>8.3f} {row['over']:>6.3f}"
            f"{'' if row['over'] <= LIMIT else '  OVER'}{'' if row['judged_by'] == 'the clock' else '  (processor time: noisy)'}")
