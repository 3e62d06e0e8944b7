"""`composer compare A B`: two judged models on the same images, by each attack and by the worst case. Stored flags only; nothing is attacked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from composer.ablate.statistics.pairs import mcnemar
from composer.errors import ComposerError
from composer.subject.record import FOLDER, WORST, held, kept, read_flags

Judged = tuple[dict[str, Any], dict[str, Tensor]]


def compare(a: str, b: str, out: Path, protocol: str = "") -> dict[str, Any]:
    """{"a", "b", "rows": [Pair of each measure], "notes", "doubted"}: McNemar (exact below 25 discordant images) and the paired bootstrap of a - b.

    a, b      an exported .npz or .parquet, or what `composer evaluate` was given (its last evaluation), or the name of its folder
    protocol  among several evaluations of one model, the one by this protocol; doubted: those of "a", "b" that the trust checks doubt
    Errors: ComposerError where a model was not evaluated yet, or the images are others.
    """
    first, second = find(a, out, protocol), find(b, out, protocol)
    notes = [f"{name}: its numbers are in doubt ({'; '.join(side[0]['trust']['flags'])})" for name, side in (("A", first), ("B", second)) if _doubted(side)]
    rows = []
    for name in (n for n in first[0]["metrics"] if n in second[0]["metrics"]):
        why = cannot(name, first, second)
        if why:
            notes.append(f"{name} is left out: {why}")
            continue
        n = min(len(first[1][name]), len(second[1][name]))
        pair = mcnemar(first[1][name][:n].numpy(), second[1][name][:n].numpy())
        rows.append({"measure": name, **pair.as_dict()})
    if not rows:
        raise ComposerError(f"{a} and {b} cannot be compared", why="\n".join(notes) or "no measure was taken of both", fix="evaluate both by one protocol, on the same data")
    doubted = [name for name, side in (("a", first), ("b", second)) if _doubted(side)]
    return {"a": first[0]["model"], "b": second[0]["model"], "rows": rows, "notes": notes, "doubted": doubted}


def _doubted(side: Judged) -> bool:
    return not side[0].get("trust", {}).get("ok", True)


def find(target: str, out: Path, protocol: str = "") -> Judged:
    """A kept evaluation or an exported file. Errors: ComposerError where there is none."""
    path = Path(target)
    if path.suffix in (".npz", ".parquet") and path.is_file():
        return read_flags(path)
    found = [path] if (path / "flags.safetensors").is_file() else kept(out, target)
    judged = [each for each in map(held, found) if not protocol or each[0].get("protocol") == protocol]
    if not judged:
        raise ComposerError(f"there is no evaluation of '{target}'" + (f" by the protocol {protocol}" if protocol else ""),
                            why=f"looked in {out / FOLDER}", fix=f"composer evaluate {target}" + (f" --protocol {protocol}" if protocol else ""))
    return judged[0]


def cannot(name: str, first: Judged, second: Judged) -> str:
    """Why two verdicts of that name are no pair; '' where they are."""
    if name in first[0].get("units", {}):
        return "a diagnostic, not a verdict on images"
    if name not in first[1] or name not in second[1]:
        return "its verdicts on images were not kept"
    if not same_images(name, first[0], second[0]):
        return "not the same images"
    if name == WORST:
        mine, theirs = (_worst_settings(each[0]) for each in (first, second))
        return "" if mine == theirs else "the worst case is over other attacks"
    mine, theirs = first[0]["measures"][name], second[0]["measures"][name]
    other = sorted(key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key))
    return f"{', '.join(f'{key} is {mine.get(key)} there and {theirs.get(key)} here' for key in other)}" if other else ""


def _worst_settings(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: result["measures"][name] for name in result["worst_of"]}


def same_images(name: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """By digest: of the data set, or of the very images of this measure."""
    one, other = first["data"], second["data"]
    if one["digest"] == other["digest"]:
        return True
    mine = one["images"].get(name)
    if name == WORST:
        return bool(one["images"]) and one["images"] == other["images"]
    return mine is not None and mine == other["images"].get(name)


def text(result: Mapping[str, Any]) -> str:
    """A table for a terminal."""
    from composer.report.table import DOUBTED, layout

    a, b = (DOUBTED if side in result["doubted"] else "" for side in ("a", "b"))
    cells = [["measure", "n", "A", "B", "A - B", "95 % interval", "only A", "only B", "p", "test"]]
    for row in result["rows"]:
        low, high = row["ci95"] or (float("nan"), float("nan"))
        cells.append([row["measure"], f"{row['n']:,}", f"{100 * row['a']:.2f}{a}", f"{100 * row['b']:.2f}{b}", f"{100 * row['difference']:+.2f}{a or b}",
                      f"{100 * low:+.2f} to {100 * high:+.2f}", str(row["only_a"]), str(row["only_b"]), f"{row['p']:.3g}", row["method"]])
    head = [f"A  {result['a']}", f"B  {result['b']}", ""]
    foot = ["", "Accuracy in %; interval: paired bootstrap over images; p: McNemar, unadjusted. It speaks of these two models, not of methods.",
            *([f"{DOUBTED} the trust checks doubt these numbers, see the notes"] if result["doubted"] else []), *(f"note: {note}" for note in result["notes"])]
    return "\n".join([*head, *layout(cells), *foot])
