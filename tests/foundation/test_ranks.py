import pytest
import torch

from foundation.ranks import any_rank, copy_from_first_rank, fsdp_plugin, on_first_rank, sum_over_ranks


def test_a_single_process_keeps_its_own():
    tensor = torch.arange(3.0)
    assert torch.equal(sum_over_ranks(tensor), torch.arange(3.0))
    assert torch.equal(copy_from_first_rank(tensor), torch.arange(3.0))
    assert any_rank(True, tensor.device)
    assert not any_rank(False, tensor.device)
    assert on_first_rank(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        on_first_rank(lambda: 1 / 0)


def test_without_a_launcher_nothing_is_sharded(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert fsdp_plugin() is None


def test_shards_compute_in_full_precision(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    plugin = fsdp_plugin()
    assert plugin is not None
    policy = plugin.mixed_precision_policy
    plugin.set_mixed_precision("bf16")  # as Accelerate does for a run in bfloat16
    assert plugin.mixed_precision_policy is policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (None, None, None)


def test_the_first_version_of_fsdp_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ValueError, match="FSDP version 1 is not supported: set `fsdp_version: 2`"):
        fsdp_plugin()
