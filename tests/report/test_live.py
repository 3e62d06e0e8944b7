"""The progress display: lines without a terminal, a block on one, never a word on stdout."""

from __future__ import annotations

import io
import os
import threading

import pytest

from composer.report.live import Live, Rate, _flow

pty = pytest.importorskip("pty")


def a_run(live, epochs=3, steps=4):
    live.stage("loading data")
    live.phase("burn_in")
    for epoch in range(1, epochs + 1):
        for step in range(1, steps + 1):
            live.step(epoch, step, 128, {"kl": 0.0412} if step == 2 else None)
        live.progress("val pgd-10", 500, 500)
        live.epoch(epoch, {"boosted_ce": 1.2, "kl": 3e-5}, {"clean": 0.91, "pgd-10": 0.543}, best="epoch 1")
    for done in (0, 500, 1000):
        live.progress("aa/apgd-t", done, 1000)


def test_lines_without_a_terminal(capsys):
    file = io.StringIO()
    with Live(3, 4, "title", file=file) as live:
        a_run(live)
        live.say("[not markup]")
    lines = file.getvalue().splitlines()
    assert lines[:2] == ["title", "loading data"] and lines[-2:] == ["aa/apgd-t  1,000/1,000", "[not markup]"]
    assert [line.split("  ")[0] for line in lines[2:-2]] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    for part in ("burn_in", "boosted_ce 1.2000", "kl 3.00e-05", "val  clean 91.00 %", "pgd-10 54.30 %"):
        assert part in lines[2]
    assert "left" in lines[3] and "left" not in lines[4] and capsys.readouterr() == ("", "")


def test_quiet_says_nothing(capfd):
    with Live(3, 4, "title", quiet=True) as live:
        a_run(live)
        live.say("x")
    assert capfd.readouterr() == ("", "")


def on_a_terminal(work, width=80):
    """What `work(file)` writes to a terminal of that width."""
    import fcntl
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    said = []

    def drain():
        try:
            while data := os.read(master, 65536):
                said.append(data)
        except OSError:
            pass

    reader = threading.Thread(target=drain)
    reader.start()
    file = os.fdopen(slave, "w")
    try:
        work(file)
    finally:
        file.close()
        reader.join(5)
        os.close(master)
    return b"".join(said).decode()


@pytest.fixture
def terminal(monkeypatch):
    for name in ("NO_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_block_on_a_terminal_and_the_cursor_comes_back(terminal, capsys):
    def work(file):
        with pytest.raises(KeyboardInterrupt), Live(3, 4, "mart_ours on digits", file=file) as live:
            a_run(live)
            live.say("[a note]")
            raise KeyboardInterrupt

    text = on_a_terminal(work)
    for part in ("mart_ours on digits", "3/3", "burn_in", "boosted_ce 1.2000", "clean 91.00 %", "best at epoch 1", "[a note]"):
        assert part in text
    assert text.index("\x1b[?25l") < text.rindex("\x1b[?25h"), "the cursor was hidden and is shown again"
    assert capsys.readouterr().out == ""


def test_dumb_terminals_get_lines(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    text = on_a_terminal(lambda file: a_run(Live(3, 4, file=file).__enter__()))
    assert "\x1b" not in text and "epoch 3/3" in text


def test_rows_fit_the_width(terminal):
    from rich.console import Console

    from composer.report.live import _Block

    live = Live(110, 391, "a title that is longer than the whole of the narrow window it is shown in", file=io.StringIO())
    live.phase("burn_in, half_radius")
    live.step(34, 200, 128, {f"a_long_term_name_{i}": 0.5 for i in range(6)})
    live.progress("aa/apgd-targeted", 1250, 10000)
    for width in (30, 60, 80):
        file = io.StringIO()
        Console(file=file, width=width).print(_Block(live))
        lines = file.getvalue().splitlines()
        assert max(map(len, lines)) <= width and any("34/110" in line for line in lines) and any("aa/apgd" in line for line in lines)


def test_pairs_are_never_torn():
    assert _flow("terms", ["a 1", "bb 2", "ccc 3"], 18) == ["terms  a 1   bb 2", "       ccc 3"]


def test_rate_leaves_pauses_out():
    rate = Rate(samples=10, apart=0.0)
    for now in (0.0, 1.0, 2.0):
        rate.add(100, now)
    rate.pause()
    rate.add(100, 50.0)
    rate.add(100, 51.0)
    assert rate.value == pytest.approx(100.0) and Rate().value is None


def test_time_left_counts_validation_and_resumed_epochs(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("composer.report.live.time.monotonic", lambda: clock[0])
    live = Live(20, 10, file=io.StringIO())
    live.resume(10)
    for epoch in (11, 12, 13):
        for step in range(1, 11):
            clock[0] += 1.0
            live.step(epoch, step, 100)
        clock[0] += 10.0                                      # validation takes as long as the training
        live.progress("val", 5, 5)
        live.epoch(epoch)
    live.step(14, 1, 100)
    assert live.images.value == pytest.approx(100.0, rel=0.01)
    assert live._left() == "0:02:16 left"                     # 69 steps left at 30 steps in 59 seconds
