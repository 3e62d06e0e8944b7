"""AutoAttack cut short, for tests that look at the ledger and not at the strength of the attacks."""

from __future__ import annotations

from typing import Any

from composer.evaluate import autoattack

SHORT = {"n_queries": 30, "n_iter": 5}


def quick_autoattack(monkeypatch: Any, **settings: int) -> None:
    make = autoattack.make_attack
    monkeypatch.setattr(autoattack, "make_attack", lambda *args, **more: make(*args, **{**SHORT, **settings, **more}))
