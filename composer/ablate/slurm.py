"""`--emit slurm`: a batch script that starts Ray inside an allocation, runs the same command on it, and goes back into the queue when time is up.

Before its time is up Slurm sends SIGTERM to the batch shell alone. The command hears it from there while Ray's processes live on, so running
tasks write their checkpoints; the command then ends with exit code 75, and the script puts the job back into the queue.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from composer.errors import ComposerError


@dataclass(frozen=True)
class SlurmOptions:
    """What is asked of Slurm.

    warning    seconds between SIGTERM and the end of the allocation; longer than running tasks need for a checkpoint
    requeues   times the job may go back into the queue
    directives further `#SBATCH` lines without that word ("--qos=long"); setup: lines of shell that run first ("module load cuda")
    bin        folder of `composer`, `ray` and `python`, put before PATH; by default this Python's
    """

    job: str = "composer"
    nodes: int = 1
    cpus: int = 8
    gpus: int = 0
    memory: str = ""
    time: str = "24:00:00"
    partition: str = ""
    account: str = ""
    output: str = "slurm-%j.out"
    warning: int = 120
    requeues: int = 50
    directives: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    bin: Path | None = None


SCRIPT = Template(r'''#!/usr/bin/env bash
$directives

# Written by `composer ablate --emit slurm`; submit it with sbatch. It runs:
#   $shown
# It may be submitted again at any time: only what is missing is trained.
set -uo pipefail
cd $folder || exit 1
export PATH=$bin:"$$PATH"
$setup
export RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1
# The job's Ray runs code for who brings its token, whoever else is on these nodes (older versions of Ray know none).
export RAY_AUTH_MODE="$${RAY_AUTH_MODE:-token}"
export RAY_AUTH_TOKEN="$${RAY_AUTH_TOKEN:-$$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')}"

mapfile -t hosts < <(scontrol show hostnames "$$SLURM_JOB_NODELIST")
head=$${hosts[0]}
ip=$$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$$head" hostname --ip-address | awk '{print $$1; exit}')
port=$$((20000 + SLURM_JOB_ID % 20000))
address=$$ip:$$port
stopping=
driver=

# SIGTERM may come at any line: before the command runs, nothing is lost by going back into the queue.
asked() {
  stopping=1
  if [ -n "$$driver" ]; then kill -TERM "$$driver" 2>/dev/null; fi
}
trap asked TERM

finish() {
  kill $$(jobs -p) 2>/dev/null
  if [ "$$1" -eq 75 ] && [ "$${SLURM_RESTART_COUNT:-0}" -lt $requeues ]; then
    echo "stopped after a checkpoint: back into the queue"
    scontrol requeue "$$SLURM_JOB_ID"
  fi
  exit "$$1"
}

srun --overlap --nodes=1 --ntasks=1 --nodelist="$$head" \
  ray start --head --node-ip-address="$$ip" --port="$$port" $resources --include-dashboard=false --disable-usage-stats --block &
up=
for _ in $$(seq 60); do
  if [ -n "$$stopping" ]; then finish 75; fi
  if ray status --address="$$address" >/dev/null 2>&1; then up=1; break; fi
  sleep 2
done
if [ -z "$$up" ]; then echo "Ray did not start on $$head" >&2; finish 1; fi

if [ "$${#hosts[@]}" -gt 1 ]; then
  others=$$(($${#hosts[@]} - 1))
  srun --overlap --nodes="$$others" --ntasks="$$others" --ntasks-per-node=1 --exclude="$$head" \
    ray start --address="$$address" $resources --disable-usage-stats --block &
fi

if [ -n "$$stopping" ]; then finish 75; fi
$command --jobs 0 --address "$$address" &
driver=$$!
if [ -n "$$stopping" ]; then kill -TERM "$$driver" 2>/dev/null; fi

# A signal ends `wait` early, with a code that is not the command's: then it waits again.
while :; do
  stopping=
  wait "$$driver"
  code=$$?
  if [ -z "$$stopping" ]; then break; fi
done
finish "$$code"
''')


def batch_script(command: Sequence[str], options: SlurmOptions, folder: Path | None = None) -> str:
    """The text of the script.

    command   the whole command line that the user gave, without `--emit` and what belongs to it: ("composer", "ablate", "mart_ours", ...)
    folder    the working folder of the command, visible on all nodes; by default this one

    Errors: ComposerError where the command names a way to run that the script itself decides, or a number is none.
    """
    _check(command, options)
    plain = " ".join(shlex.quote(word) for word in command)
    return SCRIPT.substitute(
        directives="\n".join(f"#SBATCH {line}" for line in directives(options)), shown=plain.replace("\n", " "), command=plain,
        folder=shlex.quote(str((folder or Path.cwd()).absolute())), bin=shlex.quote(str(options.bin or Path(sys.executable).parent)),
        setup="\n".join(options.setup), requeues=options.requeues, resources=f"--num-cpus={options.cpus} --num-gpus={options.gpus}")


def directives(options: SlurmOptions) -> list[str]:
    """The `#SBATCH` lines."""
    wanted = [("job-name", options.job), ("nodes", options.nodes), ("ntasks-per-node", 1), ("cpus-per-task", options.cpus),
              ("gpus-per-node", options.gpus or ""), ("mem", options.memory), ("time", options.time), ("partition", options.partition),
              ("account", options.account), ("output", options.output), ("open-mode", "append"), ("signal", f"B:TERM@{options.warning}")]
    return [*(f"--{name}={value}" for name, value in wanted if value != ""), "--requeue", *options.directives]


def _check(command: Sequence[str], options: SlurmOptions) -> None:
    named = next((word for word in command if word.split("=")[0] in ("--address", "--jobs", "--emit")), None)
    if named:
        raise ComposerError(f"'{named}' beside --emit slurm", why="the script starts Ray itself, on all the cores and GPUs of the allocation",
                            fix="leave it out")
    for name in ("nodes", "cpus", "warning"):
        if getattr(options, name) < 1:
            raise ComposerError(f"{name} = {getattr(options, name)}", where="--emit slurm", fix="a whole number from 1")
    if options.gpus and not any(word.split("=")[0] == "--gpus-per-run" for word in command):
        raise ComposerError(f"gpus={options.gpus} and no --gpus-per-run", where="--emit slurm", why="tasks would see no GPU",
                            fix="--gpus-per-run 1, or a share such as 0.25 to put four tasks on one")
    broken = [text for text in (options.job, options.time, options.memory, options.partition, options.account, options.output, *options.directives)
              if "\n" in text]
    if broken:
        raise ComposerError(f"{broken[0]!r} holds a line end", where="--emit slurm", fix="one line each")
