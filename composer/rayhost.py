"""What every start of Ray needs before Ray itself: an address that answers, its token, signals of its own, a short folder. Ray is not imported here."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ANSWER, PAUSE = 10.0, 0.5       # seconds that a cluster has to answer at its address; between two knocks
OBJECTS = 80 * 2**20            # bytes of Ray's object store: answers are small, weights go through files
SOCKETS = 40                    # characters a folder for Ray's sockets may have; the system allows 107 for the whole path
_apart = {"wanted": False, "registered": False}


def reachable(address: str) -> None:
    """Ray itself looks for minutes. Errors: ConnectionError where nothing listens, ValueError for what is no address."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"'{address}' is neither host:port nor auto")
    end = time.monotonic() + ANSWER
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), 5).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() >= end:
                raise ConnectionError(f"nothing answers there ({error})") from None
            time.sleep(PAUSE)


def bring_token() -> None:
    """To be called before Ray is imported, by who joins a cluster at an address.

    Where a token lies, `ray start` makes its cluster ask for it (Ray 2.60), while `ray.init` with an address brings it only if RAY_AUTH_MODE says so. A
    cluster that asks for none takes it too. What the user has set stays; and a Ray that is imported has read its environment: a variable that it does not
    heed would only mislead the servers that it starts.
    """
    places = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules and (os.environ.get("RAY_AUTH_TOKEN") or Path(places).is_file()):
        os.environ["RAY_AUTH_MODE"] = "token"


@contextlib.contextmanager
def apart_from_our_signals() -> Iterator[None]:
    """Ray's servers get a process group of their own: a SIGTERM to all of ours (`timeout`, service managers) would end them at once, and with
    them the workers that are to write checkpoints. They still end with this process, by the system's doing."""
    def leave() -> None:
        if _apart["wanted"]:
            with contextlib.suppress(OSError):
                os.setpgid(0, 0)

    if not _apart["registered"]:
        os.register_at_fork(after_in_child=leave)             # cannot be taken back, hence the flag
        _apart["registered"] = True
    _apart["wanted"] = True
    try:
        yield
    finally:
        _apart["wanted"] = False


def temporary_folder() -> Path:
    """A folder for Ray's sockets and logs with a short name. Those of drivers that were killed are removed first."""
    base = Path(tempfile.gettempdir())
    if len(str(base)) > SOCKETS:
        base = Path("/tmp")
    for old in base.glob("composer-ray-*-*"):
        pid = old.name.split("-")[2]
        if pid.isdigit() and not Path("/proc", pid).exists() and Path("/proc/self").exists():
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"composer-ray-{os.getpid()}-", dir=base))
