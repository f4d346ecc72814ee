"""Words for the demo's student, in a minute or two: `python -m training.demo_kit.add_words`.

The student has an adaptor for EfficientNet-Lite0, which tells 1,000 classes by their names. A linear map from a small
sentence encoder's embeddings of these names to the rows of its classifier makes any other text a class. The folder that
is written opens in the stock `zero-shot-image-classification` pipeline and segments by words; its card, `results.json`
and `words.png` show how well, beside the teacher with the same words, and beside ConSE, which has names alone.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from foundation.checkpoints import open_checkpoint
from foundation.command_line import Command
from foundation.files import check_output, write_folder
from foundation.machine.timing import Clock
from model_cards.build import write_card
from model_cards.results import Results, build_tables
from modeling_radio import RadioImageProcessor, RadioModel
from training.demo_kit.images import render
from training.demo_kit.packages import package_named
from training.evaluation.data.demo import DemoData
from training.evaluation.data.tables import imagenet_class_names
from training.evaluation.models.radio import RadioTextFeatures, open_radio
from training.evaluation.models.sentences import PACKAGE, SentenceEncoder
from training.evaluation.provenance import describe_run, teacher_sources
from training.evaluation.task_settings import TaskSettings
from training.recipe import Recipe, RecipeCommand, RecipeError, TeacherRecipe
from training.teachers.embedded.efficientnet_lite import EfficientNetLiteTeacher
from training.teachers.registry import build_teachers
from training.views.images import build_images
from training.words.measurement import TeacherWords, measure_words, segment_scenes
from training.words.names import LearnedMap, learn_map
from training.words.pictures import draw_scenes
from training.words.student import ask, build_words, check_adaptor, save_words


TEACHER_KIND = "efficientnet-lite0"
PICTURE = "words.png"
NUM_UNLABELED = 512
"""Training images, without labels, on which the student is asked beside its teacher. Our choice: 384 do as well."""
NUM_SHOWN = 8
"""Scenes in the picture; our choice, as many as fit a screen."""
PICTURE_CAPTION = (
    "What the pixels of objects in held-out scenes are, among the names of the classes; no mask was learned from."
)
TASKS = TaskSettings(templates="simple", dense_source="features")


class AddWordsSettings(RecipeCommand):
    """Which student shall be given words.

    Attributes:
        checkpoint: Folder of a student with an adaptor for EfficientNet-Lite0, by default that of `make demo`.
        output: Folder to write.
        overwrite: Whether to replace an older one there.
        recipe: That the student was trained with, which names the teacher; or a file of your own that ends in .yaml.
    """

    checkpoint: Path = Path("runs/demo/final")
    output: Path = Path("runs/demo/words")
    overwrite: bool = False


COMMAND = Command(
    "training.demo_kit.add_words",
    "Give the demo's student words: a text tower made of a sentence encoder and its teacher's class names.",
    AddWordsSettings,
    changes=Recipe,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = " ".join(["python -m training.demo_kit.add_words", *arguments])
    return COMMAND.run(lambda settings: _add_words(settings, command), arguments)


def _add_words(settings: AddWordsSettings, command: str) -> None:
    transformers_logging.disable_progress_bar()  # models load in no time
    check_output(settings.output, overwrite=settings.overwrite, inputs=[settings.checkpoint])
    recipe = settings.load_recipe()
    entry, radio = _classifier(recipe), open_checkpoint(settings.checkpoint).model
    check_adaptor(radio, entry.name, EfficientNetLiteTeacher.SUMMARY_DIM)
    clock, size_px = Clock(), min(radio.preferred_resolution)
    with clock.phase("fetch"):
        teacher = build_teachers([entry], radio.patch_size)[entry.name]
        assert isinstance(teacher, EfficientNetLiteTeacher)  # its kind says so
        encoder = SentenceEncoder()
        data = DemoData.load(recipe.data.source, size_px)
        images = unlabeled_images(recipe.data.source, size_px)
    with clock.phase("learn the map"):
        learned = learn_map(encoder, imagenet_class_names(), teacher.rows)
    with clock.phase("ask the student"):
        answers = ask(radio, entry.name, teacher, images)
        model, tokenizer = build_words(radio, entry.name, encoder, learned, answers)

    def write(folder: Path) -> None:
        save_words(model, tokenizer, _processor(settings.checkpoint, radio), folder)
        student = open_radio(folder, size_px=size_px)
        assert isinstance(student, RadioTextFeatures)
        with clock.phase("measure"):
            measurements = measure_words(student, teacher, data, TASKS)
        draw_words(student, teacher, data, folder / PICTURE)
        run = {**describe_run(command, clock), "penalty": learned.penalty}
        remarks = _remarks(learned, entry.name, data)
        sources = teacher_sources(radio.config, recipe)
        results = Results(measurements, sources, data.sources(is_trained_on=True), run, remarks)
        write_card(folder, results, name=f"radio-{recipe.name}-words")
        print(*(f"\n{table.to_markdown()}" for table in build_tables(measurements)), sep="\n")

    write_folder(settings.output, write)
    print(
        f"\nOf classes that the map had not seen, penalty {learned.penalty:.2g} recognized "
        f"{learned.curve[learned.penalty]:.3f} (mean reciprocal rank).\nWrote {settings.output}: it opens in the "
        f"pipeline zero-shot-image-classification; {PICTURE} shows scenes by words."
    )


def _classifier(recipe: Recipe) -> TeacherRecipe:
    """Return the recipe's teacher that knows names."""
    for entry in recipe.teachers:
        if entry.kind == TEACHER_KIND:
            return entry
    kinds = ", ".join(entry.kind for entry in recipe.teachers)
    raise RecipeError(
        f"`teachers` of recipe {recipe.name!r} must have one of the kind {TEACHER_KIND}, whose classes have names, got "
        f"{kinds or 'none'}. Give the --recipe that the student was trained with."
    )


def unlabeled_images(source: str, size_px: int) -> Tensor:
    """Return images like those of the training, uint8 `(num_images, 3, size_px, size_px)`."""
    images = build_images(source, size=size_px, num_images=NUM_UNLABELED, split="train")
    return render(images, range(NUM_UNLABELED), num_workers=0, show_progress=False)


def _processor(checkpoint: Path, radio: RadioModel) -> RadioImageProcessor:
    if (checkpoint / "preprocessor_config.json").is_file():
        return RadioImageProcessor.from_pretrained(checkpoint)
    return RadioImageProcessor.from_model_config(radio.config)


def draw_words(student: RadioTextFeatures, teacher: EfficientNetLiteTeacher, data: DemoData, path: Path) -> None:
    """Draw held-out scenes beside what student and teacher call the objects in them."""
    scenes = data.segmentation
    images, truth, names = scenes.test_images[:NUM_SHOWN], scenes.test_masks[:NUM_SHOWN], scenes.class_names
    rows = {"truth": truth}
    for title, model in (("student", student), ("teacher", TeacherWords(teacher, student))):
        objects = segment_scenes(model, images, names[1:], TASKS)
        rows[f"{title}, by words"] = torch.where(truth > 0, objects + 1, truth)
    draw_scenes(images, rows, names, path, caption=PICTURE_CAPTION)


def _remarks(learned: LearnedMap, adaptor: str, data: DemoData) -> list[str]:
    """Say what the text tower is made of, and what the rows of the tables are."""
    objects, num_scenes = data.classification, len(data.segmentation.test_images)
    num_objects, num_classes = len(objects.query_labels), len(objects.class_names)
    most_frequent = objects.query_labels.bincount().max().item() / num_objects
    package, number = package_named(PACKAGE), len(learned.pairs.targets)
    return [
        f"Text tower: all-MiniLM-L6-v2 ({package.ecosystem} package {package.name} {package.version}, "
        f"{package.license}) and a ridge regression from its embeddings of {number} names to the rows of the "
        f"classifier of {adaptor}; penalty {learned.penalty:.2g}, chosen on classes that were left out.",
        f"Zero-shot: {num_objects} held-out objects of {num_classes} classes, by their names; always answering "
        f"the most frequent class scores {most_frequent:.3f}.",
        "ConSE has no map: an image is the mean of the names of its ten likeliest classes "
        "(https://arxiv.org/abs/1312.5650).",
        f"Open vocabulary, {num_scenes} held-out scenes: a patch is of the class whose name is nearest; "
        "without background, the pixels of objects among the names of objects. The teacher sees scenes enlarged until "
        "its last map has the student's grid.",
    ]


if __name__ == "__main__":
    sys.exit(main())
