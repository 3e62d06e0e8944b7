"""Moving average of the weights, to be judged instead of the live ones."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from composer.parts._state import load_, mix_, tensors_of
from composer.registry import part
from composer.shapes import Ge, Le, Tensor


@part(neutral={"decay": 0.0})
class weight_ema:
    """Moving average of the model's weights, taken after every step of the optimiser; training itself does not see it.

    Formula: w_t = decay · w_{t-1} + (1 - decay) · theta_t, from w_0 = theta_0   [unit of the weights]
    Paper:   Polyak and Juditsky, 1992; SEAT, Wang and Wang, ICLR 2022 (decay = { use = "seat" }, buffers averaged)

    buffers   running statistics: `average` them alike, or `copy` the live ones; integer buffers are always copied
    """

    makes = ()
    per_point = False
    writes_model = False

    def __init__(self, *, decay: Annotated[float, Ge(0), Le(1)] = 0.999, buffers: Literal["average", "copy"] = "average"):
        self.decay, self.buffers = decay, buffers
        self._model: Any = None
        self._average: dict[str, Tensor] = {}
        self._mixed: list[str] = []

    def start(self, facts: Any) -> None:
        self._model = facts.model
        live = tensors_of(facts.model)
        self._average = {name: tensor.clone() for name, tensor in live.items()}
        parameters = tensors_of(facts.model, buffers=False)
        self._mixed = [name for name, tensor in live.items()
                       if tensor.is_floating_point() and (name in parameters or self.buffers == "average")]

    def after_step(self) -> None:
        live = tensors_of(self._model)
        mix_([self._average[name] for name in self._mixed], [live[name] for name in self._mixed], self.decay)
        for name in live.keys() - set(self._mixed):
            self._average[name].copy_(live[name])

    def weights(self) -> dict[str, Tensor]:
        """The averaged parameters and buffers by name; the tensors themselves, not copies."""
        return dict(self._average)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._average)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        load_(self._average, state, "weight_ema")
