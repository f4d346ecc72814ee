"""Threads of one process that divide torch's own among them."""

from concurrent.futures import ThreadPoolExecutor

import torch


def sharing_threads(num_at_once: int, name: str) -> ThreadPoolExecutor:
    """Return a pool whose calls run at the same time on a CPU, each with its share of torch's threads.

    Most operations of a small network are too small to be worth dividing among cores: calls with a core each are faster
    than one call after the other with all of them, the more where threads do not spin while they wait
    (`OMP_WAIT_POLICY=passive`).

    Args:
        num_at_once: Calls that run at the same time.
        name: Of the threads, for whoever looks at a stopped process.
    """
    num_threads = max(1, torch.get_num_threads() // num_at_once)
    return ThreadPoolExecutor(num_at_once, name, lambda: torch.set_num_threads(num_threads))
