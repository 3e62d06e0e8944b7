"""What of a run is not as the recipe alone says: another precision, a divided batch. Said once when it begins, and in its record. Its peak memory, too."""

from __future__ import annotations

from typing import Any

from composer.engine import micro
from composer.engine.peak import peak_kind
from composer.engine.session import Session

PRECISION = {
    "tf32": "precision tf32: products of float32 numbers are rounded to 10 bits of mantissa on CUDA; this is another experiment than fp32",
    "bf16": "precision bf16: products in bfloat16 under float32 weights, logits and losses, in the attack too, where about one pixel in six comes out "
            "differently; this is another experiment than fp32 (composer bench --precision-gate measures by how much)",
    "bf16-attack": "precision bf16-attack: the attacks on images run in bfloat16, the outer passes in float32; about one attacked pixel in six comes out "
                   "differently; this is another experiment than fp32 (composer bench --precision-gate measures by how much)",
}


def remarks(session: Session) -> list[str]:
    """Sentences for the terminal and the record; none where everything is as usual."""
    settings, batch = session.settings, session.recipe.train.batch_size
    found = [PRECISION[settings.precision]] if settings.precision in PRECISION else []
    asked = micro.parse(settings.micro_batch)
    if isinstance(asked, int) and asked < batch:
        plan = next((n.plan for n in session.nodes if micro.coupled_by_norm(n.plan, session.net.model)), session.nodes[-1].plan)
        found.append(micro.declared(plan, session.net.model, asked, batch))
    return found


def tags(session: Session) -> dict[str, str]:
    """For the tracker."""
    settings = session.settings
    return {"precision": settings.precision, "backend": settings.backend} | ({} if settings.micro_batch == "whole" else {"micro_batch": str(settings.micro_batch)})


def facts(session: Session, progress: Any) -> dict[str, Any]:
    """For the result: precision, peak memory and what it counts, how the batch was divided, and the sentences."""
    settings, said = session.settings, remarks(session)
    divided = micro.record(settings.micro_batch, progress, [n.plan for n in session.nodes], session.net.model, session.recipe.train.batch_size)
    if progress.halved and divided and not divided["micro_batch"]["exact"]:
        said.append(f"memory ran out, and the batch was divided into pieces of {divided['micro_batch']['images']}: batch norm's statistics are theirs")
    return {"precision": settings.precision, "backend": settings.backend, "peak_memory_bytes": progress.peak, "peak_memory": peak_kind(session.device),
            **divided, **({"notes": said} if said else {}), **({"backend_notes": session.backend.notes} if session.backend.notes else {})}
