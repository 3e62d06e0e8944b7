"""What a GPU is held to, in one table: `composer bench --gpu` measures and prints it behind the cases and the epochs.

The limits are those of one H200; on another device the numbers stand without a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from composer.bench import gpu_looks as looks
from composer.bench.gpu import epochs

WIDE = "cifar10-wrn-34-10"
DEVICE = "H200"
RUN_EPOCHS = 110              # of the neutral protocol, for what a whole run would take


@dataclass(frozen=True)
class Line:
    """One number and what it is held to. `most` tells whether the limit is an upper one."""

    what: str
    value: float
    unit: str
    limit: float | None = None
    target: float | None = None
    most: bool = True

    @property
    def verdict(self) -> str:
        if self.limit is None:
            return ""
        met = (lambda bound: self.value <= bound) if self.most else (lambda bound: self.value >= bound)
        return "reaches the target" if self.target is not None and met(self.target) else "holds" if met(self.limit) else "DOES NOT HOLD"


def measure(device: torch.device | str, rows: Sequence[dict[str, Any]], cases: Sequence[dict[str, Any]], *, say: Callable[[str], None] = lambda line: None,
            look: Any = looks, wide: Callable[..., list[dict[str, Any]]] = epochs) -> dict[str, Any]:
    """The looks that the table needs, told one by one, and the table. `rows` are epochs of ResNet-18, `cases` steps beside plain loops, measured before."""
    found: dict[str, Any] = {"peak_tflops": {p: look.matrix_peak(device, p) for p in looks.TYPES}}
    say("matrix peak: " + ", ".join(f"{p} {v:.0f} TFLOP/s" for p, v in found["peak_tflops"].items()))
    found["faithful_s"] = look.faithful(device)
    say(f"the authors' AT step, ResNet-18, fp32: {1e3 * found['faithful_s']:.1f} ms")
    found["host"] = {backend: {**look.host(device, backend), "idle": look.idle(device, backend)} for backend in ("eager", "graph")}
    for backend, h in found["host"].items():
        say(f"{backend}: {h['host_us']:.0f} us of the host for a step of {h['step_ms']:.2f} ms, device idle {h['idle']:.0%}")
    found["straight"] = look.straight(device, "graph")
    found["first_step_s"] = look.first_step(device)
    say(f"first compiled step of ResNet-18: {found['first_step_s']:.1f} s")
    found["wide"] = wide(device, recipes=("at",), setting=WIDE, precisions=("bf16",), backends=("graph", "compiled-graph"), steps=20, warmup=5, say=say)
    table = lines(found, rows, cases)
    found["held"] = torch.device(device).type == "cuda" and DEVICE in torch.cuda.get_device_name(device)
    found["lines"] = [{**asdict(line), "verdict": line.verdict if found["held"] else ""} for line in table]
    say(text(table, found["held"]))
    return found


def lines(found: dict[str, Any], rows: Sequence[dict[str, Any]], cases: Sequence[dict[str, Any]]) -> list[Line]:
    """The table. Of several backends the fastest counts; a loss that was not finite counts nowhere."""
    at, ours = fastest(rows, "at", "bf16"), fastest(rows, "mart_ours", "bf16")
    big, peak = fastest(found["wide"], "at", "bf16"), found["peak_tflops"]["bf16"]
    table = []
    if at:
        table += [Line(f"ResNet-18 AT, bf16, {at['backend']}", at["seconds_per_epoch"], "s an epoch", 6.5),
                  Line("  times as fast as the authors' loop at fp32", found["faithful_s"] / (at["ms_per_step"] / 1e3) * at["batch"] / 128, "x", 3.0, 5.0, most=False),
                  Line("  share of the matrix peak", at["tflops"] / peak, "")]
    if ours:
        table.append(Line(f"mart_ours, bf16, {ours['backend']}: {RUN_EPOCHS} epochs of training, evaluation on top", RUN_EPOCHS * ours["seconds_per_epoch"] / 60,
                          "min", 20.0))
    if big:
        table += [Line(f"WRN-34-10 AT, bf16, {big['backend']}", big["seconds_per_epoch"], "s an epoch", 43.0),
                  Line("  share of the matrix peak", big["tflops"] / peak, "", 0.45, most=False)]
    for case in cases:
        plain, engine = case["peak_bytes"].get("pruned"), case["peak_bytes"].get("engine")
        if plain and engine:
            table.append(Line(f"{case['recipe']} on {case['net']}: peak memory over the plain loop's", engine / plain, "x", 1.0))
    line = found["straight"]
    return [*table, Line("graph: the host's time for a step", found["host"]["graph"]["host_us"], "us", 50.0),
            Line("graph: time without a kernel", found["host"]["graph"]["idle"], ""), Line("eager: time without a kernel", found["host"]["eager"]["idle"], ""),
            Line("off a straight line over images", line["off_by_batch"], "", 0.1), Line("off a straight line over attack steps", line["off_by_steps"], "", 0.1),
            Line("first compiled step of ResNet-18, fp32", found["first_step_s"], "s", 60.0)]


def fastest(rows: Sequence[dict[str, Any]], recipe: str, precision: str) -> dict[str, Any] | None:
    fit = [r for r in rows if (r["recipe"], r["precision"]) == (recipe, precision) and r["finite"]]
    return min(fit, key=lambda r: r["seconds_per_epoch"], default=None)


def text(table: Sequence[Line], held: bool) -> str:
    width = max(len(line.what) for line in table)
    said = ["", f"held to the limits of one {DEVICE}" if held else f"no verdict: the limits are those of one {DEVICE}"]
    for line in table:
        bound = "" if line.limit is None else f"{'at most' if line.most else 'at least'} {line.limit:g}" + (f", target {line.target:g}" if line.target else "")
        value = f"{line.value:9.1%}  " if not line.unit else f"{line.value:9.2f} {line.unit}"
        said.append(f"{line.what:{width}}  {value:22}  {bound:26}  {line.verdict if held else ''}".rstrip())
    return "\n".join(said)
