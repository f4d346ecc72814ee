"""What is measured on logged steps only, because it costs time: where the time goes, and how large features grow."""

import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from modeling_radio import RadioModel
from training.evaluation.metrics.network_statistics import block_norms


PARTS = ("data", "teachers", "student")
NUM_NORM_IMAGES = 8
"""Images whose features are measured, so that it takes little of a step's time. Our choice."""


class StepWatch:
    """Divides the time of single steps among data, teachers and student, and keeps some of their images.

    Kernels run on while Python goes ahead, so a watched step waits for all devices wherever one part follows another.
    Other steps cost nothing.

    Args:
        teachers: By name. They tell when they start and end; the rest of the wait for an example is the data's.
        device: The student's device.

    Attributes:
        images: Images of the last watched step, up to `NUM_NORM_IMAGES`, `(num_images, 3, height, width)` in [0, 1].
    """

    def __init__(self, teachers: Mapping[str, nn.Module], device: torch.device) -> None:
        self.images: Tensor | None = None
        self._part: str | None = None
        self._since = 0.0
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._devices = {device}
        for teacher in teachers.values():
            self._devices.update(tensor.device for tensor in teacher.buffers())
            teacher.register_forward_pre_hook(lambda *_: self.enter("teachers"))
            teacher.register_forward_hook(lambda *_: self.enter("data"))

    def begin_step(self) -> None:
        """Watch the step that begins now."""
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self.images = None
        self._synchronize()
        self._part, self._since = "student", time.perf_counter()

    def enter(self, part: str) -> None:
        """Note that one of `PARTS` begins and the one before ends; nothing if the step is not watched."""
        if self._part is None:
            return
        self._synchronize()
        now = time.perf_counter()
        self._seconds[self._part] += now - self._since
        self._part, self._since = part, now

    def see(self, pixel_values: Tensor) -> None:
        """Keep the first images of the step; nothing if the step is not watched."""
        if self._part is not None and self.images is None:
            self.images = pixel_values[:NUM_NORM_IMAGES]

    def end_step(self) -> None:
        """End the step, watched or not."""
        self.enter("student")
        self._part = None

    def shares(self) -> dict[str, float]:
        """Return `time_share/PART` of the last watched step; they sum to 1.

        "student" is all that is neither data nor teachers: its passes, losses, optimizer, average and statistics.
        """
        total = sum(self._seconds.values())
        return {f"time_share/{part}": seconds / total for part, seconds in self._seconds.items()}

    def _synchronize(self) -> None:
        for device in self._devices:
            if device.type not in ("cpu", "meta"):
                torch.accelerator.synchronize(device)


def measure_block_norms(network: RadioModel, pixel_values: Tensor) -> dict[str, float]:
    """Measure how long the patch tokens are after every block; arguments are those of `block_norms`.

    Returns:
        `block_norm_mean/BLOCK` and `block_norm_max/BLOCK`: norms averaged over all patches of all images, and the
        largest. BLOCK counts from 00.
    """
    norms = block_norms(network, pixel_values)
    extremes = torch.stack([torch.stack([norm.mean(), norm.max()]) for norm in norms]).tolist()
    named: dict[str, float] = {}
    for index, (mean, largest) in enumerate(extremes):
        named |= {f"block_norm_mean/{index:02}": mean, f"block_norm_max/{index:02}": largest}
    return named
