"""Scores are those of transformers' `image-classification`, but for the temperature."""

from typing import get_args

import pytest
import torch
import transformers
from packaging.version import Version
from task_models import build, tiny_config
from transformers import ImageClassificationPipeline

from modeling_radio import RadioImageProcessor
from modeling_radio.heads_radio import ProblemType
from modeling_radio.pipelines_radio import RadioImageClassificationPipeline
from modeling_radio.post_processing_radio import class_scores


KNOWS_REGRESSION = Version(transformers.__version__) >= Version("5.18")


def answer(pipeline_class, config, logits):
    """What a pipeline makes of the logits of one image, in the order of the labels."""
    model = build("classifier")
    model.config = config
    pipe = pipeline_class(model=model, image_processor=RadioImageProcessor())
    scores = {each["label"]: each["score"] for each in pipe.postprocess({"logits": logits[None]})}
    return torch.tensor([scores[config.id2label[index]] for index in range(config.num_labels)])


@pytest.mark.parametrize(
    ("problem_type", "num_labels"),
    [
        *((kind, 3) for kind in (None, *get_args(ProblemType))),
        *((kind, 1) for kind in (None, "multi_label_classification", "regression")),
    ],
)
def test_scores_are_those_of_pipelines(problem_type, num_labels):
    config = tiny_config(num_labels=num_labels, problem_type=problem_type, temperature=2.0)
    logits = torch.tensor([1.0, -2.0, 4.0])[:num_labels]
    scores = class_scores(logits, config)
    torch.testing.assert_close(scores, answer(RadioImageClassificationPipeline, config, logits))
    if problem_type != "regression" or KNOWS_REGRESSION:
        of_transformers = logits if problem_type == "regression" else logits / 2
        torch.testing.assert_close(scores, answer(ImageClassificationPipeline, config, of_transformers))


def test_scores_of_several_images_in_half_precision_are_float32():
    scores = class_scores(torch.zeros(2, 4, dtype=torch.bfloat16), tiny_config(num_labels=4))
    assert scores.dtype == torch.float32
    assert scores.tolist() == [[0.25] * 4] * 2
