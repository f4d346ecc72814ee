"""Debian's Slurm on this machine, with two nodes of one task each, runs `deploy/slurm.sbatch`."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from documentation import ROOT
from killing import wait_for
from tiny_distillation import assert_same_tensors, environment, last_state, write_command_recipe
from two_processes import free_port, run_two_processes

from modeling_radio.training.distill import main


PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
pytestmark = [
    pytest.mark.tour,
    pytest.mark.skipif(
        os.name != "posix" or os.geteuid() != 0 or not all(map(shutil.which, PROGRAMS)),
        reason="needs root and slurm-wlm",
    ),
]

SECONDS = 100
CHANGES = ("schedule.num_steps=150", "checkpoints={every_steps: 30, keep: 9}")
# Nothing of systemd and control groups, which a container may not have; a job is queued again after `cred_expire`.
SETTINGS = """
ClusterName=tiny
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerParameters=sched_interval=1,requeue_delay=1
ReturnToService=2
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]}
PartitionName=main Nodes=ALL Default=YES
"""


def slurm(*words: str) -> str:
    """Return what a command of Slurm prints."""
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=SECONDS).stdout


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a cluster that is at work, where commands of Slurm and `radio` are found."""
    host, ports = socket.gethostname().partition(".")[0], [free_port() for _ in range(3)]
    (tmp_path / "slurm.conf").write_text(SETTINGS.format(host=host, ports=ports, folder=tmp_path))
    (tmp_path / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    (tmp_path / "munge.key").write_bytes(os.urandom(128))
    (tmp_path / "munge.key").chmod(0o600)
    (tmp_path / "radio").write_text(f'#!/bin/sh\nexec {sys.executable} -m modeling_radio "$@"\n')
    (tmp_path / "radio").chmod(0o755)
    for name in ("state", "spool-n0", "spool-n1"):
        (tmp_path / name).mkdir()
    variables = {"SLURM_CONF": f"{tmp_path}/slurm.conf", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for name, value in {**environment(), **variables, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munge.seed"}
    munge = [f"--{option}={tmp_path}/{name}" for option, name in files.items()]
    daemons = [["munged", "--foreground", "--force", *munge], ["slurmctld", "-D", "-i"]]
    daemons += [["slurmd", "-D", "-N", f"n{number}"] for number in range(2)]
    with ExitStack() as stack:
        for number, words in enumerate(daemons):
            log = stack.enter_context((tmp_path / f"daemon-{number}.txt").open("w"))
            daemon = stack.enter_context(subprocess.Popen(words, stdout=log, stderr=log))
            stack.callback(daemon.terminate)
            if words[0] == "munged":
                wait_for((tmp_path / "munge.socket").exists, SECONDS, "munged does not start")
        yield tmp_path


def process_of_rank(rank: int) -> int | None:
    """Return the process of the job that is a rank."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = path.read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        if {f"RANK={rank}".encode(), b"SLURM_JOB_NAME=radio"} <= set(variables):
            return int(path.parent.name)
    return None


def test_a_job_that_is_stopped_and_loses_a_rank_ends_as_if_nothing_had_been(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, log, checkpoints = write_command_recipe(folder), folder / "log.txt", folder / "run" / "checkpoints"
    size = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=60"]
    job_file = [*size, f"--output={log}", str(ROOT / "deploy" / "slurm.sbatch"), "--recipe", str(recipe), *CHANGES]
    monkeypatch.setenv("OUTPUT", str(folder / "run"))
    wait_for(lambda: "idle" in slurm("sinfo", "--noheader", "--format=%T"), SECONDS, "the nodes do not start")
    subprocess.run(["sbatch", "--test-only", *job_file], check=True)
    job = slurm("sbatch", "--parsable", *job_file).strip()

    def has_saved(step: int) -> bool:
        names = [path.name for path in checkpoints.glob("step_*")]
        return max(names, default="") >= f"step_{step:08d}"

    wait_for(lambda: has_saved(30), SECONDS, "no checkpoint")
    slurm("scancel", "--signal=USR1", job)
    wait_for(lambda: "the job is queued again" in log.read_text(), SECONDS, "it does not end")
    stopped_after = max(int(path.name[5:]) for path in checkpoints.glob("step_*"))
    wait_for(lambda: has_saved(stopped_after + 1), SECONDS, "it does not go on")
    killed = process_of_rank(1)
    assert killed is not None
    os.kill(killed, 9)
    wait_for(lambda: slurm("squeue", "--noheader", "--states=RUNNING,PENDING,COMPLETING") == "", SECONDS, "no end")
    facts = slurm("scontrol", "show", "job", job)
    assert "JobState=COMPLETED" in facts, log.read_text()
    assert "Restarts=2 " in facts, log.read_text()
    assert log.read_text().count("the job is queued again") == 2

    words = ["--recipe", str(recipe), "--output", "undisturbed", *CHANGES]
    run_two_processes(lambda: sys.exit(main(words)), folder)
    assert_same_tensors(*(last_state(str(folder / run), 150) for run in ("run", "undisturbed")))
