"""KoLeo of DINOv2 (https://arxiv.org/abs/2304.07193): features of different images keep a distance."""

import torch
from torch import nn
from torch.nn import functional as F

from modeling_radio.core.ranks import mean_over_ranks
from modeling_radio.training.hooks.base import StepHook
from modeling_radio.training.losses.terms import LossTerm, zero_term


class KoLeo(StepHook, nn.Module):
    """Adds the loss "koleo", and logs its running mean."""

    def __init__(self, recipe, student):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))  # a part of the run's checkpoints

    def terms(self, batch, example, output, losses_of):
        if len(batch) < 2:
            return {"koleo": zero_term(output.backbone)}
        points = torch.cat([features.mean((2, 3)) for features in output.backbone])  # (images, hidden_size)
        points = F.normalize(points.float(), dim=1)
        others = points @ points.T - 2 * torch.eye(len(points), device=points.device)
        losses = -torch.log(F.pairwise_distance(points, points[others.argmax(1)]) + 1e-8)
        return {"koleo": LossTerm(0.1, losses.mean(), lambda: losses)}

    def end_step(self, values, *, is_skipped):
        mean = mean_over_ranks(values["koleo"].clone())
        if not is_skipped:
            self.mean.lerp_(mean, 0.1)

    def scalars(self):
        return {"koleo_mean": float(self.mean)}
