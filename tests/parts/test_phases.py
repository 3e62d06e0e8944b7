from __future__ import annotations

from composer.phases import burn_in, half_radius


def test_burn_in_leaves_nothing_but_clean_cross_entropy():
    assert burn_in(("boosted_ce", "kl"), ("x_adv", "weights")) == {
        "set": {"outer.updates": ["x"], "outer.after": []}, "drop": ["terms.boosted_ce", "terms.kl", "inner.x_adv", "inner.weights"],
        "put": {"terms.clean_ce": {"use": "ce", "at": "clean"}}}


def test_burn_in_reads_soft_labels_where_they_are_made():
    assert burn_in(("soft_ce",), (), True)["put"] == {"terms.clean_ce": {"use": "soft_ce", "at": "clean"}}


def test_half_radius_spares_perturbed_weights():
    assert half_radius(("x_adv", "x_bd", "weights"))["set"] == {"inner.x_adv.eps": "threat/2", "inner.x_bd.eps": "threat/2"}
