"""Contracts of parts: what is saved is all there is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from composer._testing.report import need
from composer._testing.static import Static
from composer._testing.tensors import tensors
from composer._testing.values import floats, need_of, options_of, variants
from composer.engine.net import Net as engine_net
from composer.registry import Primitive

ROWS, CLASSES, TRAIN = 8, 4, 40
SHAPE = (2, 3, 3)


class Net(nn.Module):
    """A small model with running statistics, an integer counter and a constant buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(18, 6)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, CLASSES)
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822]))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)

    def embed(self, x: Tensor) -> Tensor:
        return self.norm(self.body(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


def drift(model: nn.Module, step: int) -> None:
    """Stands for one step of training: weights and running statistics move, the counter counts."""
    generator = torch.Generator().manual_seed(1000 + step)
    with torch.no_grad():
        for tensor in (*model.parameters(), model.norm.running_mean, model.norm.running_var):
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.05)
        model.norm.num_batches_tracked.add_(1)


def batches(epoch: int) -> Iterator[Tensor]:
    """Images of an epoch's training batches, the last one smaller."""
    generator = torch.Generator().manual_seed(epoch)
    return (torch.rand(n, *SHAPE, generator=generator) for n in (ROWS, ROWS, 5))


class Life:
    """A part beside a model that drifts; every third batch is smaller, an epoch ends after every third step."""

    def __init__(self, primitive: Primitive, options: dict[str, Any], given: dict[str, Any], model: nn.Module | None = None):
        self.primitive, self.given = primitive, given
        self.model = model if model is not None else Net()
        self.part = primitive.fn(**options)
        self.points = ("clean", "adv") if getattr(primitive.fn, "per_point", False) else ()
        self.part.start(SimpleNamespace(batch_size=ROWS, classes=CLASSES, train_size=TRAIN, device=torch.device("cpu"), model=self.model,
                                        points=self.points, network=lambda spec=None, **more: engine_net(Net(), torch.device("cpu")),
                                        net=engine_net(self.model, torch.device("cpu")), batches=batches))

    def _calls(self, method: str, step: int) -> list[tuple[list[Any], dict[str, str]]]:
        t = tensors(5 if step % 3 == 2 else ROWS, CLASSES, step, torch.float32, SHAPE)
        t["i"] = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(step))[: len(t["y"])]
        t["model"] = self.model
        rows: list[tuple[list[Any], dict[str, str]]] = []
        for point in self.points or ("adv",):
            plain = {name: t[f"{point}_{name}"] for name in ("logits", "probs", "logp", "features")}
            args = [self.given.get(n.name, need_of(n, t | plain)) for n in self.primitive.method_needs(method)]
            rows.append((args, {"point": point} if self.points else {}))
        return rows

    def read(self, step: int, grad: bool = False) -> list[dict[str, Tensor]]:
        if not hasattr(self.part, "read"):
            return []
        calls = self._calls("read", step)
        lead = [[a.requires_grad_() if grad and isinstance(a, Tensor) and a.is_floating_point() else a for a in args] for args, _ in calls]
        return [self.part.read(*args, **rest) for args, (_, rest) in zip(lead, calls)]

    def step(self, step: int) -> list[dict[str, Tensor]]:
        out = [{k: v.detach().clone() for k, v in each.items()} for each in self.read(step)]
        drift(self.model, step)
        if hasattr(self.part, "after_step"):
            for args, rest in self._calls("after_step", step):
                self.part.after_step(*args, **rest)
        if step % 3 == 2 and hasattr(self.part, "epoch_end"):
            self.part.epoch_end(self.model, epoch=step // 3 + 1)
        return out

    def everything(self) -> dict[str, Tensor]:
        weights = self.part.weights() if hasattr(self.part, "weights") else {}
        return {**{f"state {k}": v for k, v in self.part.state_dict().items()}, **{f"model {k}": v for k, v in self.model.state_dict().items()},
                **{f"weights {k}": v for k, v in weights.items()}}


def _same(a: dict[str, Tensor], b: dict[str, Tensor], said: str) -> None:
    need(a.keys() == b.keys(), f"{said}: the tensors are {sorted(a)} and {sorted(b)}")
    for name, value in a.items():
        need(torch.equal(value, b[name]), f"{said}: '{name}' differs")


def resumes(primitive: Primitive, options: dict[str, Any], given: dict[str, Any]) -> None:
    """Saved within and at the end of an epoch, loaded into a new part and continued, it equals the one that went on, bit for bit."""
    for stop in (4, 6):
        one = Life(primitive, options, given)
        for step in range(stop):
            one.step(step)
        saved = {name: tensor.detach().clone() for name, tensor in one.part.state_dict().items()}
        two = Life(primitive, options, given, copy.deepcopy(one.model))
        two.part.load_state_dict(saved)
        for step in range(stop, stop + 7):
            for a, b in zip(one.step(step), two.step(step), strict=True):
                _same(a, b, f"read at step {step} after resuming at {stop}")
            _same(one.everything(), two.everything(), f"after step {step}, resumed at {stop}")


def in_place(primitive: Primitive, options: dict[str, Any], given: dict[str, Any]) -> None:
    """State is allocated in `start`, holds no graph, and stays where it is."""
    life = Life(primitive, options, given)
    state = life.part.state_dict()
    need(all(isinstance(v, Tensor) for v in state.values()), "state_dict must hold tensors only")
    at = {name: tensor.data_ptr() for name, tensor in state.items()}
    for step in range(7):
        life.read(step, grad=True)
        life.step(step)
    life.part.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()})
    after = life.part.state_dict()
    need(after.keys() == at.keys(), "the names in state_dict change over time")
    moved = [name for name, tensor in after.items() if tensor.data_ptr() != at[name]]
    need(not moved, f"{', '.join(moved)} is not written in place")
    need(not any(tensor.requires_grad for tensor in after.values()), "the state carries a graph; detach what is stored")


def static(primitive: Primitive, options: dict[str, Any], given: dict[str, Any]) -> None:
    """`read` and `after_step` read no value in Python, and no shape depends on one."""
    life = Life(primitive, options, given)
    for method in ("read", "after_step"):
        calls = life._calls(method, 0) if hasattr(life.part, method) else []
        for args, rest in calls:
            with Static():
                getattr(life.part, method)(*args, **rest)


def leaves_the_model(primitive: Primitive, options: dict[str, Any], given: dict[str, Any]) -> None:
    """A part that does not say `writes_model` never changes the model."""
    life, plain = Life(primitive, options, given), Net()
    for step in range(7):
        life.step(step)
        drift(plain, step)
    _same(life.model.state_dict(), plain.state_dict(), "it changes the model and says writes_model = False")


def attributes(primitive: Primitive, options: dict[str, Any], given: dict[str, Any]) -> None:
    """Options are attributes (so a schedule can write them), and `read` gives what `makes` says."""
    part = primitive.fn(**options)
    missing = [o.name for o in primitive.options if not hasattr(part, o.name)]
    need(not missing, f"options {', '.join(missing)} are not attributes of the same name")
    life = Life(primitive, options, given)
    for each in life.read(0):
        need(set(each) == set(getattr(primitive.fn, "makes", ())), f"read gives {sorted(each)}, makes says {sorted(primitive.fn.makes)}")


def dials(primitive: Primitive, options: dict[str, Any], given: dict[str, Any]) -> None:
    """A float option and the same number as a 0-dim tensor give the same."""
    number = Life(primitive, options, given)
    dial = Life(primitive, options, given)
    for name in floats(primitive, options):
        setattr(dial.part, name, torch.tensor(options[name], dtype=torch.float64))
    for step in range(7):
        for a, b in zip(number.step(step), dial.step(step), strict=True):
            need(all(torch.allclose(a[k], b[k].to(a[k].dtype), rtol=1e-5, atol=1e-6) for k in a), "read differs with 0-dim tensors as options")
    a, b = number.everything(), dial.everything()
    need(all(torch.allclose(a[k].double(), b[k].double(), rtol=1e-5, atol=1e-6) for k in a), "the state differs with 0-dim tensors as options")


def neutral(primitive: Primitive, options: dict[str, Any], given: dict[str, Any]) -> None:
    """At its neutral value a part gives back what it read, judges the live weights and leaves the model alone."""
    for option, value in primitive.flags["neutral"].items():
        life, plain = Life(primitive, options | {option: value}, given), Net()
        said = f"{option} = {value} is declared neutral, yet"
        for step in range(7):
            seen = [args[0] for args, _ in life._calls("read", step)] if hasattr(life.part, "read") else []
            for current, made in zip(seen, life.step(step), strict=True):
                need(all(torch.equal(v, current) for v in made.values()), f"{said} read differs from what it was given")
            drift(plain, step)
        _same(life.model.state_dict(), plain.state_dict(), f"{said} the model changes")
        if hasattr(life.part, "weights"):
            live = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
            _same(life.part.weights(), live, f"{said} its weights are not the live ones")


def divides(primitive: Primitive, options: dict[str, Any], given: dict[str, Any]) -> None:
    """Rows of a batch read what they would read among the others: batches are divided among micro-batches and workers."""
    life = Life(primitive, options, given)
    for step in range(4):
        life.step(step)
    for args, rest in life._calls("read", 4):
        rows = next((len(a) for a in args if isinstance(a, Tensor) and a.ndim), 0)
        whole, found = life.part.read(*args, **rest), []
        for first, stop in ((0, 3), (3, rows)):
            if hasattr(life.part, "offset"):
                life.part.offset = first
            found.append(life.part.read(*(a[first:stop] if isinstance(a, Tensor) and a.ndim and len(a) == rows else a for a in args), **rest))
        if hasattr(life.part, "offset"):
            life.part.offset = 0
        for name, value in whole.items():
            if value.ndim and len(value) == rows:
                need(torch.allclose(value, torch.cat([each[name] for each in found]), rtol=1e-5, atol=1e-6),
                     "what a row reads depends on where it stands among the rows given; a part that remembers by place in the batch needs an attribute "
                     "`offset` (0 at first), the batch's row that the rows given begin with")


def checks(primitive: Primitive, given: dict[str, Any], needs: dict[str, Any]) -> dict[str, Callable[[], None]]:
    usual = options_of(primitive, given)
    listed = {"attributes": attributes, "resume": resumes, "in place": in_place, "static": static}
    if not getattr(primitive.fn, "writes_model", False):
        listed["leaves the model"] = leaves_the_model
    if hasattr(primitive.fn, "read") and not hasattr(primitive.fn, "network"):
        listed["divides"] = divides
    found: dict[str, Callable[[], None]] = {name: _each(check, primitive, given, needs) for name, check in listed.items()}
    if floats(primitive, usual):
        found["dial"] = lambda: dials(primitive, usual, needs)
    if primitive.flags.get("neutral"):
        found["neutral"] = lambda: neutral(primitive, usual, needs)
    return found


def _each(check: Callable[..., None], primitive: Primitive, given: dict[str, Any], needs: dict[str, Any]) -> Callable[[], None]:
    def run() -> None:
        for word, options in variants(primitive, given):
            try:
                check(primitive, options, needs)
            except Exception as error:
                error.args = (f"{word}{error.args[0] if error.args else ''}", *error.args[1:])
                raise
    return run
