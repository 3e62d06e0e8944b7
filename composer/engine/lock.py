"""Who works on a folder: a file with pid, host and a heartbeat, so that two processes never train the same thing."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any, Self

from composer import atomic
from composer.errors import ComposerError

STALE = 90.0         # seconds without a heartbeat after which a lock on another host is taken over
BEAT = 10.0
UNFINISHED = 5.0     # seconds that a lock without a readable owner is taken for one that is being written


class Held(ComposerError):
    """Another living process works on the folder: the same call may succeed later."""


class Lock:
    """Held while a node trains. A thread keeps its heart beating through long validations; a dead owner's lock is taken over.

    `beat` is for the owner to call now and then: it fails once another process has taken the lock over (after a suspension, say).
    """

    def __init__(self, folder: Path):
        self.path = folder / "lock"
        self._mine = {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid()), "token": secrets.token_hex(8)}
        self._end, self._lost = threading.Event(), False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        for _ in range(5):
            if self._create():
                self._thread = threading.Thread(target=self._beat_on, name="composer-lock", daemon=True)
                self._thread.start()
                return self
            self._take_over()
        raise Held(f"{self.path} cannot be taken", why="other processes keep taking it", fix="wait for them, then run again")

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread:
            self._thread.join()
        if self._is_mine(self._read()):
            self.path.unlink(missing_ok=True)

    def beat(self) -> None:
        """Errors: ComposerError where the lock is no longer ours."""
        if self._lost:
            owner = self._read() or {}
            raise ComposerError(f"another process has taken this over: pid {owner.get('pid')} on {owner.get('host')}", where=str(self.path),
                                why=f"this one had not been heard of for over {STALE:g} seconds", fix="let one of them run")

    # -- the file ------------------------------------------------------------------------------------------------------------------

    def _create(self) -> bool:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except OSError as error:
            if isinstance(error, FileExistsError) and self.path.parent.is_dir():
                return False
            atomic.raise_write_error(error, self.path)
            raise
        try:
            with os.fdopen(handle, "w") as file:
                file.write(self._text())
        except OSError as error:
            self.path.unlink(missing_ok=True)
            atomic.raise_write_error(error, self.path)
            raise
        return True

    def _text(self) -> str:
        return json.dumps({**self._mine, "heartbeat": time.time()})

    def _read(self) -> dict[str, Any] | None:
        try:
            held = json.loads(self.path.read_text())
            return held if isinstance(held.get("pid"), int) and isinstance(held.get("host"), str) else None
        except (OSError, ValueError, AttributeError):
            return None

    def _is_mine(self, held: dict[str, Any] | None) -> bool:
        return bool(held) and held.get("token") == self._mine["token"]

    def _beat_on(self) -> None:
        while not self._end.wait(BEAT):
            if not self._is_mine(self._read()):
                self._lost = True
                return
            with contextlib.suppress(ComposerError, OSError):     # a full disk must not end the training: the age of the file counts too
                atomic.write_text(self.path, self._text())

    # -- taking over ---------------------------------------------------------------------------------------------------------------

    def _take_over(self) -> None:
        """Move a dead owner's lock out of the way. Errors: ComposerError where the owner is alive."""
        held, age = self._read(), self._age()
        if _alive(held, age):
            owner = held or {"pid": 0, "host": "?"}
            raise Held(f"another process is training this: pid {owner['pid']} on {owner['host']}", where=str(self.path),
                       fix="wait for it, or stop it; a lock whose owner is gone is taken over by itself")
        aside = self.path.with_name(f".lock-{self._mine['token']}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, aside)                            # one of several that try gets it
            taken = Lock(self.path.parent)
            taken.path = aside
            if taken._read() != held:                              # not the dead one: another process was faster, and this is its lock
                with contextlib.suppress(OSError):
                    os.link(aside, self.path)
            aside.unlink(missing_ok=True)

    def _age(self) -> float:
        """Seconds since the last sign of life."""
        try:
            return time.time() - self.path.stat().st_mtime
        except OSError:
            return STALE + 1


def _alive(held: dict[str, Any] | None, age: float) -> bool:
    if held is None:
        return age < UNFINISHED
    if held["host"] != socket.gethostname():
        return age < STALE
    if not _running(held["pid"]):
        return False
    now, then = _started(held["pid"]), held.get("started")
    if now and then:
        return now == then                  # another process may have got the number of a dead one
    return age < 10 * STALE


def _started(pid: int) -> str:
    """When a process began, as the system counts (boot and tick); "" where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{_status(pid)[19]}"
    except (OSError, IndexError):
        return ""


def _status(pid: int) -> list[str]:
    """What Linux says of a process behind its name: state, parent, …, start."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _running(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        if _status(pid)[0] in ("Z", "X"):   # dead, and nobody has asked for its exit code yet
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
