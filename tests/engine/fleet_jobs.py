"""What the tests of several workers have done in other processes: real gloo groups, joined through a file, without Ray."""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


def recipe_of(job: dict[str, Any]) -> Any:
    from composer.recipe.load import load

    made = load(job["recipe"], setting=job["setting"], sets=job.get("sets", ()))
    return made.edit(put=job["put"]) if "put" in job else made


def settings_of(out: str, **more: Any) -> Any:
    from composer.engine.session import Settings

    return Settings(**{"out": Path(out), "track": False, "quiet": True, "device": "cpu"} | more)


def doubled(session: Any) -> None:
    """Everything in float64: weights, statistics, images, noise."""
    from composer.engine.net import Net

    net = session.net
    fresh = Net(net.model.double(), session.device, seed=session.seed)
    plain = fresh.layout
    fresh.layout = lambda x: plain(x.double() if x.is_floating_point() else x)  # type: ignore[method-assign]
    session.net = fresh
    if hasattr(session, "nets"):
        session.nets[:] = []
        session._joins(fresh)


def trainer_of(session: Any, kind: Any, hooks: Any) -> Any:
    from composer.engine.train import Progress

    node = session.nodes[-1]
    parts = session.parts(node, {})
    for part in parts.values():
        for held in (v for v in vars(part).values() if isinstance(v, dict)):
            held.update({k: v.double() for k, v in held.items() if isinstance(v, Tensor) and v.is_floating_point()})
        if isinstance(getattr(part, "_eps", None), Tensor):
            part._eps = part._eps.double()
    return kind(session, node, Progress(), parts, session.optimizer(node.segment, parts), hooks)


def take_steps(trainer: Any, steps: int) -> dict[str, Tensor]:
    """So many steps from the start, without epochs' ends; the state and the epoch's sums."""
    epoch = trainer.node.segment.first
    while trainer.progress.step < steps:
        for batch in trainer.feed.batches(epoch, trainer.progress.step, 0):
            trainer._step(batch, epoch)
            if trainer.progress.step == steps:
                break
        epoch, trainer.progress.batch = epoch + 1, 0
    state = trainer.state()
    return {k: v.detach().cpu().clone() for k, v in state.tensors.items()}


def alone(job: dict[str, Any], out: str) -> dict[str, Tensor]:
    """The steps by one worker: the ordinary trainer."""
    from composer.engine.session import Session
    from composer.engine.train import Trainer

    session = Session(recipe_of(job), 0, settings_of(out, device=job.get("device", "cpu")))
    doubled(session)
    return take_steps(trainer_of(session, Trainer, SimpleNamespace()), job["steps"])


def divided(job: dict[str, Any], out: str) -> dict[str, Tensor]:
    """The steps by this worker of several."""
    from composer.engine.fleet_group import Group
    from composer.engine.fleet_train import FleetSession, FleetTrainer

    group = Group(sync_bn=job.get("sync_bn", False))
    session = FleetSession(recipe_of(job), 0, settings_of(out, workers=group.world, device=job.get("device", "cpu")), group)
    doubled(session)
    return take_steps(trainer_of(session, FleetTrainer, SimpleNamespace()), job["steps"])


def serving(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """`fleet_worker.serve`, as Ray would call it. stop_after: the leader is asked to stop after so many steps; fails: this worker does, at its third."""
    from composer.engine import fleet_train, walk
    from composer.engine.fleet_group import PeerLost
    from composer.engine.fleet_worker import serve

    spec, done = json.loads(job["spec"]), []
    plain, step = walk.Walk.step_done, fleet_train.FleetTrainer._step

    def step_done(self: Any, *arguments: Any) -> None:
        plain(self, *arguments)
        done.append(1)
        if len(done) == job.get("stop_after"):
            Path(spec["settings"]["stop_file"]).touch()

    def failing(self: Any, *arguments: Any) -> None:
        if self.progress.step == 2 and self.group.rank == job["fails"]:
            raise ValueError("broken on purpose")
        step(self, *arguments)

    walk.Walk.step_done = step_done  # type: ignore[method-assign]
    if "fails" in job:
        fleet_train.FleetTrainer._step = failing  # type: ignore[method-assign]
    try:
        serve(spec)
        return {"ended": "itself"}
    except PeerLost:
        return {"ended": "a peer was lost"}
    except Exception as error:  # noqa: BLE001  the test asks which
        return {"ended": type(error).__name__}
    finally:
        walk.Walk.step_done, fleet_train.FleetTrainer._step = plain, step  # type: ignore[method-assign]


def member(rank: int, world: int, folder: str, jobs: list[dict[str, Any]]) -> None:
    """A worker's process: joins the group and does the jobs in order; what each gave, or its traceback, lies in the folder."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    for job in jobs:
        target = Path(folder) / f"{job['name']}-{rank}"
        try:
            torch.save({"divided": divided, "serving": serving}[job.get("task", "divided")](job, folder), target.with_suffix(".part"))
            os.replace(target.with_suffix(".part"), target.with_suffix(".pt"))
        except Exception:  # noqa: BLE001  the test shows it
            target.with_suffix(".error").write_text(traceback.format_exc())
            break
    dist.destroy_process_group()


if __name__ == "__main__":
    member(**JOB)  # noqa: F821  put there by whoever runs this file
