"""Train an upsampler so that its map, seen through views of the image, is what the teacher says of these views."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from foundation.files import write_file
from foundation.interruption import Interrupted, StopRequest, TrainingDivergedError
from foundation.seeds import make_generator
from foundation.settings import differences
from training.recipe import DataRecipe, decisive_part
from training.teachers.run_modes.featsharp import MIN_SCALE, FeatSharp, UpsampledTeacher, UpsamplerConfig
from training.upsampling.answers import Answers, Example
from training.upsampling.settings import UpsamplerSettings
from training.upsampling.views import ViewReader


STATE_FILE = "training.pt"
STATISTICS_IMAGES = 64  # our choice: some 10,000 tokens, from which one mean and one scale are known well
FREE_SETTINGS = (
    *("recipe", "changes"),  # what they come to decides
    *("output", "overwrite", "memory_gb", "save_every", "measured_images", "pictured_images", "device"),
)


class UpsamplerTrainer(nn.Module):
    """An upsampler in training.

    Args:
        settings: How it is trained.
        teacher: Whose features are made finer.
        answers: What that teacher says.
        data: The recipe's section on the images.
    """

    def __init__(
        self, settings: UpsamplerSettings, teacher: UpsampledTeacher, answers: Answers, data: DataRecipe
    ) -> None:
        super().__init__()
        self.settings, self.answers = settings, answers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(make_generator(answers.seed, "weights").initial_seed())
            config = UpsamplerConfig(
                **teacher._asdict(), width=settings.width, factor=settings.factor, num_steps=settings.num_steps
            )
            self.upsampler = FeatSharp(config)
            self.reader = ViewReader(teacher.feature_dim)
        self.to(answers.teacher.mean.device)
        self.optimizer = torch.optim.NAdam(self.parameters(), lr=settings.learning_rate)
        self.step = 0
        own = {name: value for name, value in settings.to_dict().items() if name not in FREE_SETTINGS}
        self._decisive: dict[str, Any] = {
            **own,
            "seed": answers.seed,
            "teacher": {"name": settings.teacher, **answers.teacher.run.to_dict(), **teacher._asdict()},
            **decisive_part({"data": data.to_dict()}),
            "images": answers.images.fingerprint(),
        }

    def fit_statistics(self) -> None:
        """Learn the features' mean and scale from the first images."""
        count = min(STATISTICS_IMAGES, self.num_images)
        features = torch.cat([self.answers.of_view(index, 0) for index in range(count)]).movedim(1, -1).flatten(0, 2)
        variance, mean = torch.var_mean(features, 0)
        self.upsampler.mean.copy_(mean)
        self.upsampler.scale.copy_(variance.mean().sqrt().clamp(min=MIN_SCALE))

    @property
    def num_images(self) -> int:
        """Return how many images it is trained on."""
        return min(self.settings.num_images, len(self.answers.images))

    def loss(self, example: Example) -> Tensor:
        """Return the mean squared error of the views, 1 for who answers the mean."""
        network = self.upsampler
        first = 0 if self.settings.largest_view == 1 else 1  # the first view is the whole image
        fine = network.sharpen(network.standardize(example.whole), network.standardize(example.tiles), example.images)
        # A teacher's answer has its pattern of positions, wherever the view lies: what moves with the image is content.
        errors = [
            F.mse_loss(
                self.reader(fine, views, target.shape[-1]) + network.centered_pattern(), network.standardize(target)
            )
            for views, target in zip(example.views[first:], example.targets[first:], strict=True)
        ]
        return torch.stack(errors).mean()

    def train_step(self) -> float:
        """Take one step, a pure function of the state and its number; return its loss.

        Raises:
            TrainingDivergedError: If the loss or its gradient is not finite; the weights are those of before.
        """
        settings = self.settings
        generator = make_generator(self.answers.seed, "step", self.step)
        indices = torch.randint(self.num_images, (settings.batch_size,), generator=generator).tolist()
        numbers = (1 + torch.randperm(settings.num_views, generator=generator)[: settings.views]).tolist()
        loss = self.loss(self.answers.example(indices, numbers))
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters(), settings.max_grad_norm)
        for name, value in (("loss", loss), ("gradient", norm)):
            if not value.isfinite():
                raise TrainingDivergedError(
                    f"The {name} of step {self.step} is not finite. Lower `learning_rate`, {settings.learning_rate}."
                )
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * self._share_of_rate()
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def run(self, folder: Path) -> list[float]:
        """Train to the end, from where an earlier run with the same settings stopped; return the losses of this one.

        Raises:
            Interrupted: If the process was asked to stop; what was done is saved.
            ValueError: If the folder has the state of a run with other settings.
        """
        state, losses = folder / STATE_FILE, list[float]()
        if not self.resume(state):
            self.fit_statistics()
        total = self.settings.num_steps
        with StopRequest() as stop, tqdm(total=total, initial=self.step, desc="upsampler", unit="step") as bar:
            while self.step < total:
                losses.append(self.train_step())
                bar.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
                bar.update()
                if stop.is_set or self.step % self.settings.save_every == 0 or self.step == total:
                    self.save(state)
                if stop.is_set and self.step < total:
                    raise Interrupted(f"stopped after step {self.step}; the same command goes on")
        return losses

    def save(self, path: Path) -> None:
        """Write all that a restart needs, whole or not at all."""
        parts = {"weights": self.state_dict(), "optimizer": self.optimizer.state_dict()}
        content = {**parts, "step": self.step, "settings": self._decisive}
        write_file(path, lambda temporary: torch.save(content, temporary))

    def resume(self, path: Path) -> bool:
        """Take up the state of an earlier run; return False where there is none.

        Raises:
            ValueError: If it is one with other settings.
        """
        if not path.exists():
            return False
        saved = torch.load(path, map_location="cpu", weights_only=True)
        changed = differences(saved["settings"], self._decisive)
        if changed:
            raise ValueError(
                f"{str(path)!r} is of a run with other settings ({'; '.join(changed)}). Go on with the same ones, name "
                "another output, or delete that file."
            )
        self.load_state_dict(saved["weights"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]
        return True

    def _share_of_rate(self) -> float:
        settings = self.settings
        warm = min(1.0, (self.step + 1) / (settings.warmup_steps + 1))
        return warm * 0.5 * (1 + math.cos(math.pi * self.step / settings.num_steps))
