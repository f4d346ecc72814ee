"""Chooses a ViTDet window for an image size and a budget, from a cost model calibrated on the model's own device.

How a grid is cut into ViTDet windows of that size is in `layout_radio.py`.
"""

import math
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .config_checks_radio import COUNT, WINDOW, number, optional
from .configuration_radio import RadioConfig
from .encoder_radio import RadioBlock, RadioVisionTransformer
from .layout_radio import AttentionLayout, Segments
from .resolution_radio import Resolution, check_resolution


WINDOW_SIZES = tuple(range(32, 5, -1))
"""Window sides in tokens that the released models were trained for, largest first (C-RADIOv4 3.2)."""

# Our choices for `window_size="auto"` without a budget. Below a fifth of the pass attention is not worth the loss of
# accuracy; windows of a quarter of the tokens or less remove three quarters of the attention in windowed blocks.
SMALL_ATTENTION_SHARE = 0.2
MAX_WINDOW_SHARE = 0.25

# Our choice: enough runs for a stable minimum, few enough to take a second or two.
CALIBRATION_RUNS = 3
_CALIBRATION_LENGTHS = (64, 256, 1024, 2304)


class WindowChoice(NamedTuple):
    """A window and what the cost model predicts for the backbone with it; accepted as `window_size` by the models.

    Attributes:
        window_size: Side in tokens, or `None` for global attention.
        latency_ms: Predicted time of one forward pass in milliseconds.
        memory_gib: Predicted memory of weights and activations of one forward pass without gradients, in GiB.
    """

    window_size: int | None
    latency_ms: float
    memory_gib: float


WindowSize = int | str | WindowChoice | None
"""`window_size` of the models' `forward`; see `RadioModel.forward`."""


@dataclass(frozen=True)
class BlockCost:
    """Time of one transformer block, `fixed + per_token * tokens + per_pair * pairs + per_segment * segments`.

    Attributes:
        fixed: Milliseconds of a call.
        per_token: Milliseconds per token: linear layers, norms, activations.
        per_pair: Milliseconds per pair of tokens that attend to each other.
        per_segment: Milliseconds per segment of the attention.
    """

    fixed: float
    per_token: float
    per_pair: float
    per_segment: float

    def milliseconds(self, segments: Segments, batch_size: int) -> float:
        """Return the predicted time of a block over `segments`."""
        tokens, pairs, count = _size(segments, batch_size)
        return self.fixed + self.per_token * tokens + self.per_pair * pairs + self.per_segment * count


def check_window_size(window_size: int | str) -> None:
    """Raise a `ValueError` unless a window is a number of tokens, "auto" or "global"."""
    if WINDOW.holds(window_size):
        return
    raise ValueError(
        f"`window_size` must be at least 1 (tokens), 'auto', 'global' or None, got {window_size!r}. The models were "
        f"trained for {WINDOW_SIZES[-1]} to {WINDOW_SIZES[0]}."
    )


def resolve_window(config: RadioConfig, window_size: WindowSize, grid: Resolution) -> int | None:
    """Return the window in tokens, or `None` for global attention.

    Args:
        config: Names the default window.
        window_size: As in `RadioModel.forward`.
        grid: Rows and columns of patches, which decide what "auto" is.

    Raises:
        ValueError: If the window is no number of tokens, "auto", "global", choice or `None`.
    """
    if isinstance(window_size, WindowChoice):
        window_size = "global" if window_size.window_size is None else window_size.window_size
    if config.num_mergings and isinstance(window_size, int):
        raise ValueError(
            f"`window_size` must be None or 'global' with `downscale_levels`, got {window_size}. Merged tokens have no "
            "windows; fewer `num_tokens` and smaller images make RADIO1D faster."
        )
    if window_size is None:
        window = config.vitdet_window_size
    else:
        check_window_size(window_size)
        if window_size == "auto":
            return choose_without_budget(config, *grid)
        window = None if window_size == "global" else int(window_size)
    if window is None or config.has_windowed_blocks:
        return window
    _warn_of_no_effect(config, window)
    return None


def _warn_of_no_effect(config: RadioConfig, window: int) -> None:
    """Say that a window changes nothing; no error, as code for NVIDIA's models gives one to networks of any depth."""
    if not torch.compiler.is_compiling():
        warnings.warn(
            f"`window_size` has no effect, got {window}: all {config.num_hidden_layers} blocks attend globally. Open "
            "the model with a `vitdet_num_global` of half the blocks or fewer to have windowed ones.",
            stacklevel=4,
        )


def choose_without_budget(config: RadioConfig, rows: int, cols: int) -> int | None:
    """Return the window of `window_size="auto"`: global while attention is cheap, else the largest that helps.

    Global too where no block would have windows.

    Counts multiply-accumulates: `12 * hidden` per token and channel for a block's linear layers (with an MLP of four
    times the width), `2 * length` for its attention.
    """
    tokens = rows * cols + config.num_prefix_tokens
    linear = 4 * config.hidden_size + 2 * config.intermediate_size
    if not config.has_windowed_blocks or 2 * tokens / (linear + 2 * tokens) <= SMALL_ATTENTION_SHARE:
        return None
    return next((w for w in WINDOW_SIZES if w * w <= MAX_WINDOW_SHARE * rows * cols), WINDOW_SIZES[-1])


def choose_within(
    candidates: Iterable[WindowChoice], max_latency_ms: float | None, max_memory_gib: float | None
) -> WindowChoice:
    """Return the first candidate within the budget, or the fastest one if none is."""
    candidates = list(candidates)
    for choice in candidates:
        fits_time = max_latency_ms is None or choice.latency_ms <= max_latency_ms
        fits_memory = max_memory_gib is None or choice.memory_gib <= max_memory_gib
        if fits_time and fits_memory:
            return choice
    return min(candidates, key=lambda choice: choice.latency_ms)


def predict(
    transformer: RadioVisionTransformer, cost: BlockCost, layout: AttentionLayout, batch_size: int
) -> tuple[float, float]:
    """Return the predicted milliseconds and GiB of one forward pass through the transformer."""
    latency = 0.0
    for is_global in transformer.is_global:
        whole = is_global or layout.window_order is None
        latency += cost.milliseconds(layout.global_segments if whole else layout.window_segments, batch_size)
    positions = transformer.patch_generator.pos_embed  # of the width and type of tokens, and never quantized
    tensors = [*transformer.parameters(), *transformer.buffers()]  # prepacked weights are no parameters
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return latency, (weights + _activation_bytes(transformer, positions, layout, batch_size)) / 2**30


@torch.no_grad()
def calibrate(transformer: RadioVisionTransformer) -> BlockCost:
    """Time one block on its own device over some lengths and windows, and fit `BlockCost` to the minima."""
    block: RadioBlock = transformer.blocks[0]  # pyrefly: ignore[bad-assignment]
    positions = transformer.patch_generator.pos_embed  # of the width and type of tokens, and never quantized
    layouts: list[Segments] = [((1, length),) for length in _CALIBRATION_LENGTHS]
    layouts += [((2304 // 64, 64),), ((2304 // 256, 256),), ((16, 16),)]
    was_training = block.training
    block.eval()
    times, sizes = [], []
    for segments in layouts:
        tokens, pairs, count = _size(segments, batch_size=1)
        hidden_states = torch.randn(1, tokens, positions.shape[-1], device=positions.device, dtype=positions.dtype)
        times.append(_minimum_milliseconds(block, hidden_states, segments))
        sizes.append([1.0, tokens, pairs, count])
    block.train(was_training)
    return BlockCost(*_fit_nonnegative(torch.tensor(sizes, dtype=torch.float64), torch.tensor(times).double()))


class WindowBudget:
    """What lets a model choose windows by a budget: methods of `RadioModel` and the task models."""

    config: RadioConfig
    radio_model: Any
    device: torch.device
    dtype: torch.dtype
    _block_costs: dict[tuple[str, torch.dtype, str], BlockCost] | None = None

    def choose_window_size(
        self,
        height: int,
        width: int,
        max_latency_ms: float | None = None,
        max_memory_gib: float | None = None,
        batch_size: int = 1,
    ) -> WindowChoice:
        """Return the largest attention that fits a budget on the device that the model is on, and its predicted cost.

        Global attention is preferred, then windows from 32 tokens down to 6. The first call on a device times one
        block for a second or two; the measurement is kept for this device, dtype and attention implementation. The
        prediction covers the backbone without adaptors.

        Args:
            height: Image height in pixels, a multiple of the patch size.
            width: Image width in pixels.
            max_latency_ms: Budget for one forward pass in milliseconds.
            max_memory_gib: Budget for weights and activations without gradients, in GiB.
            batch_size: Images per call.

        Returns:
            The choice; pass it as `window_size`. Without a budget it is that of `window_size="auto"`. If nothing fits
            the budget, the fastest choice, with a warning.

        Raises:
            ValueError: If the size is no multiple of the patch size or too large.
        """
        for name, budget in (("max_latency_ms", max_latency_ms), ("max_memory_gib", max_memory_gib)):
            optional(number("(0, inf]")).check(name, budget)
        self._check_size(height, width, batch_size)
        rows, cols = height // self.config.patch_size, width // self.config.patch_size
        if max_latency_ms is None and max_memory_gib is None:
            window = choose_without_budget(self.config, rows, cols)
            return self.predict_window_cost(height, width, window, batch_size)
        can_act = self.config.has_windowed_blocks
        windows = [None, *(window for window in WINDOW_SIZES if can_act and window < max(rows, cols))]
        candidates = [self.predict_window_cost(height, width, window, batch_size) for window in windows]
        choice = choose_within(candidates, max_latency_ms, max_memory_gib)
        if choice.latency_ms > (max_latency_ms or math.inf) or choice.memory_gib > (max_memory_gib or math.inf):
            warnings.warn(
                f"No window fits `max_latency_ms`={max_latency_ms}, `max_memory_gib`={max_memory_gib} at "
                f"{height} x {width} pixels; the fastest is {choice}.",
                stacklevel=2,
            )
        return choice

    def predict_window_cost(
        self, height: int, width: int, window_size: int | None, batch_size: int = 1
    ) -> WindowChoice:
        """Return what `choose_window_size` predicts for one window, `None` being global attention.

        Raises:
            ValueError: If the size is no multiple of the patch size or too large.
        """
        self._check_size(height, width, batch_size)
        optional(COUNT).check("window_size", window_size)
        rows, cols = height // self.config.patch_size, width // self.config.patch_size
        layout = AttentionLayout.for_grid(rows, cols, self.config.num_prefix_tokens, window_size, torch.device("cpu"))
        return WindowChoice(window_size, *predict(self.radio_model.model, self._block_cost(), layout, batch_size))

    def _check_size(self, height: int, width: int, batch_size: int) -> None:
        for name, value in (("height", height), ("width", width), ("batch_size", batch_size)):
            COUNT.check(name, value)
        if self.config.eradio is not None:
            raise ValueError("Windows of E-RADIO are not chosen for a budget. Call it with `window_size='auto'`.")
        check_resolution(self.config, height, width)
        if self.config.num_mergings:
            raise ValueError(
                "`downscale_levels` must be None for a choice of windows, got "
                f"{self.config.downscale_levels}. Merged tokens have no windows; choose `num_tokens` instead."
            )

    def _block_cost(self) -> BlockCost:
        key = (str(self.device), self.dtype, str(self.config._attn_implementation))
        costs = self._block_costs or {}  # read once: another thread may put another one in its place
        if key not in costs:
            self._block_costs = costs = {**costs, key: calibrate(self.radio_model.model)}
        return costs[key]


def _size(segments: Segments, batch_size: int) -> tuple[int, int, int]:
    """Return tokens, attending pairs and number of segments."""
    tokens = sum(count * length for count, length in segments)
    pairs = sum(count * length * length for count, length in segments)
    return batch_size * tokens, batch_size * pairs, batch_size * sum(count for count, _ in segments)


def _minimum_milliseconds(block: RadioBlock, hidden_states: Tensor, segments: Segments) -> float:
    block(hidden_states, segments)  # warm up
    best = float("inf")
    for _ in range(CALIBRATION_RUNS):
        _synchronize(hidden_states.device)
        start = time.perf_counter()
        block(hidden_states, segments)
        _synchronize(hidden_states.device)
        best = min(best, 1000 * (time.perf_counter() - start))
    return best


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _fit_nonnegative(sizes: Tensor, times: Tensor) -> list[float]:
    """Least squares of relative errors with coefficients of at least 0: drop the most negative one and fit again."""
    weighted, target = sizes / times[:, None], torch.ones_like(times)
    active = list(range(sizes.shape[1]))
    while True:
        columns = weighted[:, active]
        scale = columns.norm(dim=0)
        solution = torch.linalg.lstsq(columns / scale, target[:, None]).solution[:, 0] / scale
        if (solution >= 0).all():
            fitted = dict(zip(active, solution.tolist(), strict=True))
            return [fitted.get(index, 0.0) for index in range(sizes.shape[1])]
        del active[int(solution.argmin())]


def _activation_bytes(
    transformer: RadioVisionTransformer, positions: Tensor, layout: AttentionLayout, batch_size: int
) -> int:
    """Return the peak activation bytes of a pass without gradients.

    A block holds its input and, at the widest point, both sides of the MLP's activation or queries, keys, values and
    the mixed values; eager attention also two copies of the scores.
    """
    block: RadioBlock = transformer.blocks[0]  # pyrefly: ignore[bad-assignment]
    config = block.attn.config
    tokens, pairs, _ = _size(layout.global_segments, batch_size)
    width = config.hidden_size
    mlp = 2 * width + 2 * config.intermediate_size
    attention = 6 * width
    values = tokens * max(mlp, attention)
    if config._attn_implementation == "eager":
        values = max(values, tokens * attention + 2 * pairs * config.num_attention_heads)
    return values * positions.element_size()
