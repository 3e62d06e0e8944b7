"""What a run shows while it works: a block that redraws itself on a terminal, one line an epoch into anything else. On stderr, always."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import IO, Any, Self

from composer.report.table import span

EVERY = 60.0                                                  # seconds between two lines of one measure where there is no terminal


class Rate:
    """A number per second over the last stretch of time; a pause is left out."""

    def __init__(self, samples: int = 120, apart: float = 0.25):
        self.points: deque[tuple[float, float]] = deque([(0.0, 0.0)], maxlen=samples)
        self.apart, self._last, self._time, self._count = apart, None, 0.0, 0.0

    def add(self, amount: float, now: float) -> None:
        """`amount` was done up to now; the first call after a pause only sets the clock."""
        if self._last is not None:
            self._time += now - self._last
            self._count += amount
            if self._time - self.points[-1][0] >= self.apart:
                self.points.append((self._time, self._count))
        self._last = now

    def pause(self) -> None:
        self._last = None

    @property
    def value(self) -> float | None:
        (begin, first), (end, last) = self.points[0], (self._time, self._count)
        return (last - first) / (end - begin) if end > begin else None


class Live:
    """Progress of one run: `with Live(110, 391, "mart_ours on digits, seed 0") as live`.

    `step` is called every step and costs microseconds: give it the means of the terms only when they are on the host anyway. `epoch` closes an
    epoch with what was validated. `progress` fits `composer.evaluate.protocol.evaluate(progress=…)`. `quiet` shows nothing.
    """

    def __init__(self, total_epochs: int, steps_per_epoch: int, title: str = "", quiet: bool = False, file: IO[str] | None = None):
        self.total, self.steps, self.title, self.quiet = total_epochs, max(1, steps_per_epoch), title, quiet
        self.file = file or sys.stderr
        self.at_epoch, self.at_step = 0, 0
        self.name, self.doing, self.best = "", "", ""
        self.terms: dict[str, float] = {}
        self.values: dict[str, Any] = {}
        self.errors: dict[str, tuple[float, int]] = {}
        self.measure: tuple[str, int, int] | None = None
        self.images, self.pace = Rate(), Rate(600, 0.5)       # images a second of training; steps a second of everything
        self._said: dict[str, float] = {}
        self._rich: Any = None

    # -- what the run tells

    def phase(self, name: str, steps_per_epoch: int | None = None) -> None:
        """The phases now in force, by name ("" for none)."""
        self.name, self.steps = name, steps_per_epoch or self.steps

    def stage(self, text: str) -> None:
        """What is going on outside of training ("loading data"); shown until the next step."""
        if text and text != self.doing:
            self._line(text)
        self.doing = text

    def resume(self, epoch: int, step: int = 0) -> None:
        """The run starts with that many epochs, and steps of the next one, behind it."""
        self.at_epoch, self.at_step = epoch, step

    def step(self, epoch: int, step: int, images: int = 0, terms: Mapping[str, float] | None = None) -> None:
        """`step` steps (from 1) of `epoch` (from 1) are done, the last one over so many images."""
        now = time.monotonic()
        moved = (epoch - 1) * self.steps + step - self.at_epoch * self.steps - self.at_step
        self.at_epoch, self.at_step, self.doing, self.measure = epoch - 1, step, "", None
        self.images.add(images, now)
        self.pace.add(max(0, moved), now)
        if terms:
            self.terms = dict(terms)

    def epoch(self, epoch: int, terms: Mapping[str, float] | None = None, values: Mapping[str, float] | None = None, best: str = "",
              errors: Mapping[str, tuple[float, int]] | None = None) -> None:
        """`epoch` is done: means of the terms over it, what was validated (`{"clean": 0.91, "pgd-10": 0.54}`), where the best lies so far
        ("epoch 31"), and of a validated accuracy its standard error and number of images."""
        self.at_epoch, self.at_step, self.measure = epoch, 0, None
        self.terms, self.values, self.best = dict(terms or self.terms), dict(values or self.values), best or self.best
        self.errors = dict(errors or self.errors)
        self.images.pause()
        facts = [f"epoch {epoch}/{self.total}", self.name, *_pairs(self.terms), *(["val", *_pairs(values, True, self.errors)] if values else []), *self._speed()]
        self._line("  ".join(filter(None, facts)))

    def progress(self, name: str, done: int, total: int) -> None:
        """A measure has judged so many of its images. Without a terminal, what ends within the training says so in the epoch's line."""
        self.images.pause()
        self.measure = (name, done, total)
        now = time.monotonic()
        if done >= total and self.at_epoch >= self.total or now - self._said.setdefault(name, now) >= EVERY:
            self._said[name] = now
            self._line(f"{name}  {done:,}/{total:,}")

    def say(self, text: str) -> None:
        """A line of its own, above the block."""
        if self.quiet:
            return
        if self._rich:
            self._rich.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.file, flush=True)

    # -- how it is shown

    def __enter__(self) -> Self:
        if not self.quiet and self.file.isatty():
            from rich.console import Console
            from rich.live import Live as Redrawn

            console = Console(file=self.file, highlight=False)
            if console.is_terminal and not console.is_dumb_terminal:
                self._rich = Redrawn(_Block(self), console=console, refresh_per_second=4, redirect_stdout=False)
                self._rich.start()
                return self
        if self.title:
            self._line(self.title)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._rich:
            self.doing, self.measure = "", None
            self._rich.stop()
            self._rich = None

    def _line(self, text: str) -> None:
        if not self.quiet and not self._rich:
            print(text, file=self.file, flush=True)

    def _speed(self) -> list[str]:
        images = self.images.value
        return [f"{images:,.0f} images/s" if images and images >= 10 else f"{images:.2g} images/s" if images else "", self._left()]

    def _left(self) -> str:
        """Time until the last epoch, validation included, at the pace of the last minutes."""
        pace = self.pace.value
        rest = (self.total - self.at_epoch) * self.steps - self.at_step
        return f"{span(rest / pace)} left" if pace and rest > 0 else ""


class _Block:
    """The block as rich draws it, anew for every frame."""

    def __init__(self, live: Live):
        self.live = live

    def __rich_console__(self, console: Any, options: Any) -> Iterable[Any]:
        from rich.text import Text

        live, width = self.live, options.max_width
        if live.title:
            yield Text(live.title, style="bold", overflow="ellipsis", no_wrap=True)
        if live.total:
            done = (live.at_epoch * live.steps + live.at_step) / (live.total * live.steps)
            current = min(live.total, live.at_epoch + (live.at_step > 0 or live.at_epoch == 0))
            facts = [f"{current}/{live.total}", live.name, *live._speed()]
            yield _bar("epoch", done, "  ".join(filter(None, facts)), width, "cyan")
        for label, pairs in (("terms", _pairs(live.terms)), ("val", [*_pairs(live.values, True, live.errors), live.best and f"best at {live.best}"])):
            yield from (Text(line) for line in _flow(label, [pair for pair in pairs if pair], width))
        if live.measure:
            name, judged, total = live.measure
            yield _bar("eval", judged / max(1, total), f"{name}  {judged:,}/{total:,}", width, "magenta")
        elif live.doing:
            yield Text(f"{'':7}{live.doing}", style="dim")


def _bar(label: str, share: float, facts: str, width: int, colour: str) -> Any:
    """A label, a bar as wide as the facts leave room for, and the facts."""
    from rich.text import Text

    room = max(0, min(40, width - 9 - len(facts)))
    full = round(room * min(1.0, max(0.0, share)))
    line = Text(f"{label:7}", no_wrap=True, overflow="ellipsis")
    if room >= 5:
        line.append("━" * full, style=colour).append("━" * (room - full), style="dim").append("  ")
    return line.append(facts)


def _pairs(values: Mapping[str, Any], percent: bool = False, errors: Mapping[str, tuple[float, int]] | None = None) -> list[str]:
    """`kl 0.0412`; accuracies as `clean 91.20 %`, with a standard error `pgd 61.20 ± 1.52 % (n = 1,024)`."""
    def accuracy(name: str, value: float) -> str:
        if name not in (errors or {}):
            return f"{100 * value:.2f} %"
        error, n = errors[name]  # type: ignore[index]
        return f"{100 * value:.2f} ± {100 * error:.2f} % (n = {n:,})"

    return [f"{name} {accuracy(name, value) if percent and 0 <= value <= 1 else _steady(value)}" for name, value in values.items()]


def _steady(value: float) -> str:
    """Four decimals, or an exponent: a width that does not jump from frame to frame."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"


def _flow(label: str, pairs: list[str], width: int) -> list[str]:
    """Pairs in lines of at most `width`, none torn apart, under one label."""
    lines: list[str] = []
    for pair in pairs:
        if lines and len(lines[-1]) + 3 + len(pair) <= width:
            lines[-1] += f"   {pair}"
        else:
            lines.append(f"{'' if lines else label:7}{pair}"[:width])
    return lines
