"""Tracking: every record goes to a journal on disk at once; a thread takes it on to MLflow when MLflow answers.

So training starts before mlflow is imported, never waits for a server, and loses nothing to one that is away: what could not be sent is sent by
the next `composer run` or `composer ui` on the same store.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from composer.errors import ComposerError
from composer.track_journal import Journal, journals, locked
from composer.track_mlflow import Sender
from composer.track_names import STATUS, bare, finite

FLUSH = {"server": 15.0, "file": 60.0}                        # seconds that `finish` waits at most: for a server, for a database of ours
PERIOD = 2.0                                                  # seconds between two deliveries while training
RETRY = (2.0, 5.0, 15.0, 60.0)                                # seconds until the next try after each failure in a row


class Tracker(Protocol):
    """Where a run's records go. `note` is a sentence for the user where something is missing; `run_id` MLflow's id once it is known."""

    note: str
    run_id: str | None

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, Any], run_id: str | None = None) -> str | None:
        """Begin or resume the run; returns its id if it is known already (see `wait`)."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers at a step. Those that are not finite are left out, and a tag says which was the first."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or a folder; it must stay where it is until it was sent."""

    def text(self, content: str, name: str) -> None:
        """Record a text under a file name."""

    def rewind(self, step: int) -> None:
        """Take back all metrics beyond the step: training goes on from there."""

    def finish(self, status: str = "FINISHED") -> None:
        """End the run (FINISHED, FAILED or KILLED) and wait a little for the server."""

    def wait(self, seconds: float) -> str | None:
        """Wait for the run's id at most so long."""


class NullTracker:
    """Keeps nothing."""

    def __init__(self, note: str = ""):
        self.note, self.run_id = note, None

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, Any], run_id: str | None = None) -> str | None:
        return None

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None: ...

    def text(self, content: str, name: str) -> None: ...

    def rewind(self, step: int) -> None: ...

    def finish(self, status: str = "FINISHED") -> None: ...

    def wait(self, seconds: float) -> str | None:
        return None


@contextlib.contextmanager
def outlived(tracker: Tracker) -> Iterator[None]:
    """What the disk refuses here is told in the tracker's note, and ends nothing."""
    try:
        yield
    except (ComposerError, OSError) as error:
        tracker.note = f"Records for MLflow are being lost: {getattr(error, 'what', '') or error}."


def own_store(out: Path) -> str:
    """The address of the SQLite store in `out`."""
    return f"sqlite:///{os.path.abspath(out)}/mlflow.db"


def store_uri(out: Path, uri: str | None = None) -> str:
    """The tracking store's absolute address: the one given, else MLFLOW_TRACKING_URI, else SQLite in `out`."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or own_store(out)
    return f"sqlite:///{os.path.abspath(uri.removeprefix('sqlite:///'))}" if uri.startswith("sqlite:///") else uri


def artifact_root(out: Path, uri: str) -> str | None:
    """Where experiments of a bare database keep files (MLflow would take the working folder); a server decides for itself."""
    bases = ("sqlite", "postgresql", "mysql", "mssql")
    return (Path(os.path.abspath(out)) / "artifacts").as_uri() if uri.startswith(bases) else None


def make_tracker(out: Path, *, experiment: str, uri: str | None = None, enabled: bool = True, folder: Path | None = None) -> Tracker:
    """A tracker for one run of the store `out`.

    `folder` is the run's folder, which holds its journal and makes a run resumable under one id; without it the journal lies under `out/track/`.
    Not `enabled`, or no mlflow installed: a NullTracker, the latter with a sentence in `note`.
    """
    if not enabled:
        return NullTracker()
    if importlib.util.find_spec("mlflow") is None:
        return NullTracker("mlflow is not installed, so nothing is tracked beyond the run's own folder (pip install 'mlflow>=3.13,<4').")
    return MlflowTracker(Path(out), experiment, store_uri(out, uri), Path(folder or Path(out) / "track" / uuid4().hex))


class MlflowTracker:
    """Writes the journal, and lets a thread deliver it. Nothing here raises: a run outlives its tracking."""

    def __init__(self, out: Path, experiment: str, uri: str, folder: Path):
        self.out, self.experiment, self.uri = out, experiment, uri
        self.journal = Journal(folder)
        self.sender = Sender(self.journal, uri, artifact_root(out, uri), out)
        self.note, self._failed, self._bad = "", "", False
        self.run_id: str | None = None
        self._wake, self._closing, self._known = threading.Event(), threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, Any], run_id: str | None = None) -> str | None:
        state = self.journal.state()
        self.run_id = run_id or (state.get("run_id") if state.get("store") == bare(self.uri) else None)
        self._closing.clear()
        self._add("start", key=self.journal.key(), name=name, experiment=self.experiment, params=dict(params), tags=dict(tags), run_id=run_id,
                  uri="" if self.uri == own_store(self.out) else bare(self.uri))
        self._thread = threading.Thread(target=self._work, name="composer-track", daemon=True)
        self._thread.start()
        return self.run_id

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        numbers, bad = finite(values)
        if bad and not self._bad:
            self._bad = True
            self._add("tag", name="composer.not_finite", value=f"{bad[0]} at step {step}")
        if numbers:
            self._add("metrics", step=int(step), values=numbers)

    def artifact(self, path: Path, folder: str = "") -> None:
        self._add("artifact", path=os.path.abspath(path), folder=folder)
        self._wake.set()

    def text(self, content: str, name: str) -> None:
        self._add("text", content=content, name=name)

    def rewind(self, step: int) -> None:
        self._add("rewind", step=int(step))

    def finish(self, status: str = "FINISHED") -> None:
        if status not in STATUS:
            raise ValueError(f"status {status!r} is none of {', '.join(STATUS)}")
        self._add("finish", status=status)
        self._closing.set()
        self._wake.set()
        if self._thread:
            self._thread.join(FLUSH["file" if self.uri.startswith("sqlite") else "server"])
        if self.journal.waiting():
            self.note = (f"MLflow at {bare(self.uri)} has not taken all records{self._failed}; they are kept in {self.journal.path} and are sent "
                         "by the next composer run or composer ui.")
        elif self.sender.lost:
            self.note = f"{len(self.sender.lost)} records could not be tracked, the first: {self.sender.lost[0]}."

    def wait(self, seconds: float) -> str | None:
        self._wake.set()
        self._known.wait(seconds)
        return self.run_id

    def _add(self, op: str, **fields: Any) -> None:
        with outlived(self):
            self.journal.add(op, **fields)

    def _work(self) -> None:
        """Deliver until the run is finished and all is sent, or one try after its end has failed."""
        with locked(self.journal.folder / "track.lock", wait=60) as mine:
            failures, rest = 0, False
            while mine:
                self._wake.clear()
                closing = self._closing.is_set()              # after the clearing: `finish` sets the one, then the other
                ok = self._flush()
                failures = 0 if ok else failures + 1
                if closing:
                    return
                if ok and not rest:
                    rest = True
                    _deliver_rest(self.out, self._closing.is_set)
                self._wake.wait(PERIOD if ok else RETRY[min(failures, len(RETRY)) - 1])

    def _flush(self) -> bool:
        try:
            self.sender.flush()
        except Exception as error:  # noqa: BLE001  whatever a library or a network may raise, the run goes on
            self._failed = f" ({_first_line(error)})"
            return False
        self._failed, self.run_id = "", self.sender.run_id
        self._known.set()
        return True


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines() or [type(error).__name__]
    return bare(text[0][:160])


def deliver(out: Path, seconds: float = 60.0) -> list[str]:
    """Send what earlier processes could not; returns a sentence for each journal that a store did not take."""
    deadline = time.monotonic() + seconds
    return _deliver_rest(Path(out), lambda: time.monotonic() > deadline)


def _deliver_rest(out: Path, stop: Callable[[], bool]) -> list[str]:
    """Journals that a living process delivers are left to it. A server that fails once is not asked again."""
    waiting, away = [], set()
    for journal in journals(out):
        if stop():
            break
        with contextlib.suppress(OSError), locked(journal.folder / "track.lock", wait=0) as mine:
            uri = _uri_of(journal, out)
            if not mine or uri in away:
                continue
            try:
                Sender(journal, uri, artifact_root(out, uri), out).flush(stop)
            except Exception as error:  # noqa: BLE001
                away.add(uri)
                waiting.append(f"{journal.path}: MLflow at {bare(uri)} does not take it: {_first_line(error)}")
    return waiting


def _uri_of(journal: Journal, out: Path) -> str:
    """The address a journal was meant for; the environment's one, if it is the same but for the password."""
    starts = journal.starts()
    uri = starts[-1]["uri"] if starts else ""
    if not uri:
        return own_store(out)
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    return given if bare(given) == uri else uri
