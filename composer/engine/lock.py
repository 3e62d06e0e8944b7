"""Who works on a node: a file with pid, host and a heartbeat, so that two processes never train the same thing."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Self

from composer import atomic
from composer.errors import ComposerError

STALE = 90.0         # seconds without a heartbeat after which a lock on another host is taken over
BEAT = 10.0


class Lock:
    """Held while a node trains. `beat` refreshes it; a dead owner's lock is taken over."""

    def __init__(self, folder: Path):
        self.path = folder / "lock"
        self._last = 0.0

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            try:
                handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                self._take_over()
                continue
            except OSError as error:
                raise ComposerError(f"cannot write to {self.path.parent}", why=str(error.strerror), fix="make it writable, or choose another folder with --out") from None
            with os.fdopen(handle, "w") as file:
                file.write(self._text())
            self._last = time.monotonic()
            return self
        raise ComposerError(f"{self.path} cannot be taken", why="other processes keep taking it", fix="wait for them, then run again")

    def __exit__(self, *_: object) -> None:
        if self._owner() == (os.getpid(), socket.gethostname()):
            self.path.unlink(missing_ok=True)

    def beat(self) -> None:
        if time.monotonic() - self._last > BEAT:
            self._last = time.monotonic()
            atomic.write_text(self.path, self._text())

    def _text(self) -> str:
        return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "heartbeat": time.time()})

    def _owner(self) -> tuple[int, str] | None:
        try:
            held = json.loads(self.path.read_text())
            return int(held["pid"]), str(held["host"])
        except (OSError, ValueError, KeyError):
            return None

    def _take_over(self) -> None:
        owner = self._owner()
        age = time.time() - self.path.stat().st_mtime if self.path.exists() else STALE + 1
        if owner is None:
            alive = age < 5                 # being written this moment
        elif owner[1] == socket.gethostname():
            alive = owner[0] == os.getpid() or _running(owner[0]) and age < 10 * STALE
        else:
            alive = age < STALE
        if alive:
            pid, host = owner or (0, "?")
            raise ComposerError(f"another process is training this: pid {pid} on {host}", where=str(self.path),
                                fix="wait for it, or stop it; a lock whose owner is gone is taken over by itself")
        self.path.unlink(missing_ok=True)


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
