"""What only a CUDA device can show. `pytest -m gpu`, on a machine that has one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import composer
from composer.engine.run import run
from composer.engine.session import Session, Settings
from composer.engine.step import Executor
from composer.recipe.find import recipe_names, shipped

pytestmark = pytest.mark.gpu
SMALL = ("train.epochs=2", "evaluate.use=cheap", "evaluate.n=64")


@pytest.fixture(autouse=True)
def cuda() -> None:
    assert torch.cuda.is_available(), "the gpu tests were asked for, and there is no CUDA device"


def one_step(name: str, device: str, out: Path) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Loss, parameter gradients and running statistics of the first step of a recipe's last stretch, its attack cut to one step."""
    recipe = composer.load(name, sets=["threat.steps=1"])
    session = Session(recipe, 0, Settings(out=out, device=device, track=False))
    node = session.nodes[-1]
    executor = Executor(node.plan, session.net, session.parts(node, {}), session.streams, threat_eps=recipe.threat.eps)
    for dial in node.plan.dials:
        executor.numbers.set(dial.path, 0.5)
    batch = next(session.feed(node.segment).batches(1, 0))
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(batch.x.shape, generator=generator)
    executor.streams.draw = lambda kind, path, step, like: (noise if kind == "uniform" else noise * 2 - 1).to(like.device)  # type: ignore[method-assign]
    total, _, env = executor.forward({**batch.roots(), "model": session.net.model}, 0)
    total.backward()
    executor.write_statistics(env)
    gradients = [p.grad.cpu() for p in session.net.parameters.values() if p.grad is not None]
    return total.detach().cpu(), gradients, session.net.stats.flat.cpu()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", recipe_names(shipped()))
def test_a_step_is_the_cpus(name: str, tmp_path: Path) -> None:
    here, there = one_step(name, "cpu", tmp_path), one_step(name, "cuda", tmp_path)
    assert torch.allclose(here[0], there[0], rtol=1e-3)
    scale = max(g.abs().max() for g in here[1])
    assert max((a - b).abs().max() for a, b in zip(here[1], there[1])) < 2e-2 * scale      # a sign may flip where a gradient is nearly zero
    assert torch.allclose(here[2], there[2], atol=1e-3)


@pytest.mark.parametrize("name", ["at", "mart_ours", "piat_nmse"])
def test_deterministic_runs_repeat(name: str, tmp_path: Path) -> None:
    recipe = composer.load(name, sets=SMALL)
    settings = Settings(out=tmp_path / "a", device="cuda", deterministic=True, track=False, quiet=True)
    first, second = run(recipe, settings=settings), run(recipe, settings=replace(settings, out=tmp_path / "b"))
    assert first["weights_sha256"] == second["weights_sha256"]


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_precisions_train(precision: str, tmp_path: Path) -> None:
    result = run(composer.load("at", sets=SMALL), settings=Settings(out=tmp_path, device="cuda", precision=precision, track=False, quiet=True))
    assert result["metrics"]["clean"] > 0.2


def test_autoattack_runs(tmp_path: Path) -> None:
    recipe = composer.load("at", sets=["train.epochs=2", "evaluate.n=32"])
    result = run(recipe, settings=Settings(out=tmp_path, device="cuda", track=False, quiet=True))
    assert 0 <= result["metrics"]["aa"] <= result["metrics"]["pgd-20"] + 0.1
