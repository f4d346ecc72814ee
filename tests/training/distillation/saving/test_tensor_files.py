from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from two_forks import run_two_forks

from training.distillation.checkpoints import CheckpointError, SavedTensors, writers_of


WHOLE = {
    "matrix": torch.arange(10.0).view(5, 2),
    "row": torch.arange(3.0).view(1, 3),  # the second of two ranks has none of it
    "bias": torch.arange(4).to(torch.bfloat16),
    "count": torch.tensor(7),
    "plain": torch.arange(3.0).double(),
}
SHARDED = ("matrix", "row", "bias")


def write(folder: Path, tensors: dict[str, Tensor], *, is_main_process: bool = True) -> None:
    folder.mkdir(exist_ok=True)
    for name, writer in writers_of("student", tensors, is_main_process=is_main_process).items():
        writer(folder / name)


def shard(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    mesh = init_device_mesh("cpu", (2,))
    return {
        name: distribute_tensor(tensor, mesh, [Shard(0)]) if name in SHARDED else tensor
        for name, tensor in tensors.items()
    }


def check_whole(folder: Path) -> None:
    saved = SavedTensors(folder, "student")
    assert saved.shapes == {name: tuple(tensor.shape) for name, tensor in WHOLE.items()}
    for name, tensor in WHOLE.items():
        for like in (None, tensor):
            read = saved.read(name, like)
            assert read.dtype == tensor.dtype
            assert torch.equal(read, tensor)


def test_whole_tensors_are_one_file_which_one_rank_writes(tmp_path: Path) -> None:
    write(tmp_path, WHOLE)
    write(tmp_path, {"other": torch.zeros(1)}, is_main_process=False)
    assert [path.name for path in tmp_path.iterdir()] == ["student.safetensors"]
    check_whole(tmp_path)


def test_that_there_are_none_is_written_too(tmp_path: Path) -> None:
    write(tmp_path, {}, is_main_process=False)
    assert not list(tmp_path.iterdir())
    write(tmp_path, {})
    assert SavedTensors(tmp_path, "student").shapes == {}


def test_later_changes_are_not_written(tmp_path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in WHOLE.items()}
    writers = writers_of("student", tensors, is_main_process=True)
    for tensor in tensors.values():
        tensor.fill_(0)
    for name, writer in writers.items():
        writer(tmp_path / name)
    check_whole(tmp_path)


def test_parts_of_two_ranks_are_read_by_one_and_by_two(tmp_path: Path) -> None:
    folder = tmp_path / "saved"

    def check() -> None:
        sharded = shard(WHOLE)
        with CommDebugMode() as exchanges:
            write(folder, sharded, is_main_process=distributed.get_rank() == 0)
        assert exchanges.get_total_counts() == 0
        distributed.barrier()
        saved = SavedTensors(folder, "student")
        for name, tensor in sharded.items():
            read = saved.read(name, tensor)
            assert read.shape == tensor.shape
            if isinstance(tensor, DTensor):
                assert isinstance(read, DTensor)
                assert torch.equal(read.to_local(), tensor.to_local())

    run_two_forks(check, tmp_path)
    assert [path.name for path in sorted(folder.iterdir())] == [
        "student-00001-of-00002.safetensors",
        "student-00002-of-00002.safetensors",
    ]
    check_whole(folder)


def test_what_one_rank_wrote_is_read_by_two(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    write(folder, WHOLE)

    def check() -> None:
        saved = SavedTensors(folder, "student")
        for name, tensor in shard(WHOLE).items():
            read = saved.read(name, tensor)
            assert torch.equal(read.full_tensor() if isinstance(read, DTensor) else read, WHOLE[name])

    run_two_forks(check, tmp_path)


def test_shards_that_are_copied_too_are_written_once(tmp_path: Path) -> None:
    """On a mesh of two by one: each rank has all, as where groups of ranks have a copy each."""
    folder = tmp_path / "saved"

    def check() -> None:
        mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "shards"))
        tensor = distribute_tensor(WHOLE["matrix"], mesh, [Replicate(), Shard(0)])
        rank = distributed.get_rank()
        assert len(writers_of("student", {"matrix": tensor}, is_main_process=rank == 0)) == (rank == 0)

    run_two_forks(check, tmp_path)
    assert not folder.exists()


def test_no_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"student.safetensors' is missing. Restore it from a copy, or give an"):
        SavedTensors(tmp_path, "student")
