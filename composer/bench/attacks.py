"""`composer bench --attacks`: AutoAttack in both modes beside a direct call of the library, on one model after another.

Every round runs the three on the same images, in an order that rotates: flags that differ, forward passes, time. The mode `exact` is held to the
library's flags and passes and to 1.05 times its time, `fast` to at most one image in 200 that differs and to 1.2 times its speed. The first two models
are trained here by PGD, from fixed seeds, and kept under --out; the third is the ResNet-18 that the library ships. Short runs take fewer iterations and
queries than AutoAttack's own 100 and 5,000, of which the ratio knows nothing; --full takes those, on 200 images: an hour, most of it ResNet-18.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from composer import atomic
from composer.bench.machine import machine
from composer.bench.timer import Timing, interleave
from composer.errors import ComposerError

CHECKS = 7                      # forward passes of the library's own checks on the model
EXACT, FASTER, DIFFERENT = 1.05, 1.2, 1 / 200
Say = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """One model with its images, and how long the attacks run."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    iterations: int = 100
    queries: int = 5000
    rounds: int = 5
    seed: int = 0


class Counted(nn.Module):
    """Counts its calls."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x)


def direct(case: Case) -> tuple[Tensor, int]:
    """The library called as its users call it: (flags, forward passes less its checks)."""
    from pyautoattack import AutoAttack

    from composer.evaluate.library import _rescale, quiet_library

    counted, tracer = Counted(case.model), sys.gettrace()
    with torch.random.fork_rng(devices=[]), quiet_library():
        suite = AutoAttack(counted, eps=case.eps, norm="Linf", seed=case.seed)
        suite.square.n_queries = case.queries
        for attack in (suite.apgd, suite.apgd_targeted, suite.fab):
            attack.n_iter = case.iterations
        for attack in (suite.apgd, suite.apgd_targeted):
            _rescale(attack)
        _, answer = suite.run_standard_evaluation(case.x, case.y, batch_size=250)
    sys.settrace(tracer)
    case.model.zero_grad()
    return answer == case.y, counted.calls - CHECKS


def ours(case: Case, mode: str) -> tuple[Tensor, int]:
    """(flags, forward passes less the one that asks the number of classes)."""
    from composer.evaluate.autoattack import run_autoattack
    from composer.evaluate.draws import Draws
    from composer.evaluate.guard import undisturbed
    from composer.evaluate.store import Slot
    from composer.options import Ref

    counted = Counted(case.model)
    with undisturbed(counted) as judge:
        found = run_autoattack(judge, case.x, case.y, Draws(case.seed, "evaluate/aa"), 250, lambda *_: None, Slot(None, ""), version="standard",
                               eps=case.eps, norm=Ref("ball", "linf"), mode=mode, n_queries=case.queries, n_iter=case.iterations)
    return found.values, counted.calls - 1


def compare(case: Case, timed: bool = True) -> tuple[dict[str, Any], Timing | None]:
    """Flags, passes and, over the case's rounds, times of the three; the first round's answers are the ones compared."""
    answers: dict[str, tuple[Tensor, int]] = {}

    def run(name: str) -> None:
        found = direct(case) if name == "library" else ours(case, name)
        answers.setdefault(name, found)

    names = ("library", "exact", "fast")
    if timed:
        timing = interleave({name: lambda name=name: run(name) for name in names}, rounds=case.rounds, base="library", warmup=0, again=False)  # type: ignore[misc]
    else:
        timing = None
        for name in names:
            run(name)
    flags, forwards = answers["library"]
    record = {"model": case.name, "images": len(case.y), "iterations": case.iterations, "queries": case.queries, "seed": case.seed,
              "standing": {name: int(found.sum()) for name, (found, _) in answers.items()},
              "differ": {name: int((answers[name][0] != flags).sum()) for name in names[1:]},
              "forwards": {"library": forwards, "exact": answers["exact"][1]}}
    if timing:
        record |= {"over_library": {name: {"time": timing.over(name, "library"), "processor": timing.over(name, "library", processor=True)} for name in names[1:]},
                   "timing": timing.as_dict()}
        record["holds"] = _holds(record)
    return record, timing


def _holds(record: dict[str, Any]) -> dict[str, bool]:
    """By the clock, or by processor time where other programs made the clock useless."""
    which = "processor" if record["timing"]["noisy"] else "time"
    ratio = {name: record["over_library"][name][which] for name in ("exact", "fast")}
    few = max(1, int(DIFFERENT * record["images"]))
    return {"exact": record["differ"]["exact"] == 0 and record["forwards"]["exact"] == record["forwards"]["library"] and ratio["exact"] <= EXACT,
            "fast": record["differ"]["fast"] <= few and 1 / ratio["fast"] >= FASTER}


def text(record: dict[str, Any], timing: Timing) -> str:
    """For reading: the table of times, then what was held against what."""
    ratio, differ, forwards = record["over_library"], record["differ"], record["forwards"]
    verdict = ", ".join(f"{name} {'holds' if held else 'DOES NOT HOLD'}" for name, held in record["holds"].items())
    return "\n".join([
        "", f"{record['model']}: {record['images']} images, {record['standing']['library']} stand; {record['iterations']} iterations, {record['queries']} queries",
        timing.text(machine=False),
        (f"exact: {differ['exact']} flags differ, {forwards['exact']} of {forwards['library']} forward passes, {ratio['exact']['time']:.3f} times the library's "
        f"time (processor time {ratio['exact']['processor']:.3f}; limit {EXACT})"),
        f"fast: {differ['fast']} flags differ, {1 / ratio['fast']['time']:.2f} times as fast (by processor time {1 / ratio['fast']['processor']:.2f}; at least {FASTER})",
        f"load of others {timing.machine.get('load_of_others')}; {verdict}"])


# -- the models --------------------------------------------------------------------------------------------------------------------------------


def digits(out: Path, epochs: int = 8) -> Case:
    """The small network of the digits bench, trained against PGD-5 at eps 0.2."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.tensor(raw.images, dtype=torch.float32).div(16).unsqueeze(1)
    y = torch.tensor(raw.target, dtype=torch.int64)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:1600]
    model = trained("digits", out, (1, 8, 8), x[train], y[train], 0.2, epochs)
    return Case("digits", model, x[test].contiguous(), y[test], 0.2, queries=1000)


def cifar10_tiny(out: Path, root: Path, epochs: int = 3) -> Case:
    """The same network on 2,000 images of CIFAR-10, trained against PGD-5 at eps 8/255."""
    (x, y), (xt, yt) = _cifar(root, 2000, 200)
    return Case("cifar10-tiny", trained("cifar10-tiny", out, (3, 32, 32), x, y, 8 / 255, epochs), xt, yt, 8 / 255, iterations=30, queries=500, rounds=3)


def example(root: Path) -> Case:
    """The ResNet-18 that the library ships: trained normally, every image falls to the first attack."""
    import pyautoattack
    from pyautoattack.examples.resnet import ResNet18

    net = ResNet18()
    net.load_state_dict(torch.load(Path(pyautoattack.__file__).parent / "examples" / "model_test.pt", weights_only=True, map_location="cpu"))
    _, (x, y) = _cifar(root, 1, 24)
    return Case("pyautoattack-example", net.eval(), x, y, 8 / 255, iterations=10, queries=300, rounds=3)


def _cifar(root: Path, train: int, test: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    from composer.data.sets import load

    found = load("cifar10", {}, root)
    return tuple((part.x[:n].float() / found.scale, part.y[:n].long()) for part, n in ((found.train, train), (found.test, test)))  # type: ignore[return-value]


def trained(name: str, out: Path, shape: tuple[int, int, int], x: Tensor, y: Tensor, eps: float, epochs: int) -> nn.Module:
    """From <out>/<name>-<epochs>.safetensors where that lies, else trained and kept there."""
    from safetensors.torch import load_file, save

    from composer.atomic import write_bytes
    from composer.models.build import build_model
    from composer.options import Ref
    from composer.recipe.load import catalogue
    from composer.recipe.types import ModelSpec

    catalogue()
    net = build_model(ModelSpec("small_cnn", {}, Ref("head", "linear", {})), shape, 10, 0)
    file = out / f"{name}-{epochs}.safetensors"
    if file.is_file():
        net.load_state_dict(load_file(file))
    else:
        train(net, x, y, eps, epochs)
        write_bytes(file, save({key: value.contiguous() for key, value in net.state_dict().items()}))
    return net.eval()


def train(net: nn.Module, x: Tensor, y: Tensor, eps: float, epochs: int, steps: int = 5) -> nn.Module:
    """Adversarial training by PGD: batch 100, SGD 0.05 with momentum 0.9, gradients clipped at 1, everything drawn from one seed."""
    optim = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=generator).split(100):
            xb, yb = x[rows], y[rows]
            net.eval()
            point = (xb + eps * (2 * torch.rand(xb.shape, generator=generator) - 1)).clamp(0, 1)
            for _ in range(steps):
                point.requires_grad_()
                (grad,) = torch.autograd.grad(nn.functional.cross_entropy(net(point), yb), point)
                point = (xb + (point.detach() + 2 * eps / steps * grad.sign() - xb).clamp(-eps, eps)).clamp(0, 1)
            net.train()
            optim.zero_grad()
            nn.functional.cross_entropy(net(point), yb).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optim.step()
    optim.zero_grad()
    return net.eval()


NAMES = ("digits", "cifar10-tiny", "pyautoattack-example")


def cases(names: tuple[str, ...], out: Path, data_root: Path, full: bool = False) -> list[Case]:
    """Models by name, trained where they are not there yet. Errors: ComposerError where CIFAR-10 is not there."""
    made = {"digits": lambda: digits(out), "cifar10-tiny": lambda: cifar10_tiny(out, data_root), "pyautoattack-example": lambda: example(data_root)}
    found = [made[name]() for name in names]
    if full:
        (_, whole) = _cifar(data_root, 1, 200) if any(name != "digits" for name in names) else ((), ())
        found = [replace(case, **({} if case.name == "digits" else {"x": whole[0], "y": whole[1]}), iterations=100, queries=5000, rounds=3) for case in found]
    return found


def bench_attacks(names: tuple[str, ...] = NAMES, *, out: Path, data_root: Path, full: bool = False, rounds: int | None = None, threads: int = 1,
                  say: Say = lambda line: None) -> dict[str, Any]:
    """The report as plain data, a line a model in <out>/attacks.jsonl; `say` is told it model by model."""
    if unknown := [name for name in names if name not in NAMES]:
        raise ComposerError(f"no model '{unknown[0]}'", where="--models", fix=f"one of {', '.join(NAMES)}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        report: dict[str, Any] = {"machine": machine(), "cases": []}
        say(", ".join(f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}" for name, value in report["machine"].items()))
        for case in cases(names, out, data_root, full):
            record, timing = compare(case if rounds is None else replace(case, rounds=rounds))
            assert timing is not None
            report["cases"].append(record)
            say(text(record, timing))
            report["machine"]["load_after"] = machine()["load"]
            lines = (json.dumps({**case, "machine": report["machine"]}) + "\n" for case in report["cases"])
            atomic.write_text(out / "attacks.jsonl", "".join(lines))
        return report
    finally:
        torch.set_num_threads(before)


def holds(report: dict[str, Any]) -> bool:
    """Whether every model's flags and forwards are as they must be."""
    return all(all(case["holds"].values()) for case in report["cases"])
