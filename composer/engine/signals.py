"""SIGTERM and Ctrl-C as a wish that the run looks at between steps."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Signals:
    """SIGTERM and Ctrl-C ask for a stop at the next step; a second Ctrl-C does not wait."""

    def __init__(self, runner: Any):
        self.runner = runner
        self._old: dict[Any, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._old = {s: signal.signal(s, self._asked) for s in (signal.SIGTERM, signal.SIGINT)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _asked(self, number: int, _frame: Any) -> None:
        if number == signal.SIGINT and self.runner.stop:
            raise KeyboardInterrupt
        self.runner.stop = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
