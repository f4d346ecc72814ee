"""Ranks that are lost or late are named by the others: three forks (gloo) whose store rank 0 holds."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import torch
from torch import distributed
from two_processes import free_port

from modeling_radio.core import heartbeats
from modeling_radio.core.errors import UserError
from modeling_radio.core.heartbeats import Heartbeats
from modeling_radio.core.ranks import set_timeout, sum_over_ranks, wait_for_ranks


NUM_RANKS = 3


def hang(how: str) -> None:
    if how == "late":
        time.sleep(600)  # until it is killed
    else:
        os.kill(os.getpid(), signal.SIGSTOP if how == "stopped" else signal.SIGKILL)


def work(rank: int, how: str, bad: int, port: int, messages) -> None:
    """Run by each fork; one of them hangs in its fifth step while it reads data."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=NUM_RANKS)
    wait_for_ranks()  # as a run does at its start: no rank hangs while another one still connects
    phase, step = "data", 0
    try:
        with Heartbeats(lambda: (step, phase), alone=["data"]) as beats:
            for _ in range(100):
                phase = "data"
                beats.send()
                if step == 4:  # not before, when a rank of a busy machine may be late
                    set_timeout(timedelta(seconds=1))
                    if rank == bad:
                        hang(how)
                phase = "student"
                sum_over_ranks(torch.ones(1))
                step += 1
    except (UserError, RuntimeError) as error:
        messages.put((rank, type(error), str(error)))
    os._exit(0)


@pytest.mark.parametrize(
    ("how", "bad"),
    [
        ("killed", 1),
        *(pytest.param(*each, marks=pytest.mark.tour) for each in (("stopped", 2), ("late", 1), ("stopped", 0))),
    ],
)
def test_others_end_with_a_line_that_names_the_rank(how, bad, monkeypatch):
    monkeypatch.setattr(heartbeats, "INTERVAL", 0.1)
    monkeypatch.setattr(heartbeats, "SILENCE", 2.0)
    monkeypatch.setattr(heartbeats, "_ANSWER", 1.0)
    fork = multiprocessing.get_context("fork")
    messages, port = fork.SimpleQueue(), free_port()
    ranks = [fork.Process(target=work, args=(rank, how, bad, port, messages)) for rank in range(NUM_RANKS)]
    for process in ranks:
        process.start()
    for rank, process in enumerate(ranks):
        process.join(0 if rank == bad else 100)
    statuses = [process.exitcode for process in ranks]
    ranks[bad].kill()
    for rank in set(range(NUM_RANKS)) - {bad}:
        assert statuses[rank] == 0
    said = {}
    while not messages.empty():
        rank, kind, message = messages.get()
        said[rank] = message
        assert kind is UserError or rank == bad
    for rank in set(range(NUM_RANKS)) - {bad}:
        assert f"Rank {rank} waited in vain for rank {bad}" in said[rank]
        assert "\n" not in said[rank]
        if bad > 0:
            assert f"process {ranks[bad].pid}; after step 4, in 'data'" in said[rank]
            assert ("alive" if how == "late" else "no sign of life") in said[rank]


@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_without_progress_is_one_warning_of_one_rank(rank, monkeypatch, caplog):
    steps = {0: 7, 1: 6, 2: 7}
    beats = Heartbeats(lambda: (7, "student"), alone=["data"])
    beats.rank, counts = rank, iter(range(9))

    def read():
        count = next(counts)
        return {each: heartbeats.Beat(count, step, "student", "host h", False) for each, step in steps.items()}

    monkeypatch.setattr(heartbeats, "SILENCE", 0.0)
    monkeypatch.setattr(beats, "_read", read)
    with caplog.at_level(logging.WARNING):
        beats._warn()
    assert ["rank 1 (host h; after step 6, in 'student')" in line for line in caplog.messages] == [True] * (rank == 0)


WITH_BUSY_THREAD = """
import sys
from torch import distributed
distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[1]}", rank=0, world_size=1)
from modeling_radio.core import heartbeats
heartbeats.rank_and_count, heartbeats.INTERVAL = lambda: (0, 2), 0.0
with heartbeats.Heartbeats(lambda: (1, "data"), []):
    pass
"""


@pytest.mark.tour
def test_a_process_ends_in_order_whatever_its_thread_does():
    """A thread that is in the store while the interpreter ends would abort it."""
    subprocess.run([sys.executable, "-c", WITH_BUSY_THREAD, str(free_port())], check=True)
