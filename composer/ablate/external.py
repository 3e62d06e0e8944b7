"""Rows of a study that are somebody else's checkpoint: judged beside the study's own runs."""

from __future__ import annotations

from typing import Any

from composer.ablate.types import Failure, Grid
from composer.errors import ComposerError


def external_results(grid: Grid, settings: Any) -> tuple[dict[tuple[str, int], dict[str, Any]], list[Failure]]:
    """(row, 0) -> its result, for each row whose checkpoint is here, and those that do not fit. What was judged before is read from the store."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    failed: list[Failure] = []
    for row in grid.study.rows if grid.study is not None else ():
        if row.kind != "external" or row.absent:
            continue
        from composer.subject.study import evaluate_external

        try:
            result = evaluate_external(row, settings)
        except ComposerError as error:
            failed.append(Failure(row.name, 0, error.text(), exit_code=error.exit_code))
            continue
        if result is not None:
            found[row.name, 0] = result
    return found, failed
