"""Other trainers of the same student and teacher, both with random weights: programs that run steps on request.

    python -m benchmarks.trainers plain FOLDER BATCH_SIZE NUM_WARM_UP_STEPS NUM_WORKERS
    PEER_PYTHON -m benchmarks.trainers lightly FOLDER BATCH_SIZE NUM_WARM_UP_STEPS OUTPUT

"plain" is our loop in PyTorch after UNIC (https://arxiv.org/abs/2408.05088, section 3): the least that any trainer
does. A head on the class token and one on the patches; their loss is a cosine distance plus a
smooth L1 distance to the teacher's features, standardized by running means and deviations. No moving average, no
shifts, no checkpoints; bfloat16 by autocast, AdamW; on a GPU if there is one. "lightly" is the distillation of
lightly-train (read of 0.18), whose Python has `lightly-train` and `timm`: its "distillationv2", which takes students of
any width, with crops and flips alone of its augmentations.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.steps import Stepper


SIDE_PX = 224
STUDENT = "vit_tiny_patch16_224"
TEACHER_PATCH = 14
MOMENTUM = 0.99
"""Momentum of the running means. Our choice: it does not change the time."""
LIGHTLY_TEACHER = "vits14-noreg"
STEPS_WITHOUT_END = 10**6


class RandomCrops(Dataset[Tensor]):
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
    """Standardizes by exponential moving averages of mean and mean square."""

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


class PlainDistillation(nn.Module):
    """Student, frozen teacher and heads.

    Args:
        student: A ViT of timm.
        teacher: A DINOv2 of transformers.
    """

    def __init__(self, student: Any, teacher: Any) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher.eval().requires_grad_(False)
        width, target = student.embed_dim, teacher.config.hidden_size
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, target)) for _ in range(2)
        )
        self.standardizers = nn.ModuleList(RunningStandardizer(target) for _ in range(2))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the loss of a batch of normalized images."""
        with torch.autocast(pixels.device.type, torch.bfloat16):
            tokens = self.student.forward_features(pixels)
            outputs = self.heads[0](tokens[:, :1]), self.heads[1](tokens[:, self.student.num_prefix_tokens :])
            with torch.no_grad():
                encoded = self.teacher(pixels).last_hidden_state.float()
        with torch.no_grad():
            targets = encoded[:, :1], self._on_grid_of(outputs[1], encoded[:, 1:])
            targets = [standardize(each) for standardize, each in zip(self.standardizers, targets, strict=True)]
        pairs = zip(outputs, targets, strict=True)
        distances = [
            (1 - F.cosine_similarity(ours.float(), theirs, dim=-1)).mean() + F.smooth_l1_loss(ours.float(), theirs)
            for ours, theirs in pairs
        ]
        return torch.stack(distances).sum()

    def _on_grid_of(self, ours: Tensor, patches: Tensor) -> Tensor:
        """Return the teacher's patches resized to the student's grid; both grids are square."""
        side, target = (round(tokens.shape[1] ** 0.5) for tokens in (patches, ours))
        maps = patches.transpose(1, 2).unflatten(2, (side, side))
        return F.interpolate(maps, (target, target), mode="bilinear", antialias=True).flatten(2).transpose(1, 2)


def build_plain() -> PlainDistillation:
    """Return a ViT-Ti/16 that learns from DINOv2-S/14, both of random weights."""
    from transformers import Dinov2Config, Dinov2Model  # the peer's Python may lack it

    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, patch_size=TEACHER_PATCH)
    return PlainDistillation(timm.create_model(STUDENT, num_classes=0), Dinov2Model(config))


def plain_steps(network: PlainDistillation, folder: Path, batch_size: int, num_workers: int = 0) -> Iterator[Tensor]:
    """Do steps of AdamW over batches of a folder, again and again; yield the loss after each."""
    optimizer = torch.optim.AdamW([each for each in network.parameters() if each.requires_grad], lr=1e-4)
    images, device = RandomCrops(folder), network.heads[0][0].weight.device
    loader = DataLoader(
        images, batch_size, shuffle=True, drop_last=True, num_workers=num_workers, pin_memory=device.type == "cuda"
    )
    while True:
        for batch in loader:
            loss = network(batch.to(device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            yield loss.detach()


def run_plain(folder: str, batch_size: str, num_warm_up_steps: str, num_workers: str) -> None:
    """Run the plain loop, which waits after the requested steps."""
    stepper = Stepper(int(num_warm_up_steps))
    network = build_plain().to("cuda" if torch.cuda.is_available() else "cpu")
    for _ in plain_steps(network, Path(folder), int(batch_size), int(num_workers)):
        stepper.end_step()


def run_lightly(folder: str, batch_size: str, num_warm_up_steps: str, output: str) -> None:
    """Start lightly-train's training, which waits after the requested steps."""
    os.environ["LIGHTLY_TRAIN_EVENTS_DISABLED"] = "1"  # no telemetry
    stepper = Stepper(int(num_warm_up_steps))

    import lightly_train  # pyrefly: ignore[missing-import]
    from lightly_train._models.dinov2_vit.dinov2_vit_src.configs import MODELS  # pyrefly: ignore[missing-import]
    from torch.optim.optimizer import register_optimizer_step_post_hook

    MODELS[LIGHTLY_TEACHER]["url"] = ""  # random weights: nothing is fetched
    register_optimizer_step_post_hook(lambda *_: stepper.end_step())
    lightly_train.pretrain(
        out=output,
        data=folder,
        model=f"timm/{STUDENT}",
        method="distillationv2",
        method_args={"teacher": f"dinov2/{LIGHTLY_TEACHER}"},
        optim="adamw",
        transform_args={"color_jitter": None, "random_gray_scale": None, "gaussian_blur": None},
        batch_size=int(batch_size),
        epochs=STEPS_WITHOUT_END,
        num_workers=0,
        devices=1,
        accelerator="cpu",
        precision="bf16-mixed",
        overwrite=True,
    )


if __name__ == "__main__":
    {"plain": run_plain, "lightly": run_lightly}[sys.argv[1]](*sys.argv[2:])
