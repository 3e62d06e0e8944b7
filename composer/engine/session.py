"""Everything one run needs, built once: data, network, plans of all stretches with their keys, streams."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from composer.engine import chain, keys
from composer.engine.backend import Work, backend_of, sources, work_of
from composer.engine.chain import Node
from composer.engine.feed import Feed, steps_in
from composer.engine.net import Net
from composer.engine.streams import Streams
from composer.engine.trained import networks, together
from composer.errors import ComposerError
from composer.options import Ref
from composer.plan.whole import place, plans_of
from composer.recipe.types import Segment
from composer.registry import REGISTRY
from composer.seeds import stream_seed


def seconds_of(variable: str, default: float) -> float:
    """A number of seconds from the environment."""
    text = os.environ.get(variable, "").strip()
    try:
        return float(text) if text else default
    except ValueError:
        raise ComposerError(f"{variable}={text}", where="environment", fix="a number of seconds, such as 120") from None


@dataclass(frozen=True)
class Settings:
    """How to run, as the command line says it; nothing of what is meant."""

    out: Path = Path("runs")
    data_root: Path = Path("data")
    download: bool = False
    device: str = "auto"
    precision: str = "fp32"
    backend: str = "eager"
    deterministic: bool = False
    fresh: bool = False
    adopt: bool = False
    quiet: bool = False
    track: bool = True
    checkpoint_seconds: float = field(default_factory=lambda: seconds_of("COMPOSER_CHECKPOINT_SECONDS", 120.0))
    full_other: bool = False                 # evaluate the unselected model by the whole protocol too
    share: bool = True                       # go on from epochs that another run has trained
    micro_batch: str | int = "whole"         # whole, auto, or images a piece (engine.micro)
    workers: int = 1                         # data-parallel processes (engine.fleet)
    sync_bn: bool = False                    # with several workers: batch norm over the rows of all of them
    address: str = ""                        # of a Ray cluster that is there; "": the workers run on this machine
    data_on: str = "auto"                    # where the training images lie: device, host, disk (engine.images)
    pack: str = ""                           # "3 of 16": the run's place in a pack of runs trained together (engine.pack); "": it is trained alone
    beside: str = ""                         # a digest of the recipes in all seats of the pack (engine.pack_fit); "": they are one
    stop_file: str = ""                      # a file that asks for a stop as SIGTERM does, where signals do not reach

    @property
    def variant(self) -> str:
        """What makes this another experiment than the recipe's, or another computation of it: the precision, a divided batch, a backend. It stands in
        the name of the run's record.
        A run that shares nothing is a record of its own too: it is there to be compared."""
        backend = "" if self.backend == "eager" or self.workers > 1 else f"-{self.backend}"
        return self.precision + ("" if self.micro_batch == "whole" else f"-micro-{self.micro_batch}") + backend + ("" if self.share else "-alone")


class Session:
    """The built run."""

    def __init__(self, recipe: Any, seed: int, settings: Settings, dataset: Any = None):
        """`dataset`: the recipe's, where another run of this process has loaded it."""
        from composer.data.sets import hold_out, load
        from composer.models.build import build_model
        from composer.models.weights import load_weights

        self.recipe, self.seed, self.settings = recipe, seed, settings
        self.device = pick_device(settings.device)
        set_numerics(settings)
        self.dataset = dataset if dataset is not None else load(recipe.data.use, recipe.data.options, settings.data_root, settings.download,
                                                                        {"auto": "auto", "disk": "disk"}.get(settings.data_on, "memory"))
        select = recipe.select
        if select.held_out >= len(self.dataset.train):
            raise ComposerError(f"select.held_out = {select.held_out} leaves nothing to train on ({len(self.dataset.train)} images)", where=place(recipe)("select.held_out"),
                                fix="hold out fewer")
        self.rows, self.val_rows = hold_out(self.dataset.train.y, select.held_out, select.stratified, seed)
        model = build_model(recipe.model, self.dataset.shape, self.dataset.classes, seed)
        self.init_note = ""
        if recipe.train.init:
            self.init_note = load_weights(model, resolve_init(recipe.train.init, settings.out)).text()
        self.net = Net(model, self.device, seed=seed, precision=settings.precision)
        self.streams = Streams(seed, self.device)
        self.backend = backend_of(settings.backend, self.device, self._work)
        self.settings = replace(settings, backend=self.backend.name)                # `auto` is settled before any key is made
        self.guests: dict[str, tuple[str, ...]] = {}          # passive parts of other runs that are trained along -> their points
        self.nodes = self._nodes()

    def _work(self) -> Work:
        """What the run amounts to, for the choice of a backend."""
        rows, recipe = len(self.rows), self.recipe
        plans = [(plan, -(-rows // segment.recipe.train.batch_size) * (segment.last - segment.first + 1))
                 for segment, plan in plans_of(recipe, share=not self.net.stochastic)]
        return work_of(plans, self.net, self.dataset.shape, self.dataset.classes, recipe.train.batch_size)

    # -- nodes ---------------------------------------------------------------------------------------------------------------------

    def _nodes(self) -> list[Node]:
        init = self.init_digest() if self.recipe.train.init else None
        nodes = chain.stretches(self.recipe, self.ground(init), self.settings.out)
        return chain.grow(nodes, chain.root(self.seed, init), self.folder, self.mark)

    @property
    def folder(self) -> Path:
        return self.settings.out / "nodes"

    @property
    def mark(self) -> str:
        """A run that shares nothing has folders of its own."""
        return "" if self.settings.share else self.recipe.experiment_id[:8]

    def ground(self, init: str | None) -> chain.Ground:
        rows, out = len(self.rows), self.settings.out
        extra = SimpleNamespace(extra=None if self.dataset.extra is None else True, extra_fraction=getattr(self.dataset, "extra_fraction", 0.0))
        return chain.Ground(
            data=self.dataset.digest, steps=lambda size, keep: steps_in(extra, rows, size, keep), stochastic=self.net.stochastic, init=init,
            file=lambda given, where: keys.file_digest(resolve_init(given, out, where)), machine=machine_of(self.settings, self.device))

    def init_digest(self) -> str:
        from composer.engine.checkpoint import weights_digest

        return weights_digest(self.net.model.state_dict())

    # -- pieces of a stretch -------------------------------------------------------------------------------------------------------

    def feed(self, segment: Segment, path: str = "") -> Feed:
        recipe = segment.recipe
        held = self.__dict__.setdefault("held", {})                       # images and labels on the device, once
        return Feed(self.dataset, self.rows, batch_size=recipe.train.batch_size, streams=self.streams, augment=recipe.augment,
                    keep_last=recipe.train.last == "keep", layout=self.net.layout, device=self.device, path=path, held=held,
                    data_on=getattr(self, "settings", Settings()).data_on)

    def optimizer(self, segment: Segment, parts: dict[str, Any]) -> torch.optim.Optimizer:
        """A fresh optimiser of the network and of those that parts train along; scheduled options get their value before the first step."""
        from composer.optim import parameter_groups

        spec = segment.recipe.optim
        options = {k: (0.0 if hasattr(v, "use") else v) for k, v in spec.options.items()}
        groups = parameter_groups(together(self.net.model, networks(parts)), options.get("weight_decay", 0.0), spec.decay_exclude)
        if hasattr(spec.options.get("weight_decay"), "use"):
            for group, marked in zip(groups, parameter_groups(together(self.net.model, networks(parts)), 1.0, spec.decay_exclude)):
                group["weight_decay_on"] = marked["weight_decay"] > 0         # a schedule moves the decay of these alone
        return REGISTRY.get("optim", spec.use).fn(groups, **options)

    def parts(self, node: Node, held: dict[str, Any]) -> dict[str, Any]:
        """The parts of a stretch: those of the stretch before go on, new ones start."""
        found = {}
        for part in node.plan.parts:
            options = {k: (0.0 if hasattr(v, "ref") else v) for k, v in part.options.items()}
            if part.id in held and getattr(held[part.id], "composer_use", None) == (part.use, repr(options)):
                found[part.id] = held[part.id]
                continue
            made = REGISTRY.get("part", part.use).fn(**options)
            made.composer_use = (part.use, repr(options))
            made.start(self.facts(part.id))
            found[part.id] = made
        return found

    def facts(self, part: str) -> SimpleNamespace:
        points = self.guests.get(part) or tuple(dict.fromkeys(p for n in self.nodes for q in n.plan.parts if q.id == part for p in q.points))
        part = part.partition("~")[0]                           # a guest draws as at home
        return SimpleNamespace(batch_size=self.recipe.train.batch_size, classes=self.dataset.classes, train_size=self._pool(), device=self.device,
                               model=self.net.model, points=points, network=lambda *spec, **more: self.network(part, *spec, **more),
                               net=self.net, batches=lambda epoch: self.batches(part, epoch))

    def batches(self, part: str, epoch: int) -> Iterator[Tensor]:
        """Images of a (1-based) epoch's training batches for a part: the stretch's rows and augmentations, drawn from streams of the part's own."""
        feed = self.feed(next(n.segment for n in self.nodes if n.segment.first <= epoch <= n.segment.last), f"parts.{part}/")
        return (batch.x for batch in feed.batches(epoch, (epoch - 1) * feed.steps))

    def network(self, part: str, spec: Any = None, *, checkpoint: str | None = None, trains: bool = True) -> Net:
        """A network of a part's own: of the architecture `spec` (a model's Ref; None: the run's own), its weights from streams of their own, or
        from `checkpoint`, a file or a finished run. Normalisation is the run's. Errors: one that is not trained and has no checkpoint."""
        from composer.models.build import build_model, load_weights

        model = self.recipe.model
        if spec is not None:
            options = {k: v for k, v in spec.options.items() if k != "head"}
            model = replace(model, use=spec.use, options=options, head=spec.options.get("head", Ref("head", "linear", {})))
        made = build_model(model, self.dataset.shape, self.dataset.classes, stream_seed(self.seed, f"parts.{part}"))
        if not trains and not checkpoint:
            raise ComposerError(f"part '{part}' does not train its network, and is given no weights for it", where=place(self.recipe)(f"parts.{part}"),
                                fix="checkpoint = a file of weights, or the name of a finished run; or train it along")
        if checkpoint:
            load_weights(made, resolve_init(checkpoint, self.settings.out, f"parts.{part}.checkpoint"))
        return Net(made.to(self.net.dtype), self.device, seed=stream_seed(self.seed, f"parts.{part}"), precision=self.net.precision)

    def _pool(self) -> int:
        return len(self.dataset.train) + (len(self.dataset.extra) if self.dataset.extra is not None else 0)

    def images(self, split: str) -> tuple[Tensor, Tensor]:
        """Float images in [0,1] and labels: `test`, or `val` (the held-out rows of train)."""
        if split == "test":
            x, y = self.dataset.test.x, self.dataset.test.y
        else:
            x, y = self.dataset.train.x[self.val_rows], self.dataset.train.y[self.val_rows]
        return x.float() / self.dataset.scale, y


def machine_of(settings: Settings, device: torch.device) -> dict[str, Any]:
    """What of the machine the bits depend on."""
    return {"backend": settings.backend, **sources(settings.backend), "precision": settings.precision, "micro_batch": str(settings.micro_batch),
            "device": device_kind(device),
            "threads": torch.get_num_threads() if device.type == "cpu" else 0, "deterministic": settings.deterministic,
            "workers": settings.workers, "sync_bn": settings.sync_bn and settings.workers > 1,
            **({"packed": settings.pack} if settings.pack else {}), **({"beside": settings.beside} if settings.beside else {})}


def pick_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ComposerError(f"unknown device '{name}'", where="--device", fix="auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ComposerError("no CUDA device is available", where=f"--device {name}", fix="--device cpu")
    return device


def device_kind(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def set_numerics(settings: Settings) -> None:
    """float32 means float32 unless tf32 was asked for."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.precision == "tf32"
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    if settings.deterministic != torch.are_deterministic_algorithms_enabled():      # the call alone imports a compiler, which takes seconds
        torch.use_deterministic_algorithms(settings.deterministic)


def resolve_init(text: str, out: Path, where: str = "train.init") -> Path:
    """`train.init`, or the `checkpoint` of a part: a file, or the name of a finished run in the store."""
    path = Path(text)
    if path.is_file():
        return path
    run = out / "experiments" / text / "final.safetensors"
    if run.is_file():
        return run
    raise ComposerError(f"there is neither a file nor a finished run '{text}'", where=where, why=f"looked for {path} and {run}",
                        fix="give the path of a checkpoint, or the name of a run in the store")
