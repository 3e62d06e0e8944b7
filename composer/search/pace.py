"""What a sweep says as it goes: one line an epoch and one a trial, over all workers, with the time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from composer.search.propose import Job, Source
from composer.search.store import Store


class Told:
    """A source that tells what it hears.

    The time left is epochs left / epochs a second over all trials of this sitting; a trial that ends before its last epoch leaves none behind, so where
    trials are stopped at rungs it is an upper bound that falls. Epochs that a resumed trial tells again are not told again.

    trials, epochs  how many trials there are in all, and how long one is
    """

    def __init__(self, source: Source, store: Store, trials: int, epochs: int, say: Callable[[str], Any]):
        self.source, self.store, self.epochs, self.say = source, store, epochs, say
        held = store.trials()
        self.at = {t.number: min(t.epochs, epochs) if t.status in ("unfinished", "failed") else epochs for t in held}
        self.total, self.trained, self.began = max(trials, len(held)) * epochs, 0, time.monotonic()

    def next(self) -> Job | None:
        return self.source.next()

    def seen(self, number: int, epoch: int, metrics: dict[str, float]) -> str:
        why = self.source.seen(number, epoch, metrics)
        if epoch > self.at.get(number, 0):
            self.at[number], self.trained = epoch, self.trained + 1
            shown = "  ".join(f"{k} {100 * v:.2f} %" for k, v in metrics.items())
            self.say(f"trial {number}, epoch {epoch}: {shown}  {self.text()}".rstrip())
        return why

    def ended(self, number: int) -> None:
        self.source.ended(number)
        status = self.store.read(number).status
        if status != "unfinished":
            self.at[number] = self.epochs
        self.say(f"trial {number}: {status}")

    def text(self) -> str:
        """`41/240 epochs  at most 0:06:22 left`."""
        behind = sum(self.at.values())
        seconds = (self.total - behind) * (time.monotonic() - self.began) / self.trained if self.trained else 0.0
        return f"{behind}/{self.total} epochs" + (f"  at most {timedelta(seconds=round(seconds))} left" if 0 < seconds < 1e9 else "")
