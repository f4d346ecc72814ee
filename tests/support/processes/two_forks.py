"""Two forks of a test that work together (gloo): cheap, as they need not import anything."""

import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed


def run_two_forks(work: Callable[[], object], folder: Path) -> None:
    """Do something on both ranks of a group that meets in `folder`; fail with what either of them raised."""
    fork = multiprocessing.get_context("fork")
    errors = fork.SimpleQueue()

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
        try:
            work()
        except BaseException:
            errors.put(traceback.format_exc())
            raise
        distributed.destroy_process_group()

    ranks = [fork.Process(target=run, args=(rank,)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    for process in ranks:
        process.kill()  # one that waits for ever would outlive the tests
    assert [process.exitcode for process in ranks] == [0, 0], "" if errors.empty() else errors.get()
