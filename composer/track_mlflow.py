"""Delivery of journals to MLflow. The only module that imports mlflow, and it does so in the sender's thread.

No global state of MLflow is used: a client with an address, a run id in every call; no active-run stack, no default store of the working
folder. Everything here may be done twice without a second effect.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from composer.track_journal import Journal, Record, locked
from composer.track_names import BATCH, EXPERIMENT, PARAM, PARENT, PARENT_AT, PARENT_KEY, TAG, bare, chunks, texts

KEY_TAG = "composer.key"
ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "ERROR", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
               "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "GIT_PYTHON_REFRESH": "quiet"}
_clients: dict[str, Any] = {}


def client_of(uri: str, out: Path) -> Any:
    """A client for the store, made once a process. The first opening of a new database migrates it, which two processes must not do at once."""
    if uri not in _clients:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        for noisy in ("mlflow", "alembic", "urllib3.connectionpool"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        path = sqlite_path(uri)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
        with locked(Path(out) / "mlflow.lock", wait=60) if sqlite_path(uri) else contextlib.nullcontext():
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
        _clients[uri] = client
    return _clients[uri]


def sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///").split("?")[0]) if uri.startswith("sqlite:///") else None


def experiment_id(client: Any, name: str, artifacts: str | None) -> str:
    """The experiment of that name, made where it is missing, brought back where it was deleted."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:                               # another process was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def run_of_key(client: Any, experiment: str, key: str) -> str | None:
    """The id of the run whose journal has this key."""
    found = client.search_runs([experiment], filter_string=f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    return found[0].info.run_id if found else None


class Sender:
    """Delivers one journal to one store.

    `uri` the store's address; `artifacts` where a new experiment keeps its files (None: the server decides); `out` the store's folder.
    `run_id` is known after the first `flush`. Errors: whatever MLflow and the network raise; what was delivered before stays delivered.
    """

    def __init__(self, journal: Journal, uri: str, artifacts: str | None, out: Path):
        self.journal, self.uri, self.artifacts, self.out = journal, uri, artifacts, out
        self.run_id: str | None = None
        self.lost: list[str] = []                             # records that no store will ever take, such as a file that is gone
        self._offset = 0
        self._had: dict[tuple[str, int], float] = {}

    def flush(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Send what waits, in order; `stop` is asked between requests."""
        client = client_of(self.uri, self.out)
        if self.run_id is None and not self._open(client):
            return
        pending = self.journal.pending(self._offset)
        at = 0
        while at < len(pending) and not stop():
            at = self._send_some(client, pending, at)
            self._done(pending[at - 1][0])

    def _done(self, offset: int) -> None:
        self._offset = offset
        self.journal.sent(bare(self.uri), self.run_id, offset)

    def _open(self, client: Any) -> bool:
        """Find the run, or make it; False where the journal has no start yet."""
        starts = self.journal.starts()
        if not starts:
            return False
        state = self.journal.state()
        known = state.get("run_id") if state.get("store") == bare(self.uri) else None
        self._offset = state.get("offset", 0) if known else 0
        given = [start["run_id"] for start in reversed(starts) if start.get("run_id")]
        for candidate in dict.fromkeys([known, *given]):
            if candidate and _alive(client, candidate):
                self.run_id = candidate
                break
            self._offset = 0                                  # what was sent is gone: send all of it again
        else:
            self.run_id = self._create(client, starts[0])
        self._had = self.journal.delivered(self._offset)
        self.journal.sent(bare(self.uri), self.run_id, self._offset)
        return True

    def _create(self, client: Any, start: Record) -> str:
        """A process that died between making the run and noting its id left it under the journal's key."""
        experiment = experiment_id(client, start["tags"].get(EXPERIMENT) or start["experiment"], self.artifacts)
        found = run_of_key(client, experiment, start["key"])
        if found:
            return found
        tags = {KEY_TAG: start["key"]} | {name: value for name, value in start["tags"].items() if name.startswith("mlflow.")}
        tags |= self._parent(client, experiment, start["tags"])
        return client.create_run(experiment, start_time=start["time"], tags=tags, run_name=start["name"]).info.run_id

    def _parent(self, client: Any, experiment: str, tags: Record) -> dict[str, str]:
        """The tag that puts a run below its grid's. The grid's journal may still wait, as may this one: it is sent first.

        Errors: LookupError while it waits.
        """
        if PARENT_KEY not in tags:
            return {}
        found = run_of_key(client, experiment, tags[PARENT_KEY])
        if found is None and Journal(self.out / tags.get(PARENT_AT, "")).waiting():
            raise LookupError("the run of its grid has not been sent yet")
        return {PARENT: found} if found else {}

    def _send_some(self, client: Any, pending: list[tuple[int, Record]], at: int) -> int:
        """Send the record at `at`, with the metrics that follow it if it is one; returns the index behind."""
        end = at + 1
        operation = pending[at][1]["op"]
        while operation == "metrics" and end < len(pending) and pending[end][1]["op"] == "metrics" and end - at < BATCH["metrics"]:
            end += 1
        try:
            getattr(self, f"_{operation}")(client, *(record for _, record in pending[at:end]))
        except Exception as error:
            if not _for_good(error):
                raise
            self.lost.append(f"{operation} ({str(error).strip().splitlines()[0][:160]})")
        return end

    def _metrics(self, client: Any, *records: Record) -> None:
        from mlflow.entities import Metric

        found = [Metric(name, value, record["time"], record["step"]) for record in records for name, value in record["values"].items()
                 if not self._had or self._had.get((name, record["step"])) != value]
        for batch in chunks(found, BATCH["metrics"]):
            client.log_batch(self.run_id, metrics=batch)

    def _start(self, client: Any, record: Record) -> None:
        """Parameters never change once logged: what a resumed run has new is added, what differs becomes a tag beside it."""
        from mlflow.entities import Param, RunTag

        run = client.get_run(self.run_id)
        held = run.data.params
        params, tags = texts(record["params"], PARAM), texts(record["tags"], TAG) | {KEY_TAG: record["key"]}
        tags |= self._parent(client, run.info.experiment_id, record["tags"])
        tags |= {f"changed.{name}"[:250]: value[:TAG] for name, value in params.items() if held.get(name, value) != value}
        for batch in chunks((Param(name, value) for name, value in params.items() if name not in held), BATCH["params"]):
            client.log_batch(self.run_id, params=batch)
        for batch in chunks((RunTag(name, value) for name, value in tags.items()), BATCH["tags"]):
            client.log_batch(self.run_id, tags=batch)
        client.update_run(self.run_id, status="RUNNING")

    def _artifact(self, client: Any, record: Record) -> None:
        path = Path(record["path"])
        if path.is_dir():
            client.log_artifacts(self.run_id, str(path), record["folder"] or path.name)
        else:
            client.log_artifact(self.run_id, str(path), record["folder"] or None)

    def _text(self, client: Any, record: Record) -> None:
        client.log_text(self.run_id, record["content"], record["name"])

    def _tag(self, client: Any, record: Record) -> None:
        client.set_tag(self.run_id, record["name"], record["value"])

    def _rewind(self, client: Any, record: Record) -> None:
        """Take back what was sent beyond the step. MLflow has no call for that: in our own database we do it ourselves; on a server, a value
        that comes again unchanged is not sent again, and one that changed is logged beside the old one with a later time, which wins.
        """
        path = sqlite_path(self.uri)
        if not path or not _delete_beyond(path, self.run_id, record["step"]):
            self._had = self.journal.delivered(self._offset)

    def _finish(self, client: Any, record: Record) -> None:
        client.set_terminated(self.run_id, record["status"], record["time"])


def _for_good(error: Exception) -> bool:
    """Whether trying again is useless: a file that is gone, a record or a run that the server refuses."""
    codes = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST")
    return isinstance(error, FileNotFoundError) or getattr(error, "error_code", "") in codes


def _alive(client: Any, run_id: str) -> bool:
    """Whether the store has the run and it was not deleted. Errors: the network's."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return False
        raise


def _delete_beyond(path: Path, run_id: str, step: int) -> bool:
    """Delete the run's metrics beyond the step, and set the table of latest values right; False where the tables are not as expected."""
    statements = ("DELETE FROM metrics WHERE run_uuid = :run AND step > :step",
                  "DELETE FROM latest_metrics WHERE run_uuid = :run AND step > :step",
                  """INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)
                     SELECT key, value, timestamp, max(step), is_nan, run_uuid FROM metrics WHERE run_uuid = :run
                     AND key NOT IN (SELECT key FROM latest_metrics WHERE run_uuid = :run) GROUP BY key""")
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=20)) as base, base:
            for statement in statements:
                base.execute(statement, {"run": run_id, "step": step})
    except sqlite3.Error:
        return False
    return True
