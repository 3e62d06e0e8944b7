"""`composer runs`: who refers to what, and that nothing else goes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from composer.errors import ComposerError
from composer.report.store import amount, runs, runs_text


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A study of one run over two nodes, a run of nobody's study, and leftovers."""
    put(tmp_path / "studies/s/results.json", {"cells": [{"runs": [{"run": "a-s0"}]}], "failed": []})
    for name, nodes, subject in (("a-s0", [{"key": "k2", "folder": "n2"}], "e1"), ("b-s0", [{"key": "n4"}], "e2")):
        put(tmp_path / f"experiments/{name}/record.json", {"nodes": nodes, "evaluated": [subject]})
        put(tmp_path / f"experiments/{name}/result.json", {"run": name})
    for name, key in (("n1", {"epochs": [1, 5]}), ("n2", {"epochs": [6, 9], "before": "n1"}), ("n3", {"epochs": [6, 9], "before": "n1"}), ("n4", {"epochs": [1, 9]})):
        put(tmp_path / f"nodes/{name}/key.json", key)
        put(tmp_path / f"nodes/{name}/done", "x" * 100)
    for name in ("e1", "e2", "e3"):
        put(tmp_path / f"evaluations/{name}/p/clean-1.json", {})
    put(tmp_path / "mlflow.db", "x" * 1000)
    return tmp_path


def free(store: Any) -> list[str]:
    return [item.name for item in store.items if item.free]


def test_only_what_nothing_refers_to_is_free(store: Path) -> None:
    found = runs(store)
    assert free(found) == ["n3", "e3"] and found.other == 1000
    assert {i.name: i.used_by for i in found.of("nodes")} == {"n1": ("a-s0",), "n2": ("a-s0",), "n3": (), "n4": ("b-s0",)}
    assert {i.name: i.used_by for i in found.of("experiments")} == {"a-s0": ("s",), "b-s0": ()}
    text = runs_text(found)
    assert "nothing refers to 2 of these" in text and "n3" in text and "n1 " not in text and "n1 " in runs_text(found, every=True)
    json.dumps(found.as_dict(), allow_nan=False)


def test_looking_touches_nothing_and_removal_takes_only_that(store: Path) -> None:
    before = sorted(p.relative_to(store) for p in store.rglob("*"))
    runs(store)
    assert sorted(p.relative_to(store) for p in store.rglob("*")) == before
    gone = runs(store, remove=True)
    assert [i.name for i in gone.items if i.removed] == ["n3", "e3"] and gone.freed == sum(i.bytes for i in gone.items if i.removed) > 0
    left = sorted(p.relative_to(store) for p in store.rglob("*"))
    assert left == [p for p in before if not {"n3", "e3"} & set(p.parts)] and free(runs(store)) == []
    assert "everything is referred to" in runs_text(runs(store)) and "removed 2" in runs_text(gone)


def test_an_unfinished_study_keeps_its_prefixes(store: Path) -> None:
    put(store / "studies/going/grid.json", {})
    found = runs(store, remove=True)
    assert "n3" not in [i.name for i in found.items if i.removed] and (store / "nodes/n3").is_dir() and "going is unfinished" in runs_text(found)


def test_an_unfinished_sweep_keeps_its_trials(store: Path) -> None:
    (store / "sweeps/search").mkdir(parents=True)
    assert "the sweep search is unfinished" in runs_text(runs(store, remove=True))
    (store / "sweeps/search/best.toml").write_text("")
    assert "the sweep search" not in runs_text(runs(store))


def test_a_node_in_work_stays(store: Path) -> None:
    put(store / "nodes/n3/lock", {"pid": 1, "host": "elsewhere", "heartbeat": time.time()})
    assert free(runs(store)) == ["e3"]
    from composer.engine.lock import Lock

    (store / "nodes/n3/lock").unlink()
    with Lock(store / "nodes/n3"):
        assert "n3" not in free(runs(store))
    assert "n3" in free(runs(store))


def test_an_experiment_that_does_not_say_keeps_all_evaluations(store: Path) -> None:
    put(store / "experiments/a-s0/record.json", {"nodes": [{"key": "n2"}]})
    found = runs(store)
    assert free(found) == ["n3"] and any("a-s0 does not say" in note for note in found.notes)


def test_leftovers_go_when_they_are_old(store: Path) -> None:
    put(store / "nodes/.tmp-1/x", "half")
    assert ".tmp-1" not in " ".join(free(runs(store)))
    os.utime(store / "nodes/.tmp-1", (time.time() - 7200,) * 2)
    runs(store, remove=True)
    assert not (store / "nodes/.tmp-1").exists()


def test_sizes_and_errors(tmp_path: Path) -> None:
    assert [amount(n) for n in (0, 999, 1000, 15_400, 999_700, 3_400_000_000)] == ["0 B", "999 B", "1.0 kB", "15.4 kB", "1.0 MB", "3.4 GB"]
    with pytest.raises(ComposerError, match="there is no store"):
        runs(tmp_path / "none")
    assert runs(tmp_path).items == ()
