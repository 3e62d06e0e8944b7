"""The journal of one run's records on disk, and how much of it the tracking server has.

`track.jsonl` holds every record in order; `track.sent.json` says up to which byte they were delivered, where, and under which run id. So
nothing is lost where the server is away or the process dies, and nothing is sent twice: at worst the records of one request are sent again,
with the time they first had, which the server takes for the same ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from composer import atomic

try:
    import fcntl
except ImportError:                                           # Windows: no lock; two processes do not share a run's folder there
    fcntl = None

Record = dict[str, Any]


class Journal:
    """Records of one run in `folder`; one process writes, one at a time delivers."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.path, self.state_path = self.folder / "track.jsonl", self.folder / "track.sent.json"

    def add(self, op: str, **fields: Any) -> None:
        """Append one record; it survives the process, and needs no wait for the disk. Errors: ComposerError where the disk refuses."""
        atomic.append_line(self.path, {"op": op, "time": int(time.time() * 1000), **fields}, sync=False)

    def starts(self) -> list[Record]:
        """Every `start` record, the first one first: a resumed run has several, with one key."""
        return [record for _, record in atomic.lines_from(self.path, 0) if record["op"] == "start"]

    def key(self) -> str:
        """The name by which this run is known before the server gives it an id."""
        return next((start["key"] for start in self.starts()), None) or uuid.uuid4().hex

    def state(self) -> Record:
        """{"store", "run_id", "offset"}; empty before the first delivery."""
        try:
            return json.loads(self.state_path.read_text())
        except (OSError, ValueError):
            return {}

    def sent(self, store: str, run_id: str, offset: int) -> None:
        atomic.write_json(self.state_path, {"store": store, "run_id": run_id, "offset": offset})

    def waiting(self) -> bool:
        """True where records wait to be delivered."""
        try:
            return self.path.stat().st_size > self.state().get("offset", 0)
        except OSError:
            return False

    def pending(self, offset: int) -> list[tuple[int, Record]]:
        """Records behind the offset, without metrics that a later `rewind` took back."""
        return without_rewound(list(atomic.lines_from(self.path, offset)))

    def delivered(self, offset: int) -> dict[tuple[str, int], float]:
        """Metrics up to the offset that were sent, by (name, step), the last value of each; empty where the run was never rewound."""
        values: dict[tuple[str, int], float] = {}
        rewound = False
        for end, record in atomic.lines_from(self.path, 0):
            rewound |= record["op"] == "rewind"
            if end <= offset and record["op"] == "metrics":
                values |= {(name, record["step"]): value for name, value in record["values"].items()}
        return values if rewound else {}


def without_rewound(records: list[tuple[int, Record]]) -> list[tuple[int, Record]]:
    """Drop each metrics record beyond the step of a rewind that follows it."""
    kept, limit = [], float("inf")
    for end, record in reversed(records):
        if record["op"] == "rewind":
            limit = min(limit, record["step"])
        if record["op"] != "metrics" or record["step"] <= limit:
            kept.append((end, record))
    return kept[::-1]


def journals(out: Path) -> Iterator[Journal]:
    """The journals of a store that have records waiting; those of grids first, since other runs stand below theirs."""
    found = [path for depth in ("*", "*/*", "*/*/*") for path in sorted(Path(out).glob(f"{depth}/track.jsonl"))]
    for path in sorted(found, key=lambda path: path.parts[-3] not in ("studies", "sweeps")):
        journal = Journal(path.parent)
        if journal.waiting():
            yield journal


@contextlib.contextmanager
def locked(path: Path, wait: float) -> Iterator[bool]:
    """Hold the lock at `path`, waiting at most `wait` seconds; says whether it is held. The system drops it when the process ends."""
    if fcntl is None:
        yield True
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield _take(handle, time.monotonic() + wait)
    finally:
        os.close(handle)


def _take(handle: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        except OSError:                                       # a file system without locks
            return True
