"""The launch files call commands that exist, with words that these take; stand-ins take the place of the engines.

`tests/whole/runs/test_slurm.py` runs Slurm, and `make consumers` Ray and the validation of SkyPilot and Kubeflow.
"""

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from accelerate.utils import prepare_multi_gpu_env
from documentation import ROOT
from torch.distributed.run import get_args_parser
from two_processes import CONFIGS, launcher_arguments

from modeling_radio.core.ranks import fsdp_plugin
from modeling_radio.training.distill import COMMAND, DistillSettings
from modeling_radio.training.recipes.recipe import load_recipe


DEPLOY = ROOT / "deploy"
SCRIPTS = {
    "srun": 'while [ "$1" != bash ]; do shift; done; SLURM_PROCID=3 SLURM_LOCALID=1 exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo node7; echo node8; else echo "$*" > requeued; fi',
    "radio": 'env > found; printf "%s\\n" "$@" > words; mkdir -p $SAVED; touch $SAVED/manifest.json; exit $STATUS',
    "torchrun": 'printf "%s\\n" "$@" > words',
    "apt-get": "",
    "pip": 'printf "%s\\n" "$@" > installed',
}
"""Stand-ins for programs. The run saves a checkpoint in `$SAVED` and ends with `$STATUS`."""


def read_words(words: Sequence[str]) -> tuple[DistillSettings, list[str]]:
    """Return what `radio distill` reads from words, and the changes, which a shipped recipe takes."""
    settings = COMMAND.read(words)
    load_recipe(settings.recipe, settings.changes)
    return settings, settings.changes


def read_torchrun(words: Sequence[str]) -> tuple[Any, list[str]]:
    """Return what torchrun reads from words, and the words of `radio distill`."""
    options = get_args_parser().parse_args(words)
    assert (options.module, options.training_script) == (True, "modeling_radio")
    assert options.training_script_args[0] == "distill"
    return options, options.training_script_args[1:]


def example(path: Path, after: str) -> list[str]:
    """Return the words of the command line in a file's comment that follow some text."""
    (line,) = re.findall(rf"{re.escape(after)} (--recipe .*)", path.read_text(encoding="utf-8"))
    return shlex.split(line)


def run_script(script: str | Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script here, with stand-ins for the programs that it calls."""
    for name, text in SCRIPTS.items():
        Path("bin", name).parent.mkdir(exist_ok=True)
        Path("bin", name).write_text(f"#!/bin/sh\n{text}\n")
        Path("bin", name).chmod(0o755)
    command = ["bash", str(script)] if isinstance(script, Path) else ["bash", "-c", script]
    environment = {"PATH": f"{Path('bin').absolute()}:{os.environ['PATH']}", **variables}
    return subprocess.run([*command, *words], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("status", "saved", "is_requeued"),
    [
        (0, "checkpoints/step_00000002", False),
        (138, "checkpoints/step_00000002", True),
        (137, "stages/first/checkpoints/step_00000002", True),
        (1, "checkpoints/step_00000001", False),  # it was there before
        (1, "checkpoints/.partial-step_00000002", False),
    ],
)
def test_slurm_queues_a_job_again_that_has_saved(
    status: int, saved: str, is_requeued: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    earlier = Path("run/checkpoints/step_00000001/manifest.json")
    earlier.parent.mkdir(parents=True)
    earlier.touch()
    words = example(DEPLOY / "slurm.sbatch", "deploy/slurm.sbatch")
    job = {"SLURM_JOB_ID": "41", "SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_NODELIST": "node[7-8]"}
    result = run_script(
        DEPLOY / "slurm.sbatch", *words, "name=two words", OUTPUT="run", STATUS=str(status), SAVED=f"run/{saved}", **job
    )
    assert (result.returncode, result.stderr) == (status, "")
    assert Path("requeued").exists() == is_requeued
    first, *given = Path("words").read_text().splitlines()
    settings, changes = read_words(given)
    assert (first, str(settings.output), changes[-1]) == ("distill", "run", "name=two words")
    found = dict(line.split("=", 1) for line in Path("found").read_text().splitlines() if "=" in line)
    ranks = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "node7"}
    assert ranks.items() <= found.items()
    assert found["MASTER_PORT"] == "20041"


def test_slurm_shards_as_the_launcher_does(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = dict(re.findall(r"((?:ACCELERATE_USE_|FSDP_)\w+)=(\w+)", (DEPLOY / "slurm.sbatch").read_text()))
    plugins = []
    for each in (variables, prepare_multi_gpu_env(launcher_arguments(CONFIGS / "eight_gpus_fsdp.yaml"))):
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("FSDP_")]:
                patch.delenv(name)
            for name, value in each.items():
                patch.setenv(name, value)
            plugin = fsdp_plugin()
            assert plugin is not None
            plugins.append(repr({**vars(plugin), "mixed_precision_policy": None}))
    assert plugins[0] == plugins[1]


def test_slurm_wants_an_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_script(DEPLOY / "slurm.sbatch")
    assert result.returncode
    assert "OUTPUT" in result.stderr


def test_sky_starts_torchrun_on_each_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = yaml.safe_load((DEPLOY / "sky.yaml").read_text())
    node = {"NUM_NODES": "2", "NODE_RANK": "1", "NUM_GPUS_PER_NODE": "8", "NODE_IPS": "10.0.0.7\n10.0.0.8"}
    task["envs"]["CHANGES"] += " schedule.num_steps=7"
    variables = {f"SKYPILOT_{name}": value for name, value in node.items()}
    assert run_script(task["run"], **task["envs"], **variables).returncode == 0
    options, words = read_torchrun(Path("words").read_text().splitlines())
    assert (options.nnodes, options.node_rank, options.nproc_per_node) == ("2", 1, "8")
    assert options.master_addr == "10.0.0.7"
    assert read_words(words)[1] == ["data.source=/runs/images", "schedule.num_steps=7"]
    assert [str(read_words(words)[0].output.parent)] == list(task["volumes"])
    assert set(task["volumes"].values()) == {"${VOLUME}"}


def test_trainjob_installs_and_starts_torchrun_with_a_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = yaml.safe_load((DEPLOY / "trainjob.yaml").read_text())["spec"]
    shell, flags, script, *words = spec["trainer"]["command"] + spec["trainer"]["args"]
    assert (shell, flags) == ("bash", "-ec")
    variables = {each["name"]: each["value"] for each in spec["trainer"]["env"]} | {"REPOSITORY": "https://here"}
    assert run_script(f"set -e\n{script}", *words, **variables).returncode == 0
    assert Path("installed").read_text().splitlines() == ["install", "modeling-radio[train] @ git+https://here"]
    settings, changes = read_words(read_torchrun(Path("words").read_text().splitlines())[1])
    assert changes == ["data.source=/runs/images"]
    [patch] = spec["runtimePatches"]
    [job] = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert settings.output is not None
    assert mounts[str(settings.output.parent)] == "runs"
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts.values())


def test_ray_calls_the_command_in_each_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: dict[str, Any] = {}

    class Trainer:
        def __init__(self, work: Any, **options: Any) -> None:
            made.update(options, work=work)

        def fit(self) -> None:
            made["work"](made["train_loop_config"])

    names = ("FailureConfig", "RunConfig", "ScalingConfig", "TorchConfig")
    for module in ("ray", "ray.train", "ray.train.torch"):
        stand_in = ModuleType(module)
        vars(stand_in).update(dict.fromkeys(names, SimpleNamespace), TorchTrainer=Trainer)
        monkeypatch.setitem(sys.modules, module, stand_in)
    monkeypatch.chdir(tmp_path)
    words = example(DEPLOY / "ray_train.py", "--gpu --")
    read_words(words)
    monkeypatch.setattr(sys, "argv", ["ray_train.py", "--workers", "16", "--gpu", "--", *words, "schedule.nom_steps=1"])
    with pytest.raises(RuntimeError, match="status 1"):
        runpy.run_path(str(DEPLOY / "ray_train.py"), run_name="__main__")
    assert "nom_steps" in capsys.readouterr().err
    assert vars(made["scaling_config"]) == {"num_workers": 16, "use_gpu": True}
