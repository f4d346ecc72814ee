"""PyTorch's attention of unequal lengths: a slow stand-in of its kernel gets what it needs, and where it cannot run."""

import copy

import pytest
import torch
from comparisons import assert_close_by_name
from small_recipes import small_recipe
from torch import Tensor
from torch.nn import functional as F

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.layers_radio import VARLEN_ATTENTION
from modeling_radio.training.recipes.recipe import RecipeError
from modeling_radio.training.student.packing import forward_groups
from modeling_radio.training.student.varlen import check_varlen


varlen = pytest.importorskip("torch.nn.attention.varlen", reason="needs torch 2.10")
CPU = torch.device("cpu")
SHAPES = [(2, 4, 3), (1, 3, 2), (2, 5, 5)]  # images, rows, columns


@pytest.fixture
def calls(monkeypatch):
    """Let the kernel be a loop over segments; return the lengths of the segments of each call."""
    seen: list[list[int]] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, same: Tensor, longest: int, too: int, scale):
        assert starts.dtype == torch.int32
        assert same is starts
        lengths = starts.diff().tolist()
        assert max(lengths) == longest == too
        assert query.shape == key.shape == value.shape == (starts[-1], query.shape[1], query.shape[2])
        seen.append(lengths)
        parts = zip(*(each.transpose(0, 1).split(lengths, dim=1) for each in (query, key, value)), strict=True)
        return torch.cat([F.scaled_dot_product_attention(*part, scale=scale) for part in parts], dim=1).transpose(0, 1)

    monkeypatch.setattr(varlen, "varlen_attn", attend)
    return seen


def tiny() -> RadioModel:
    torch.manual_seed(0)
    return RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=3, vitdet_num_global=1)).train()


def gradients(model: RadioModel, device: torch.device = CPU) -> dict[str, Tensor]:
    """Return the gradients of a pack with ragged windows."""
    generator, size = torch.manual_seed(1), model.patch_size
    images = [torch.rand(count, 3, rows * size, cols * size, generator=generator) for count, rows, cols in SHAPES]
    draws = torch.rand(sum(map(len, images)), model.num_draws, generator=generator).to(device)
    output = forward_groups(model, [each.to(device) for each in images], size, window_size=2, draws=draws)
    torch.cat([each.flatten() for each in output.backbone]).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_a_pack_is_one_call_in_each_block(calls):
    plain = tiny()
    student = copy.deepcopy(plain)
    student.set_attn_implementation(VARLEN_ATTENTION)
    assert_close_by_name(gradients(student), gradients(plain), rtol=1e-4, atol=1e-7)
    prefix = student.config.num_prefix_tokens
    whole = [prefix + rows * cols for images, rows, cols in SHAPES for _ in range(images)]
    windowed = sum(images * (-(-rows // 2)) * (-(-cols // 2)) for images, rows, cols in SHAPES)
    assert [len(each) for each in calls] == [windowed, windowed, len(whole)]
    assert calls[-1] == whole
    calls.clear()
    with torch.no_grad():
        assert torch.equal(
            *(
                model(torch.rand(2, 3, 64, 64, generator=torch.manual_seed(2))).summary
                for model in (student.eval(), plain.eval())
            )
        )
    assert not calls  # segments of one length are a batch


@pytest.mark.parametrize(
    ("device", "precision", "config", "missing"),
    [
        ("cpu", "bf16", {}, "needs a CUDA device; "),
        ("cuda", "no", {}, "needs `mixed_precision` 'bf16'; "),
        ("cuda", "bf16", {"attention_probs_dropout_prob": 0.1}, "needs no `student.config.attention_probs"),
        ("cuda", "bf16", {}, None),
    ],
)
def test_it_is_refused_where_the_kernel_does_not_run(device, precision, config, missing):
    student = {"preset": "radio-test", "attention": VARLEN_ATTENTION, "config": config}
    recipe = small_recipe("t", student=student).replace(mixed_precision=precision)
    if missing is None:
        check_varlen(recipe, torch.device(device))
        return
    with pytest.raises(RecipeError, match=rf"`student\.attention` .*{missing}") as error:
        check_varlen(recipe, torch.device(device))
    assert "\n" not in str(error.value)


@pytest.mark.gpu
def test_the_kernel_of_a_gpu_gives_the_gradients_of_sdpa():
    device = torch.device("cuda")
    plain = tiny().to(device)
    student = copy.deepcopy(plain)
    student.set_attn_implementation(VARLEN_ATTENTION)
    with torch.autocast("cuda", torch.bfloat16):
        assert_close_by_name(gradients(student, device), gradients(plain, device), rtol=0.1, atol=1e-4)
