"""Training on a CPU: passes on threads, and memory that is kept."""

import inspect
import os
import platform
import resource
import subprocess
import sys
import threading

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from modeling_radio.training.distillation.cpu import ParallelPasses, keep_freed_memory, parallel_passes
from modeling_radio.training.recipes.recipe import load_recipe


def test_gradients_are_added_in_the_order_of_the_parts() -> None:
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    factors = [torch.tensor([1.0, 1e8, 3.0]), torch.tensor([2.0, 1.0, 3.0]), torch.tensor([4.0, -1e8, 3.0])]
    last_has_begun = threading.Event()

    def work(number: int):
        if number == 0:
            assert last_has_begun.wait(60)  # fails unless two parts run at once; the second has ended then
        elif number == 2:
            last_has_begun.set()
        loss = (used * factors[number]).sum()
        return loss, {"loss": loss.detach()}

    losses = list(ParallelPasses(2).run(range(3), work, [used, unused]))
    assert [float(each["loss"]) for each in losses] == [float(each.sum()) for each in factors]
    assert torch.equal(used.grad, factors[0] + factors[1] + factors[2])
    assert unused.grad is None


def test_threads_share_the_cores() -> None:
    before = torch.get_num_threads()
    counts = []

    def work(_: int):
        counts.append(torch.get_num_threads())
        loss = torch.zeros(1, requires_grad=True).sum()
        return loss, {}

    list(ParallelPasses(max(before, 2)).run(range(2), work, [nn.Parameter(torch.zeros(1))]))
    assert counts == [1, 1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("change", ["damp.sigma=0.1", "student.config.attention_probs_dropout_prob=0.1"])
def test_random_passes_run_one_after_the_other(change: str) -> None:
    accelerator = Accelerator(cpu=True)
    assert parallel_passes(load_recipe("demo", ["student.passes_at_once=2"]), accelerator) is not None
    assert parallel_passes(load_recipe("demo", ["student.passes_at_once=2", change]), accelerator) is None


def pages_of(num_rounds: int) -> int:
    """Return how many pages are mapped while large memory is taken and freed again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(num_rounds):
        parts = [bytearray(12 << 20) for _ in range(3)]
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's switch")
def test_memory_is_mapped_once() -> None:
    """In a fork that keeps memory, against a new process, whose allocator nothing has changed."""
    receiver, sender = os.pipe()
    if os.fork() == 0:
        try:
            assert keep_freed_memory()
            pages_of(1)
            os.write(sender, str(pages_of(10)).encode())
        finally:
            os._exit(0)
    os.close(sender)
    kept = int(os.read(receiver, 20))
    os.wait()
    program = f"import resource\n{inspect.getsource(pages_of)}\npages_of(1)\nprint(pages_of(10))"
    new = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert kept < int(new.stdout) / 10
