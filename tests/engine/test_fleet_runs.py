"""Whole runs on two workers: what they leave in the store, how they stop, resume, change their number, diverge and break. No Ray in the quick ones."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from composer.engine.fleet_worker import Telling, Told, error_of, facts_of, outcomes, spec_of
from composer.errors import ComposerError, Diverged, Errors, Stopped
from composer.report.table import plain_table

HERE = Path(__file__).parent
SPEC = importlib.util.spec_from_file_location("fleet_jobs", HERE / "fleet_jobs.py")
fleet_jobs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fleet_jobs)


@pytest.fixture
def serve(server, tiny, tmp_path):
    """serve("at", out, "train.epochs=2", …): the ends of two workers, and what they wrote of it."""
    count = iter(range(100))

    def call(recipe: str, out: Path, *sets: str, settings: dict[str, Any] | None = None, **job: Any) -> tuple[list[str], list[dict[str, Any]]]:
        folder = tmp_path / f"fleet-{next(count)}"
        folder.mkdir()
        made = fleet_jobs.recipe_of({"recipe": recipe, "setting": tiny, "sets": sets})
        given = fleet_jobs.settings_of(str(out), workers=2, stop_file=str(folder / "stop"), **(settings or {}))
        jobs = [{"name": "run", "task": "serving", "spec": json.dumps(spec_of(made, 0, given, {}, folder, 1)), **job}]
        started = [server.Process(target=runpy.run_path, args=(str(HERE / "fleet_jobs.py"),), kwargs={"run_name": "__main__", "init_globals": {
            "JOB": {"rank": rank, "world": 2, "folder": str(folder), "jobs": jobs}}}) for rank in (0, 1)]
        for each in started:
            each.start()
        for each in started:
            each.join(120)
            assert not each.is_alive(), each.kill() or "a worker hangs"
        errors = [file.read_text() for file in folder.glob("*.error")]
        assert not errors, errors[0]
        return [torch.load(folder / f"run-{rank}.pt", weights_only=True)["ended"] for rank in (0, 1)], outcomes(folder, 2)

    return call


def last_state(out: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    (done,) = sorted(out.glob("nodes/*/done"), key=lambda f: json.loads((f.parent / "key.json").read_text())["epochs"][1])[-1:]
    return load_file(done.parent / "checkpoint.safetensors")


def test_a_run_leaves_what_a_run_on_one_leaves(serve, tmp_path):
    ended, told = serve("mart_ours", tmp_path / "out", "train.epochs=2")
    assert ended == ["itself", "itself"], told
    result = told[0]["result"]
    workers = result["workers"]
    assert (workers["n"], workers["exchange"], workers["sync_bn"]) == (2, "gloo", False)
    assert workers["images_per_s"] > 0 and workers["step_ms"] > workers["exchange_ms"] > 0 and result["epochs"] == 2 and result["steps"] == 6
    assert set(result["metrics"]) == {"clean", "pgd-3"} and told[1]["result"] is None
    assert f"2 workers (gloo): {workers['images_per_s']:,.0f} images/s" in plain_table(result)
    rows = [json.loads(line) for line in next((tmp_path / "out").glob("nodes/*/metrics.jsonl")).read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2] and all("val/clean" in row and "train/terms.boosted_ce" in row for row in rows)
    assert not list((tmp_path / "out").rglob("lock"))


def test_a_stopped_run_goes_on_bit_for_bit(serve, tmp_path):
    sets = ("train.epochs=3",)
    assert serve("piat_nmse", tmp_path / "whole", *sets)[0] == ["itself", "itself"]
    ended, told = serve("piat_nmse", tmp_path / "cut", *sets, stop_after=5)
    assert ended == ["itself", "itself"]
    errors = [error_of(each["error"]) for each in told]
    assert all(isinstance(error, Stopped) and error.exit_code == 75 and "after step 5" in error.what for error in errors)
    assert serve("piat_nmse", tmp_path / "cut", *sets)[0] == ["itself", "itself"]
    one, two = last_state(tmp_path / "whole"), last_state(tmp_path / "cut")
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_the_number_of_workers_changes_where_that_is_asked_for(serve, go, tmp_path):
    out = tmp_path / "out"
    serve("at", out, "train.epochs=3", stop_after=4)
    with pytest.raises(ComposerError, match="machine.workers was 2 and is now 1"):
        go("at", out, **{"train.epochs": 3})
    result = go("at", out, settings={"adopt": True}, **{"train.epochs": 3})
    assert result["adopted"] == ["epochs 1-3: machine.workers was 2 and is now 1"] and result["steps"] == 9


def test_a_run_of_one_goes_on_with_two(serve, go, stop_after, tmp_path):
    out = tmp_path / "out"
    stop_after(4)
    with pytest.raises(Stopped):
        go("at", out, **{"train.epochs": 3})
    ended, told = serve("at", out, "train.epochs=3", settings={"adopt": True})
    assert ended == ["itself", "itself"] and told[0]["result"]["adopted"] == ["epochs 1-3: machine.workers was 1 and is now 2"]
    assert told[0]["result"]["steps"] == 9


def test_all_stop_where_training_diverges(serve, tmp_path):
    ended, told = serve("at", tmp_path / "out", "train.lr=1e30", "train.epochs=2")
    assert ended == ["itself", "itself"]
    errors = [error_of(each["error"]) for each in told]
    assert all(isinstance(error, Diverged) and error.exit_code == 3 for error in errors) and errors[0].what == errors[1].what


@pytest.mark.parametrize("fails", [0, 1])
def test_a_worker_that_breaks_ends_the_others(fails, serve, tmp_path):
    ended, told = serve("at", tmp_path / "out", "train.epochs=2", fails=fails)
    assert ended[fails] == "ValueError" and ended[1 - fails] == "a peer was lost"
    assert ["broken on purpose" in each.get("defect", "") for each in told] == [True]


def test_what_cannot_be_divided_is_refused(tiny):
    from composer.engine.fleet_train import check
    from composer.plan.whole import plans_of

    made = fleet_jobs.recipe_of({"recipe": "at", "setting": tiny})
    (_, plan), *_ = plans_of(made)
    with pytest.raises(ComposerError, match="two images of a batch") as told:
        check(plan, made, 20)
    assert "--workers 12" in told.value.fix
    check(plan, made, 12)


@pytest.mark.parametrize(("settings", "said"), [
    ({"address": "auto"}, "with one worker"), ({"workers": 2, "backend": "compiled"}, "--backend compiled with --workers 2"),
    ({"workers": 2, "micro_batch": "auto"}, "--micro-batch auto with --workers 2"), ({"workers": 16}, "two images of a batch"),
    ({"workers": 2, "address": "somewhere"}, "neither host:port nor auto"), ({"workers": 2, "address": "127.0.0.1:9"}, "nothing answers there"),
])
def test_what_cannot_be_is_said_before_anything_starts(settings, said, go, tmp_path):
    with pytest.raises(ComposerError, match=said):
        go("at", tmp_path / "out", settings=settings)
    assert not (tmp_path / "out" / "fleet").exists()


def test_what_the_leader_shows_reaches_the_driver(tmp_path):
    """In order, each once, however often one looks; half a line waits for its end."""
    told = Told(tmp_path)
    assert told.new() == []
    with Telling(tmp_path, 3, 10, "at on digits") as live:
        live.phase("burn_in", 10)
        live.epoch(1, {"ce": 2.0}, best="epoch 1")
        assert told.new() == [["begin", [3, 10, "at on digits"], {}], ["phase", ["burn_in", 10], {}], ["epoch", [1, {"ce": 2.0}], {"best": "epoch 1"}]]
        live.step(2, 1, 24)
        live.step(2, 2, 24)                                       # too soon after the first to be told
        with open(live.file, "a") as file:
            file.write('["say", ["half')
        assert told.new() == [["step", [2, 1, 24], {}]]
        with open(live.file, "a") as file:
            file.write(' a line"], {}]\n')
        assert told.new() == [["say", ["half a line"], {}]]
        with pytest.raises(AttributeError):
            live.other("thing")


def test_errors_come_back_as_they_went():
    for error in (Diverged("d", where="here", why="w", fix="f"), Stopped("s"), Errors([ComposerError("a"), ComposerError("b", fix="c")])):
        again = error_of(json.loads(json.dumps(facts_of(error))))
        assert type(again) is type(error) and again.text() == error.text() and again.exit_code == error.exit_code


def test_errors_name_places_of_the_users(tiny, tmp_path):
    from composer.engine.fleet import placed

    made = fleet_jobs.recipe_of({"recipe": "at", "setting": tiny, "sets": ["select.held_out=100"]})
    facts = facts_of(Errors([ComposerError("a", where=f"{tmp_path}/attempt-0/recipe.toml:60  select.held_out"), ComposerError("b", where="--device cuda")]))
    assert [each["where"] for each in placed(facts, made, tmp_path)["all"]] == ["--set #1  select.held_out", "--device cuda"]


def test_a_term_that_tangles_rows_is_refused(tiny, monkeypatch):
    """approx_emr as its authors scale it takes only the number of the other rows; without that word it would be refused."""
    from composer.engine.fleet_train import check
    from composer.plan.whole import plans_of
    from composer.registry import REGISTRY

    made = fleet_jobs.recipe_of({"recipe": "approx_emr_at", "setting": tiny})
    plan = plans_of(made)[-1][1]
    check(plan, made, 2)
    monkeypatch.delitem(REGISTRY.get("loss", "approx_emr").flags, "couples_by")
    with pytest.raises(ComposerError, match="terms.emr cannot be divided"):
        check(plan, made, 2)


# -- through Ray ---------------------------------------------------------------------------------------------------------------------------


def descendants(pid: int) -> list[int]:
    """Processes below this one, as Linux tells."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, fresh = [], [pid]
    while fresh:
        fresh = [child for child, parent in parents.items() if parent in fresh]
        found += fresh
    return found


def workers_of(pid: int) -> list[int]:
    """Ray's training workers below a driver."""
    return sorted(p for p in descendants(pid) if Path(f"/proc/{p}/cmdline").exists() and b"RayTrainWorker" in Path(f"/proc/{p}/cmdline").read_bytes())


SIXTY = ("--set", "train.epochs=60")


class Driver:
    """`composer run at --workers 2` in a process of its own."""

    def __init__(self, tiny: str, out: Path, *words: str):
        self.out = out
        arguments = ["run", "at", "--setting", tiny, "--out", str(out), "--device", "cpu", "--json", "--workers", "2", *words]
        self.process = subprocess.Popen([sys.executable, "-m", "composer.cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def until_epoch(self, epochs: int) -> None:
        limit = time.monotonic() + 120
        while sum(len(f.read_text().splitlines()) for f in self.out.glob("nodes/*/metrics.jsonl")) < epochs:
            assert time.monotonic() < limit and self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.05)

    def end(self) -> tuple[int, dict[str, Any], str]:
        said, errors = self.process.communicate(timeout=240)
        return self.process.returncode, json.loads(said or "{}"), errors


@pytest.fixture(scope="module")
def calm(tiny, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A run that nobody disturbs: its store and its result."""
    out = tmp_path_factory.mktemp("calm")
    code, result, errors = Driver(tiny, out, *SIXTY).end()
    assert code == 0 and result["workers"]["n"] == 2, errors
    return out, result


def same(calm: tuple[Path, dict[str, Any]], out: Path, result: dict[str, Any]) -> None:
    """Bit for bit."""
    assert result["prefix_key"] == calm[1]["prefix_key"] and result["weights_sha256"] == calm[1]["weights_sha256"]
    one, two = last_state(calm[0]), last_state(out)
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_through_ray_a_killed_worker_is_replaced(which, calm, tiny, tmp_path):
    """SIGKILL to one of two workers, the leader or the other: the run goes on from its last checkpoint and ends as if nothing had been."""
    driver = Driver(tiny, tmp_path / "hurt", *SIXTY)
    driver.until_epoch(4)
    os.kill(workers_of(driver.process.pid)[which], signal.SIGKILL)
    code, hurt, errors = driver.end()
    assert code == 0 and "a worker was lost" in errors, errors
    same(calm, tmp_path / "hurt", hurt)
    assert not (tmp_path / "hurt" / "fleet").exists()


@pytest.mark.slow
def test_through_ray_a_killed_command_takes_its_workers_along(calm, tiny, tmp_path):
    driver = Driver(tiny, tmp_path / "hurt", *SIXTY)
    driver.until_epoch(4)
    workers = workers_of(driver.process.pid)
    driver.process.kill()
    driver.process.communicate()
    limit = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < limit, "workers outlive their command"
        time.sleep(0.1)
    code, hurt, errors = Driver(tiny, tmp_path / "hurt", *SIXTY).end()
    assert code == 0, errors
    same(calm, tmp_path / "hurt", hurt)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_through_ray_a_signal_stops_all_after_a_checkpoint(number, code, tiny, tmp_path):
    driver = Driver(tiny, tmp_path / "out", "--set", "train.epochs=2000")
    driver.until_epoch(2)
    driver.process.send_signal(number)
    got, _, errors = driver.end()
    assert got == code and "a checkpoint was written" in errors, errors
    assert list((tmp_path / "out").glob("nodes/*/checkpoint.safetensors"))
