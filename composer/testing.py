"""The kit for authors of primitives: made-up tensors, a linear model with known margins, and the contracts every primitive keeps.

    from composer.testing import tensors, contracts, linear_model
    contracts("loss", my_loss)          # raises ContractError, listing what does not hold
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from composer._testing import functions, inners, parts, plain
from composer._testing.linear import Linear, linear_model
from composer._testing.report import Broken, ContractError, Result
from composer._testing.scratch import scratch
from composer._testing.tensors import tensors
from composer.errors import ComposerError
from composer.plugins import load_catalogue, load_file
from composer.registry import KINDS, REGISTRY, TERMLIKE, Primitive

__all__ = ["ContractError", "Linear", "Result", "contracts", "linear_model", "plugin", "scratch", "tensors"]

_OF_KIND = {**dict.fromkeys(TERMLIKE, functions.checks), "inner": inners.inner_checks, "start": inners.start_checks, "ball": inners.ball_checks,
            "part": parts.checks, "schedule": plain.schedule_checks, "phase": plain.phase_checks}


def contracts(kind: str, fn_or_name: Callable[..., Any] | str, *, strict: bool = True, options: dict[str, Any] | None = None,
              needs: dict[str, Any] | None = None) -> list[Result]:
    """Run the catalogue's contracts on one primitive, given as function or class (registered or not) or by its name.

    options, needs   values to use instead of defaults and made-up ones
    strict           raise ContractError (an AssertionError) that lists every contract broken; False: only return the results

    Errors: ContractError; ComposerError for an unknown kind or name.
    """
    primitive = _primitive(kind, fn_or_name)
    results = [_result(primitive, "card", lambda: plain.card(primitive)), _result(primitive, "names", lambda: plain.names(primitive))]
    try:
        listed = _OF_KIND[kind](primitive, options or {}, needs or {}) if kind in _OF_KIND else {}
    except (Broken, ComposerError) as error:
        listed = {"options": _raise(error)}
    results += [_result(primitive, name, check) for name, check in listed.items()]
    failures = [result for result in results if not result.ok]
    if strict and failures:
        raise ContractError(failures)
    return results


def plugin(test_file: str | Path) -> ModuleType:
    """The plugin a test stands beside: `plugin(__file__)` in test_mine.py gives the module of mine.py, loaded as composer loads it."""
    path = Path(test_file).resolve()
    load_catalogue()
    frozen, REGISTRY.frozen = REGISTRY.frozen, False        # a test may come after one that read a recipe
    try:
        return load_file(path.with_name(path.name.removeprefix("test_")))
    finally:
        REGISTRY.frozen = frozen


def _primitive(kind: str, fn_or_name: Callable[..., Any] | str) -> Primitive:
    if kind not in KINDS:
        REGISTRY.get(kind, "")                               # raises, with a suggestion
    load_catalogue()
    if isinstance(fn_or_name, str):
        return REGISTRY.get(kind, fn_or_name)
    held = next((p for p in REGISTRY.all(kind) if p.fn is fn_or_name), None)
    return held or Primitive(kind, fn_or_name.__name__, fn_or_name)


def _raise(error: Exception) -> Callable[[], None]:
    def check() -> None:
        raise error
    return check


def _result(primitive: Primitive, contract: str, check: Callable[[], None]) -> Result:
    name = f"{primitive.kind}/{primitive.name}"
    try:
        check()
    except Broken as broken:
        return Result(name, contract, False, str(broken))
    except Exception as error:      # noqa: BLE001  the primitive's own failure is a finding, not ours
        return Result(name, contract, False, f"{type(error).__name__}: {error}")
    return Result(name, contract, True)
