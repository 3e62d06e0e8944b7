"""Epochs that several runs share, trained once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from composer.engine import chain
from composer.engine.guests import take_in, up_to
from composer.engine.judge import check_judging
from composer.engine.session import Session, Settings
from composer.engine.signals import Signals
from composer.engine.train import Trainer
from composer.engine.walk import Observer, Walk, Wish
from composer.errors import ComposerError
from composer.report.live import Live


def train_prefix(recipe: Any, *, seed: int, until: int, guests: Sequence[Any] = (), settings: Settings, observer: Observer | None = None,
                 judge: Callable[[Session, Trainer], dict[str, Any]] | None = None) -> dict[str, Any]:
    """Train a recipe's first epochs and leave their state in the store, for every run that begins with them.

    until   the last of these epochs, counted over the whole run
    guests  recipes that share the epochs; their passive parts are trained along
    judge   looks at the state after them; what it says joins the answer

    Returns {"node": name of the folder, "key", "epochs"}. Errors: as those of a run.
    """
    wish = Wish()
    with Signals(wish):
        session = Session(recipe, seed, settings)
        check_judging(session)
        prepare(session, until, guests)
        title = f"epochs 1-{until} of {recipe.name} on {recipe.setting}, seed {seed}"
        with Live(until, session.feed(session.nodes[0].segment).steps, title, quiet=settings.quiet) as live:
            trainer = Walk(session, live, wish, observer).train()
            said = judge(session, trainer) if judge else {}
    last = session.nodes[-1]
    return {"node": last.folder.name, "key": last.key, "epochs": until, **said}


def prepare(session: Session, until: int, guests: Sequence[Any]) -> None:
    """The session's nodes up to the epoch, with the passive parts of others."""
    init = session.init_digest() if session.recipe.train.init else None
    ground, root = session.ground(init), chain.root(session.seed, init)
    others = []
    for other in guests:
        nodes = chain.grow(chain.stretches(other, ground, session.settings.out), root, session.folder, session.mark)
        points = chain.points_of([node.plan for node in nodes])
        others.append((other.experiment_id[:8], up_to(nodes, until, session.folder, session.mark), points))
    nodes = up_to(session.nodes, until, session.folder, session.mark)
    for other, (_, theirs, _) in zip(guests, others, strict=True):
        if theirs[-1].key != nodes[-1].key:
            raise ComposerError(f"{other.name} parts from {session.recipe.name} before the end of epoch {until}", why="they cannot share it")
    session.nodes, session.guests = take_in(nodes, others, session.folder, session.mark)
