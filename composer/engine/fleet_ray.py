"""Ray for the workers of one run: started on this machine and ended again, or joined where it is."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator

from composer.errors import ComposerError
from composer.rayhost import OBJECTS, apart_from_our_signals, bring_token, reachable, temporary_folder

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
HABITS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_worker_niceness": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0",
          "RAY_TRAIN_V2_ENABLED": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
          "RAY_TRAIN_ENABLE_PRINT_PATCH": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}


@contextlib.contextmanager
def cluster(address: str, cores: int, threads: int) -> Iterator[None]:
    """A Ray of this machine with so many cores, gone at the end; or the cluster at an address, which stays. One that this process has joined
    before is used as it is. Its workers' mathematics has so many threads.

    Errors: ComposerError where Ray cannot be had.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in HABITS.items()})
    if address:
        bring_token()
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
