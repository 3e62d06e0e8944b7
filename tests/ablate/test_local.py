"""Tasks in this process: order, failures, stops, what a task is told and what is kept of it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from composer.ablate import local
from composer.ablate.forest import Forest
from composer.ablate.launch import LaunchOptions, launch
from composer.ablate.local import call, file_of
from composer.ablate.progress import Board
from composer.ablate.stop import Stop
from composer.ablate.types import Task
from composer.engine.lock import Lock
from composer.errors import Stopped

HERE = Path(__file__).parent


def task(folder: Path, name: str, after: str = "", **spec) -> Task:
    return Task(name, "run", f"title of {name}", {"name": name, "folder": str(folder), **spec}, after=after, epochs=spec.get("epochs", 0))


@pytest.fixture
def options(tmp_path):
    yield LaunchOptions(tmp_path / "study", threads=0, sys_path=(str(HERE),), quiet=True)
    if str(HERE) in sys.path:
        sys.path.remove(str(HERE))


# -- the forest


def test_depth_first_whatever_the_order_of_the_list(tmp_path):
    tasks = [task(tmp_path, *pair) for pair in (("b1", "b"), ("a",), ("b",), ("a2", "a"), ("a1", "a"), ("a21", "a2"))]
    forest, order = Forest(tasks), []
    while forest.ready:
        order.append(forest.take())
        forest.finish(order[-1], {})
    assert [t.id for t in order] == ["a", "a2", "a21", "a1", "b", "b1"]
    assert forest.left == 0


def test_children_wait_for_their_parent_and_go_before_other_roots(tmp_path):
    forest = Forest([task(tmp_path, "a"), task(tmp_path, "b"), task(tmp_path, "c"), task(tmp_path, "a1", "a")])
    first, second = forest.take(), forest.take()
    assert (first.id, second.id) == ("a", "b")
    forest.finish(first, {})
    assert forest.take().id == "a1"


def test_a_chain_of_ten_thousand_is_no_recursion(tmp_path):
    tasks = [task(tmp_path, str(i), str(i - 1) if i else "") for i in range(10_000)]
    forest = Forest(tasks)
    lost = forest.finish(forest.take(), {"failed": {"why": "no", "diverged": True, "exit_code": 3}})
    assert len(lost) == 9_999 and forest.left == 0
    assert forest.answers["9999"]["failed"] == {"why": "title of 0 failed: no", "diverged": True, "exit_code": 3, "after": "0"}


@pytest.mark.parametrize(("pairs", "what"), [((("a",), ("a",)), "share the id"), ((("a", "b"),), "is not there"), ((("a", "b"), ("b", "a")), "wait for each")])
def test_a_forest_that_is_none(tmp_path, pairs, what):
    with pytest.raises(ValueError, match=what):
        Forest([task(tmp_path, *pair) for pair in pairs])


# -- one call


def ask(function: str, folder: Path, setup: dict | None = None, **spec) -> dict:
    return json.loads(call(f"launch_dummies:{function}", json.dumps({"name": "t", "folder": str(folder), **spec}), {"sys_path": [str(HERE)], **(setup or {})}))


def test_what_an_exception_becomes(tmp_path):
    trouble = ask("work", tmp_path, trouble="raise")["answer"]["failed"]
    assert trouble["why"] == "ValueError: no such thing" and trouble["exit_code"] == 1 and not trouble["diverged"]
    assert "_misbehave" in trouble["traceback"]
    trouble = ask("work", tmp_path, trouble="diverge")["answer"]["failed"]
    assert trouble == {"why": "the loss is not finite", "diverged": True, "exit_code": 3}
    assert "stopped" in ask("work", tmp_path, trouble="term")
    assert "is not JSON" in ask("answers_no_json", tmp_path)["answer"]["failed"]["why"]
    assert ask("answers_failed", tmp_path)["answer"]["failed"]["why"] == "it says so"
    assert "cannot be imported" in ask("not_there", tmp_path)["answer"]["failed"]["why"]


def test_a_folder_that_another_holds_is_no_failure(tmp_path):
    with Lock(tmp_path / "t"):
        assert "another process is training this" in ask("work", tmp_path)["held"]


def test_what_the_work_prints_goes_to_the_log(tmp_path, capfd):
    log = tmp_path / "logs" / "t.log"
    ask("prints", tmp_path, {"log": str(log)})
    ask("prints", tmp_path, {"log": str(log)})
    assert log.read_text().count("from below\n") == 2
    assert "from below" not in capfd.readouterr().out
    ask("prints", tmp_path)
    assert "from below" in capfd.readouterr().out
    ask("nothing", tmp_path, {"log": str(tmp_path / "empty.log")})
    assert not (tmp_path / "empty.log").exists()


def test_file_names_of_ids():
    assert file_of(Task("full-s0", "run", "", {})) == "full-s0"
    odd = [file_of(Task(name, "run", "", {})) for name in ("a/b", "a b", "a_b", "x" * 300, "x" * 301)]
    assert len(set(odd)) == 5 and all("/" not in name and len(name) < 100 for name in odd)


# -- all of them here


def test_answers_and_failures_and_what_follows_them(tmp_path, options):
    tasks = [task(tmp_path, "p", epochs=2), task(tmp_path, "p1", "p", epochs=1), task(tmp_path, "bad", trouble="raise"), task(tmp_path, "bad1", "bad"),
             task(tmp_path, "bad2", "bad1"), task(tmp_path, "q")]
    answers = launch(tasks, "launch_dummies:work", options)
    assert list(answers) == ["p", "p1", "bad", "bad1", "bad2", "q"]
    assert answers["p"] == {"name": "p", "epochs": 2} and answers["q"]["name"] == "q"
    assert answers["bad2"]["failed"]["why"] == "title of bad failed: ValueError: no such thing" and answers["bad2"]["failed"]["after"] == "bad"
    assert not (tmp_path / "bad1").exists()
    assert not list((options.folder / "progress").iterdir()), "progress files of finished tasks stay behind"


def test_nothing_to_do(options):
    assert launch([], "launch_dummies:work", options) == {}
    assert not options.folder.exists()


def test_threads_are_set_for_the_task_and_given_back(options):
    import torch

    before, count = os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()
    answers = launch([Task("t", "run", "", {})], "launch_dummies:torch_threads", LaunchOptions(options.folder, threads=3, sys_path=options.sys_path, quiet=True))
    assert answers["t"] == {"threads": 3, "interop": "3"}
    assert os.environ.get("OMP_NUM_THREADS") == before and torch.get_num_threads() == count


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_stops_between_tasks_and_the_next_call_goes_on(tmp_path, options, number, code):
    tasks = [task(tmp_path, str(i), epochs=3, seconds=0.15) for i in range(3)]
    timer = threading.Timer(0.7, os.kill, (os.getpid(), number))
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    timer.start()
    with pytest.raises(Stopped, match="of 3 tasks are done") as caught:
        launch(tasks, "launch_dummies:work", options)
    timer.join()
    assert caught.value.exit_code == code and 1 <= len(caught.value.answers) < 3
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert not list(options.folder.glob(".stop-*"))
    assert len(launch(tasks, "launch_dummies:work", options)) == 3
    for i in range(3):
        assert [int(line) for line in (tmp_path / str(i) / "epochs.jsonl").read_text().split()] == [1, 2, 3], "an epoch was trained twice"


def test_a_task_that_another_process_holds_is_waited_for(tmp_path, options, monkeypatch):
    monkeypatch.setattr(local, "WAIT_FOR_OTHERS", 0.1)
    with Lock(tmp_path / "a") as held:
        threading.Timer(0.5, held.__exit__).start()
        began = time.monotonic()
        assert launch([task(tmp_path, "a")], "launch_dummies:work", options)["a"]["name"] == "a"
        assert time.monotonic() - began > 0.4


def test_a_report_of_ones_own(tmp_path, options):
    seen = []

    class Told(Board):
        def started(self, task, attempt):
            seen.append(f"{task.id} {attempt}")

        def done(self, task, answer, facts):
            seen.append(f"{task.id} {facts.get('pid')}")

    launch([task(tmp_path, "a"), task(tmp_path, "b")], "launch_dummies:work", options, Told([], quiet=True))
    assert seen == ["a 1", f"a {os.getpid()}", "b 1", f"b {os.getpid()}"]


def test_a_stop_file_of_an_earlier_launch_stops_nobody(tmp_path):
    with Stop(tmp_path) as old:
        old.ask("SIGTERM")
        with Stop(tmp_path) as new:
            assert old.file.exists() and not new.file.exists()
