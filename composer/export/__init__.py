"""`composer export`: a judged model for others, as safetensors with a card, as ONNX, as files for a RobustBench submission."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from composer.errors import ComposerError, suggest

KINDS = ("safetensors", "onnx", "robustbench")


def export(asked: Any, kinds: Sequence[str], folder: Path) -> dict[str, Any]:
    """{"model", "files", "card"}: writes the kinds asked for into the folder. The card is always written: the other files refer to it.

    Errors: ComposerError for an unknown kind, a missing package, and as composer.subject.find.subject; nothing is written then.
    """
    from composer.export.card import write_card
    from composer.export.onnx_file import need_onnx, write_onnx
    from composer.export.robustbench import write_claim
    from composer.subject.door import probe
    from composer.subject.find import subject as find

    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ComposerError(f"--to {','.join(kinds)}", where="command line", fix=suggest(unknown[0] if unknown else "", KINDS, "kinds"))
    if "onnx" in kinds:
        need_onnx()
    subject, bench = find(asked)
    if subject.kind not in ("run", "checkpoint"):
        probe(subject, bench, asked)
    folder = folder.absolute()
    card, files = write_card(subject, bench, asked, folder)
    if "onnx" in kinds:
        files.append(write_onnx(subject, bench, folder))
    if "robustbench" in kinds:
        files += write_claim(subject, bench, card, folder)
    return {"model": subject.name, "files": [str(f) for f in files], "card": card}
