"""What Ray is given before it is imported."""

from __future__ import annotations

import os
import sys

import pytest

from composer.rayhost import bring_token


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """No token anywhere; set back afterwards."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ray", sys)
    monkeypatch.delitem(sys.modules, "ray")
    return tmp_path


@pytest.mark.parametrize("where", ["home", "path", "variable", "nowhere"])
def test_a_token_that_lies_there_is_brought_along(bare, monkeypatch, where):
    file = bare / ".ray" / "auth_token" if where == "home" else bare / "token"
    if where in ("home", "path"):
        file.parent.mkdir(exist_ok=True)
        file.write_text("abc")
    if where == "path":
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    if where == "variable":
        monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    bring_token()
    assert os.environ.get("RAY_AUTH_MODE") == (None if where == "nowhere" else "token")


def test_a_ray_that_has_read_its_environment_is_left_alone(bare, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    monkeypatch.setitem(sys.modules, "ray", sys)
    bring_token()
    assert "RAY_AUTH_MODE" not in os.environ


def test_the_users_word_stays(bare, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    bring_token()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
