"""One step of ascent."""

from __future__ import annotations

from typing import Annotated, Any

from composer.errors import ComposerError
from composer.inner.ascent import Climb, move
from composer.inner.balls import per_image
from composer.registry import inner
from composer.shapes import Images, Norm, Pixels, Scalar, Tensor, Unit

OptionalStart = Annotated[Any, Unit("nested", kind="start")]


@inner
def fgsm(x: Images, climb: Climb, eps: Scalar, draws: dict[str, list[Tensor]], *, norm: Norm, step: Pixels = "eps",  # type: ignore[assignment]
         start: OptionalStart = None) -> dict[str, Tensor]:
    """Fast gradient sign method: one step, from the natural image unless a start is named.

    Formula: x' = P(x_0 + step d(grad)), d the sign (linf) or the unit gradient (l2)  [pixels]
    Paper:   Goodfellow et al., ICLR 2015; Wong et al., ICLR 2020 (start uniform, step 1.25 eps)
    """
    ball = norm(x, eps)
    point = x if start is None else start(x, ball, (draws.get("start") or [None])[0])
    direction = ball.steepest(climb(point=point).grads["point"])
    return {"point": ball.project(move(point, direction, per_image(_length(step, eps))))}


def _length(step: Any, eps: Any) -> Any:
    """Within a plan the step is a number or tensor by now; called by hand, the default is still the word."""
    if not isinstance(step, str):
        return step
    if step != "eps":
        raise ComposerError(f'inner \'fgsm\' got step = "{step}"', why="words are read in a recipe, not in a call", fix="pass a number of pixels")
    return eps
