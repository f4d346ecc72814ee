"""Makes the folder of the small student in the package: one summary, EfficientNet-Lite0's classes, float16, no code.

`python -m modeling_radio.demo.small_student RUN/final modeling_radio/builtin/lite` takes a student of the recipe
`demo_lite`, and writes its card. A ridge
regression from its summary to that of the teacher, on training images, feeds the teacher's own classifier: together
they are one linear layer, which transformers' class of image classifiers has anyway.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling_radio import RadioForImageClassification, RadioImageProcessor, RadioModel
from modeling_radio.checks_radio import read_json
from modeling_radio.core.files import write_folder, write_text
from modeling_radio.core.opening import open_model
from modeling_radio.data.training_images import build_images, render
from modeling_radio.demo.add_words import BATCH_SIZE, ridge
from modeling_radio.demo.teachers import EfficientNetLiteTeacher
from modeling_radio.hub_radio import SOURCE_FILES
from modeling_radio.model_cards.build import write_card
from modeling_radio.model_cards.licenses import License
from modeling_radio.model_cards.lineage import Lineage
from modeling_radio.training.student.parameters import SUMMARY_QUERIES


TEACHER = "efficientnet-lite0"
SOURCE = "demo-permissive"
NUM_IMAGES = 4096  # our choice: ten for each number of the summary
PENALTY = 0.01
"""Ridge penalty, as a share of the variance of the normalized summaries, which is 1. Our choice."""
_CODE_ENTRIES, _NEEDS_CODE = ("auto_map", "custom_pipelines"), ("modules.json", "sentence_bert_config.json")


def with_one_summary(student: RadioModel, adaptor: str) -> RadioModel:
    """Return a student without adaptors, whose summary is the one that an adaptor read.

    Args:
        student: With a network of a library that has no class token of its own.
        adaptor: Its name.
    """
    config = student.config.without_adaptors()
    config.num_cls_tokens, config.summary_idxs = 1, [0]
    state = {key: tensor for key, tensor in student.state_dict().items() if ".adaptors." not in key}
    token = student.config.adaptor(adaptor).token_index
    state[SUMMARY_QUERIES] = state[SUMMARY_QUERIES][token : token + 1]
    state["radio_model.summary_idxs"] = torch.tensor([0])
    model = RadioModel(config)
    model.load_state_dict({key: state[key] for key in model.state_dict()})
    return model.eval()


@torch.no_grad()
def with_classes(student: RadioModel, teacher: EfficientNetLiteTeacher, images: Tensor) -> RadioForImageClassification:
    """Return the student as a classifier of the teacher's classes.

    Args:
        student: With one summary.
        teacher: Its classifier stays as it is.
        images: uint8 RGB `(num_images, 3, height, width)`.
    """
    own, theirs = [], []
    for batch in images.split(BATCH_SIZE):
        pixels = batch.float() / 255
        own.append(F.layer_norm(student(pixels, return_dict=True).summary, [student.config.hidden_size]))
        theirs.append(teacher.extract_features(pixels).summary)
    layer = ridge(torch.cat(own), torch.cat(theirs), PENALTY)
    config = copy.deepcopy(student.config)
    config.id2label = dict(enumerate(teacher.class_names))
    config.label2id = {name: index for index, name in config.id2label.items()}
    model = RadioForImageClassification(config).eval()
    model.radio_model.load_state_dict(student.radio_model.state_dict())
    classifier, linear = teacher.network.classifier, model.classifier[1]
    assert isinstance(linear, nn.Linear)
    linear.weight.copy_(classifier.weight @ layer.weight)
    linear.bias.copy_(classifier(layer.bias))
    return model


def write_small_student(source: Path, output: Path, num_images: int = NUM_IMAGES) -> None:
    """Write the folder.

    Args:
        source: Folder of a student of `demo_lite`.
        output: Folder to write.
        num_images: Training images for the regression.
    """
    student = with_one_summary(open_model(source, device="cpu").backbone, TEACHER)
    size = min(student.config.preferred_resolution)
    images = build_images(SOURCE, size=size, num_images=num_images, split="train")
    rendered = render(images, range(num_images), num_workers=0, show_progress=False)
    model = with_classes(student, EfficientNetLiteTeacher(TEACHER), rendered)
    halves = {key: each.half() if each.is_floating_point() else each for key, each in model.state_dict().items()}
    processor, lineage = RadioImageProcessor.from_model_config(model.config), Lineage.find(source)

    def write(folder: Path) -> None:
        model.save_pretrained(folder, state_dict=halves)  # `config.json` says float32, in which it opens
        processor.save_pretrained(folder)
        lineage.save(folder)
        for name in (*SOURCE_FILES, *_NEEDS_CODE):
            (folder / name).unlink(missing_ok=True)
        for path in folder.glob("*config.json"):
            values = read_json(path)
            kept = {name: value for name, value in values.items() if name not in _CODE_ENTRIES}
            write_text(path, json.dumps(kept, indent=2, sort_keys=True) + "\n")
        write_card(folder, model_id=f"builtin:{output.name}", license=License("apache-2.0"))

    write_folder(output, write, overwrite=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    write_small_student(arguments.source, arguments.output)
