"""Real processes of one machine that work together (gloo), told what `accelerate launch` would tell them."""

import argparse
import gc
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, DistributedType, PartialState
from accelerate.utils import prepare_multi_gpu_env
from tiny_distillation import trainer


CONFIGS = Path(trainer.__file__).parents[1] / "accelerate_configs"


def run_two_processes(work: Callable[[], object], folder: Path) -> None:
    """Do something in two processes with the working directory `folder`, where each leaves a log, and wait for both."""
    run_processes(work, folder, 2)


def run_processes(work: Callable[[], object], folder: Path, count: int) -> None:
    """Do something in several processes, as `run_two_processes` does in two."""
    with ranks_at_work(work, folder, count) as ranks:
        for process in ranks:
            process.join()
        assert [process.exitcode for process in ranks] == [0] * count, read_logs(folder)


@contextmanager
def ranks_at_work(work: Callable[[], object], folder: Path, count: int) -> Iterator[list[ForkProcess]]:
    """Let processes do something in the folder; kill those that are there in the end.

    They are forks of this one, with what it has imported: most of the work of starting a process.
    """
    variables = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        **fsdp_settings(),
    }
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_be_rank, args=(rank, work, folder, variables)) for rank in range(count)]
    try:
        for process in ranks:
            process.start()
        yield ranks
    finally:
        for process in ranks:
            process.kill()


def _be_rank(rank: int, work: Callable[[], object], folder: Path, variables: dict[str, str]) -> None:
    gc.freeze()  # or garbage collection would copy what is shared
    os.chdir(folder)
    os.environ |= {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    log = os.open(log_file(folder, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", 1, closefd=False) for descriptor in (1, 2))
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    work()
    torch.distributed.destroy_process_group()


def read_logs(folder: Path) -> str:
    return "\n".join(log.read_text() for log in sorted(folder.glob("log-*.txt")))


def log_file(folder: Path, rank: int) -> Path:
    return folder / f"log-{rank}.txt"


def launcher_arguments(config: Path) -> argparse.Namespace:
    """Return the arguments that `accelerate launch` reads from a configuration file."""
    command = ["--config_file", str(config), "-m", "modeling_radio", "distill"]
    return _validate_launch_command(launch_command_parser().parse_args(command))[0]


def fsdp_settings() -> dict[str, str]:
    """Return the variables by which the launcher sets up the FSDP that we ship."""
    variables = prepare_multi_gpu_env(launcher_arguments(CONFIGS / "eight_gpus_fsdp.yaml"))
    return {key: value for key, value in variables.items() if key.startswith("FSDP_")}


def choose_sharding(patch: pytest.MonkeyPatch, *, use_fsdp: bool, num_copies: int = 1) -> None:
    """In one of the processes: let the accelerators built from now on shard (FSDP2) or copy (DDP).

    With several copies each of them is sharded over some of the processes (HSDP), as our configuration does it.
    """
    patch.setenv("ACCELERATE_USE_FSDP", str(use_fsdp).lower())
    if num_copies > 1:
        arguments = launcher_arguments(CONFIGS / "many_nodes_hsdp.yaml")
        arguments.parallelism_config_dp_replicate_size = num_copies
        arguments.parallelism_config_dp_shard_size = int(os.environ["WORLD_SIZE"]) // num_copies
        for name, value in prepare_multi_gpu_env(arguments).items():
            if "PARALLELISM_CONFIG" in name:
                patch.setenv(name, value)
    AcceleratorState._reset_state(reset_partial_state=True)


def let_accelerate_shard_on_cpus(patch: pytest.MonkeyPatch) -> None:
    """Accelerate starts FSDP, as here, on GPUs only; everything after that, and PyTorch, runs on CPUs just the same."""
    initialize = AcceleratorState.__init__

    def initialize_with_fsdp(self: AcceleratorState, *args, fsdp_plugin=None, **kwargs) -> None:
        initialize(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)

    patch.setattr(AcceleratorState, "__init__", initialize_with_fsdp)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
