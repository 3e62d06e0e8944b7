from __future__ import annotations

import shutil

import pytest

from composer import track
from composer.track_journal import Journal
from composer.track_mlflow import client_of


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A store with a fresh database, made once: migrating one takes seconds."""
    pytest.importorskip("mlflow")
    out = tmp_path_factory.mktemp("store")
    client_of(track.own_store(out), out)
    return out


@pytest.fixture
def out(empty_store, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my runs"
    folder.mkdir()
    shutil.copy(empty_store / "mlflow.db", folder)
    return folder


@pytest.fixture
def client(out):
    return client_of(track.store_uri(out), out)


@pytest.fixture
def tracker(out):
    return track.make_tracker(out, experiment="exp", folder=out / "nodes" / "k1")


@pytest.fixture
def journal(out):
    return Journal(out / "nodes" / "k1")
