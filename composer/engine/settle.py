"""What an earlier sitting of the same run left: the same bits go on, others are the user's decision (--fresh, --adopt)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from composer import atomic
from composer.engine import chain
from composer.engine.keys import first_difference
from composer.engine.lock import Lock
from composer.engine.record import Record, read_json
from composer.engine.session import Node, Session
from composer.errors import ComposerError

NOT_COPIED = shutil.ignore_patterns("lock", ".lock-*", ".tmp-*")


def settle(session: Session, record: Record) -> None:
    """Settle the keys and folders of all nodes, and write them into the run's record.

    Errors: ComposerError where an unfinished node has another key now and neither --fresh nor --adopt was given; where another process is
    training a node that --fresh would remove.
    """
    if session.settings.fresh:
        _clear(session, record)
    else:
        _go_on(session, record.facts.get("nodes", []))
    recipe = session.recipe
    record.keep(recipe=recipe.name, setting=recipe.setting, seed=session.seed, experiment_id=recipe.experiment_id, nodes=[_noted(n) for n in session.nodes])


def _noted(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = {"key": node.key, "folder": node.folder.name, "epochs": [node.segment.first, node.segment.last]}
    return found | ({"adopted": node.adopted, "heir_of": node.heir_of, "from": node.heir_folder, "now": node.plain_key} if node.adopted else {})


def _clear(session: Session, record: Record) -> None:
    """--fresh: no state, no result."""
    for node in session.nodes:
        if node.folder.exists():
            with Lock(node.folder):
                for path in node.folder.iterdir():
                    if path.name != "lock":
                        path.unlink()
    (record.folder / "result.json").unlink(missing_ok=True)
    record.facts.pop("tracked", None)


def _go_on(session: Session, old: list[dict[str, Any]]) -> None:
    """Node by node: the same key, an adoption of an earlier sitting, a new adoption, or the error that names what differs."""
    moved = ""
    for node in session.nodes:
        if moved:
            chain.rekey(node, moved, session.folder, session.mark)
        node.plain_key = node.key
        before = next((each for each in old if each["epochs"][1] == node.segment.last), {"key": node.key})
        if before.get("now") == node.key:
            _inherit(session, node, before["heir_of"], before["from"], before["adopted"])
        elif before["key"] != node.key:
            _decide(session, node, before["key"], before.get("folder", before["key"]))
        moved = node.key if node.adopted or moved else ""


def _decide(session: Session, node: Node, key: str, folder: str) -> None:
    """A node of before has another key; one that was never begun is of no account."""
    source = session.folder / folder
    held = read_json(source / "key.json")
    if held is None:
        return
    difference = first_difference({k: v for k, v in held.items() if k not in ("adopted", "before")}, node.content)
    if not session.settings.adopt:
        raise ComposerError(f"an unfinished run of {session.recipe.name} with seed {session.seed} is not the same any more", where=str(source),
                            why=difference, fix="--fresh trains it anew, --adopt goes on with it as it is and records that")
    _inherit(session, node, key, folder, difference)


def _inherit(session: Session, node: Node, key: str, folder: str, difference: str) -> None:
    """Copy another node's state into a node of its own, whose key says so: neither the old node nor a new one claims bits it has not."""
    source = session.folder / folder
    chain.rekey(node, node.content["parent"], session.folder, session.mark, adopted={"from": key, "because": difference})
    node.adopted, node.heir_of, node.heir_folder = difference, key, folder
    if not node.folder.exists():
        beside = node.folder.with_name(f".tmp-{node.key}-{os.getpid()}")
        shutil.rmtree(beside, ignore_errors=True)
        with Lock(source):
            _copy(source, beside)
        atomic.write_json(beside / "key.json", node.content)
        os.replace(beside, node.folder)


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copytree(source, target, ignore=NOT_COPIED)
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        atomic.raise_write_error(error, target)
        raise
