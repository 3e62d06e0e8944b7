"""What `composer.track*` relies on in MLflow; a new version that changes one of these fails here first."""

from __future__ import annotations

import math
import os
import socket
import sqlite3
import time

import pytest

mlflow = pytest.importorskip("mlflow")

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    out = tmp_path_factory.mktemp("a store")
    client = MlflowClient(tracking_uri=f"sqlite:///{out}/mlflow.db")
    return out, client, client.create_experiment("e", artifact_location=(out / "artifacts").as_uri())


@pytest.fixture
def run(store):
    return store[1].create_run(store[2]).info.run_id


def test_artifacts_follow_the_experiments_location_not_the_working_folder(store, run, tmp_path, monkeypatch):
    out, client, _ = store
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.txt").write_text("x")
    client.log_artifact(run, str(tmp_path / "f.txt"), "sub")
    client.log_text(run, "t", "g.txt")
    assert os.listdir(tmp_path) == ["f.txt"]
    assert {path.name for path in out.rglob("*.txt")} == {"f.txt", "g.txt"}


def test_clients_use_no_stack_of_active_runs(store, run):
    store[1].log_metric(run, "a", 1.0)
    assert mlflow.active_run() is None


def test_params_do_not_change_but_may_be_repeated(store, run):
    client = store[1]
    for _ in range(2):
        client.log_batch(run, params=[Param("a", "1")])
    with pytest.raises(MlflowException) as caught:
        client.log_batch(run, params=[Param("a", "2")])
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE" and client.get_run(run).data.params == {"a": "1"}


def test_a_parameter_holds_6000_characters_and_the_rest_is_lost(store, run):
    client = store[1]
    client.log_batch(run, params=[Param("a", "x" * 6000), Param("b", "y" * 6001)])
    held = client.get_run(run).data.params
    assert len(held["a"]) == 6000 and len(held["b"]) <= 6000


def test_a_tag_holds_5000_characters(store, run):
    store[1].log_batch(run, tags=[RunTag("t", "x" * 5000)])
    assert len(store[1].get_run(run).data.tags["t"]) == 5000


@pytest.mark.parametrize("name", ["acc@8/255", "a[0]", "a=1", "a(b)", "a//b", "/a", "a/", "..", "a\\b", "", "x" * 251])
def test_names_that_are_refused(store, run, name):
    with pytest.raises(MlflowException) as caught:
        store[1].log_batch(run, metrics=[Metric(name, 1.0, 1, 1)])
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


@pytest.mark.parametrize("name", ["train/terms.kl", "val/pgd-10", "a b", "a:b", "x" * 250])
def test_names_that_are_taken(store, run, name):
    store[1].log_batch(run, metrics=[Metric(name, 1.0, 1, 1)], params=[Param(name, "1")], tags=[RunTag(name, "1")])
    assert store[1].get_run(run).data.metrics == {name: 1.0}


def test_infinity_is_stored_as_a_number(store, run):
    """Why we leave it out."""
    store[1].log_batch(run, metrics=[Metric("a", math.inf, 1, 1)])
    assert 1e308 < store[1].get_run(run).data.metrics["a"] < math.inf


def test_the_same_point_twice_is_one_and_a_later_time_wins(store, run):
    client = store[1]
    for _ in range(2):
        client.log_batch(run, metrics=[Metric("a", 2.0, 1000, 5)])
    assert len(client.get_metric_history(run, "a")) == 1
    client.log_batch(run, metrics=[Metric("a", 1.0, 1001, 5)])
    assert len(client.get_metric_history(run, "a")) == 2 and client.get_run(run).data.metrics == {"a": 1.0}


def test_what_we_send_at_once_is_within_the_servers_limits(store, run):
    from mlflow.utils import validation

    from composer.track_names import BATCH, KEY, PARAM, TAG

    assert BATCH["metrics"] <= min(validation.MAX_METRICS_PER_BATCH, validation.MAX_ENTITIES_PER_BATCH)
    assert max(BATCH["params"], BATCH["tags"]) <= validation.MAX_PARAMS_TAGS_PER_BATCH
    assert KEY <= validation.MAX_ENTITY_KEY_LENGTH and PARAM <= validation.MAX_PARAM_VAL_LENGTH and TAG <= validation.MAX_TAG_VAL_LENGTH
    store[1].log_batch(run, metrics=[Metric("a", 1.0, 1, step) for step in range(BATCH["metrics"])])
    assert len(store[1].get_metric_history(run, "a")) == BATCH["metrics"]


def test_a_run_is_found_by_its_tag(store):
    _, client, experiment = store
    made = client.create_run(experiment, tags={"composer.key": "k1", "mlflow.parentRunId": "p"}, run_name="n", start_time=1000)
    found = client.search_runs([experiment], filter_string="tags.`composer.key` = 'k1'", max_results=1)
    assert [each.info.run_id for each in found] == [made.info.run_id] and found[0].info.start_time == 1000
    assert client.search_runs([experiment], filter_string="tags.`mlflow.parentRunId` = 'p'")[0].info.run_name == "n"


def test_what_is_missing_or_deleted_says_so(store, run):
    client = store[1]
    with pytest.raises(MlflowException) as caught:
        client.get_run("0" * 32)
    assert caught.value.error_code == "RESOURCE_DOES_NOT_EXIST"
    client.delete_run(run)
    assert client.get_run(run).info.lifecycle_stage == "deleted"
    with pytest.raises(MlflowException) as caught:
        client.log_metric(run, "a", 1.0)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_a_run_can_be_opened_again(store, run):
    client = store[1]
    client.set_terminated(run, "KILLED", 2000)
    client.update_run(run, status="RUNNING")
    assert client.get_run(run).info.status == "RUNNING"


def test_tables_that_a_rewind_deletes_from(store):
    with sqlite3.connect(store[0] / "mlflow.db") as base:
        for table in ("metrics", "latest_metrics"):
            columns = {row[1] for row in base.execute(f"PRAGMA table_info({table})")}
            assert columns == {"key", "value", "timestamp", "step", "is_nan", "run_uuid"}


def test_a_plain_folder_as_store_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(MlflowException):
        MlflowClient(tracking_uri=tmp_path.as_uri()).search_experiments()


def test_telemetry_is_off_by_the_variable_we_set(monkeypatch):
    from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY

    from composer.track_mlflow import ENVIRONMENT

    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", ENVIRONMENT["MLFLOW_DISABLE_TELEMETRY"])
    assert MLFLOW_DISABLE_TELEMETRY.get() is True


def test_a_silent_server_is_given_up_within_the_variables_we_set(monkeypatch):
    """A server that takes the connection and never answers costs timeout × (1 + retries), not MLflow's usual quarter of an hour."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(8)
        begin = time.monotonic()
        with pytest.raises(Exception, match="(?i)timed? ?out|timeout"):
            MlflowClient(tracking_uri=f"http://127.0.0.1:{server.getsockname()[1]}").search_experiments()
        assert time.monotonic() - begin < 8
