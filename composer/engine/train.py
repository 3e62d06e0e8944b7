"""Training one stretch of epochs: steps, epoch ends, checkpoints, validation. Stops cleanly, resumes at any step."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from composer.engine import checkpoint
from composer.engine.backend import tail_of
from composer.engine.checkpoint import Saved
from composer.engine.dials import Clock, evaluate
from composer.engine.lock import Lock
from composer.engine.meter import Meter
from composer.engine.micro import Micro
from composer.engine.peak import peak_bytes, reset_peak
from composer.engine.session import Node, Session, Settings
from composer.engine.trained import group_names, networks, renumber
from composer.errors import ComposerError, Diverged, Stopped
from composer.plan.whole import scheduled


@dataclass
class Progress:
    """Where training stands; all of it is in every checkpoint."""

    epoch: int = 0            # epochs completed, of the whole run
    batch: int = 0            # batches done of the next one
    step: int = 0             # steps done
    judged: int = 0           # epochs validated
    best: dict[str, Any] = field(default_factory=dict)     # epoch, score, file of the best model so far
    seconds: float = 0.0      # spent training, over all sittings
    micro: int = 0            # images a piece of the batch has since memory ran out; 0: it never did
    halved: list[dict[str, Any]] = field(default_factory=list)      # when it did
    peak: int = 0             # most bytes held while training (engine.peak)


class Trainer:
    """One node at work. `hooks` is told what happens: epoch_done(metrics), step_done(), stop_asked() -> str."""

    def __init__(self, session: Session, node: Node, progress: Progress, parts: dict[str, Any], optimizer: torch.optim.Optimizer, hooks: Any):
        self.session, self.node, self.progress, self.hooks = session, node, progress, hooks
        self.recipe, self.net, self.plan = node.segment.recipe, session.net, node.plan
        self.parts, self.optimizer = parts, optimizer
        self.feed = session.feed(node.segment)
        self.meter = Meter(node.plan, session.device)
        self.executor = session.backend.executor(node.plan, session.net, parts, session.streams, threat_eps=self.recipe.threat.eps, keep=self.meter.reads,
                                                 tail=tail_of(self.feed))
        self.values = {**{d.path: d.ref for d in node.plan.dials}, **scheduled(self.recipe)}
        self.on_cpu = session.device.type == "cpu"
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.others = networks(parts)
        self.names = group_names(optimizer, session.net.model, self.others)
        self.micro = Micro(self, getattr(session, "settings", Settings()).micro_batch)
        self._saved_at = time.monotonic()
        self._steps, self._images, self._stepping = 0, 0, 0.0      # of the epoch, in this sitting

    # -- the loop ------------------------------------------------------------------------------------------------------------------

    def run(self, lock: Lock) -> None:
        """Train to the end of the stretch; afterwards the node's checkpoint is its last state."""
        p, segment = self.progress, self.node.segment
        self._check_steps()
        reset_peak(self.session.device)
        began = time.monotonic()
        before = p.seconds
        if p.judged < p.epoch and p.batch == 0 and p.epoch >= segment.first:
            self._judge(p.epoch)
        for epoch in range(p.epoch + 1, segment.last + 1):
            for batch in self.feed.batches(epoch, p.step, p.batch):
                at = time.monotonic()
                self._step(batch, epoch)
                self._stepping += time.monotonic() - at
                self._steps, self._images = self._steps + 1, self._images + len(batch.y)
                lock.beat()
                p.seconds = before + time.monotonic() - began
                self.hooks.step_done(epoch, p.batch, self.feed.steps)
                reason, due = self._asked()
                if reason:
                    self._check_finite(epoch)
                    self.save()
                    raise stopped(reason, f"in epoch {epoch}, after step {p.step}", "a checkpoint was written")
                if due:
                    self._check_finite(epoch)
                    self.save()
            self._check_finite(epoch)
            self._end_epoch(epoch)
            if epoch == segment.last:
                if self.node.ends:
                    self.executor.moments("phase_end", self._roots(epoch))
                    self.net.project()
                self.save()
            self._judge(epoch)
        self.save()

    def _asked(self) -> tuple[str, bool]:
        """A reason to stop, or ''; and whether a checkpoint is due."""
        return self.hooks.stop_asked(), time.monotonic() - self._saved_at > self.session.settings.checkpoint_seconds

    def _step(self, batch: Any, epoch: int) -> None:
        p, ex = self.progress, self.executor
        self._set_dials(epoch, p.batch)
        total, means, env = self.micro.gradients(batch, lambda: self._whole(batch))
        self._check_loss(total, means, epoch)
        if self.recipe.optim.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.optim.clip)
        if self.recipe.optim.decay_at == "perturbed" and "weights" in env:
            self._decay_at_perturbed(env["weights"])                  # decay is not part of the gradient that is clipped
        self.optimizer.step()
        self.net.project()
        self.optimizer.zero_grad(set_to_none=True)
        ex.write_statistics(env)
        self.micro.after(env, len(batch.y))
        ex.moments("after_step", env)
        self.meter.add(means, env, batch.y)
        p.step += 1
        p.batch += 1

    def _whole(self, batch: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """The gradients of the undivided batch, the sum of the terms, their means, and what is read later."""
        total, means, env = self.executor.forward({**batch.roots(), "model": self.net.model}, self.progress.step)
        self.executor.forget(env, self.meter.reads)
        self._backward(total)
        return total.detach(), means, env

    def _backward(self, total: Tensor) -> None:
        total.backward()

    def _decay_at_perturbed(self, overlay: dict[str, Tensor]) -> None:
        """decay · perturbation onto the gradient: what updating at the perturbed weights does."""
        decay = {id(p): g.get("weight_decay", 0.0) for g in self.optimizer.param_groups for p in g["params"]}
        for name, p in self.net.parameters.items():
            if p.grad is not None and decay.get(id(p)):
                p.grad.add_((overlay[name] - p).detach(), alpha=decay[id(p)])

    def _end_epoch(self, epoch: int) -> None:
        p = self.progress
        self._set_dials(epoch, self.feed.steps - 1)
        self.executor.moments("epoch_end", self._roots(epoch))
        self.net.project()
        p.epoch, p.batch = epoch, 0

    def _roots(self, epoch: int) -> dict[str, Any]:
        return {"model": self.net.model, "epoch": epoch}

    def clock(self, epoch: int, batch: int) -> Clock:
        at = epoch - self.node.segment.clock
        return Clock(at, (at - 1) * self.feed.steps + batch, self.feed.steps, self.node.segment.epochs)

    def _set_dials(self, epoch: int, batch: int) -> None:
        clock = self.clock(epoch, batch)
        for dial in self.plan.dials:
            self.executor.numbers.set(dial.path, evaluate(dial.ref, clock, self.values.__getitem__, path=dial.path))
        self.set_rates(self.optimizer, epoch, batch)

    def set_rates(self, optimizer: torch.optim.Optimizer, epoch: int, batch: int) -> None:
        """Learning rate and scheduled options, as they stand at a batch of an epoch."""
        clock = self.clock(epoch, batch)
        lr = evaluate(self.recipe.train.lr, clock, self.values.__getitem__, path="train.lr")
        for group in optimizer.param_groups:
            group["lr"] = lr
            for name, value in self.recipe.optim.options.items():
                if hasattr(value, "use") and (name != "weight_decay" or group.get("weight_decay_on", True)):
                    group[name] = evaluate(value, clock, self.values.__getitem__, path=f"optim.{name}")

    # -- trouble -------------------------------------------------------------------------------------------------------------------

    def _check_steps(self) -> None:
        if self.feed.steps < 1:
            raise ComposerError(f"train.batch_size = {self.recipe.train.batch_size} leaves no whole batch of {len(self.feed.rows)} training images",
                                why='train.last = "drop" drops the only one', fix='a smaller train.batch_size, or train.last = "keep"')

    def _check_loss(self, total: Tensor, means: Tensor, epoch: int) -> None:
        """On the CPU at every step, where looking costs nothing."""
        if self.on_cpu and not math.isfinite(total.item()):
            self._diverged(means, epoch)

    def _check_finite(self, epoch: int) -> None:
        """Before anything is kept: the sums of the epoch so far and the weights are finite (one look, where steps are not looked at one by one)."""
        broken = self.meter.broken() or self._broken_weight()
        if broken:
            self._raise_diverged(broken, epoch)

    def _broken_weight(self) -> str:
        """A finite loss may have had an infinite gradient: the first weight or running statistic that is not finite, or ''."""
        held = {k: v for k, v in self.net.model.state_dict().items() if v.is_floating_point()}
        held |= {f"parts.{id}.{k}": v for id, other in self.others.items() for k, v in other.state_dict().items() if v.is_floating_point()}
        bad = (~torch.stack([torch.isfinite(v).all() for v in held.values()])).nonzero().flatten().tolist()
        return f"the weight {list(held)[bad[0]]}" if bad else ""

    def _diverged(self, means: Tensor, epoch: int) -> None:
        names = [t.id for t, m in zip(self.plan.outer.terms, means.tolist()) if not math.isfinite(m)]
        self._raise_diverged("terms." + ", terms.".join(names) if names else "the sum of the terms", epoch)

    def _raise_diverged(self, what: str, epoch: int) -> None:
        p = self.progress
        kept = "the last good checkpoint is kept" if (self.node.folder / checkpoint.CURRENT).exists() else "no checkpoint had been written yet"
        raise Diverged(f"training diverged in epoch {epoch}, step {p.step}: {what} is not finite", where=str(self.node.folder),
                       why=f"{kept}; no result is recorded", fix="a lower train.lr, optim.clip = 1.0, or a smaller weight of that term")

    # -- state ---------------------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        checkpoint.keep(self.node.folder, self.state())
        self._saved_at = time.monotonic()

    def state(self) -> Saved:
        """Everything that a resumed run needs."""
        tensors = {f"model/{k}": v for k, v in self.net.model.state_dict().items()}
        named, rest = checkpoint.flatten(self.optimizer.state_dict(), "optim")
        tensors.update(named)
        for id, part in self.parts.items():
            tensors.update({f"parts/{id}/{k}": v for k, v in part.state_dict().items()})
        tensors.update({f"meter/{k}": v for k, v in self.meter.state().items()})
        facts = {"progress": vars(self.progress), "optim": rest, "optim_names": self.names, "carries": self.node.carries}
        return Saved(tensors, facts)

    def restore(self, saved: Saved, *, meter: bool = True, optimizer: bool = True) -> None:
        load_state(self.net, saved)
        if optimizer:
            options = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
            state, names = checkpoint.unflatten(saved.facts["optim"], saved.tensors), saved.facts.get("optim_names", self.names)
            if names != self.names:                                       # a part brought a network or took one away
                state = renumber(state, names, self.names, self.optimizer.state_dict()["param_groups"])
            self.optimizer.load_state_dict(state)
            self._lay_out_state()
            for group, own in zip(self.optimizer.param_groups, options):      # a phase may have edited them
                group.update(own)
        for id, part in self.parts.items():
            state = {k.removeprefix(f"parts/{id}/"): v for k, v in saved.tensors.items() if k.startswith(f"parts/{id}/")}
            if state:
                part.load_state_dict(state)
        if meter:
            self.meter.load({k.removeprefix("meter/"): v for k, v in saved.tensors.items() if k.startswith("meter/")})

    def _lay_out_state(self) -> None:
        """A momentum lies in memory as its parameter does, as if it had grown there: else the update takes another, slower path."""
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    # -- epoch's record ------------------------------------------------------------------------------------------------------------

    def _judge(self, epoch: int) -> None:
        p = self.progress
        at = time.monotonic()
        metrics = self.meter.read()                              # waits for the device
        self._stepping += time.monotonic() - at
        metrics["train/lr"] = float(evaluate(self.recipe.train.lr, self.clock(epoch, self.feed.steps - 1), self.values.__getitem__, path="train.lr"))
        if self._steps and self._stepping:
            metrics["time/step_ms"] = 1000 * self._stepping / self._steps
            metrics["time/images_per_s"] = self._images / self._stepping
        self._steps, self._images, self._stepping = 0, 0, 0.0
        p.peak = max(p.peak, peak_bytes(self.session.device))
        metrics["memory/peak_bytes"] = float(p.peak)
        began = time.monotonic()
        metrics.update(self.hooks.validate(self, epoch))
        metrics["time/validation_s"] = time.monotonic() - began
        p.judged = epoch
        reset_peak(self.session.device)                          # validation's is not training's
        self.hooks.epoch_done(self, epoch, metrics)
        self.meter.reset()


def stopped(reason: str, when: str, kept: str) -> Stopped:
    """A signal's stop; Ctrl-C answers 130, SIGTERM 75."""
    error = Stopped(f"stopped by {reason} {when}", why=kept, fix="run the same command again to go on")
    error.exit_code = 130 if reason == "Ctrl-C" else 75
    return error


def load_state(net: Any, saved: Saved) -> None:
    """Weights and buffers into the live network, in place."""
    live = net.model.state_dict()
    with torch.no_grad():
        for name, value in live.items():
            value.copy_(saved.tensors[f"model/{name}"])


__all__ = ["Progress", "Trainer", "load_state", "stopped"]
