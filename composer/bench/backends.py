"""Does every backend compute what the eager one does? One step from one state, held against it piece by piece.

The eager backend climbs first; the others are then asked at the points it stood at, since a sign turns rounding into whole steps and end points of
attacks cannot be compared. Compared are: every look of an inner maximum (objective and gradients by the images, or by the weights), and at the end
points it found: the terms, the gradients of all parameters, and the batch statistics handed out. In float64 everything must agree to 1e-9, every
tensor by itself. In float32 to 1e-5, or to ten times what the eager backend itself strays at these points: from its own result in float64, and when
its images move by a rounding. For a pre-activation near zero passes a rectifier's kink on either side, and then an image's whole gradient moves; so
images are compared one by one there, and all but a tenth of them must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from composer.bench.machine import machine
from composer.bench.nets import SHAPES, batch, net
from composer.bench.subject import Subject, load_like_plain, numerics
from composer.engine.backend import NAMES, Backend, Work, compiler, resolve
from composer.errors import ComposerError, suggest
from composer.inner.ascent import Ascent
from composer.seeds import stream_seed

RECIPES = ("at", "trades", "mart_ours", "at_rice", "awp_trades", "igr_at")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
STRAYS = 10.0
KINKS = 0.1         # share of a batch's images that may differ by more in float32
NUDGE = 1e-7        # of the pixel range
STEPS = 3
PIECES = ("looks", "losses", "gradients", "statistics")
Found = dict[str, list[Tensor]]
Say = Callable[[str], None]


class Script:
    """What the eager backend did in its inner maxima: where it looked, and what it made of it."""

    def __init__(self) -> None:
        self.looks: dict[str, list[dict[str, Any]]] = {}
        self.made: dict[str, dict[str, Any]] = {}


def backends(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """Those that this machine can run, without the truth itself."""
    device = torch.device(device)
    if device.type == "cuda":
        return ("compiled", "graph", "compiled-graph")
    return ("folded", "compiled") if compiler(device) else ("folded",)


def known(names: Sequence[str], device: torch.device | str) -> None:
    """Errors: ComposerError where a name is none of a backend's, or the machine cannot run it."""
    for name in names:
        if name not in NAMES:
            raise ComposerError(f"unknown backend '{name}'", where="--backend", fix=suggest(name, NAMES, "backends"))
        resolve(name, torch.device(device), lambda: Work(0.0, 0, 0, False, False))


def check(recipes: Sequence[str] = RECIPES, *, names: Sequence[str] = (), net_name: str = "small_cnn", n: int = 16,
          device: torch.device | str = "cpu", lower: Any = None, say: Say = lambda line: None) -> dict[str, Any]:
    """Every backend against eager on every recipe, float64 first, as plain data with a verdict `ok`. `lower`: what stands in for the compiler."""
    if lower is None:
        known(names, device)
    rows = []
    say(f"{'recipe':18} {'backend':15} {'':8} {'input gradients':>16} {'losses':>9} {'gradients':>10} {'statistics':>11}")
    for recipe in recipes:
        for dtype in (torch.float64, torch.float32):
            with numerics("fp32"):
                look = partial(observe, recipe, net_name=net_name, n=n, device=device)
                eager = look("eager", dtype, write=(script := Script()))
                allowed = tolerances(look, eager, script, dtype)
                for name in names or backends(device):
                    notes: list[str] = []
                    rows.append(row(recipe, name, dtype, eager, look(name, dtype, read=script, lower=lower, notes=notes), allowed, notes))
                    say(text(rows[-1]))
    return {"machine": machine(device), "net": net_name, "batch": n, "rows": rows, "ok": all(r["ok"] for r in rows)}


def tolerances(look: Callable[..., Found], eager: Found, script: Script, dtype: torch.dtype) -> dict[str, float]:
    """What is allowed for each piece."""
    if dtype == torch.float64:
        return dict.fromkeys(eager, TOLERANCE[dtype])
    others = [look("eager", torch.float64, read=script), *(look("eager", dtype, read=script, nudge=sign * NUDGE) for sign in (-1, 1))]
    return {key: max(TOLERANCE[dtype], *(STRAYS * apart(key, other[key], eager[key]) for other in others)) for key in eager}


def row(recipe: str, name: str, dtype: torch.dtype, eager: Found, got: Found, allowed: dict[str, float], notes: list[str]) -> dict[str, Any]:
    """One backend's distances from eager, piece by piece, with what is allowed."""
    found = {key: apart(key, got[key], eager[key]) for key in eager}
    return {"recipe": recipe, "backend": name, "dtype": str(dtype).removeprefix("torch."), "apart": found, "allowed": allowed, "notes": notes,
            "ok": all(found[key] <= allowed[key] for key in eager)}


def apart(piece: str, got: list[Tensor], want: list[Tensor]) -> float:
    """The largest distance of a pair of tensors, over the wanted one's length (or a thousandth of the longest's). Infinite where shapes part."""
    if len(got) != len(want) or any(g.shape != w.shape or not bool(torch.isfinite(g).all()) for g, w in zip(got, want, strict=True)):
        return float("inf")
    if got and piece == "looks" and want[0].dtype == torch.float32:
        longest = {shape: max(float(_rows(w).norm(dim=1).max()) for w in want if w.shape == shape) for shape in {w.shape for w in want}}
        return max(_by_image(g.double(), w.double(), longest[w.shape]) for g, w in zip(got, want, strict=True))
    floor = 1e-3 * max((float(w.double().norm()) for w in want), default=0.0)
    lengths = [max(float(w.double().norm()), floor, torch.finfo(w.dtype).tiny) for w in want]
    return max((float((g.double() - w.double()).norm()) / length for g, w, length in zip(got, want, lengths, strict=True)), default=0.0)


def _by_image(got: Tensor, want: Tensor, longest: float) -> float:
    """The distance that all but a few images keep, over an image's own length, or a tenth of the longest of such tensors': a divergence has no slope
    at its minimum, where an attack begins, and there only rounding is left."""
    got, want = _rows(got), _rows(want)
    length = want.norm(dim=1).clamp_min(0.1 * longest + 1e-30)
    return float(((got - want).norm(dim=1) / length).quantile(1 - KINKS, interpolation="lower"))


def _rows(t: Tensor) -> Tensor:
    """[N,…] as [N,D] in float64."""
    return t.double().reshape(len(t), -1) if t.dim() else t.double().reshape(1, 1)


def text(r: dict[str, Any]) -> str:
    """A line of the table; ~ marks what is beyond the plain tolerance, where the eager backend strays as far."""
    plain = TOLERANCE[getattr(torch, r["dtype"])]
    cells = [f"{'~' if plain < r['apart'][key] <= r['allowed'][key] else ''}{r['apart'][key]:.1e}" for key in PIECES]
    wrong = [f"{key} {r['apart'][key]:.1e} > {r['allowed'][key]:.1e}" for key in PIECES if not r["apart"][key] <= r["allowed"][key]]
    return (f"{r['recipe']:18} {r['backend']:15} {r['dtype']:8} {cells[0]:>16} {cells[1]:>9} {cells[2]:>10} {cells[3]:>11}"
            + (f"  DISAGREES: {'; '.join(wrong)}" if wrong else ""))


# -- one backend, looked at ------------------------------------------------------------------------------------------------------------------


def observe(recipe: str, name: str, dtype: torch.dtype, *, net_name: str, n: int, device: torch.device | str, write: Script | None = None,
            read: Script | None = None, lower: Any = None, notes: list[str] | None = None, nudge: float = 0.0) -> Found:
    """One step of a recipe on one backend: `write` takes down what the inner maxima did, `read` repeats it, `nudge` pixels away."""
    subject = make(recipe, name, dtype, net_name, n, device, lower)
    trainer = subject.trainer
    executor = trainer.executor
    trainer._set_dials(subject.epoch, 0)
    looks: list[Tensor] = []
    plain = executor._maximiser
    executor._maximiser = lambda inner: taking_down(inner, plain(inner), write) if write else repeating(inner, read, dtype, looks, nudge)
    executor._inner = [executor._inner_op(i) if i.over_weights else executor.net.attack(executor._inner_op(i)) for i in executor.plan.inner]
    total, means, env = executor.forward({**subject.batch.roots(), "model": subject.model}, 0)
    total.backward()
    if write:
        looks = [t for asked in write.looks.values() for look in asked for t in look["seen"]]
    if notes is not None:
        notes += subject.session.backend.notes
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trainer.parameters]
    statistics = [env["stats/" + slot] for slot in dict.fromkeys(executor.plan.updates) if "stats/" + slot in env]
    found = {"looks": looks, "losses": [total.detach(), means], "gradients": grads, "statistics": statistics}
    return {key: [t.detach().clone() for t in tensors] for key, tensors in found.items()}


def make(recipe: str, name: str, dtype: torch.dtype, net_name: str, n: int, device: torch.device | str, lower: Any) -> Subject:
    """The step's state, the same for every backend: weights and running statistics moved off their first values, in the type asked for."""
    if net_name not in SHAPES:
        raise ComposerError(f"unknown network '{net_name}'", where="--net", fix=suggest(net_name, SHAPES, "networks"))
    x, y = batch(net_name, n)
    model = net(net_name)
    generator = torch.Generator().manual_seed(stream_seed(0, "bench/backends"))
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.bias):
                tensor.data.uniform_(-0.2, 0.2, generator=generator)
            for tensor in (module.running_var, module.weight):
                tensor.data.uniform_(0.7, 1.4, generator=generator)
    backend = Backend(name, lower=lower) if lower is not None else Backend(name)
    return Subject(load_like_plain(recipe, steps=STEPS), model.to(dtype).to(device), x.to(dtype).to(device), y.to(device), backend=backend)


def taking_down(inner: Any, fn: Callable[..., dict[str, Any]], script: Script) -> Callable[..., dict[str, Any]]:
    """The maximiser itself, watched."""
    looks = script.looks.setdefault(inner.id, [])

    def run(x: Any, climb: Callable[..., Ascent], *args: Any, **options: Any) -> dict[str, Any]:
        def watched(**asked: Any) -> Ascent:
            seen = climb(**asked)
            looks.append({"asked": {k: still(v, x) for k, v in asked.items()}, "seen": tensors_of(seen)})
            return seen

        made = fn(x, watched, *args, **options)
        script.made[inner.id] = {k: still(v, x) for k, v in made.items()}
        return made

    return run


def repeating(inner: Any, script: Script | None, dtype: torch.dtype, found: list[Tensor], nudge: float) -> Callable[..., dict[str, Any]]:
    """Looks where the script looked and makes what it made."""
    assert script is not None

    def again(value: Any, x: Any) -> Any:
        if isinstance(value, dict):
            return {name: x[name] + move.to(x[name]) for name, move in value.items()}
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value.to(dtype) + (nudge if value.dim() == 4 else 0.0)

    def run(x: Any, climb: Callable[..., Ascent], *_: Any, **options: Any) -> dict[str, Any]:
        for look in script.looks[inner.id]:
            found.extend(tensors_of(climb(**{k: again(v, x) for k, v in look["asked"].items()})))
        return {k: again(v, x) for k, v in script.made[inner.id].items()}

    return run


def still(value: Any, x: Any) -> Any:
    """A copy; of weights, how far they are from where they began."""
    if isinstance(value, dict):
        return {name: (w - x[name]).detach() for name, w in value.items()}
    return value.detach().clone() if isinstance(value, Tensor) else value


def tensors_of(seen: Ascent) -> list[Tensor]:
    """Objective, gradients and logits."""
    gradients = [t for g in seen.grads.values() for t in (g.values() if isinstance(g, dict) else [g])]
    return [t.detach().clone() for t in (seen.objective, *gradients, *seen.tensors.values())]
