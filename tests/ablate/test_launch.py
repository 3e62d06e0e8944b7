"""Tasks as processes: Ray on this machine, killed workers, a killed driver, stops, a cluster that is there, and what a node costs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from composer import atomic
from composer.ablate import launch_ray
from composer.ablate.launch import LaunchOptions, launch
from composer.ablate.launch_ray import cluster, environment, places, temporary_folder
from composer.ablate.progress import Board
from composer.ablate.types import Task
from composer.errors import ComposerError

HERE = Path(__file__).parent
WORK = "launch_dummies:work"


def task(folder: Path, name: str, after: str = "", **spec) -> Task:
    return Task(name, "run", f"title of {name}", {"name": name, "folder": str(folder), **spec}, after=after, epochs=spec.get("epochs", 0))


def options_of(folder: Path, **more) -> LaunchOptions:
    return LaunchOptions(**{"folder": folder / "study", "jobs": 2, "sys_path": (str(HERE),), "quiet": True, **more})


def logged(folder: Path, name: str) -> list[dict]:
    return atomic.read_lines(folder / name / "log.jsonl")


# -- without Ray


def test_places():
    def fit(resources: dict, **more) -> int:
        return places([resources], options_of(Path("x"), **more))

    assert fit({"CPU": 8}, jobs=0, address="auto") == 8 and fit({"CPU": 8}, jobs=3) == 3 and fit({"CPU": 8}, threads=3, jobs=0) == 2
    assert fit({"CPU": 64, "GPU": 4}, jobs=0, gpus_per_run=0.25) == 16 and fit({"CPU": 64, "GPU": 4}, jobs=0, gpus_per_run=0.3) == 12
    assert fit({"CPU": 64, "GPU": 4}, jobs=0, gpus_per_run=2) == 2 and fit({"CPU": 64}, jobs=0, gpus_per_run=1) == 0
    assert fit({}, jobs=2) == 0 and fit({"CPU": 2}, cpus=0.5, jobs=0) == 4


def test_a_task_fits_on_one_machine_or_nowhere(tmp_path, monkeypatch):
    """Four machines of 32 cores have no place for a task of 64."""
    four, wide = [{"CPU": 32, "GPU": 1}] * 4, options_of(tmp_path, jobs=0, address="auto", threads=64)
    assert places(four, wide) == 0 and places(four, options_of(tmp_path, jobs=0, threads=20)) == 4
    assert places(four, options_of(tmp_path, jobs=0, gpus_per_run=2)) == 0 and places(four, options_of(tmp_path, jobs=0, gpus_per_run=0.5)) == 8
    pytest.importorskip("ray")
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": has} for has in four] + [{"Alive": False, "Resources": {"CPU": 128}}])
    monkeypatch.setattr(launch_ray, "JOIN", 0.0)
    with pytest.raises(ComposerError, match="each needs 64 cores") as caught:
        launch_ray.await_a_place(wide, SimpleNamespace(reason=""), lambda: None)
    assert "32 cores and 1 GPUs" in caught.value.why


def test_the_environment_of_a_worker(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/before")
    made = environment(options_of(tmp_path, threads=3, env={"COMPOSER_PLUGINS": "a.py"}))
    assert made["OMP_NUM_THREADS"] == made["MKL_NUM_THREADS"] == "3" and made["COMPOSER_PLUGINS"] == "a.py"
    assert made["PYTHONPATH"].split(os.pathsep) == [str(HERE), "/before"]
    assert "OMP_NUM_THREADS" not in environment(options_of(tmp_path, threads=0))


def test_ray_gets_a_short_folder_and_those_of_dead_drivers_go(tmp_path, monkeypatch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / ("x" * 60)))
    long = temporary_folder()
    assert len(str(long)) < 70
    long.rmdir()
    short = Path("/tmp") / f"c{os.getpid()}"
    short.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(short))
    (short / f"composer-ray-{dead.pid}-x").mkdir()
    (short / f"composer-ray-{os.getpid()}-x").mkdir()
    made = temporary_folder()
    assert made.parent == short and not (short / f"composer-ray-{dead.pid}-x").exists() and (short / f"composer-ray-{os.getpid()}-x").exists()
    for folder in (made, short / f"composer-ray-{os.getpid()}-x", short):
        folder.rmdir()


# -- one cluster for all that is quick


def test_two_workers_do_a_forest(tmp_path):
    """Order, environment, a killed worker, one killed for good, an exception, a lock, logs: one forest, since Ray takes seconds to start."""
    tasks = [
        task(tmp_path, "p", epochs=2), task(tmp_path, "p1", "p", epochs=2, seconds=0.2), task(tmp_path, "p2", "p", epochs=1),
        task(tmp_path, "killed", epochs=1, trouble="kill"), task(tmp_path, "after killed", "killed"), task(tmp_path, "asked", trouble="term"),
        task(tmp_path, "doomed", trouble="kill", times=9), task(tmp_path, "after doomed", "doomed"),
        task(tmp_path, "bad", trouble="raise"), task(tmp_path, "after bad", "bad"), task(tmp_path, "div", trouble="diverge"), task(tmp_path, "z"),
    ]
    options = options_of(tmp_path, threads=1, retries=1, env={"COMPOSER_SAY": "hello"})
    answers = launch(tasks, WORK, options)
    assert set(answers) == {t.id for t in tasks}
    failed = {name for name, answer in answers.items() if "failed" in answer}
    assert failed == {"doomed", "after doomed", "bad", "after bad", "div"}
    assert "lost 2 times" in answers["doomed"]["failed"]["why"] and len(logged(tmp_path, "doomed")) == 2
    assert answers["after doomed"]["failed"]["why"].startswith("title of doomed failed: ") and not (tmp_path / "after doomed").exists()
    assert answers["div"]["failed"]["diverged"] and answers["div"]["failed"]["exit_code"] == 3
    assert answers["p1"] == {"name": "p1", "epochs": 2}
    assert logged(tmp_path, "p1")[0]["began"] >= logged(tmp_path, "p")[1]["ended"]
    assert len(logged(tmp_path, "killed")) == 3 and len(logged(tmp_path, "asked")) == 3          # begun, begun again, ended
    first = logged(tmp_path, "p")[0]
    assert first["threads"] == "1" and first["say"] == "hello" and first["cuda"] == "" and first["pid"] != os.getpid()
    journal = atomic.read_lines(options.folder / "tasks.jsonl")
    assert {line["task"]: line["attempt"] for line in journal if line["end"] == "done"}["killed"] == 2
    assert sum(line["end"] == "lost" for line in journal) == 4
    assert all(line["threads"] == 1 and line["host"] == socket.gethostname() for line in journal if line["end"] == "done")
    assert "ValueError: no such thing" in (options.folder / "logs" / "bad.log").read_text()
    assert not list((options.folder / "progress").iterdir()) and not list(options.folder.glob(".stop-*"))


# -- in a process of its own, to be killed


class Driver:
    """`launch` in a process, its answers from stdout."""

    def __init__(self, folder: Path, tasks: list[Task], work: str = WORK, **options):
        given = {"work": work, "tasks": [{**vars(t), "spec": dict(t.spec)} for t in tasks],
                 "options": {"folder": str(folder / "study"), "jobs": 2, "sys_path": [str(HERE)], **options}}
        file = folder / "given.json"
        file.write_text(json.dumps(given))
        self.process = subprocess.Popen([sys.executable, str(HERE / "launch_driver.py"), str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        text=True, start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def end(self, seconds: float = 120) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err


def wait_for(there, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def pids(folder: Path) -> set[int]:
    return {line["pid"] for file in folder.glob("*/log.jsonl") for line in atomic.read_lines(file) if "pid" in line}


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def six(folder: Path, seconds: float = 0.3) -> list[Task]:
    return [task(folder, "p", epochs=4, seconds=seconds), *(task(folder, f"p{i}", "p", epochs=4, seconds=seconds) for i in range(3)),
            task(folder, "q", epochs=8, seconds=seconds), task(folder, "r", epochs=4, seconds=seconds)]


def trained(folder: Path) -> dict[str, list[int]]:
    return {file.parent.name: atomic.read_lines(file) for file in sorted(folder.glob("*/epochs.jsonl"))}


WHOLE = {"p": [1, 2, 3, 4], **{f"p{i}": [1, 2, 3, 4] for i in range(3)}, "q": [*range(1, 9)], "r": [1, 2, 3, 4]}


@pytest.mark.slow
def test_workers_die_with_a_killed_driver_and_the_next_one_goes_on(tmp_path):
    with Driver(tmp_path, six(tmp_path)) as driver:
        wait_for(lambda: "q" in trained(tmp_path) and len(trained(tmp_path)["q"]) >= 2)
        os.kill(driver.process.pid, signal.SIGKILL)
        wait_for(lambda: not any(alive(pid) for pid in pids(tmp_path)), 20)
    before = trained(tmp_path)
    with Driver(tmp_path, six(tmp_path)) as driver:
        code, out, err = driver.end()
    assert code == 0, err
    assert {name: answer["epochs"] for name, answer in json.loads(out).items()} == {name: len(epochs) for name, epochs in WHOLE.items()}
    after = trained(tmp_path)
    assert {name: sorted(set(epochs)) for name, epochs in after.items()} == WHOLE
    assert all(after[name][: len(epochs)] == epochs for name, epochs in before.items())
    assert sum(map(len, after.values())) - sum(map(len, WHOLE.values())) <= 2, "more was trained twice than an epoch a worker"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_lets_workers_write_their_checkpoints(tmp_path, number, code):
    with Driver(tmp_path, six(tmp_path)) as driver:
        wait_for(lambda: "q" in trained(tmp_path))
        os.killpg(driver.process.pid, number)                        # as a terminal does: to all of the group
        began = time.monotonic()
        got, out, err = driver.end(40)
    assert got == code and out == "" and "tasks are done" in err and "run the same command again" in err
    assert time.monotonic() - began < 30
    assert not any(alive(pid) for pid in pids(tmp_path)) and not list(tmp_path.glob("*/lock")), "a lock stays behind: a worker was killed, not stopped"
    with Driver(tmp_path, six(tmp_path)) as driver:
        got, out, err = driver.end()
    assert got == 0, err
    assert trained(tmp_path) == WHOLE, "an epoch was trained twice"


@pytest.mark.slow
def test_workers_that_hear_nothing_are_ended_after_the_grace(tmp_path):
    with Driver(tmp_path, [task(tmp_path, "a"), task(tmp_path, "b")], "launch_dummies:deaf", grace=1.0) as driver:
        wait_for(lambda: len(list(tmp_path.glob("?-*"))) == 2)
        running = [int(file.name.split("-")[1]) for file in tmp_path.glob("?-*")]
        driver.process.send_signal(signal.SIGTERM)
        code, _, err = driver.end(30)
    assert code == 75 and "0 of 2 tasks are done" in err
    wait_for(lambda: not any(alive(pid) for pid in running), 5)


@pytest.mark.slow
def test_workers_killed_at_random_cost_nothing_else(tmp_path):
    dice, killed = random.Random(0), 0
    with Driver(tmp_path, six(tmp_path), retries=20) as driver:
        while killed < 6 and driver.process.poll() is None:
            time.sleep(dice.uniform(0.3, 1.2))
            if living := [pid for pid in pids(tmp_path) if alive(pid)]:
                os.kill(dice.choice(living), signal.SIGKILL)
                killed += 1
        code, out, err = driver.end()
    assert code == 0 and killed >= 4, err
    assert {name: answer["epochs"] for name, answer in json.loads(out).items()} == {name: len(epochs) for name, epochs in WHOLE.items()}
    assert sum(map(len, trained(tmp_path).values())) <= sum(map(len, WHOLE.values())) + killed


@pytest.fixture
def head(tmp_path, monkeypatch):
    """A cluster of one machine, with two cores and a GPU that is only said to be there. A token lies at hand, which new versions of Ray then ask for."""
    (tmp_path / "token").write_text("5e" * 32)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = temporary_folder()
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2", "--num-gpus=1",
           "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}", "--block", "--object-store-memory=80000000"]
    process = subprocess.Popen(ray, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
                               env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait(30)
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.mark.slow
def test_a_cluster_that_is_there(tmp_path, head):
    """Shares of a GPU; workers of a killed driver end though the cluster stays; plugins' variables arrive."""
    more = {"jobs": 0, "address": head, "gpus_per_run": 0.5, "env": {"COMPOSER_SAY": "there"}}
    status = [sys.executable, "-m", "ray.scripts.scripts", "status", f"--address={head}"]
    wait_for(lambda: subprocess.run(status, check=False, capture_output=True, env={**os.environ, "RAY_AUTH_MODE": "token"}).returncode == 0)
    with Driver(tmp_path, six(tmp_path), **more) as driver:
        wait_for(lambda: "q" in trained(tmp_path))
        os.kill(driver.process.pid, signal.SIGKILL)
        wait_for(lambda: not any(alive(pid) for pid in pids(tmp_path)), 20)
    with Driver(tmp_path, six(tmp_path), **more) as driver:
        code, out, err = driver.end()
    assert code == 0, err
    assert set(json.loads(out)) == set(WHOLE)
    line = logged(tmp_path, "p2")[0]
    assert line["cuda"] == "0" and line["say"] == "there" and line["threads"] == "1"
    journal = atomic.read_lines(tmp_path / "study" / "tasks.jsonl")
    assert len({line["pid"] for line in journal}) == len(journal), "a process with a GPU did two tasks"


def test_threads_are_the_cores_over_what_runs_at_once(monkeypatch):
    """As many tasks as a cluster holds: with a quarter of a GPU each, four share the cores of this machine's GPU."""
    import torch

    from composer.ablate.drive import Options
    from composer.ablate.planned import threads_of

    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(32))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [threads_of(Options(jobs=j)) for j in (0, 1, 4, 64)] == [32, 32, 8, 1]
    assert threads_of(Options(jobs=0, address="auto")) == 32 and threads_of(Options(jobs=0, address="auto", gpus_per_run=0.25)) == 4
    assert threads_of(Options(jobs=0, address="auto", gpus_per_run=2.0)) == 32 and threads_of(Options(jobs=2, gpus_per_run=0.25)) == 16


@pytest.mark.parametrize("asked", [{"jobs": 0, "address": "auto", "gpus_per_run": 0.25}, {"jobs": 0, "address": "auto", "gpus_per_run": 1.0}, {"jobs": 4},
                                   {"jobs": 0, "address": "auto"}, {"jobs": 2, "threads": 5}])
def test_a_sweeps_trials_have_the_threads_of_a_grids_tasks(monkeypatch, asked):
    """And Ray is asked for as many cores: 64 cores and 8 GPUs take eight trials of one GPU at once, not one."""
    import torch

    from composer.ablate.drive import Options
    from composer.ablate.planned import threads_of
    from composer.search.on_ray import launching
    from composer.search.options import SweepOptions
    from composer.search.sweep import settled

    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr("composer.search.options.need", lambda *_, **__: None)
    options = settled(SweepOptions(grid=True, **asked))
    assert options.threads == (asked.get("threads") or threads_of(Options(**asked)))
    start = launching(SimpleNamespace(folder=Path("x")), options)
    assert start.cores == options.threads
    if asked.get("gpus_per_run") == 1.0:
        assert places([{"CPU": 64, "GPU": 8}], start) == 8


def test_workers_are_told_all_plugins_whoever_named_them(monkeypatch):
    from composer.ablate.planned import plugins_named

    monkeypatch.setattr("composer.plugins.for_workers", lambda: ("/a/one.py", "/b/two.py"))
    assert plugins_named() == {"COMPOSER_PLUGINS": "/a/one.py" + os.pathsep + "/b/two.py"}
    monkeypatch.setattr("composer.plugins.for_workers", lambda: ())
    assert plugins_named() == {}


def test_a_ray_that_comes_too_late_is_no_defect(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")

    tries = []

    def late(**_):
        tries.append(1)
        raise Exception("The current node timed out during startup.")  # noqa: TRY002  as Ray does

    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(ComposerError, match="Ray does not start.*timed out"):
        launch([task(tmp_path, "a")], WORK, options_of(tmp_path))
    assert len(tries) == 2, "a busy machine gets a second try"


@pytest.mark.parametrize(("address", "what"), [("127.0.0.1:9", "nothing answers there"), ("somewhere", "neither host:port"), ("ray://a:b", "neither host:port")])
def test_an_address_where_no_cluster_is(tmp_path, monkeypatch, address, what):
    monkeypatch.setattr("composer.rayhost.ANSWER", 0.0)
    with pytest.raises(ComposerError, match=f"Ray does not start.*{what}"):
        launch([task(tmp_path, "a")], WORK, options_of(tmp_path, jobs=0, address=address))


@pytest.mark.slow
def test_a_signal_while_ray_starts(tmp_path):
    with Driver(tmp_path, six(tmp_path)) as driver:
        wait_for(lambda: list(Path("/tmp").glob(f"composer-ray-{driver.process.pid}-*")))
        time.sleep(0.5)
        driver.process.send_signal(signal.SIGTERM)
        code, out, err = driver.end(60)
    assert code == 75 and out == "" and "of 6 tasks are done" in err
    assert not list(Path("/tmp").glob(f"composer-ray-{driver.process.pid}-*")) and not list((tmp_path / "study").glob(".stop-*"))


@pytest.mark.slow
def test_what_ray_says_where_it_cannot(tmp_path):
    with pytest.raises(ComposerError, match="no task fits"):
        launch([task(tmp_path, "a")], WORK, options_of(tmp_path, jobs=1, gpus_per_run=64))


@pytest.mark.slow
def test_a_node_costs_little_beside_what_ray_takes(tmp_path):
    """A tree of 1,000 nodes that do nothing, against 1,000 independent tasks of Ray that do nothing, in the same session."""
    import ray

    dice, options = random.Random(0), options_of(tmp_path)
    tasks = [Task(str(i), "run", "", {}, after=str(dice.randrange(i)) if i else "") for i in range(1000)]
    with cluster(options, Board([], quiet=True)):
        alone = ray.remote(max_retries=0)(lambda: None)
        launch(tasks[:50], "launch_dummies:nothing", options), ray.get([alone.remote() for _ in range(50)])
        rounds = []                                           # the quickest of several: neighbours on the machine only add
        for _ in range(5):
            began = time.perf_counter()
            ray.get([alone.remote() for _ in range(1000)])
            middle = time.perf_counter()
            assert len(launch(tasks, "launch_dummies:nothing", options)) == 1000
            rounds.append((middle - began, time.perf_counter() - middle))
    rays, ours = min(r for r, _ in rounds), min(o for _, o in rounds)
    print(f"Ray alone {rays:.2f} ms a task, the launcher {ours:.2f} ms a node")
    assert ours - rays < 5.0
