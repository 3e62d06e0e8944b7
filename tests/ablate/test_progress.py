"""The display over all tasks: numbers against a clock of the test's, files that workers write, lines and the redrawn block."""

from __future__ import annotations

import io
import os
import threading
import time

import pytest

from composer.ablate import progress
from composer.ablate.progress import Board, Facts, read, row_text, tell
from composer.ablate.types import Task


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when the test says so."""
    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


PREFIX = Task("p", "prefix", "epochs 1-16 of 2 cells, seed 0", {}, epochs=16)
CELLS = [Task(f"c{i}", "run", f"cell {i}, seed 0", {}, after="p", epochs=6) for i in range(2)]
TASKS = [PREFIX, *CELLS]


# -- files


def test_what_is_told_is_read(tmp_path):
    file = tmp_path / "progress" / "a.json"
    assert read(file) is None
    tell(file, 3, 10, "train")
    assert read(file) == Facts(3, 10, "train")
    for broken in ("", "{", "[1]", '{"epoch": "x"}', "null"):
        file.write_text(broken)
        assert read(file) is None
    assert os.listdir(file.parent) == ["a.json"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    file, end = tmp_path / "a.json", threading.Event()
    tell(file, 0, 1)

    def write() -> None:
        n = 0
        while not end.is_set():
            n += 1
            tell(file, n, 10**9, "x" * (n % 5000))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert all(read(file) is not None for _ in range(2000))
    finally:
        end.set()
        writer.join()


def test_telling_ends_no_training(tmp_path):
    (tmp_path / "file").touch()
    tell(tmp_path / "file" / "a.json", 1, 2)                 # no folder can be there


def test_telling_is_cheap(tmp_path):
    began = time.perf_counter()
    for n in range(200):
        tell(tmp_path / "a.json", n, 200, "train")
    assert (time.perf_counter() - began) / 200 < 5e-3


# -- numbers


def test_epochs_pace_and_time_left(clock):
    board = Board(TASKS, quiet=True)
    assert board.epochs == 28 and board.pace is None and board.left is None
    board.started(PREFIX, 1)
    clock.now += 10
    board.at(PREFIX, Facts(5, 16, "train"))
    assert board.behind == 5 and board.pace == pytest.approx(0.5) and board.left == pytest.approx(23 / 0.5)
    clock.now += 22
    board.done(PREFIX, {"node": "x"}, {"seconds": 32})
    for each in CELLS:
        board.started(each, 1)
        board.at(each, Facts(17, 22, "train"))                # one of its own six; sixteen were the prefix's
    assert board.behind == 18 and board.pace == pytest.approx(18 / 32)
    assert board.left == pytest.approx(10 / (18 / 32))
    board.done(CELLS[0], {}, {})
    board.done(CELLS[1], {"failed": {"why": "no"}}, {})
    assert board.behind == 28 and board.left == 0 and board.failed == 1 and board.finished == 3


def test_epochs_of_a_checkpoint_make_no_pace(clock):
    board = Board([PREFIX], quiet=True)
    board.started(PREFIX, 2)
    clock.now += 2
    board.at(PREFIX, Facts(10, 16, "resumed", 10))
    assert board.behind == 10 and board.pace is None
    clock.now += 2
    board.at(PREFIX, Facts(12, 16, "train", 10))
    assert board.pace == pytest.approx(2 / 4) and board.left == pytest.approx(4 / 0.5)
    clock.now += 8
    board.done(PREFIX, {}, {})
    assert board.pace == pytest.approx(6 / 12)


def test_a_task_that_was_done_makes_no_pace(clock):
    board = Board(TASKS, quiet=True)
    board.started(PREFIX, 1)
    clock.now += 1
    board.done(PREFIX, {"node": "x"}, {"seconds": 0.1})
    assert board.behind == 16 and board.pace is None


def test_a_lost_worker_takes_its_epochs_along(clock):
    board = Board(TASKS, file=io.StringIO())
    board.started(PREFIX, 1)
    board.at(PREFIX, Facts(5, 16, "train"))
    board.lost(PREFIX, "the worker was lost", True)
    assert board.behind == 0 and "tried again" in board.file.getvalue()
    board.at(PREFIX, Facts(6, 16, "train"))                   # a file that was left behind
    assert board.behind == 0


# -- what is shown


def test_lines_where_there_is_no_terminal(clock):
    file = io.StringIO()
    with Board(TASKS, "ema, margin: 3 tasks", file=file) as board:
        board.started(PREFIX, 1)
        clock.now += 16
        board.at(PREFIX, Facts(8, 16, "train"))
        board.tick()
        clock.now += 50
        board.tick()
        board.done(PREFIX, {}, {"seconds": 66})
        board.done(CELLS[0], {"failed": {"why": "the loss is not finite\nat step 3", "diverged": True}}, {})
    lines = file.getvalue().splitlines()
    assert lines[0] == "ema, margin: 3 tasks"
    assert lines[1] == "0/3 done  1 running  8/28 epochs  0.12 epochs/s  0:02:45 left"      # 66 s after the start: 8 / 66; 20 left
    assert lines[2] == "done 1/3  epochs 1-16 of 2 cells, seed 0  0:01:06  16/28 epochs  0.24 epochs/s  0:00:50 left"
    assert lines[3].startswith("diverged 2/3  cell 0, seed 0: the loss is not finite")


def test_quiet_says_nothing(clock):
    file = io.StringIO()
    with Board(TASKS, "title", quiet=True, file=file) as board:
        board.started(PREFIX, 1)
        board.say("x")
        board.done(PREFIX, {"failed": {"why": "x"}}, {})
        clock.now += 100
        board.tick()
    assert file.getvalue() == ""


def test_rows(clock):
    board = Board(TASKS, quiet=True)
    board.started(PREFIX, 2)
    row = board.running["p"]
    assert row_text(row, clock.now + 3) == "epochs 1-16 of 2 cells, seed 0  waiting for a place  attempt 2  0:00:03"
    board.at(PREFIX, Facts(0, 0, "starting"))
    assert "  starting  " in row_text(row, clock.now)
    board.at(PREFIX, Facts(7, 16, "aa 300/1000"))
    assert "  epoch 7/16  aa 300/1000  " in row_text(row, clock.now)


def test_a_terminal_is_redrawn(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    many = [Task(f"t{i}", "run", f"[cell] {i}", {}, epochs=2) for i in range(20)]
    with Board(many, "grid", file=Terminal()) as board:
        for each in many[:15]:
            board.started(each, 1)
        board.done(many[0], {"failed": {"why": "broken [here]"}}, {})
        board._rich.refresh()
        board.say("a line")
        shown = board.file.getvalue()
    assert "grid" in shown and "[cell] 1 " in shown and "and 2 more" in shown and "failed: [cell] 0: broken [here]" in shown and "a line" in shown
    with Board(many, "grid", file=Terminal(), redraw=False) as board:
        board.done(many[0], {}, {})
    assert board.file.getvalue().splitlines() == ["grid", "done 1/20  [cell] 0  0:00:00  2/40 epochs"]
