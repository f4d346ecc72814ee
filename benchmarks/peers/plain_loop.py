"""A plain distillation loop in PyTorch, written by us after UNIC: what any trainer must do, and nothing else.

    python -m benchmarks.peers.plain_loop FOLDER BATCH_SIZE NUM_STEPS

Per teacher a head on the class token and one on the patches; their loss is a cosine distance plus a smooth L1 distance
to the teacher's features, standardized by running means and deviations (UNIC, https://arxiv.org/abs/2408.05088,
section 3). No moving average, no shifts, no checkpoints. Student and teacher in bfloat16 by autocast, AdamW.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from transformers import Dinov2Config, Dinov2Model
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from benchmarks.peers.stepping import run_steps


SIDE_PX = 224
TEACHER_PATCH = 14
MOMENTUM = 0.99
"""Of running means. Our choice: it does not change the time."""


class Pictures(Dataset[Tensor]):
    """Random crops of the images of a folder, normalized.

    Args:
        folder: With JPEGs.
    """

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.jpg"))
        self.transform = v2.Compose(
            [
                v2.PILToTensor(),
                v2.RandomResizedCrop(SIDE_PX, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Tensor:
        return self.transform(Image.open(self.paths[number]).convert("RGB"))


class RunningStandardizer(nn.Module):
    """Standardizes by the mean and the mean square of all batches so far, each counting less the older it is."""

    mean: Tensor
    square: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("square", torch.ones(width))

    def forward(self, features: Tensor) -> Tensor:
        flat = features.flatten(0, -2)
        self.mean.lerp_(flat.mean(0), 1 - MOMENTUM)
        self.square.lerp_(flat.square().mean(0), 1 - MOMENTUM)
        return (features - self.mean) / (self.square - self.mean.square()).clamp(min=1e-6).sqrt()


def build_head(width: int, target_width: int) -> nn.Module:
    """Return a projector from the student's tokens to the teacher's."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, target_width))


class PlainDistillation(nn.Module):
    """Student, frozen teacher and heads.

    Args:
        student: A ViT of timm.
        teacher: A DINOv2 of transformers.
    """

    def __init__(self, student: nn.Module, teacher: Dinov2Model) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher.eval().requires_grad_(False)
        width = teacher.config.hidden_size
        self.heads = nn.ModuleList(build_head(student.embed_dim, width) for _ in range(2))
        self.standardizers = nn.ModuleList(RunningStandardizer(width) for _ in range(2))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the loss of a batch of normalized images."""
        with torch.autocast(pixels.device.type, torch.bfloat16):
            tokens = self.student.forward_features(pixels)
            answers = self.heads[0](tokens[:, :1]), self.heads[1](tokens[:, self.student.num_prefix_tokens :])
            with torch.no_grad():
                seen = self.teacher(pixels).last_hidden_state.float()
        with torch.no_grad():
            targets = seen[:, :1], self._on_grid_of(answers[1], seen[:, 1:])
            targets = [standardize(each) for standardize, each in zip(self.standardizers, targets, strict=True)]
        return sum(_distance(ours.float(), theirs) for ours, theirs in zip(answers, targets, strict=True))

    def _on_grid_of(self, ours: Tensor, patches: Tensor) -> Tensor:
        """Return the teacher's patches resized to the student's grid; both grids are square."""
        side, target = (round(tokens.shape[1] ** 0.5) for tokens in (patches, ours))
        maps = patches.transpose(1, 2).unflatten(2, (side, side))
        return F.interpolate(maps, (target, target), mode="bilinear", antialias=True).flatten(2).transpose(1, 2)


def _distance(ours: Tensor, theirs: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(ours, theirs, dim=-1)).mean() + F.smooth_l1_loss(ours, theirs)


def build_loop() -> PlainDistillation:
    """Return a ViT-Ti/16 that learns from DINOv2-S/14, both of random weights."""
    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, patch_size=TEACHER_PATCH)
    student = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    return PlainDistillation(student, Dinov2Model(config))


class Loop:
    """Steps of AdamW over batches of a folder, again and again.

    Args:
        network: What learns.
        folder: With JPEGs.
        batch_size: Images of a step.
    """

    def __init__(self, network: PlainDistillation, folder: Path, batch_size: int) -> None:
        self.network = network
        self.optimizer = torch.optim.AdamW([each for each in network.parameters() if each.requires_grad], lr=1e-4)
        self.loader = DataLoader(Pictures(folder), batch_size, shuffle=True, drop_last=True)
        self.batches = self._endless()

    def step(self) -> Tensor:
        """Do one step; return its loss."""
        loss = self.network(next(self.batches))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()

    def _endless(self) -> Iterator[Tensor]:
        while True:
            yield from self.loader


def main(folder: str, batch_size: str, num_warm_up_steps: str) -> None:
    """Build the loop, say so, and answer until the input ends."""
    run_steps(Loop(build_loop(), Path(folder), int(batch_size)).step, int(num_warm_up_steps))


if __name__ == "__main__":
    main(*sys.argv[1:])
