from __future__ import annotations

from composer.report.doubts import by_kind
from composer.report.table import plain_table

NAMES = ("clean", "pgd-20", "pgd-100", "cw-20", "aa", "square")


def flag(weak: str, n: int, blind: str = "square") -> str:
    return f"{blind}, which sees no gradient, is stronger than {weak}: {n} images stand only under {weak}, 0 only under {blind}: gradients are probably masked"


def test_one_line_a_kind_names_all_measures():
    flags = [flag("pgd-20", 12), flag("pgd-100", 11), "some logits are not finite", flag("cw-20", 140)]
    assert by_kind(flags, NAMES) == [f"{flag('pgd-20', 12)} (likewise pgd-100, cw-20)", "some logits are not finite"]


def test_kinds_stay_apart():
    zero = [f"{name}: the input gradient is exactly zero on {share} of the attacked images" for name, share in (("pgd-20", "12.5%"), ("cw-20", "100.0%"))]
    assert by_kind([zero[0], flag("aa", 3), zero[1]], NAMES) == [f"{zero[0]} (likewise cw-20)", flag("aa", 3)]
    assert by_kind(["a 1", "a 2"], ()) == ["a 1 (1 more like it)"] and by_kind([], NAMES) == []


def test_a_name_inside_a_word_is_none():
    assert by_kind(["clean accuracy 0.100 is at chance", "unclean aas 3"], NAMES) == ["clean accuracy 0.100 is at chance", "unclean aas 3"]


def test_the_table_is_short_and_the_record_whole():
    flags = [flag(name, 5) for name in ("pgd-20", "pgd-100", "cw-20", "aa")]
    result = {"recipe": "at", "metrics": {name: 0.5 for name in NAMES}, "n": {name: 200 for name in NAMES}, "trust": {"ok": False, "flags": flags}}
    assert plain_table(result).count("doubt:") == 1 and "(likewise pgd-100, cw-20, aa)" in plain_table(result)
    assert len(result["trust"]["flags"]) == 4
