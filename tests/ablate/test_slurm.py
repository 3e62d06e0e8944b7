"""The batch script: what it asks for, and what it does, run by bash with commands that only write down how they were called."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from composer.ablate.slurm import SlurmOptions, batch_script, directives
from composer.errors import ComposerError

FAKES = {
    "srun": 'case "$*" in *hostname*) echo "10.0.0.7 172.16.0.1";; *) exec sleep 60;; esac',
    "scontrol": 'if [ "$1" = show ]; then printf "n1\\nn2\\nn3\\n"; fi',
    "ray": 'test -e "$LOGS/no-ray" && exit 1; exit 0',
    "composer": 'for _ in {1..100}; do [ "$(grep -c "ray start" "$LOGS/calls")" -ge 2 ] && break; sleep 0.05; done; if [ -e "$LOGS/slow" ]; then trap \'sleep 0.3; exit 75\' TERM; touch "$LOGS/up"; while :; do sleep 0.05; done; fi; exit "$(cat "$LOGS/code" 2>/dev/null || echo 0)"',
    "seq": "echo 1",                                                 # one look at the cluster, not sixty
}


@pytest.fixture
def allocation(tmp_path):
    """A folder of fake commands that log their calls, and the environment of a job."""
    folder = tmp_path / "with blank" / "bin"
    folder.mkdir(parents=True)
    for name, body in FAKES.items():
        (folder / name).write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "$LOGS/calls"\necho "$RAY_AUTH_MODE $RAY_AUTH_TOKEN" >> "$LOGS/tokens"\n{body}\n')
        (folder / name).chmod(0o755)
    script = tmp_path / "job.sh"
    script.write_text(batch_script(["composer", "ablate", "my recipe.toml", "--toggle", "ema,margin", "--gpus-per-run", "0.5"], SlurmOptions(bin=folder, nodes=3, gpus=4), tmp_path))
    environment = {**os.environ, "LOGS": str(tmp_path), "SLURM_JOB_ID": "41234", "SLURM_JOB_NODELIST": "n[1-3]"}
    yield tmp_path, script, environment


def run(script: Path, environment: dict[str, str]) -> int:
    return subprocess.run(["bash", str(script)], env=environment, check=False, timeout=30, capture_output=True).returncode


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def test_bash_reads_it(allocation):
    _, script, _ = allocation
    assert subprocess.run(["bash", "-n", str(script)], check=False, capture_output=True).stderr == b""
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "--severity=warning", "--exclude=SC2046", str(script)], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_what_it_asks_for():
    lines = directives(SlurmOptions(nodes=2, cpus=16, gpus=4, time="08:00:00", partition="a100", directives=("--qos=long",)))
    assert {"--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=16", "--gpus-per-node=4", "--time=08:00:00", "--partition=a100", "--signal=B:TERM@120",
            "--requeue", "--open-mode=append", "--qos=long"} <= set(lines)
    assert not any(line.startswith(("--mem", "--account")) for line in lines) and not any("gpus" in line for line in directives(SlurmOptions()))
    head = batch_script(["composer"], SlurmOptions(setup=("module load cuda",))).splitlines()
    assert head[0].startswith("#!") and head[1].startswith("#SBATCH") and "module load cuda" in head
    first_command = next(i for i, line in enumerate(head) if line and not line.startswith("#"))
    assert all(i < first_command for i, line in enumerate(head) if line.startswith("#SBATCH")), "Slurm reads no directive behind a command"


def test_it_starts_ray_on_all_nodes_and_runs_the_command(allocation):
    folder, script, environment = allocation
    assert run(script, environment) == 0
    seen, address = calls(folder), "10.0.0.7:21234"
    command = f"composer ablate my recipe.toml --toggle ema,margin --gpus-per-run 0.5 --jobs 0 --address {address}"      # as many tasks as there are places
    assert command in seen
    head = next(line for line in seen if "ray start --head" in line)
    assert "--nodelist=n1" in head and "--port=21234" in head and "--node-ip-address=10.0.0.7" in head and "--num-cpus=8 --num-gpus=4" in head
    rest = next(line for line in seen if f"ray start --address={address}" in line)
    assert "--nodes=2 --ntasks=2" in rest and "--exclude=n1" in rest and "--num-gpus=4" in rest
    assert seen.index(f"ray status --address={address}") < seen.index(command)
    assert not any("requeue" in line for line in seen)
    first = (folder / "tokens").read_text().splitlines()[-1]
    assert re.fullmatch("token [0-9a-f]{64}", first) and {first} == set((folder / "tokens").read_text().splitlines()[1:]), "one token for all"
    assert run(script, environment) == 0 and (folder / "tokens").read_text().splitlines()[-1] != first, "another job, another token"
    assert run(script, {**environment, "RAY_AUTH_MODE": "disabled"}) == 0 and (folder / "tokens").read_text().splitlines()[-1].startswith("disabled ")


@pytest.mark.parametrize(("code", "restarts", "again"), [(75, "3", True), (75, "50", False), (1, "0", False), (130, "0", False), (3, "0", False)])
def test_only_a_stop_after_a_checkpoint_goes_back_into_the_queue(allocation, code, restarts, again):
    folder, script, environment = allocation
    (folder / "code").write_text(str(code))
    assert run(script, {**environment, "SLURM_RESTART_COUNT": restarts}) == code
    assert ("scontrol requeue 41234" in calls(folder)) == again


def test_sigterm_reaches_the_command_and_its_own_code_counts(allocation):
    folder, script, environment = allocation
    (folder / "slow").touch()
    with subprocess.Popen(["bash", str(script)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
        end = time.monotonic() + 20
        while not (folder / "up").exists() and time.monotonic() < end:
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)                              # to the batch shell alone, as --signal=B: does
        assert job.wait(20) == 75
    assert calls(folder)[-1] == "scontrol requeue 41234"


def test_no_ray_no_command(allocation):
    folder, script, environment = allocation
    (folder / "no-ray").touch()
    assert run(script, environment) == 1
    assert not any(line.startswith("composer") for line in calls(folder)) and not any("requeue" in line for line in calls(folder))


@pytest.mark.parametrize(("command", "options", "what"), [
    (["composer", "--jobs=2"], {}, "--jobs"), (["composer", "--address", "auto"], {}, "--address"), (["composer"], {"nodes": 0}, "nodes = 0"),
    (["composer"], {"gpus": 4}, "--gpus-per-run"),
    (["composer"], {"job": "a\nrm -rf x"}, "line end")])
def test_what_makes_no_script(command, options, what):
    with pytest.raises(ComposerError, match=what):
        batch_script(command, SlurmOptions(**options))
