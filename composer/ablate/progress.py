"""One display over all tasks of a grid, on stderr: redrawn on a terminal, lines elsewhere.

Workers tell where they are through small files, one a task, written at most once an epoch and read by the driver twice a second. Files and not
Ray: they cost a tenth of a millisecond, they work across machines (--out is shared anyway) and without Ray, and what a killed worker last told
stays readable.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from composer.ablate.types import Task
from composer.report.table import span

EVERY = 60.0         # seconds between two summaries where there is no terminal
ROWS = 12            # running tasks that are listed


@dataclass(frozen=True)
class Facts:
    """What a task last told: `epoch` of `of` are done, counted from the beginning of the run, `since` of them before this attempt; `stage` in a
    word ("train", "aa 300/1000")."""

    epoch: int = 0
    of: int = 0
    stage: str = ""
    since: int = 0


def tell(path: Path | str, epoch: int = 0, of: int = 0, stage: str = "", since: int = 0) -> None:
    """Write where a task is: whole or not at all, without waiting for the disk. A full disk does not end a training for it."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps({"epoch": epoch, "of": of, "stage": stage, "since": since}))
        os.replace(beside, path)


def read(path: Path | str) -> Facts | None:
    """What was told last; None where nothing was, or nothing that can be read."""
    try:
        told = json.loads(Path(path).read_text())
        return Facts(int(told.get("epoch", 0)), int(told.get("of", 0)), str(told.get("stage", "")), int(told.get("since", 0)))
    except (OSError, ValueError, TypeError, AttributeError):
        return None


@dataclass
class Running:
    """A task in the making."""

    task: Task
    attempt: int
    began: float
    facts: Facts | None = None
    note: str = ""

    @property
    def trained(self) -> int:
        """Epochs of its own that are behind it."""
        return self._own(self.facts.epoch) if self.facts else 0

    @property
    def base(self) -> int:
        """Epochs of its own that it had behind it when this attempt began: a checkpoint's."""
        return self._own(self.facts.since) if self.facts else 0

    def _own(self, epoch: int) -> int:
        """Of the task's epochs, the last ones of its run, as many as end by this one."""
        assert self.facts is not None
        return max(0, min(self.task.epochs, self.task.epochs - (self.facts.of - epoch))) if self.facts.of else 0


class Board:
    """`with Board(tasks, "ema,margin x 3 seeds") as board`: a Report for `launch`.

    The time left is epochs left / epochs a second, measured over everything since the first task began, evaluations included. `redraw = False`
    keeps to lines, for tasks that draw themselves. `quiet` shows nothing.
    """

    def __init__(self, tasks: Sequence[Task], title: str = "", *, quiet: bool = False, redraw: bool = True, file: IO[str] | None = None):
        self.title, self.quiet, self.redraw, self.file = title, quiet, redraw, file or sys.stderr
        self.total, self.epochs = len(tasks), sum(task.epochs for task in tasks)
        self.running: dict[str, Running] = {}
        self.finished = self.failed = self.epochs_done = self.epochs_trained = 0
        self.troubles: list[str] = []
        self.began: float | None = None
        self._said, self._rich = time.monotonic(), None

    # -- what the launcher tells

    def started(self, task: Task, attempt: int) -> None:
        now = time.monotonic()
        self.began = now if self.began is None else self.began
        self.running[task.id] = Running(task, attempt, now)

    def at(self, task: Task, facts: Facts | None) -> None:
        """Where a running task is."""
        row = self.running.get(task.id)
        if row is not None and facts is not None:
            row.facts = facts

    def done(self, task: Task, answer: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """A task has its final answer."""
        row = self.running.pop(task.id, None)
        self.finished += 1
        self.epochs_done += task.epochs
        trouble = answer.get("failed")
        if trouble is None:
            self.epochs_trained += task.epochs - row.base if row and row.facts and row.facts.of else 0
            self._line(f"done {self.finished}/{self.total}  {task.title or task.id}  {span(facts.get('seconds', 0))}", *self.facts())
            return
        self.failed += 1
        word = "diverged" if trouble.get("diverged") else "failed"
        reason = str(trouble.get("why", "")).strip()
        self.troubles.append(f"{word}: {task.title or task.id}: {reason.splitlines()[0] if reason else 'no reason given'}")
        self._line(f"{word} {self.finished}/{self.total}  {task.title or task.id}: {reason}", *self.facts())

    def lost(self, task: Task, why: str, again: bool) -> None:
        """A worker has died over a task."""
        self.running.pop(task.id, None)
        self.say(f"{task.title or task.id}: {why}{'; it is tried again' if again else ''}")

    def waiting(self, task: Task, why: str) -> None:
        """Another process holds the task's folder."""
        self.running.pop(task.id, None)
        self.say(f"{task.title or task.id} waits: {why}")

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.quiet:
            return
        if self._rich:
            self._rich.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.file, flush=True)

    def tick(self) -> None:
        """Called now and then; without a terminal a summary is due every minute."""
        if not self._rich and time.monotonic() - self._said >= EVERY:
            self._line(f"{self.finished}/{self.total} done", f"{len(self.running)} running", *self.facts())

    # -- numbers

    @property
    def behind(self) -> int:
        """Epochs that need no more training."""
        return self.epochs_done + sum(row.trained for row in self.running.values())

    @property
    def pace(self) -> float | None:
        """Epochs a second over all workers."""
        trained = self.epochs_trained + sum(row.trained - row.base for row in self.running.values())
        spent = time.monotonic() - self.began if self.began is not None else 0.0
        return trained / spent if trained > 0 and spent > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds until the last epoch, at that pace."""
        return (self.epochs - self.behind) / self.pace if self.pace else None

    def facts(self) -> list[str]:
        """`41/240 epochs`, `0.52 epochs/s`, `0:06:22 left`, `1 failed`: what is known of it."""
        pace, left = self.pace, self.left
        return [f"{self.behind}/{self.epochs} epochs" if self.epochs else "", f"{pace:.2g} epochs/s" if pace else "",
                f"{span(left)} left" if left else "", f"{self.failed} failed" if self.failed else ""]

    # -- how it is shown

    def __enter__(self) -> Self:
        if not self.quiet and self.redraw and self.file.isatty():
            from rich.console import Console
            from rich.live import Live as Redrawn

            console = Console(file=self.file, highlight=False)
            if console.is_terminal and not console.is_dumb_terminal:
                self._rich = Redrawn(_Block(self), console=console, refresh_per_second=2, redirect_stdout=False)
                self._rich.start()
                return self
        if self.title:
            self._line(self.title)
        return self

    def __exit__(self, *_: object) -> None:
        if self._rich:
            self._rich.stop()
            self._rich = None

    def _line(self, *facts: str) -> None:
        self._said = time.monotonic()
        if not self.quiet and not self._rich:
            print("  ".join(filter(None, facts)), file=self.file, flush=True)


def row_text(row: Running, now: float) -> str:
    """`-ema, seed 2  epoch 7/30  train  0:00:41`."""
    facts = row.facts
    where = f"epoch {facts.epoch}/{facts.of}" if facts and facts.of else ""
    again = f"attempt {row.attempt}" if row.attempt > 1 else ""
    stage = (facts.stage if facts else "") or ("" if where else "waiting for a place")
    return "  ".join(filter(None, (row.task.title or row.task.id, where, stage, again, span(now - row.began))))


class _Block:
    """The block as rich draws it, anew for every frame."""

    def __init__(self, board: Board):
        self.board = board

    def __rich_console__(self, console: Any, options: Any) -> Iterable[Any]:
        from rich.text import Text

        board, now = self.board, time.monotonic()
        if board.title:
            yield Text(board.title, style="bold", overflow="ellipsis", no_wrap=True)
        yield Text("  ".join(filter(None, (f"{board.finished}/{board.total} done", *board.facts()))), style="cyan", overflow="ellipsis", no_wrap=True)
        rows = list(board.running.values())
        for row in rows[:ROWS]:
            yield Text("  " + row_text(row, now), overflow="ellipsis", no_wrap=True)
        if len(rows) > ROWS:
            yield Text(f"  and {len(rows) - ROWS} more", style="dim")
        for trouble in board.troubles[-3:]:
            yield Text("  " + trouble, style="red", overflow="ellipsis", no_wrap=True)
