"""The tracker against a real MLflow store on disk, against servers that are away, and after deaths at bad moments."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from composer import atomic, track, ui
from composer.track_journal import Journal, locked
from composer.track_mlflow import Sender, client_of


def history(client, run_id, key):
    return sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))


def sender(out, journal, uri=None):
    uri = uri or track.store_uri(out)
    return Sender(journal, uri, track.artifact_root(out, uri), out)


def test_a_whole_run(out, client, tracker, tmp_path):
    (out / "plan.txt").write_text("plan")
    assert tracker.start("mart_ours/0", {"train": {"lr": 0.1}, "n": 3}, {"setting": "digits"}) is None
    for step in range(5):
        tracker.metrics({"train/terms.kl": step / 2, "val/pgd-10": 0.5}, step)
    tracker.artifact(out / "plan.txt", "plans")
    tracker.text("a = 1", "recipe.toml")
    tracker.finish()
    assert tracker.note == "" and not tracker.journal.waiting()
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "mart_ours/0"
    assert run.data.params == {"train.lr": "0.1", "n": "3"} and run.data.tags["setting"] == "digits"
    assert history(client, tracker.run_id, "train/terms.kl") == [(s, s / 2) for s in range(5)]
    assert {a.path for a in client.list_artifacts(tracker.run_id)} == {"plans", "recipe.toml"}
    files = {p.name for p in (out / "artifacts").rglob("*") if p.is_file()}
    assert files == {"plan.txt", "recipe.toml"}
    assert os.listdir(tmp_path) == ["my runs"], "nothing is written into the working folder"


def test_start_does_not_import_mlflow_in_the_caller(out):
    """Nor wait for it: `start` and a thousand records take a fraction of the import."""
    code = """
import sys, time
from pathlib import Path
from composer.track import make_tracker
begin = time.perf_counter()
t = make_tracker(Path(sys.argv[1]), experiment="e", folder=Path(sys.argv[1]) / "f")
before = "mlflow" in sys.modules
t.start("n", {}, {})
for step in range(200):
    t.metrics({"a": 1.0}, step)
print(before, time.perf_counter() - begin)
t.finish()
assert t.note == "" and t.run_id, t.note
"""
    said = subprocess.run([sys.executable, "-c", code, str(out)], check=True, capture_output=True, text=True)
    before, seconds = said.stdout.split()
    assert before == "False" and float(seconds) < 1.0 and said.stderr == ""


def test_resume_goes_on_in_the_same_run(out, client, tracker):
    params = {"a": 1, "long": "x" * 9000}
    tracker.start("n", params, {})
    tracker.metrics({"loss": 1.0}, 1)
    tracker.finish("KILLED")
    again = track.make_tracker(out, experiment="exp", folder=out / "nodes" / "k1")
    assert again.start("n", params | {"b": 2, "a": 5}, {}) == tracker.run_id
    again.metrics({"loss": 0.5}, 2)
    again.finish()
    run = client.get_run(tracker.run_id)
    assert again.run_id == tracker.run_id and run.info.status == "FINISHED"
    assert run.data.params["a"] == "1" and run.data.params["b"] == "2" and run.data.tags["changed.a"] == "5"
    assert "changed.long" not in run.data.tags and len(run.data.params["long"]) <= 6000
    assert history(client, tracker.run_id, "loss") == [(1, 1.0), (2, 0.5)] and again.note == ""
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_run_id_of_another_store_is_not_found_and_a_new_run_is_made(out, client, tracker):
    tracker.start("n", {}, {}, run_id="0" * 32)
    tracker.finish()
    assert tracker.run_id and tracker.run_id != "0" * 32 and client.get_run(tracker.run_id).info.status == "FINISHED"


def test_rewind_drops_what_waits_and_takes_back_what_was_sent(out, client, journal):
    journal.add("start", key="k", name="n", experiment="e", params={}, tags={}, run_id=None, uri="")
    for step in (1, 2, 3, 4):
        journal.add("metrics", step=step, values={"a": float(step)})
    first = sender(out, journal)
    first.flush()
    assert history(client, first.run_id, "a") == [(s, float(s)) for s in (1, 2, 3, 4)]
    journal.add("metrics", step=5, values={"a": 5.0})
    journal.add("rewind", step=2)
    second = sender(out, journal)
    second.flush()
    assert second.run_id == first.run_id
    assert history(client, first.run_id, "a") == [(1, 1.0), (2, 2.0)] and client.get_run(first.run_id).data.metrics == {"a": 2.0}
    for step in (3, 4):
        journal.add("metrics", step=step, values={"a": step * 10.0})
    second.flush()
    assert history(client, first.run_id, "a") == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
    assert client.get_run(first.run_id).data.metrics == {"a": 40.0}


def test_rewind_on_a_server_sends_equal_values_once(out, client, journal, monkeypatch):
    """A store whose tables we may not touch: equal values are not sent again, others win by their later time."""
    monkeypatch.setattr("composer.track_mlflow._delete_beyond", lambda *args: False)
    journal.add("start", key="k", name="n", experiment="e", params={}, tags={}, run_id=None, uri="")
    for step in (1, 2, 3):
        journal.add("metrics", step=step, values={"a": float(step)})
    first = sender(out, journal)
    first.flush()
    journal.add("rewind", step=1)
    first.flush()
    time.sleep(0.01)
    journal.add("metrics", step=2, values={"a": 2.0})
    journal.add("metrics", step=3, values={"a": 33.0})
    last = sender(out, journal)                               # also in a new process
    last.flush()
    assert history(client, first.run_id, "a") == [(1, 1.0), (2, 2.0), (3, 3.0), (3, 33.0)]
    assert client.get_run(first.run_id).data.metrics == {"a": 33.0}


def test_death_between_sending_and_noting_sends_nothing_twice(out, client, journal):
    journal.add("start", key="k", name="n", experiment="e", params={"p": "q"}, tags={}, run_id=None, uri="")
    journal.add("metrics", step=1, values={"a": 1.0})
    journal.add("text", content="t", name="t.txt")
    first = sender(out, journal)
    first.flush()
    journal.state_path.unlink()                               # the note is gone; the server has it all
    second = sender(out, journal)
    second.flush()
    assert second.run_id == first.run_id and history(client, first.run_id, "a") == [(1, 1.0)] and not second.lost


def test_store_that_was_thrown_away_gets_everything_again(out, client, journal, empty_store):
    journal.add("start", key="k", name="n", experiment="e", params={}, tags={}, run_id=None, uri="")
    journal.add("metrics", step=1, values={"a": 1.0})
    first = sender(out, journal)
    first.flush()
    client.delete_run(first.run_id)
    journal.add("metrics", step=2, values={"a": 2.0})
    second = sender(out, journal)
    second.flush()
    assert second.run_id != first.run_id and history(client, second.run_id, "a") == [(1, 1.0), (2, 2.0)]


def test_not_finite_is_left_out_and_said(out, client, tracker):
    tracker.start("n", {}, {})
    tracker.metrics({"a": math.inf, "b": math.nan, "c": 1.0}, 7)
    tracker.metrics({"a": -math.inf}, 8)
    tracker.finish()
    run = client.get_run(tracker.run_id)
    assert run.data.metrics == {"c": 1.0} and run.data.tags["composer.not_finite"] == "a at step 7"


def test_artifact_that_is_gone_stops_nothing(out, client, tracker):
    tracker.start("n", {}, {})
    tracker.artifact(out / "missing.png")
    tracker.metrics({"a": 1.0}, 1)
    tracker.finish()
    assert "missing.png" in tracker.note and client.get_run(tracker.run_id).data.metrics == {"a": 1.0}


def test_many_metrics_and_params_are_sent_in_batches(out, client, journal):
    journal.add("start", key="k", name="n", experiment="e", params={f"p{i}": i for i in range(250)}, tags={f"t{i}": i for i in range(150)},
                run_id=None, uri="")
    for step in range(600):
        journal.add("metrics", step=step, values={f"m{i}": 1.0 for i in range(4)})
    one = sender(out, journal)
    one.flush()
    run = client.get_run(one.run_id)
    assert len(run.data.params) == 250 and sum(name.startswith("t") for name in run.data.tags) == 150 and not one.lost
    assert len(client.get_metric_history(one.run_id, "m3")) == 600


def test_a_deleted_experiment_comes_back(out, client, tracker):
    client.delete_experiment(client.create_experiment("exp"))
    tracker.start("n", {}, {})
    tracker.finish()
    assert tracker.note == "" and client.get_experiment_by_name("exp").lifecycle_stage == "active"


@pytest.fixture
def silent_server():
    """Takes connections and never answers."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(64)
    yield f"http://user:secret@127.0.0.1:{server.getsockname()[1]}"
    server.close()


@pytest.fixture
def dead_server():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"http://127.0.0.1:{port}"


def test_silent_server_never_stalls_a_step(out, silent_server, monkeypatch):
    monkeypatch.setitem(track.FLUSH, "server", 0.5)
    tracker = track.make_tracker(out, experiment="exp", folder=out / "nodes" / "k1", uri=silent_server)
    begin = time.perf_counter()
    tracker.start("n", {}, {})
    worst = 0.0
    for step in range(300):
        before = time.perf_counter()
        tracker.metrics({"a": 1.0}, step)
        worst = max(worst, time.perf_counter() - before)
    tracker.finish()
    assert worst < 0.5 and time.perf_counter() - begin < 5
    assert "composer ui" in tracker.note and "secret" not in tracker.note
    assert "secret" not in tracker.journal.path.read_text() and len(atomic.read_lines(tracker.journal.path)) == 302


def test_dead_server_keeps_the_records_and_deliver_sends_them_later(out, client, dead_server, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead_server)
    tracker = track.make_tracker(out, experiment="exp", folder=out / "nodes" / "k1")
    tracker.start("n", {"a": 1}, {})
    tracker.metrics({"loss": 2.0}, 1)
    tracker.finish("FAILED")
    assert tracker.run_id is None and dead_server in tracker.note
    assert len(track.deliver(out)) == 1, "still away: one sentence"
    monkeypatch.setattr("composer.track_mlflow._clients", {dead_server: client})      # the server is back
    assert track.deliver(out) == [] and not tracker.journal.waiting()
    run = client.search_runs([client.get_experiment_by_name("exp").experiment_id])[0]
    assert run.info.status == "FAILED" and run.data.metrics == {"loss": 2.0}


def test_a_dead_server_is_no_noise_on_the_terminal(out, dead_server):
    code = '''
import sys
from pathlib import Path
from composer.track import make_tracker
t = make_tracker(Path(sys.argv[1]), experiment="e", folder=Path(sys.argv[1]) / "f", uri=sys.argv[2])
t.start("n", {}, {}); t.finish()
print(t.note)
'''
    said = subprocess.run([sys.executable, "-c", code, str(out), dead_server], check=True, capture_output=True, text=True)
    assert said.stderr == "" and said.stdout.count("\n") == 1 and "composer ui" in said.stdout


def test_the_next_run_delivers_what_an_earlier_one_left(out, client, tracker):
    left = Journal(out / "nodes" / "dead")
    left.add("start", key="left", name="left", experiment="exp", params={}, tags={}, run_id=None, uri="")
    left.add("metrics", step=3, values={"a": 1.0})
    tracker.start("n", {}, {})
    deadline = time.monotonic() + 20
    while left.waiting() and time.monotonic() < deadline:
        time.sleep(0.02)
    tracker.finish()
    assert not left.waiting()
    assert {run.info.run_name for run in client.search_runs([client.get_experiment_by_name("exp").experiment_id])} == {"n", "left"}


def test_deliver_leaves_the_journal_of_a_living_process(out, journal):
    journal.add("start", key="k", name="n", experiment="e", params={}, tags={}, run_id=None, uri="")
    with locked(journal.folder / "track.lock", wait=0) as mine:
        assert mine and track.deliver(out) == [] and journal.waiting()
    assert track.deliver(out) == [] and not journal.waiting()


def test_full_disk_loses_records_not_the_run(out, tracker, monkeypatch):
    from composer.errors import ComposerError

    def full(*args, **kwargs):
        raise ComposerError("cannot write x: No space left on device")

    monkeypatch.setattr(atomic, "append_line", full)
    tracker.start("n", {}, {})
    tracker.metrics({"a": 1.0}, 1)
    assert "No space left" in tracker.note


def test_without_mlflow_one_sentence(out, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tracker = track.make_tracker(out, experiment="e")
    assert isinstance(tracker, track.NullTracker) and "mlflow is not installed" in tracker.note
    assert tracker.start("n", {}, {}) is None and tracker.wait(1) is None
    tracker.metrics({"a": 1.0}, 1), tracker.rewind(0), tracker.finish()
    assert track.make_tracker(out, experiment="e", enabled=False).note == ""


@pytest.mark.slow
def test_two_processes_open_a_fresh_store_at_once(tmp_path):
    """MLflow's own migration dies there; the lock makes it safe."""
    code = """
import sys
from pathlib import Path
from composer.track import make_tracker
out = Path(sys.argv[1])
t = make_tracker(out, experiment="e", folder=out / "nodes" / sys.argv[2])
t.start(sys.argv[2], {}, {}); t.metrics({"a": 1.0}, 1); t.finish()
assert t.note == "" and t.run_id, t.note
"""
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)], env=os.environ | {"MLFLOW_TRACKING_URI": ""}) for n in range(2)]
    assert [process.wait(60) for process in started] == [0, 0]


def test_addresses_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runs = Path("runs")
    assert track.store_uri(runs) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert track.store_uri(runs, "sqlite:///x.db") == f"sqlite:///{tmp_path}/x.db"
    assert track.store_uri(runs, "sqlite:////abs/x.db") == "sqlite:////abs/x.db"
    for base in (track.store_uri(runs), "postgresql+psycopg2://h/d"):
        assert track.artifact_root(runs, base) == (tmp_path / "runs" / "artifacts").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:1")
    assert track.store_uri(runs) == "http://host:1" and track.artifact_root(runs, "http://host:1") is None


@pytest.mark.slow
def test_a_real_server_that_comes_up_late(tmp_path, dead_server, monkeypatch):
    """Records of a run that found no server arrive, with files, once one listens there; a resumed run goes on in the same run."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead_server)
    monkeypatch.setitem(track.FLUSH, "server", 2.0)
    out = tmp_path / "runs"
    first = track.make_tracker(out, experiment="e", folder=out / "n")
    first.start("n", {"a": 1}, {})
    first.metrics({"x": 1.0}, 1)
    first.text("hello", "a.txt")
    first.finish("KILLED")
    assert first.journal.waiting()
    store = track.own_store(tmp_path / "server")
    (tmp_path / "server").mkdir()
    line = ui.command(tmp_path / "server", store, int(dead_server.rsplit(":", 1)[1]), "127.0.0.1")
    server = subprocess.Popen(line, env=ui.environment(os.environ), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while first.journal.waiting() and time.monotonic() < deadline:
            track.deliver(out)
            time.sleep(1)
        assert not first.journal.waiting()
        again = track.make_tracker(out, experiment="e", folder=out / "n")
        again.start("n", {"a": 1}, {})
        again.rewind(0)
        again.metrics({"x": 1.0}, 1)
        again.finish()
        client = client_of(dead_server, out)
        run = client.get_run(again.run_id)
        assert run.info.status == "FINISHED" and run.data.params == {"a": "1"} and len(client.get_metric_history(again.run_id, "x")) == 1
        assert [a.path for a in client.list_artifacts(again.run_id)] == ["a.txt"] and again.note == ""
    finally:
        os.killpg(server.pid, signal.SIGKILL)          # its workers too
        server.wait()


def test_start_waits_for_its_id(out, tracker):
    tracker.start("n", {}, {})
    assert tracker.wait(20) == tracker.run_id is not None
    tracker.finish()
