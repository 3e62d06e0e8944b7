"""Steps on several workers against the steps of one: equal to 1e-9 in float64, whatever couples the rows of a batch.

Networks without batch norm, and with it under --sync-bn: then its statistics, too, are those of the global batch, in attacks as well.
"""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
SPEC = importlib.util.spec_from_file_location("fleet_jobs", HERE / "fleet_jobs.py")
fleet_jobs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fleet_jobs)

MLP = 'model={use = "mlp", widths = [24, 16]}'
SHORT = ("train.batch_size=25", "train.epochs=7")            # 64 rows: batches of 25, 25 and 14


def job(recipe: str, *sets: str, steps: int = 20, name: str = "", **more: Any) -> dict[str, Any]:
    return {"name": name or recipe, "recipe": recipe, "sets": [*SHORT, *sets], "steps": steps, **more}


PLAIN = [
    job("at", MLP), job("trades", MLP), job("mart_ours", MLP), job("wat", MLP),
    job("mart_ours", MLP, "parts.ema.state=class", "parts.ema.init=first", steps=6, name="mart_ours_class"),
    job("mart_ours", MLP, "parts.ema.state=index", steps=6, name="mart_ours_index"),
    job("mart_ours", MLP, "train.batch_size=21", steps=8, name="a_batch_of_one"),        # too small to be divided: all compute it
    *(job(recipe, MLP, steps=4) for recipe in ("awp_trades", "mimae_at", "mma", "fat", "gairat", "approx_emr_at", "igr_at")),
    job("at", MLP, steps=4, name="at_augmented", put={"augment.crop": {}, "augment.flip": {}}),
    job("standard", MLP, 'terms.ce.use="soft_ce"', steps=4, name="standard_mixed", put={"augment.flip": {}, "augment.mixup": {}}),
]
SYNC = [
    *(job(recipe, steps=3, sync_bn=True, name=f"{recipe}_sync") for recipe in ("at_rice", "trades", "alp", "dyart", "fast_at")),
    job("at_rice", "train.batch_size=21", steps=4, sync_bn=True, name="a_batch_of_one_sync"),
    job("alp", 'model={use = "wrn", depth = 10, width = 1, dropout = 0.3}', steps=2, sync_bn=True, name="alp_dropout"),     # two points in one forward
]
LOCAL = job("standard", steps=1, name="local_statistics")


def on_workers(server: Any, folder: Path, jobs: list[dict[str, Any]], world: int) -> None:
    """Have the jobs done by so many processes."""
    folder.mkdir(exist_ok=True)
    started = [server.Process(target=runpy.run_path, args=(str(HERE / "fleet_jobs.py"),), kwargs={"run_name": "__main__", "init_globals": {
        "JOB": {"rank": rank, "world": world, "folder": str(folder), "jobs": jobs}}}) for rank in range(world)]
    for each in started:
        each.start()
    for each in started:
        each.join(300)
        assert not each.is_alive(), each.kill() or "a worker hangs"
    for each in jobs:
        for rank in range(world):
            error = folder / f"{each['name']}-{rank}.error"
            assert not error.exists(), error.read_text()


def agree(each: dict[str, Any], folder: Path, tmp_path: Path, world: int) -> None:
    """Every worker has the state that one alone has, and all have the same bits."""
    one = fleet_jobs.alone(each, str(tmp_path))
    found = [torch.load(folder / f"{each['name']}-{rank}.pt", weights_only=True) for rank in range(world)]
    for key, value in one.items():
        torch.testing.assert_close(found[0][key], value.to(found[0][key].dtype), rtol=1e-9, atol=1e-9, msg=lambda m, key=key: f"{each['name']}, {key}: {m}")
        if not key.startswith("meter/"):
            assert all(torch.equal(found[0][key], other[key]) for other in found[1:]), f"{each['name']}: the workers' {key} differ"


@pytest.fixture(scope="module")
def two(server, tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    on_workers(server, folder, [{**each, "setting": tiny} for each in (*PLAIN, *SYNC, LOCAL)], 2)
    return folder


@pytest.mark.parametrize("each", [*PLAIN, *SYNC], ids=lambda each: each["name"])
def test_two_workers_take_the_steps_of_one(each, two, tiny, tmp_path):
    agree({**each, "setting": tiny}, two, tmp_path, 2)


def test_without_sync_bn_each_normalises_its_own_rows(two, tiny, tmp_path):
    """One clean step: gradients and running statistics from two halves, each a batch of its own, weighted by rows."""
    from composer.engine.session import Session

    session = Session(fleet_jobs.recipe_of({**LOCAL, "setting": tiny}), 0, fleet_jobs.settings_of(str(tmp_path)))
    fleet_jobs.doubled(session)
    net, segment = session.net, session.nodes[-1].segment
    batch = next(iter(session.feed(segment).batches(1, 0)))
    optimizer, written = session.optimizer(segment, {}), torch.zeros_like(net.stats.flat)
    for rows in (slice(0, 12), slice(12, 25)):
        scratch = net.stats.scratch()
        logits, _ = net(batch.x[rows], batch=True, scratch=scratch)
        torch.nn.functional.cross_entropy(logits, batch.y[rows], reduction="sum").div(25).backward()
        written += scratch * len(logits) / 25
    torch.nn.utils.clip_grad_norm_(list(net.parameters.values()), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    optimizer.step()
    net.stats.write(written)
    found = torch.load(two / "local_statistics-0.pt", weights_only=True)
    for name, value in net.model.state_dict().items():
        torch.testing.assert_close(found[f"model/{name}"], value, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "sync"])
def test_every_recipe_on_three_workers(kind, server, tiny, tmp_path):
    from composer.verbs import shipped_recipes

    jobs = [{**job(name, *([MLP] if kind == "plain" else []), steps=3, name=name, sync_bn=kind == "sync" or "lbgat" in name), "setting": tiny} for name in shipped_recipes()]      # its teacher has batch norm
    folder = tmp_path / "fleet"
    on_workers(server, folder, jobs, 3)
    wrong = []
    for each in jobs:
        try:
            agree(each, folder, tmp_path, 3)
        except AssertionError as error:
            wrong.append(str(error))
    assert not wrong, "\n".join(wrong)


@pytest.mark.gpu
def test_two_workers_on_one_device(server, tiny, tmp_path):
    """The device's side of it: exchanges of CUDA tensors, draws on the device. NCCL wants a device a worker; gloo does without."""
    jobs = [{**each, "setting": tiny, "device": "cuda"} for each in (job("trades", MLP, steps=4), job("mart_ours", MLP, steps=4), SYNC[0])]
    on_workers(server, tmp_path / "fleet", jobs, 2)
    for each in jobs:
        agree(each, tmp_path / "fleet", tmp_path, 2)


@pytest.mark.gpu
def test_a_run_on_two_devices(tiny, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices: NCCL does not let two workers share one")
    from composer.engine.run import run

    made = fleet_jobs.recipe_of({"recipe": "mart_ours", "setting": tiny, "sets": ["train.epochs=2"]})
    result = run(made, settings=fleet_jobs.settings_of(str(tmp_path), device="cuda", workers=2))
    assert result["workers"]["exchange"] == "nccl" and result["steps"] == 6
