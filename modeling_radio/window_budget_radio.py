"""The choice of a ViTDet window for a budget of time or memory on the model's own device.

Windowed attention itself stands in `layers_radio.py`.
"""

import math
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .checks_radio import COUNT, check_multiple, number, optional
from .inputs_radio import WINDOW_SIZES, WindowChoice, choose_without_budget
from .layers_radio import AttentionLayout, RadioVisionTransformer, Segments


# Our choice: enough runs for a stable minimum, few enough to take a second or two.
CALIBRATION_RUNS = 3
_CALIBRATED = ((1, 64), (1, 256), (1, 1024), (1, 2304), (36, 64))  # segments and the tokens of each


class WindowBudget:
    """Predicts what windows cost a model, and chooses one; `RadioPreTrainedModel.choose_window_size` has the arguments.

    Args:
        model: One of ours; what was measured is kept on it.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config

    def choose(
        self, height: int, width: int, max_latency_ms: float | None, max_memory_gib: float | None, batch_size: int
    ) -> WindowChoice:
        """Return the largest attention that fits a budget."""
        for name, budget in (("max_latency_ms", max_latency_ms), ("max_memory_gib", max_memory_gib)):
            optional(number("(0, inf]")).check(name, budget)
        self._check_size(height, width, batch_size)
        rows, cols = height // self.config.patch_size, width // self.config.patch_size
        if max_latency_ms is None and max_memory_gib is None:
            window = choose_without_budget(self.config, rows, cols)
            return self.model.predict_window_cost(height, width, window, batch_size)
        longest = max(rows, cols) if self.config.has_windowed_blocks else 0
        windows = [None, *(window for window in WINDOW_SIZES if window < longest)]
        choices = [self.model.predict_window_cost(height, width, window, batch_size) for window in windows]
        for choice in choices:
            if choice.latency_ms <= (max_latency_ms or math.inf) and choice.memory_gib <= (max_memory_gib or math.inf):
                return choice
        fastest = min(choices, key=lambda choice: choice.latency_ms)
        warnings.warn(
            f"No window fits `max_latency_ms`={max_latency_ms}, `max_memory_gib`={max_memory_gib} at "
            f"{height} x {width} pixels; the fastest is {fastest}.",
            stacklevel=3,
        )
        return fastest

    def predict(self, height: int, width: int, window_size: int | None, batch_size: int = 1) -> WindowChoice:
        """Return what a window costs, `None` being global attention."""
        self._check_size(height, width, batch_size)
        optional(COUNT).check("window_size", window_size)
        rows, cols = height // self.config.patch_size, width // self.config.patch_size
        layout = AttentionLayout.for_grid(rows, cols, self.config.num_prefix_tokens, window_size, torch.device("cpu"))
        transformer: RadioVisionTransformer = self.model.radio_model.model
        windowed = layout.global_segments if layout.window_order is None else layout.window_segments
        per_block = [layout.global_segments if is_global else windowed for is_global in transformer.is_global]
        sizes = torch.stack([_sizes(segments, batch_size) for segments in per_block])
        weights = sum(tensor.nbytes for tensor in (*transformer.parameters(), *transformer.buffers()))
        config, (_, tokens, pairs) = self.config, _sizes(layout.global_segments, batch_size).long().tolist()
        # A block holds its input and both sides of the MLP's activation, or queries, keys, values and the mixed values,
        # in eager attention also two copies of the scores.
        mlp, attention = 2 * tokens * (config.hidden_size + config.intermediate_size), 6 * tokens * config.hidden_size
        scores = 2 * pairs * config.num_attention_heads if config._attn_implementation == "eager" else 0
        activations = max(mlp, attention + scores) * _like(transformer).element_size()
        return WindowChoice(window_size, (sizes @ self._block_cost()).sum().item(), (weights + activations) / 2**30)

    def _check_size(self, height: int, width: int, batch_size: int) -> None:
        for name, value in (("height", height), ("width", width), ("batch_size", batch_size)):
            COUNT.check(name, value)
        if self.config.is_foreign:
            raise ValueError(
                "Windows of E-RADIO are not chosen for a budget, and networks of libraries have none. Call it with "
                "`window_size='auto'`."
            )
        check_multiple("`height` and `width`", height, width, self.config.resolution_step, self.config.largest_side)
        if self.config.num_mergings:
            raise ValueError(
                "`downscale_levels` must be None for a choice of windows, got "
                f"{self.config.downscale_levels}. Merged tokens have no windows; choose `num_tokens` instead."
            )

    def _block_cost(self) -> Tensor:
        model = self.model
        key = (str(model.device), model.dtype, str(self.config._attn_implementation))
        costs = model._block_costs or {}  # read once: another thread may put another one in its place
        if key not in costs:
            model._block_costs = costs = {**costs, key: calibrate(model.radio_model.model)}
        return costs[key]


def _like(transformer: RadioVisionTransformer) -> Tensor:
    """Return a weight of the first block that is never quantized, the one of a norm."""
    norms = (module for module in transformer.blocks[0].modules() if isinstance(module, nn.LayerNorm | nn.RMSNorm))
    return next(norms).weight


@torch.no_grad()
def calibrate(transformer: RadioVisionTransformer) -> Tensor:
    """Time one block on its own device over some segments; return what `fit_costs` makes of the fastest runs."""
    block, like = transformer.blocks[0], _like(transformer)
    synchronize = (lambda: None) if like.device.type == "cpu" else torch.accelerator.synchronize
    was_training, times = block.training, []
    block.eval()
    for count, length in _CALIBRATED:
        tokens = torch.randn(1, count * length, transformer.embed_dim).to(like)
        seconds = []
        for _ in range(1 + CALIBRATION_RUNS):  # the first warms up
            synchronize()
            start = time.perf_counter()
            block(tokens, ((count, length),))
            synchronize()
            seconds.append(time.perf_counter() - start)
        times.append(1000 * min(seconds[1:]))
    block.train(was_training)
    return fit_costs(torch.stack([_sizes((segments,)) for segments in _CALIBRATED]), torch.tensor(times).double())


def fit_costs(sizes: Tensor, times: Tensor) -> Tensor:
    """Return milliseconds of a call, of a token and of a pair, by least squares of relative errors, none below 0.

    Args:
        sizes: Calls, tokens, and pairs of tokens that attend to each other, of each measurement, `(measurements, 3)`.
        times: Milliseconds of each, `(measurements,)`.
    """
    active = list(range(sizes.shape[1]))
    while True:  # without the most negative one, until there is none
        columns = sizes[:, active] / times[:, None]
        fitted = torch.linalg.lstsq(columns, torch.ones_like(times)[:, None]).solution[:, 0]
        if (fitted >= 0).all():
            return fitted.new_zeros(sizes.shape[1]).index_copy(0, torch.tensor(active), fitted)
        del active[int(fitted.argmin())]


def _sizes(segments: Segments, batch_size: int = 1) -> Tensor:
    """Return calls, tokens and pairs, as in `fit_costs`, of one block over the segments of each image."""
    tokens, pairs = (batch_size * sum(count * length**power for count, length in segments) for power in (1, 2))
    return torch.tensor([1, tokens, pairs], dtype=torch.float64)
