"""A head of one layer on a frozen teacher of the demo, trained as long as the student's, on the same labels."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from training.demo_kit.tuning.teacher_heads import TeacherHead, head_class
from training.finetuning.data.sources import load_images
from training.finetuning.settings import FinetuneSettings
from training.finetuning.tasks.base import FinetuningTask
from training.finetuning.tasks.classification import MultiLabelTask
from training.finetuning.tasks.examples import build_examples
from training.finetuning.tasks.registry import build_task
from training.teachers.base import Teacher
from training.teachers.registry import build_teacher


def probe_teacher(kind: str, settings: FinetuneSettings) -> dict[str, Any]:
    """Train a linear head on a teacher's answers, and measure it as `FinetuningRun` does.

    The head is that of the student's probe: layer norm and a linear layer on the summary, or batch norm and one on each
    place of the features (for depth, too, where the student has DPT's decoder); for words, a projection among the
    texts. Images are not augmented, so that the teacher answers once for each.

    Args:
        kind: Of the teacher.
        settings: Of the student's run: task, data, size, steps, batch size and seed are taken from it.

    Returns:
        `metrics`, `trainable_parameters`, `parameters` and `seconds` as in a run's results.

    Raises:
        ValueError: If the task has no such head, or the teacher no summary where one is classified.
        PackageError: If the package with the weights cannot be fetched.
    """
    started = time.perf_counter()
    teacher = build_teacher(kind, kind=kind)
    task = build_task(settings, load_images(settings))
    kind_of_head = head_class(task)
    is_dense = kind_of_head.is_dense
    train = _answers(teacher, task, task.images.train, "training image", is_dense=is_dense)
    validation = _answers(teacher, task, task.images.validation, "validation image", is_dense=is_dense)
    torch.manual_seed(settings.seed)
    head = kind_of_head(task, *train.tensors)
    _train(head, task, train)
    metrics = _measure(head, task, validation)
    trained = sum(parameter.numel() for parameter in head.parameters())
    return {
        "metrics": metrics,
        "trainable_parameters": trained,
        "parameters": trained + sum(weight.numel() for weight in teacher.state_dict().values()),  # some are buffers
        "seconds": time.perf_counter() - started,
    }


@torch.no_grad()
def _answers(teacher: Teacher, task: FinetuningTask, rows: Any, name: str, *, is_dense: bool) -> TensorDataset:
    """Return what the teacher says of each image, and its labels."""
    examples = build_examples(task, rows, name, is_training=False)
    loader = DataLoader(examples, task.settings.batch_size)
    answers, labels = [], []
    for batch in loader:
        found = teacher.answer(batch["pixel_values"])
        answer = found.features if is_dense else found.summary
        if answer is None:
            raise ValueError(f"`teacher` {teacher.name!r} has no summary to classify by.")
        answers.append(answer.float())
        labels.append(batch["labels"])
    return TensorDataset(torch.cat(answers), torch.cat(labels))


def _train(head: TeacherHead, task: FinetuningTask, examples: TensorDataset) -> None:
    settings = task.settings
    assert settings.steps is not None
    assert settings.head_learning_rate is not None  # every experiment with a linear head has one
    generator = torch.Generator().manual_seed(settings.seed)
    loader = DataLoader(examples, settings.batch_size, shuffle=True, generator=generator)
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.head_learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    head.train()
    for _, (answers, labels) in zip(range(settings.steps), _endless(loader), strict=False):
        head.loss(head(answers), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def _endless(loader: DataLoader) -> Any:
    while True:
        yield from loader


@torch.no_grad()
def _measure(head: TeacherHead, task: FinetuningTask, examples: TensorDataset) -> dict[str, float]:
    score, head = task.build_score(), head.eval()
    for answers, labels in DataLoader(examples, task.settings.batch_size):
        score.update(head.decide(head(answers)), labels.long() if isinstance(task, MultiLabelTask) else labels)
    return {name: float(value) for name, value in score.compute().items()}
