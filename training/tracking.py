"""What a person sees of a run: the progress bar, and the records of Accelerate's trackers."""

import time
from collections.abc import Callable, Mapping

from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from training.recipe import LoggingRecipe


class ProgressLog:
    """Shows images/s, the mean loss and the time left, and hands records to the trackers every few steps.

    Args:
        accelerator: Holds the trackers; only the main process shows and records.
        recipe: What to show, how often.
        first_step: Where the run (re)starts.
        num_steps: Where it ends.
        images_per_step: Over all ranks.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        recipe: LoggingRecipe,
        first_step: int,
        num_steps: int,
        images_per_step: int,
    ) -> None:
        self.accelerator, self.recipe, self.images_per_step = accelerator, recipe, images_per_step
        is_shown = recipe.use_progress_bar and accelerator.is_main_process
        self.bar = tqdm(
            total=num_steps,
            initial=first_step,
            desc="distil",
            unit="step",
            disable=not is_shown,
            dynamic_ncols=True,
        )
        self._start_interval()

    def record(self, step: int, values: Mapping[str, Tensor], settings: Callable[[], Mapping[str, float]]) -> None:
        """Take one step's results.

        Args:
            step: Steps done so far.
            values: Scalars of this rank that are averaged over the interval and the ranks, `"loss"` among
                them.
            settings: Asked at the end of an interval for numbers that are recorded as they are.
        """
        self.bar.update(1)
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
        self._num_steps += 1
        if self._num_steps == self.recipe.every_steps:
            self._write(step, settings())
            self._start_interval()

    def close(self) -> None:
        """End the progress bar."""
        self.bar.close()

    def _start_interval(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._num_steps = 0
        self._started = time.perf_counter()

    def _write(self, step: int, settings: Mapping[str, float]) -> None:
        means = {name: value / self._num_steps for name, value in self._sums.items()}
        means = {name: float(value) for name, value in self.accelerator.reduce(means, reduction="mean").items()}
        rate = self._num_steps * self.images_per_step / (time.perf_counter() - self._started)
        self.bar.set_postfix_str(f"loss {means['loss']:.3f}, {rate:.0f} images/s", refresh=False)
        self.accelerator.log({**means, **settings, "images_per_second": rate}, step=step)
