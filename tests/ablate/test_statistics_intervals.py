"""Intervals and tests against scipy, statsmodels and published worked examples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from composer.ablate.statistics import clopper_pearson, mcnemar, minimum_detectable, prediction_interval, sign_flip, t_interval, wilcoxon, wilson
from composer.ablate.statistics.families import adjust, exploratory
from composer.ablate.statistics.inputs import Settings
from composer.ablate.statistics.intervals import both, inside, t_p
from composer.ablate.statistics.noise import image_noise
from composer.ablate.statistics.regression import pairing_pays
from composer.ablate.statistics.types import Contrast
from composer.errors import ComposerError

SLEEP = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]      # Student (1908), Biometrika 6: hours gained with drug 2 over drug 1


def test_students_sleep_data():
    """R's help page `t.test`: mean 1.58, 95 % interval 0.7001142 to 2.4598858, p = 0.002833."""
    assert t_interval(SLEEP) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert t_p(SLEEP) == pytest.approx(0.002833, abs=1e-6)


@pytest.mark.parametrize("level", [0.9, 0.95, 1 - 0.05 / 7])
def test_t_interval_is_scipys(level):
    values = [0.512, 0.498, 0.505, 0.523]
    expected = stats.ttest_1samp(values, 0).confidence_interval(level)
    assert t_interval(values, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_interval_without_spread():
    assert t_interval([0.5]) is None and prediction_interval([0.5]) is None and t_p([0.5]) is None
    assert t_interval([0.1 + 0.2, 0.3, 0.3]) is None and t_p([0.1 + 0.2, 0.3, 0.3]) is None          # they differ in the last bit only
    assert t_interval([0.300001, 0.3, 0.3]) is not None


@pytest.mark.parametrize(("k", "n", "score", "exact"), [
    (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)), (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
    (0, 20, (0.0000, 0.1611), (0.0000, 0.1684)), (1, 29, (0.0061, 0.1718), (0.0009, 0.1776))])
def test_newcombes_table(k, n, score, exact):
    """Newcombe (1998), Statistics in Medicine 17:857, table I, methods 3 and 5."""
    assert wilson(k, n) == pytest.approx(score, abs=6e-5) and clopper_pearson(k, n) == pytest.approx(exact, abs=6e-5)


def test_prediction_interval_holds_the_next_run():
    rng = np.random.default_rng(0)
    runs = rng.normal(size=(6_000, 4))
    held = [low <= new <= high for (low, high), new in zip(map(prediction_interval, runs[:, :3]), runs[:, 3], strict=True)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.011)
    values = runs[0]
    half = stats.t.ppf(0.975, 3) * values.std(ddof=1) * np.sqrt(1 + 1 / 4)
    assert prediction_interval(values) == pytest.approx((values.mean() - half, values.mean() + half))


def crossed(both_right: int, only_a: int, only_b: int, none: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (both_right, only_a, only_b, none)
    return np.repeat([1, 1, 0, 0], counts).astype(bool), np.repeat([1, 0, 1, 0], counts).astype(bool)


def test_mcnemar_exact_on_published_tables():
    """Fagerland, Lydersen and Laake (2013), BMC Med. Res. Methodol. 13:91: airway data 1, 1, 7, 12, exact conditional p = 0.070."""
    pair = mcnemar(*crossed(1, 1, 7, 12))
    assert pair.p == pytest.approx(0.0703, abs=5e-5) and pair.method == "exact" and (pair.only_a, pair.only_b, pair.n) == (1, 7, 21)
    assert mcnemar(*crossed(59, 6, 16, 80)).p == pytest.approx(0.053, abs=6e-4)          # the exact p of Wikipedia's "McNemar's test"


def test_mcnemar_above_25_discordant_is_the_corrected_chi_square():
    """Agresti, Categorical Data Analysis: approval of the prime minister 794, 150, 86, 570; z² = 17.36, with continuity correction 63²/236."""
    pair = mcnemar(*crossed(794, 150, 86, 570))
    assert pair.method == "chi-square" and pair.p == pytest.approx(stats.chi2.sf(63**2 / 236, 1), rel=1e-10)
    assert pair.difference == pytest.approx(64 / 1600)
    d = 64 / 1600
    wald = 1.96 * np.sqrt((236 / 1600 - d * d) / 1600)
    assert pair.ci95 == pytest.approx((d - wald, d + wald), abs=0.002)                      # the bootstrap, against the normal interval


def test_mcnemar_without_a_discordant_image():
    pair = mcnemar(np.ones(100, bool), np.ones(100, bool))
    assert pair.p == 1.0 and pair.ci95 == pytest.approx((-0.0362, 0.0362), abs=1e-4)       # 1 - 0.025^(1/100), not a width of 0
    with pytest.raises(ComposerError, match="same images"):
        mcnemar(np.ones(5, bool), np.ones(6, bool))


def test_rank_tests_need_six_seeds():
    for test in (sign_flip, wilcoxon):
        with pytest.raises(ComposerError, match="2/2\\^5 = 0.0625"):
            test([1.0, 2, 3, 4, 5])
        assert test([1.0, 2, 3, 4, 5, 6]) == pytest.approx(2 / 2**6)
    assert sign_flip(SLEEP) == pytest.approx(2 * sum(1 for s in range(1024) if signed(s) >= sum(SLEEP) - 1e-9) / 1024)
    assert wilcoxon([1.1, -0.3, 2.0, 0.7, -0.2, 1.5, 0.9]) == pytest.approx(stats.wilcoxon([1.1, -0.3, 2.0, 0.7, -0.2, 1.5, 0.9]).pvalue)


def signed(bits: int) -> float:
    return sum(value if bits >> i & 1 else -value for i, value in enumerate(SLEEP))


@pytest.mark.parametrize("n", [2, 3, 5, 8, 30])
def test_minimum_detectable_effect_has_eighty_per_cent_power(n):
    d = minimum_detectable(1.0, n)
    nc, df = d * np.sqrt(n), n - 1
    t = stats.t.ppf(0.975, df)
    power = stats.nct.sf(t, df, nc) + stats.nct.cdf(-t, df, nc)
    assert power == pytest.approx(0.8, abs=1e-5)
    assert minimum_detectable(0.25, n) == pytest.approx(0.25 * d) and minimum_detectable(1.0, 1) is None


@pytest.mark.parametrize(("d_z", "n"), [(0.5, 34), (1.0, 10), (1.5, 6), (2.0, 5), (3.0, 4)])
def test_seeds_needed(d_z, n):
    """n is the first number of seeds that finds d_z (Cohen's tables of the paired t; statsmodels agrees)."""
    assert minimum_detectable(1.0, n) <= d_z < minimum_detectable(1.0, n - 1)
    assert int(np.ceil(TTestPower().solve_power(d_z, power=0.8, alpha=0.05))) == n


@pytest.mark.parametrize("shift", [0.0, 0.9, 1.2, 1.29, 1.4, 2.0])
def test_equivalence_is_two_one_sided_tests(shift):
    """Without image noise the 90 % interval within the margin is statsmodels' paired TOST at 5 %."""
    values = np.array(SLEEP) - 1.58 + shift
    ninety = t_interval(values, 0.90)
    assert inside(both(float(values.mean()), ninety, (0.0, 0.0)), 2.0) == (ttost_paired(values, np.zeros(10), -2.0, 2.0)[0] <= 0.05)


def contrasts(samples: dict[str, list[float]]) -> list[Contrast]:
    return [Contrast(name, "aa", "main", float(np.mean(v)), dict(enumerate(v)), ci95=t_interval(v)) for name, v in samples.items()]


def with_p(p: float, n: int = 6) -> list[float]:
    """n numbers whose one-sample t test gives p."""
    base = np.arange(n, dtype=float)
    base = (base - base.mean()) / (base.std(ddof=1) / np.sqrt(n))
    return list(base + stats.t.isf(p / 2, n - 1))


def test_holm_on_the_textbook_example():
    """p = 0.01, 0.04, 0.03, 0.005 adjust to 0.03, 0.06, 0.06, 0.02 (Wikipedia, "Holm-Bonferroni method")."""
    rows = contrasts({name: with_p(p) for name, p in zip("abcd", (0.01, 0.04, 0.03, 0.005), strict=True)})
    done = adjust(rows, [("effect", name) for name in "abcd"], Settings())
    assert [c.p_holm for c in done] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    for c in done:
        wide = stats.ttest_1samp(list(c.values.values()), 0).confidence_interval(1 - 0.05 / 4)
        assert c.in_family and c.ci_simultaneous == pytest.approx((wide.low, wide.high))


def test_p_is_null_below_five_seeds_and_outside_the_family():
    rows = contrasts({"a": with_p(0.001, 4), "b": with_p(0.001, 5), "c": with_p(0.001, 5)})
    a, b, c = adjust(rows, [("effect", "a"), ("effect", "b")], Settings())
    assert a.p_holm is None and a.ci_simultaneous is not None
    assert b.p_holm == pytest.approx(0.002)                                                   # `a` still counts in the family of two
    assert c.p_holm is None and c.ci_simultaneous is None and not c.in_family


def test_exploratory_effects_get_benjamini_hochberg():
    """Benjamini and Hochberg (1995), J. R. Stat. Soc. B 57:289, section 3.2: of these 15, four are found at 5 %."""
    ps = (0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 0.99999)
    rows = contrasts({f"t{i}": with_p(p) for i, p in enumerate(ps)})
    done = exploratory(rows, Settings(exploratory="bh"))
    assert sum(c.q_bh <= 0.05 for c in done) == 4 and done[3].q_bh == pytest.approx(0.0095 * 15 / 4)
    assert all(c.q_bh is None for c in exploratory(rows, Settings()))


@pytest.mark.parametrize(("images", "discordant", "points"), [(10_000, 0.10, 0.62), (360, 0.20, 4.6)])
def test_image_noise_of_known_size(images, discordant, points):
    """Half-width of a difference of flags with this share of discordant images: 1.96 sqrt(share / N)."""
    k = round(images * discordant / 2)
    column = np.repeat([1.0, -1.0, 0.0], [k, k, images - 2 * k])
    noise = image_noise([column], 4000)[0]
    assert (noise.ninety_five[1] - noise.ninety_five[0]) / 2 == pytest.approx(points / 100, rel=0.06)
    assert (noise.ninety[1] - noise.ninety[0]) == pytest.approx((noise.ninety_five[1] - noise.ninety_five[0]) * 1.645 / 1.96, rel=0.08)


def test_image_noise_resamples_the_same_images_for_all_contrasts():
    rng = np.random.default_rng(1)
    a, b = rng.random(500), rng.random(500)
    first, _, total = image_noise([a, b, a + 2 * b], 4000)
    single = image_noise([a + 2 * b], 4000)[0]
    assert total.ninety_five == pytest.approx(single.ninety_five)
    means = [rng.choice(a, 500).mean() for _ in range(4000)]
    assert first.ninety_five == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.004)
    assert image_noise([None, a, np.ones(7)], 300)[0] is None


@pytest.mark.parametrize(("n", "rho"), [(3, 0.58), (5, 0.31)])
def test_pairing_must_be_earned(n, rho):
    assert pairing_pays(n) == pytest.approx(rho, abs=0.006)
