"""Several ranks: sums and copies for running statistics, and the settings of FSDP that a launcher passes on."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, distributed
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_radio.core.command_line import USER_ERRORS
from modeling_radio.core.errors import UserError
from modeling_radio.core.machine import devices, find_device


if TYPE_CHECKING:
    from accelerate import FullyShardedDataParallelPlugin


T = TypeVar("T")

TIMEOUT = timedelta(days=1)
"""Time that ranks wait for one that works alone: loads teachers, looks at images, or fills a cache. Our choice."""
STEP_TIMEOUT = timedelta(minutes=15)
"""Timeout of exchanges, which begin when every rank is there, and of all waiting between the steps of a run, where no
rank works alone for long. Our choice: a large checkpoint on a slow disk takes minutes."""
_SILENT_SECONDS = 30.0
"""Seconds without a message while ranks join. Our choice: ranks that a launcher starts meet sooner."""
_RANK_VARIABLES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Variables with the rank that Accelerate reads; the last ones are MPI's."""
_GLOO_TRANSPORT = "/gloo/transport/"
"""Source file in the errors of gloo's connections, which have no class of their own."""
GOES_ON = "Its own output tells why. The same command goes on from the last checkpoint."
_FLIGHT_RECORDER = {
    ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"): "2000",
    ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"): None,
    ("TORCH_NCCL_DUMP_ON_TIMEOUT",): "1",
}
"""Variables of NCCL's flight recorder, by their present and older names, and values; None for the path. It keeps the
last 2,000 exchanges, PyTorch's own number."""
_is_apart = ContextVar("is_apart", default=False)
"""Whether this rank works without the others at the moment."""


class _NoExchanges(TorchDispatchMode):
    """Refuses the exchanges of any library: all of them are operators of PyTorch's dispatcher."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # PyTorch calls this again with the operators that it consists of
        if func.namespace.lstrip("_").startswith("c10d"):
            _check_together(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def apart() -> Iterator[None]:
    """Mark work that the other ranks do at another time, or not at all: an exchange within the context raises at once.

    Raises:
        RuntimeError: If ranks exchange something, also in a single process: several would wait for each other forever.
    """
    token = _is_apart.set(True)
    try:
        with _NoExchanges() if _is_distributed() else nullcontext():
            yield
    finally:
        _is_apart.reset(token)


def _check_together(exchange: str) -> None:
    if _is_apart.get():
        raise RuntimeError(
            f"`{exchange}` exchanges between ranks where each works at its own time: they would wait for each other "
            "forever. Do it before or after that."
        )


def _has_others(exchange: str) -> bool:
    """Return whether there are other ranks for an exchange; all exchanges of this project begin here."""
    _check_together(exchange)
    return _is_distributed()


_meeting_groups: dict[Any, distributed.ProcessGroup] = {}
"""By group of all ranks."""


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank_and_count() -> tuple[int, int]:
    """Return the rank of this process and the number of processes: 0 and 1 where it is alone."""
    return (distributed.get_rank(), distributed.get_world_size()) if _is_distributed() else (0, 1)


@contextmanager
def joining() -> Iterator[None]:
    """Let this process join the other ranks within the context, and print a line if that takes long.

    Raises:
        ValueError: If a variable by which ranks find each other is missing; the others would wait for this one.
    """
    variables, count = os.environ, os.environ.get("WORLD_SIZE", "1")
    missing = ["WORLD_SIZE"] if "RANK" in variables and "WORLD_SIZE" not in variables else []
    if count != "1":
        missing += [] if any(name in variables for name in _RANK_VARIABLES) else ["RANK"]
        needed = ["MASTER_ADDR", "MASTER_PORT", *(["LOCAL_RANK"] if torch.cuda.is_available() else [])]
        missing += [name for name in needed if name not in variables]
    if missing:
        known = {name: variables[name] for name in ("RANK", "WORLD_SIZE") if name in variables}
        raise ValueError(
            f"`{'`, `'.join(missing)}` must be set in the environment of each of several processes, got only {known}. "
            "Start them by `torchrun` or `accelerate launch`, which set all; or unset these for a single process."
        )
    place = ":".join(variables.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    message = f"Waiting for the other processes of {count} at {place}."
    notice = threading.Timer(_SILENT_SECONDS, partial(print, message, file=sys.stderr, flush=True))
    if count != "1":
        notice.daemon = True
        notice.start()
    try:
        yield
    finally:
        notice.cancel()


def device_of_process(name: str | None = None) -> torch.device:
    """Return the device of this process, which joins the others where a launcher started several.

    Args:
        name: See `find_device`; for several processes see `runs_on_cpu`.

    Raises:
        ValueError: As `joining`, or for another device.
    """
    has_gpu = torch.cuda.is_available()
    with joining():
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            is_cpu = not has_gpu if name is None else runs_on_cpu(name)
            own = PartialState(cpu=is_cpu, timeout=TIMEOUT).device
            return torch.device("cpu" if is_cpu or own is None else own)  # it numbers CPUs, `devices` does not
    if name is not None:
        return torch.device(find_device(name))
    return torch.device("cuda" if has_gpu else "cpu")


def runs_on_cpu(name: str | None) -> bool:
    """Return Accelerate's `cpu`, which is `use_cpu` of transformers' `Trainer`, for the device that a user names.

    Accelerate gives each process a GPU of its own, the first one where there is one process.

    Args:
        name: "cpu", or the first GPU; None for a GPU, if there is one.

    Raises:
        ValueError: If it is another GPU.
    """
    if name is None:
        return not torch.accelerator.is_available()
    device = find_device(name)
    if device not in (devices()[0], "cpu"):
        raise ValueError(
            f"`device` must be cpu or cuda here, got {name!r}: Accelerate gives each process a GPU, from the first one "
            "on. The variable CUDA_VISIBLE_DEVICES chooses the GPUs."
        )
    return device == "cpu"


def set_timeout(timeout: timedelta) -> None:
    """Set how long this rank waits from now on for one that works alone; call it right after all ranks have met."""
    if _is_distributed():
        meeting = _meeting_group()
        # PyTorch has no other way: its own trainer, torchtitan, shortens the timeout after the first step by this.
        for group in distributed.distributed_c10d._world.pg_map:
            own = timeout if group is meeting else min(timeout, STEP_TIMEOUT)
            distributed.distributed_c10d._set_pg_timeout(own, group)


def wait_for_ranks() -> None:
    """Wait until every rank has arrived here, at most as long as a rank may work alone."""
    if _has_others("wait_for_ranks"):
        _meet()


def _meet() -> None:
    """Wait until every rank is there, so that the exchange after it only takes long if a rank hangs."""
    distributed.barrier(group=_meeting_group())


def _meeting_group() -> distributed.ProcessGroup:
    """Return the group in which ranks wait for long; with the first call the timeout of the others becomes short.

    It is a group of gloo, in which a process that ends is noticed at once.
    """
    world = distributed.group.WORLD
    if world not in _meeting_groups:
        _meeting_groups.clear()  # those of ranks that met before
        _meeting_groups[world] = cast(distributed.ProcessGroup, distributed.new_group(backend="gloo", timeout=TIMEOUT))
        set_timeout(TIMEOUT)
    return _meeting_groups[world]


def sum_over_ranks(tensor: Tensor, group: distributed.ProcessGroup | None = None) -> Tensor:
    """Return the sum of `tensor` over all ranks, or a group of them, the same bits on each; `tensor` is overwritten."""
    if _has_others("sum_over_ranks"):
        distributed.all_reduce(tensor, group=group)
    return tensor


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of `tensor` over all ranks, the same bits on each; `tensor` is overwritten."""
    return sum_over_ranks(tensor).div_(rank_and_count()[1])


def copy_from_first_rank(tensor: Tensor) -> Tensor:
    """Return rank 0's `tensor` on every rank; `tensor` is overwritten elsewhere."""
    if _has_others("copy_from_first_rank"):
        distributed.broadcast(tensor, src=0)
    return tensor


def on_first_rank(work: Callable[[], T]) -> T:
    """Call a function on rank 0 alone and return its result on every rank.

    An error that the user can mend is raised on every rank, so that no rank waits for one that has ended.
    """
    if not _has_others("on_first_rank"):
        with apart():
            return work()
    result: list[Any] = [None, None]
    if distributed.get_rank() == 0:
        try:
            with apart():
                result[0] = work()
        except USER_ERRORS as error:
            result[1] = error
    _meet()
    distributed.broadcast_object_list(result)
    if result[1] is not None:
        raise result[1]
    return result[0]


def first_rank_first(work: Callable[[], T]) -> T:
    """Call a function on rank 0, then on the others, which find what it has left in caches.

    An error on rank 0 that the user can mend ends every rank.

    Returns:
        This rank's own result.
    """
    results: list[T] = []
    on_first_rank(lambda: results.append(work()))
    if not results:
        with apart():
            results.append(work())
    return results[0]


def of_all_ranks(value: T) -> list[T]:
    """Return the plain values of all ranks in order, on every rank."""
    if not _has_others("of_all_ranks"):
        return [value]
    _meet()
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def rows_of_all_ranks(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the rows of all ranks one after the other, without gradient.

    Args:
        rows: `(rows, ...)`, this rank's.
        counts: Number of rows of each rank.
    """
    if not _has_others("rows_of_all_ranks"):
        return rows
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


@contextmanager
def dead_ranks_named() -> Iterator[None]:
    """Report in one line that another process of the run has ended while this one waited for it.

    Raises:
        UserError: In place of the error of a connection between processes; others pass.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise UserError(
            f"Rank {distributed.get_rank()} lost the connection to another process of this run: it ended or "
            f"cannot be reached. {GOES_ON}"
        ) from error


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an error says that a connection between ranks broke, or that one waited too long."""
    is_of_connection = isinstance(error, distributed.DistBackendError) or _GLOO_TRANSPORT in str(error)
    return isinstance(error, RuntimeError) and is_of_connection and _is_distributed()


def record_exchanges(folder: Path) -> None:
    """Let NCCL write each rank's last exchanges to `folder/nccl_trace_rank_RANK` when one of them times out.

    To be called before the ranks meet. `torchfrtrace` of PyTorch reads the files. Variables that are set stay.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and torch.cuda.is_available():
        path = str(folder.absolute() / "nccl_trace_rank_")
        for names, value in _FLIGHT_RECORDER.items():
            if not os.environ.keys() & set(names):
                os.environ.update(dict.fromkeys(names, value or path))


def any_rank(flags: Sequence[bool | Tensor], device: torch.device) -> list[bool]:
    """Return for each flag whether it is set on at least one rank, by one exchange and one wait for the device.

    Args:
        flags: Booleans of Python, or tensors of one element.
        device: Device of the tensors.
    """
    rows = [flag.view(()) if isinstance(flag, Tensor) else torch.full((), flag, device=device) for flag in flags]
    return [count > 0 for count in sum_over_ranks(torch.stack([row.float() for row in rows])).tolist()]


def fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """Return the settings of FSDP that `accelerate launch` passes on, None where it asks for no FSDP.

    Mixed precision is left to autocast, as without shards: Accelerate's policy for FSDP would turn all weights into
    bfloat16 (also heads, which autocast leaves alone), round labels, and sum the gradients of all ranks in bfloat16.

    Raises:
        ValueError: If the launcher asks for FSDP of version 1, or for values that Accelerate does not know.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    from accelerate import FullyShardedDataParallelPlugin

    try:
        plugin = FullyShardedDataParallelPlugin()
    except (KeyError, ValueError) as error:  # Accelerate looks names up in its enumerations
        raise ValueError(
            f"`fsdp_config` of the launcher must hold values that Accelerate knows, got {error}."
        ) from error
    if plugin.fsdp_version != 2:
        raise ValueError(f"FSDP version {plugin.fsdp_version} is not supported: set `fsdp_version: 2`.")
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return plugin
