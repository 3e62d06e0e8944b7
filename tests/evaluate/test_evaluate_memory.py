"""A batch that exceeds the memory is halved and tried again."""

from __future__ import annotations

import pytest
import torch

from composer.errors import ComposerError
from composer.evaluate.memory import Fit, out_of_memory
from composer.evaluate.protocol import evaluate
from composer.recipe.types import MeasureSpec


class Small:
    """A model for which more than `limit` images are too much."""

    def __init__(self, model, limit, error=torch.OutOfMemoryError):
        self.model, self.limit, self.error, self.sizes = model, limit, error, []

    def __call__(self, x):
        if len(x) > self.limit:
            raise self.error("CUDA out of memory. Tried to allocate 2 GiB")
        self.sizes.append(len(x))
        return self.model(x)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
@pytest.mark.parametrize(("use", "options"), [("pgd", {"restarts": 2}), ("clean", {})])
def test_own_attacks_give_the_same_flags_in_smaller_batches(trained, digits, threat, monkeypatch, error, use, options):
    from composer.evaluate import protocol

    monkeypatch.setattr(protocol, "_seen", lambda judge, x, *_: protocol.probe(judge, x[:2]))
    x, y = digits["test"]
    spec = [MeasureSpec("a", use, options)]
    small = Small(trained, 60, error)
    found = evaluate(small, x, y, spec, threat=threat, seed=0, batch_size=200)
    assert torch.equal(found.flags["a"], evaluate(trained, x, y, spec, threat=threat, seed=0, batch_size=200).flags["a"])
    assert max(small.sizes) == 50
    if use == "pgd":
        assert found.details["a"]["batch_halved"] == [200, 100]


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_autoattack_goes_on_with_half_the_batch_and_says_so(trained, digits, threat, mode, tmp_path, monkeypatch):
    from composer.evaluate import protocol

    monkeypatch.setattr(protocol, "_seen", lambda judge, x, *_: protocol.probe(judge, x[:2]))
    x, y = digits["test"][0][:80], digits["test"][1][:80]
    found = evaluate(Small(trained, 25), x, y, [MeasureSpec("a", "apgd_ce", {"steps": 10, "mode": mode})], threat=threat, seed=0, batch_size=80, store=tmp_path)
    details = found.details["a"]
    assert details["batch_halved"][-1] // 2 <= 25 < details["batch_halved"][-1]
    whole = evaluate(trained, x, y, [MeasureSpec("a", "apgd_ce", {"steps": 10, "mode": mode})], threat=threat, seed=0, batch_size=25)
    if mode == "fast":
        assert torch.equal(found.flags["a"], whole.flags["a"])
    assert 0 < found.metrics["a"] < 1 and details["wrong_answers"] == 0


def test_the_trust_checks_ask_about_fewer_images_then(trained, digits, threat):
    x, y = digits["test"]
    small = Small(trained, 60)
    found = evaluate(small, x, y, [MeasureSpec("p", "pgd", {})], threat=threat, seed=0, batch_size=200)
    assert max(small.sizes) <= 60 and found.trust["ok"] and found.seen["images"] == 50


def test_an_image_that_does_not_fit_is_one_clear_error(trained, digits, threat):
    with pytest.raises(ComposerError, match="single image does not fit"):
        Fit(4).slices(3, lambda i, j: Small(trained, 0)(digits["test"][0][i:j]))


def test_another_error_is_no_matter_of_memory():
    def broken(size):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        Fit(8)(broken)
    assert out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")) and not out_of_memory(ValueError("out of memory"))


def test_slices_cover_everything_once():
    seen: list[int] = []

    def work(i, j):
        if j - i > 3:
            raise MemoryError
        seen.extend(range(i, j))
        return j - i

    fit = Fit(10)
    assert fit.slices(11, work) == [2] * 5 + [1] and seen == list(range(11)) and fit.refused == [10, 5]


@pytest.mark.parametrize(("use", "options"), [("spsa", {"samples": 3, "steps": 2}), ("square", {"queries": 20}), ("square", {"queries": 20, "mode": "fast"}),
                                              ("apgd_t", {"steps": 4, "mode": "fast"})])
def test_spsa_and_square_halve_too(trained, digits, threat, use, options, monkeypatch):
    from composer.evaluate import protocol

    monkeypatch.setattr(protocol, "_seen", lambda judge, x, *_: protocol.probe(judge, x[:2]))
    x, y = digits["test"][0][:60], digits["test"][1][:60]
    small = Small(trained, 25)
    found = evaluate(small, x, y, [MeasureSpec("a", use, options)], threat=threat, seed=0, batch_size=60)
    assert found.details["a"]["batch_halved"] == [60, 30] and max(small.sizes) <= 25
    if use == "spsa" or options.get("mode") == "fast":
        assert torch.equal(found.flags["a"], evaluate(trained, x, y, [MeasureSpec("a", use, options)], threat=threat, seed=0, batch_size=60).flags["a"])
