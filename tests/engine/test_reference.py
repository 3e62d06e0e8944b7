"""A second network by name: which one is meant, that its own architecture is built, and what is said before training where it is missing."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from composer.engine.facts import Facts
from composer.engine.judge import plain_model
from composer.engine.reference import resolve_reference
from composer.engine.session import Session, Settings
from composer.errors import ComposerError
from composer.evaluate.figures_rank import ranks
from composer.models.build import load_weights
from composer.recipe.load import load

RANK = {"evaluate.rank": "{ use = 'rank', reference = 'standard', over = 'all' }"}


def session_of(recipe, tiny, out, seed=0, **sets):
    return Session(load(recipe, setting=tiny, sets=[f"{k}={v}" for k, v in sets.items()]), seed, Settings(out=out, track=False, quiet=True, device="cpu"))


def test_the_rank_is_counted_under_the_run_of_the_recipe(go, tiny, tmp_path):
    """The reference is wider than the judged network: its own recipe says so."""
    go("standard", tmp_path, seed=1, **{"model.channels": [4, 8, 16]})                            # of another seed: not meant
    beside = go("standard", tmp_path, **{"model.channels": [4, 8, 16]})
    result = go("at", tmp_path, **RANK)
    session = session_of("at", tiny, tmp_path, **RANK)
    assert resolve_reference("standard", session).parent.name == beside["run"]
    other = Facts(session, {}).reference("standard")
    assert sum(p.numel() for p in other.parameters()) > sum(p.numel() for p in session.net.model.parameters()) and not other.training
    judged = plain_model(session, session.net.model.state_dict())
    load_weights(judged, tmp_path / "experiments" / result["run"] / "final.safetensors")
    facts = json.loads((tmp_path / "experiments" / result["run"] / "figures.json").read_text())["measures"]["rank"]
    assert sum(facts["details"]["counts"]) == result["n"]["rank"] == 24 and result["units"] == {"rank": "rank"}
    x, y = session.images("test")
    with torch.no_grad():
        right = judged(x).argmax(1) == y
        own = ranks(other(x), judged(x).argmax(1))
    assert 1 <= float(own.float().mean()) and right.any()
    assert (tmp_path / "experiments" / result["run"] / "figures" / "rank.png").is_file()


def test_a_run_of_the_recipe_is_its_own_reference(go, tiny, tmp_path):
    """Every image that withstands stands in first place, whatever the attack does to the others."""
    result = go("standard", tmp_path, **{"evaluate.rank": "{ use = 'rank', reference = 'standard', over = 'all', eps = 0.0001 }"})
    assert result["metrics"]["rank"] == pytest.approx(1.0, abs=0.05)


def test_a_file_and_a_runs_name_are_references_too(go, tiny, tmp_path):
    beside = go("standard", tmp_path)
    file = tmp_path / "experiments" / beside["run"] / "final.safetensors"
    session = session_of("at", tiny, tmp_path)
    assert resolve_reference(str(file), session) == file == resolve_reference(beside["run"], session)
    shutil.copy(file, tmp_path / "theirs.safetensors")
    digests = {Facts(session, {}).reference_digest(name) for name in ("standard", str(tmp_path / "theirs.safetensors"))}
    assert len(digests) == 1
    with torch.no_grad():
        x = session.images("test")[0]
        assert torch.equal(Facts(session, {}).reference("standard")(x), Facts(session, {}).reference(str(tmp_path / "theirs.safetensors"))(x))


def test_what_is_missing_is_said_before_training(go, tiny, tmp_path):
    with pytest.raises(ComposerError, match="nor a run of a recipe 'standard'") as caught:
        go("at", tmp_path, **RANK)
    assert "composer run standard" in caught.value.text() and "--seed 0" in caught.value.text() and not list(tmp_path.rglob("metrics.jsonl"))
    go("standard", tmp_path, **{"train.epochs": 1})                                               # another number of epochs
    with pytest.raises(ComposerError, match="nor a run"):
        go("at", tmp_path, **RANK)


def test_several_runs_of_the_recipe_must_be_told_apart(go, tiny, tmp_path):
    names = [go("standard", tmp_path, **{"optim.weight_decay": decay})["run"] for decay in (1e-3, 1e-4)]
    again = go("standard", tmp_path, **{"optim.weight_decay": 1e-4, "evaluate.pgd-3.steps": 4})["run"]
    with pytest.raises(ComposerError, match="2 finished runs of standard") as caught:
        resolve_reference("standard", session_of("at", tiny, tmp_path))
    assert names[0] in caught.value.text() and (names[1] in caught.value.text()) != (again in caught.value.text())
    shutil.rmtree(tmp_path / "experiments" / names[0])
    assert resolve_reference("standard", session_of("at", tiny, tmp_path)).parent.name in (names[1], again), "the same weights, judged twice"
