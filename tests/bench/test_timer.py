"""The timer on scripted clocks: order, ratios, and when it calls a timing noisy."""

from __future__ import annotations

import gc
import json
import math

import pytest

from composer.bench import timer
from composer.bench.timer import foreign_load, interleave, noise
from composer.errors import ComposerError


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(timer, "_load", lambda: 0.0)


def script(monkeypatch, times: dict[str, list[float]]) -> dict[str, object]:
    """Variants whose n-th timing takes what `times` says."""
    feeds = {name: iter(values) for name, values in times.items()}
    variants = {name: (lambda name=name: name) for name in times}
    monkeypatch.setattr(timer, "_time", lambda call, calls: next(feeds[call()]))
    return variants


def test_ratios_are_paired_by_round(monkeypatch, quiet):
    """A round in which everything is slow leaves the ratio alone, where medians of times would not."""
    variants = script(monkeypatch, {"reference": [2.0, 2.2, 2.6], "pruned": [1.0, 1.1, 1.3]})
    timing = interleave(variants, rounds=3, base="reference", warmup=0)
    pruned = timing.variants["pruned"]
    assert pruned.ratios == pytest.approx((2.0, 2.0, 2.0)) and (pruned.ratio, pruned.lo, pruned.hi) == pytest.approx((2.0, 2.0, 2.0))
    assert timing.min_ratio("pruned") == pytest.approx(2.0) and not timing.noisy
    assert timing.variants["reference"].ratio == 1.0


def test_order_rotates_and_warmup_does_not_count(quiet):
    order = []
    variants = {name: (lambda name=name: order.append(name)) for name in "abc"}
    timing = interleave(variants, rounds=3, warmup=1, calls=2, again=False)
    assert "".join(order[6:]) == "aabbcc" + "bbccaa" + "ccaabb"
    assert len(order) == 24 and timing.base == "a" and len(timing.variants["b"].seconds) == 3


def test_a_noisy_timing_is_taken_again_once(monkeypatch, quiet):
    variants = script(monkeypatch, {"base": [1.0, 2.0, 1.0, 1.1], "other": [1.0] * 4})
    timing = interleave(variants, rounds=2, base="base", warmup=0)
    assert timing.variants["base"].seconds == (1.0, 1.1) and not timing.noisy


def test_twice_noisy_stays_noisy(monkeypatch, quiet):
    variants = script(monkeypatch, {"base": [1.0, 2.0, 1.0, 1.9], "other": [1.0] * 4})
    timing = interleave(variants, rounds=2, base="base", warmup=0)
    assert timing.noisy and "1.90 times" in timing.noise[0] and "noisy: " in timing.text()


def test_noise_by_load_and_spread():
    assert noise([1.0, 1.5], others=1.5, threads=1, cores=2) == ()
    assert "1.51 times" in noise([1.0, 1.51], others=0.0, threads=1, cores=2)[0]
    assert "load of other programs 1.60" in noise([1.0, 1.0], others=1.6, threads=1, cores=2)[0]
    assert len(noise([1.0, 1.0], others=0.6, threads=2, cores=2)) == 1


def test_own_load_is_taken_off():
    """A program alone on the machine for one minute reads 0.63 per busy core, all of it its own."""
    assert foreign_load(1 - math.exp(-1), own_cores=1.0, elapsed=60) == pytest.approx(0.0)
    assert foreign_load(3.0, own_cores=1.0, elapsed=1e9) == pytest.approx(2.0)


def test_collector_is_off_within_and_on_after(quiet):
    seen = []
    interleave({"a": lambda: seen.append(gc.isenabled())}, rounds=1, warmup=0, again=False)
    assert seen == [False] and gc.isenabled()

    def fails():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        interleave({"a": fails}, rounds=1, warmup=0)
    assert gc.isenabled()


def test_one_json_line(quiet):
    timing = interleave({"a": lambda: sum(range(1000)), "b": lambda: None}, rounds=3, warmup=0, again=False)
    line = timing.json()
    record = json.loads(line)
    assert "\n" not in line and record["base"] == "a" and record["variants"]["b"]["rounds"] == 3
    assert {"threads", "loadavg", "torch", "noisy", "cores"} <= set(record)


@pytest.mark.parametrize(("options", "message"), [({"base": "x"}, "none of the variants"), ({"rounds": 0}, "rounds = 0"), ({"calls": 0}, "calls = 0")])
def test_wrong_calls_are_errors(options, message):
    with pytest.raises(ComposerError, match=message):
        interleave({"a": lambda: None}, **options)
