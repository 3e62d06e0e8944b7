"""The wish to stop a launch, known to all its processes."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from composer.ablate.forest import Answer
from composer.errors import Stopped


class Died(Stopped):
    """Ray itself is gone: no task is to blame, and what was done is kept. `answers`: those that came before; `what` is counted."""

    def __init__(self, why: str, answers: Mapping[str, Answer], kept: int, total: int, what: str = "runs"):
        super().__init__(f"Ray died: {why}; run the same command again, {kept} of {total} {what} are kept", why="workers leave checkpoints as they train",
                         fix="if it happens again: fewer --jobs (memory), or --jobs 0, which works without Ray")
        self.because, self.answers, self.exit_code = why, dict(answers), 75


class Stop:
    """SIGTERM and Ctrl-C as a wish; a second Ctrl-C does not wait. It is handed on through a file: a signal reaches one process, the file all,
    on every machine.

    The file's name is new for every launch, so that a leftover of an earlier one stops nobody.
    """

    def __init__(self, folder: Path):
        self.file = folder / f".stop-{os.getpid()}-{secrets.token_hex(4)}"
        self.reason = ""
        self._old: dict[Any, Any] = {}

    def __enter__(self) -> Self:
        self._old = self.listen()
        return self

    def listen(self) -> dict[Any, Any]:
        """From here on signals come to this; returns who had them. Outside of the main thread they cannot be had."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {number: signal.signal(number, self._asked) for number in (signal.SIGTERM, signal.SIGINT)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self.file.unlink(missing_ok=True)

    def ask(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.touch()

    def touch(self) -> None:
        """Tell it to all processes."""
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.touch()

    def error(self, answers: Mapping[str, Answer], total: int) -> Stopped:
        """What `launch` raises; `answers` are those that came before."""
        error = Stopped(f"stopped by {self.reason}; {len(answers)} of {total} tasks are done", why="what was trained and judged so far is kept",
                        fix="run the same command again to go on")
        error.exit_code = 130 if self.reason == "Ctrl-C" else 75
        error.answers = dict(answers)
        return error

    def _asked(self, number: int, _frame: Any) -> None:
        if number == signal.SIGINT and self.reason:
            raise KeyboardInterrupt
        self.ask("SIGTERM" if number == signal.SIGTERM else "Ctrl-C")
