"""Ray for the workers of one run: started on this machine and ended again, or joined where it is."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from composer.errors import ComposerError

ANSWER = 10.0                   # seconds that a cluster has to answer at its address
OBJECTS = 80 * 2**20            # bytes of Ray's object store: nothing large goes through it
SOCKETS = 40                    # characters a folder for Ray's sockets may have; the system allows 107 for the whole path
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
HABITS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_worker_niceness": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0",
          "RAY_TRAIN_V2_ENABLED": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
          "RAY_TRAIN_ENABLE_PRINT_PATCH": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}
_apart = {"wanted": False, "registered": False}


@contextlib.contextmanager
def cluster(address: str, cores: int, threads: int) -> Iterator[None]:
    """A Ray of this machine with so many cores, gone at the end; or the cluster at an address, which stays. One that this process has joined
    before is used as it is. Its workers' mathematics has so many threads.

    Errors: ComposerError where Ray cannot be had.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in HABITS.items()})
    try:
        import ray
    except ImportError as error:
        raise ComposerError(f"Ray cannot be imported: {error}", where="--workers", fix="pip install 'ray[tune]>=2.40', or leave out --workers") from None
    if ray.is_initialized():
        yield
        return
    folder = None if address else temporary_folder()
    environment = {**dict.fromkeys(THREADS, str(threads)), **HABITS, "PYTHONUNBUFFERED": "1"}
    common = {"log_to_driver": False, "logging_level": logging.ERROR, "runtime_env": {"env_vars": environment}}
    try:
        try:
            if address:
                reachable(address)
                ray.init(address=address, **common)
            else:
                with apart_from_our_signals():
                    ray.init(address="local", num_cpus=cores, include_dashboard=False, object_store_memory=OBJECTS,
                             _temp_dir=str(folder), **common)
        except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
            raise ComposerError(f"Ray does not start: {error}", where=f"--address {address}" if address else "--workers",
                                fix="check that the cluster is up, with this Python and this version of Ray" if address else "leave out --workers") from None
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        yield
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def reachable(address: str) -> None:
    """Ray itself looks for minutes. Errors: ConnectionError where nothing listens, ValueError for what is no address."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"'{address}' is neither host:port nor auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"nothing answers there ({error})") from None


@contextlib.contextmanager
def apart_from_our_signals() -> Iterator[None]:
    """Ray's servers get a process group of their own: a signal to all of ours would end the workers that are to write a checkpoint."""
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
    """A folder for Ray's sockets and logs with a short name."""
    base = Path(tempfile.gettempdir())
    return Path(tempfile.mkdtemp(prefix=f"composer-ray-{os.getpid()}-", dir=base if len(str(base)) <= SOCKETS else "/tmp"))


__all__ = ["apart_from_our_signals", "cluster", "reachable", "temporary_folder"]
