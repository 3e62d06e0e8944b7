"""Which runs can be trained together, and where that pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from composer.engine import backend
from composer.engine.chain import Node
from composer.engine.keys import digest
from composer.engine.pack import values_of, why_not
from composer.engine.pack_layers import Unpackable
from composer.engine.pack_net import PackedNet
from composer.engine.pack_plans import merged
from composer.engine.session import Session, Settings

SMALL = {"cpu": 25e6, "cuda": 2e9}        # floating-point operations of a batch's forward up to which a pack is taken to pay (CUDA's is an estimate)


def width_of(settings: Settings) -> int:
    """Runs in the pack that these settings name; 1: alone."""
    return int(settings.pack.rpartition(" ")[2]) if settings.pack else 1


def seated(settings: Settings, seat: int, width: int) -> Settings:
    """The settings of the run in that place (from 0): packs run eagerly."""
    return replace(settings, pack=f"{seat + 1} of {width}", backend="eager")


def beside(recipes: Sequence[Any]) -> str:
    """A digest of the recipes by seat, '' where they are one: what sits beside a run decides which calls are made member by member, and how the update is
    made, so its bits depend on it. Seeds do not."""
    ids = [recipe.experiment_id for recipe in recipes]
    return digest(ids)[:16] if len(set(ids)) > 1 else ""


def unfit(settings: Settings) -> str:
    """Why runs with these settings cannot be packed, as a sentence without its full stop; '' where they can."""
    if settings.backend not in ("auto", "eager"):
        return f"packs run eagerly, and --backend {settings.backend} was asked for"
    if settings.precision not in ("fp32", "tf32"):
        return f"packs run in float32, and --precision {settings.precision} was asked for"
    if settings.micro_batch != "whole" or settings.workers > 1:
        return "a pack's batches are whole and on one device"
    return ""


def refusal(sessions: Sequence[Session]) -> str:
    """Why these runs cannot be trained together, as a sentence without its full stop; '' where they can. Their networks are one afterwards."""
    first = sessions[0]
    sizes = {len(s.rows) for s in sessions}
    if len(sizes) > 1:
        return f"the runs have {min(sizes)} to {max(sizes)} training images, and their epochs would not have the same steps"
    if reason := unlike(sessions):
        return reason
    for session in {s.recipe.experiment_id: s for s in sessions}.values():
        for node in session.nodes:
            if reason := why_not(node.plan, session.parts(node, {})):
                return reason
    try:
        PackedNet([s.net for s in sessions], tuple(first.dataset.shape))
    except Unpackable as error:
        return str(error)
    return ""


def unlike(sessions: Sequence[Session]) -> str:
    """Why runs of different recipes are not one up to numbers, as a sentence without its full stop; '' where they are."""
    lead = sessions[0]
    for other in (s for s in sessions[1:] if s.recipe.experiment_id != lead.recipe.experiment_id):
        for what, said in (("model", "networks"), ("data", "data sets")):
            if getattr(other.recipe, what) != getattr(lead.recipe, what):
                return f"the runs have different {said}"
        if [_stretch(n) for n in other.nodes] != [_stretch(n) for n in lead.nodes]:
            return "their stretches of epochs differ (phases, epochs, batch size, or where weights are first selected)"
        if any(a.segment.recipe.optim.decay_at != b.segment.recipe.optim.decay_at for a, b in zip(lead.nodes, other.nodes)):
            return "optim.decay_at differs among the runs"
        try:
            for nodes in zip(lead.nodes, other.nodes):
                merged([n.plan for n in nodes], [values_of(n) for n in nodes])
        except Unpackable as error:
            return str(error)
    return ""


def _stretch(node: Node) -> tuple[Any, ...]:
    """What of a stretch is one for all members."""
    segment, train = node.segment, node.segment.recipe.train
    return segment.first, segment.last, segment.clock, segment.epochs, segment.fresh, node.ends, train.batch_size, train.last


def too_large(session: Session) -> str:
    """Why packing does not pay here, as a sentence without its full stop; '' where it does: calls must cost more than what they compute.

    On a CPU a convolution is one call a run, packed or not, and the runs' maps push each other out of the cache: packed, small_cnn was never faster.
    """
    if session.device.type == "cpu" and session.net.channels_last:
        return "a pack of convolutional networks is no faster on a CPU"
    flops = backend.products(session.net, tuple(session.dataset.shape)) * session.recipe.train.batch_size
    limit = SMALL.get(session.device.type, SMALL["cuda"])
    if flops > limit:
        return f"a batch's forward takes {flops / 1e6:,.0f} million operations, and packing pays below {limit / 1e6:,.0f} million on this device"
    return ""


def open_sessions(runs: Mapping[int, tuple[Any, int]], width: int, settings: Settings) -> dict[int, Session]:
    """Seat -> session, of these runs by seat; a data set is loaded once, and lies on the device once."""
    found: dict[int, Session] = {}
    held: dict[str, Session] = {}
    for seat, (recipe, seed) in runs.items():
        data = repr(recipe.data)
        like = held.get(data)
        found[seat] = session = Session(recipe, seed, seated(settings, seat, width), like.dataset if like else None)
        session.__dict__["held"] = like.__dict__["held"] if like else {}
        held.setdefault(data, session)
    return found
