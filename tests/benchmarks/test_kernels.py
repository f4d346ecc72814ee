"""Counting of kernel starts, on operators whose starts are known, and on networks that are narrow but whole."""

import torch
from torch import nn

from benchmarks.kernels import BACKWARD, LOSSES, OTHER, StartCounter, narrow
from modeling_radio.training.teachers.published.architectures import published_config


def test_operators_are_counted_by_part_without_views_and_new_memory() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    with StartCounter() as counter:
        product = torch.empty(4, 2).fill_(1.0) @ weight  # 2 starts
        with counter.counts_as(LOSSES):
            loss = product.view(-1).unsqueeze(0).transpose(0, 1).square().sum()  # 2
        loss.backward()
        torch._foreach_mul_([weight.detach(), weight.detach()], 2.0)  # 1
    assert counter.starts[LOSSES] == 2
    assert counter.starts[OTHER] >= 3
    assert counter.starts[BACKWARD] > 0
    assert counter.starts.total() == sum(counter.starts[part] for part in (LOSSES, OTHER, BACKWARD))


def test_narrow_networks_keep_their_blocks_and_heads() -> None:
    for source in ("nvidia/C-RADIOv4-H", "facebook/sam3", "google/siglip2-giant-opt-patch16-384"):
        full, thin = published_config(source), narrow(source)
        assert thin.hidden_size < full.hidden_size
        assert (thin.num_hidden_layers, thin.num_attention_heads) == (full.num_hidden_layers, full.num_attention_heads)
        assert thin.patch_size == full.patch_size
