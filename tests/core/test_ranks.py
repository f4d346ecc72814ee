import multiprocessing
import os
import signal
import threading
from datetime import timedelta

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from two_forks import run_two_forks
from two_processes import run_two_processes

from modeling_radio.core import machine, ranks
from modeling_radio.core.errors import UserError
from modeling_radio.core.machine import find_device
from modeling_radio.core.ranks import (
    STEP_TIMEOUT,
    TIMEOUT,
    any_rank,
    apart,
    copy_from_first_rank,
    dead_ranks_named,
    device_of_process,
    first_rank_first,
    fsdp_plugin,
    joining,
    of_all_ranks,
    on_first_rank,
    rank_and_count,
    record_exchanges,
    rows_of_all_ranks,
    runs_on_cpu,
    set_timeout,
    sum_over_ranks,
    wait_for_ranks,
)


def test_accelerate_gets_the_first_gpu_or_the_cpu(monkeypatch):
    for module in (machine, ranks):
        monkeypatch.setattr(module, "devices", lambda: ["cuda:0", "cuda:1", "cpu"])
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert [runs_on_cpu(name) for name in (None, "cuda", "cuda:0", "cpu")] == [False, False, False, True]
    with pytest.raises(ValueError, match="`device`"):
        runs_on_cpu("cuda:1")


def test_a_single_process_keeps_its_own():
    tensor = torch.arange(3.0)
    assert torch.equal(sum_over_ranks(tensor), torch.arange(3.0))
    assert torch.equal(copy_from_first_rank(tensor), torch.arange(3.0))
    assert any_rank([True, False, tensor.sum() > 2, tensor.isnan().any()], tensor.device) == [True, False, True, False]
    assert on_first_rank(lambda: 3) == 3
    assert of_all_ranks({"x": 1}) == [{"x": 1}]
    assert rows_of_all_ranks(tensor, [3]) is tensor
    with pytest.raises(ZeroDivisionError):
        on_first_rank(lambda: 1 / 0)


def test_shards_compute_in_full_precision(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert fsdp_plugin() is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    plugin = fsdp_plugin()
    assert plugin is not None
    policy = plugin.mixed_precision_policy
    plugin.set_mixed_precision("bf16")  # as Accelerate does for a run in bfloat16
    assert plugin.mixed_precision_policy is policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (None, None, None)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("FSDP_VERSION", "1"), ("FSDP_VERSION", "x"), ("FSDP_AUTO_WRAP_POLICY", "NOPE"), ("FSDP_STATE_DICT_TYPE", "NOPE")],
)
def test_wrong_settings_of_the_launcher_are_refused(variable, value, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=rf"`?(fsdp_config|FSDP version).*{value}"):
        fsdp_plugin()


def work_until_the_other_is_killed(rank, work, folder, messages):
    """Run by both processes; the second is killed after its first turn."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    turns = {
        "sums": lambda: sum_over_ranks(torch.ones(3)),
        "first rank": lambda: on_first_rank(lambda: 3),
        "gradients": lambda: model(torch.ones(1, 2)).sum().backward(),
    }
    turns[work]()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        with dead_ranks_named():
            for _ in range(100):
                turns[work]()
    except (UserError, RuntimeError) as error:
        messages.put((type(error), str(error)))


@pytest.mark.parametrize("work", ["sums", "first rank", "gradients"])
def test_a_killed_rank_is_one_line_in_the_other(work, tmp_path):
    fork = multiprocessing.get_context("fork")
    messages = fork.SimpleQueue()
    arguments = (work, tmp_path, messages)
    workers = [fork.Process(target=work_until_the_other_is_killed, args=(rank, *arguments)) for rank in range(2)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(60)
    kind, message = messages.get()
    assert kind is UserError
    assert "Rank 0" in message
    assert "\n" not in message
    assert workers[1].exitcode == -signal.SIGKILL


EXCHANGES = {
    "sum": lambda: sum_over_ranks(torch.ones(3)),
    "copy": lambda: copy_from_first_rank(torch.ones(3)),
    "wait": wait_for_ranks,
    "first rank": lambda: on_first_rank(lambda: 3),
    "first rank first": lambda: first_rank_first(lambda: 3),
    "values": lambda: of_all_ranks(1),
    "rows": lambda: rows_of_all_ranks(torch.ones(2, 1), [2, 2]),
    "flags": lambda: any_rank([True], torch.device("cpu")),
}
FOREIGN_EXCHANGES = {
    "torch": lambda: distributed.all_reduce(torch.ones(3)),
    "barrier": distributed.barrier,
    "objects": lambda: distributed.broadcast_object_list([1]),
    "gathered objects": lambda: distributed.all_gather_object([None, None], 1),
}


@pytest.mark.parametrize("turns", [on_first_rank, first_rank_first, None])
@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=list(EXCHANGES))
def test_an_exchange_where_ranks_take_turns_is_refused_in_a_single_process_too(turns, exchange):
    def take_turns():
        if turns is not None:
            return turns(exchange)
        with apart():
            return exchange()

    with pytest.raises(RuntimeError, match="exchanges between ranks"):
        take_turns()
    exchange()


def refuse_exchanges():
    """Run by both processes, each of which would wait for the other."""
    whole = distribute_tensor(torch.ones(4), init_device_mesh("cpu", (2,)), [Shard(0)])
    for exchange in (*EXCHANGES.values(), *FOREIGN_EXCHANGES.values(), whole.full_tensor):
        with apart(), pytest.raises(RuntimeError, match="exchanges between ranks"):
            exchange()
    for turns in (on_first_rank, first_rank_first):
        with pytest.raises(ValueError, match="bad"):  # on both ranks
            turns(raise_bad)
    seen = []
    assert first_rank_first(lambda: seen.append(distributed.get_rank()) or distributed.get_rank()) == seen[0]
    assert seen == [distributed.get_rank()]
    assert torch.equal(whole.full_tensor(), torch.ones(4))


def raise_bad():
    raise ValueError("bad")


def test_two_processes_refuse_exchanges_of_any_library_where_they_take_turns(tmp_path):
    run_two_forks(refuse_exchanges, tmp_path)


def gather_uneven_rows():
    """Run by both processes: one row and three, then none and two."""
    rank, _ = rank_and_count()
    for counts, dtype in (((1, 3), torch.float32), ((0, 2), torch.float64), ((2, 0), torch.int64)):
        whole = torch.arange(2 * sum(counts)).view(-1, 2).to(dtype)
        own = whole.split(counts)[rank].clone()
        if dtype.is_floating_point:
            own.requires_grad_()
        gathered = rows_of_all_ranks(own, counts)
        assert gathered.dtype == dtype
        assert torch.equal(gathered, whole)
        assert not gathered.requires_grad  # each rank learns through its own rows only


def test_rows_of_two_processes_are_the_same_on_both_without_gradient(tmp_path):
    run_two_forks(gather_uneven_rows, tmp_path)


def test_models_open_on_the_device_of_each_of_two_processes(tmp_path):
    def check():
        assert [find_device(str(device_of_process(name))) for name in (None, "cpu")] == ["cpu", "cpu"]

    run_two_processes(check, tmp_path)


def test_other_errors_pass_unchanged():
    with pytest.raises(RuntimeError, match="Connection closed by peer"), dead_ranks_named():
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(RuntimeError, match="gloo/transport"), dead_ranks_named():  # in a single process
        raise RuntimeError("[/gloo/transport/tcp/pair.cc:1] Connection closed by peer")


def test_ranks_wait_long_for_one_that_works_alone_and_minutes_for_others(tmp_path):
    """Each wait ends here by its timeout: the other rank has gone on to something else."""

    def timeouts():
        return {group: group._get_backend(torch.device("cpu")).options._timeout for group in groups()}

    def groups():
        return distributed.distributed_c10d._world.pg_map

    def check():
        assert max(timeouts().values()) > STEP_TIMEOUT
        wait_for_ranks()
        assert sorted(timeouts().values()) == [STEP_TIMEOUT, TIMEOUT]
        set_timeout(timedelta(seconds=0.5))
        turns = {0: wait_for_ranks, 1: lambda: sum_over_ranks(torch.zeros(1))}
        with pytest.raises(RuntimeError):
            turns[distributed.get_rank()]()

    set_timeout(timedelta(seconds=1))  # nothing without others
    run_two_forks(check, tmp_path)


LAUNCHED = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_RANK": "1"}


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_a_rank_without_a_variable_of_the_launcher_is_refused(monkeypatch, missing):
    monkeypatch.setattr(os, "environ", {name: value for name, value in LAUNCHED.items() if name != missing})
    with pytest.raises(ValueError, match=f"`{missing}`"), joining():
        pass


@pytest.mark.parametrize(
    ("count", "variables"), [(1, {}), (1, {"MASTER_ADDR": "a"}), (1, {"RANK": "0", "WORLD_SIZE": "1"}), (2, LAUNCHED)]
)
def test_a_rank_tells_that_it_waits_for_others(monkeypatch, capfd, count, variables):
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.setattr(ranks, "_SILENT_SECONDS", 0.0)
    before = set(threading.enumerate())
    with joining():
        for thread in set(threading.enumerate()) - before:
            thread.join()
    assert ("127.0.0.1:1" in capfd.readouterr().err) == (count > 1)


@pytest.mark.parametrize("own", [{}, {"TORCH_NCCL_TRACE_BUFFER_SIZE": "7", "TORCH_FR_DUMP_TEMP_FILE": "mine"}])
def test_several_gpus_record_their_exchanges_unless_the_user_decides(own, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {"WORLD_SIZE": "2", **own})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    record_exchanges(tmp_path)
    assert os.environ == {"WORLD_SIZE": "2", **own}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    record_exchanges(tmp_path)
    assert own.items() <= os.environ.items()
    assert os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    assert os.environ.get("TORCH_FR_BUFFER_SIZE") == (None if own else "2000")
    path = None if own else str(tmp_path / "nccl_trace_rank_")
    assert os.environ.get("TORCH_NCCL_DEBUG_INFO_TEMP_FILE") == path
