"""What goes wrong outside ends in one clear sentence, the right exit code, and nothing lost."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from composer.engine import checkpoint
from composer.engine.lock import Lock
from composer.engine.train import Trainer
from composer.errors import ComposerError, Diverged, Stopped


def only_folder(out: Path) -> Path:
    (folder,) = (out / "nodes").iterdir()
    return folder


def progress(path: Path) -> dict:
    return checkpoint.facts(path)["progress"]


# -- numbers that are not finite -------------------------------------------------------------------------------------------------------


def test_divergence_names_step_and_term_and_keeps_the_checkpoint(go, away, tmp_path):
    wild = ("train.lr=1e30", "train.epochs=2", "optim.clip=1e30")
    process = away("trades", tmp_path / "out", *wild, environment={"COMPOSER_CHECKPOINT_SECONDS": "0"})
    assert process.code() == 3
    said = process.stderr
    assert "training diverged in epoch 1, step " in said and "not finite" in said and "terms." in said and "Fix: a lower train.lr" in said
    assert not list((tmp_path / "out").rglob("result.json")) and not list((tmp_path / "out").rglob("final.safetensors"))
    kept, _ = checkpoint.newest(only_folder(tmp_path / "out"))
    assert kept is None or all(torch.isfinite(t).all() for k, t in kept.tensors.items() if t.is_floating_point() and not k.startswith("meter/"))
    assert away("trades", tmp_path / "out", *wild).code() == 3, "it is deterministic: the same diverges again"
    tame = away("trades", tmp_path / "out", "train.epochs=2", "--json")
    assert tame.code() == 0 and json.loads(tame.stdout)["steps"] == 6


@pytest.mark.parametrize("at", [1, 5])
def test_a_broken_weight_under_a_finite_loss(at, go, tmp_path, monkeypatch):
    """An infinite gradient spoils the weights while the loss of the same step is fine: no checkpoint may keep them, no result be made of them."""
    plain, done = Trainer._step, []

    def step(self, batch, epoch):
        plain(self, batch, epoch)
        done.append(1)
        if len(done) == at:
            with torch.no_grad():
                next(iter(self.net.parameters.values())).view(-1)[0] = float("nan")

    monkeypatch.setattr(Trainer, "_step", step)
    with pytest.raises(Diverged) as error:
        go("at", tmp_path, **{"train.epochs": 2}, settings={"checkpoint_seconds": 0.0})
    assert f"step {at}" in error.value.what and "the weight" in error.value.what
    kept, _ = checkpoint.newest(only_folder(tmp_path))
    assert (kept is None) == (at == 1) and ("the last good checkpoint is kept" in error.value.why) == (at > 1)
    if kept:
        assert kept.facts["progress"]["step"] == at - 1 and torch.isfinite(kept.tensors["model/head.weight"]).all()
    monkeypatch.setattr(Trainer, "_step", plain)
    assert go("at", tmp_path, **{"train.epochs": 2})["weights_sha256"] == go("at", tmp_path / "whole", **{"train.epochs": 2})["weights_sha256"]


def test_no_whole_batch_is_said_at_once(go, tmp_path):
    with pytest.raises(ComposerError, match="leaves no whole batch of 64 training images") as error:
        go("at", tmp_path, **{"train.batch_size": 65, "train.last": '"drop"'})
    assert error.value.exit_code == 2


# -- damaged files ---------------------------------------------------------------------------------------------------------------------


def truncate(path: Path, part: float = 0.5) -> None:
    with open(path, "r+b") as file:
        file.truncate(int(path.stat().st_size * part))


@pytest.fixture
def halfway(go, stop_after, tmp_path):
    """A run of 9 steps, stopped after 5, with a checkpoint of every step; the result of one that was not stopped."""
    whole = go("mart_ours", tmp_path / "whole")
    stop_after(5)
    with pytest.raises(Stopped):
        go("mart_ours", tmp_path / "out", settings={"checkpoint_seconds": 0.0})
    stop_after(None)
    return whole


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_checkpoint_is_passed_over(part, halfway, go, tmp_path, capfd):
    folder = only_folder(tmp_path / "out")
    truncate(folder / checkpoint.CURRENT, part)
    result = go("mart_ours", tmp_path / "out", settings={"quiet": False})
    assert result["weights_sha256"] == halfway["weights_sha256"] and result["metrics"] == halfway["metrics"]
    said = capfd.readouterr().err
    assert said.count("going on from the checkpoint before it") == 1 and "truncated or damaged" in said


def test_both_checkpoints_truncated(halfway, go, tmp_path):
    folder = only_folder(tmp_path / "out")
    for name in (checkpoint.CURRENT, checkpoint.PREVIOUS):
        truncate(folder / name)
    with pytest.raises(ComposerError) as error:
        go("mart_ours", tmp_path / "out")
    assert error.value.exit_code == 2 and error.value.what == f"no checkpoint in {folder} can be read" and "--fresh" in error.value.fix
    assert not (folder / "lock").exists()
    assert go("mart_ours", tmp_path / "out", settings={"fresh": True})["weights_sha256"] == halfway["weights_sha256"]


def test_a_finished_stretch_with_a_damaged_end_is_finished_again(go, record, tmp_path):
    """`done` beside a checkpoint that cannot be read is no reason to judge what is there."""
    whole = go("piat_nmse", tmp_path)
    first, second = record(tmp_path, whole["run"]).folders
    (tmp_path / "experiments" / whole["run"] / "result.json").unlink()
    truncate(second / checkpoint.CURRENT)
    assert go("piat_nmse", tmp_path)["weights_sha256"] == whole["weights_sha256"]
    (tmp_path / "experiments" / whole["run"] / "result.json").unlink()
    (first / checkpoint.CURRENT).unlink()
    (first / checkpoint.PREVIOUS).unlink()
    assert go("piat_nmse", tmp_path)["weights_sha256"] == whole["weights_sha256"]
    assert [row["epoch"] for row in record(tmp_path, whole["run"]).rows] == [1, 2, 3]


def test_a_torn_record_of_epochs(halfway, go, record, tmp_path):
    folder = only_folder(tmp_path / "out")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "st')
    go("mart_ours", tmp_path / "out")
    assert record(tmp_path / "out", halfway["run"]).rows == record(tmp_path / "whole", halfway["run"]).rows


def test_a_data_file_of_the_wrong_size(away, tmp_path):
    """Named in the setting: half an npz. By name: CIFAR-10 with a short file."""
    (tmp_path / "half.npz").write_bytes(b"PK" + bytes(1000))
    process = away("at", tmp_path / "out", f"data.file='{tmp_path / 'half.npz'}'")
    assert process.code() == 2 and f"{tmp_path / 'half.npz'}" in process.stderr and "1,002 bytes" in process.stderr
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(b"short")
    process = away("at", tmp_path / "out", "data={use='cifar10'}", f"--data-root={tmp_path}")
    assert process.code() == 2 and "data_batch_1" in process.stderr and "Traceback" not in process.stderr
    assert not (tmp_path / "out" / "nodes").exists()


# -- the disk --------------------------------------------------------------------------------------------------------------------------


def test_a_file_in_the_way_of_out(away, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        process = away("at", out)
        assert process.code() == 2
        assert process.stderr.startswith(f"--out {out}\n") and "cannot write" in process.stderr and "another" in process.stderr
        assert len(process.stderr.splitlines()) == 3 and ".probe" not in process.stderr
    assert (tmp_path / "file").read_text() == "mine"


@contextlib.contextmanager
def mounted(folder: Path, size: str):
    """A small file system of its own; the test is passed over where this user may not mount one (the limit on a file's size is tested anyway)."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_read_only(away, tmp_path):
    with mounted(tmp_path / "disk", "1m"):
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        process = away("at", tmp_path / "disk" / "out")
        assert process.code() == 2 and "Read-only file system" in process.stderr


def test_a_disk_that_fills_up_while_training(go, away, record, tmp_path):
    """One sentence, the checkpoint before is there, and with room it ends as if nothing had been."""
    whole = go("at", tmp_path / "whole", **{"train.epochs": 40})
    with mounted(tmp_path / "disk", "300k"):
        out = tmp_path / "disk" / "out"
        process = away("at", out, "train.epochs=40", environment={"COMPOSER_CHECKPOINT_SECONDS": "0"})
        process.until_epoch(3)
        with contextlib.suppress(OSError), open(tmp_path / "disk" / "ballast", "wb") as file:
            while True:
                file.write(b"x" * 1024)
                file.flush()
        assert process.code() == 2
        assert "No space left on device" in process.stderr and "Fix: free space" in process.stderr and "Traceback" not in process.stderr
        folder = only_folder(out)
        kept, _ = checkpoint.newest(folder)
        assert kept is not None and 6 <= kept.facts["progress"]["step"] < 120 and not list(out.rglob(".tmp-*"))
        (tmp_path / "disk" / "ballast").unlink()
        again = away("at", out, "train.epochs=40", "--json")
        assert again.code() == 0, again.stderr
        assert json.loads(again.stdout)["weights_sha256"] == whole["weights_sha256"]
        assert record(out, whole["run"]).rows == record(tmp_path / "whole", whole["run"]).rows


def test_files_that_may_not_grow(go, away, stop_after, record, tmp_path):
    """The same by a limit on the size of files, as `ulimit -f` sets: checkpoints no longer fit."""
    whole = go("at", tmp_path / "whole")
    stop_after(4)
    with pytest.raises(Stopped):
        go("at", tmp_path / "out")
    size = (only_folder(tmp_path / "out") / checkpoint.CURRENT).stat().st_size
    process = away("at", tmp_path / "out", file_limit=size // 2)
    assert process.code() == 2
    assert "File too large" in process.stderr and "ulimit" in process.stderr and "Traceback" not in process.stderr
    assert progress(only_folder(tmp_path / "out") / checkpoint.CURRENT)["step"] == 4
    stop_after(None)
    assert go("at", tmp_path / "out")["weights_sha256"] == whole["weights_sha256"]


def test_a_checkpoint_that_cannot_be_written_leaves_both_old_ones(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.keep(tmp_path, checkpoint.Saved({"a": torch.full((4,), float(step))}, {"step": step}))

    def full(tensors, path, metadata=None):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(ComposerError, match="No space left"):
        checkpoint.keep(tmp_path, checkpoint.Saved({"a": torch.zeros(4)}, {"step": 3}))
    assert [checkpoint.facts(tmp_path / n)["step"] for n in (checkpoint.CURRENT, checkpoint.PREVIOUS)] == [2, 1]
    assert sorted(p.name for p in tmp_path.iterdir()) == [checkpoint.PREVIOUS, checkpoint.CURRENT]


# -- two processes ---------------------------------------------------------------------------------------------------------------------


def test_two_processes_with_one_command(go, away, tmp_path):
    out = tmp_path / "out"
    first = away("mart", out, "train.epochs=40")
    first.until_epoch(1)
    first.send(signal.SIGSTOP)                                   # it holds still while others try
    for flags in ((), ("--fresh",)):
        second = away("mart", out, "train.epochs=40", *flags)
        assert second.code() == 2
        assert f"another process is training this: pid {first.process.pid} on {socket.gethostname()}" in second.stderr
        assert len(second.stderr.splitlines()) == 3
    first.send(signal.SIGCONT)
    assert first.code() == 0, first.stderr
    third = away("mart", out, "train.epochs=40", "--json")
    assert third.code() == 0
    assert json.loads(third.stdout)["weights_sha256"] == go("mart", tmp_path / "whole", **{"train.epochs": 40})["weights_sha256"]


def test_two_experiments_that_share_a_stretch(go, away, record, tmp_path):
    """Another evaluation of the same training: the one who comes second waits for the user, and finds it trained afterwards."""
    out = tmp_path / "out"
    first = away("mart", out, "train.epochs=30")
    first.until_epoch(1)
    first.send(signal.SIGSTOP)
    second = away("mart", out, "train.epochs=30", "evaluate.pgd-3.steps=4")
    assert second.code() == 2 and "another process is training this" in second.stderr and "nodes" in second.stderr
    first.send(signal.SIGCONT)
    assert first.code() == 0, first.stderr
    done = (only_folder(out) / "done").stat().st_mtime_ns
    assert away("mart", out, "train.epochs=30", "evaluate.pgd-3.steps=4").code() == 0
    assert (only_folder(out) / "done").stat().st_mtime_ns == done


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("text", [
    lambda: json.dumps({"pid": dead_pid(), "host": socket.gethostname(), "heartbeat": time.time()}),
    lambda: json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "heartbeat": time.time(), "started": "an earlier boot/1"}),
    lambda: json.dumps({"pid": 1, "host": "a host that is gone", "heartbeat": 0}),
    lambda: "", lambda: "[]", lambda: '{"pid": "1"}'], ids=["dead", "number reused", "other host, silent", "empty", "no table", "no number"])
def test_a_lock_without_a_living_owner_is_taken_over(text, go, stop_after, tmp_path):
    stop_after(2)
    with pytest.raises(Stopped):
        go("at", tmp_path)
    path = only_folder(tmp_path) / "lock"
    path.write_text(text())
    if "dead" not in text():
        os.utime(path, (time.time() - 1000,) * 2)
    stop_after(None)
    assert go("at", tmp_path)["steps"] == 9 and not path.exists()


@pytest.mark.parametrize("text", [
    lambda: json.dumps({"pid": os.getppid(), "host": socket.gethostname(), "heartbeat": 0}),
    lambda: json.dumps({"pid": 1, "host": "another host", "heartbeat": 0}), lambda: ""], ids=["alive", "other host", "being written"])
def test_a_lock_with_a_living_owner_stands(text, tmp_path):
    (tmp_path / "lock").write_text(text())
    with pytest.raises(ComposerError, match="another process is training this"), Lock(tmp_path):
        pass
    assert (tmp_path / "lock").read_text() == text()


def test_a_dead_process_nobody_asked_about_is_dead(tmp_path):
    """A killed child stays in the table of processes until its parent asks for its exit code."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (tmp_path / "lock").write_text(json.dumps({"pid": process.pid, "host": socket.gethostname(), "heartbeat": time.time()}))
    with pytest.raises(ComposerError), Lock(tmp_path):
        pass
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with Lock(tmp_path):
        pass
    process.wait()


def test_the_heart_beats_without_steps(tmp_path, monkeypatch):
    """A validation of many minutes is no death: a thread keeps the lock fresh; who lost it all the same is told."""
    from composer.engine import lock as room

    monkeypatch.setattr(room, "BEAT", 0.02)
    with Lock(tmp_path) as lock:
        os.utime(tmp_path / "lock", (0, 0))
        limit = time.monotonic() + 10
        while (tmp_path / "lock").stat().st_mtime < 1 and time.monotonic() < limit:
            time.sleep(0.01)
        assert time.time() - (tmp_path / "lock").stat().st_mtime < 60
        lock.beat()
        (tmp_path / "lock").write_text(json.dumps({"pid": 1, "host": "another host", "token": "theirs"}))
        with pytest.raises(ComposerError, match="another process has taken this over: pid 1 on another host"):
            while time.monotonic() < limit:
                lock.beat()
                time.sleep(0.01)
    assert (tmp_path / "lock").exists(), "the other's lock was removed"


def take(folder: str, held, wins) -> None:
    with contextlib.suppress(ComposerError), Lock(Path(folder)):
        with held.get_lock():
            held.value += 1
            wins.value = max(wins.value, held.value)
        time.sleep(0.02)
        with held.get_lock():
            held.value -= 1


def test_many_who_take_over_one_dead_lock(tmp_path):
    """At no moment two of them hold it."""
    context = multiprocessing.get_context("fork")
    held, most = context.Value("i", 0), context.Value("i", 0)
    for _ in range(5):
        (tmp_path / "lock").write_text(json.dumps({"pid": dead_pid(), "host": socket.gethostname(), "heartbeat": 0}))
        crowd = [context.Process(target=take, args=(str(tmp_path), held, most)) for _ in range(8)]
        for each in crowd:
            each.start()
        for each in crowd:
            each.join(30)
    assert most.value == 1 and not (tmp_path / "lock").exists()


# -- words -----------------------------------------------------------------------------------------------------------------------------


def test_weights_to_judge_are_looked_for_before_training(go, tmp_path):
    """interpolate offers no weights: said before the first step, not after the last."""
    for path in ("select.weights", "evaluate.weights"):
        with pytest.raises(ComposerError, match="no part of that name offers weights"):
            go("piat_nmse", tmp_path, drops=("toggle.interpolate",), **{path: '"interpolate"'})
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_odd_environment(away, tmp_path):
    process = away("at", tmp_path, environment={"COMPOSER_CHECKPOINT_SECONDS": "soon"})
    assert process.code() == 2 and "COMPOSER_CHECKPOINT_SECONDS=soon" in process.stderr
