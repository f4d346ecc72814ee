"""What spares memory and time on a CPU changes nothing that anybody sees."""

import copy

import pytest
import torch
from torch import Tensor

from modeling_radio import RadioConfig, encoder_radio
from modeling_radio.encoder_radio import RadioAttention, RadioMLP


CONFIG = RadioConfig.from_preset("radio-test")


@pytest.fixture
def mlp() -> RadioMLP:
    torch.manual_seed(0)
    return RadioMLP(CONFIG, 4 * CONFIG.hidden_size).eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(2, 5, CONFIG.hidden_size, generator=torch.Generator().manual_seed(1))


def overwritten(mlp: RadioMLP, tokens: Tensor) -> Tensor | None:
    """Return what the MLP answers if GELU wrote where the first layer had written, else nothing."""
    places = []
    handle = mlp.fc2.register_forward_pre_hook(lambda module, inputs: places.append(inputs[0]))
    first = mlp.fc1.forward
    mlp.fc1.forward = lambda values: places.append(first(values)) or places[-1]  # type: ignore[method-assign]
    answer = mlp(tokens)
    handle.remove()
    del mlp.fc1.forward
    wide, activated = places
    return answer if wide.data_ptr() == activated.data_ptr() else None


def test_gelu_overwrites_what_nobody_else_reads(mlp: RadioMLP, tokens: Tensor) -> None:
    expected = mlp(tokens)
    assert expected.requires_grad
    assert overwritten(mlp, tokens) is None  # gradients need it
    with torch.no_grad():
        answer = overwritten(mlp, tokens)
    assert answer is not None
    assert torch.equal(answer, expected)


def test_gelu_leaves_what_a_hook_reads(mlp: RadioMLP, tokens: Tensor) -> None:
    with torch.no_grad():
        wide = mlp.fc1(tokens)
        for module in (mlp.fc1, mlp.act):
            seen: list[Tensor] = []
            keep = seen.append
            handle = module.register_forward_hook(lambda module, inputs, output, keep=keep: keep(output))
            mlp(tokens)
            handle.remove()
            assert torch.equal(seen[0], wide if module is mlp.fc1 else mlp.act(wide))
        seen = []
        handle = mlp.act.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        mlp(tokens)
        handle.remove()
        assert torch.equal(seen[0], wide)
        assert overwritten(mlp, tokens) is not None


def test_other_activations_are_not_replaced(tokens: Tensor) -> None:
    config = copy.deepcopy(CONFIG)
    config.hidden_act = "gelu_pytorch_tanh"
    mlp = RadioMLP(config, 64)
    with torch.no_grad():
        assert torch.equal(mlp(tokens), mlp.fc2(torch.nn.functional.gelu(mlp.fc1(tokens), approximate="tanh")))


@pytest.mark.parametrize("segments", [((1, 12),), ((3, 4),), ((2, 4), (2, 2))])
def test_long_segments_are_gathered_by_head_and_stay_equal(
    segments: encoder_radio.Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    attention = RadioAttention(CONFIG, CONFIG.num_attention_heads, qkv_bias=True).eval()
    tokens, gathered = torch.randn(2, 12, CONFIG.hidden_size), []
    attend = encoder_radio.ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", None)

    def watched(module: RadioAttention, query: Tensor, *others: Tensor | None, **options: float) -> tuple[Tensor, None]:
        gathered.append(query.is_contiguous())
        return attend(module, query, *others, **options)

    monkeypatch.setattr(attention.config, "_attn_implementation", "sdpa")
    monkeypatch.setattr(encoder_radio.ALL_ATTENTION_FUNCTIONS, "get_interface", lambda name, default: watched)
    expected, _ = attention(tokens, segments)
    monkeypatch.setattr(encoder_radio, "LONG_SEGMENT", 4)
    answer, _ = attention(tokens, segments)
    assert gathered == [False] * len(segments) + [length >= 4 for _, length in segments]
    torch.testing.assert_close(answer, expected)
