from __future__ import annotations

import logging
import sys

import pytest
import torch
from torch import nn

from composer.errors import ComposerError
from composer.evaluate import autoattack
from composer.evaluate.autoattack import verify
from composer.evaluate.draws import Draws
from composer.evaluate.guard import Judge, undisturbed
from composer.evaluate.protocol import evaluate
from composer.evaluate.store import Slot
from composer.options import Ref
from composer.recipe.types import MeasureSpec, Threat

AA = [MeasureSpec("aa", "aa", {})]


def test_flags_are_those_of_the_library(trained, digits, threat, monkeypatch, quick_autoattack):
    """Same seed, one batch: image by image what run_standard_evaluation says."""
    from pyautoattack import AutoAttack

    x, y = digits["test"][0][:60], digits["test"][1][:60]
    monkeypatch.setattr(autoattack, "batch_seed", lambda *_: 11)
    quick_autoattack(n_queries=300, n_iter=100)
    found = evaluate(trained, x, y, AA, threat=threat, seed=0)
    with torch.random.fork_rng():
        tracer = sys.gettrace()
        suite = AutoAttack(trained, eps=threat.eps, norm="Linf", seed=11)
        suite.square.n_queries = 300
        _, answer = suite.run_standard_evaluation(x, y, batch_size=60)
        sys.settrace(tracer)
    trained.zero_grad()
    assert torch.equal(found.flags["aa"], answer == y)
    assert 0.1 < found.metrics["aa"] < 0.9
    assert found.trust["ok"], found.trust


def test_settings_are_the_librarys_standard(trained):
    from pyautoattack import AutoAttack

    reference = AutoAttack(trained, eps=0.2, norm="Linf", seed=0)
    made = {name: _object(autoattack.make_attack(AutoAttack, Judge(trained), 0.2, "Linf", "standard", name, 10)) for name in reference.attacks_to_run}
    assert list(made) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    for name, theirs in {"apgd-ce": reference.apgd, "apgd-t": reference.apgd_targeted, "fab-t": reference.fab, "square": reference.square}.items():
        ours = {k: v for k, v in vars(made[name]).items() if isinstance(v, (int, float, str)) and k not in ("seed", "loss", "targeted")}
        assert ours == {k: vars(theirs)[k] for k in ours}
    assert (made["apgd-ce"].n_iter, made["apgd-ce"].n_restarts, made["square"].n_queries) == (100, 1, 5000)
    assert made["apgd-ce"].loss == "ce"
    assert made["fab-t"].targeted
    assert made["fab-t"].n_target_classes == made["apgd-t"].n_target_classes == 9


def _object(run):
    return next(cell.cell_contents for cell in run.__closure__ if hasattr(cell.cell_contents, "perturb"))


def test_a_killed_evaluation_goes_on_where_it_was(trained, digits, threat, quick_autoattack, tmp_path):
    quick_autoattack()
    x, y = digits["test"][0][:50], digits["test"][1][:50]
    stages: list[str] = []
    whole = evaluate(trained, x, y, AA, threat=threat, seed=0, batch_size=15, progress=lambda name, *_: stages.append(name))
    assert {"aa/apgd-ce", "aa/apgd-t", "aa/fab-t", "aa/square"} <= set(stages)
    for kill_after in range(1, len(stages) + 1):
        store, seen = tmp_path / str(kill_after), []

        def stop(name, done, total, seen=seen, kill_after=kill_after):
            seen.append((name, done))
            if len(seen) == kill_after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluate(trained, x, y, AA, threat=threat, seed=0, batch_size=15, store=store, progress=stop)
        rest: list[tuple[str, int]] = []
        again = evaluate(trained, x, y, AA, threat=threat, seed=0, batch_size=15, store=store, progress=lambda name, done, total, rest=rest:
                         rest.append((name, done)))
        assert torch.equal(again.flags["aa"], whole.flags["aa"])
        assert [name for name, _ in seen + rest] == stages
        assert not list(store.glob("*.part"))
        assert again.details["aa"]["robust_after"] == whole.details["aa"]["robust_after"]


def test_a_torn_ledger_starts_afresh(trained, digits, threat, quick_autoattack, tmp_path):
    quick_autoattack()
    x, y = digits["test"][0][:20], digits["test"][1][:20]

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(trained, x, y, AA, threat=threat, seed=0, store=tmp_path, progress=stop)
    (part,) = tmp_path.glob("*.part")
    part.write_bytes(part.read_bytes()[:-7])
    again = evaluate(trained, x, y, AA, threat=threat, seed=0, store=tmp_path)
    assert torch.equal(again.flags["aa"], evaluate(trained, x, y, AA, threat=threat, seed=0).flags["aa"])


@pytest.mark.parametrize(("classes", "attacks"), [
    (2, ["apgd-ce", "fab-t", "square"]), (3, ["apgd-ce", "apgd-dlr", "fab-t", "square"]), (4, ["apgd-ce", "apgd-t", "fab-t", "square"]),
    (10, ["apgd-ce", "apgd-t", "fab-t", "square"]), (12, ["apgd-ce", "apgd-t", "fab-t", "square"])])
def test_any_number_of_classes(classes, attacks, quick_autoattack):
    quick_autoattack()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, classes))
    x = torch.rand(40, 2, 4, 4)
    with torch.no_grad():
        net[3].bias -= net(x).mean(0)          # every class is somebody's
    y = net(x).argmax(1)
    threat = Threat(Ref("ball", "linf"), 0.05, 0.01, 5, Ref("start", "uniform"))
    found = evaluate(net, x, y, AA, threat=threat, seed=0)
    assert found.details["aa"]["attacks"] == attacks
    assert 0 < found.metrics["aa"] < 1
    assert ("note" in found.details["aa"]) == (classes < 10)


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.4), ("l1", 1.5)])
def test_other_norms(trained, digits, norm, eps, quick_autoattack):
    quick_autoattack(n_iter=20)
    x, y = digits["test"][0][:30], digits["test"][1][:30]
    with undisturbed(trained) as judge:
        found = autoattack.run_autoattack(judge, x, y, Draws(0, "evaluate/aa"), 250, lambda *_: None, Slot(None, ""), version="standard", eps=eps,
                                          norm=Ref("ball", norm))
    assert found.details["wrong_answers"] == 0
    assert found.details["attacks"] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert int(found.values.sum()) < int(found.extra["clean"].sum())


def test_answers_are_checked_by_us(two_classes):
    x, y = two_classes.images(5)
    y = two_classes(x).argmax(1)
    away = -0.1 * torch.where(y == 1, 1.0, -1.0).view(-1, 1, 1, 1) * two_classes.w.detach().view(1, 2, 4, 4).sign()
    judge = Judge(two_classes)
    good = x + away
    assert verify(judge, x, good, y, 0.1, "linf")[:2] == _flags([True] * 5, [False] * 5)
    found = torch.stack((good[0], x[1], x[2] + 2 * away[2], x[3] - away[3], good[4]))
    found[4, 0, 0, 0] = -0.01                          # outside [0,1]
    assert verify(judge, x, found, y, 0.1, "linf")[:2] == _flags([True, False, False, False, False], [False, False, True, True, True])
    found = good.clone()
    found[0, 0, 0, 0] = torch.nan
    assert verify(judge, x, found, y, 0.1, "linf")[0].tolist() == [False, True, True, True, True]
    assert verify(judge, x, good, y, 0.1 * 32**0.5, "l2")[:2] == _flags([True] * 5, [False] * 5)
    assert verify(judge, x, good, y, 0.1 * 32 + 1e-5, "l1")[:2] == _flags([True] * 5, [False] * 5)
    assert verify(judge, x, good, y, 0.1, "l2")[:2] == _flags([False] * 5, [True] * 5)


class _flags:
    def __init__(self, *columns):
        self.columns = list(columns)

    def __eq__(self, other):
        return [column.tolist() for column in other] == self.columns


def test_false_answers_count_as_robust_and_are_told(trained, digits, threat, monkeypatch):
    monkeypatch.setattr(autoattack, "make_attack", lambda *_, **__: lambda x, y, seed: (x + 3 * threat.eps).clamp(0, 1))
    x, y = digits["test"][0][:30], digits["test"][1][:30]
    found = evaluate(trained, x, y, [MeasureSpec("clean", "clean", {}), *AA], threat=threat, seed=0)
    assert found.metrics["aa"] == found.metrics["clean"]
    assert found.details["aa"]["wrong_answers"] == 4 * int(found.flags["clean"].sum())
    assert any("did not hold up" in flag for flag in found.trust["flags"])


def test_an_image_batch_of_one_and_nothing_left_to_attack(trained, digits, threat, quick_autoattack):
    quick_autoattack()
    x, y = digits["test"][0][:5], digits["test"][1][:5]
    assert evaluate(trained, x[:1], y[:1], AA, threat=threat, seed=0).n == {"aa": 1}
    assert evaluate(trained, x, (y + 1) % 10, AA, threat=threat, seed=0).metrics["aa"] <= 0.2


def test_the_library_is_quiet_and_its_logger_as_before(trained, digits, threat, quick_autoattack, capfd):
    quick_autoattack()
    logger = logging.getLogger("auto-attack")
    before = (list(logger.handlers), logger.level, logger.propagate)
    found = evaluate(lambda x: trained(x).softmax(1).mul(1e4).softmax(1), digits["test"][0][:20], digits["test"][1][:20], AA, threat=threat, seed=0)
    assert (list(logger.handlers), logger.level, logger.propagate) == before
    assert capfd.readouterr() == ("", "")
    assert any("zero gradient" in text for text in found.details["aa"]["warnings"])


def test_single_attacks(trained, digits, threat, quick_autoattack):
    quick_autoattack(n_queries=30)
    specs = [MeasureSpec(use, use, {}) for use in ("apgd_ce", "fab", "square")]
    found = evaluate(trained, digits["test"][0][:20], digits["test"][1][:20], specs, threat=threat, seed=0)
    assert [found.details[use]["attacks"] for use in ("apgd_ce", "fab", "square")] == [["apgd-ce"], ["fab-t"], ["square"]]
    assert found.metrics["apgd_ce"] < 0.9


def test_without_the_library_aa_is_one_clear_error_and_the_rest_works(trained, digits, threat, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    x, y = digits["test"]
    with pytest.raises(ComposerError, match="needs the package pyautoattack") as caught:
        evaluate(trained, x, y, AA, threat=threat, seed=0)
    assert "pip install" in caught.value.fix
    assert evaluate(trained, x, y, [MeasureSpec("clean", "clean", {}), MeasureSpec("p", "pgd", {})], threat=threat, seed=0).metrics["p"] > 0


def test_a_norm_it_does_not_know(trained, digits, threat):
    with pytest.raises(ComposerError, match="no norm 'l0'"):
        autoattack.run_autoattack(Judge(trained), *digits["test"], None, 10, None, None, version="standard", eps=0.1, norm=Ref("ball", "l0"))


@pytest.mark.parametrize(("use", "norm", "dual"), [      # the library's Square in l2 needs images of five rows, these have four
    ("apgd_ce", "linf", 1.0), ("apgd_ce", "l2", 2.0), ("fab", "linf", 1.0), ("fab", "l2", 2.0), ("square", "linf", 1.0)])
def test_single_attacks_at_a_threat_of_their_own(two_classes, quick_autoattack, use, norm, dual):
    """The setting's threat is too small to break anything; the measure's own norm and radius count, image by image."""
    quick_autoattack(n_queries=300, n_iter=20)
    x, y = (part[:60] for part in two_classes.images())
    radius = two_classes.radius(x, y, dual)
    eps = float(radius[radius > 0].median().clamp_max(0.19))
    threat = Threat(Ref("ball", "linf"), 1e-4, 1e-4, 5, Ref("start", "zero"))
    found = evaluate(two_classes, x, y, [MeasureSpec("a", use, {"norm": Ref("ball", norm), "eps": eps})], threat=threat, seed=0).flags["a"]
    assert found.dtype == torch.bool and found[radius > eps * 1.001].all() and not found[radius <= 0].any()
    near = (radius > 0) & (radius < 0.5 * eps)
    assert int(near.sum()) > 5 and int(found[near].sum()) <= (0 if use != "square" else 0.3 * int(near.sum()))
