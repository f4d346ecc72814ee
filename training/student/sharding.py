"""Weights that are sharded or copied over ranks (FSDP2, DDP): preparing, gathering, averaging."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    fsdp2_prepare_model,
)
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.optim import Optimizer

from modeling_radio import RadioModel
from modeling_radio.core.ranks import (
    TIMEOUT,
    copy_from_first_rank,
    fsdp_plugin,
    joining,
    mean_over_ranks,
    record_exchanges,
    runs_on_cpu,
)
from modeling_radio.training.recipes.recipe import Recipe


def whole_norm(norm: Tensor) -> Tensor:
    """Return a gradient norm as a plain scalar, the same on every rank."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def local_parts(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """Return this rank's parts of tensors, which share their memory; all of them where nothing is sharded."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else cast(Tensor, tensor) for tensor in tensors]


def whole_norms(parts: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of each of several tensors, given this rank's parts, with one exchange for all.

    Args:
        parts: This rank's part of each tensor.
        like: Tensors that are whole or sharded as these are.
    """
    norms = torch.stack(torch._foreach_norm(list(parts)))
    if not isinstance(like[0], DTensor):
        return norms
    return sum_over_shards([norms.square()], like[0])[0].sqrt()


def first_row(tensor: Tensor) -> int:
    """Return where this rank's part of a tensor begins along its first dimension: 0 where nothing is sharded."""
    if not isinstance(tensor, DTensor):
        return 0
    rows, first = len(tensor), 0
    for mesh_dim, placement in enumerate(tensor.placements):
        if placement.is_shard(0):
            most = -(-rows // tensor.device_mesh.size(mesh_dim))  # as torch.chunk cuts
            skipped = min(most * tensor.device_mesh.get_local_rank(mesh_dim), rows)
            first, rows = first + skipped, min(most, rows - skipped)
    return first


def sum_over_shards(parts: Sequence[Tensor], like: Tensor) -> list[Tensor]:
    """Return sums over the ranks among which `like` is sharded, with one exchange; `parts` where it is not.

    Args:
        parts: This rank's terms of several sums.
        like: A tensor, whole or sharded.
    """
    if not isinstance(like, DTensor):
        return list(parts)
    placements = [Partial() if placement.is_shard() else Replicate() for placement in like.placements]
    flat = torch.cat([part.flatten() for part in parts])
    sums = DTensor.from_local(flat, like.device_mesh, placements, run_check=False).full_tensor()
    split = sums.split([part.numel() for part in parts])
    return [each.view_as(part) for each, part in zip(split, parts, strict=True)]


def gather_whole(part: Tensor, like: Tensor) -> Tensor:
    """Return the whole of a tensor that is sharded as `like` is, on every rank; all ranks must take part."""
    whole = as_part(part, like)
    return whole.full_tensor() if isinstance(whole, DTensor) else whole


def own_part(whole: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of a tensor that every rank has, cut as `like` is; the inverse of `gather_whole`."""
    if not isinstance(like, DTensor):
        return whole
    mesh = like.device_mesh
    copies = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return copies.redistribute(placements=like.placements).to_local()


def as_part(part: Tensor, like: Tensor) -> Tensor:
    """Return the sharded tensor of which this rank has `part`, cut as `like` is; `part` itself where that is whole."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def part_number(tensor: Tensor) -> tuple[int, int] | None:
    """Return the number of this rank's part of a tensor, from 0, and the number of parts.

    A tensor that every rank has as a whole is (0, 1). None if the tensor has parts and another rank writes this one.
    """
    if not isinstance(tensor, DTensor):
        return 0, 1
    number, count, is_copy = 0, 1, False
    for mesh_dim, placement in enumerate(tensor.placements):
        size, own = tensor.device_mesh.size(mesh_dim), tensor.device_mesh.get_local_rank(mesh_dim)
        if placement.is_shard():
            number, count = number * size + own, count * size
        elif own:
            is_copy = True
    return None if is_copy and count > 1 else (number, count)


def build_accelerator(recipe: Recipe, output: Path, device: str | None = None) -> Accelerator:
    """Return the accelerator that the launcher's environment and the recipe describe.

    Args:
        recipe: The recipe.
        output: Folder of the run.
        device: See `runs_on_cpu`.

    Raises:
        ValueError: If the environment asks for FSDP of version 1, or lacks a variable of a launcher; as
            `runs_on_cpu`.
    """
    record_exchanges(output)
    with joining():
        return Accelerator(
            cpu=runs_on_cpu(device),  # or processes that torchrun starts there would not know each other
            mixed_precision=recipe.mixed_precision,
            log_with=cast(Any, recipe.logging.trackers or None),
            project_dir=output,
            fsdp_plugin=fsdp_plugin(),
            kwargs_handlers=[
                # One rank alone may look at a million files, fill a cache or load teachers for long.
                InitProcessGroupKwargs(timeout=TIMEOUT),
                # Gradients lie in what is exchanged, not beside it: four bytes less for each parameter. Buffers are
                # equal on all ranks, but for running statistics, which `RunningStatistics` averages.
                DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
            ],
        )


def is_sharded(accelerator: Accelerator) -> bool:
    """Return whether models are sharded over ranks."""
    return accelerator.distributed_type == DistributedType.FSDP


def is_replicated(accelerator: Accelerator) -> bool:
    """Return whether every rank has a copy of the whole student, wrapped so that they exchange gradients (DDP)."""
    return accelerator.num_processes > 1 and not is_sharded(accelerator)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace gradients by their mean over ranks, as DDP does in a backward pass that reaches all its parameters.

    Args:
        parameters: Those without a gradient are left out; they must be the same on every rank.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    means = mean_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = means.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)])


def shard_average(accelerator: Accelerator, average: nn.Module) -> None:
    """Shard the moving average's network as `Accelerator.prepare` sharded the student: each rank averages its part."""
    if is_sharded(accelerator):
        fsdp2_prepare_model(accelerator, average)


def shard_within(accelerator: Accelerator, model: RadioModel) -> None:
    """Let a model that is prepared as a part of something be sharded by itself all the same: it is called alone too."""
    if is_sharded(accelerator):
        plugin = cast(FullyShardedDataParallelPlugin, accelerator.state.fsdp_plugin)
        names = plugin.transformer_cls_names_to_wrap or cast(list[str], model._no_split_modules)
        plugin.transformer_cls_names_to_wrap = list(dict.fromkeys([*names, type(model).__name__]))


def shard_by_own_parts(accelerator: Accelerator, model: RadioModel) -> None:
    """Let a model of other blocks be sharded by the parts that it names, in place of the launcher's `RadioBlock`.

    A library's network and NaViT's patches are none: Accelerate shards what reads the pixels by itself, and it would be
    in both.
    """
    if is_sharded(accelerator) and (model.config.is_foreign or model.config.navit is not None):
        plugin = cast(FullyShardedDataParallelPlugin, accelerator.state.fsdp_plugin)
        plugin.transformer_cls_names_to_wrap = sorted(
            {*(model._no_split_modules or ())} - {"WrappedTrunk", "NavitPatches"}
        )


def reshard(module: nn.Module) -> None:
    """Give back the weights that a forward pass without a backward pass left gathered; nothing if not sharded."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def blueprint(accelerator: Accelerator, module: nn.Module) -> nn.Module | None:
    """Return a copy without data, on the meta device, that `assemble` fills once the original is sharded, if it is."""
    return copy.deepcopy(module).to("meta") if is_sharded(accelerator) else None


def assemble(module: nn.Module, plan: nn.Module | None) -> nn.Module:
    """Return a module as one piece. All ranks must take part; only the main process's result has the weights.

    Args:
        module: Possibly sharded.
        plan: Its `blueprint`; None if it is not sharded.

    Returns:
        `module` itself if it is not sharded, else the filled plan, on the CPU.
    """
    if plan is None:
        return module
    state = whole_state_dict(module)
    whole = copy.deepcopy(plan).to_empty(device="cpu")
    if state:
        whole.load_state_dict(state)
    return whole


def whole_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state with whole tensors, in the main process, on the CPU; all ranks must take part."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast(dict[str, Tensor], get_model_state_dict(module, options=options))


def state_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's own state under the names of `whole_state_dict`; what is sharded stays so.

    The module must not be wrapped. PyTorch's `get_model_state_dict` would look through wrappers for each of the names,
    which takes longer than a step of a small student.
    """
    return module.state_dict()


def load_state_tensors(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load tensors under the names of `state_tensors`, sharded as these are."""
    set_model_state_dict(module, cast(dict[str, Any], state))


@torch.no_grad()
def rewrite(tensor: Tensor, function: Callable[[Tensor], Tensor]) -> None:
    """Replace a tensor by a function of the whole one; all ranks take part.

    Of a sharded one each rank keeps its own part of what it has computed; otherwise all get rank 0's result.
    """
    if isinstance(tensor, DTensor):
        mesh = tensor.device_mesh
        whole = function(tensor.full_tensor()).to(tensor.dtype)
        copies = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
        tensor.copy_(copies.redistribute(mesh, tensor.placements))  # without communication
    else:
        tensor.copy_(copy_from_first_rank(function(tensor).to(tensor.dtype).contiguous()))


def parameters_of_moments(optimizer: Optimizer, moments: Iterable[str]) -> dict[str, Tensor]:
    """Return the parameter of each of some `optimizer_tensors`, under its name; nothing for those that have none."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    indices = {name: int(name.partition(".")[0]) for name in moments}
    return {name: parameters[index] for name, index in indices.items() if index < len(parameters)}
