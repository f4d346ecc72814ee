"""The files of `deploy/` for Kubeflow and Ray with these engines, in an environment that `make consumers` makes.

Usage: run_launchers.py FOLDER, which is made. Prints a line for each engine.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import yaml
from tiny_distillation import TinyTeacher, assert_same_tensors, environment, last_state, write_command_recipe
from torch import Tensor

from modeling_radio.training.teachers.outputs import TeacherOutput


os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}

DEPLOY = Path(__file__).parents[3] / "deploy"
KILLED = "killed"
"""File in the folder of a run's recipe; a rank is killed where it is absent."""
SETTINGS = ("schedule.num_steps=60", "checkpoints={every_steps: 20, keep: 9}")


class MortalTeacher(TinyTeacher):
    """Kills its process, rank 1, once."""

    num_batches = 0

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        self.num_batches += 1
        mark = Path(os.environ["RADIO_TINY"], KILLED)
        if os.environ["RANK"] == "1" and self.num_batches > 40 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), 9)
        return super().encode(pixel_values)


def kubeflow(folder: Path) -> str:
    """Let the models of Kubeflow Trainer read its file and write it again: they leave out what they do not know."""
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

    given = yaml.safe_load((DEPLOY / "trainjob.yaml").read_text())
    job = TrainerV1alpha1TrainJob.from_dict(given)
    assert job is not None
    assert job.to_dict() == given
    return f"{job.spec.trainer.num_nodes} nodes"


def ray(folder: Path) -> str:
    """Distill with two workers, of which one is killed; the weights must be those of torchrun, undisturbed."""
    recipe = write_command_recipe(folder, "run_launchers:MortalTeacher")
    python_path = os.pathsep.join([str(Path(__file__).parent), environment()["PYTHONPATH"]])
    variables = {**os.environ, "PYTHONPATH": python_path, "RADIO_TINY": str(folder)}
    words = ["--recipe", str(recipe), *SETTINGS, "--output"]
    starts = [str(DEPLOY / "ray_train.py"), "--workers", "2", "--", *words, str(folder / "ray")]
    subprocess.run([sys.executable, *starts], env=variables, check=True, timeout=600)
    assert (folder / KILLED).is_file()
    starts = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "modeling_radio", "distill"]
    subprocess.run([sys.executable, *starts, *words, str(folder / "torchrun")], env=variables, check=True, timeout=600)
    assert_same_tensors(*(last_state(str(folder / run), 60) for run in ("ray", "torchrun")))
    return "a rank was killed, equal weights"


ENGINES: dict[Callable[[Path], str], str] = {kubeflow: "kubeflow-trainer-api", ray: "ray"}
"""Each with its package."""


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    place.mkdir(parents=True)
    for check, package in ENGINES.items():
        sys.stdout.write(f"ok   {package} {version(package)}: {check(place)}\n")
        sys.stdout.flush()
