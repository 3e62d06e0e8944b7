"""The same steps by hand without the redundant passes: same gradients, same running statistics, fewer units. What the engine is held to.

Signatures are those of `composer.bench.reference`, without the proxy; `mart_ours` takes the logit averages it writes.
"""

from composer.bench.pruned import at, at_awp, mart, mart_ours, rice_at, standard, trades, trades_awp

STEPS = {"standard": standard.step, "at": at.step, "trades": trades.step, "mart": mart.step, "rice_at": rice_at.step,
         "trades_awp": trades_awp.step, "at_awp": at_awp.step, "mart_ours": mart_ours.step}
START = {"standard": "uniform", "at": "uniform", "trades": "gaussian", "mart": "gaussian", "rice_at": "uniform", "trades_awp": "gaussian",
         "at_awp": "uniform", "mart_ours": "gaussian"}
