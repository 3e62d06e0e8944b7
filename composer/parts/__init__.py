"""Parts: primitives with memory. Each is one class; importing the room registers them."""

from composer.parts import interpolate, logit_ema, swa, weight_ema  # noqa: F401
