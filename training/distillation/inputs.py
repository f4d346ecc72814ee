"""Images, teachers and targets of a run, opened as its recipe says."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from torch import distributed
from torch.distributed import ProcessGroup

from modeling_radio.core.interruption import Interrupted, OutOfTime, StopRequest
from modeling_radio.core.ranks import (
    STEP_TIMEOUT,
    any_rank,
    first_rank_first,
    of_all_ranks,
    on_first_rank,
    rank_and_count,
    wait_for_ranks,
)
from modeling_radio.data.image_table import Images
from modeling_radio.data.sources import stream_fingerprint
from modeling_radio.data.training_images import build_training_images
from modeling_radio.training.distillation.tracking import describe_left_out, left_out_of, write_data_record
from modeling_radio.training.planning.costs import Networks
from modeling_radio.training.planning.memory import GIB, fitting_parts, has_auto, with_parts
from modeling_radio.training.recipes.recipe import Recipe, RecipeError
from modeling_radio.training.student.build import student_patch_size
from modeling_radio.training.student.sharding import is_sharded
from modeling_radio.training.targets.cached import CachedTargets
from modeling_radio.training.targets.examples import TargetSource
from modeling_radio.training.targets.feature_cache import (
    CacheContents,
    FeatureCache,
    TeacherOutputs,
    write_feature_cache,
)
from modeling_radio.training.targets.online import OnlineTargets
from modeling_radio.training.teachers.base import Teacher, by_network
from modeling_radio.training.teachers.outputs import TeacherWidths
from modeling_radio.training.teachers.published.base import loading_turn
from modeling_radio.training.teachers.registry import check_devices, place_teacher, share_network, teacher_of_recipe
from modeling_radio.training.views.dealing import divide_ranks, parts_of_rank, teachers_of_rank
from modeling_radio.training.views.loaders import PartitionStreams
from modeling_radio.training.views.plan import BatchPlan, Operations, large_enough_images
from modeling_radio.training.views.shapes import extreme_grids, smallest_used_px


def open_images(recipe: Recipe) -> Images | PartitionStreams:
    """Open the training images, by number or as streams of this rank; all ranks must take part."""
    if recipe.data.streaming:
        return first_rank_first(lambda: PartitionStreams.open(recipe, *rank_and_count()))
    is_square = recipe.views.teachers == "cached"
    return build_training_images(recipe.data, is_square=is_square, used_px=smallest_used_px(recipe))


def fingerprint_of(images: Images | PartitionStreams, recipe: Recipe) -> str:
    """Return a line that changes when the images do; all ranks must take part, and must see the same images.

    Args:
        images: Result of `open_images`.
        recipe: The recipe.

    Raises:
        RecipeError: If a rank sees other images than the first one, on every rank: count, names, bytes, weights or
            contents differ. Of streams the files are compared, before they are dealt to ranks.
    """
    is_streamed = isinstance(images, PartitionStreams)
    own = stream_fingerprint(recipe.data) if is_streamed else images.fingerprint()
    # The times of files differ between the disks of machines.
    seen = of_all_ranks(re.sub(r", state \w+", "", own) if is_streamed else own)
    rank = next((rank for rank, line in enumerate(seen) if line != seen[0]), None)
    if rank is not None:
        raise RecipeError(
            f"`data.source` must hold the same images for all ranks, but rank {rank} sees {seen[rank]!r} and rank 0 "
            f"{seen[0]!r}. Copy the same files to each machine."
        )
    return own


def plan_batches(
    recipe: Recipe,
    accelerator: Accelerator,
    images: Images | PartitionStreams,
    widths: Mapping[str, TeacherWidths],
    folder: Path,
) -> BatchPlan:
    """Return which images this rank's steps see; tell which were left out, and note it in the run's folder.

    Several ranks divide images of several sizes by the operations that the first one counts, which also chooses what
    `accumulation_steps: auto` is in the plan's recipe.

    Args:
        recipe: The recipe.
        accelerator: Accelerator of this rank.
        images: By number, or streams, whose images are left out while they are read.
        widths: Widths of the teachers, by name.
        folder: Folder of the run.

    Raises:
        RecipeError: If no image is large enough for a partition, or the ranks cannot be shared as the partitions say.
    """
    number, image_numbers = None, {}
    if not isinstance(images, PartitionStreams):
        number, image_numbers = len(images), large_enough_images(images, recipe)
        if recipe.data.min_side_ratio is not None and accelerator.is_main_process:
            record = left_out_of(images, image_numbers)
            accelerator.print(describe_left_out(record), flush=True)
            write_data_record(folder, recipe, record)
    rank, num_ranks = accelerator.process_index, accelerator.num_processes
    networks, operations = cache(lambda: Networks(recipe, widths)), None
    if num_ranks > 1 and any(partition.token_budget is not None for partition in recipe.partitions):
        operations = on_first_rank(lambda: networks().operations(recipe))
    if has_auto(recipe):
        recipe = _with_fitting_parts(recipe, accelerator, networks, operations)
    return BatchPlan(
        recipe,
        number,
        rank,
        num_ranks,
        patch_size=student_patch_size(recipe),
        image_numbers=image_numbers,
        operations=operations,
    )


def _with_fitting_parts(
    recipe: Recipe, accelerator: Accelerator, networks: Callable[[], Networks], operations: Operations | None
) -> Recipe:
    """Return a recipe with the fewest parts of a step that fit into the smallest GPU of all ranks; tell them.

    On other devices, whose memory is not theirs alone, a rank's share is one part.
    """
    device, num_ranks = accelerator.device, accelerator.num_processes
    own = torch.cuda.get_device_properties(device).total_memory / GIB if device.type == "cuda" else None
    sizes = [size for size in of_all_ranks(own) if size is not None]
    if not sizes:
        return with_parts(recipe, {each.name: 1 for each in recipe.partitions})
    num_sharing = min(num_ranks, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) if is_sharded(accelerator) else 1
    parts = on_first_rank(lambda: fitting_parts(networks(), recipe, num_ranks, min(sizes), operations, num_sharing))
    told = ", ".join(f"{name} {number}" for name, number in parts.items())
    accelerator.print(f"Parts of a step on each rank, chosen for {min(sizes):.1f} GiB: {told}.", flush=True)
    return with_parts(recipe, parts)


def load_teachers(recipe: Recipe, device: torch.device) -> dict[str, Teacher]:
    """Load the teachers that this rank needs, on each machine one rank after the other.

    They are never wrapped, trained or saved. The first rank, which also knows what all others must, loads all.
    """
    check_devices(recipe.teachers)
    patch_size = student_patch_size(recipe)
    rank, num_ranks = rank_and_count()
    needed = {*teachers_of_rank(recipe, rank, num_ranks), recipe.student.init_from}
    teachers: dict[str, Teacher] = {}
    with loading_turn():
        for entry in recipe.teachers:
            if rank > 0 and entry.name not in needed:
                continue
            teacher = teacher_of_recipe(entry, patch_size)
            share_network(teacher, entry, [(teachers[e.name], e) for e in recipe.teachers if e.name in teachers])
            teachers[entry.name] = place_teacher(teacher, entry, device)
    check_image_sizes(recipe, teachers)
    _check_own_networks(recipe, teachers)
    return teachers


def shard_teachers(recipe: Recipe, teachers: Mapping[str, Teacher]) -> None:
    """Divide the blocks of the teachers that ask for it among the ranks of a machine that run them.

    All ranks must take part. From then on these ranks must run the teacher together.

    Args:
        recipe: The recipe; teachers that fill a cache stay whole, because ranks fill it one without the other.
        teachers: By name, at least those that this rank runs.

    Raises:
        RecipeError: If ranks that share a teacher differ in their accumulated parts.
    """
    rank, num_ranks = rank_and_count()
    sharded = [entry.name for entry in recipe.teachers if entry.shard]
    if not sharded or num_ranks == 1 or recipe.views.teachers == "cached":
        return
    networks = on_first_rank(lambda: by_network({name: teachers[name] for name in sharded}))
    of_machine = int(os.environ.get("LOCAL_WORLD_SIZE", str(num_ranks)))
    for turn, names in enumerate(networks):
        for start in range(0, num_ranks, of_machine):
            machine = range(start, min(start + of_machine, num_ranks))
            ranks = [each for each in machine if {*names} & {*teachers_of_rank(recipe, each, num_ranks)}]
            if len(ranks) < 2:
                continue
            _check_equal_parts(recipe, names, ranks, num_ranks)
            group = cast(ProcessGroup, distributed.new_group(ranks, timeout=STEP_TIMEOUT))  # on all ranks, in one order
            for name in names if rank in ranks else ():
                if name in teachers:
                    teachers[name].shard(group, turn)


def _check_equal_parts(recipe: Recipe, names: Sequence[str], ranks: Sequence[int], num_ranks: int) -> None:
    """Refuse ranks that would call a network in another order of its passes and the student's."""
    ranks_of, patch_size = divide_ranks(recipe.partitions, num_ranks), student_patch_size(recipe)
    parts = {
        tuple(
            (
                parts_of_rank(each, len(ranks_of[each.name]), patch_size),
                each.teachers is None or not {*names}.isdisjoint(each.teachers),
            )
            for each in recipe.partitions
            if rank in ranks_of[each.name]
        )
        for rank in ranks
    }
    if len(parts) > 1:
        raise RecipeError(
            f"`partitions` must have equal `accumulation_steps` and teachers on all ranks that share the sharded "
            f"{' and '.join(names)}. Set `teachers.{names[0]}.shard=false`, or leave out `rank_share`."
        )


def widths_of_teachers(teachers: Mapping[str, Teacher]) -> dict[str, TeacherWidths]:
    """Return the widths of all teachers, which the first rank has; all ranks take part."""
    return on_first_rank(
        lambda: {name: TeacherWidths(each.summary_dim, each.feature_dim) for name, each in teachers.items()}
    )


def check_image_sizes(recipe: Recipe, teachers: Mapping[str, Teacher]) -> None:
    """Raise a RecipeError if a teacher cannot take a size of images that the recipe shows it, perhaps days later."""
    is_online = recipe.views.teachers == "online"
    for partition in recipe.partitions:
        path = f"partitions.{partition.name}.sizes_px" if is_online else "data.image_size_px"
        for name in [name for name in partition.teachers or teachers if name in teachers]:
            teacher, stride = teachers[name], teachers[name].grid_stride
            for size in partition.sizes_px if is_online else [recipe.data.image_size_px]:
                _check_size(teacher, size, size, path)
                for rows, cols in extreme_grids(recipe, partition, size, stride) if is_online else ():
                    _check_size(teacher, rows * stride, cols * stride, path)


def _check_own_networks(recipe: Recipe, teachers: Mapping[str, Teacher]) -> None:
    """Refuse teachers that share a network, which runs once for all of them, where they see different images."""
    for partition in recipe.partitions if recipe.views.teachers == "online" else ():
        seen = {name: each for name, each in teachers.items() if name in (partition.teachers or teachers)}
        shared = [names for names in by_network(seen) if len(names) > 1]
        if shared and partition.teachers_per_image is not None:
            raise RecipeError(
                f"`partitions.{partition.name}.teachers_per_image` must be null for teachers of one network, "
                f"{' and '.join(shared[0])}, got {partition.teachers_per_image}."
            )


def _check_size(teacher: Teacher, height: int, width: int, path: str) -> None:
    try:
        teacher.check_size(height, width)
    except ValueError as error:
        raise RecipeError(f"`{path}`: {error}") from error


def open_targets(
    recipe: Recipe,
    accelerator: Accelerator,
    images: Images | PartitionStreams,
    teachers: dict[str, Teacher],
    stop_request: StopRequest,
) -> TargetSource:
    """Return the source of a run's examples; teachers' features are cached first where the recipe says so.

    Args:
        recipe: The recipe.
        accelerator: All ranks must take part.
        images: By number, or streams.
        teachers: By name.
        stop_request: Its deadline ends the writing of a cache; a signal does so at once, since what is whole is kept.

    Raises:
        RecipeError: If a cache is of other contents, or a window does not fit its images.
        OutOfTime: If the time is over while a cache is written; what is there of it stays.
    """
    patch_size = student_patch_size(recipe)
    if recipe.views.teachers == "online":
        names = teachers_of_rank(recipe, accelerator.process_index, accelerator.num_processes)
        own = {name: teachers[name] for name in names}  # the first rank lets go of the others
        return OnlineTargets(recipe, patch_size, images, own, accelerator.device)
    assert not isinstance(images, PartitionStreams)  # the recipe refuses streams with cached teachers
    contents = _cache_contents(recipe, images, teachers)
    folder = contents.default_folder() if recipe.views.cache_dir is None else Path(recipe.views.cache_dir)
    with ends_on_all_ranks(accelerator):
        write_feature_cache(
            folder,
            contents,
            images,
            TeacherOutputs(teachers, contents.patches_per_side, accelerator.device),
            num_workers=recipe.data.num_workers,
            rank=accelerator.process_index,
            num_ranks=accelerator.num_processes,
            should_stop=lambda: stop_request.is_set,
        )
    return CachedTargets(recipe, patch_size, FeatureCache(folder, contents), accelerator.device)


@contextlib.contextmanager
def ends_on_all_ranks(accelerator: Accelerator) -> Iterator[None]:
    """Wait for all ranks; where the time of one was over all end.

    One that is done already would wait for ever for another whose time is over: that ends with a status of 0.
    """
    stopped = None
    try:
        yield
    except Interrupted as error:
        stopped = error
    wait_for_ranks()
    (is_stopped,) = any_rank([stopped is not None], accelerator.device)
    if is_stopped:
        raise OutOfTime(str(stopped or "Another process was stopped. The same command goes on.")) from stopped


def _cache_contents(recipe: Recipe, images: Images, teachers: dict[str, Teacher]) -> CacheContents:
    """Return what a cache of this run is made from, as the main process sees it: times of files may differ."""
    return on_first_rank(lambda: CacheContents.of(recipe, student_patch_size(recipe), images, teachers))
