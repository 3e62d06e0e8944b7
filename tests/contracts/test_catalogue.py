"""Every primitive of the catalogue and of the shipped plugins keeps the contracts of its kind. A new one is tested by being registered."""

from __future__ import annotations

import pytest

from composer.plugins import load_all
from composer.registry import REGISTRY
from composer.testing import contracts

KINDS = ("loss", "view", "gain", "radius", "inner", "start", "ball", "part", "schedule", "phase")
load_all()
ALL = [(p.kind, p.name) for kind in KINDS for p in REGISTRY.all(kind)]


@pytest.mark.parametrize(("kind", "name"), ALL, ids=[f"{kind}/{name}" for kind, name in ALL])
def test_contracts(kind, name):
    assert [r.contract for r in contracts(kind, name)][:2] == ["card", "names"]


def test_every_kind_has_members():
    assert {kind for kind, _ in ALL} == set(KINDS)
