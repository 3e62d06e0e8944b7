"""Working through a source of trials: one after the other in this process, or as trials of Ray Tune (`on_ray`)."""

from __future__ import annotations

from collections.abc import Callable

from composer.recipe.recipe import Recipe
from composer.search.options import SweepOptions
from composer.search.pace import Told
from composer.search.propose import Source
from composer.search.store import Store
from composer.search.trial import Work, set_threads, train

MakeWork = Callable[[int], Work]


def work_through(recipe: Recipe, source: Source, store: Store, make: MakeWork, options: SweepOptions) -> None:
    """Train every trial the source hands out. Errors: Stopped after Ctrl-C or SIGTERM; unfinished trials go on the next time."""
    source = Told(source, store, options.trials, make(0).until or recipe.segments()[-1].last, options.say)
    if options.here:
        _here(recipe, source, make, options)
    else:
        from composer.search.on_ray import work_on_ray

        work_on_ray(recipe, source, store, make, options)


def _here(recipe: Recipe, source: Source, make: MakeWork, options: SweepOptions) -> None:
    set_threads(options.threads)
    while job := source.next():
        train(recipe, job.values, make(job.number), lambda epoch, metrics, n=job.number: source.seen(n, epoch, metrics))
        source.ended(job.number)
