"""How a sweep runs, as the command line says it, and whether what it needs is installed."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from composer.engine.session import Settings
from composer.errors import ComposerError


@dataclass(frozen=True)
class SweepOptions:
    """
    trials      in all, over every sitting; a grid has as many as it has points
    grid        every combination instead of Optuna's draws; `points` values of a range without step
    metric      what Optuna and ASHA climb: "clean" or the attack of [select]; "" is that attack
    select      measures on held-out images, each with a winner of its own; () is the metric alone
    asha        stop trials at rungs of epochs: `grace`, grace·eta, grace·eta², … (grace 0: a quarter of the run)
    budget      seconds after which no trial goes on; 0: none
    jobs        trials at once, each a process of Ray; 0: one after the other in this process, without Ray, or as many as the cluster at `address` holds
    retries     times a trial whose process died is taken up again, from its last checkpoint
    threads     of PyTorch in each trial; 0: those that the sweep was begun with, else `threads_of`, as in a grid
    """

    trials: int = 20
    grid: bool = False
    points: int = 3
    metric: str = ""
    select: tuple[str, ...] = ()
    asha: bool = True
    grace: int = 0
    eta: float = 3.0
    budget: float = 0.0
    jobs: int = 1
    gpus_per_run: float = 0.0
    address: str = ""
    retries: int = 2
    threads: int = 0
    seed: int = 0
    name: str = ""
    settings: Settings = field(default_factory=Settings)
    say: Callable[[str], Any] = lambda text: None

    @property
    def here(self) -> bool:
        return self.jobs == 0 and not self.address

    def checked(self) -> SweepOptions:
        """Errors: ComposerError for numbers that mean nothing, for libraries that are missing."""
        for flag, value, low in (("--trials", self.trials, 1), ("--jobs", self.jobs, 0), ("--retries", self.retries, 0), ("--gpus-per-run", self.gpus_per_run, 0), ("--grace", self.grace, 0),
                                 ("--points", self.points, 2), ("--time-budget", self.budget, 0)):
            if value < low:
                raise ComposerError(f"{flag} {value}", where="command line", fix=f"at least {low}")
        if self.eta <= 1:
            raise ComposerError(f"--eta {self.eta}", where="command line", why="each rung keeps one of eta trials", fix="a number above 1, such as 3")
        if self.name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]*", self.name):
            raise ComposerError(f"--name {self.name}", where="command line", fix="letters, digits and . _ - @ only: it names a folder")
        need("ray", *(() if self.grid else ("optuna",)), why="--jobs 0 --grid needs neither") if not (self.here and self.grid) else None
        return self


def need(*libraries: str, why: str = "") -> None:
    """Errors: ComposerError where one is not installed."""
    missing = [name for name in libraries if not installed(name)]
    if missing:
        packages = " ".join({"ray": "'ray[tune]>=2.40'", "optuna": "'optuna>=4,<6'"}.get(name, name) for name in missing)
        raise ComposerError(f"a sweep needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed", why=why,
                            fix=f"pip install {packages}")


def installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
