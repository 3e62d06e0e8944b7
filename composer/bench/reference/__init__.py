"""One training step of each method as its authors' programs run it, order of operations and redundant passes included, in plain PyTorch.

Every step is `step(model, optimizer, x, y, noise, *, …) -> loss`: the attack, the loss, the update. Images are in [0,1], the threat is
l-infinity, radii and step sizes are in pixels. `noise` [N,C,H,W] is the attack's random start before scaling: standard normal for TRADES and
MART, uniform in [0,1) for the others. Steps with weight perturbation take a `proxy`, a copy of the network.
"""

from composer.bench.reference import at_awp, madry_eval, mart, rice_at, trades, trades_awp

STEPS = {"madry_eval": madry_eval.step, "trades": trades.step, "mart": mart.step, "rice_at": rice_at.step, "trades_awp": trades_awp.step,
         "at_awp": at_awp.step}
START = {"madry_eval": "uniform", "trades": "gaussian", "mart": "gaussian", "rice_at": "uniform", "trades_awp": "gaussian", "at_awp": "uniform"}
WITH_PROXY = ("trades_awp", "at_awp")
